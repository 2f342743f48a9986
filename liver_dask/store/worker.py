"""The work of an export: read regions, encode them, write them as slabs, and merge slabs into shards.

The same code runs on threads of this process and on the workers of a cluster. A task returns what it wrote and what
failed. It raises no errors, so that a bad slice only affects its own regions.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Semaphore
from typing import Any, NamedTuple, TypeVar

import dask.threaded
import numpy as np
import numpy.typing as npt

from ..archive.lazy.futures import got
from ..archive.lazy.lazy_window import LazyWindow
from ..archive.lazy.leaves import Tasks
from ..archive.remote.versions import FileVersion, noting_files
from ..core.concurrency import cores
from ..core.errors import ExportError, LiverDaskError, RangeNotSupportedError, RemoteError, SourceChangedError
from ..core.geometry import Shape
from ..core.metrics import traffic
from ..core.threads import ContextPool, pause
from .finished import Finished
from .identity import has_means
from .jobs import Report
from .layout import Region, RegionBatch, Shard, ShardRow
from .rows import Arrays, Key, Part, read_ahead
from .shards import Chunk, encode_chunk

READERS = 8
"""Number of files of a region that are read concurrently, on any number of cores: with a distant archive, most of them
wait."""

IN_MEMORY = 2
"""How many regions of a batch are in memory as voxels, and how many as encoded chunks: while one is read or encoded,
the one before is encoded or written."""

Encoded = dict[str, list[Chunk]]
T = TypeVar("T")


class Failure(NamedTuple):
    """A region that could not be written.

    Attributes:
        names: The variables of the region.
        region: The region.
        error: The reason.
        is_transient: Whether a retry may succeed.
    """

    names: tuple[str, ...]
    region: Region
    error: Exception
    is_transient: bool


class Outcome(NamedTuple):
    """Result of a batch: the regions that were written, and those that failed."""

    written: tuple[Region, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Task:
    """One batch of regions, as it is sent to a worker.

    Attributes:
        finished: What is finished of the store to write to.
        run_name: Name of the run of the export that the task belongs to.
        part: What the batch needs in order to read the variables.
        batch: The batch to write.
        threads: Number of threads that encode.
        continue_on_error: Whether to continue with the next region after a failed one.
        pause: Seconds to wait first, because the archive does not answer.
    """

    finished: Finished
    run_name: str
    part: Part
    batch: RegionBatch
    threads: int
    continue_on_error: bool
    pause: float = 0

    def write(self, report: Callable[[Report], None]) -> Outcome:
        """Write the regions in order. While one is written, the next is encoded, and the one after that is read.

        Args:
            report: Called after each region that was written.
        """
        written: list[Region] = []
        failures: list[Failure] = []
        pause(self.pause)
        with self.part.read_ahead(), noting_files() as files, ExitStack() as stack:
            for region, keeping in _ahead(self._begin(stack, files), 2):
                try:
                    done = keeping.result()
                except Exception as error:  # any kind: the driver reports it, and continues or stops
                    failures.append(
                        Failure(self.batch.group.names, region, picklable_error(error), _is_transient(error))
                    )
                    if not self.continue_on_error:
                        break
                else:
                    written.append(region)
                    report(report_of(done))
        return Outcome(tuple(written), tuple(failures))

    def _begin(self, stack: ExitStack, files: Mapping[str, FileVersion]) -> Iterator[tuple[Region, Future[int]]]:
        """Begin one region after the other, with the voxels and the chunks of at most two regions in memory."""
        readers, encoders = (stack.enter_context(ContextPool(n)) for n in (READERS, self.threads))
        reader, encoder, writer = (stack.enter_context(ContextPool(1)) for _ in range(3))
        rows = self.part.rows(self.batch, readers)
        free_of_voxels, free_of_chunks = Semaphore(IN_MEMORY), Semaphore(IN_MEMORY)

        def read(region: Region) -> Arrays:
            with _taken(free_of_voxels):
                return rows.read(region)

        def encode(reading: Future[Arrays]) -> Encoded:
            arrays = reading.result()
            try:
                with _taken(free_of_chunks):  # object storage may take longer to write than a core to encode
                    return {name: self._encode(name, voxels, encoders) for name, voxels in arrays.items()}
            finally:
                rows.free(arrays)
                free_of_voxels.release()

        def keep(region: Region, encoding: Future[Encoded]) -> int:
            encoded = encoding.result()
            try:
                return self._keep(region, encoded, files)
            finally:
                free_of_chunks.release()

        for region in self.batch.regions:
            if not self.finished.is_current(self.run_name):
                break
            yield region, writer.submit(keep, region, encoder.submit(encode, reader.submit(read, region)))

    def _encode(self, name: str, voxels: npt.NDArray[Any], encoders: ContextPool) -> list[Chunk]:
        _, height, width = chunk = self.finished.layout.chunks
        with_means = has_means(self.finished.variables[name])
        parts = [part for row in _cut(voxels, 1, height) for part in _cut(row, 2, width)]
        return list(encoders.map(lambda part: _encode(part, chunk, with_means), parts))

    def _keep(self, region: Region, encoded: Encoded, files: Mapping[str, FileVersion]) -> int:
        """Write the slabs of a region, and return its number of bytes of voxels."""
        self.finished.check_run(self.run_name)
        self.finished.note_versions(files)
        for name, chunks in encoded.items():
            self.finished.write_slab(name, region, chunks)
        return self.finished.layout.voxels_of(region) * sum(self.part.dtypes[name].itemsize for name in encoded)


def probe(windows: Iterable[LazyWindow], report: Callable[[Report], None]) -> Exception | None:
    """Check that the first slice of each window exists and is as expected; return the error, or None."""
    try:
        for lazy in windows:
            lazy.read.probe(int(lazy.window.selections[0][0]))
    except Exception as error:  # any kind: jobs return errors, and the driver raises them
        return picklable_error(error)
    report(report_of(0))
    return None


@dataclass(frozen=True)
class Share:
    """The part of a statistic that one job computes.

    Attributes:
        finished: What is finished of the store that the statistic is needed for.
        tasks: The tasks to compute.
        keys: The keys of the results to return.
    """

    finished: Finished
    tasks: Tasks
    keys: Sequence[Key]

    def compute(self, report: Callable[[Report], None]) -> dict[Key, Any] | Exception:
        """Return the results by key, or the error."""
        try:
            with read_ahead(self.tasks), noting_files() as files, ContextPool(READERS) as pool:
                results = dask.threaded.get(got(self.tasks), list(self.keys), pool=pool)
            self.finished.note_versions(files)
        except Exception as error:  # any kind: jobs return errors, and the driver raises them
            return picklable_error(error)
        report(report_of(0))
        return dict(zip(self.keys, results, strict=True))


def merge(finished: Finished, row: ShardRow, shard: Shard) -> Exception | None:
    """Merge the slabs of a shard; return the error, or None."""
    try:
        finished.merge(row, shard)
    except Exception as error:  # any kind: jobs return errors, and the driver raises them
        return picklable_error(error)
    return None


@contextmanager
def _taken(places: Semaphore) -> Iterator[None]:
    """Take a place for what the block makes. It is given back here only if the block fails."""
    places.acquire()
    try:
        yield
    except BaseException:
        places.release()
        raise


def _encode(voxels: npt.NDArray[Any], chunk: Shape, with_means: bool) -> Chunk:
    with cores:
        return encode_chunk(voxels, chunk, has_means=with_means)


def picklable_error(error: Exception) -> Exception:
    """Convert an error to one that any process can unpickle and any user can understand."""
    if isinstance(error, (LiverDaskError, OSError)):
        return error
    if isinstance(error, MemoryError):
        return ExportError(f"There was not enough memory ({error}); use workers with more, or fewer threads.")
    return ExportError(f"{type(error).__name__}: {error}")


def report_of(voxel_bytes: int) -> Report:
    """Report some bytes of voxels, and what this process has fetched since the last report."""
    fetched = traffic.take()
    return Report(voxel_bytes, fetched.get("bytes", 0), fetched.get("requests", 0))


def _is_transient(error: Exception) -> bool:
    return isinstance(error, RemoteError) and not isinstance(error, (RangeNotSupportedError, SourceChangedError))


def _ahead(begun: Iterator[T], count: int) -> Iterator[T]:
    """Yield the same items, each only when `count` further items have begun."""
    coming: deque[T] = deque()
    for item in begun:
        coming.append(item)
        if len(coming) > count:
            yield coming.popleft()
    yield from coming


def _cut(voxels: npt.NDArray[Any], axis: int, step: int) -> list[npt.NDArray[Any]]:
    """Split voxels into parts of length `step` along an axis. The last part may be shorter."""
    return np.split(voxels, range(step, voxels.shape[axis], step), axis=axis)
