"""Who does the work of an export: threads of this process, or the workers of a cluster; a few jobs at a time.

Jobs are submitted as others end, never more than can run: no graph is built, whatever the size of the volume. The
requests that the archive is to bear are shared out with the jobs, so that a whole cluster keeps to one limit without
asking anybody for leave (a `distributed.Semaphore` would be asked twice a request, and a killed worker would keep its
leases for half a minute).
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ExportError
from .interrupts import check_interrupted, interrupts_noted
from .malloc import keep_memory, share_memory
from .threads import ContextPool

if TYPE_CHECKING:
    from distributed import Client

LOCAL_JOBS = 4
"""Jobs side by side in this process: one for raw and one for each mask are what a box has."""

SECONDS_BETWEEN_LOOKS = 1.0
GONE = "The cluster is gone: its scheduler ended, or was restarted."


class Report(NamedTuple):
    """What was done since the last report: bytes of voxels, and what all jobs of the process fetched."""

    voxel_bytes: int
    fetched: int
    requests: int


class Job(NamedTuple):
    """Something to do.

    Attributes:
        what: What it is, to whoever gets its result.
        call: Is called with the arguments; must be picklable.
        arguments: They.
        fetches: Whether it asks the archive: then it is called with `connections` and `report`, too.
    """

    what: Any
    call: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    fetches: bool = True


@dataclass(frozen=True)
class Team:
    """Who does the work.

    Attributes:
        executor: Runs the jobs.
        start: Calls a job with its arguments, where it runs.
        places: How many jobs can run side by side now; it may change while workers come and go.
        report: Given to each job that fetches.
        hear: Is called here with what they report, and once in a while with nothing.
        shares: Whether requests are to be shared out with the jobs, because these run in several processes.
        threads: Threads that a job may compute on.
    """

    executor: Executor
    start: Callable[..., Any]
    places: Callable[[], int]
    report: Callable[[Report], None]
    hear: Callable[[Report], None]
    shares: bool
    threads: int

    def work_off(
        self, connections: int, next_job: Callable[[], Job | None], take: Callable[[Any, Future[Any]], None]
    ) -> None:
        """Do jobs until none is left.

        Args:
            connections: How many requests may be under way at once, in all processes together.
            next_job: Gives a job, or None where there is none now; there may be one again when a result was taken.
            take: Gets `what` a job was, and its future.

        Raises:
            ExportError: The cluster is gone.
        """
        with interrupts_noted():
            self._work_off(connections, next_job, take)

    def _work_off(
        self, connections: int, next_job: Callable[[], Job | None], take: Callable[[Any, Future[Any]], None]
    ) -> None:
        running: dict[Future[Any], tuple[Any, int]] = {}
        free = connections
        job = next_job()
        try:
            while job or running:
                check_interrupted()
                places = self._places_now()
                while job and len(running) < places and (free or not job.fetches):
                    share = max(1, min(free, connections // places)) if self.shares and job.fetches else 0
                    options = {"connections": share or None, "report": self.report} if job.fetches else {}
                    running[self.executor.submit(self.start, job.call, *job.arguments, **options)] = job.what, share
                    free -= share
                    job = next_job()
                if not running:  # no worker has come yet, or none is left
                    sleep(SECONDS_BETWEEN_LOOKS)
                for future in wait(running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done:
                    what, share = running.pop(future)
                    free += share
                    if future.cancelled():
                        raise ExportError(GONE)
                    take(what, future)
                job = job or next_job()
                self.hear(Report(0, 0, 0))
        finally:
            for future in running:
                future.cancel()

    def _places_now(self) -> int:
        try:
            return self.places()
        except (OSError, RuntimeError, CancelledError) as error:
            raise ExportError(GONE) from error


@contextmanager
def gather(client: "Client | None", hear: Callable[[Report], None]) -> Iterator[Team]:
    """The workers of a cluster, or threads of this process where there is none.

    Args:
        client: The cluster.
        hear: Is called with what the jobs report, on some thread.
    """
    if client is None:
        share_memory()
        with ContextPool(LOCAL_JOBS, thread_name_prefix="liver_dask-job") as executor:
            yield Team(executor, _start_here, lambda: LOCAL_JOBS, hear, hear, shares=False, threads=os.cpu_count() or 1)
        return
    topic = f"liver_dask-{os.urandom(8).hex()}"
    client.subscribe_topic(topic, lambda event: hear(Report(*event[1])))
    try:
        yield Team(
            client.get_executor(pure=False),
            _start_on_worker,
            lambda: sum(client.nthreads().values()),
            partial(_send, topic),
            hear,
            shares=True,
            threads=1,
        )
    finally:
        if client.status == "running":
            client.unsubscribe_topic(topic)


def _start_here(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return call(*arguments, **options)


def _start_on_worker(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a job, in a process that does not give back to the system what it will need again at once.

    dask starts workers with MALLOC_TRIM_THRESHOLD_=65536. By that glibc asks the system for every array and every
    context of the compressor, page by page: zstd then runs at a quarter of its rate, and an export at less than half.
    """
    keep_memory()
    return call(*arguments, **options)


def _send(topic: str, report: Report) -> None:
    """Report from a worker, as an event of the scheduler: they come through whatever kind of cluster it is."""
    from distributed import get_worker

    get_worker().log_event(topic, tuple(report))
