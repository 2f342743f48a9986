"""The number of connections to an archive that this process may have: its share of a cluster's limit, else all.

A process with a dask worker reads for a cluster, on any of its threads. It tells the scheduler when it begins to read,
and when it has not read for a while; `ledger` describes what the scheduler does then.
"""

import asyncio
import itertools
import logging
import os
import sys
import threading
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol
from weakref import WeakSet

from ...core.threads import SECONDS_BETWEEN_CHECKS, check_cancelled
from .ledger import OPERATION

log = logging.getLogger(__name__)

SECONDS_KEPT = 5.0
"""Time after which an idle worker closes its connections and gives up its share."""

SECONDS_FOR_A_LOOP = 5.0
"""If a worker's event loop has not run for this time, and is seen to wait for data that is being read, the worker
cannot receive messages."""

TRIES = 5
SECONDS_BETWEEN_TRIES = 1.0
"""The scheduler is asked TRIES times, at this interval, to distribute connections; then the worker continues without
it."""

SECONDS_FOR_ANY_LOOP = 60.0
"""After this time the event loop counts as waiting for a read, whatever it seems to do; otherwise reading could wait
forever."""


class _Idle(Protocol):
    """An object that keeps connections open."""

    def close_idle(self) -> None:
        """Close the connections that are not in use."""


class _Visit:
    """One period of reading for a cluster, as counted by its scheduler.

    Attributes:
        worker: The worker of this process that communicates with the scheduler; a process may have several workers.
        id: Distinguishes the visit from others of this process.
        began: When the visit began.
        seen: When the visit began, or when the worker's event loop last ran.
        has_joined: Whether the scheduler has been informed of the visit.
        allowed: Maximum number of connections.
        number: Number of the scheduler's message that set `allowed`.
    """

    _ids = itertools.count(1)

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.id = next(self._ids)
        self.began = self.seen = monotonic()
        self.has_joined = False
        self.allowed = self.number = 0

    @property
    def is_over(self) -> bool:
        """Whether the worker has ended while this process continues."""
        return not _is_running(self.worker) and not self._is_ending

    @property
    def cannot_hear(self) -> bool:
        """Whether no message can arrive: the worker is ending, or its event loop waits for a read of this process.

        A loop that other code blocks, or that runs on an overloaded machine, will continue. Until then reads wait,
        because other workers may use the connections.
        """
        silent = monotonic() - self.seen
        return (
            self._is_ending
            or silent > SECONDS_FOR_ANY_LOOP
            or (silent > SECONDS_FOR_A_LOOP and _waits_for_reading(self.worker.thread_id))
        )

    @property
    def _is_ending(self) -> bool:
        return self.worker.status.name == "closing"  # other workers already have its share


class Share:
    """The connections of this process to one archive: `with share:` waits until one more is allowed.

    Args:
        archive: Identifies the archive and the limit; the same in all processes of a cluster.
        most: Maximum number of connections, of the whole cluster if this process reads for one.
    """

    def __init__(self, archive: str, most: int) -> None:
        self._archive = archive
        self._most = most
        self._transports: WeakSet[_Idle] = WeakSet()
        self._changed = threading.Condition()
        self._inside = self._taken = 0
        self._ended = 0.0
        self._visit: _Visit | None = None

    def add(self, transport: _Idle) -> None:
        """Register a transport, so that its idle connections can be closed when the share shrinks."""
        self._transports.add(transport)

    @property
    def now(self) -> int:
        """The number of connections allowed now, at least one: the best number of requests to split a read into."""
        visit = self._visit
        return max(visit.allowed, 1) if visit and visit.number else self._most

    def __enter__(self) -> None:
        with self._changed:
            self._inside += 1
            try:
                while not self._is_free():
                    self._changed.wait(SECONDS_BETWEEN_CHECKS)
                    check_cancelled("What waits for a connection")
            except BaseException:
                self._inside -= 1
                raise
            self._taken += 1

    def __exit__(self, *_: object) -> None:
        if self._has_too_many():
            self._close_idle()
        with self._changed:
            has_too_many = self._has_too_many()
            self._inside -= 1
            self._taken -= 1
            self._ended = monotonic()
            self._changed.notify()
            if has_too_many:
                self._send("hold")

    def hear(self, visit: int, number: int, allowed: int) -> None:
        """Handle a message of the scheduler, on the worker's event loop, and answer it."""
        with self._changed:
            if self._visit is None or self._visit.id != visit:
                return
            is_less = allowed < self._visit.allowed
            self._visit.allowed, self._visit.number = allowed, number
            self._changed.notify_all()
        if is_less:
            self._close_idle()
        with self._changed:
            self._send("hold")

    def _is_free(self) -> bool:
        visit = self._visit
        if visit is None or visit.is_over:
            self._visit = visit = self._begin()
        if visit is None:
            return True
        if visit.cannot_hear:
            return not self._taken
        return self._taken < visit.allowed

    def _begin(self) -> _Visit | None:
        worker = _worker()
        if worker is None:
            return None
        visit = _Visit(worker)
        with suppress(RuntimeError):  # the loop has ended, and the worker will end soon
            worker.loop.add_callback(self._attend, visit)
        return visit

    async def _attend(self, visit: _Visit) -> None:
        """Report a visit and its end to the scheduler; runs on the worker's event loop."""
        self._look(visit)
        plugin = pickled_plugin()
        for tries in itertools.count(1):
            try:
                await visit.worker.scheduler.register_scheduler_plugin(plugin=plugin, name=OPERATION, idempotent=True)
                break
            except Exception as error:  # any kind: the voxels can still be read
                if not isinstance(error, OSError) or tries == TRIES:  # the scheduler refuses, or does not answer
                    self._do_without(visit, error)
                    return
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            if self._visit is not visit or not _is_running(visit.worker):
                return
        visit.worker.stream_handlers[OPERATION] = lambda **message: visit.worker.loop.add_callback(_hear, **message)
        self._close_idle()
        with self._changed:
            if self._visit is visit:  # else it has ended, because nothing was read for too long
                visit.has_joined = True
                self._send("join")

    def _do_without(self, visit: _Visit, error: Exception) -> None:
        """Read without the scheduler's permission until nothing is read for a while."""
        log.warning("%s: each worker may have %d connections, since %r", self._archive, self._most, error)
        with self._changed:
            visit.allowed = self._most
            self._changed.notify_all()

    def _look(self, visit: _Visit) -> None:
        """Record that the worker's event loop runs; end a visit if nothing was read for a while."""
        visit.seen = monotonic()
        with self._changed:
            if self._visit is not visit or not _is_running(visit.worker):
                return
            idle_since = max(self._ended, visit.began)
            if not self._inside and monotonic() - idle_since > SECONDS_KEPT:
                visit.allowed = 0
                self._close_idle()
                self._send("leave")
                self._visit = None
                return
        visit.worker.loop.call_later(SECONDS_BETWEEN_CHECKS, self._look, visit)

    def _has_too_many(self) -> bool:
        visit = self._visit
        return visit is not None and self._taken > visit.allowed

    def _close_idle(self) -> None:
        for transport in list(self._transports):
            transport.close_idle()

    def _send(self, what: str) -> None:
        """Send a message to the scheduler; the lock is held, so that messages are in the order of the events."""
        visit = self._visit
        if visit is None or not visit.has_joined:  # a scheduler drops workers that send unknown messages
            return
        message = {
            "op": OPERATION,
            "archive": self._archive,
            "most": self._most,
            "visit": visit.id,
            "what": what,
            "number": visit.number,
            "held": max(self._taken, visit.allowed),
        }
        with suppress(RuntimeError):  # the loop and the worker have ended
            visit.worker.loop.add_callback(visit.worker.batched_send, message)


def pickled_plugin() -> bytes:
    """Return the scheduler plugin pickled by value, for a scheduler that need not have this package installed."""
    import cloudpickle  # imported here, because distributed is needed with a cluster only

    from . import ledger, ledger_plugin

    with _lock:  # the registration is global to the process
        for module in (ledger, ledger_plugin):
            cloudpickle.register_pickle_by_value(module)
        try:
            pickled: bytes = cloudpickle.dumps(ledger_plugin.SharesConnections())
        finally:
            for module in (ledger, ledger_plugin):
                cloudpickle.unregister_pickle_by_value(module)
    return pickled


_shares: dict[str, Share] = {}
_lock = threading.Lock()
_inherited: WeakSet[Any] = WeakSet()
"""Workers of the parent process of a fork; they do not run in this process."""


def share_of(url: str, most: int) -> Share:
    """Return this process's only share of an archive's connections.

    Args:
        url: Identifies the archive; the same for all who open it.
        most: Maximum number of connections; another maximum has another share.
    """
    archive = f"{url} ({most})"
    with _lock:
        return _shares.setdefault(archive, Share(archive, most))


def _hear(archive: str, **message: int) -> None:
    _shares[archive].hear(**message)


def _worker() -> Any:
    """Return a dask worker that runs in this process, or None; this imports nothing."""
    module = sys.modules.get("distributed.worker")
    workers = list(module.Worker._instances) if module else []  # `get_worker` works on threads of tasks only
    return next((worker for worker in workers if _is_running(worker) and worker not in _inherited), None)


def _is_running(worker: Any) -> bool:
    return worker.status.name in ("running", "paused", "closing_gracefully")


def _waits_for_reading(thread: int) -> bool:
    """Return whether a thread runs one of dask's own schedulers, or code of this package outside this module."""
    frame = sys._current_frames().get(thread)
    while frame:
        module = frame.f_globals.get("__name__", "")
        if module == "dask.local" or (module.startswith("liver_dask.") and module != __name__):
            return True
        frame = frame.f_back
    return False


def _forget() -> None:
    """Reset in a fork."""
    global _lock
    _lock = threading.Lock()
    _shares.clear()
    module = sys.modules.get("distributed.worker")
    _inherited.update(list(module.Worker._instances) if module else [])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
