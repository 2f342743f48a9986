"""The slicer: a widget that shows a volume slice by slice.

Importing this module needs the extra `view`. `liver_dask.viewing.view` creates the widget.
"""

import html
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import xarray as xr
from ipywidgets import HTML, Button, HBox, Layout, ToggleButton, VBox
from matplotlib.backend_bases import MouseButton

from ..archive.archives import color_of
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS
from ..core.kinds import RAW, kind_of
from ..store.columns import is_averaged
from .controls import MaskControls, PositionControls, contrast_control
from .figures import legend_colors
from .levels import MOST_ACROSS, Levels, Place, index_of, place_of
from .picture import Picture
from .planes import PLANES, XY, Bounds, Span, check_bounds, check_slice
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
        self._lock = threading.RLock()
        self._reader = ProgressiveReader(levels, self._locked(self._take), self._locked(self._show_message))
        self._moved = _AtRest(self._locked(self._look))
        held = levels.held
        self._position = PositionControls(held, levels.planes)
        self.z, self.y, self.x = self._position.sliders.values()
        self.plane = self._position.plane
        if z is not None:
            self.z.value = z
        self.contrast = contrast_control(contrast)
        self.masks = {
            name: MaskControls(
                name, color_of(ds[name]), legend_colors(ds[name]), labels is None or name in labels, opacity
            )
            for name in levels.labels
        }
        self.ruler = ToggleButton(description="Ruler", tooltip="drag to measure", layout=Layout(width="auto"))
        self.where, self.value, self.status = HTML(), HTML(), HTML()
        self._picture = Picture(size, held, levels.voxel_size_nm, [*self.masks], self._lock)
        self._seen: dict[str, xr.DataArray] = {}
        self._raw_of: Viewport | None = None  # the viewport whose raw is in `_seen`
        self._is_dragged = self._is_telling = False
        self._measured_from: tuple[float, float] | None = None
        self._pointed_at: tuple[float, float] | None = None  # the place (x, y) under the mouse
        self._chosen: dict[str, int] = {}  # the last slice in each plane, by the axis across it
        buttons = [
            self._button("Whole slice", lambda: self._picture.show_window(None, None)),
            self._button("+", lambda: self._picture.zoom(1 / ZOOM)),
            self._button("-", lambda: self._picture.zoom(ZOOM)),
            self._button("Read again", self._look),
            self.ruler,
        ]
        rows = [
            [self.z, self.y, self.x],
            [self.plane, *buttons],
            [self.contrast],
            *(mask.controls for mask in self.masks.values()),
        ]
        told = VBox([self.where, self.value, self.status], layout=Layout(min_height="8.5em"))
        wrapped = Layout(flex_flow="row wrap", align_items="center")
        super().__init__([*(HBox(row, layout=wrapped) for row in rows), told, self._picture.canvas])
        with self._lock:
            self._position.face(XY)
            self._watch()
            self._look()

    def go_to(
        self, z: int | Bounds = None, y: int | Bounds = None, x: int | Bounds = None, *, plane: str | None = None
    ) -> None:
        """Show a slice and a window, given in voxels of the whole volume.

        Args:
            z: In xy: the slice; the current one if None. In the other planes a range: first and end (exclusive), as a
                pair or a slice; all slices if None.
            y: In xz the slice; in the other planes a range of rows.
            x: In yz the slice; in the other planes a range of columns.
            plane: "xy", "xz" (z runs down) or "yz" (z runs to the right); the current plane if None.

        Raises:
            InvalidArgumentError: The slice or the window is not inside the Dataset, there is no such plane, or too many
                slices of an archive would be read for it. (ValueError)
        """
        chosen = self.plane.value if plane is None else self._check_plane(plane)
        across, rows, columns = PLANES[chosen]
        given, held = {"z": z, "y": y, "x": x}, self._levels.held
        spans = [check_bounds(dim, given[dim], held) for dim in (rows, columns)]  # type: ignore[arg-type]  # a lone number is refused there
        at = None if given[across] is None else check_slice(across, given[across], held)
        with self._lock:
            self.plane.value = chosen
            if at is not None:
                self._position.sliders[across].value = at
            self._picture.show_window(*spans)

    def _check_plane(self, plane: str) -> str:
        if not isinstance(plane, str) or plane not in PLANES:
            raise InvalidArgumentError(f"plane={plane!r} must be one of {', '.join(PLANES)}.")
        if plane not in self._levels.planes:
            raise InvalidArgumentError(
                f"plane={plane!r} would read rows of every slice; show at most {MOST_ACROSS} slices of an archive "
                "(ds.isel(z=slice(280, 320))), or a store."
            )
        return plane

    @property
    def window(self) -> tuple[Span, Span]:
        """Visible rows and columns: first and end (exclusive) of each."""
        return self._picture.window

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
        self.plane.observe(self._locked(lambda _: self._face()), "value")
        for dim, slider in self._position.sliders.items():
            slider.observe(self._locked(lambda _, dim=dim: self._slid(dim)), "value")
        self.contrast.observe(self._locked(lambda _: self._draw_raw()), "value")
        for name, mask in self.masks.items():
            mask.on.observe(self._locked(lambda _: self._look()), "value")
            for control in (mask.on, mask.colour, mask.opacity):
                control.observe(self._locked(lambda _, name=name: self._draw_mask(name)), "value")
        self.ruler.observe(self._locked(lambda _: self._measure_nothing()), "value")
        axes, canvas = self._picture.axes, self._picture.canvas
        axes.callbacks.connect("xlim_changed", lambda _: self._moved.begin())
        axes.callbacks.connect("ylim_changed", lambda _: self._moved.begin())
        canvas.mpl_connect("scroll_event", self._scrolled)
        canvas.mpl_connect("button_press_event", self._pressed)
        canvas.mpl_connect("motion_notify_event", self._hovered)
        canvas.mpl_connect("button_release_event", self._released)

    def _slid(self, dim: str) -> None:
        """Follow a slider: to another slice, or with the centre of the window."""
        if self._is_telling:
            return
        if dim == self._picture.plane.across:
            self._turn()
        else:
            middle, (_, rows, columns) = self._picture.middle, self._picture.plane
            down, right = (
                self._position.sliders[of].value - at for of, at in zip((rows, columns), middle, strict=True)
            )
            self._picture.move(down, right)

    def _turn(self) -> None:
        """Change to another slice, mark the picture of the previous slice as outdated, and show what is known."""
        self._seen.clear()
        self._tell()
        self._picture.turn(self._at)
        self._moved.begin()
        self._reader.glance(self._viewport())

    def _face(self) -> None:
        """Change to another plane.

        Its slice is the one that was chosen in it before if the picture shows it, otherwise the one in the middle.
        """
        before, plane, slider = self._picture.plane, PLANES[self.plane.value], self._position.sliders
        self._chosen[before.across] = self._at
        shown = self.window[before.index(plane.across) - 1]
        middle = self._picture.middle[before.index(plane.across) - 1]
        at = self._chosen.get(plane.across, -1)
        with self._telling():
            slider[plane.across].value = at if shown[0] <= at < shown[1] else round(middle)
        self._pointed_at = None
        self._tell()
        self._picture.face(plane, self._chosen[before.across])
        self._position.face(plane)
        self._seen.clear()
        self._picture.turn(self._at)
        self._look()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Let sliders tell a place, and not be followed, within the context."""
        self._is_telling = True
        try:
            yield
        finally:
            self._is_telling = False

    @property
    def _at(self) -> int:
        """The slice: its position along the axis across the plane."""
        return int(self._position.sliders[self._picture.plane.across].value)

    def _scrolled(self, event: Any) -> None:
        if event.inaxes is self._picture.axes:
            self._picture.zoom(ZOOM ** (-event.step / 2), (event.xdata, event.ydata))

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
            self._picture.hold()
            self._picture.canvas.draw_idle()
        is_inside = event.inaxes is self._picture.axes
        self._pointed_at = (event.xdata, event.ydata) if is_inside else None
        if self._measured_from and self._pointed_at:
            ends = [self._measured_from, self._pointed_at]
            self._picture.draw_ruler(ends)
            self.value.value = self._picture.length_of(*ends)
        else:
            self._tell()

    def _tell(self) -> None:
        """Tell the voxel under the mouse."""
        self.value.value = html.escape(self._told_of(*self._pointed_at)) if self._pointed_at else ""

    def _measure_nothing(self) -> None:
        """Remove the ruler and its length."""
        self._picture.draw_ruler([])
        self._tell()

    def _released(self, event: Any) -> None:
        if event.button != MouseButton.LEFT:
            return
        self._measured_from = None
        if self._is_dragged:
            self._is_dragged = False
            self._picture.axes.end_pan()

    def _look(self) -> None:
        """Read and show what is in the window now. Cached windows are not read again."""
        self._moved.cancel()
        viewport, plane = self._viewport(), self._picture.plane
        (top, bottom), (left, right) = viewport.rows, viewport.columns
        self.where.value = (
            f"{plane.across} {viewport.at}, {plane.rows} {top} to {bottom}, {plane.columns} {left} to {right}"
        )
        with self._telling():
            for dim, middle in zip(plane[1:], self._picture.middle, strict=True):
                self._position.sliders[dim].value = round(middle)
        self._picture.scale()
        self._reader.see(viewport)

    def _viewport(self) -> Viewport:
        names = [RAW, *(name for name, mask in self.masks.items() if mask.on.value)]
        return Viewport(self._at, *self.window, self._picture.pixels, tuple(names), self._picture.plane)

    def _show_message(self, viewport: Viewport, text: str) -> None:
        self.status.value = html.escape(text)

    def _take(self, viewport: Viewport, seen: xr.DataArray) -> None:
        """Show a window that was read; of another slice only raw, on the way to the slice that is chosen."""
        name = str(seen.name)
        if viewport.plane != self._picture.plane:
            return
        if viewport.at != self._at:
            if name == RAW and self._moved.is_moving:
                self._seen.clear()
                for mask in self.masks:
                    self._draw_mask(mask)
                self._picture.draw_raw(viewport.at, seen, self.contrast.value)
            return
        if name == RAW and RAW in self._seen and self._is_coarser(viewport, seen):
            return  # a glance that was late
        self._seen[name] = seen
        if name == RAW:
            self._raw_of = viewport
            self._draw_raw()
        for mask in self.masks if name == RAW else [name]:
            self._draw_mask(mask)
        if not self._measured_from:
            self._tell()

    def _is_coarser(self, viewport: Viewport, seen: xr.DataArray) -> bool:
        """Return whether raw of a viewport is coarser than what is shown of the same window."""
        is_same = self._raw_of is not None and replace(self._raw_of, names=viewport.names) == viewport
        return is_same and max(seen.attrs["step"]) > max(self._seen[RAW].attrs["step"])

    def _draw_raw(self) -> None:
        if RAW in self._seen:
            self._picture.draw_raw(self._at, self._seen[RAW], self.contrast.value)

    def _draw_mask(self, name: str) -> None:
        mask = self.masks[name]
        is_shown = mask.on.value and RAW in self._seen  # otherwise it would be over raw of another slice
        seen = self._seen.get(name) if is_shown else None
        self._picture.draw_mask(name, seen, mask.colour.value, mask.opacity.value)

    def _told_of(self, x: float, y: float) -> str:
        """Return the text about the voxel under the mouse: its place, and values, with the voxels that they are of."""
        row, column = round(y), round(x)
        at = dict(zip(self._picture.plane, (self._at, row, column), strict=True))
        here = Place(*((at[dim], at[dim] + 1) for dim in DIMS))
        text, named = str(here), ""
        for name in (RAW, *self.masks):
            seen = self._seen.get(name)
            index = index_of(seen, row, column) if seen is not None else None
            if seen is None or index is None:
                continue
            place = place_of(seen, *index)
            of = "" if place == here else f"; {place}"
            what = " (mean)" if not place.is_one and is_averaged(kind_of(seen), seen.dtype) else ""
            text += f"{of}: " if of != named or ": " not in text else ", "
            text += f"{name} {seen.values[index].item()}{what}"
            named = of
        return text


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
