"""How many connections to an archive this process may have at once: of a cluster's limit its share, else all of it.

A process in which a dask worker runs reads for a cluster, on whichever of its threads. It tells the scheduler when it
begins to read, and when it has not read for a while; see `ledger` for what the scheduler makes of it.
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

from ...core.threads import SECONDS_BETWEEN_LOOKS, check_cancelled
from .ledger import OPERATION

log = logging.getLogger(__name__)

SECONDS_KEPT = 5.0
"""So long a worker that reads nothing keeps its connections, and with them its share."""

SECONDS_FOR_A_LOOP = 5.0
"""A worker's event loop that has not run for so long cannot tell us more, if it is seen to wait for what is read."""

TRIES = 5
SECONDS_BETWEEN_TRIES = 1.0
"""So often, and so far apart, the scheduler is asked to share out connections before a worker goes on without."""

SECONDS_FOR_ANY_LOOP = 60.0
"""After so long it is taken to wait for it, whatever it seems to do: else reading could wait for ever."""


class _Idle(Protocol):
    """What keeps connections open."""

    def close_idle(self) -> None:
        """Close those that nobody uses."""


class _Visit:
    """One time of reading for a cluster, as its scheduler counts them.

    Attributes:
        worker: Of whatever workers this process has, the one that talks with the scheduler.
        id: Tells it from others of this process.
        began: When it did.
        seen: When it began, or the worker's event loop last ran.
        has_joined: Whether the scheduler was told of it.
        allowed: How many connections it may have.
        number: Of the scheduler's message that said so.
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
        """Whether the worker has ended, and this process lives on."""
        return not _is_running(self.worker) and not self._is_ending

    @property
    def cannot_hear(self) -> bool:
        """Whether the scheduler will tell nothing: the worker ends, or its event loop waits for what is read here.

        A loop that somebody else holds up, or an overloaded machine, goes on; the connections are others' meanwhile.
        """
        silent = monotonic() - self.seen
        return (
            self._is_ending
            or silent > SECONDS_FOR_ANY_LOOP
            or (silent > SECONDS_FOR_A_LOOP and _waits_for_reading(self.worker.thread_id))
        )

    @property
    def _is_ending(self) -> bool:
        return self.worker.status.name == "closing"  # others have its share already


class Share:
    """Connections of this process to one archive: `with share:` waits until there may be one more.

    Args:
        archive: Which archive, and which limit: what processes of a cluster have in common.
        most: How many there may be, of the whole cluster where this process reads for one.
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
        """Let something that opens connections close them when they are to be fewer."""
        self._transports.add(transport)

    @property
    def now(self) -> int:
        """How many connections there may be now, one at least: into so many requests a read is best split."""
        visit = self._visit
        return max(visit.allowed, 1) if visit and visit.number else self._most

    def __enter__(self) -> None:
        with self._changed:
            self._inside += 1
            try:
                while not self._is_free():
                    self._changed.wait(SECONDS_BETWEEN_LOOKS)
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
                self._tell("hold")

    def hear(self, visit: int, number: int, allowed: int) -> None:
        """Take the scheduler's message, on the worker's event loop, and answer it."""
        with self._changed:
            if self._visit is None or self._visit.id != visit:
                return
            is_less = allowed < self._visit.allowed
            self._visit.allowed, self._visit.number = allowed, number
            self._changed.notify_all()
        if is_less:
            self._close_idle()
        with self._changed:
            self._tell("hold")

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
        with suppress(RuntimeError):  # its loop has ended, and it is about to
            worker.loop.add_callback(self._attend, visit)
        return visit

    async def _attend(self, visit: _Visit) -> None:
        """Let the scheduler know of a visit, and of its end; runs on the worker's event loop meanwhile."""
        self._look(visit)
        plugin = pickled_plugin()
        for tries in itertools.count(1):
            try:
                await visit.worker.scheduler.register_scheduler_plugin(plugin=plugin, name=OPERATION, idempotent=True)
                break
            except Exception as error:  # of whatever kind: the voxels can be read all the same
                if not isinstance(error, OSError) or tries == TRIES:  # it refuses, or does not answer
                    self._do_without(visit, error)
                    return
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            if self._visit is not visit or not _is_running(visit.worker):
                return
        visit.worker.stream_handlers[OPERATION] = lambda **message: visit.worker.loop.add_callback(_hear, **message)
        self._close_idle()
        with self._changed:
            if self._visit is visit:  # else nothing was read for so long that it has ended
                visit.has_joined = True
                self._tell("join")

    def _do_without(self, visit: _Visit, error: Exception) -> None:
        """Read without the scheduler's leave, until nothing is read for a while."""
        log.warning("%s: each worker may have %d connections, since %r", self._archive, self._most, error)
        with self._changed:
            visit.allowed = self._most
            self._changed.notify_all()

    def _look(self, visit: _Visit) -> None:
        """Take note that the worker's event loop runs; end a visit when nothing was read for a while."""
        visit.seen = monotonic()
        with self._changed:
            if self._visit is not visit or not _is_running(visit.worker):
                return
            idle_since = max(self._ended, visit.began)
            if not self._inside and monotonic() - idle_since > SECONDS_KEPT:
                visit.allowed = 0
                self._close_idle()
                self._tell("leave")
                self._visit = None
                return
        visit.worker.loop.call_later(SECONDS_BETWEEN_LOOKS, self._look, visit)

    def _has_too_many(self) -> bool:
        visit = self._visit
        return visit is not None and self._taken > visit.allowed

    def _close_idle(self) -> None:
        for transport in list(self._transports):
            transport.close_idle()

    def _tell(self, what: str) -> None:
        """Send the scheduler a message; in the order of what it tells of, so with the lock held."""
        visit = self._visit
        if visit is None or not visit.has_joined:  # the scheduler breaks with a worker of which it understands nothing
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
        with suppress(RuntimeError):  # the loop has ended, and the worker with it
            visit.worker.loop.add_callback(visit.worker.batched_send, message)


def pickled_plugin() -> bytes:
    """The scheduler's part, for a scheduler that need not have this package."""
    import cloudpickle  # here, so that nobody imports distributed who has no cluster

    from . import ledger, ledger_plugin

    with _lock:  # what is registered is the process's
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
"""Workers of the process that this one was forked from: they do not run here."""


def share_of(url: str, most: int) -> Share:
    """The one share of this process of an archive's connections.

    Args:
        url: What all who open the archive have in common.
        most: How many connections there may be; others are other shares.
    """
    archive = f"{url} ({most})"
    with _lock:
        return _shares.setdefault(archive, Share(archive, most))


def _hear(archive: str, **message: int) -> None:
    _shares[archive].hear(**message)


def _worker() -> Any:
    """A dask worker that runs in this process; None if there is none. Does not import what is not imported."""
    module = sys.modules.get("distributed.worker")
    workers = list(module.Worker._instances) if module else []  # `get_worker` knows it on the threads of tasks alone
    return next((worker for worker in workers if _is_running(worker) and worker not in _inherited), None)


def _is_running(worker: Any) -> bool:
    return worker.status.name in ("running", "paused", "closing_gracefully")


def _waits_for_reading(thread: int) -> bool:
    """Whether a thread is in one of dask's own schedulers, or in this package outside of this module."""
    frame = sys._current_frames().get(thread)
    while frame:
        module = frame.f_globals.get("__name__", "")
        if module == "dask.local" or (module.startswith("liver_dask.") and module != __name__):
            return True
        frame = frame.f_back
    return False


def _forget() -> None:
    """Start anew, in a fork."""
    global _lock
    _lock = threading.Lock()
    _shares.clear()
    module = sys.modules.get("distributed.worker")
    _inherited.update(list(module.Worker._instances) if module else [])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
