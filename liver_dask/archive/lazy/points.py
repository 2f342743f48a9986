"""Voxels at points: indexes of several axes that go together, one of each a point, as `vindex` and xarray have them.

An outer index would read every row of every slice for each of them. Here a slice is read for its own points, and each
of its strips once.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .breadth import across

Indexes = range | npt.NDArray[np.intp]
"""Indexes along one axis of the volume."""


@runtime_checkable
class PointReader(Protocol):
    """A reader of one variable that can also read single voxels."""

    def __call__(self, z: Indexes, y: Indexes, x: Indexes, out: npt.NDArray[Any]) -> None:
        """Read voxels of the given indexes, none of them empty, into `out`: (len(z), len(y), len(x))."""

    def read_points(self, z: int, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp], out: npt.NDArray[Any]) -> None:
        """Read voxels of one slice, in any order and repeated or not, into `out`: (points,)."""

    def describe(self) -> str:
        """Which variable of which source, the same in every process."""

    @property
    def variant(self) -> str:
        """How readers may differ that read the same voxels."""


@dataclass(frozen=True, eq=False)
class LazyPoints:
    """Points of a volume with their reader: what a dask task indexes to get voxels.

    Attributes:
        read: Reads the variable.
        axes: Of z, y and x: an index for each point, or those indexes that are read at every point.
        pointed: Which of the three have an index for each point, ascending.
        dtype: Of the voxels.
    """

    read: PointReader
    axes: tuple[Indexes, Indexes, Indexes]
    pointed: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def others(self) -> tuple[int, ...]:
        """Which axes are read at every point."""
        return tuple(axis for axis in range(3) if axis not in self.pointed)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many points, then the lengths of the other axes."""
        return tuple(len(self.axes[axis]) for axis in (self.pointed[0], *self.others))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all its voxels."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def take(self, which: slice | npt.NDArray[np.intp], *of_others: slice) -> "LazyPoints":
        """Some of the points, in any order; and of each what slices along the other axes select."""
        keys = dict.fromkeys(self.pointed, which) | dict(zip(self.others, of_others, strict=False))
        z, y, x = (_chosen(indexes, keys.get(axis, slice(None))) for axis, indexes in enumerate(self.axes))
        return LazyPoints(self.read, (z, y, x), self.pointed, self.dtype)

    def by_slice(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The order of the points by slice and row, and how many are of each slice; all, where they are of none."""
        keys = [np.asarray(self.axes[axis]) for axis in (1, 0) if axis in self.pointed]
        order = np.lexsort(keys) if keys else np.arange(self.shape[0])
        counts = np.unique(self.axes[0], return_counts=True)[1] if 0 in self.pointed else np.array([self.shape[0]])
        return order, counts

    @cached_property
    def slices(self) -> int:
        """In how many slices the points are."""
        return len(np.unique(self.axes[0]))

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read some neighbouring points, and of each what slices along the other axes select."""
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
        """Of some points that are in one slice: (points, and what the other axes but z have)."""
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
        """One name for the same voxels."""
        return self.read.describe(), self.read.variant, [np.asarray(indexes) for indexes in self.axes], self.pointed


def _chosen(indexes: Indexes, key: slice | npt.NDArray[np.intp]) -> Indexes:
    return indexes[key] if isinstance(key, slice) else np.asarray(indexes)[key]
