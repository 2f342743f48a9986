"""Windows of a slice at the resolution of a screen, from all levels of a Dataset.

Large windows are taken from a pyramid level, and of larger voxels still, every n-th row is read with its columns
combined, so that not more is fetched than a screen can show.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.reader import readers_of
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, held_box, voxel_size_in
from ..core.kinds import labels_of
from ..store.columns import combine_columns
from ..store.levels import END, open_levels
from .planes import PLANES, XY, Bounds, Plane, Span, check_bounds, check_slice

PIXELS = 1024
"""Default for the maximum number of rows and columns that a picture of a window shows."""

MOST_ACROSS = 64
"""Maximum number of slices of an archive that can be seen from the side.

Of each slice, the rows of the picture are fetched.
"""

ATTRIBUTES = ("step", "factors", "corner", "end")
"""Attributes of a window that say which voxels it stands for."""


class Place(NamedTuple):
    """Voxels that a voxel of a window stands for: first and end (exclusive) along each axis.

    Attributes:
        z: Slices.
        y: Rows.
        x: Columns.
    """

    z: Span
    y: Span
    x: Span

    @property
    def is_one(self) -> bool:
        """Whether it is a single voxel."""
        return all(end - first == 1 for first, end in self)

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
        planes: Names of the planes in which it can be seen: all of a store, of voxels in memory, and of a few slices of
            an archive; xy otherwise.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self.held = held_box(ds)
        self.labels = labels_of(ds)
        self.voxel_size_nm = voxel_size_in(ds)
        is_far = any(map(_is_of_archive, ds.data_vars.values()))
        self.planes = ("xy",) if is_far and ds.sizes["z"] > MOST_ACROSS else tuple(PLANES)
        self._levels = open_levels(ds)

    def window(
        self, at: int, rows: Bounds = None, columns: Bounds = None, pixels: int = PIXELS, plane: Plane = XY
    ) -> xr.Dataset:
        """Return a window of one slice; see the function `window`.

        Args:
            at: Position along the axis across the plane.
            rows: Range of the plane's rows.
            columns: Range of the plane's columns.
            pixels: Rows and columns of the screen.
            plane: The orientation. The window has its dims (rows, columns). Where there are no levels, no voxels are
                combined in planes other than XY: the middle one of those that a pixel stands for is shown.
        """
        if not pixels >= 1:
            raise InvalidArgumentError(f"pixels={pixels!r} must be at least 1.")
        at = check_slice(plane.across, at, self.held)
        bounds = {
            plane.across: (at, at + 1),
            plane.rows: check_bounds(plane.rows, rows, self.held),
            plane.columns: check_bounds(plane.columns, columns, self.held),
        }
        level, factors, strides = self._level_for(plane, bounds, pixels)
        ends = dict(zip(DIMS, level.attrs.get(END, (self.held.z_max, self.held.y_max, self.held.x_max)), strict=True))
        begins = {dim: float(level[dim][0]) - (factors[dim] - 1) / 2 for dim in DIMS}
        cuts = {dim: _cut(begins[dim], factors[dim], strides[dim], bounds[dim], ends[dim]) for dim in DIMS}
        corner = {dim: int(begins[dim]) + cuts[dim].start * factors[dim] for dim in DIMS}
        step = {dim: factors[dim] * strides[dim] for dim in DIMS}
        seen = level.isel(cuts | {plane.across: cuts[plane.across].start}).transpose(plane.rows, plane.columns)
        if max(strides.values()) > 1:
            seen = _combine_voxels(seen, strides) if plane == XY else _middle_voxels(seen, strides)
            for dim in (plane.rows, plane.columns):
                centres = corner[dim] + (step[dim] - 1) / 2 + step[dim] * np.arange(seen.sizes[dim])
                seen = seen.assign_coords({dim: centres})
        said = (step, factors, corner, ends)
        return seen.assign_attrs({name: [of[dim] for dim in DIMS] for name, of in zip(ATTRIBUTES, said, strict=True)})

    def _level_for(
        self, plane: Plane, bounds: dict[str, Span], pixels: int
    ) -> tuple[xr.Dataset, dict[str, int], dict[str, int]]:
        """Choose the coarsest level that is no coarser than the screen.

        Returns:
            The level, the size of its voxels in voxels of the Dataset, and how many of them a pixel stands for.
        """
        heights, widths = (bounds[dim][1] - bounds[dim][0] for dim in (plane.rows, plane.columns))
        aspect = plane.aspect(self.voxel_size_nm)
        pixel = max(widths, heights * aspect) / pixels  # in widths of a voxel
        voxels = {plane.across: 1, plane.rows: max(1, pixel / aspect), plane.columns: max(1, pixel)}
        level, factors = next(
            (level, dict(zip(DIMS, factors, strict=True)))
            for level, factors in reversed(self._levels)
            if all(factor <= voxels[dim] or dim == plane.across for dim, factor in zip(DIMS, factors, strict=True))
        )
        has_pyramid = len(self._levels) > 1  # otherwise finer voxels are fetched
        strides = {
            dim: max(1, int(voxels[dim] / factors[dim])) if has_pyramid else math.ceil(voxels[dim]) for dim in DIMS
        }
        return level, factors, strides


def _is_of_archive(variable: xr.DataArray) -> bool:
    """Return whether voxels are read, or computed, from the slices of an archive."""
    data = variable.variable
    if data.chunks is None and data._in_memory:
        return False
    return bool(readers_of((data if data.chunks is not None else data.chunk())._data))


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


def _combine_voxels(seen: xr.Dataset, strides: dict[str, int]) -> xr.Dataset:
    """Make one voxel of a block of a slice in XY: the middle row, with its columns combined."""
    rows = seen.isel(y=_middles(seen.sizes["y"], strides["y"]))
    variables = {name: combine_columns(variable, strides["x"]) for name, variable in rows.data_vars.items()}
    return xr.Dataset(variables, {"z": rows.z}, rows.attrs)


def _middle_voxels(seen: xr.Dataset, strides: dict[str, int]) -> xr.Dataset:
    """Take the voxel in the middle of each block."""
    return seen.isel({dim: _middles(seen.sizes[str(dim)], strides[str(dim)]) for dim in seen.dims})


def _middles(length: int, stride: int) -> npt.NDArray[np.intp]:
    """Return the index in the middle of each group of `stride` voxels."""
    return np.minimum(np.arange(0, length, stride) + stride // 2, length - 1)


def window(ds: xr.Dataset, z: int, y: Bounds = None, x: Bounds = None, pixels: int = PIXELS) -> xr.Dataset:
    """Return a window of one slice at the resolution of the screen. It is lazy if `ds` is lazy.

    If the window has more rows or columns than `pixels`, a voxel of it stands for several voxels of `ds`. With a
    pyramid, these are voxels of the coarsest level that is no coarser than the screen. Without one, and beyond its last
    level, the row in the middle is taken, and its columns are combined: averaged in images, with their share of
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
        others. Attributes, each (z, y, x): `step`, the number of voxels of `ds` that a voxel of the window stands for;
        `factors`, the size of a voxel of the level that was read, in voxels of `ds`; `corner`, the first voxel that the
        window stands for, and `end`, where the volume ends: what is shown of a box of a store may stand for voxels
        beside the box.

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
    indexes = dict(zip(seen.dims, (row, column), strict=True))
    combined = {dim for dim in DIMS if dim not in indexes} | ({"x"} if seen.dims == ("y", "x") else set())
    spans = []
    for dim, step, factor, first, end in zip(DIMS, *(seen.attrs[name] for name in ATTRIBUTES), strict=True):
        first += indexes.get(dim, 0) * step
        if dim in combined:
            spans.append((first, min(first + step, end)))
        else:  # the middle voxel of the level
            first += min(step // factor // 2, -(-(end - first) // factor) - 1) * factor
            spans.append((first, min(first + factor, end)))
    return Place(*spans)


def index_of(seen: xr.DataArray, row: int, column: int) -> tuple[int, int] | None:
    """Return the index of the pixel of a window that shows a voxel of its plane, None if the window does not show it.

    Args:
        seen: A variable of a window.
        row: The voxel's position along the rows, in voxels of the Dataset.
        column: The voxel's position along the columns.
    """
    (top, _, tall), (left, _, wide) = _edges_of(seen)
    at = (row - top) // tall, (column - left) // wide
    return at if all(0 <= i < length for i, length in zip(at, seen.shape, strict=True)) else None


def extent_of(seen: xr.DataArray) -> tuple[float, float, float, float]:
    """Return the edges (left, right, bottom, top) of the picture of a window's variable in voxels.

    The centre of a voxel is at its index, so its edges are 0.5 voxels away.
    """
    (top, bottom, _), (left, right, _) = _edges_of(seen)
    return left - 0.5, right - 0.5, bottom - 0.5, top - 0.5


def _edges_of(seen: xr.DataArray) -> list[tuple[int, int, int]]:
    """Return the first voxel, the end and the step of the rows and of the columns of a window."""
    corners, steps = (dict(zip(DIMS, seen.attrs[name], strict=True)) for name in ("corner", "step"))
    return [(corners[dim], corners[dim] + seen.sizes[dim] * steps[dim], steps[dim]) for dim in map(str, seen.dims)]
