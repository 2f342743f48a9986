"""The exclusive right to write a store in object storage, where there are no locks.

A claim is an object `lock/00000001` in the folder of the unfinished store. It is written only if there is none, which
the storage guarantees, and its holder renews it. When a claim was not renewed for SECONDS_OF_A_CLAIM, another process
takes the right over by `lock/00000002`, which again only one of several can write. The holder of the first sees that
before its next renewal, and ends. All ages are differences of the storage's own times, so no clock of a machine counts.
"""

import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...core.disk import content_of
from ...core.errors import InvalidArgumentError, LiverDaskError, StoreExistsError
from ...core.places import ObjectPath, tail_of
from .s3 import put_new

SECONDS_OF_A_CLAIM = 60.0
"""How long a claim holds after it was renewed."""

LATE = re.compile(
    r"store/((\w+/)*(zarr|manifest|inventory)\.json|liver_dask/\w+/\w+/c(/\d+)*|[zyx]/c/\d+)|"
    r"progress/[0-9a-f]{16}/(run|slabs/\w+/\d+-\d+|shards/\w+/\d+-\d+-\d+\.(json|npy)|sources/[0-9a-f]{32}\.json)"
)
"""What a job may still write after its run has ended, and another process has removed all."""

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
            claim = HeldClaim(*self._take(), self._target)
        except OSError as error:
            if isinstance(error, LiverDaskError):
                raise
            why = "there is no such bucket" if isinstance(error, FileNotFoundError) else error.strerror or error
            raise InvalidArgumentError(f"Cannot write {self._target}: {why}.") from None
        with claim:
            yield claim

    def _take(self) -> tuple[ObjectPath, str]:
        """Write a new claim as soon as no other one holds; return it and its token."""
        while True:
            numbers = self._numbers()
            if numbers:
                self._wait_for(self._place(numbers[-1]))
            else:
                self._check_empty()
            place, token = self._place(numbers[-1] + 1 if numbers else 1), secrets.token_hex(8)
            if _write_new(place, token):
                if _write_new(place, secrets.token_hex(8)):
                    place.call("rm_file", place.key)
                    raise InvalidArgumentError(
                        f"Cannot write {self._target}: this storage does not keep to If-None-Match (Ceph's does not in "
                        "a bucket with versions), so that two processes could write at once; use another one, or a "
                        "folder."
                    )
                self._check_ends_are_read(place)
                return place, token

    def _check_ends_are_read(self, claim: ObjectPath) -> None:
        """Raise an error if nobody could read a shard there, as with Azure's package: its index is at the end."""
        try:
            tail_of(claim, 1)
        except OSError as error:
            claim.call("rm_file", claim.key)
            raise InvalidArgumentError(
                f"Cannot write {self._target}: this storage, or its package for fsspec, does not read the end of an "
                f"object, where readers of Zarr look for the index of a shard ({error.strerror or error}); use another "
                "one, or a folder."
            ) from None

    def _numbers(self) -> list[int]:
        try:
            return sorted(int(entry.name) for entry in self._folder.iterdir() if entry.name.isdigit())
        except FileNotFoundError:
            return []

    def _place(self, number: int) -> ObjectPath:
        return self._folder / f"{number:08}"

    def _check_empty(self) -> None:
        with suppress(FileNotFoundError):
            names = [place.relative_to(self._partial).as_posix() for place in self._partial.rglob("*")]
            if not all(name.startswith(f"{self._beside}/") or LATE.fullmatch(name) for name in names):
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
            try:
                left = SECONDS_OF_A_CLAIM - (self._now() - modified).total_seconds()
            except FileNotFoundError:  # the holder has just removed all
                return
            if left <= 0:
                return
            if first is None:
                log.warning(
                    "%s was being written by a process on %s; waiting up to %.0f s to see whether it still is",
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
            with suppress(FileNotFoundError):
                probe.call("rm_file", probe.key)


class HeldClaim:
    """A claim that this process holds, and renews on a thread.

    Args:
        place: Its object, already written.
        token: What its content has, and that of no other claim.
        target: The complete store, for messages.
    """

    def __init__(self, place: ObjectPath, token: str, target: ObjectPath) -> None:
        self._place, self._token, self._target = place, token, target
        self._next = place.with_name(f"{int(place.name) + 1:08}")
        self._ends = threading.Event()
        self._is_lost = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._renew_on, name="liver_dask-claim", daemon=True)

    def __enter__(self) -> "HeldClaim":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ends.is_set():
            self._stop()
            try:
                if self._is_mine():
                    self._write(released=True)
            except OSError as error:
                log.warning("%s: the claim could not be given up, and is stale in a minute (%s)", self._target, error)

    def check(self) -> None:
        """Raise StoreExistsError if another process has taken over, or may have."""
        self._renew()  # whatever the clock says: it stands still while a machine sleeps
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
        with self._lock:
            if self._is_mine():
                self._write()

    def _is_mine(self) -> bool:
        """Return whether the claim still holds; who took over may have finished, removed all, and another begun."""
        if not self._is_lost:
            found = content_of(self._place)
            self._is_lost = found is None or _parsed(found).get("token") != self._token or self._next.is_file()
        return not self._is_lost

    def _write(self, *, released: bool = False) -> None:
        self._place.call("pipe_file", self._place.key, _content(self._token, released=released))


def _write_new(place: ObjectPath, token: str) -> bool:
    """Write a claim unless it exists; a repeated request may find the claim that its first try wrote."""
    return put_new(place, _content(token)) or _parsed(content_of(place) or b"").get("token") == token


def _content(token: str, *, released: bool = False) -> bytes:
    """Return the content of a claim: for which process it holds, and whether it was given up."""
    return json.dumps(
        {
            "token": token,
            "released": released,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": _begin_of(os.getpid()),
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
        return _begin_of(int(holder["pid"])) != holder["since"]
    except (LookupError, TypeError, ValueError):
        return False


def _begin_of(pid: int) -> str:
    """Return when a process began, in ticks since the machine did, whatever its clock says; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _machine() -> str:
    """Return what names this machine, since its start, and the processes that this one can see; empty if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()} {file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _modified(place: ObjectPath) -> Any:
    return place.call("modified", place.key)
