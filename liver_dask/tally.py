"""How often the rows of the archive's files are read, counted before they are."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import volume
from .graphs import Read


@dataclass
class Tally:
    """What is read of files, in rows; of a mask all down to the last that is needed, once a job.

    Attributes:
        last: By variable of the archive, the last row and column that are read, plus one.
    """

    last: dict[str, tuple[int, int]] = field(default_factory=dict)
    _read: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _rows: dict[Any, npt.NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def times(self) -> Mapping[str, float]:
        """How often each variable is read."""
        return {variable: self._read[variable] / self.files(variable)[1] for variable in self.last}

    @property
    def most(self) -> float:
        """How often that is read which is read most often."""
        return max(self.times.values(), default=1.0)

    def files(self, variable: str) -> tuple[int, int]:
        """How many files of a variable are read, and how many rows of them, each counted once."""
        files: dict[str, npt.NDArray[np.bool_]] = {}
        for reader, rows in self._rows.items():
            if reader.variable == variable:
                files[reader.files] = rows | files.get(reader.files, rows)
        return sum(int(rows.any(1).sum()) for rows in files.values()), sum(int(rows.sum()) for rows in files.values())

    def see(self, reads: Iterable[Read]) -> None:
        """Take note of what is read at all."""
        for read in reads:
            reader, (z, y, x) = _reader(read), map(np.asarray, read.window.selections)
            if not read.nbytes:
                continue
            if reader not in self._rows:
                self._rows[reader] = np.zeros(reader.shape[:2], bool)
            bottom, right = int(y.max()) + 1, int(x.max()) + 1
            self._rows[reader][np.ix_(z, np.arange(bottom) if _is_mask(reader) else y)] = True
            rows, columns = self.last.get(reader.variable, (0, 0))
            self.last[reader.variable] = max(rows, bottom), max(columns, right)

    def add(self, reads: Iterable[tuple[Read, int]], jobs: float = 1) -> None:
        """Take note of what one job reads, or so many that are alike, and how often."""
        prefixes: dict[tuple[Any, int], int] = {}
        for read, times in reads:
            reader, (z, y, _) = _reader(read), read.window.selections
            if not _is_mask(reader):
                self._read[reader.variable] += jobs * times * len(z) * len(y)
                continue
            for number in map(int, z if read.nbytes else ()):
                prefixes[reader, number] = max(prefixes.get((reader, number), 0), int(max(y)) + 1)
        for (reader, _), rows in prefixes.items():
            self._read[reader.variable] += jobs * rows


def _reader(read: Read) -> Any:
    """The archive's, of whose files a store is made."""
    return read.lazy.read


def _is_mask(reader: Any) -> bool:
    return bool(reader.variable != volume.RAW)
