"""Pictures of a window of a slice: raw with masks over it, on axes that count voxels of the whole volume.

Drawing needs the extra `view`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.archives import color_of
from ..core.contrast import grey_range
from ..core.errors import InvalidArgumentError, MissingExtraError, how_to_install
from ..core.geometry import DIMS, voxel_size_in
from ..core.kinds import RAW, kind_of, labels_of
from ..store.targets import open_target
from .levels import PIXELS, extent_of, variable_of, window
from .planes import XY, Bounds, Plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

MICROMETRE = 1000
"""Nanometres."""

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2

LEGEND_COLORS = 4
"""Number of colours in the legend's patch of instances."""

INCHES = 6.2
"""Longer side of a picture, without title, legend and axes."""

MOST_ABOVE = 4
"""Maximum number of labels in a legend above a picture; a longer one is beside it."""

NARROW = 4.5
"""Width of a picture in inches below which title and legend do not fit side by side."""


def title_of(plane: Plane, at: int, seen: xr.DataArray | None = None) -> str:
    """Return the title of a picture: the slice, and how many voxels a pixel of a window stands for unless it is one."""
    steps = dict(zip(DIMS, seen.attrs["step"], strict=True)) if seen is not None else {}
    rows, columns = (steps.get(dim, 1) for dim in (plane.rows, plane.columns))
    return f"{plane.across} {at}" + (f", 1 pixel = {rows} x {columns} voxels" if (rows, columns) != (1, 1) else "")


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
        pixels: Maximum number of rows and columns to show; a larger window is fetched at a lower resolution, see
            `liver_dask.viewing.levels.window`.
        axes: Axes to draw into; a new figure if None.

    Returns:
        The figure. A new figure is closed in pyplot: a notebook shows it where it is returned, and `savefig` saves it.
        Its axes count voxels of the whole volume. A scale bar shows micrometres, or voxels if their size is not
        known.

    Raises:
        MissingExtraError: matplotlib is not installed. (ImportError)
        InvalidArgumentError: The window is not inside the Dataset, raw or a label is missing, or an option is out of
            range. (ValueError)
    """
    ds = dataset_of(ds)
    check_looks(contrast, opacity)
    names = labels_of(ds) if labels is None else [labels] if isinstance(labels, str) else list(labels)
    missing = [name for name in (RAW, *names) if name not in ds]
    if missing:
        raise InvalidArgumentError(f"There is no {missing[0]!r} in the Dataset; it has {', '.join(map(str, ds))}.")
    pyplot, Patch, HandlerTuple = _import_extra()
    seen = window(ds[[RAW, *names]], z, y, x, pixels).compute()
    shown, size_nm = variable_of(seen, RAW), voxel_size_in(ds)
    raw, extent, aspect = shown.values, extent_of(shown), XY.aspect(size_nm)
    ratio = aspect * (extent[2] - extent[3]) / (extent[1] - extent[0])
    width, height = INCHES * min(1, 1 / ratio), INCHES * min(1, ratio)
    is_beside = width < NARROW or len(names) > MOST_ABOVE
    if axes is None:
        size = max(width, 2) + (2.2 if is_beside else 0.8), max(height, 0.4) + 0.9
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        pyplot.close(figure)  # otherwise a notebook shows it twice: as an open figure and as the returned value
    low, high = grey_range(raw, contrast)
    axes.imshow(raw, cmap="gray", vmin=low, vmax=high, extent=extent, aspect=aspect, interpolation="nearest")
    for name in names:
        colours = overlay(seen[name], color_of(seen[name]), opacity)
        axes.imshow(colours, extent=extent, aspect=aspect, interpolation="nearest")
    axes.set(xlabel="x", ylabel="y")
    axes.set_title(title_of(XY, z, shown), loc="left")
    add_scale_bar(axes, extent[1] - extent[0], XY, size_nm)
    if names:
        handles = [
            tuple(Patch(color=color, alpha=max(opacity, 0.6), linewidth=0) for color in legend_colors(seen[name]))
            for name in names
        ]
        place = {"loc": "upper left"} if is_beside else {"loc": "lower right", "ncols": len(names)}
        side_by_side = {tuple: HandlerTuple(ndivide=None, pad=0)}
        axes.legend(handles, names, handler_map=side_by_side, bbox_to_anchor=(1, 1), frameon=False, **place)
    return cast("Figure", axes.figure)


def check_looks(contrast: Sequence[float], opacity: float) -> None:
    """Raise InvalidArgumentError unless these are two ascending percentiles, and a number from 0 to 1."""
    try:
        low, high = contrast
        is_right = 0 <= low < high <= 100 and 0 <= opacity <= 1
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise InvalidArgumentError(
            f"contrast={contrast!r} must be two ascending percentiles, and opacity={opacity!r} from 0 to 1."
        )


def dataset_of(
    target: "xr.Dataset | str | os.PathLike[str]", storage_options: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Return a Dataset, or open a store or an archive; anything else is an InvalidArgumentError."""
    if isinstance(target, xr.Dataset):
        return target
    if not isinstance(target, str | os.PathLike):
        raise InvalidArgumentError(
            f"A {type(target).__name__} cannot be shown; give a Dataset, the path of a store, or an archive's address."
        )
    return open_target(target, storage_options=storage_options)


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
    there = label.values != 0
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


def add_scale_bar(axes: "Axes", width: float, plane: Plane, voxel_size_nm: Sequence[float] | None) -> "AnchoredSizeBar":
    """Add a scale bar of a round length, at most a fifth of the picture's width.

    Args:
        axes: The axes of the picture.
        width: Width of the picture in voxels.
        plane: The plane that the picture shows.
        voxel_size_nm: Size of a voxel (z, y, x) in nm. If None, the bar shows voxels.
    """
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    scale, unit = (voxel_size_nm[DIMS.index(plane.columns)], "nm") if voxel_size_nm else (1.0, "voxels")
    if unit == "nm" and width * scale / 5 >= MICROMETRE / 10:
        scale, unit = scale / MICROMETRE, "µm"
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
        size_vertical=width / 200 / plane.aspect(voxel_size_nm),
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
