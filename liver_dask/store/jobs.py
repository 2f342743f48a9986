"""The runner of the jobs of an export: on threads of this process, or on the workers of a dask cluster.

New jobs are submitted when others end. On a cluster, a few more jobs are submitted than can run. So no graph is built,
whatever the size of the volume, and an adaptive cluster sees that there is work for more workers. Workers share the
allowed number of concurrent requests, so the number of jobs that fetch is limited, too; see `JobRunner.shares`.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import dask

from ..core.concurrency import cores
from ..core.config import setting
from ..core.errors import ExportError, LiverDaskError
from ..core.interrupts import check_interrupted, forget_interrupt, interrupts_noted
from ..core.malloc import keep_memory_of_worker, share_memory
from ..core.threads import ContextPool, is_in_task
from .broadcast import Broadcast, of_jobs

if TYPE_CHECKING:
    from distributed import Client

LOCAL_JOBS = 4
"""Number of concurrent jobs in this process. An export of a box has one job for raw and one for each mask."""

JOBS_AHEAD = 16
"""Maximum number of jobs that are submitted to a cluster before they can run. An adaptive cluster adds workers for
waiting jobs. The limit bounds the memory that waiting jobs take in the scheduler."""

SECONDS_BETWEEN_CHECKS = 1.0
"""Interval at which interrupts and the number of workers are checked."""

SECONDS_WITHOUT_WORKERS = 5.0
"""Time without any worker before a warning is logged."""

log = logging.getLogger(__name__)


class Report(NamedTuple):
    """Progress since the last report.

    Attributes:
        voxel_bytes: Bytes of voxels that the job has finished.
        fetched: Bytes fetched by all jobs of the process.
        requests: Number of requests of all jobs of the process.
    """

    voxel_bytes: int
    fetched: int
    requests: int


class Job(NamedTuple):
    """One unit of work.

    Attributes:
        what: Tag that is passed on with the result.
        call: The function to call; it must be picklable.
        arguments: Positional arguments of the function.
        fetches: Whether the job reads from the archive. If True, the function also gets the keyword argument `report`.
    """

    what: Any
    call: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    fetches: bool = True


@dataclass(frozen=True)
class JobRunner:
    """Runs jobs on threads or on a cluster.

    Attributes:
        submit: Submits a job with the given keyword arguments, and returns its future.
        places: Returns how many jobs can run concurrently now. The number changes when workers join or leave. Raises
            ExportError if the cluster is gone.
        why_cancelled: Returns the error that explains why a job was cancelled.
        report: The function that each job that fetches gets as `report`.
        on_heartbeat: Called in this process each second, on the thread that runs the jobs, with what `places` returned.
        shares: Whether the jobs run in several processes, which share the allowed number of concurrent requests. Then
            at most one job per allowed request fetches at a time.
        ahead: How many more jobs are submitted than can run now.
        threads: Number of threads on which a job may compute.
    """

    submit: Callable[[Job, dict[str, Any]], Future[Any]]
    places: Callable[[], int]
    why_cancelled: Callable[[], ExportError]
    report: Callable[[Report], None]
    on_heartbeat: Callable[[int], None]
    shares: bool
    ahead: int
    threads: int

    def run_all(
        self,
        connections: int,
        next_job: Callable[[], Job | None],
        take: Callable[[Any, Future[Any]], None],
        on_stop: Callable[[int], None] | None = None,
    ) -> None:
        """Run jobs until none is left.

        The first Ctrl-C waits for the jobs that run, if `on_stop` is given; the second stops at once.

        Args:
            connections: Maximum number of concurrent requests of all processes together.
            next_job: Returns a job, or None if there is none now. It may return one again after `take` was called.
            take: Called with `what` of a finished job and its future.
            on_stop: Called at the first Ctrl-C with the number of jobs that run; it makes them end soon.

        Raises:
            ExportError: The cluster is gone, or the jobs were cancelled.
        """
        with interrupts_noted():
            submitted: dict[Future[Any], Job] = {}
            try:
                self._work_off(submitted, connections, next_job, take)
            except KeyboardInterrupt:
                if on_stop and submitted:
                    self._finish(submitted, take, on_stop)
                raise
            finally:
                for future in submitted:
                    future.cancel()

    def _work_off(
        self,
        submitted: dict[Future[Any], Job],
        connections: int,
        next_job: Callable[[], Job | None],
        take: Callable[[Any, Future[Any]], None],
    ) -> None:
        fetching, most_fetching = 0, connections if self.shares else inf  # each job that fetches needs one request
        alone = _Alone()
        job = next_job()
        while job or submitted:
            check_interrupted()
            places = self.places()
            alone.note(places)
            while job and len(submitted) < places + self.ahead and not (job.fetches and fetching >= most_fetching):
                submitted[self.submit(job, {"report": self.report} if job.fetches else {})] = job
                fetching += job.fetches
                job = next_job()
            if not submitted:
                sleep(SECONDS_BETWEEN_CHECKS)
            for future in wait(submitted, SECONDS_BETWEEN_CHECKS, FIRST_COMPLETED).done:
                done = submitted.pop(future)
                fetching -= done.fetches
                if future.cancelled():
                    raise self.why_cancelled()
                take(done.what, future)
            job = job or next_job()
            self.on_heartbeat(places)

    def _finish(
        self,
        submitted: dict[Future[Any], Job],
        take: Callable[[Any, Future[Any]], None],
        on_stop: Callable[[int], None],
    ) -> None:
        """Wait for the jobs that run, as long as there are workers and no further Ctrl-C comes."""
        forget_interrupt()
        with suppress(LiverDaskError, OSError):  # the interrupt is what ends the run; errors are told by the next one
            if not self.places():
                return
            on_stop(min(len(submitted), self.places()))
            while submitted and (places := self.places()):
                for future in wait(submitted, SECONDS_BETWEEN_CHECKS, FIRST_COMPLETED).done:
                    done = submitted.pop(future)
                    if not future.cancelled():
                        take(done.what, future)
                self.on_heartbeat(places)
                check_interrupted()


class _Alone:
    """Logs a warning, once, if a cluster has no worker for a while."""

    def __init__(self) -> None:
        self._since, self._was_logged = monotonic(), False

    def note(self, places: int) -> None:
        """Take note of how many jobs can run now."""
        if places:
            self._since, self._was_logged = monotonic(), False
        elif not self._was_logged and monotonic() - self._since > SECONDS_WITHOUT_WORKERS:
            self._was_logged = True
            log.warning(
                "The cluster has had no worker for %.0f s; the work waits until one comes.", SECONDS_WITHOUT_WORKERS
            )


def client_in_force() -> "Client | None":
    """Return the client that dask itself would use now by default, or None if dask would not use a cluster.

    Within a task of a cluster, return None. There the caller has already distributed the work. Otherwise each task
    would start a driver and give up its worker thread to the next task, so that all of them would run at once.
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
    is_of_a_worker = client.id.startswith("Client-worker-")  # it is the default on a thread that a task has started
    is_usable = not client.asynchronous and client.status not in ("closing", "closed")
    return client if is_usable and not is_of_a_worker else None


@contextmanager
def open_runner(
    client: "Client | None",
    on_progress: Callable[[Report], None],
    on_heartbeat: Callable[[int], None] | None = None,
) -> Iterator[JobRunner]:
    """Open a runner on the workers of a cluster, or on threads of this process.

    Args:
        client: The client of the cluster; None for threads.
        on_progress: Called with the reports of the jobs, on any thread.
        on_heartbeat: Called each second with the number of jobs that can run, on the thread that runs the jobs. None
            calls `on_progress` with an empty report.

    Yields:
        The runner.
    """
    on_heartbeat = on_heartbeat or (lambda places: on_progress(Report(0, 0, 0)))
    if client is None:
        if setting("tune-malloc"):
            share_memory()
        with ContextPool(LOCAL_JOBS, thread_name_prefix="liver_dask-job") as pool:
            yield JobRunner(
                lambda job, options: pool.submit(job.call, *job.arguments, **options),
                lambda: LOCAL_JOBS,
                lambda: ExportError("A job was cancelled."),
                on_progress,
                on_heartbeat,
                shares=False,
                ahead=0,
                threads=os.cpu_count() or 1,
            )
        return
    topic, broadcast = f"liver_dask-{os.urandom(8).hex()}", Broadcast(client)
    client.subscribe_topic(topic, lambda event: on_progress(Report(*event[1])))
    try:
        with _place_given_up():
            yield JobRunner(
                partial(_submit, broadcast, client),
                partial(_places, client),
                partial(_why_cancelled, client),
                partial(_send, topic),
                on_heartbeat,
                shares=True,
                ahead=JOBS_AHEAD,
                threads=1,
            )
    finally:
        broadcast.clear()
        if client.status == "running":
            client.unsubscribe_topic(topic)


def _submit(broadcast: Broadcast, client: "Client", job: Job, options: dict[str, Any]) -> Future[Any]:
    """Submit a job to a cluster. Jobs that fetch nothing have priority, because they free disk space.

    This is not left to `client.get_executor`, which takes a result for an error if the worker that had it is lost while
    it is fetched.
    """
    name = f"liver_dask-{job.call.__name__}-{uuid4()}"  # dask estimates the duration of a job by the first part
    token = of_jobs.set(broadcast)
    try:
        priority = 0 if job.fetches else 1
        submitted = client.submit(
            _start_on_worker, job.call, *job.arguments, **options, key=name, priority=priority, pure=False
        )
    finally:
        of_jobs.reset(token)
    outcome: Future[Any] = Future()

    def cancel(done: Future[Any]) -> None:
        if done.cancelled() and submitted.status != "cancelled":
            submitted.cancel()

    outcome.add_done_callback(cancel)
    assert client.loop, "a client that was closed cannot submit either"
    client.loop.add_callback(_settle, client, submitted, outcome)
    return outcome


async def _settle(client: "Client", submitted: Any, outcome: Future[Any]) -> None:
    """Give the result or the error of a dask future to one that threads can wait for."""
    with suppress(InvalidStateError):  # it may be cancelled at any moment
        try:
            outcome.set_result(await client.gather(submitted, asynchronous=True))
        except CancelledError:
            if outcome.cancel():
                outcome.set_running_or_notify_cancel()  # wakes up who waits
        except Exception as error:  # of any kind: whoever takes the result handles it
            outcome.set_exception(error)


def _places(client: "Client") -> int:
    """Return the number of threads of all workers."""
    try:
        return sum(client.nthreads().values())
    except (OSError, RuntimeError, CancelledError, AttributeError) as error:
        raise _why_cancelled(client) from error


def _why_cancelled(client: "Client") -> ExportError:
    """Return an error that explains why jobs were cancelled, or why the cluster does not answer."""
    if client.status in ("closing", "closed"):
        return ExportError("The client was closed before the work was done; leave it open until then.")
    if client.status == "running":
        return ExportError("The jobs were cancelled, or the cluster was restarted, before the work was done.")
    return ExportError("The cluster is gone: its scheduler ended, or cannot be reached any more.")


@contextmanager
def _place_given_up() -> Iterator[None]:
    """Within a task of a cluster, give up its worker thread to the jobs; otherwise they might wait for it for ever."""
    if not is_in_task():
        yield
        return
    from distributed import rejoin, secede

    try:
        secede()
    except KeyError:  # the task has already seceded
        yield
        return
    try:
        yield
    finally:
        rejoin()


def _start_on_worker(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run a job on a worker, where each running job may compute on one thread."""
    keep_memory_of_worker()
    with cores.of(1):
        return call(*arguments, **options)


def _send(topic: str, report: Report) -> None:
    """Send a report from a worker as an event of the scheduler, because events work with any kind of cluster."""
    from distributed import get_worker

    get_worker().log_event(topic, tuple(report))
