"""Pictures of a window of a slice: raw with masks over it, on axes that count voxels of the whole volume.

Drawing needs the extra `view`. Large windows are strided or taken from a pyramid level, so that not more is fetched
than a screen can show.
"""

import math
import operator
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.archives import color_of
from ..core.errors import InvalidArgumentError, MissingExtraError, how_to_install
from ..core.geometry import DIMS, BoundingBox, held_box
from ..core.kinds import RAW, kind_of, labels_of
from ..store.levels import open_levels
from .targets import open_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2

LEGEND_COLORS = 4
"""Number of colours in the legend's patch of instances."""

PIXELS = 1024
"""Default for the maximum number of rows and columns that a picture of a window shows."""

INCHES = 6.2
"""Longer side of a picture, without title, legend and axes."""

MOST_ABOVE = 4
"""Maximum number of labels in a legend above a picture; a longer one is beside it."""

NARROW = 4.5
"""Width of a picture in inches below which title and legend do not fit side by side."""

Bounds = Sequence[int] | slice | None
"""A range of rows or columns: first and end (exclusive), as a pair or a slice. None is the full range of the Dataset.

In a slice, start or stop may be None, too, and then mean the first or last row or column of the Dataset.
"""


class Levels:
    """A Dataset at all available resolutions.

    Args:
        ds: A Dataset from `open_human_liver_em` or `xr.open_zarr`. For a store with a pyramid, all levels are used.

    Attributes:
        held: The box of the volume that the Dataset covers.
        labels: Names of its masks and instances.
        colors: Colours of the labels, as #rrggbb.
        legend_colors: Colours that stand for each label in a legend: several for instances.
        voxel_size_nm: Size of a voxel (z, y, x) in nm; None if not known.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self.held = held_box(ds)
        self.labels = labels_of(ds)
        self.colors = {name: color_of(ds[name]) for name in self.labels}
        self.legend_colors = {name: legend_colors(ds[name]) for name in self.labels}
        self.voxel_size_nm: Sequence[float] | None = ds.attrs.get("voxel_size_nm")
        self._levels = open_levels(ds)

    def window(self, z: int, y: Bounds = None, x: Bounds = None, pixels: int = PIXELS) -> xr.Dataset:
        """Return a window of one slice; see the function `window`."""
        held = self.held
        check_slice(z, held)
        rows, columns = check_bounds(y, x, held)
        step = max(1, math.ceil(max(rows[1] - rows[0], columns[1] - columns[0]) / pixels))
        level, factors = next((found for found in self._levels if found[1][1] >= step), self._levels[-1])
        stride = math.ceil(step / factors[1])
        places = {}
        for dim, bounds, factor in zip(DIMS, ((z, z + 1), rows, columns), factors, strict=True):
            begins = float(level[dim][0]) - (factor - 1) / 2  # coordinate of the first voxel that the level covers
            low, high = math.floor((bounds[0] - begins) / factor), math.ceil((bounds[1] - begins) / factor)
            places[dim] = low if dim == "z" else slice(low, high, stride)
        return level.isel(places).assign_attrs(step=factors[1] * stride)


def window(ds: xr.Dataset, z: int, y: Bounds = None, x: Bounds = None, pixels: int = PIXELS) -> xr.Dataset:
    """Return a window of one slice at the resolution of the screen. It is lazy if `ds` is lazy.

    If the window has more rows or columns than `pixels`, it is taken from the finest level of a store's pyramid that
    fits. Without such a level, the coarsest available level is strided.

    Args:
        ds: A Dataset from `open_human_liver_em` or `xr.open_zarr`.
        z: The slice, an index in the whole volume.
        y: First row and end (exclusive), indexes in the whole volume: a pair, or a slice such as `slice(100, 400)`, in
            which start or stop may be missing. None selects all rows of `ds`.
        x: First column and end (exclusive), in the same way.
        pixels: Maximum number of rows and columns.

    Returns:
        The variables, (y, x). Their coordinates are the centres of the voxels shown. `attrs["step"]` is the number of
        rows and columns of `ds` per row and column of the window; it is 1 at full resolution.

    Raises:
        InvalidArgumentError: The window is not inside the Dataset. (ValueError)
    """
    return Levels(ds).window(z, y, x, pixels)


def extent_of(seen: xr.Dataset | xr.DataArray) -> tuple[float, float, float, float]:
    """Return the edges (left, right, bottom, top) of a window's picture in voxels.

    The centre of a voxel is at its index, so its edges are 0.5 voxels away.
    """
    half = seen.attrs["step"] / 2
    rows, columns = seen.y.values, seen.x.values
    return columns[0] - half, columns[-1] + half, rows[-1] + half, rows[0] - half


def grey_range(raw: npt.NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return the raw values to show as black and white: percentiles of all nonzero voxels (0 is empty glass)."""
    low, high = np.percentile(raw[raw > 0] if raw.any() else raw, percentiles)
    return float(low), float(max(high, low + 1))


def title_of(z: int, step: int) -> str:
    """Return the title of a picture: the slice, and how many voxels a pixel stands for unless it is one."""
    return f"z {z}" + (f", 1 pixel = {step} x {step} voxels" if step > 1 else "")


def show(
    ds: "xr.Dataset | str | os.PathLike[str]",
    z: int,
    y: Bounds = None,
    x: Bounds = None,
    *,
    labels: str | Sequence[str] | None = None,
    opacity: float = 0.4,
    contrast: tuple[float, float] = (0.5, 99.5),
    pixels: int = PIXELS,
    axes: "Axes | None" = None,
) -> "Figure":
    """Draw a window of a slice: raw, and masks over it in colour.

    Args:
        ds: A Dataset from `open_human_liver_em` or `xr.open_zarr`; or the path of a store, or a source of the archive.
        z: The slice, an index in the whole volume.
        y: First row and end (exclusive), as a pair or a slice; all rows if None.
        x: First column and end (exclusive), as a pair or a slice; all columns if None.
        labels: The labels to show; all labels of `ds` if None.
        opacity: Opacity of the labels, 0 to 1.
        contrast: Percentiles of raw that are black and white; empty glass (0) is ignored.
        pixels: Maximum number of rows and columns to show; a larger window is fetched at a lower resolution.
        axes: Axes to draw into; a new figure if None.

    Returns:
        The figure. A new figure is closed in pyplot: a notebook shows it where it is returned, and `savefig` saves it.
        Its axes count voxels of the whole volume. A scale bar shows micrometres, or pixels if the voxel size is not
        known.

    Raises:
        MissingExtraError: matplotlib is not installed. (ImportError)
        InvalidArgumentError: The window is not inside the Dataset, or raw or a label is missing. (ValueError)
    """
    if not isinstance(ds, xr.Dataset):
        ds = open_target(ds)
    names = labels_of(ds) if labels is None else [labels] if isinstance(labels, str) else list(labels)
    missing = [name for name in (RAW, *names) if name not in ds]
    if missing:
        raise InvalidArgumentError(f"There is no {missing[0]!r} in the Dataset; it has {', '.join(map(str, ds))}.")
    pyplot, Patch, HandlerTuple = _import_extra()
    seen = window(ds[[RAW, *names]], z, y, x, pixels).compute()
    ratio = seen.sizes["y"] / seen.sizes["x"]
    width, height = INCHES * min(1, 1 / ratio), INCHES * min(1, ratio)
    is_beside = width < NARROW or len(names) > MOST_ABOVE
    if axes is None:
        size = max(width, 2) + (2.2 if is_beside else 0.8), max(height, 0.4) + 0.9
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        pyplot.close(figure)  # otherwise a notebook shows it twice: as an open figure and as the returned value
    step, extent = seen.attrs["step"], extent_of(seen)
    raw = seen[RAW].values
    low, high = grey_range(raw, contrast)
    axes.imshow(raw, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    for name in names:
        colours = overlay(seen[name], color_of(seen[name]), opacity)
        axes.imshow(colours, extent=extent, interpolation="nearest")
    axes.set(xlabel="x", ylabel="y")
    axes.set_title(title_of(z, step), loc="left")
    add_scale_bar(axes, extent[1] - extent[0], ds.attrs.get("voxel_size_nm"))
    if names:
        handles = [
            tuple(Patch(color=color, alpha=max(opacity, 0.6), linewidth=0) for color in legend_colors(seen[name]))
            for name in names
        ]
        place = {"loc": "upper left"} if is_beside else {"loc": "lower right", "ncols": len(names)}
        side_by_side = {tuple: HandlerTuple(ndivide=None, pad=0)}
        axes.legend(handles, names, handler_map=side_by_side, bbox_to_anchor=(1, 1), frameon=False, **place)
    return cast("Figure", axes.figure)


def fractions(ds: xr.Dataset) -> xr.Dataset:
    """Return the share of each label in each slice. The result is lazy; computing it reads every mask.

    Args:
        ds: A Dataset from `open_human_liver_em` or `xr.open_zarr`.

    Returns:
        One variable per label, (z): the share, 0 to 1, of all voxels of a slice of `ds`.

    Raises:
        InvalidArgumentError: The Dataset has no label. (ValueError)
    """
    names = labels_of(ds)
    if not names:
        raise InvalidArgumentError(f"There is no label in the Dataset; it has {', '.join(map(str, ds)) or 'nothing'}.")
    masks = ds[names]
    shares = (masks > 0).mean(("y", "x"))
    counted = {
        name: shares[name].copy(data=_share_of_blocks(mask, ("y", "x")))
        for name, mask in masks.data_vars.items()
        if mask.chunks is not None
    }
    return shares.assign(counted)


def _share_of_blocks(mask: xr.DataArray, dims: Sequence[str]) -> Any:
    """Return the mean of `mask > 0` along some dims as a dask array.

    Nonzero voxels are counted, because numpy counts ten times as fast as it adds.
    """
    axes = tuple(map(mask.dims.index, dims))
    counts = da.reduction(mask.data, _count, np.sum, axis=axes, dtype=np.int64)
    return counts / math.prod(mask.sizes[dim] for dim in dims)


def _count(block: npt.NDArray[Any], axis: tuple[int, ...], keepdims: bool) -> npt.NDArray[np.int64]:
    """Count the nonzero voxels of a block along some axes."""
    if all(length == 1 for i, length in enumerate(block.shape) if i not in axis):  # for example in blocks of one slice
        return np.full([1] * block.ndim, np.count_nonzero(block))
    return np.asarray(np.count_nonzero(block, axis=axis, keepdims=keepdims))


def overlay(label: xr.DataArray, color: str, opacity: float) -> npt.NDArray[np.float32]:
    """Convert a label to colours with transparency.

    Args:
        label: A mask, which gets one colour, or instances, which get one colour per number. A number always gets the
            same colour.
        color: Colour of a mask. For instances, the colour from which those of all numbers are derived: number 0, which
            is not drawn, would have it.
        opacity: Opacity, 0 to 1.

    Returns:
        RGBA values, 0 to 1, (rows, columns, 4), float32.
    """
    from matplotlib.colors import to_rgba

    pixels = np.zeros((*label.shape, 4), np.float32)
    there = label.values > 0
    pixels[there] = to_rgba(color, opacity)
    if kind_of(label) == "instances":
        pixels[there, :3] = _colors_of(label.values[there], color)
    return pixels


def legend_colors(label: xr.DataArray) -> list[str]:
    """Return the colours of a label in a legend, as #rrggbb: that of a mask, or those of a few instances."""
    from matplotlib.colors import to_hex

    color = color_of(label)
    if kind_of(label) == "instances":
        return [to_hex(one) for one in _colors_of(np.arange(1, 1 + LEGEND_COLORS), color)]
    return [color]


def _colors_of(numbers: npt.NDArray[Any], color: str) -> npt.NDArray[Any]:
    """Return an RGB colour for each number. Successive numbers differ much in hue, as they are often neighbours."""
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv, to_rgb

    distinct, place = np.unique(numbers, return_inverse=True)
    hue, saturation, value = rgb_to_hsv(to_rgb(color))
    hues = (hue + distinct.astype(float) * GOLDEN_RATIO) % 1
    colors = hsv_to_rgb(np.stack([hues, np.full(len(hues), saturation), np.full(len(hues), value)], axis=-1))
    return np.asarray(colors)[place]


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


def add_scale_bar(axes: "Axes", width: float, voxel_size_nm: Sequence[float] | None) -> "AnchoredSizeBar":
    """Add a scale bar of a round length, at most a fifth of the picture's width.

    Args:
        axes: The axes of the picture.
        width: Width of the picture in voxels.
        voxel_size_nm: Size of a voxel (z, y, x) in nm. If None, the bar shows pixels instead of micrometres.
    """
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    scale, unit = (voxel_size_nm[2] / 1000, "µm") if voxel_size_nm else (1.0, "px")
    wanted = width * scale / 5
    power = 10 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    bar = AnchoredSizeBar(
        axes.transData,
        length / scale,
        f"{length:g} {unit}",
        "lower right",
        pad=0.4,
        borderpad=0.6,
        size_vertical=width / 200,
    )
    bar.patch.set(alpha=0.85, linewidth=0)  # light, so that the black bar is seen on black glass
    axes.add_artist(bar)
    return bar


def _import_extra() -> tuple[Any, Any, Any]:
    """Import what draws from matplotlib: pyplot, Patch and HandlerTuple.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.legend_handler import HandlerTuple
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingExtraError(f"Pictures need matplotlib ({error}): {how_to_install('view')}.") from error
    return pyplot, Patch, HandlerTuple
