"""Dask arrays that know which part of the volume they stand for, even after several indexing steps.

dask passes one indexing step down to the reader, but not two steps, a negative step, or a list of rows. Such indexes
would fetch whole blocks and discard most of their voxels. A `VolumeArray` composes its indexes itself, so that any
chain of indexes fetches only what the last one selects. All other operations (arithmetic, rechunking) return a plain
dask array.
"""

import hashlib
import math
import multiprocessing.pool
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from numbers import Number
from typing import Any, Protocol, runtime_checkable

import dask
import dask.array as da
import dask.threaded
import numpy as np
import numpy.typing as npt
from dask.array.slicing import sanitize_index
from dask.base import is_dask_collection, tokenize
from dask.local import MultiprocessingPoolExecutor
from dask.system import CPU_COUNT
from dask.utils import ensure_dict

from ...core.errors import InvalidArgumentError
from ...core.threads import BorrowedPool, ContextPool
from .breadth import across
from .points import LazyPoints, PointReader
from .slice_graph import sliced_graph

INTERACTIVE_BYTES = 24 << 20
"""Bytes of voxels up to which an array is a viewport.

All of a viewport is read at once, and stays cached for a user who returns to it.
"""

READS_OF_A_LOOK = 16
"""Number of blocks of a viewport that are read in parallel."""

LARGEST_BLOCK = 64 << 20
"""Bytes up to which voxels at points are one block, in the order in which the points were given."""

Selection = range | npt.NDArray[np.intp]
"""Indexes along one axis of the volume: a range if possible (it pickles to a few bytes), otherwise an array."""


@dataclass(frozen=True, eq=False)
class Window:
    """An outer-indexed part of a volume.

    Attributes:
        selections: Selected indexes along z, y and x.
        kept: The axes (0, 1, 2 for z, y, x) that remain; the others were indexed by a number.
    """

    selections: tuple[Selection, Selection, Selection]
    kept: tuple[int, ...] = (0, 1, 2)

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Window":
        """Return the window of a whole volume of (z, y, x) voxels."""
        z, y, x = map(range, shape)
        return cls((z, y, x))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the remaining axes."""
        return tuple(len(self.selections[axis]) for axis in self.kept)

    def __getitem__(self, key: tuple[Any, ...]) -> "Window":
        """Index each remaining axis independently (outer indexing).

        Args:
            key: One entry per remaining axis: an int, a slice, or a 1-d list or array of ints or bools.

        Raises:
            NotImplementedError: An entry is of another kind.
            IndexError: An index is out of bounds.
        """
        selections: list[Selection] = list(self.selections)
        kept = []
        for axis, index in zip(self.kept, key, strict=True):
            if _is_number(index):
                number = range(len(selections[axis]))[index]  # IndexError if out of bounds, as in numpy
                selections[axis] = selections[axis][number : number + 1]
                continue
            kept.append(axis)
            if isinstance(index, slice):
                selections[axis] = selections[axis][index]
            else:
                selections[axis] = np.asarray(selections[axis], np.intp)[_integers(index)]
        z, y, x = selections
        return Window((z, y, x), tuple(kept))


def _is_number(index: Any) -> bool:
    return isinstance(index, (int, np.integer)) and not isinstance(index, bool)


def _is_list(index: Any) -> bool:
    return isinstance(index, list | np.ndarray)


def _without_0d(index: Any) -> Any:
    """Return the number in a 0-d array, which numpy's own functions return; return other indexes unchanged."""
    return index[()] if isinstance(index, np.ndarray) and index.ndim == 0 else index


def _integers(index: Any) -> npt.NDArray[Any]:
    if not isinstance(index, (list, np.ndarray)):
        raise NotImplementedError(f"indexing by {type(index).__name__}")
    array = np.asarray(index, np.intp if len(index) == 0 else None)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise NotImplementedError("indexing by an array that is not a list of integers or booleans")
    return array


class Reader(Protocol):
    """Reads voxels of one variable; small and picklable."""

    @property
    def slices_at_once(self) -> int:
        """Number of slices that one call should read."""

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """Read voxels at the given indexes, none of them empty, into `out`, (len(z), len(y), len(x))."""

    def describe(self) -> str:
        """Return which variable of which source this is; the text is the same in every process."""

    @property
    def variant(self) -> str:
        """How this reader may differ from others that read the same voxels: what it does where voxels are missing."""

    def origin(self) -> dict[str, Any] | None:
        """Return the variable and source as JSON from which they can be opened again; None if that is impossible."""

    def probe(self, z: int) -> None:
        """Check that a slice exists and is as expected, without reading it."""

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """Announce that all these rows will be read within the context, one part after the other."""


@runtime_checkable
class SlicedReader(Reader, Protocol):
    """Reads slice by slice; what is needed to read parts of a slice can be prepared once for all processes."""

    def prepare(self, z: int, start: int, stop: int) -> Any:
        """Return what is needed to read rows `start` to `stop` of a slice; it is picklable and small."""

    def __call__(
        self,
        z: Selection,
        y: Selection,
        x: Selection,
        out: npt.NDArray[Any],
        prepared: Sequence[Any] = (),
    ) -> None:
        """Read voxels, see Reader; `prepared` holds what was prepared for each slice, or nothing."""


@dataclass(frozen=True)
class LazyWindow:
    """A window with its reader. A dask task indexes this object to get voxels."""

    read: Reader
    window: Window
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.window.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.window.kept)

    @property
    def nbytes(self) -> int:
        """Size of all voxels in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        """Read what `key` selects, see Window."""
        return self._read(self.window[key])

    def prepare(self, z: int) -> Any:
        """Return what is needed to read rows of slice `z` of this window; the reader must be a SlicedReader."""
        assert isinstance(self.read, SlicedReader)
        zs, ys, _ = self.window.selections
        return self.read.prepare(int(zs[z]), int(min(ys)), int(max(ys)) + 1)

    def read_prepared(self, key: tuple[slice, ...], prepared: Sequence[Any]) -> npt.NDArray[Any]:
        """Read what `key` selects; `prepared` holds what was prepared for each of its slices, or nothing."""
        return self._read(self.window[key], *([prepared] if prepared else []))

    def _read(self, window: Window, *prepared: Sequence[Any]) -> npt.NDArray[Any]:
        out = np.empty([len(selection) for selection in window.selections], self.dtype)
        if out.size:
            with across(len(self.window.selections[0])):
                self.read(*window.selections, out, *prepared)
        return out.reshape(window.shape)

    def read_side_by_side(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        """Read what `key` selects, see Window, with several slices in parallel."""
        part = LazyWindow(self.read, self.window[key], self.dtype)
        out = np.empty([len(selection) for selection in part.window.selections], self.dtype)
        if out.size:
            whole = Window(part.window.selections)
            with across(len(out)), ContextPool(_reads_at_once(out.nbytes)) as pool:
                LazyWindow(self.read, whole, self.dtype).read_slices(slice(None), pool, out)
        return out.reshape(part.shape)

    def read_slices(self, rows: slice, pool: Executor, out: npt.NDArray[Any]) -> None:
        """Read some rows of all slices in parallel into `out`, (z, y, x); the window must have all three axes."""
        z, y, x = self.window.selections
        count = self.read.slices_at_once
        for _ in pool.map(
            lambda i: self.read(z[i : i + count], y[rows], x, out[i : i + count]), range(0, len(z), count)
        ):
            pass

    def describe(self) -> str:
        """Return a text that identifies the voxels: it is the same for the same voxels of a source in every process."""
        selections = (
            f"{s.start}:{s.stop}:{s.step}" if isinstance(s, range) else hashlib.sha256(s.tobytes()).hexdigest()[:16]
            for s in self.window.selections
        )
        return f"{self.read.describe()} [{', '.join(selections)}]"

    def origin(self) -> dict[str, Any] | None:
        """Return JSON from which these voxels can be opened again.

        It is None for lists of indexes, or if the source cannot be opened again.
        """
        ranges = [selection for selection in self.window.selections if isinstance(selection, range)]
        source = self.read.origin()
        if len(ranges) < 3 or source is None:
            return None
        at = {dim: [r.start, r.stop, r.step] for dim, r in zip("zyx", ranges, strict=True)}
        return source | at

    def __dask_tokenize__(self) -> Any:
        """Return the same token for the same voxels."""
        return self.describe(), self.window.kept, self.read.variant


def _reads_at_once(size: int) -> int:
    """Return how many blocks to read in parallel, for voxels of `size` bytes in total."""
    return READS_OF_A_LOOK if size <= INTERACTIVE_BYTES else CPU_COUNT


class _LookAtOnce:
    """The threaded scheduler of dask, with more threads for a viewport.

    The blocks of a viewport wait for the archive and not for a core. With one thread per core, raw and masks of a
    window would wait for each other. An explicit num_workers or pool takes precedence. The object is equal to dask's
    own scheduler, because dask otherwise refuses to compute these arrays together with others.
    """

    def __call__(self, dsk: Any, keys: Any, **options: Any) -> Any:
        graph = ensure_dict(dsk.__dask_graph__() if is_dask_collection(dsk) else dsk)
        leaves = [getattr(node, "value", None) for node in graph.values()]
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, LazyWindow | LazyPoints))
        given, count = (options.pop(name, None) or dask.config.get(name, None) for name in ("pool", "num_workers"))
        with _threads_of(given, count or _reads_at_once(size)) as pool:
            try:
                return dask.threaded.get(graph, keys, pool=pool, **options)
            except BaseException:  # of any type: the other results are not needed
                pool.give_up()
                raise

    def __eq__(self, other: object) -> bool:
        return other is self or other is dask.threaded.get

    def __hash__(self) -> int:
        return hash(dask.threaded.get)


@contextmanager
def _threads_of(given: Any, count: int) -> Iterator[ContextPool | BorrowedPool]:
    """Yield the given threads, or `count` new threads that end with the work.

    The default threads of dask would not survive a fork. In both cases, the reads of the threads can be cancelled.
    """
    if isinstance(given, multiprocessing.pool.ThreadPool):
        given = MultiprocessingPoolExecutor(given)
    if given:
        yield BorrowedPool(given)
        return
    with ContextPool(count) as pool:
        yield pool


class _AsDaskArray(type(da.Array)):  # type: ignore[misc]  # dask's Array has no types
    """Makes a subclass compare equal to dask's own class.

    xarray compares the types of chunked arrays, and refuses an operation on two different types. For xarray, and for
    everything except indexing, a VolumeArray is a dask array.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is da.Array

    def __hash__(cls) -> int:
        return hash(da.Array)


class VolumeArray(da.Array, metaclass=_AsDaskArray):
    """A dask array that composes further indexing with its own window, see the docstring of the module."""

    __slots__ = ()
    __dask_scheduler__ = _LookAtOnce()
    _of_window: tuple[str, LazyWindow]

    @classmethod
    def of(cls, lazy: LazyWindow, chunks: tuple[tuple[int, ...], ...]) -> "VolumeArray":
        """Return the array of a lazy window, in the given chunks.

        Raises:
            InvalidArgumentError: dask's query planning for arrays is on.
        """
        check_kind_of_arrays()
        plain = _blocks_of(lazy, chunks)
        array = cls(plain.dask, plain.name, plain.chunks, meta=plain._meta)
        array._of_window = plain.name, lazy
        return array

    @property
    def lazy(self) -> LazyWindow | None:
        """The window of the array; None after an assignment to the array, for which dask changes the graph in place."""
        name, lazy = self._of_window
        return lazy if self.name == name else None

    def __getitem__(self, index: Any) -> da.Array:
        """Index as in dask; the result has a window if Window supports this kind of index."""
        if self.lazy is None:
            return super().__getitem__(index)  # type: ignore[no-untyped-call]  # dask's has no types
        try:
            key = _full_key(index, self.ndim)
            window = self.lazy.window[key]
        except (NotImplementedError, ValueError):
            return super().__getitem__(index)  # type: ignore[no-untyped-call]  # dask's has no types
        indexed = [(self.chunks[axis], of_axis) for axis, of_axis in enumerate(key) if not _is_number(of_axis)]
        chunks = tuple(_chunks_of(*cut, length) for cut, length in zip(indexed, window.shape, strict=True))
        return VolumeArray.of(LazyWindow(self.lazy.read, window, self.lazy.dtype), chunks)

    def _vindex(self, key: Any) -> da.Array:
        """Read only what the points need; the `vindex` of dask calls this method with its whole key."""
        try:
            full_key = _one_an_axis(key, self.ndim)
        except NotImplementedError:
            full_key = ()
        found = None
        if self.lazy and isinstance(self.lazy.read, PointReader) and any(map(_is_list, full_key)):
            found = _points_of(self.lazy, full_key)
        if found is None or 0 in found[0].shape:
            return super()._vindex(key)  # type: ignore[no-untyped-call]  # dask's has no types
        points, shape = found
        cut = [(self.chunks[i], entry) for i, entry in enumerate(full_key) if isinstance(entry, slice)]
        lengths = points.shape[1:]
        chunks = tuple(_chunks_of(*of_axis, length) for of_axis, length in zip(cut, lengths, strict=True))
        return _PointArray.of(_array_of_points(points, chunks).reshape(shape + lengths))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.lazy is None:
            return da.Array, (self.dask, self.name, self.chunks, self.dtype, self._meta)
        return VolumeArray.of, (self.lazy, self.chunks)

    def plain(self) -> da.Array:
        """Return a dask array of the same blocks without the window, so that dask does any further indexing."""
        return da.Array(self.dask, self.name, self.chunks, meta=self._meta)

    def copy(self) -> da.Array:
        """Return another array of the same voxels."""
        make, arguments = self.__reduce__()
        return make(*arguments)


def check_kind_of_arrays() -> None:
    """Raise InvalidArgumentError if dask makes arrays of expressions, which have no graph that can be analysed."""
    if getattr(da, "ARRAY_EXPR_ENABLED", False):  # older versions of dask have none
        raise InvalidArgumentError(
            "dask's query planning for arrays is on, which liver_dask cannot use: leave array.query-planning "
            "(DASK_ARRAY__QUERY_PLANNING) out of dask's configuration, and begin a new process."
        )


def _blocks_of(lazy: LazyWindow | LazyPoints, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
    """Return a dask array whose blocks are read from `lazy`."""
    name, meta = f"liver-{tokenize(lazy, chunks)}", np.empty((0,) * lazy.ndim, lazy.dtype)
    if isinstance(lazy, LazyWindow) and isinstance(lazy.read, SlicedReader):
        return da.Array(sliced_graph(name, lazy, chunks, has_z=0 in lazy.window.kept), name, chunks, meta=meta)
    return da.from_array(lazy, chunks=chunks, name=name, asarray=False, meta=meta)


def _one_an_axis(index: Any, ndim: int) -> tuple[Any, ...]:
    """Return `index` with one entry per axis, and with whole numbers as ints.

    Raises:
        NotImplementedError: `index` has new axes, several ellipses or too many entries.
    """
    key = tuple(map(_with_ints, index if isinstance(index, tuple) else (index,)))
    if any(entry is None for entry in key) or sum(entry is Ellipsis for entry in key) > 1:
        raise NotImplementedError
    at = next((i for i, entry in enumerate(key) if entry is Ellipsis), len(key))
    filled = (*key[:at], *(slice(None),) * (ndim - len(key) + (at < len(key))), *key[at + 1 :])
    if len(filled) != ndim:
        raise NotImplementedError  # dask reports what is wrong
    return filled


def _with_ints(entry: Any) -> Any:
    """Return whole numbers of any type as ints; dask itself slices with floats (`x[0.0:1.0]`)."""
    entry = _without_0d(entry)
    is_float = _is_list(entry) and len(entry) > 0 and np.asarray(entry).dtype.kind == "f"
    if isinstance(entry, slice) or (isinstance(entry, Number) and not isinstance(entry, bool)) or is_float:
        return sanitize_index(entry)
    return entry


def _full_key(index: Any, ndim: int) -> tuple[Any, ...]:
    """Return `index` with one entry per axis, at most one of which is a list."""
    key = _one_an_axis(index, ndim)
    if sum(not (_is_number(entry) or isinstance(entry, slice)) for entry in key) > 1:
        raise NotImplementedError  # dask reports what is wrong
    return key


def _chunks_of(chunks: tuple[int, ...], index: Any, length: int) -> tuple[int, ...]:
    """Return chunks that are cut where the indexed array was cut, so that no block reads the files of two blocks.

    Along a list of indexes, there is a cut wherever two consecutive entries are in different blocks.
    """
    if length == 0:
        return (0,)
    block_ends = np.fromiter(accumulate(chunks), np.intp)
    chosen = np.arange(block_ends[-1])[index]
    block_of = np.searchsorted(block_ends, chosen, side="right")
    cuts = np.flatnonzero(np.diff(block_of)) + 1
    return tuple(int(n) for n in np.diff([0, *cuts, length]))


class _PointArray(da.Array, metaclass=_AsDaskArray):
    """A dask array of voxels at points, computed by the same scheduler as a VolumeArray.

    If it has the size of a viewport, more of its blocks may be read in parallel than the machine has cores.
    """

    __slots__ = ()
    __dask_scheduler__ = _LookAtOnce()

    @classmethod
    def of(cls, array: da.Array) -> "_PointArray":
        """Return the same array as a _PointArray."""
        return cls(array.dask, array.name, array.chunks, meta=array._meta)

    def transpose(self, *axes: Any) -> da.Array:
        """Transpose as dask does; xarray uses this to move the axes of the points to their places."""
        return _PointArray.of(super().transpose(*axes))  # type: ignore[no-untyped-call]  # dask's has no types


def _points_of(lazy: LazyWindow, key: tuple[Any, ...]) -> tuple[LazyPoints, tuple[int, ...]] | None:
    """Return the points that a full key of `vindex` selects, and their shape; None if dask must report an error."""
    z, y, x = lazy.window.selections
    axes: list[Any] = [z, y, x]
    of_points = {axis: axes[axis][0] for axis in range(3) if axis not in lazy.window.kept}
    for axis, entry in zip(lazy.window.kept, key, strict=True):
        if isinstance(entry, slice):
            axes[axis] = axes[axis][entry]
            continue
        if not (_is_list(entry) or _is_number(entry)):
            return None
        index = np.asarray(entry)
        if index.dtype.kind not in "iu" or np.any((index < -len(axes[axis])) | (index >= len(axes[axis]))):
            return None
        of_points[axis] = np.asarray(axes[axis], np.intp)[index]
    try:
        indexes = np.broadcast_arrays(*of_points.values())
    except ValueError:
        return None
    for axis, index in zip(of_points, indexes, strict=True):
        axes[axis] = index.reshape(-1)
    assert isinstance(lazy.read, PointReader)
    z, y, x = axes
    return LazyPoints(lazy.read, (z, y, x), tuple(sorted(of_points)), lazy.dtype), indexes[0].shape


def _array_of_points(points: LazyPoints, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
    """Return an array that reads points slice by slice, then puts them into their original order.

    Args:
        points: The points.
        chunks: Chunks of the axes after the axis of the points.
    """
    order, counts = points.by_slice()
    largest = math.prod(max(of_axis) for of_axis in chunks) * points.dtype.itemsize
    most = max(LARGEST_BLOCK // largest, 1)
    if len(counts) == 1 and len(order) <= most:
        return _blocks_of(points, ((len(order),), *chunks))
    pieces = tuple(min(most, count - i) for count in counts.tolist() for i in range(0, count, most))
    array = _blocks_of(points.take(order), (pieces, *chunks))
    if len(order) > most:
        return da.take(array, np.argsort(order), axis=0)
    return array.rechunk({0: -1}).map_blocks(np.take, np.argsort(order), axis=0, dtype=points.dtype)
