"""Windows of a slice at the resolution of a screen, from all levels of a Dataset.

Large windows are taken from a pyramid level, and of larger voxels still, every n-th row is read with its columns
combined, so that not more is fetched than a screen can show.
"""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, BoundingBox, held_box
from ..core.kinds import labels_of
from ..store.columns import combine_columns
from ..store.levels import END, open_levels

PIXELS = 1024
"""Default for the maximum number of rows and columns that a picture of a window shows."""

ATTRIBUTES = ("step", "factors", "corner", "end")
"""Attributes of a window that say which voxels it stands for."""

Bounds = Sequence[int] | slice | None
"""A range of rows or columns: first and end (exclusive), as a pair or a slice. None is the full range of the Dataset.

In a slice, start or stop may be None, too, and then mean the first or last row or column of the Dataset.
"""


class Place(NamedTuple):
    """Voxels that a voxel of a window stands for: first and end (exclusive) along each axis.

    Attributes:
        z: Slices.
        y: Rows.
        x: Columns.
    """

    z: tuple[int, int]
    y: tuple[int, int]
    x: tuple[int, int]

    def __str__(self) -> str:
        spans = ((dim, first, end) for dim, (first, end) in zip(DIMS, self, strict=True))
        return ", ".join(f"{dim} {first}" + f" to {end - 1}" * (end - first > 1) for dim, first, end in spans)


class Levels:
    """A Dataset at all available resolutions.

    Args:
        ds: A Dataset from `open_human_liver_em` or `xr.open_zarr`. For a store with a pyramid, all levels are used.

    Attributes:
        held: The box of the volume that the Dataset covers.
        labels: Names of its masks and instances.
        voxel_size_nm: Size of a voxel (z, y, x) in nm; None if not known.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self.held = held_box(ds)
        self.labels = labels_of(ds)
        self.voxel_size_nm: Sequence[float] | None = ds.attrs.get("voxel_size_nm")
        self._levels = open_levels(ds)

    def window(self, z: int, y: Bounds = None, x: Bounds = None, pixels: int = PIXELS) -> xr.Dataset:
        """Return a window of one slice; see the function `window`."""
        held = self.held
        check_slice(z, held)
        rows, columns = check_bounds(y, x, held)
        voxels = max(1, max(rows[1] - rows[0], columns[1] - columns[0]) / pixels)  # of a pixel
        level, factors = next(found for found in reversed(self._levels) if found[1][1] <= voxels)
        has_pyramid = len(self._levels) > 1  # otherwise finer voxels are fetched
        stride = int(voxels / factors[1]) if has_pyramid else math.ceil(voxels)
        step = factors[1] * stride
        bounds = {"z": (z, z + 1), "y": rows, "x": columns}
        ends = level.attrs.get(END, (held.z_max, held.y_max, held.x_max))
        begins = {dim: float(level[dim][0]) - (factor - 1) / 2 for dim, factor in zip(DIMS, factors, strict=True)}
        cuts = {
            dim: _cut(begins[dim], factor, by, bounds[dim], end)
            for dim, factor, by, end in zip(DIMS, factors, (1, stride, stride), ends, strict=True)
        }
        corner = [int(begins[dim]) + cuts[dim].start * factor for dim, factor in zip(DIMS, factors, strict=True)]
        seen = level.isel(cuts | {"z": cuts["z"].start})
        if stride > 1:
            seen = _combine_voxels(seen, stride)
            for dim, first in zip(DIMS[1:], corner[1:], strict=True):
                seen = seen.assign_coords({dim: first + (step - 1) / 2 + step * np.arange(seen.sizes[dim])})
        return seen.assign_attrs(step=step, factors=list(factors), corner=corner, end=list(ends))


def _cut(begin: float, factor: int, by: int, bounds: tuple[int, int], end: int) -> slice:
    """Return which voxels of a level cover a range, whole groups of `by` voxels unless the volume ends before.

    Args:
        begin: Coordinate at which the level begins.
        factor: Size of a voxel of the level.
        by: Number of voxels that become one.
        bounds: First coordinate and end (exclusive) of the range.
        end: Coordinate at which the volume ends.
    """
    low, high, last = (
        math.floor((bounds[0] - begin) / factor),
        *(math.ceil((at - begin) / factor) for at in (bounds[1], end)),
    )
    return slice(low, min(low + -(-(high - low) // by) * by, last))


def _combine_voxels(seen: xr.Dataset, stride: int) -> xr.Dataset:
    """Make one voxel of `stride` x `stride` voxels: the middle row, with its columns combined."""
    middles = np.arange(0, seen.sizes["y"], stride) + stride // 2
    rows = seen.isel(y=np.minimum(middles, seen.sizes["y"] - 1))
    variables = {name: combine_columns(variable, stride) for name, variable in rows.data_vars.items()}
    return xr.Dataset(variables, {"z": rows.z}, rows.attrs)


def window(ds: xr.Dataset, z: int, y: Bounds = None, x: Bounds = None, pixels: int = PIXELS) -> xr.Dataset:
    """Return a window of one slice at the resolution of the screen. It is lazy if `ds` is lazy.

    If the window has more rows or columns than `pixels`, a voxel of it stands for `step` x `step` voxels of `ds`. With
    a pyramid, these are voxels of the coarsest level that is no coarser than the screen. Without one, and beyond its
    last level, the row in the middle is taken, and its columns are combined: averaged in images, with their share of
    labelled voxels in masks.

    Args:
        ds: A Dataset from `open_human_liver_em` or `xr.open_zarr`.
        z: The slice, an index in the whole volume.
        y: First row and end (exclusive), indexes in the whole volume: a pair, or a slice such as `slice(100, 400)`, in
            which start or stop may be missing. None selects all rows of `ds`.
        x: First column and end (exclusive), in the same way.
        pixels: Rows and columns of the screen. The window has at most as many, but up to twice as many of a pyramid.

    Returns:
        The variables, (y, x). Their coordinates are the centres of the voxels shown, those at the end as large as the
        others. Attributes: `step`, 1 at full resolution; `factors`, the size (z, y, x) of a voxel of the level that was
        read, in voxels of `ds`; `corner`, the first voxel (z, y, x) that the window stands for, and `end`, where the
        volume ends: what is shown of a box of a store may stand for voxels beside the box.

    Raises:
        InvalidArgumentError: The window is not inside the Dataset. (ValueError)
    """
    return Levels(ds).window(z, y, x, pixels)


def variable_of(seen: xr.Dataset, name: str) -> xr.DataArray:
    """Return a variable of a window, with the attributes that say which voxels it stands for."""
    return seen[name].assign_attrs({attribute: seen.attrs[attribute] for attribute in ATTRIBUTES})


def place_of(seen: xr.DataArray, row: int, column: int) -> Place:
    """Return which voxels a voxel of a window was made from.

    Args:
        seen: A variable of a window.
        row: Row of the voxel in the window.
        column: Column of the voxel in the window.
    """
    step, factors, (z, y, x), (z_end, y_end, x_end) = (seen.attrs[name] for name in ATTRIBUTES)
    y += row * step
    x += column * step
    if step > factors[1]:  # one row of larger voxels, and all of their columns
        stride = step // factors[1]
        rows = -(-(y_end - y) // factors[1])
        y += min(stride // 2, rows - 1) * factors[1]
    return Place((z, min(z + factors[0], z_end)), (y, min(y + factors[1], y_end)), (x, min(x + step, x_end)))


def extent_of(seen: xr.Dataset | xr.DataArray) -> tuple[float, float, float, float]:
    """Return the edges (left, right, bottom, top) of a window's picture in voxels.

    The centre of a voxel is at its index, so its edges are 0.5 voxels away.
    """
    step, (_, top, left) = seen.attrs["step"], seen.attrs["corner"]
    rows, columns = seen.sizes["y"], seen.sizes["x"]
    return left - 0.5, left + columns * step - 0.5, top + rows * step - 0.5, top - 0.5


def check_slice(z: int, held: BoundingBox) -> int:
    """Return the slice number `z` as an int, after checking that a box of the volume contains it.

    Raises:
        InvalidArgumentError: `z` is not a whole number, or the box does not contain the slice.
    """
    try:
        number = operator.index(z)
    except TypeError:
        raise InvalidArgumentError(f"z={z!r} must be a whole number: one slice.") from None
    _within("z", (number, number + 1), held.z_min, held.z_max)
    return number


def check_bounds(y: Bounds, x: Bounds, held: BoundingBox) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return rows and columns as pairs (first, exclusive end); None becomes all rows or columns of the box.

    Raises:
        InvalidArgumentError: They are not inside the box, are empty, or are neither pairs nor slices.
    """
    return _within("y", y, held.y_min, held.y_max), _within("x", x, held.x_min, held.x_max)


def _within(axis: str, given: Bounds, low: int, high: int) -> tuple[int, int]:
    if given is None:
        return low, high
    try:
        if isinstance(given, slice):
            if given.step not in (None, 1):
                raise ValueError
            given = low if given.start is None else given.start, high if given.stop is None else given.stop
        start, stop = map(operator.index, given)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"{axis}={given!r} must be two whole numbers, first and after the last, or a slice of them without a step."
        ) from None
    if start > stop:
        raise InvalidArgumentError(f"{axis} {start}..{stop} is reversed: first the lower number, then the higher one.")
    if start == stop:
        raise InvalidArgumentError(f"{axis} {start}..{stop} holds nothing: the second is not part of the range.")
    if not low <= start < stop <= high:
        raise InvalidArgumentError(f"{axis} {start}..{stop} is not within the {low}..{high} that the Dataset holds.")
    return start, stop
