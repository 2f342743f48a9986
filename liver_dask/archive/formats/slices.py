"""What every format of slices implements: a reader of one file that holds one slice.

To add a format, write a module with a subclass of `SliceReader`, and name it in `registry`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ..remote.cache import FolderCache
from ..remote.files import RemoteFile

Rows = npt.NDArray[np.intp]

BYTES_OF_ROWS = 32 << 20
"""Bytes of pixels that are in memory while points are picked out of rows."""


class Prepared(Protocol):
    """What one process found out about a file, for others: it pickles, and they read with it what they would fetch."""

    @property
    def nbytes(self) -> int:
        """Bytes, about."""


class PreparedRows(ABC):
    """Decoded rows, which take the place of the file."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes, about."""

    @abstractmethod
    def read(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """As `SliceReader.read`, of the rows that were prepared."""


class SliceReader(ABC):
    """Reads the pixels of one file, and keeps in memory what it learnt of it.

    One is used by many threads. It fetches by `RemoteFile` alone, whose errors it lets pass; a file that is not as
    expected is a FormatError that tells the URL, and the rows and columns if not all are concerned.

    Args:
        file: The file.
        height: Rows.
        width: Columns.
        dtype: Of the voxels: unsigned, little-endian.
        dataset: Which array of the file, where a file can have several.
        folder: Keeps what is worth it between processes, if there is one.
    """

    FROM_THE_TOP: ClassVar[bool] = False
    """Whether rows can only be decoded from the first on."""

    HAS_MASKS: ClassVar[bool] = False
    """Whether it reads masks only, whose voxels are 0 or 255."""

    BYTES_PER_PIXEL: ClassVar[float]
    """About, for estimates, if the archive's description does not say."""

    def __init__(
        self, file: RemoteFile, height: int, width: int, dtype: np.dtype[Any], dataset: str, folder: FolderCache | None
    ) -> None:
        self._file = file
        self._height, self._width = height, width
        self._dtype = dtype
        self._dataset = dataset
        self._folder = folder
        self.read_ahead_until = 0
        """Rows up to this one will be read, with other slices: more may be fetched at once, on fewer connections."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that it keeps."""

    @abstractmethod
    def probe(self) -> None:
        """Find out whether the file is there and as expected, reading no pixel."""

    @abstractmethod
    def read(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read pixels of ascending, distinct rows and of columns `start` to `stop` into `out`, (rows, columns)."""

    def read_points(self, y: Rows, x: Rows, out: npt.NDArray[Any]) -> None:
        """Read single pixels, in any order and repeated or not, into `out`, (points,)."""
        rows, row_of_point = np.unique(y, return_inverse=True)
        columns = slice(int(x.min()), int(x.max()) + 1)
        width = columns.stop - columns.start
        at_once = max(BYTES_OF_ROWS // (width * out.itemsize), 1)
        for first in range(0, len(rows), at_once):  # from the top
            some = rows[first : first + at_once]
            pixels = np.empty((len(some), width), out.dtype)
            self.read(some, columns, pixels)
            here = np.flatnonzero((row_of_point >= first) & (row_of_point < first + len(some)))
            out[here] = pixels[row_of_point[here] - first, x[here] - columns.start]

    def prepare(self, start: int, stop: int) -> Prepared | PreparedRows | None:
        """What other processes need to read rows `start` to `stop`, if anything can be shared."""
        self.probe()
        return None

    def adopt(self, prepared: Any) -> None:  # noqa: B027  # most formats prepare nothing to adopt
        """Take over what `prepare` gave in another process, for the same version of the file; no PreparedRows."""

    @classmethod
    def traffic(cls, reading: "Reading", row_blocks: int) -> tuple[float, float]:
        """Requests and bytes that reading one file takes, about.

        Args:
            reading: What of it is read.
            row_blocks: In how many steps its rows are read.
        """
        fetched = reading.bytes_per_pixel * reading.rows * reading.width
        return 1 + row_blocks * math.ceil(fetched / row_blocks / (1 << 20)), fetched


@dataclass(frozen=True)
class Reading:
    """What is read of a file, for estimates.

    Attributes:
        rows: Rows that are read.
        last_row: Rows down to the last that is read.
        last_column: Columns up to the last that is read.
        height: Rows of the file.
        width: Columns of the file.
        connections: How many ranges are asked for side by side.
        bytes_per_pixel: Of the file.
    """

    rows: int
    last_row: int
    last_column: int
    height: int
    width: int
    connections: int
    bytes_per_pixel: float
