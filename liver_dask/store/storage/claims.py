"""The exclusive right to write a store in object storage, where there are no locks.

A claim is an object `lock/00000001` in the folder of the unfinished store. It is written only if there is none, which
the storage guarantees, and its holder renews it. When a claim was not renewed for SECONDS_OF_A_CLAIM, another process
takes the right over by `lock/00000002`, which again only one of several can write. The holder of the first sees that
before its next renewal, and ends. All ages are differences of the storage's own times, so no clock of a machine counts.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from ...core.errors import InvalidArgumentError, LiverDaskError, StoreExistsError
from ...core.places import ObjectPath

SECONDS_OF_A_CLAIM = 60.0
"""How long a claim holds after it was renewed."""

LATE = "progress"
"""The folder in which a job may still write after its run has ended."""

SECONDS_BETWEEN_RENEWALS = 10.0

log = logging.getLogger(__name__)


class Claims:
    """The claims on one unfinished store.

    Args:
        partial: Folder of the unfinished store and its progress.
        target: The complete store, for messages.
        beside: The name of what may be in `partial` although nobody ever held a claim.
        busy: Message of the StoreExistsError if another process holds a claim.
    """

    def __init__(self, partial: ObjectPath, target: ObjectPath, beside: str, busy: str = "") -> None:
        self._partial, self._target, self._beside = partial, target, beside
        self._busy = busy or f"{target} is being written by another process, on {{host}}; wait for it to end."
        self._folder = partial / "lock"

    def exist(self) -> bool:
        """Return whether there are any."""
        return self._folder.exists()

    @contextmanager
    def held(self) -> Iterator["HeldClaim"]:
        """Hold a claim; see Storage.claim."""
        try:
            claim = HeldClaim(self._place(self._take()), self._target)
        except OSError as error:
            if isinstance(error, LiverDaskError):
                raise
            raise InvalidArgumentError(f"Cannot write {self._target}: {error.strerror or error}.") from None
        with claim:
            yield claim

    def _take(self) -> int:
        """Write a new claim as soon as no other one holds, and return its number."""
        while True:
            numbers = self._numbers()
            if numbers:
                self._wait_for(self._place(numbers[-1]))
            else:
                self._check_empty()
            number = numbers[-1] + 1 if numbers else 1
            if _write_new(self._place(number)):
                return number

    def _numbers(self) -> list[int]:
        try:
            return sorted(int(entry.name) for entry in self._folder.iterdir() if entry.name.isdigit())
        except FileNotFoundError:
            return []

    def _place(self, number: int) -> ObjectPath:
        return self._folder / f"{number:08}"

    def _check_empty(self) -> None:
        with suppress(FileNotFoundError):
            if {entry.name for entry in self._partial.iterdir()} - {self._beside, LATE}:
                raise StoreExistsError(
                    f"{self._partial} is something that liver_dask did not write; choose another address."
                )

    def _wait_for(self, claim: ObjectPath) -> None:
        """Wait until a claim is given up or stale.

        Raises:
            StoreExistsError: Its holder renews it.
        """
        first = None
        while True:
            try:
                content, modified = claim.read_bytes(), _modified(claim)
            except FileNotFoundError:
                return
            holder = _parsed(content)
            if holder.get("released") or _is_dead(holder):
                return
            if first not in (None, modified):
                raise StoreExistsError(self._busy.format(host=holder.get("host", "another machine")))
            left = SECONDS_OF_A_CLAIM - (self._now() - modified).total_seconds()
            if left <= 0:
                return
            if first is None:
                log.warning(
                    "%s may still be written by a process on %s; this is known in %.0f s at most",
                    self._target, holder.get("host", "another machine"), left,
                )  # fmt: skip
            first = modified
            time.sleep(min(left + 0.1, SECONDS_BETWEEN_RENEWALS / 4))

    def _now(self) -> Any:
        """Return the time of the storage: that of an object written now."""
        probe = self._folder / f"now-{secrets.token_hex(4)}"
        probe.call("pipe_file", probe.key, b"")
        try:
            return _modified(probe)
        finally:
            probe.call("rm_file", probe.key)


class HeldClaim:
    """A claim that this process holds, and renews on a thread.

    Args:
        place: Its object, already written.
        target: The complete store, for messages.
    """

    def __init__(self, place: ObjectPath, target: ObjectPath) -> None:
        self._place, self._target = place, target
        self._next = place.with_name(f"{int(place.name) + 1:08}")
        self._renewed = time.monotonic()
        self._ends = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew_on, name="liver_dask-claim", daemon=True)

    def __enter__(self) -> "HeldClaim":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ends.is_set():
            self._stop()
            try:
                if not self._is_lost:
                    self._write(released=True)
            except OSError as error:
                log.warning("%s: the claim could not be given up, and is stale in a minute (%s)", self._target, error)

    def check(self) -> None:
        """Raise StoreExistsError if another process has taken over, or may have."""
        if not self._is_lost and time.monotonic() - self._renewed > SECONDS_OF_A_CLAIM / 2:
            self._renew()
        if self._is_lost:
            raise StoreExistsError(
                f"{self._target} is written by another process since this one could not renew its claim for "
                f"{SECONDS_OF_A_CLAIM:.0f} s; wait for it to end."
            )

    def remove(self) -> None:
        """Remove all claims, because there is nothing left to write."""
        self.check()
        self._stop()
        folder = self._place.parent
        for entry in sorted(folder.iterdir()):  # this one is the last
            with suppress(FileNotFoundError):
                entry.call("rm_file", entry.key)

    def _stop(self) -> None:
        self._ends.set()
        self._thread.join()

    def _renew_on(self) -> None:
        while not self._ends.wait(SECONDS_BETWEEN_RENEWALS) and not self._is_lost:
            try:
                self._renew()
            except OSError as error:
                log.warning("%s: the claim could not be renewed, and is tried again (%s)", self._target, error)

    def _renew(self) -> None:
        if self._next.is_file() or not self._place.is_file():  # who took over may have finished, and removed all
            self._is_lost = True
        else:
            began = time.monotonic()
            self._write()
            self._renewed = began

    def _write(self, *, released: bool = False) -> None:
        self._place.call("pipe_file", self._place.key, _content(released=released))


def _write_new(place: ObjectPath) -> bool:
    """Write a claim unless it exists; a repeated request may find the claim that its first try wrote."""
    content = _content()
    try:
        place.call("pipe_file", place.key, content, mode="create")
    except FileExistsError:
        with suppress(FileNotFoundError):
            return place.read_bytes() == content
        return False
    return True


def _content(*, released: bool = False) -> bytes:
    """Return the content of a claim, different each time: whether it holds, and for which process."""
    process = psutil.Process()
    return json.dumps(
        {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": process.pid,
            "since": process.create_time(),
            "released": released,
            "token": secrets.token_hex(8),
        }
    ).encode()


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    machine = _machine()
    if not machine or holder.get("machine") != machine:
        return False
    try:
        return bool(psutil.Process(int(holder["pid"])).create_time() != holder["since"])
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, LookupError, TypeError, ValueError):
        return False


def _machine() -> str:
    """Return what names this machine, since its start, and the processes that this one can see; empty if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()} {file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _modified(place: ObjectPath) -> Any:
    return place.call("modified", place.key)
