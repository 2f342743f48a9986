"""The driver of an export: it creates the jobs, takes their results, and retries failed regions."""

import logging
import threading
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from functools import partial
from typing import Any

from rich.filesize import decimal

from ..core.errors import ExportError, LiverDaskError, sentence_of
from .computed import Work
from .finished import Finished
from .inputs import Source
from .jobs import Job, JobRunner, Report
from .layout import Group, Region, RegionBatch, Shard, ShardRow, plan_batches
from .outage import Outage
from .preflight import check_small
from .progress import Advance
from .status import StatusFile
from .worker import Failure, Outcome, Share, Task, merge, probe, report_of

log = logging.getLogger(__name__)


class Driver:
    """One run of an export.

    Args:
        source: All variables to write.
        finished: What is finished of the store to write to.
        run_name: The store's name for this run.
        connections: Maximum number of concurrent requests of all processes together.
        continue_on_error: Whether to continue after a region that could not be written.
        advance: Called with each report: the bytes of voxels that are done, and a remark to show.
        status: Where the run says how far it came.

    Attributes:
        failures: Regions that could not be written.
        fetched: Bytes fetched by all processes.
        requests: Number of requests for them.
    """

    def __init__(
        self,
        source: Source,
        finished: Finished,
        run_name: str,
        connections: int,
        continue_on_error: bool,
        advance: Advance,
        status: StatusFile,
    ) -> None:
        self._source = source
        self._finished = finished
        self._run_name = run_name
        self._connections = connections
        self._continue_on_error = continue_on_error
        self._merges: deque[tuple[ShardRow, Shard]] = deque()
        self._again: deque[RegionBatch] = deque()
        self._outage = Outage()
        self._advance = advance
        self._status = status
        self._waits = False
        self._is_here = False  # whether the jobs run in this process
        self._lock = threading.Lock()
        self.failures: list[Failure] = []
        self.fetched = self.requests = 0

    def report(self, done: Report) -> None:
        """Add the report of a task to the totals, and show it; may be called on any thread."""
        with self._lock:
            self.fetched += done.fetched
            self.requests += done.requests
        self._status.meter.add(done.voxel_bytes)
        if done.voxel_bytes:
            self._outage.note_finished()
        self._advance(done.voxel_bytes, self._remark())

    def heartbeat(self, places: int) -> None:
        """Show that the run goes on, and whether it waits for workers; called each second.

        Args:
            places: Number of jobs that can run.
        """
        self._waits = not places
        self._note_fetched()
        self._advance(0, self._remark())
        if self._status.is_due():
            self.tell_status(places)

    def tell_status(self, places: int | None = None, *, ended: bool = False) -> None:
        """Write how far the run came to the file that `liver-dask info` reads.

        Args:
            places: Number of jobs that can run; None if it is as before.
            ended: Whether the run has ended.
        """
        self._note_fetched()
        texts = self._failure_texts()
        self._status.write(self.fetched, self.requests, texts, workers=places, ended=ended)

    def _note_fetched(self) -> None:
        """Add what this process has fetched since the last report: a region may take minutes, and does not report."""
        if self._is_here:
            _, fetched, requests = report_of(0)
            with self._lock:
                self.fetched += fetched
                self.requests += requests

    def write(self, written: Collection[tuple[str, Region]], runner: JobRunner) -> None:
        """Write all regions that are not written yet, and merge their slabs into shards.

        Args:
            written: The regions that are written already, with the names of their variables.
            runner: Runs the jobs.

        Raises:
            LiverDaskError, OSError: The first error of a region, unless `continue_on_error` is True.
            ExportError: The cluster is gone; or `continue_on_error` is True and some regions could not be written.
        """
        self._missing = self._find_missing(written)
        for row in [row for row, left in self._missing.items() if not left and not self._finished.is_merged(row)]:
            self._add_merges(row)
        self._batches = plan_batches(self._finished.layout, self._source.groups, written)
        self._threads, self._is_here = runner.threads, not runner.shares
        if not written:  # report a wrong address, shape or label before anything is written
            first = iter([Job("The first slice", probe, (self._source.windows,))])
            runner.run_all(self._connections, lambda: next(first, None), self._take)
        try:
            for group, work in self._source.works:
                if next(plan_batches(self._finished.layout, [group], written), None):
                    self._compute_statistics(work, runner)
            runner.run_all(self._connections, self._next_job, self._take, self._stop)
        except BaseException:
            self._finished.end_run()  # running jobs then stop after their current region
            raise
        if self.failures:
            raise self._failures_as_error()

    def _stop(self, under_way: int) -> None:
        """Let running jobs end after their current region."""
        self._finished.end_run()
        log.warning("Stopping: %s under way; press Ctrl-C again to stop now.", _regions(under_way))

    def _compute_statistics(self, work: Work, runner: JobRunner) -> None:
        """Compute once what all jobs need: shares of it in jobs, and the rest in this process."""
        for keys in work.statistics:
            jobs = [
                Job("What all regions need", Share(self._finished, *share).compute) for share in work.partials(keys)
            ]
            ends: dict[Any, Any] = {}
            runner.run_all(self._connections, partial(next, iter(jobs), None), partial(self._take_share, ends))
            work.settle(keys, ends)

    def _take_share(self, ends: dict[Any, Any], what: str, future: Future[Any]) -> None:
        try:
            result = future.result()
        except Exception as error:  # the worker died several times, or cannot even start the job
            result = self._lost(what, error)
        if isinstance(result, Exception):
            raise result
        ends.update(result)
        check_small(ends)

    def _find_missing(self, written: Collection[tuple[str, Region]]) -> dict[ShardRow, set[Region]]:
        """Return, for each row of shards, the regions whose slabs are not written yet."""
        layout = self._finished.layout
        return {
            row: {region for region in layout.regions_of(row) if (row.name, region) not in written}
            for row in layout.shard_rows(self._finished.variables)
        }

    def _add_merges(self, row: ShardRow) -> None:
        self._merges.extend((row, shard) for shard in self._finished.layout.shards_of(row))

    def _next_job(self) -> Job | None:
        if self._merges:
            row, shard = self._merges.popleft()
            return Job(row, merge, (self._finished, row, shard), fetches=False)
        pause = self._outage.pause if self._again else 0
        batch = self._again.popleft() if self._again else next(self._batches, None)
        if batch is None:
            return None
        part = self._source.part(batch)
        options = self._threads, self._continue_on_error, pause
        return Job(batch, Task(self._finished, self._run_name, part, batch, *options).write)

    def _take(self, what: RegionBatch | ShardRow | str, future: Future[Any]) -> None:
        """Process the result of a job."""
        try:
            result = future.result()
        except Exception as error:  # the worker died several times, or cannot even start the job
            result = self._lost(what, error)
        if not isinstance(what, RegionBatch):
            if result is not None:
                raise result
            return
        for region in result.written:
            for name in what.group.names:
                row = self._finished.layout.row_of(name, region)
                self._missing[row].discard(region)
                if not self._missing[row]:
                    self._add_merges(row)
        for failure in result.failures:
            self._note(what, failure)

    def _note(self, batch: RegionBatch, failure: Failure) -> None:
        """Handle a failed region: retry it, raise its error, or continue without it."""
        if failure.is_transient and self._outage.may_pass((failure.names, failure.region)):
            rest = (
                (failure.region,) if self._continue_on_error else batch.regions[batch.regions.index(failure.region) :]
            )
            self._again.append(RegionBatch(batch.group, rest))
            return
        self.failures.append(failure)
        if not self._continue_on_error:
            raise failure.error

    def _lost(self, what: RegionBatch | ShardRow | str, error: Exception) -> Any:
        """Return the outcome of a job that returned no result: its regions as failures, or an error."""
        error = ExportError(
            f"{_name_of(what)} was given up: {error} Workers may lack memory, the package liver_dask of this version, "
            f"or the folder {self._finished.folder}; look at their logs."
        )
        if not isinstance(what, RegionBatch):
            return error
        return Outcome((), tuple(Failure(what.group.names, region, error, False) for region in what.regions))

    def _remark(self) -> str:
        failed = f", {_regions(len(self.failures))} failed" if self.failures else ""
        waits = ", waiting for workers" if self._waits else ", waiting for the archive" if self._outage.is_told else ""
        return f"{decimal(self.fetched)} fetched{failed}{waits}"

    def _failure_texts(self) -> list[str]:
        return [f"{_name_of(RegionBatch(Group(f.names), (f.region,)))}: {sentence_of(f.error)}" for f in self.failures]

    def _failures_as_error(self) -> LiverDaskError:
        texts = self._failure_texts()
        shown = "\n".join(["", *texts[:20], *(["..."] if len(texts) > 20 else [])])
        return ExportError(f"{_regions(len(texts))} could not be written; all others are.{shown}", texts)


def _regions(count: int) -> str:
    return "1 region" if count == 1 else f"{count} regions"


def _name_of(what: RegionBatch | ShardRow | str) -> str:
    if isinstance(what, str):
        return what
    if isinstance(what, ShardRow):
        return f"The row of shards z {what.z}, y {what.y} of {what.name}"
    first, last = what.regions[0], what.regions[-1]
    return (
        f"{', '.join(what.group.names)}, slices {first.z_start}-{first.z_stop - 1} and rows "
        f"{first.y_start}-{last.y_stop - 1} of the store"
    )
