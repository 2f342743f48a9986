"""The picture of the slicer: raw with labels over it on ipympl's canvas, axes in voxels, a scale bar and a ruler.

Importing this module needs the extra `view`.
"""

import threading
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..core.contrast import grey_range
from .canvas import LockedCanvas
from .figures import add_scale_bar, overlay, title_of
from .levels import extent_of

LOWEST, HIGHEST = 0.4, 1.2
"""Minimum and maximum ratio of the picture's height to its width."""

SAVE = "save_figure"
"""The only tool of matplotlib's toolbar that is kept; the mouse and the buttons do what the others do."""

RULER = "#00e5ff"
"""Colour of the ruler, which no label has."""

STALE = 0.35
"""Opacity of the previous slice's raw while the new slice is being read."""


class Picture:
    """The canvas with raw, labels over it, axes in voxels and a scale bar.

    Args:
        size: Width in pixels.
        height_of_width: Ratio of height to width of a slice; limited to LOWEST and HIGHEST.
        masks: Names of the labels.
        lock: Lock that is held while the canvas handles messages.
    """

    def __init__(self, size: int, height_of_width: float, masks: list[str], lock: threading.RLock) -> None:
        height = min(max(height_of_width, LOWEST), HIGHEST)
        figure = Figure(figsize=(size / 100, size * height / 100), dpi=100, layout="constrained")
        self.canvas = LockedCanvas(figure, lock)
        self.canvas.header_visible = self.canvas.footer_visible = False
        self.canvas.capture_scroll = True  # the wheel zooms, and does not scroll the page
        self.canvas.toolbar.toolitems = [item for item in self.canvas.toolbar.toolitems if item[3] == SAVE]
        self.canvas.toolbar_visible, self.canvas.toolbar_position = True, "right"
        self.axes = figure.add_subplot()
        self.axes.set(xlabel="x", ylabel="y", facecolor="0.93")
        self._raw = self.axes.imshow([[0]], cmap="gray", interpolation="nearest", visible=False)
        self._masks = {
            name: self.axes.imshow(np.zeros((1, 1, 4)), interpolation="nearest", visible=False) for name in masks
        }
        (self._ruler,) = self.axes.plot([], [], color=RULER, linewidth=2, marker="|", scalex=False, scaley=False)
        self._bar: Any = None
        self.pixels = size

    def turn(self, z: int) -> None:
        """Change the title to another slice, hide the labels and dim raw until new ones are drawn."""
        for image in self._masks.values():
            image.set_visible(False)
        self._raw.set_alpha(STALE)
        self.axes.set_title(title_of(z, 1), loc="left")
        self.canvas.draw_idle()

    def draw_raw(self, z: int, seen: xr.DataArray, percentiles: tuple[float, float]) -> None:
        """Draw raw at its position."""
        _place(self._raw, seen, seen.values)
        self._raw.set_clim(*grey_range(seen.values, percentiles))
        self._raw.set_alpha(1)
        self.axes.set_title(title_of(z, seen.attrs["step"]), loc="left")
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

    def scale(self, voxel_size_nm: Any) -> None:
        """Redraw the scale bar."""
        if self._bar is not None:
            self._bar.remove()
        left, right = self.axes.get_xlim()
        self._bar = add_scale_bar(self.axes, right - left, voxel_size_nm)
        self.canvas.draw_idle()


def _place(image: Any, seen: xr.DataArray, pixels: Any) -> None:
    image.set_data(pixels)
    image.set_extent(extent_of(seen))
    image.set_visible(True)
