"""What somebody looks at, read on other threads: coarse first, then sharp; what is no longer looked at is given up."""

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
"""A coarse picture has so many times fewer rows and columns: 1 to 2 % of the bytes, and one round of requests."""

THREADS = 16
"""Raw, three masks, and what is still being given up of three looks before."""

KEPT_BYTES = 128 << 20
"""Of what was read sharp: some fifty slices of a window, so that whoever slides back waits for nothing."""

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Viewport:
    """What is to be seen.

    Attributes:
        z: The slice.
        y: First row, and the row after the last.
        x: First column, and the column after the last.
        pixels: Rows and columns of the screen.
        names: The variables to see.
    """

    z: int
    y: tuple[int, int]
    x: tuple[int, int]
    pixels: int
    names: tuple[str, ...]

    def key(self, name: str) -> Hashable:
        """What tells a variable of it from that of another look."""
        return name, self.z, self.y, self.x, self.pixels


class ProgressiveReader:
    """Reads one look at a time.

    Args:
        levels: Where to read.
        show: Gets the look, and the window of a variable: of raw first a coarse one, see its `attrs["step"]`, unless
            the sharp one is kept. Called on other threads, as the next is.
        tell: Gets a sentence: what goes on, what failed, or nothing when all is there.

    Attributes:
        idle: Set while nothing is being read.
    """

    def __init__(
        self, levels: Levels, show: Callable[[Viewport, xr.DataArray], None], tell: Callable[[Viewport, str], None]
    ) -> None:
        self._levels = levels
        self._show = show
        self._tell = tell
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
        """Read this from now on, and nothing else."""
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
        """Give up what is being read."""
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
        except RuntimeError:  # the interpreter ends, and takes on nothing: nobody is to wait for it
            task.done.set()

    def _guarded(self, task: "_Task", name: str, read: Callable[["_Task", str], None]) -> None:
        """Read something; whatever is wrong is told, and the viewer lives on."""
        try:
            with cancel_unless(lambda: self._task is task):
                read(task, name)
        except ReadCancelledError:
            pass
        except Exception as error:  # of whatever kind: whoever looks is told, and may look elsewhere
            log.info("%s", error, exc_info=error)
            task.failed = f"{error} Move, or look again, to try once more."
        with self._lock:
            task.left -= 1
            done = not task.left and self._task is task
        if done:
            task.done.set()
            self._tell(task.viewport, task.failed)
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
            with self._lock, suppress(ValueError):  # it is larger than all that may be kept
                self._kept[viewport.key(name)] = read
        if self._task is task:
            self._show(viewport, read)

    def _report(self, task: "_Task") -> None:
        """Say how far a slow look is."""
        began, before = monotonic(), traffic.bytes
        while self._task is task and not task.done.wait(SECONDS_BETWEEN_REPORTS):
            if self._task is task:
                got = traffic.bytes - before
                fetched = f", {decimal(got)} fetched" if got else ""
                self._tell(task.viewport, f"Reading z {task.viewport.z}: {monotonic() - began:.0f} s{fetched}")


class _Task:
    """A look that is being read."""

    def __init__(self, viewport: Viewport) -> None:
        self.viewport = viewport
        self.left = 0
        self.failed = ""
        self.done = threading.Event()


def _in_memory(variable: xr.DataArray) -> xr.DataArray:
    """Read it: of the archive in one go on this thread, which can be given up; of anything else as xarray does."""
    lazy = variable.data.lazy if isinstance(variable.variable._data, VolumeArray) else None
    if lazy:
        return variable.copy(data=lazy[(slice(None),) * lazy.ndim])
    return variable.compute()
