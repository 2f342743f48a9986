"""What a worker does for an export: read regions, encode them, keep them as slabs; put slabs together.

The same runs on threads of this process and on the workers of a cluster. A task says what it did and what failed; it
raises nothing, so that one bad slice costs its own regions alone.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute

from . import volume
from .allowance import cores
from .errors import ExportError, LiverDaskError, RangeNotSupportedError, RemoteError, SourceChangedError
from .export_plan import Layout, Region, Run, Shape, Shard, ShardRow
from .held import got, held_by_a_cluster
from .slabs import Chunk, encode_chunk
from .store import Store
from .team import Report
from .threads import ContextPool
from .traffic import traffic
from .versions import Identity, noting_files
from .window import VolumeArray

READERS = 8
"""Files of a region that are read side by side, on however few cores: far from the archive, most of them wait."""

Arrays = dict[str, npt.NDArray[Any]]
Encoded = dict[str, list[Chunk]]
T = TypeVar("T")


class Failure(NamedTuple):
    """A region that could not be written.

    Attributes:
        names: Its variables.
        region: The region.
        error: Why.
        may_pass: Whether another try may do better.
    """

    names: tuple[str, ...]
    region: Region
    error: Exception
    may_pass: bool


class Outcome(NamedTuple):
    """What became of a run: the regions that are written, and those that are not."""

    written: tuple[Region, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Task:
    """One run, as it is sent to a worker.

    Attributes:
        store: Where the regions are written.
        run_name: The run of the store that the task belongs to.
        part: The run's variables and slices; all rows.
        run: What to write.
        threads: Threads that encode.
        goes_on: Whether to go on with the next region after one that failed.
    """

    store: Store
    run_name: str
    part: xr.Dataset
    run: Run
    threads: int
    goes_on: bool

    def write(self, report: Callable[[Report], None]) -> Outcome:
        """Write the regions, one after the other; while one is kept, the next is encoded, and the one after it read.

        `report` is told of each region.
        """
        written: list[Region] = []
        failures: list[Failure] = []
        with foreseeing(self.part), noting_files() as files, ExitStack() as stack:
            for region, keeping in _ahead(self._begin(stack, files), 2):
                try:
                    done = keeping.result()
                except Exception as error:  # of whatever kind: the driver tells it, and goes on or stops
                    failures.append(Failure(self.run.group.names, region, as_told(error), _may_pass(error)))
                    if not self.goes_on:
                        break
                else:
                    written.append(region)
                    report(report_of(done))
        return Outcome(tuple(written), tuple(failures))

    def _begin(self, stack: ExitStack, files: Mapping[str, Identity]) -> Iterator[tuple[Region, Future[int]]]:
        """Begin one region after the other; the voxels of two are held at a time."""
        readers, encoders = (stack.enter_context(ContextPool(n)) for n in (READERS, self.threads))
        reader, encoder, writer = (stack.enter_context(ContextPool(1)) for _ in range(3))
        rows = Rows(in_blocks(self.part, self.store.layout), self.run.group.cuts, readers)

        def read(region: Region, after: Future[Encoded] | None) -> Arrays:
            if after:
                wait([after])
            return rows.read(region)

        def encode(reading: Future[Arrays]) -> Encoded:
            arrays = reading.result()
            try:
                return {name: self._encode(voxels, encoders) for name, voxels in arrays.items()}
            finally:
                rows.free(arrays)

        under_way: deque[Future[Encoded]] = deque(maxlen=2)
        for region in self.run.regions:
            if not self.store.is_current(self.run_name):
                break
            reading = reader.submit(read, region, under_way[0] if len(under_way) == 2 else None)
            under_way.append(encoder.submit(encode, reading))
            yield region, writer.submit(self._keep, region, under_way[-1], files)

    def _encode(self, voxels: npt.NDArray[Any], encoders: ContextPool) -> list[Chunk]:
        _, height, width = chunk = self.store.layout.chunks
        parts = [part for row in _cut(voxels, 1, height) for part in _cut(row, 2, width)]
        return list(encoders.map(lambda part: _encode(part, chunk), parts))

    def _keep(self, region: Region, encoding: Future[Encoded], files: Mapping[str, Identity]) -> int:
        """Write the slabs of a region; how many bytes of voxels it has."""
        encoded = encoding.result()
        self.store.note_versions(files)
        for name, chunks in encoded.items():
            self.store.write_slab(name, region, chunks)
        return self.store.layout.voxels_of(region) * sum(self.part[name].dtype.itemsize for name in encoded)


def look(part: xr.Dataset, report: Callable[[Report], None]) -> Exception | None:
    """Find out whether the first slice of each variable is there and as expected; what is wrong, if anything."""
    try:
        for variable in part.data_vars.values():
            lazy = variable.data.lazy if isinstance(variable.data, VolumeArray) else None
            if lazy:
                lazy.read.look(int(lazy.window.selections[0][0]))
    except Exception as error:  # of whatever kind: jobs raise nothing, the driver does
        return as_told(error)
    report(report_of(0))
    return None


def merge(store: Store, row: ShardRow, shard: Shard) -> Exception | None:
    """Put the slabs of a shard together; what went wrong, if anything."""
    try:
        store.merge(row, shard)
    except Exception as error:  # of whatever kind: jobs raise nothing, the driver does
        return as_told(error)
    return None


def in_blocks(ds: xr.Dataset, layout: Layout) -> xr.Dataset:
    """Variables that are not of dask (of the engine without `chunks`, or in memory) as dask arrays."""
    block = dict(zip(volume.DIMS, (1, layout.band, layout.shape[2]), strict=True))
    return ds.assign(
        {name: variable.chunk(block) for name, variable in ds.data_vars.items() if variable.chunks is None}
    )


def _encode(voxels: npt.NDArray[Any], chunk: Shape) -> Chunk:
    with cores:
        return encode_chunk(voxels, chunk)


def part_of(ds: xr.Dataset, run: Run) -> xr.Dataset:
    """The variables and slices of a run, all rows, without coordinates: what a job needs of a Dataset."""
    slices = slice(run.regions[0].z_start, run.regions[0].z_stop)
    return ds[list(run.group.names)].drop_vars(list(ds.coords)).isel(z=slices)


def as_told(error: Exception) -> Exception:
    """An error that any process can unpickle and any user can read."""
    if isinstance(error, (LiverDaskError, OSError)):
        return error
    if isinstance(error, MemoryError):
        return ExportError(f"There was not enough memory ({error}); use workers with more, or fewer threads.")
    return ExportError(f"{type(error).__name__}: {error}")


def report_of(voxel_bytes: int) -> Report:
    """A report of so many bytes of voxels, and of what this process has fetched since the last one."""
    fetched = traffic.take()
    return Report(voxel_bytes, fetched.get("bytes", 0), fetched.get("requests", 0))


@contextmanager
def foreseeing(part: xr.Dataset) -> Iterator[None]:
    """Let the readers of windows know that all of `part` will be read, from top to bottom."""
    with ExitStack() as stack:
        for variable in part.data_vars.values():
            lazy = variable.data.lazy if isinstance(variable.data, VolumeArray) else None
            if lazy:
                stack.enter_context(lazy.read.foreseeing(*lazy.window.selections[:2]))
        yield


def _may_pass(error: Exception) -> bool:
    return isinstance(error, RemoteError) and not isinstance(error, (RangeNotSupportedError, SourceChangedError))


class Rows:
    """Reads regions from top to bottom; where they cut a dask block in two, that is computed once all the same.

    The memory of regions that are done with is used again: of fresh memory each page is a fault, and is zeroed first.
    """

    def __init__(self, part: xr.Dataset, cuts: tuple[int, ...] | None, readers: ContextPool) -> None:
        self._part = part
        self._cuts = cuts
        self._readers = readers
        self._held: Arrays = {}
        self._start = self._stop = 0  # the rows that are held
        self._spare: list[npt.NDArray[np.uint8]] = []
        self._is_held = any(True for variable in part.data_vars.values() for _ in held_by_a_cluster(variable.data))

    def read(self, region: Region) -> Arrays:
        """All voxels of a region, by variable."""
        if self._cuts is None:
            return self._compute(region.y_start, region.y_stop)
        cuts = np.array(self._cuts)
        first = int(cuts[cuts <= region.y_start][-1])
        last = int(cuts[cuts >= region.y_stop][0])
        if not self._start <= region.y_start <= self._stop:  # the first, or one after some that are written or failed
            self._held, self._start, self._stop = {}, first, first
        if last > self._stop:
            new = self._compute(self._stop, last)
            if self._held:
                skipped = region.y_start - self._start
                new = {name: np.concatenate([self._held[name][:, skipped:], new[name]], 1) for name in new}
                self._start = region.y_start
            self._held, self._stop = new, last
        rows = slice(region.y_start - self._start, region.y_stop - self._start)
        return {name: array[:, rows] for name, array in self._held.items()}

    def free(self, arrays: Arrays) -> None:
        """Say that nobody will look at some arrays again that `read` gave."""
        if self._cuts is None:
            self._spare += [array.reshape(-1).view(np.uint8) for array in arrays.values()]

    def _room(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        size = int(np.prod(shape)) * dtype.itemsize
        fitting = next((i for i, spare in enumerate(self._spare) if spare.nbytes >= size), None)
        flat = np.empty(size, np.uint8) if fitting is None else self._spare.pop(fitting)
        return flat[:size].view(dtype).reshape(shape)

    def _compute(self, start: int, stop: int) -> Arrays:
        arrays, computed = {}, {}
        for name, variable in self._part.data_vars.items():
            lazy = variable.data.lazy if isinstance(variable.data, VolumeArray) else None
            if lazy:  # without dask, which would put the slices together by another copy
                depth, _, width = lazy.shape
                arrays[str(name)] = out = self._room((depth, stop - start, width), lazy.dtype)
                lazy.read_slices(slice(start, stop), self._readers, out)
            else:
                computed[str(name)] = variable.data[:, start:stop]
        if self._is_held:
            computed = got(computed)
        return arrays | compute(computed, scheduler="threads", pool=self._readers)[0]


def _ahead(begun: Iterator[T], count: int) -> Iterator[T]:
    """The same, when so many more have begun."""
    coming: deque[T] = deque()
    for item in begun:
        coming.append(item)
        if len(coming) > count:
            yield coming.popleft()
    yield from coming


def _cut(voxels: npt.NDArray[Any], axis: int, step: int) -> list[npt.NDArray[Any]]:
    """Parts of `step` along an axis, the last as long as there is."""
    return np.split(voxels, range(step, voxels.shape[axis], step), axis=axis)
