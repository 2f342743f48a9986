"""Background reader of a viewport: first coarse, then sharp, then the slices beside it.

It cancels reads of viewports that are no longer shown.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

import cachetools
import xarray as xr
from rich.filesize import decimal

from ..archive.lazy.arrays import in_memory
from ..core.kinds import RAW
from ..core.metrics import traffic
from ..core.threads import ContextPool, ReadCancelledError, cancel_unless
from .levels import Levels, variable_of
from .planes import XY, Plane, Span, held_along

log = logging.getLogger(__name__)

COARSER = 8
"""Factor by which a coarse picture has fewer rows and columns: 1 to 2 % of the bytes, and one round of requests."""

THREADS = 16
"""Number of threads: enough for raw and three masks, and for reads of three earlier viewports not yet cancelled."""

KEPT_BYTES = 128 << 20
"""Cache size in bytes for sharp windows: about fifty slices of a window, so that sliding back needs no reads."""

AHEAD = 1
"""Number of slices before and behind a shown one that are read once it is sharp."""

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Viewport:
    """A window of a slice to show.

    Attributes:
        at: The slice: its position along the axis across the plane.
        rows: First row and end (exclusive).
        columns: First column and end (exclusive).
        pixels: Maximum number of rows and columns on the screen.
        names: The variables to show.
        plane: The orientation.
    """

    at: int
    rows: Span
    columns: Span
    pixels: int
    names: tuple[str, ...]
    plane: Plane = XY

    def key(self, name: str, is_sharp: bool = True) -> Hashable:
        """Return the cache key of a variable in this viewport."""
        return name, self.at, self.plane, self.rows, self.columns, self.pixels, is_sharp


class ProgressiveReader:
    """Reader of one viewport at a time.

    Args:
        levels: The Dataset to read from, at all resolutions.
        show: Called with the viewport and the window of a variable, in any order. For raw, it is first called with a
            coarse window, see its `attrs["step"]`, unless the sharp window is cached. Called on other threads.
        notify: Called with the viewport and a text: the progress, an error message, or an empty text when everything is
            read. Called on other threads.

    Attributes:
        idle: Set while nothing is being read.
    """

    def __init__(
        self,
        levels: Levels,
        show: Callable[[Viewport, xr.DataArray], None],
        notify: Callable[[Viewport, str], None],
    ) -> None:
        self._levels = levels
        self._show = show
        self._notify = notify
        self._pool = ContextPool(THREADS, "liver_dask-view")
        self._lock = threading.Lock()
        self._task: _Task | None = None
        self._glance: Viewport | None = None  # the next one
        self._is_glancing = False
        self._is_closed = False
        self._kept: cachetools.LRUCache[Hashable, xr.DataArray] = cachetools.LRUCache(
            KEPT_BYTES, getsizeof=lambda seen: seen.nbytes
        )
        self.idle = threading.Event()
        self.idle.set()

    def see(self, viewport: Viewport) -> None:
        """Start to read a viewport, and cancel the reads of the previous one."""
        with self._lock:
            if self._is_closed:
                return
            forward = 1 if self._task is None or viewport.at >= self._task.viewport.at else -1
            self._task = task = _Task(viewport, forward)
            self._glance = None
            self.idle.clear()
        is_coarse_first = viewport.key(RAW) not in self._kept
        self._begin(
            task,
            {name: self._show_raw if name == RAW and is_coarse_first else self._show_sharp for name in viewport.names},
        )
        with suppress(RuntimeError):  # closed, or the interpreter exits
            self._pool.submit(self._report, task)

    def glance(self, viewport: Viewport) -> None:
        """Show raw of a viewport that is about to change, coarse unless it is known.

        One is read at a time, and then the latest of those that came since.
        """
        with self._lock:
            self._glance = viewport
            if self._is_glancing or self._is_closed:
                return
            self._is_glancing = True
        with suppress(RuntimeError):  # closed, or the interpreter exits
            self._pool.submit(self._show_glances)

    def close(self) -> None:
        """Cancel all reads."""
        with self._lock:
            self._task, self._glance, self._is_closed = None, None, True
            self.idle.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, task: "_Task", reads: Mapping[str, Callable[["_Task", str], None]]) -> None:
        """Read variables, all at once: masks arrive while raw waits for its strip index."""
        with self._lock:
            task.left = len(reads)
        try:
            for name, read in reads.items():
                self._pool.submit(self._guarded, task, name, read)
        except RuntimeError:  # the interpreter exits and accepts no tasks: stop the progress report
            task.done.set()

    def _guarded(self, task: "_Task", name: str, read: Callable[["_Task", str], None]) -> None:
        """Read a variable; any error is passed to `tell`, and the reader stays usable."""
        try:
            with cancel_unless(lambda: self._task is task):
                read(task, name)
        except ReadCancelledError:
            pass
        except Exception as error:  # of any kind: the user sees the message, and may move to another place
            log.info("%s", error, exc_info=error)
            task.failed = f'{error} Move, or press "Read again", to try once more.'
        with self._lock:
            task.left -= 1
            done = not task.left and self._task is task
        if done:
            task.done.set()
            try:
                self._notify(task.viewport, task.failed)
            finally:
                self.idle.set()
            if not task.failed:
                with suppress(RuntimeError):  # closed
                    self._pool.submit(self._read_ahead, task)

    def _show_raw(self, task: "_Task", name: str) -> None:
        self._show_if_seen(task, self._window(task.viewport, name, is_sharp=False))
        self._show_sharp(task, name)

    def _show_sharp(self, task: "_Task", name: str) -> None:
        self._show_if_seen(task, self._window(task.viewport, name))

    def _show_if_seen(self, task: "_Task", seen: xr.DataArray) -> None:
        if self._task is task:
            self._show(task.viewport, seen)

    def _show_glances(self) -> None:
        while True:
            with self._lock:
                viewport, self._glance = self._glance, None
                if viewport is None or self._is_closed:
                    self._is_glancing = False
                    return
                task = self._task
            if task:
                self._show_glance(task, viewport)

    def _show_glance(self, task: "_Task", viewport: Viewport) -> None:
        with suppress(Exception), cancel_unless(lambda: self._task is task):  # `see` tells its errors
            seen = self._window(viewport, RAW, is_sharp=viewport.key(RAW) in self._kept)
            if self._task is task:
                self._show(viewport, seen)

    def _read_ahead(self, task: "_Task") -> None:
        """Read the slices beside a viewport that is shown, the one in the direction of the last step first."""
        low, high = held_along(self._levels.held, task.viewport.plane.across)
        steps = [step for i in range(1, AHEAD + 1) for step in (i * task.forward, -i * task.forward)]
        beside = [replace(task.viewport, at=task.viewport.at + step) for step in steps]
        with suppress(Exception), cancel_unless(lambda: self._task is task):  # `see` tells its errors
            for viewport in (viewport for viewport in beside if low <= viewport.at < high):
                for name in viewport.names:
                    if name == RAW:
                        self._window(viewport, name, is_sharp=False)
                    self._window(viewport, name)

    def _window(self, viewport: Viewport, name: str, is_sharp: bool = True) -> xr.DataArray:
        """Return a variable in a viewport, from the cache if it is there."""
        key = viewport.key(name, is_sharp)
        with self._lock:
            read = self._kept.get(key)
        if read is None:
            pixels = viewport.pixels if is_sharp else viewport.pixels // COARSER
            seen = self._levels.window(viewport.at, viewport.rows, viewport.columns, pixels, viewport.plane)
            read = in_memory(variable_of(seen, name))
            with self._lock, suppress(ValueError):  # raised if it is larger than the cache
                self._kept[key] = read
        return read

    def _report(self, task: "_Task") -> None:
        """Report the progress of a slow viewport regularly: seconds and fetched bytes."""
        began, before = monotonic(), traffic.bytes
        while self._task is task and not task.done.wait(SECONDS_BETWEEN_REPORTS):
            if self._task is task:
                got = traffic.bytes - before
                fetched = f", {decimal(got)} fetched" if got else ""
                self._notify(
                    task.viewport,
                    f"Reading {task.viewport.plane.across} {task.viewport.at}: {monotonic() - began:.0f} s{fetched}",
                )


class _Task:
    """A viewport that is being read.

    Attributes:
        viewport: The viewport.
        forward: Direction of the step to it across the plane, 1 or -1.
        left: Number of reads that are not finished.
        failed: Error message of a failed read; empty if there is none.
        done: Set when all reads are finished.
    """

    def __init__(self, viewport: Viewport, forward: int) -> None:
        self.viewport = viewport
        self.forward = forward
        self.left = 0
        self.failed = ""
        self.done = threading.Event()
