"""Rows of the files of an archive that several variables of a job need: fetched and decoded once.

A model gets more rows than it predicts, and raw itself may be written, too. A job goes down the rows of its slices, so
of each slice only the rows are kept that the last one to read a new row has got: it needs most, and comes first.
"""

from collections import defaultdict
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..archive.lazy.lazy_window import Reader
from ..archive.lazy.window import Selection


class _Rows(NamedTuple):
    """Rows of a slice: the first one, the columns, and the voxels (y, x)."""

    first: int
    columns: range
    voxels: npt.NDArray[Any]

    @property
    def end(self) -> int:
        return self.first + len(self.voxels)


class SharedRows:
    """A reader that keeps the last rows of each slice; otherwise the same as the reader that it has.

    Args:
        read: The reader.
    """

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._kept: dict[int, _Rows] = {}
        self._locks: defaultdict[int, Lock] = defaultdict(Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedRows, (self._read,)

    @property
    def slices_at_once(self) -> int:
        """See Reader."""
        return self._read.slices_at_once

    @property
    def variant(self) -> str:
        """See Reader."""
        return self._read.variant

    def describe(self) -> str:
        """See Reader."""
        return self._read.describe()

    def origin(self) -> dict[str, Any] | None:
        """See Reader."""
        return self._read.origin()

    def probe(self, z: int) -> None:
        """See Reader."""
        self._read.probe(z)

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """See Reader."""
        return self._read.read_ahead(z, y)

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """See Reader."""
        if not (_is_run(y) and _is_run(x)):
            self._read(z, y, x, out)
            return
        for number, of_slice in zip(map(int, z), out, strict=True):
            rows, columns = (range(int(of[0]), int(of[-1]) + 1) for of in (y, x))
            with self._locks[number]:  # another thread may need the same slice, for its halo
                self._read_rows(number, rows, columns, of_slice)

    def _read_rows(self, z: int, rows: range, columns: range, out: npt.NDArray[Any]) -> None:
        kept = self._kept.get(z)
        if kept is None or not (kept.first <= rows.start <= kept.end and _contains(kept.columns, columns)):
            kept = _Rows(rows.start, columns, np.empty((0, len(columns)), out.dtype))
        if kept.end < rows.stop:
            voxels = np.empty((rows.stop - rows.start, len(kept.columns)), out.dtype)
            known = kept.voxels[rows.start - kept.first :]
            voxels[: len(known)] = known
            self._read(range(z, z + 1), range(kept.end, rows.stop), kept.columns, voxels[None, len(known) :])
            kept = _Rows(rows.start, kept.columns, voxels)
            self._kept[z] = kept
        top, left = rows.start - kept.first, columns.start - kept.columns.start
        out[...] = kept.voxels[top : top + len(rows), left : left + len(columns)]


def _contains(outer: range, inner: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def _is_run(selection: Selection) -> bool:
    return isinstance(selection, range) and selection.step == 1
