"""How the requests that an archive is to bear are shared out among the jobs of a cluster, of however many exports.

The scheduler knows who is there and forgets whoever dies, so it keeps the account: a plugin of it is asked when a job
begins and told when it ends, never once a request. What was submitted says nothing of what runs: jobs wait for workers
that have not come yet, and those that come take part at once.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cloudpickle
from distributed import get_worker
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.utils import sync

from .threads import pause

if TYPE_CHECKING:
    from distributed import Client
    from distributed.scheduler import Scheduler

SECONDS_BETWEEN_QUESTIONS = 0.3
"""So often a job asks that got no share, since others have all of it."""


class Shares(SchedulerPlugin):
    """The account, where the scheduler runs: how many requests each worker may have under way."""

    name = "liver_dask-shares"
    idempotent = True

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    async def start(self, scheduler: "Scheduler") -> None:
        """Let workers ask."""
        self._scheduler = scheduler
        scheduler.handlers |= {"liver_dask_take": self.take, "liver_dask_hold": self.hold}

    def take(self, worker: str, held: int, limit: int) -> int:
        """Give a job its share, if that is free; 0 if it is not.

        Args:
            worker: The address of the worker whose job it is.
            held: What its other jobs have.
            limit: How many requests may be under way in the whole cluster.
        """
        self.hold(worker, held)
        share = max(1, limit // max(1, self._scheduler.total_nthreads))
        if worker not in self._held or sum(self._held.values()) + share > limit:
            return 0
        self._held[worker] += share
        return share

    def hold(self, worker: str, held: int) -> None:
        """Note what the jobs of a worker have, if it is still there."""
        if worker in self._scheduler.workers:
            self._held[worker] = held

    def remove_worker(self, scheduler: "Scheduler", worker: str, **_: Any) -> None:
        """Take back what a worker had that is gone."""
        self._held.pop(worker, None)


def keep_account(client: "Client") -> None:
    """Have the scheduler keep the account, if it does not yet; this package need not be installed there."""
    module = sys.modules[__name__]
    with _registering:  # which is the process's, and several threads may begin an export
        cloudpickle.register_pickle_by_value(module)
        try:
            client.register_plugin(Shares())
        finally:
            cloudpickle.unregister_pickle_by_value(module)


_registering = threading.Lock()
_lock = threading.Lock()
_held: Counter[str] = Counter()
"""What the jobs of this process have, by their worker; with threads for workers there are several."""


@contextmanager
def share_of(limit: int) -> Iterator[int]:
    """A job's share of so many requests in the whole cluster, on its worker; waits for it, and gives it back."""
    worker: Any = get_worker()

    def ask(what: str) -> int:
        call = getattr(worker.scheduler, f"liver_dask_{what}")
        options = {"limit": limit} if what == "take" else {}
        try:
            return sync(worker.loop, call, worker=worker.address, held=_held[worker.address], **options) or 0
        except OSError:  # a scheduler that is too busy hears of it the next time; one that is gone ends its workers
            return 0

    share = 0
    while not share:
        with _lock:
            share = ask("take")
            _held[worker.address] += share
        if not share:
            pause(SECONDS_BETWEEN_QUESTIONS)
    try:
        yield share
    finally:
        with _lock:
            _held[worker.address] -= share
            ask("hold")
