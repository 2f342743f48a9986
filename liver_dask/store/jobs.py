"""Who does the work of an export: threads of this process, or the workers of a cluster; some jobs at a time.

Jobs are submitted as others end, a few more than can run: no graph is built, whatever the size of the volume, and a
cluster that adapts sees that there is work for more workers. The requests that the archive is to bear are shared out
among the jobs that run, see `shares`.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import dask

from ..core.concurrency import cores
from ..core.config import setting
from ..core.errors import ExportError
from ..core.interrupts import check_interrupted, interrupts_noted
from ..core.malloc import keep_memory_of_worker, share_memory
from ..core.threads import ContextPool, is_in_task

if TYPE_CHECKING:
    from distributed import Client

LOCAL_JOBS = 4
"""Jobs side by side in this process: one for raw and one for each mask are what a box has."""

JOBS_AHEAD = 16
"""Jobs that are submitted to a cluster before they can run: dask asks for workers for what waits. The most that are
held in the scheduler's memory."""

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_WITHOUT_WORKERS = 5.0
"""So long nothing is said of it that there is nobody to do the work."""

log = logging.getLogger(__name__)


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
class JobRunner:
    """Who does the work.

    Attributes:
        submit: Begins a job, with the options that it is called with.
        places: How many jobs can run side by side now; it may change while workers come and go. ExportError if there
            is no cluster any more.
        why_cancelled: What became of a job that was cancelled.
        report: Given to each job that fetches.
        on_progress: Is called here with what they report, and once in a while with nothing.
        shares: Whether requests are to be shared out among the jobs, because these run in several processes.
        ahead: How many jobs more are submitted than can run now.
        threads: Threads that a job may compute on.
    """

    submit: Callable[[Job, dict[str, Any]], Future[Any]]
    places: Callable[[], int]
    why_cancelled: Callable[[], ExportError]
    report: Callable[[Report], None]
    on_progress: Callable[[Report], None]
    shares: bool
    ahead: int
    threads: int

    def run_all(
        self, connections: int, next_job: Callable[[], Job | None], take: Callable[[Any, Future[Any]], None]
    ) -> None:
        """Do jobs until none is left.

        Args:
            connections: How many requests may be under way at once, in all processes together.
            next_job: Gives a job, or None where there is none now; there may be one again when a result was taken.
            take: Gets `what` a job was, and its future.

        Raises:
            ExportError: The cluster is gone, or somebody cancelled the jobs.
        """
        with interrupts_noted():
            self._work_off(connections, next_job, take)

    def _work_off(
        self, connections: int, next_job: Callable[[], Job | None], take: Callable[[Any, Future[Any]], None]
    ) -> None:
        submitted: dict[Future[Any], Job] = {}
        fetching, most_fetching = 0, connections if self.shares else inf  # each of them needs a request of its own
        alone = _Alone()
        job = next_job()
        try:
            while job or submitted:
                check_interrupted()
                places = self.places()
                alone.note(places)
                while job and len(submitted) < places + self.ahead and not (job.fetches and fetching >= most_fetching):
                    submitted[self.submit(job, {"report": self.report} if job.fetches else {})] = job
                    fetching += job.fetches
                    job = next_job()
                if not submitted:
                    sleep(SECONDS_BETWEEN_LOOKS)
                for future in wait(submitted, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done:
                    done = submitted.pop(future)
                    fetching -= done.fetches
                    if future.cancelled():
                        raise self.why_cancelled()
                    take(done.what, future)
                job = job or next_job()
                self.on_progress(Report(0, 0, 0))
        finally:
            for future in submitted:
                future.cancel()


class _Alone:
    """Says so, once, if there is nobody for a while who could do the work."""

    def __init__(self) -> None:
        self._since, self._was_logged = monotonic(), False

    def note(self, places: int) -> None:
        if places:
            self._since, self._was_logged = monotonic(), False
        elif not self._was_logged and monotonic() - self._since > SECONDS_WITHOUT_WORKERS:
            self._was_logged = True
            log.warning(
                "The cluster has had no worker for %.0f s; the work waits until one comes.", SECONDS_WITHOUT_WORKERS
            )


def client_in_force() -> "Client | None":
    """The client that dask itself would compute with now, if nothing else was said; None where that is threads.

    In a task of a cluster it is none: whoever hands out tasks has shared out the work, and each of them would start
    a driver and leave its place to the next one, all of them at once.
    """
    distributed = sys.modules.get("distributed")
    scheduler = dask.config.get("scheduler", None)
    if distributed is None or is_in_task():
        return None
    if isinstance(scheduler, distributed.Client):
        return scheduler
    if scheduler not in (None, "distributed", "dask.distributed"):
        return None
    try:
        client: Client = distributed.default_client()
    except ValueError:
        return None
    is_of_a_worker = client.id.startswith("Client-worker-")  # met on a thread that a task has started
    is_usable = not client.asynchronous and client.status not in ("closing", "closed")
    return client if is_usable and not is_of_a_worker else None


@contextmanager
def open_runner(client: "Client | None", on_progress: Callable[[Report], None]) -> Iterator[JobRunner]:
    """The workers of a cluster, or threads of this process where there is none.

    Args:
        client: The cluster.
        on_progress: Is called with what the jobs report, on some thread.
    """
    if client is None:
        if setting("tune-malloc"):
            share_memory()
        with ContextPool(LOCAL_JOBS, thread_name_prefix="liver_dask-job") as pool:
            yield JobRunner(
                lambda job, options: pool.submit(job.call, *job.arguments, **options),
                lambda: LOCAL_JOBS,
                lambda: ExportError("A job was cancelled."),
                on_progress,
                on_progress,
                shares=False,
                ahead=0,
                threads=os.cpu_count() or 1,
            )
        return
    topic = f"liver_dask-{os.urandom(8).hex()}"
    client.subscribe_topic(topic, lambda event: on_progress(Report(*event[1])))
    try:
        with _place_given_up():
            yield JobRunner(
                partial(_submit, client.get_executor(pure=False)),
                partial(_places, client),
                partial(_why_cancelled, client),
                partial(_send, topic),
                on_progress,
                shares=True,
                ahead=JOBS_AHEAD,
                threads=1,
            )
    finally:
        if client.status == "running":
            client.unsubscribe_topic(topic)


def _submit(executor: Executor, job: Job, options: dict[str, Any]) -> Future[Any]:
    """To a cluster; what fetches nothing frees the disk, so it comes first."""
    name = f"liver_dask-{job.call.__name__}-{uuid4()}"  # dask tells from the first part how long such jobs take
    return executor.submit(
        _start_on_worker, job.call, *job.arguments, **options, key=name, priority=0 if job.fetches else 1
    )


def _places(client: "Client") -> int:
    try:
        return sum(client.nthreads().values())
    except (OSError, RuntimeError, CancelledError, AttributeError) as error:
        raise _why_cancelled(client) from error


def _why_cancelled(client: "Client") -> ExportError:
    """What became of a cluster whose jobs were cancelled, or that does not answer."""
    if client.status in ("closing", "closed"):
        return ExportError("The client was closed before the work was done; leave it open until then.")
    if client.status == "running":
        return ExportError("The jobs were cancelled, or the cluster was restarted, before the work was done.")
    return ExportError("The cluster is gone: its scheduler ended, or cannot be reached any more.")


@contextmanager
def _place_given_up() -> Iterator[None]:
    """In a task of a cluster, leave its place to the jobs meanwhile, which else might wait for it for ever."""
    if not is_in_task():
        yield
        return
    from distributed import rejoin, secede

    try:
        secede()
    except KeyError:  # it has done so itself
        yield
        return
    try:
        yield
    finally:
        rejoin()


def _start_on_worker(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a job that computes on one thread."""
    keep_memory_of_worker()
    with cores.of(1):
        return call(*arguments, **options)


def _send(topic: str, report: Report) -> None:
    """Report from a worker, as an event of the scheduler: they come through whatever kind of cluster it is."""
    from distributed import get_worker

    get_worker().log_event(topic, tuple(report))
