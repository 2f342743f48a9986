"""The interface of every slice format: a reader of one file that holds one slice.

To add a format, write a module with a subclass of `SliceReader` and add it to `registry`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ..remote.cache import FolderCache
from ..remote.files import RemoteFile

Rows = npt.NDArray[np.intp]

BYTES_OF_ROWS = 32 << 20
"""Bytes of pixels that are in memory at once while `SliceReader.read_points` picks points out of rows."""


ROWS_OF_VALUES = 512
"""Rows that `SliceReader.values` reads at once."""


class Prepared(Protocol):
    """What one process learned about a file, for use in other processes.

    It is picklable. Other processes use it instead of fetching the same bytes again.
    """

    @property
    def nbytes(self) -> int:
        """Approximate size in bytes."""


class PreparedRows(ABC):
    """Decoded rows, which are read instead of the file."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Approximate size in bytes."""

    @abstractmethod
    def read(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read pixels of the prepared rows, see `SliceReader.read`."""


class SliceReader(ABC):
    """Reads the pixels of one file and keeps in memory what it has learned about the file.

    Many threads share one instance. It fetches only through `RemoteFile` and does not catch the errors of `RemoteFile`.
    If the file is not as expected, it raises a FormatError. The message gives the URL, and the rows and columns if only
    a part of the slice is affected.

    Args:
        file: The file.
        height: Number of rows.
        width: Number of columns.
        dtype: Dtype of the voxels: unsigned, little-endian.
        dataset: Name of the array in the file, for formats that can hold several arrays.
        folder: Cache folder for data that is worth keeping between processes, or None.
    """

    FROM_THE_TOP: ClassVar[bool] = False
    """Whether rows can only be decoded in order from the first row."""

    HAS_MASKS: ClassVar[bool] = False
    """Whether the format holds only masks, with voxels 0 or 255."""

    BYTES_PER_PIXEL: ClassVar[float]
    """Approximate bytes of a file per pixel, for estimates if the archive's description gives no number."""

    def __init__(
        self, file: RemoteFile, height: int, width: int, dtype: np.dtype[Any], dataset: str, folder: FolderCache | None
    ) -> None:
        self._file = file
        self._height, self._width = height, width
        self._dtype = dtype
        self._dataset = dataset
        self._folder = folder
        self.read_ahead_until = 0
        """Row up to which (exclusive) this slice will be read, together with other slices; 0 if that is not known.

        If it is known, a request may fetch more, and fewer connections are used for each slice.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory in use, in bytes."""

    @abstractmethod
    def probe(self) -> None:
        """Check that the file exists and is as expected, without reading pixels."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the headers of the file say, as plain JSON: `shape`, `dtype`, and more, by format.

        Raises:
            FormatError: The file is not as expected, as in `probe`.
        """

    @abstractmethod
    def read(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read a window of pixels.

        Args:
            rows: Row numbers, ascending and distinct.
            columns: Columns `start` to `stop` (exclusive).
            out: Array (rows, columns) to fill.
        """

    def read_points(self, y: Rows, x: Rows, out: npt.NDArray[Any]) -> None:
        """Read single pixels, in any order. Points may repeat.

        Args:
            y: Row of each point.
            x: Column of each point.
            out: Array (points,) to fill.
        """
        rows, row_of_point = np.unique(y, return_inverse=True)
        columns = slice(int(x.min()), int(x.max()) + 1)
        width = columns.stop - columns.start
        at_once = max(BYTES_OF_ROWS // (width * out.itemsize), 1)
        for first in range(0, len(rows), at_once):  # ascending, because some formats decode from the first row
            some = rows[first : first + at_once]
            pixels = np.empty((len(some), width), out.dtype)
            self.read(some, columns, pixels)
            here = np.flatnonzero((row_of_point >= first) & (row_of_point < first + len(some)))
            out[here] = pixels[row_of_point[here] - first, x[here] - columns.start]

    def values(self) -> Iterator[npt.NDArray[Any]]:
        """Yield all values as they are stored, block by block, as arrays (rows, columns); 0 is what is black in a mask.

        The values of masks are not made 0 or 255.
        """
        for first in range(0, self._height, ROWS_OF_VALUES):
            rows = np.arange(first, min(first + ROWS_OF_VALUES, self._height))
            pixels = np.empty((len(rows), self._width), self._dtype)
            self.read(rows, slice(0, self._width), pixels)
            yield pixels

    def prepare(self, start: int, stop: int) -> Prepared | PreparedRows | None:
        """Return what other processes need to read rows `start` to `stop`, or None if nothing can be shared."""
        self.probe()
        return None

    def adopt(self, prepared: Any) -> None:  # noqa: B027  # most formats prepare nothing to adopt
        """Use what `prepare` returned in another process for the same version of the file.

        It is never PreparedRows, which are read without a SliceReader.
        """

    def measure(self, rows: Rows, last_column: int) -> "Measured | None":
        """Return how many bytes hold some rows up to a column, after a look at the file; None if that is not known.

        Args:
            rows: Row numbers, ascending and distinct.
            last_column: Number of columns up to the last column that is needed.
        """
        return self.measured_whole()

    def measured_whole(self) -> "Measured | None":
        """Return that the file was fetched whole, as from a source that ignores byte ranges; None if it was not."""
        size = float(self._file.nbytes)
        return Measured(size, size, size, self._file.takes_several_ranges, is_file=True) if size else None

    @classmethod
    def traffic(cls, reading: "Reading", row_blocks: int) -> tuple[float, float]:
        """Estimate the requests and bytes that reading one file takes.

        Args:
            reading: The part of the file that is read.
            row_blocks: Number of steps in which the rows are read.

        Returns:
            Number of requests, and number of bytes.
        """
        if reading.measured and reading.measured.is_file:
            return 1, reading.measured.whole
        fetched = reading.bytes_per_pixel * reading.rows * reading.width
        return 1 + row_blocks * math.ceil(fetched / row_blocks / (1 << 20)), fetched


@dataclass(frozen=True)
class Measured:
    """What a look at one file has shown.

    Attributes:
        part: Bytes that hold the rows up to the last column; of formats that are read from the top, all bytes down to
            the last row.
        whole: Bytes that hold the rows in their whole width.
        bridged: Bytes that are fetched for them where a request has one range, which takes what is between them along.
        takes_several_ranges: Whether the source answers several ranges of a file at once.
        is_file: Whether these bytes are the file, which was fetched whole with one request.
    """

    part: float
    whole: float
    bridged: float
    takes_several_ranges: bool
    is_file: bool = False


@dataclass(frozen=True)
class Reading:
    """The part of a file that is read, for estimates.

    Attributes:
        rows: Number of rows that are read.
        last_row: Number of rows down to the last row that is read.
        last_column: Number of columns up to the last column that is read.
        height: Rows of the file.
        width: Columns of the file.
        connections: Number of parallel requests.
        bytes_per_pixel: Bytes of the file per pixel.
        takes_several_ranges: Whether the source is assumed to answer several ranges of a file at once.
        measured: What a look at some files has shown, which replaces both assumptions; None if there was none.
    """

    rows: int
    last_row: int
    last_column: int
    height: int
    width: int
    connections: int
    bytes_per_pixel: float
    takes_several_ranges: bool = True
    measured: Measured | None = None
