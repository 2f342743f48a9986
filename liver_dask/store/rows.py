"""What a job reads: the regions of a batch, one after the other, from windows or from variables computed from them.

A `Part` is small and is pickled to a worker. There, `Part.rows` reads the voxels of each region.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Protocol

import dask.array as da
import dask.threaded
import numpy as np
import numpy.typing as npt
from dask._task_spec import DataNode, Task, TaskRef

from ..archive.lazy.futures import got
from ..archive.lazy.lazy_window import LazyWindow
from ..archive.lazy.leaves import Read, Tasks, reads_of, window_of
from ..core.threads import ContextPool
from .layout import Region, RegionBatch

MOST_FILES = 128
"""Maximum number of files of a variable whose state a job keeps until it ends. With more files, only the cache of the
process keeps it."""

Arrays = dict[str, npt.NDArray[Any]]
Key = Any


class Rows(Protocol):
    """Reads the regions of a job in order."""

    def read(self, region: Region) -> Arrays:
        """Return all voxels of a region, by variable, with axes (z, y, x)."""

    def free(self, arrays: Arrays) -> None:
        """Take back arrays that `read` returned and that are no longer used."""


class Part(Protocol):
    """What a job needs in order to read some variables."""

    @property
    def dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """Data type of each variable."""

    def read_ahead(self) -> AbstractContextManager[None]:
        """Return a context in which the files know the coming reads, and their cached state is kept."""

    def rows(self, batch: RegionBatch, readers: ContextPool) -> Rows:
        """Return the reader of the regions of a batch."""


class Memory:
    """Reuses the memory of arrays. Each page of new memory costs a page fault, and the system zeroes it first."""

    def __init__(self) -> None:
        self._spare: list[npt.NDArray[np.uint8]] = []

    def room(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an uninitialised array."""
        size = int(np.prod(shape)) * dtype.itemsize
        fitting = next((i for i, spare in enumerate(self._spare) if spare.nbytes >= size), None)
        flat = np.empty(size, np.uint8) if fitting is None else self._spare.pop(fitting)
        return flat[:size].view(dtype).reshape(shape)

    def free(self, arrays: Arrays) -> None:
        """Take back arrays that are no longer used."""
        self._spare += [array.reshape(-1).view(np.uint8) for array in arrays.values()]


@dataclass(frozen=True)
class WindowPart:
    """Part of variables that are windows of the archive.

    Attributes:
        windows: The window of each variable, with the slices (z) of the batch.
    """

    windows: Mapping[str, LazyWindow]

    @property
    def dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """Data type of each variable."""
        return {name: lazy.dtype for name, lazy in self.windows.items()}

    @contextmanager
    def read_ahead(self) -> Iterator[None]:
        """See Part."""
        with ExitStack() as stack:
            for lazy in self.windows.values():
                stack.enter_context(lazy.read.read_ahead(*lazy.window.selections[:2]))
            yield

    def rows(self, batch: RegionBatch, readers: ContextPool) -> "WindowRows":
        """See Part."""
        return WindowRows(self.windows, readers)


class WindowRows(Memory):
    """Reads windows without dask, because dask needs another copy to combine the slices."""

    def __init__(self, windows: Mapping[str, LazyWindow], readers: ContextPool) -> None:
        super().__init__()
        self._windows = windows
        self._readers = readers

    def read(self, region: Region) -> Arrays:
        """See Rows."""
        arrays = {}
        for name, lazy in self._windows.items():
            depth, _, width = lazy.shape
            arrays[name] = out = self.room((depth, region.y_stop - region.y_start, width), lazy.dtype)
            lazy.read_slices(slice(region.y_start, region.y_stop), self._readers, out)
        return arrays


@dataclass(frozen=True)
class Blocks:
    """The dask blocks of one variable.

    Attributes:
        name: Dask's name of the array.
        edges: Indexes where blocks begin and end, for each of z, y and x.
        dtype: Data type of the voxels.
    """

    name: str
    edges: tuple[tuple[int, ...], ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: da.Array) -> "Blocks":
        """Return the blocks of a dask array."""
        edges = tuple(tuple(np.cumsum((0, *sizes)).tolist()) for sizes in array.chunks)
        return cls(array.name, edges, array.dtype)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return int(np.prod([len(edges) - 1 for edges in self.edges]))

    def within(self, region: Region) -> Iterator[tuple[Key, tuple[slice, ...], tuple[slice, ...]]]:
        """Yield the blocks that a region needs: key, position in the region, and part of the block."""
        begins, ends = (region.z_start, region.y_start, 0), (region.z_stop, region.y_stop, self.edges[2][-1])
        along = [_pieces(*axis) for axis in zip(self.edges, begins, ends, strict=True)]
        for numbers, places, parts in (zip(*each, strict=True) for each in product(*along)):
            yield (self.name, *numbers), places, parts


def _pieces(edges: Sequence[int], begin: int, end: int) -> list[tuple[int, slice, slice]]:
    """Return the blocks between two indexes of an axis: number, position relative to `begin`, part of the block."""
    pieces = []
    for number in range(bisect_right(edges, begin) - 1, bisect_left(edges, end)):
        start, stop = max(edges[number], begin), min(edges[number + 1], end)
        if start < stop:  # a block may have no rows
            part = slice(start - edges[number], stop - edges[number])
            pieces.append((number, slice(start - begin, stop - begin), part))
    return pieces


@dataclass(frozen=True)
class ComputedPart:
    """Part of the graph of computed variables that a job needs.

    Attributes:
        tasks: Tasks of this part of the graph.
        blocks: The blocks of each variable.
        held: For each task whose result is needed again: the numbers of the regions after which the result is held for
            the next region.
    """

    tasks: Tasks
    blocks: Mapping[str, Blocks]
    held: Mapping[Key, frozenset[int]]

    @property
    def dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """Data type of each variable."""
        return {name: blocks.dtype for name, blocks in self.blocks.items()}

    def read_ahead(self) -> AbstractContextManager[None]:
        """See Part."""
        return read_ahead(self.tasks)

    def rows(self, batch: RegionBatch, readers: ContextPool) -> "ComputedRows":
        """See Part."""
        return ComputedRows(self, batch, readers)


class ComputedRows(Memory):
    """Computes regions, and holds the results that later regions need again."""

    def __init__(self, part: ComputedPart, batch: RegionBatch, readers: ContextPool) -> None:
        super().__init__()
        self._part = part
        self._number = {region: i for i, region in enumerate(batch.regions)}
        self._readers = readers
        self._held: dict[Key, Any] = {}

    def read(self, region: Region) -> Arrays:
        """See Rows."""
        arrays: Arrays = {}
        placing: Tasks = {}  # one task per block, so that dask releases each block as soon as it is copied
        for name, blocks in self._part.blocks.items():
            shape = region.z_stop - region.z_start, region.y_stop - region.y_start, blocks.edges[2][-1]
            arrays[name] = out = self.room(shape, blocks.dtype)
            for key, place, part in blocks.within(region):
                own = ("place", name, *key)
                placing[own] = Task(own, partial(_place, out[place], part), TaskRef(key))
        self._compute(placing, self._number[region])
        return arrays

    def _compute(self, wanted: Tasks, number: int) -> None:
        """Compute tasks for the region with this number from held results, then hold the results needed later."""
        tasks = dict(wanted)
        coming = [key for task in wanted.values() for key in task.dependencies]
        while coming:
            key = coming.pop()
            if key in self._part.tasks and key not in tasks:
                tasks[key] = DataNode(key, self._held[key]) if key in self._held else self._part.tasks[key]
                coming += tasks[key].dependencies
        kept = {key for key in tasks.keys() | self._held.keys() if number in self._part.held.get(key, ())}
        keys = [*wanted, *(kept & tasks.keys())]
        results = dict(zip(keys, dask.threaded.get(got(tasks), keys, pool=self._readers), strict=True))
        self._held = {key: results[key] if key in results else self._held[key] for key in kept}


def _place(out: npt.NDArray[Any], part: tuple[slice, ...], block: npt.NDArray[Any]) -> None:
    out[...] = block[part]


@contextmanager
def read_ahead(tasks: Tasks) -> Iterator[None]:
    """Announce everything that some tasks read; see `Part.read_ahead`."""
    sources = {key: window_of(getattr(task, "value", None)) for key, task in tasks.items()}
    known = {key: read for key, read in sources.items() if read}
    with ExitStack() as stack:
        for reader, (slices, bottom) in _files(read for task in tasks.values() for read in reads_of(task, known)):
            if len(slices) <= MOST_FILES:
                stack.enter_context(reader.read_ahead(np.array(sorted(slices)), range(bottom)))
        yield


def _files(reads: Iterable[Read]) -> Iterable[tuple[Any, tuple[set[int], int]]]:
    """Return for each reader the slices that are read, and the number of rows down to the last one read."""
    found: dict[Any, tuple[set[int], int]] = {}
    for read in reads:
        z, _, _ = read.window.selections
        if read.nbytes:
            slices, bottom = found.get(read.lazy.read, (set(), 0))
            found[read.lazy.read] = slices | set(map(int, z)), max(bottom, read.ends[1])
    return found.items()
