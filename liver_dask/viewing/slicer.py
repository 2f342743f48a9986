"""The slicer: a widget that shows a volume slice by slice.

Importing this module needs the extra `view`. `liver_dask.viewing.view` creates the widget.
"""

import html
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from ipywidgets import (
    HTML,
    BoundedIntText,
    Button,
    Checkbox,
    ColorPicker,
    FloatRangeSlider,
    FloatSlider,
    HBox,
    IntSlider,
    Layout,
    ToggleButton,
    VBox,
)
from matplotlib.backend_bases import MouseButton

from ..archive.archives import color_of
from ..core.kinds import RAW, kind_of
from ..store.columns import is_averaged
from .figures import legend_colors
from .levels import Bounds, Levels, check_bounds, check_slice, place_of
from .picture import Picture
from .progressive import ProgressiveReader, Viewport

SECONDS_AT_REST = 0.15
"""Seconds without movement after which a new slider position or window is read."""

ZOOM = 2.0


class Slicer(VBox):
    """A widget that shows one slice of a Dataset with its labels, in a window that can be dragged and zoomed.

    Only the visible window is read, at the resolution of the screen: first a coarse picture, then the sharp one, then
    those of the slices before and after. Reads that are no longer needed are cancelled.

    Args:
        ds: The Dataset. If it is a store with a pyramid, all its levels are used.
        z: The first slice to show; the middle slice if None.
        labels: The labels to show at first; all if None. The user can switch on the others.
        opacity: Initial opacity of the labels, 0 to 1.
        contrast: Initial percentiles of raw that are black and white.
        size: Width of the picture in pixels. The height follows from the shape of a slice.
    """

    def __init__(
        self,
        ds: xr.Dataset,
        z: int | None,
        labels: list[str] | None,
        opacity: float,
        contrast: tuple[float, float],
        size: int,
    ) -> None:
        self._levels = levels = Levels(ds)
        self._voxel_size = levels.voxel_size_nm
        self._lock = threading.RLock()
        self._reader = ProgressiveReader(levels, self._locked(self._take), self._locked(self._show_message))
        self._moved = _AtRest(self._locked(self._look))
        held = levels.held
        middle = (held.z_min + held.z_max) // 2
        self.z = IntSlider(middle if z is None else z, held.z_min, held.z_max - 1, description="z", layout=_wide())
        self.y, self.x = (
            BoundedIntText(min=low, max=high - 1, description=dim, tooltip=f"{dim} of the centre", layout=_narrow())
            for dim, low, high in (("y", held.y_min, held.y_max), ("x", held.x_min, held.x_max))
        )
        self.contrast = FloatRangeSlider(
            value=contrast, min=0, max=100, step=0.1, description="contrast %", readout_format=".1f", layout=_wide()
        )
        self.masks = {
            name: _MaskControls(
                name, color_of(ds[name]), legend_colors(ds[name]), labels is None or name in labels, opacity
            )
            for name in levels.labels
        }
        self.ruler = ToggleButton(description="Ruler", tooltip="drag to measure", layout=Layout(width="auto"))
        self.where, self.value, self.status = HTML(), HTML(), HTML()
        self._picture = Picture(size, (held.y_max - held.y_min) / (held.x_max - held.x_min), [*self.masks], self._lock)
        self._seen: dict[str, xr.DataArray] = {}
        self._is_dragged = self._is_telling = False
        self._measured_from: tuple[float, float] | None = None
        buttons = [
            self._button("Whole slice", lambda: self._show_window(None)),
            self._button("+", lambda: self._zoom(1 / ZOOM)),
            self._button("-", lambda: self._zoom(ZOOM)),
            self._button("Read again", self._look),
            self.ruler,
        ]
        rows = [[self.z, self.y, self.x], [self.contrast, *buttons], *(mask.controls for mask in self.masks.values())]
        told = VBox([self.where, self.value, self.status], layout=Layout(min_height="6em"))
        wrapped = Layout(flex_flow="row wrap", align_items="center")
        super().__init__([*(HBox(row, layout=wrapped) for row in rows), told, self._picture.canvas])
        with self._lock:
            self._show_window(None)
            self._watch()
            self._look()

    def go_to(self, z: int | None = None, y: Bounds = None, x: Bounds = None) -> None:
        """Show a slice and a window, given in voxels of the whole volume.

        Args:
            z: The slice; the current one if None.
            y: First row and end (exclusive), as a pair or a slice; all rows if None.
            x: First column and end (exclusive), as a pair or a slice; all columns if None.

        Raises:
            InvalidArgumentError: The slice or the window is not inside the Dataset. (ValueError)
        """
        window = check_bounds(y, x, self._levels.held)
        number = None if z is None else check_slice(z, self._levels.held)
        with self._lock:
            if number is not None:
                self.z.value = number
            self._show_window(window)

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Visible rows and columns: first and end (exclusive) of each."""
        axes, held = self._picture.axes, self._levels.held
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        return _whole(top, bottom, held.y_min, held.y_max), _whole(left, right, held.x_min, held.x_max)

    def close(self) -> None:
        """Cancel all reads and remove the widget."""
        self._moved.cancel()
        self._reader.close()
        super().close()

    def _locked(self, call: Callable[..., None]) -> Callable[..., None]:
        """Wrap a function so that it holds the lock while it runs.

        Messages of widgets arrive on one thread, cells run on another, and voxels arrive on many.
        """

        def locked(*arguments: Any) -> None:
            with self._lock:
                call(*arguments)

        return locked

    def _button(self, text: str, act: Callable[[], None]) -> Button:
        button = Button(description=text, layout=Layout(width="auto"))
        button.on_click(self._locked(lambda _: act()))
        return button

    def _watch(self) -> None:
        self.z.observe(self._locked(lambda _: self._turn()), "value")
        self.contrast.observe(self._locked(lambda _: self._draw_raw()), "value")
        for name, mask in self.masks.items():
            mask.on.observe(self._locked(lambda _: self._look()), "value")
            for control in (mask.on, mask.colour, mask.opacity):
                control.observe(self._locked(lambda _, name=name: self._draw_mask(name)), "value")
        self.ruler.observe(self._locked(lambda _: self._picture.draw_ruler([])), "value")
        for typed in (self.y, self.x):
            typed.observe(self._locked(lambda _: self._centre()), "value")
        axes, canvas = self._picture.axes, self._picture.canvas
        axes.callbacks.connect("xlim_changed", lambda _: self._moved.begin())
        axes.callbacks.connect("ylim_changed", lambda _: self._moved.begin())
        canvas.mpl_connect("scroll_event", self._scrolled)
        canvas.mpl_connect("button_press_event", self._pressed)
        canvas.mpl_connect("motion_notify_event", self._hovered)
        canvas.mpl_connect("button_release_event", self._released)

    def _turn(self) -> None:
        """Change to another slice, mark the picture of the previous slice as outdated, and show what is known."""
        self._seen.clear()
        self._picture.turn(self.z.value)
        self._moved.begin()
        self._reader.glance(self._viewport())

    def _centre(self) -> None:
        """Move the window to the centre that was typed."""
        if self._is_telling:
            return
        y, x = self._middle()
        self._move(self.y.value - y, self.x.value - x)

    def _middle(self) -> tuple[float, float]:
        """Return the place (y, x) in the middle of the picture; of an even number of voxels, the one after it."""
        axes = self._picture.axes
        return (sum(axes.get_ylim()) + 1) / 2, (sum(axes.get_xlim()) + 1) / 2

    def _move(self, down: float, right: float) -> None:
        axes = self._picture.axes
        axes.set(xlim=[at + right for at in axes.get_xlim()], ylim=[at + down for at in axes.get_ylim()])
        self._picture.canvas.draw_idle()

    def _hold(self) -> None:
        """Keep the middle of the picture inside the Dataset."""
        held, (y, x) = self._levels.held, self._middle()
        down, right = (
            min(max(at, low), high) - at for at, low, high in ((y, held.y_min, held.y_max), (x, held.x_min, held.x_max))
        )
        if down or right:
            self._move(down, right)

    def _zoom(self, factor: float, at: tuple[float, float] | None = None) -> None:
        """Scale the visible range by `factor`. The voxel `at`, (x, y), stays in place; by default the centre."""
        axes = self._picture.axes
        x, y = at or (sum(axes.get_xlim()) / 2, sum(axes.get_ylim()) / 2)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        if factor > 1 and self._is_whole():
            return
        axes.set_xlim(x + (left - x) * factor, x + (right - x) * factor)
        axes.set_ylim(y + (bottom - y) * factor, y + (top - y) * factor)
        self._hold()
        self._picture.canvas.draw_idle()

    def _is_whole(self) -> bool:
        """Return whether the picture is at least twice as large as the Dataset along both axes."""
        held, axes = self._levels.held, self._picture.axes
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        return right - left >= 2 * (held.x_max - held.x_min) and bottom - top >= 2 * (held.y_max - held.y_min)

    def _scrolled(self, event: Any) -> None:
        if event.inaxes is self._picture.axes:
            self._zoom(ZOOM ** (-event.step / 2), (event.xdata, event.ydata))

    def _pressed(self, event: Any) -> None:
        if event.inaxes is not self._picture.axes or event.button != MouseButton.LEFT:
            return
        if self.ruler.value:
            self._measured_from = event.xdata, event.ydata
        else:
            self._picture.axes.start_pan(event.x, event.y, event.button)
            self._is_dragged = True

    def _hovered(self, event: Any) -> None:
        """Drag the window, measure, or tell the voxel under the mouse."""
        if self._is_dragged:
            self._picture.axes.drag_pan(MouseButton.LEFT, None, event.x, event.y)
            self._hold()
            self._picture.canvas.draw_idle()
        if event.inaxes is not self._picture.axes:
            self.value.value = ""
        elif self._measured_from:
            ends = [self._measured_from, (event.xdata, event.ydata)]
            self._picture.draw_ruler(ends)
            self.value.value = self._length_of(*ends)
        else:
            self.value.value = html.escape(self._position(event.xdata, event.ydata))

    def _released(self, event: Any) -> None:
        if event.button != MouseButton.LEFT:
            return
        self._measured_from = None
        if self._is_dragged:
            self._is_dragged = False
            self._picture.axes.end_pan()

    def _length_of(self, begin: tuple[float, float], end: tuple[float, float]) -> str:
        """Return the text about a line between two places (x, y)."""
        right, down = (to - at for at, to in zip(begin, end, strict=True))
        if self._voxel_size is None:
            length = f"{math.hypot(down, right):.1f} px"
        else:
            _, y, x = self._voxel_size
            length = f"{math.hypot(down * y, right * x) / 1000:.3f} µm"
        places = (f"y {y:.0f}, x {x:.0f}" for x, y in (begin, end))
        return f"{length} from {' to '.join(places)}"

    def _show_window(self, window: tuple[tuple[int, int], tuple[int, int]] | None) -> None:
        held = self._levels.held
        rows, columns = window or ((held.y_min, held.y_max), (held.x_min, held.x_max))
        self._picture.axes.set(xlim=(columns[0] - 0.5, columns[1] - 0.5), ylim=(rows[1] - 0.5, rows[0] - 0.5))
        self._picture.canvas.draw_idle()

    def _look(self) -> None:
        """Read and show what is in the window now. Cached windows are not read again."""
        self._moved.cancel()
        viewport = self._viewport()
        (top, bottom), (left, right) = viewport.y, viewport.x
        self.where.value = f"z {viewport.z}, y {top} to {bottom}, x {left} to {right}"
        self._is_telling = True
        self.y.value, self.x.value = map(round, self._middle())
        self._is_telling = False
        self._picture.scale(self._voxel_size)
        self._reader.see(viewport)

    def _viewport(self) -> Viewport:
        names = [RAW, *(name for name, mask in self.masks.items() if mask.on.value)]
        return Viewport(self.z.value, *self.window, self._picture.pixels, tuple(names))

    def _show_message(self, viewport: Viewport, text: str) -> None:
        self.status.value = html.escape(text)

    def _take(self, viewport: Viewport, seen: xr.DataArray) -> None:
        """Show a window that was read; of another slice only raw, on the way to the slice that is chosen."""
        name = str(seen.name)
        if viewport.z != self.z.value:
            if name == RAW and self._moved.is_moving:
                self._picture.draw_raw(viewport.z, seen, self.contrast.value)
            return
        self._seen[name] = seen
        if name == RAW:
            self._draw_raw()
        else:
            self._draw_mask(name)

    def _draw_raw(self) -> None:
        if RAW in self._seen:
            self._picture.draw_raw(self.z.value, self._seen[RAW], self.contrast.value)

    def _draw_mask(self, name: str) -> None:
        mask = self.masks[name]
        seen = self._seen.get(name) if mask.on.value else None
        self._picture.draw_mask(name, seen, mask.colour.value, mask.opacity.value)

    def _position(self, x: float, y: float) -> str:
        """Return the text about the voxel under the mouse: its place, and values, with the voxels that they are of."""
        row, column = round(y), round(x)
        text, place = f"z {self.z.value}, y {row}, x {column}", ""
        for name in (RAW, *self.masks):
            seen = self._seen.get(name)
            at = _index_at(seen, row, column) if seen is not None else None
            if seen is None or at is None:
                continue
            is_one = seen.attrs["step"] == 1
            of = place if is_one else f"; {place_of(seen, *at)}"
            what = " (mean)" if not is_one and is_averaged(kind_of(seen), seen.dtype) else ""
            text += f"{of}: " if of != place or ": " not in text else ", "
            text += f"{name} {seen.values[at].item()}{what}"
            place = of
        return text


class _MaskControls:
    """Controls of a label: whether it is shown, its colour and its opacity.

    Instances have many colours, so some of these are shown in place of the choice of one.
    """

    def __init__(self, name: str, color: str, legend_colors: list[str], on: bool, opacity: float) -> None:
        self.on = Checkbox(on, description=name, indent=False, layout=Layout(width="8em"))
        self.colour = ColorPicker(concise=True, value=color, layout=Layout(width="3em"))
        self.opacity = FloatSlider(opacity, min=0, max=1, step=0.05, description="opacity", readout=False)
        has_one = len(legend_colors) == 1
        self.controls = [self.on, self.colour if has_one else _patch(legend_colors), self.opacity]


class _AtRest:
    """A timer that calls a function SECONDS_AT_REST after the last event."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: threading.Timer | None = None

    @property
    def is_moving(self) -> bool:
        """Whether the timer is running: there was an event less than SECONDS_AT_REST ago."""
        return self._timer is not None and self._timer.is_alive()

    def begin(self) -> None:
        """Register an event: restart the timer."""
        self.cancel()
        self._timer = threading.Timer(SECONDS_AT_REST, self._call)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Stop the timer without calling the function."""
        if self._timer:
            self._timer.cancel()


def _whole(low: float, high: float, least: int, most: int) -> tuple[int, int]:
    """Return the voxels between two limits of an axis as (first, exclusive end): at least one, inside least..most."""
    first = min(max(int(np.floor(low + 0.5)), least), most - 1)
    return first, min(max(int(np.ceil(high + 0.5)), first + 1), most)


def _patch(colors: list[str]) -> HTML:
    """Return a patch of several colours, as wide as a ColorPicker."""
    parts = "".join(f'<span style="flex: 1; background: {color}"></span>' for color in colors)
    patch = f'<div title="one colour per instance" style="display: flex; height: 1.6em; margin: 2px">{parts}</div>'
    return HTML(patch, layout=Layout(width="3em"))


def _index_at(seen: xr.DataArray, row: int, column: int) -> tuple[int, int] | None:
    """Return the index of the pixel of a window that shows a voxel, None if the voxel is not in the window."""
    step, (_, top, left) = seen.attrs["step"], seen.attrs["corner"]
    at = (row - top) // step, (column - left) // step
    return at if all(0 <= i < length for i, length in zip(at, seen.shape, strict=True)) else None


def _wide() -> Layout:
    return Layout(width="26em")


def _narrow() -> Layout:
    return Layout(width="12em")
