"""Reads voxels at points, which have one index for each of several axes, as in `vindex` and in xarray.

An outer index would read every row of every slice for all points. This module reads a slice only for its own points,
and each strip of the slice only once.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .breadth import across
from .window import Selection


@runtime_checkable
class PointReader(Protocol):
    """A reader of one variable that can also read single voxels."""

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """Read voxels at the given indexes, none of them empty, into `out`, (len(z), len(y), len(x))."""

    def read_points(self, z: int, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp], out: npt.NDArray[Any]) -> None:
        """Read voxels of one slice into `out`, (points,). The points may be in any order, and may repeat."""

    def describe(self) -> str:
        """Return which variable of which source this is; the text is the same in every process."""

    @property
    def variant(self) -> str:
        """How this reader may differ from others that read the same voxels."""


@dataclass(frozen=True, eq=False)
class LazyPoints:
    """Points of a volume with their reader. A dask task indexes this object to get voxels.

    Attributes:
        read: Reader of the variable.
        axes: For each of z, y and x: one index per point, or the indexes that are read at every point.
        pointed: Which of the three axes have one index per point, ascending.
        dtype: Dtype of the voxels.
    """

    read: PointReader
    axes: tuple[Selection, Selection, Selection]
    pointed: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def others(self) -> tuple[int, ...]:
        """The axes whose indexes are read at every point."""
        return tuple(axis for axis in range(3) if axis not in self.pointed)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points, then the lengths of the other axes."""
        return tuple(len(self.axes[axis]) for axis in (self.pointed[0], *self.others))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of all voxels in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def take(self, which: slice | npt.NDArray[np.intp], *of_others: slice) -> "LazyPoints":
        """Return some of the points, in any order, with what slices select along the other axes."""
        keys = dict.fromkeys(self.pointed, which) | dict(zip(self.others, of_others, strict=False))
        z, y, x = (_chosen(indexes, keys.get(axis, slice(None))) for axis, indexes in enumerate(self.axes))
        return LazyPoints(self.read, (z, y, x), self.pointed, self.dtype)

    def by_slice(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the order of the points by slice and row, and the number of points in each slice.

        If the points have no index along z, all of them count as one slice.
        """
        keys = [np.asarray(self.axes[axis]) for axis in (1, 0) if axis in self.pointed]
        order = np.lexsort(keys) if keys else np.arange(self.shape[0])
        counts = np.unique(self.axes[0], return_counts=True)[1] if 0 in self.pointed else np.array([self.shape[0]])
        return order, counts

    @cached_property
    def slices(self) -> int:
        """The number of slices from which voxels are read."""
        return len(np.unique(self.axes[0]))

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read some neighbouring points, with what slices select along the other axes."""
        part = self.take(*key)
        out = np.empty(part.shape, self.dtype)
        with across(self.slices):
            if 0 in self.pointed:
                z = np.asarray(part.axes[0])
                for number in np.unique(z).tolist():
                    here = np.flatnonzero(z == number)
                    out[here] = part._read_slice(number, here)
            else:
                for i, number in enumerate(part.axes[0]):
                    out[:, i] = part._read_slice(int(number), slice(None))
        return out

    def _read_slice(self, z: int, which: slice | npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """Read some points of one slice, (points, lengths of the other axes except z).

        If the points have an index only along z, the first axis has length 1.
        """
        _, y, x = self.axes
        if {1, 2} <= set(self.pointed):
            voxels = np.empty(len(np.asarray(y)[which]), self.dtype)
            self.read.read_points(z, np.asarray(y)[which], np.asarray(x)[which], voxels)
            return voxels
        rows, row_of_point = np.unique(np.asarray(y)[which], return_inverse=True) if 1 in self.pointed else (y, None)
        columns, column_of_point = (
            np.unique(np.asarray(x)[which], return_inverse=True) if 2 in self.pointed else (x, None)
        )
        pixels = np.empty((1, len(rows), len(columns)), self.dtype)
        self.read(range(z, z + 1), rows, columns, pixels)
        if row_of_point is not None:
            return pixels[0, row_of_point]
        return pixels[0].T[column_of_point] if column_of_point is not None else pixels

    def __dask_tokenize__(self) -> Any:
        """Return the same token for the same voxels."""
        return self.read.describe(), self.read.variant, [np.asarray(indexes) for indexes in self.axes], self.pointed


def _chosen(indexes: Selection, key: slice | npt.NDArray[np.intp]) -> Selection:
    return indexes[key] if isinstance(key, slice) else np.asarray(indexes)[key]
