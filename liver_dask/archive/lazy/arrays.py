"""Dask arrays that know which part of the volume they stand for, even after several indexing steps.

dask passes one indexing step down to the reader, but not two steps, a negative step, or a list of rows. Such indexes
would fetch whole blocks and discard most of their voxels. A `VolumeArray` composes its indexes itself, so that any
chain of indexes fetches only what the last one selects. All other operations (arithmetic, rechunking) return a plain
dask array.
"""

import math
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from ...core.errors import InvalidArgumentError
from .index_keys import cut_chunks, full_key, one_per_axis
from .lazy_window import LazyWindow, SlicedReader
from .points import LazyPoints, PointReader
from .scheduler import ViewportScheduler
from .slice_graph import sliced_graph
from .window import is_list, is_number

LARGEST_BLOCK = 64 << 20
"""Bytes up to which voxels at points are one block, in the order in which the points were given."""


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
    __dask_scheduler__ = ViewportScheduler()
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
            key = full_key(index, self.ndim)
            window = self.lazy.window[key]
        except (NotImplementedError, ValueError):
            return super().__getitem__(index)  # type: ignore[no-untyped-call]  # dask's has no types
        indexed = [(self.chunks[axis], of_axis) for axis, of_axis in enumerate(key) if not is_number(of_axis)]
        chunks = tuple(cut_chunks(*cut, length) for cut, length in zip(indexed, window.shape, strict=True))
        return VolumeArray.of(LazyWindow(self.lazy.read, window, self.lazy.dtype), chunks)

    def _vindex(self, key: Any) -> da.Array:
        """Read only what the points need; the `vindex` of dask calls this method with its whole key."""
        try:
            full_key = one_per_axis(key, self.ndim)
        except NotImplementedError:
            full_key = ()
        found = None
        if self.lazy and isinstance(self.lazy.read, PointReader) and any(map(is_list, full_key)):
            found = _points_of(self.lazy, full_key)
        if found is None or 0 in found[0].shape:
            return super()._vindex(key)  # type: ignore[no-untyped-call]  # dask's has no types
        points, shape = found
        cut = [(self.chunks[i], entry) for i, entry in enumerate(full_key) if isinstance(entry, slice)]
        lengths = points.shape[1:]
        chunks = tuple(cut_chunks(*of_axis, length) for of_axis, length in zip(cut, lengths, strict=True))
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


def in_memory(variable: xr.DataArray) -> xr.DataArray:
    """Read a variable into memory.

    Voxels of the archive are read in one call on this thread, so that the read can be cancelled. Everything else is
    computed by xarray.
    """
    lazy = variable.data.lazy if isinstance(variable.variable._data, VolumeArray) else None
    if lazy:
        return variable.copy(data=lazy[(slice(None),) * lazy.ndim])
    return variable.compute()


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
        return da.Array(sliced_graph(name, lazy, chunks, has_z=0 in lazy.window.axes), name, chunks, meta=meta)
    return da.from_array(lazy, chunks=chunks, name=name, asarray=False, meta=meta)


class _PointArray(da.Array, metaclass=_AsDaskArray):
    """A dask array of voxels at points, computed by the same scheduler as a VolumeArray.

    If it has the size of a viewport, more of its blocks may be read in parallel than the machine has cores.
    """

    __slots__ = ()
    __dask_scheduler__ = ViewportScheduler()

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
    of_points = {axis: axes[axis][0] for axis in range(3) if axis not in lazy.window.axes}
    for axis, entry in zip(lazy.window.axes, key, strict=True):
        if isinstance(entry, slice):
            axes[axis] = axes[axis][entry]
            continue
        if not (is_list(entry) or is_number(entry)):
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
