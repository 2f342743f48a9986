"""Background reader of a viewport: first coarse, then sharp. It cancels reads of viewports that are no longer shown."""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import cachetools
import xarray as xr
from rich.filesize import decimal

from ..archive.lazy.arrays import VolumeArray
from ..core.kinds import RAW
from ..core.metrics import traffic
from ..core.threads import ContextPool, ReadCancelledError, cancel_unless
from .figures import Levels

log = logging.getLogger(__name__)

COARSER = 8
"""Factor by which a coarse picture has fewer rows and columns: 1 to 2 % of the bytes, and one round of requests."""

THREADS = 16
"""Number of threads: enough for raw and three masks, and for reads of three earlier viewports not yet cancelled."""

KEPT_BYTES = 128 << 20
"""Cache size in bytes for sharp windows: about fifty slices of a window, so that sliding back needs no reads."""

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Viewport:
    """A window of a slice to show.

    Attributes:
        z: The slice.
        y: First row and end (exclusive).
        x: First column and end (exclusive).
        pixels: Maximum number of rows and columns on the screen.
        names: The variables to show.
    """

    z: int
    y: tuple[int, int]
    x: tuple[int, int]
    pixels: int
    names: tuple[str, ...]

    def key(self, name: str) -> Hashable:
        """Return the cache key of a variable in this viewport."""
        return name, self.z, self.y, self.x, self.pixels


class ProgressiveReader:
    """Reader of one viewport at a time.

    Args:
        levels: The Dataset to read from, at all resolutions.
        show: Called with the viewport and the window of a variable. For raw, it is first called with a coarse window,
            see `attrs["step"]` of the window, unless the sharp window is cached. Called on other threads.
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
            self._task = task = _Task(viewport)
            self.idle.clear()
        if RAW in viewport.names and viewport.key(RAW) not in self._kept:
            self._begin(task, [RAW], self._read_raw)
        else:
            self._begin(task, viewport.names, self._read_sharp)
        self._pool.submit(self._report, task)

    def close(self) -> None:
        """Cancel all reads."""
        with self._lock:
            self._task, self._is_closed = None, True
            self.idle.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, task: "_Task", names: Sequence[str], read: Callable[["_Task", str], None]) -> None:
        with self._lock:
            task.left += len(names)
        try:
            for name in names:
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
            self._notify(task.viewport, task.failed)
            self.idle.set()

    def _read_raw(self, task: "_Task", name: str) -> None:
        self._read(task, name, task.viewport.pixels // COARSER, sharp=False)
        self._begin(task, [other for other in task.viewport.names if other != name], self._read_sharp)
        self._read_sharp(task, name)

    def _read_sharp(self, task: "_Task", name: str) -> None:
        self._read(task, name, task.viewport.pixels, sharp=True)

    def _read(self, task: "_Task", name: str, pixels: int, *, sharp: bool) -> None:
        viewport = task.viewport
        with self._lock:
            read = self._kept.get(viewport.key(name)) if sharp else None
        if read is None:
            seen = self._levels.window(viewport.z, viewport.y, viewport.x, pixels)
            read = _in_memory(seen[name].assign_attrs(step=seen.attrs["step"]))
        if sharp:
            with self._lock, suppress(ValueError):  # raised if it is larger than the cache
                self._kept[viewport.key(name)] = read
        if self._task is task:
            self._show(viewport, read)

    def _report(self, task: "_Task") -> None:
        """Report the progress of a slow viewport regularly: seconds and fetched bytes."""
        began, before = monotonic(), traffic.bytes
        while self._task is task and not task.done.wait(SECONDS_BETWEEN_REPORTS):
            if self._task is task:
                got = traffic.bytes - before
                fetched = f", {decimal(got)} fetched" if got else ""
                self._notify(task.viewport, f"Reading z {task.viewport.z}: {monotonic() - began:.0f} s{fetched}")


class _Task:
    """A viewport that is being read.

    Attributes:
        viewport: The viewport.
        left: Number of reads that are not finished.
        failed: Error message of a failed read; empty if there is none.
        done: Set when all reads are finished.
    """

    def __init__(self, viewport: Viewport) -> None:
        self.viewport = viewport
        self.left = 0
        self.failed = ""
        self.done = threading.Event()


def _in_memory(variable: xr.DataArray) -> xr.DataArray:
    """Read a variable into memory.

    Voxels of the archive are read in one call on this thread, so that the read can be cancelled. Everything else is
    computed by xarray.
    """
    lazy = variable.data.lazy if isinstance(variable.variable._data, VolumeArray) else None
    if lazy:
        return variable.copy(data=lazy[(slice(None),) * lazy.ndim])
    return variable.compute()
