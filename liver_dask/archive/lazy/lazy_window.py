"""A window of a volume with the reader of its voxels, which dask tasks index."""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from dask.system import CPU_COUNT

from ...core.threads import ContextPool, wait_for_result
from .breadth import across
from .window import Selection, Window

INTERACTIVE_BYTES = 24 << 20
"""Bytes of voxels up to which an array is a viewport.

All of a viewport is read at once, and stays cached for a user who returns to it.
"""


READS_OF_A_VIEWPORT = 16
"""Number of blocks of a viewport that are read in parallel."""


class Reader(Protocol):
    """Reads voxels of one variable; small and picklable."""

    @property
    def slices_at_once(self) -> int:
        """Number of slices that one call should read."""

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """Read voxels at the given indexes, none of them empty, into `out`, (len(z), len(y), len(x))."""

    def describe(self) -> str:
        """Return which variable of which source this is; the text is the same in every process."""

    @property
    def variant(self) -> str:
        """How this reader may differ from others that read the same voxels: what it does where voxels are missing."""

    def origin(self) -> dict[str, Any] | None:
        """Return the variable and source as JSON from which they can be opened again; None if that is impossible."""

    def probe(self, z: int) -> None:
        """Check that a slice exists and is as expected, without reading it."""

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """Announce that all these rows will be read within the context, one part after the other."""


@runtime_checkable
class SlicedReader(Reader, Protocol):
    """Reads slice by slice; what is needed to read parts of a slice can be prepared once for all processes."""

    def prepare(self, z: int, start: int, stop: int) -> Any:
        """Return what is needed to read rows `start` to `stop` of a slice; it is picklable and small."""

    def __call__(
        self,
        z: Selection,
        y: Selection,
        x: Selection,
        out: npt.NDArray[Any],
        prepared: Sequence[Any] = (),
    ) -> None:
        """Read voxels, see Reader; `prepared` holds what was prepared for each slice, or nothing."""


@dataclass(frozen=True)
class LazyWindow:
    """A window with its reader. A dask task indexes this object to get voxels."""

    read: Reader
    window: Window
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.window.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.window.axes)

    @property
    def nbytes(self) -> int:
        """Size of all voxels in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        """Read what `key` selects, see Window."""
        return self._read(self.window[key])

    def prepare(self, z: int) -> Any:
        """Return what is needed to read rows of slice `z` of this window; the reader must be a SlicedReader."""
        assert isinstance(self.read, SlicedReader)
        zs, ys, _ = self.window.selections
        return self.read.prepare(int(zs[z]), int(min(ys)), int(max(ys)) + 1)

    def read_prepared(self, key: tuple[slice, ...], prepared: Sequence[Any]) -> npt.NDArray[Any]:
        """Read what `key` selects; `prepared` holds what was prepared for each of its slices, or nothing."""
        return self._read(self.window[key], *([prepared] if prepared else []))

    def _read(self, window: Window, *prepared: Sequence[Any]) -> npt.NDArray[Any]:
        out = np.empty([len(selection) for selection in window.selections], self.dtype)
        if out.size:
            with across(len(self.window.selections[0])):
                self.read(*window.selections, out, *prepared)
        return out.reshape(window.shape)

    def read_side_by_side(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        """Read what `key` selects, see Window, with several slices in parallel."""
        part = LazyWindow(self.read, self.window[key], self.dtype)
        out = np.empty([len(selection) for selection in part.window.selections], self.dtype)
        if out.size:
            whole = Window(part.window.selections)
            with across(len(out)), ContextPool(reads_at_once(out.nbytes)) as pool:
                LazyWindow(self.read, whole, self.dtype).read_slices(slice(None), pool, out)
        return out.reshape(part.shape)

    def read_slices(self, rows: slice, pool: Executor, out: npt.NDArray[Any]) -> None:
        """Read some rows of all slices in parallel into `out`, (z, y, x); the window must have all three axes."""
        z, y, x = self.window.selections
        count = self.read.slices_at_once
        reads = [
            pool.submit(self.read, z[i : i + count], y[rows], x, out[i : i + count]) for i in range(0, len(z), count)
        ]
        try:
            for read in reads:
                wait_for_result(read)
        finally:
            for read in reads:
                read.cancel()

    def describe(self) -> str:
        """Return a text that identifies the voxels: it is the same for the same voxels of a source in every process."""
        selections = (
            f"{s.start}:{s.stop}:{s.step}" if isinstance(s, range) else hashlib.sha256(s.tobytes()).hexdigest()[:16]
            for s in self.window.selections
        )
        return f"{self.read.describe()} [{', '.join(selections)}]"

    def origin(self) -> dict[str, Any] | None:
        """Return JSON from which these voxels can be opened again.

        It is None for lists of indexes, or if the source cannot be opened again.
        """
        ranges = [selection for selection in self.window.selections if isinstance(selection, range)]
        source = self.read.origin()
        if len(ranges) < 3 or source is None:
            return None
        at = {dim: [r.start, r.stop, r.step] for dim, r in zip("zyx", ranges, strict=True)}
        return source | at

    def __dask_tokenize__(self) -> Any:
        """Return the same token for the same voxels."""
        return self.describe(), self.window.axes, self.read.variant


def reads_at_once(size: int) -> int:
    """Return how many blocks to read in parallel, for voxels of `size` bytes in total."""
    return READS_OF_A_VIEWPORT if size <= INTERACTIVE_BYTES else CPU_COUNT
