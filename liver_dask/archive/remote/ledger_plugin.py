"""The ledgers of connections in dask's scheduler, and their talk with the workers."""

import asyncio
import time
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from .ledger import OPERATION, Ledger

SECONDS_BETWEEN_LOOKS = 1.0

SECONDS_TO_CLOSE = 1.0
"""So long a worker that goes away takes at most to give up what it reads."""


class SharesConnections(SchedulerPlugin):
    """Keeps a ledger for each archive; the workers register it themselves when they begin to read."""

    name = OPERATION

    async def start(self, scheduler: Scheduler) -> None:
        """See SchedulerPlugin; waits for nothing, or two workers might each start one."""
        self._scheduler = scheduler
        self._ledgers: dict[str, Ledger] = {}
        self._is_looking = False
        scheduler.stream_handlers[OPERATION] = self._hear

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """See SchedulerPlugin; what the worker had is others' as soon as it has closed it."""
        asyncio.get_running_loop().call_later(SECONDS_TO_CLOSE, self._forget, worker)

    def _forget(self, worker: str) -> None:
        if worker in self._scheduler.workers:  # again
            return
        for archive in [*self._ledgers]:
            self._ledgers[archive].leave(worker)
            self._settle(archive)

    def _hear(self, worker: str, archive: str, most: int, visit: int, what: str, number: int, held: int) -> None:
        """Take a message of a worker."""
        if worker not in self._scheduler.workers:
            return
        ledger = self._ledgers.setdefault(archive, Ledger(most))
        if what == "join":
            ledger.join(worker, visit, held, time.monotonic())
        elif what == "hold":
            ledger.hold(worker, visit, number, held)
        else:
            ledger.leave(worker)
        self._settle(archive)

    def _settle(self, archive: str) -> None:
        for worker, share in self._ledgers[archive].settle(time.monotonic()):
            if worker in self._scheduler.workers:  # else it is gone, and soon forgotten
                self._scheduler.worker_send(worker, {"op": OPERATION, "archive": archive, **share._asdict()})
        if self._ledgers[archive].is_crowded and not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(SECONDS_BETWEEN_LOOKS, self._look)

    def _look(self) -> None:
        """End turns that are over."""
        self._is_looking = False
        for archive in [*self._ledgers]:
            self._settle(archive)
