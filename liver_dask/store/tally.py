"""Count, before anything is read, how often an export reads the rows of the archive's files."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..archive.lazy.derived import reads_of_archive
from ..archive.lazy.leaves import Read
from ..archive.lazy.window import Selection


class Extent(NamedTuple):
    """What is read from the files of a variable, with each row counted once.

    Attributes:
        files: Number of files.
        rows: Rows in all files together. Files that are decoded from the first row count all rows down to the last one
            needed.
        last_row: The last row read in any file, plus one.
        last_column: The last column read in any file, plus one.
    """

    files: int
    rows: int
    last_row: int
    last_column: int


def extents_of(reads: Iterable[Read]) -> dict[str, Extent]:
    """Return the extent of all reads, by variable of the archive."""
    rows: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}
    last: dict[str, tuple[int, int]] = {}
    for read in chain.from_iterable(map(reads_of_archive, reads)):
        reader, (z, y, _) = _reader(read), read.window.selections
        if not read.nbytes:
            continue
        name = reader.name
        if (name, reader.files) not in rows:
            rows[name, reader.files] = np.zeros(reader.shape[:2], bool)
        _, bottom, right = read.ends
        of_file = slice(bottom) if reader.is_from_the_top else _as_slice(y)
        for number in z:
            rows[name, reader.files][number, of_file] = True
        below, beyond = last.get(name, (0, 0))
        last[name] = max(below, bottom), max(beyond, right)
    found = {}
    for variable, ends in last.items():
        of_variable = [seen for (name, _), seen in rows.items() if name == variable]
        files = sum(int(seen.any(1).sum()) for seen in of_variable)
        found[variable] = Extent(files, sum(int(seen.sum()) for seen in of_variable), *ends)
    return found


@dataclass
class Tally:
    """Number of file rows that jobs read.

    Files that are decoded from the first row count all rows down to the last one needed, once per job.

    Attributes:
        extents: What is read, by variable.
        held: Number of blocks that a cluster already holds.
        got: Number of times that such blocks are fetched from the cluster.
    """

    extents: Mapping[str, Extent]
    held: int = 0
    got: float = 0
    _read: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def times(self) -> dict[str, float]:
        """Average number of times that each variable is read."""
        return {variable: self._read[variable] / extent.rows for variable, extent in self.extents.items()}

    @property
    def most(self) -> float:
        """Largest number of reads of any variable, or of fetches of the cluster's blocks; at least 1."""
        return max(*self.times.values(), self.got / self.held if self.held else 1.0, 1.0)

    def add(self, reads: Iterable[tuple[Read, int]], jobs: float = 1) -> None:
        """Add the reads of one job, or of several similar jobs.

        Args:
            reads: Each read, and how often the job does it.
            jobs: Number of similar jobs.
        """
        prefixes: dict[tuple[Any, int], int] = {}
        of_files = ((one, times) for read, times in reads for one in reads_of_archive(read))
        for read, times in of_files:
            reader, (z, y, _) = _reader(read), read.window.selections
            if not reader.is_from_the_top:
                self._read[reader.name] += jobs * times * len(z) * len(y)
                continue
            for number in map(int, z if read.nbytes else ()):
                prefixes[reader, number] = max(prefixes.get((reader, number), 0), read.ends[1])
        for (reader, _), rows in prefixes.items():
            self._read[reader.name] += jobs * rows


def _reader(read: Read) -> Any:
    """Return the archive's reader of the files."""
    return read.lazy.read


def _as_slice(rows: Selection) -> Any:
    """Return an index of the same rows: a slice if possible, because it is faster."""
    return slice(rows[0], rows[-1] + 1) if isinstance(rows, range) and rows.step == 1 else np.asarray(rows)
