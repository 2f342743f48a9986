"""The ledgers of connections in dask's scheduler, and their messages to and from the workers."""

import asyncio
import time
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from .ledger import OPERATION, Ledger

SECONDS_BETWEEN_CHECKS = 1.0

SECONDS_TO_CLOSE = 1.0
"""Maximum time that a departing worker needs to cancel its reads."""


class SharesConnections(SchedulerPlugin):
    """Keeps a ledger for each archive. The workers register the plugin themselves when they begin to read."""

    name = OPERATION

    async def start(self, scheduler: Scheduler) -> None:
        """See SchedulerPlugin; there is no await here, because otherwise two workers might each start a plugin."""
        self._scheduler = scheduler
        self._ledgers: dict[str, Ledger] = {}
        self._is_looking = False
        scheduler.stream_handlers[OPERATION] = self._hear

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """See SchedulerPlugin; others get the connections once the worker has had time to close them."""
        asyncio.get_running_loop().call_later(SECONDS_TO_CLOSE, self._forget, worker)

    def _forget(self, worker: str) -> None:
        if worker in self._scheduler.workers:  # it has registered again
            return
        for archive in [*self._ledgers]:
            self._ledgers[archive].leave(worker)
            self._settle(archive)

    def _hear(self, worker: str, archive: str, most: int, visit: int, what: str, number: int, held: int) -> None:
        """Handle a message from a worker."""
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
            if worker in self._scheduler.workers:  # else it is gone and will be removed soon
                self._scheduler.worker_send(worker, {"op": OPERATION, "archive": archive, **share._asdict()})
        if self._ledgers[archive].is_crowded and not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(SECONDS_BETWEEN_CHECKS, self._look)

    def _look(self) -> None:
        """End the turns that are over."""
        self._is_looking = False
        for archive in [*self._ledgers]:
            self._settle(archive)
