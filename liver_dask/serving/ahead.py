"""Reads the next slice while a viewer shows one: what it shows, at all scales that it will ask for."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..core.geometry import Shape
from .rows import RowReader
from .scales import ServedScale

SECONDS_AT_REST = 0.5
"""Seconds without a request after which the next slice is read."""


@dataclass
class _Shown:
    """The part of a slice that a viewer shows of a variable, as far as its requests tell.

    Attributes:
        factor: Factor of the finest scale that it asked for.
        rows: First row and end (exclusive), in voxels of the variable.
        columns: First column and end (exclusive), in voxels of the variable.
    """

    factor: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def add(self, other: "_Shown") -> "_Shown":
        """Return what is shown if both were asked for: the finer one, or both if they are of the same scale."""
        if self.factor != other.factor:
            return min(self, other, key=lambda shown: shown.factor)
        rows = min(self.rows[0], other.rows[0]), max(self.rows[1], other.rows[1])
        return _Shown(
            self.factor, rows, (min(self.columns[0], other.columns[0]), max(self.columns[1], other.columns[1]))
        )


def _union(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return min(one[0], other[0]), max(one[1], other[1])


@dataclass
class _Look:
    """What a viewer shows of a slice.

    Attributes:
        z: The slice.
        shown: By variable.
    """

    z: int
    shown: dict[str, _Shown] = field(default_factory=dict)


class ReaderAhead:
    """Reads ahead for one viewer; with several at once, for the one that asked last.

    Args:
        scales: The scales of each variable, from fine to coarse.
        readers: The readers of the variables.
    """

    def __init__(self, scales: dict[str, list[ServedScale]], readers: dict[str, RowReader]) -> None:
        self._scales, self._readers = scales, readers
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._pending = 0
        self._is_closed = False
        self._step = 1
        self._look: _Look | None = None
        self._is_at_rest = True
        self._reads: list[Future[Any]] = []
        self._read_z: int | None = None

    def begin(self, scale: ServedScale, chunk: Shape) -> None:
        """Note a request of a viewer. What is read ahead of another slice is cancelled."""
        z = chunk[0]
        with self._lock:
            self._pending += 1
            self._cancel_timer()
            if z != self._read_z:
                self._cancel_reads()
            if self._look is None or self._is_at_rest or z != self._look.z:
                if self._look and z != self._look.z:
                    self._step = 1 if z > self._look.z else -1
                self._look = _Look(z)
            self._is_at_rest = False
            rows, columns = scale.rows(chunk), scale.columns(chunk)
            now = _Shown(scale.factor, (int(rows[0]), int(rows[-1]) + 1), (columns.start, columns.stop))
            before = self._look.shown.get(scale.name)
            self._look.shown[scale.name] = before.add(now) if before else now

    def end(self, *, is_answered: bool) -> None:
        """Note that a request has ended; the next slice is read if no other follows, and somebody was there to see."""
        with self._lock:
            self._pending -= 1
            if is_answered and not self._pending and not self._is_closed:
                self._timer = threading.Timer(SECONDS_AT_REST, self._read)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Cancel what is read ahead, for good."""
        with self._lock:
            self._is_closed = True
            self._cancel_timer()
            self._cancel_reads()

    def _read(self) -> None:
        with self._lock:
            if self._pending or self._look is None or self._is_closed:
                return
            self._is_at_rest = True
            look, z = self._look, self._look.z + self._step
            if not all(0 <= z < self._scales[name][0].shape[0] for name in look.shown):
                return
            self._cancel_reads()
            self._read_z = z
            self._reads = [
                self._readers[name].ask(z, scale.rows(chunk), scale.columns(chunk), keep=False)
                for name, shown in look.shown.items()
                if self._readers[name].is_of_files  # what is computed is not cached
                for scale in self._scales[name]
                if scale.factor >= shown.factor
                for chunk in scale.chunks_of(z, shown.rows, shown.columns)
            ]

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _cancel_reads(self) -> None:
        for read in self._reads:
            read.cancel()
        self._reads, self._read_z = [], None
