"""The picture of the slicer: raw with labels over it on ipympl's canvas, axes in voxels, a scale bar and a ruler.

Importing this module needs the extra `view`.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..core.contrast import grey_range
from ..core.geometry import DIMS, BoundingBox
from .canvas import LockedCanvas
from .figures import add_scale_bar, overlay, title_of
from .levels import extent_of
from .planes import XY, Plane, Span, held_along

LOWEST, HIGHEST = 0.4, 1.2
"""Minimum and maximum ratio of the picture's height to its width."""

SAVE = "save_figure"
"""The only tool of matplotlib's toolbar that is kept; the mouse and the buttons do what the others do."""

RULER = "#00e5ff"
"""Colour of the ruler, which no label has."""

STALE = 0.35
"""Opacity of the previous slice's raw while the new slice is being read."""


class Picture:
    """The canvas with raw, labels over it, axes in voxels and a scale bar: a window of a plane of a volume.

    Args:
        size: Width in pixels.
        held: The box of the volume that can be shown.
        voxel_size_nm: Size of a voxel (z, y, x) in nm; None if not known.
        masks: Names of the labels.
        lock: Lock that is held while the canvas handles messages.

    Attributes:
        plane: The plane that is shown.
    """

    def __init__(
        self,
        size: int,
        held: BoundingBox,
        voxel_size_nm: Sequence[float] | None,
        masks: list[str],
        lock: threading.RLock,
    ) -> None:
        self.pixels = size
        self._held = held
        self._voxel_size = voxel_size_nm
        self._limits: dict[str, tuple[float, float]] = {}  # the last range of each axis in the picture
        ratio = XY.aspect(voxel_size_nm) * (held.y_max - held.y_min) / (held.x_max - held.x_min)
        height = min(max(ratio, LOWEST), HIGHEST)
        figure = Figure(figsize=(size / 100, size * height / 100), dpi=100, layout="constrained")
        self.canvas = LockedCanvas(figure, lock)
        self.canvas.header_visible = self.canvas.footer_visible = False
        self.canvas.capture_scroll = True  # the wheel zooms, and does not scroll the page
        self.canvas.toolbar.toolitems = [item for item in self.canvas.toolbar.toolitems if item[3] == SAVE]
        self.canvas.toolbar_visible, self.canvas.toolbar_position = True, "right"
        self.axes = figure.add_subplot()
        self.axes.set_facecolor("0.93")
        self._raw = self.axes.imshow([[0]], cmap="gray", interpolation="nearest", visible=False)
        self._masks = {
            name: self.axes.imshow(np.zeros((1, 1, 4)), interpolation="nearest", visible=False) for name in masks
        }
        (self._ruler,) = self.axes.plot([], [], color=RULER, linewidth=2, marker="|", scalex=False, scaley=False)
        self._bar: Any = None
        self.plane = XY
        self.show_window(None, None)
        self.face(XY, held.z_min)

    def face(self, plane: Plane, at: int) -> None:
        """Show another plane, empty at first.

        An axis that was in the picture keeps its range, one that was in an earlier picture has that of then, and others
        are shown as a whole. The new picture contains the slice that was shown.

        Args:
            plane: The plane.
            at: The slice that was shown of the plane before.
        """
        top, bottom, left, right = self._edges()
        self._limits |= {self.plane.rows: (top, bottom), self.plane.columns: (left, right)}
        low, high = self._limits.get(self.plane.across, _edges(held_along(self._held, self.plane.across)))
        away = 0 if low <= at <= high else at - round((low + high) / 2)
        self._limits[self.plane.across] = low + away, high + away
        self.plane = plane
        for image in (self._raw, *self._masks.values()):
            image.set_visible(False)
        self.draw_ruler([])
        self.axes.set(xlabel=plane.columns, ylabel=plane.rows, aspect=plane.aspect(self._voxel_size))
        self._set(*self._limits[plane.rows], *self._limits[plane.columns])

    def show_window(self, rows: Span | None, columns: Span | None) -> None:
        """Show a range of rows and columns, or all."""
        all_rows, all_columns = self._spans()
        self._set(*_edges(rows or all_rows), *_edges(columns or all_columns))

    @property
    def window(self) -> tuple[Span, Span]:
        """Visible rows and columns: first and end (exclusive) of each."""
        (top, bottom, left, right), (rows, columns) = self._edges(), self._spans()
        return _whole(top, bottom, *rows), _whole(left, right, *columns)

    @property
    def middle(self) -> tuple[float, float]:
        """The place (row, column) in the middle; of an even number of voxels, the one after it."""
        top, bottom, left, right = self._edges()
        return (top + bottom + 1) / 2, (left + right + 1) / 2

    def move(self, down: float, right: float) -> None:
        """Move the window by a number of voxels."""
        top, bottom, left, end = self._edges()
        self._set(top + down, bottom + down, left + right, end + right)

    def hold(self) -> None:
        """Keep the middle of the window inside the volume."""
        down, right = (min(max(at, low), high) - at for at, (low, high) in zip(self.middle, self._spans(), strict=True))
        if down or right:
            self.move(down, right)

    def zoom(self, factor: float, at: tuple[float, float] | None = None) -> None:
        """Scale the visible range by `factor`. The voxel `at`, (x, y), stays in place; by default the centre."""
        if factor > 1 and self._is_whole():
            return
        top, bottom, left, right = self._edges()
        x, y = at or ((left + right) / 2, (top + bottom) / 2)
        self._set(
            *(y + (edge - y) * factor for edge in (top, bottom)), *(x + (edge - x) * factor for edge in (left, right))
        )
        self.hold()

    def turn(self, at: int) -> None:
        """Change the title to another slice, hide the labels and dim raw until new ones are drawn."""
        for image in self._masks.values():
            image.set_visible(False)
        self._raw.set_alpha(STALE)
        self.axes.set_title(title_of(self.plane, at), loc="left")
        self.canvas.draw_idle()

    def draw_raw(self, at: int, seen: xr.DataArray, percentiles: tuple[float, float]) -> None:
        """Draw raw at its position."""
        _place(self._raw, seen, seen.values)
        self._raw.set_clim(*grey_range(seen.values, percentiles))
        self._raw.set_alpha(1)
        self.axes.set_title(title_of(self.plane, at, seen), loc="left")
        self.canvas.draw_idle()

    def draw_mask(self, name: str, seen: xr.DataArray | None, colour: str, opacity: float) -> None:
        """Draw a label at its position; hide it if `seen` is None."""
        image = self._masks[name]
        if seen is None:
            image.set_visible(False)
        else:
            _place(image, seen, overlay(seen, colour, opacity))
        self.canvas.draw_idle()

    def draw_ruler(self, ends: list[tuple[float, float]]) -> None:
        """Draw a line between two places (x, y), or none."""
        self._ruler.set_data([x for x, _ in ends], [y for _, y in ends])
        self.canvas.draw_idle()

    def scale(self) -> None:
        """Redraw the scale bar."""
        if self._bar is not None:
            self._bar.remove()
        _, _, left, right = self._edges()
        self._bar = add_scale_bar(self.axes, right - left, self.plane, self._voxel_size)
        self.canvas.draw_idle()

    def length_of(self, begin: tuple[float, float], end: tuple[float, float]) -> str:
        """Return the text about a line between two places (x, y)."""
        right, down = (to - at for at, to in zip(begin, end, strict=True))
        _, rows, columns = self.plane
        if self._voxel_size is None:
            length = f"{math.hypot(down, right):.1f} voxels"
        else:
            sizes = dict(zip(DIMS, self._voxel_size, strict=True))
            length = f"{math.hypot(down * sizes[rows], right * sizes[columns]) / 1000:.3f} µm"
        places = (f"{rows} {y:.0f}, {columns} {x:.0f}" for x, y in (begin, end))
        return f"{length} from {' to '.join(places)}"

    def _spans(self) -> tuple[Span, Span]:
        """Return the ranges of the volume along the rows and the columns of the plane."""
        return held_along(self._held, self.plane.rows), held_along(self._held, self.plane.columns)

    def _edges(self) -> tuple[float, float, float, float]:
        (left, right), (bottom, top) = self.axes.get_xlim(), self.axes.get_ylim()
        return top, bottom, left, right

    def _set(self, top: float, bottom: float, left: float, right: float) -> None:
        self.axes.set(xlim=(left, right), ylim=(bottom, top))
        self.canvas.draw_idle()

    def _is_whole(self) -> bool:
        """Return whether the picture is at least twice as large as the volume along both axes."""
        (top, bottom, left, right), (rows, columns) = self._edges(), self._spans()
        return right - left >= 2 * (columns[1] - columns[0]) and bottom - top >= 2 * (rows[1] - rows[0])


def _place(image: Any, seen: xr.DataArray, pixels: Any) -> None:
    image.set_data(pixels)
    image.set_extent(extent_of(seen))
    image.set_visible(True)


def _edges(span: Span) -> tuple[float, float]:
    """Return the edges of a range of voxels in a picture; the centre of a voxel is at its index."""
    return span[0] - 0.5, span[1] - 0.5


def _whole(low: float, high: float, least: int, most: int) -> Span:
    """Return the voxels between two limits of an axis as (first, exclusive end): at least one, inside least..most."""
    first = min(max(int(np.floor(low + 0.5)), least), most - 1)
    return first, min(max(int(np.ceil(high + 0.5)), first + 1), most)
