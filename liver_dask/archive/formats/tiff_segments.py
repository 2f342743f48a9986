"""TIFF files of other kinds: all strips, tiles, planes, codecs and samples that tifffile can decode.

A strip or tile is decoded whole if any of its pixels is read, which is slower than the module `tiff`. A sample that is
not a whole number in the range of the voxels is an error. A pixel whose samples are not all equal is an error, too.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from ...core.errors import FormatError
from . import lzw
from .strip_codecs import LZW

SMALLEST_LIMIT = 64 << 20
"""Bytes that a segment may always take. It may be larger only if it takes at most four times the slice's bytes."""

JPEGS = (6, 7, 34892, 33007)
"""Compressions whose segments share tables that are stored in the directory."""

MSB_FIRST = 1
PALETTE = 3


@dataclass
class Segments:
    """The positions of the segments (strips or tiles) of one slice, and their decoder.

    Attributes:
        url: URL of the file, for messages.
        offsets: First byte of each segment in the file: plane by plane, and row by row in a plane.
        counts: Number of bytes of each segment.
        height: Rows of a segment; the last may have fewer.
        width: Columns of a segment.
        grid: Number of segments of a plane, (down, across).
        planes: Number of planes. If there are several, each has one sample of every pixel.
    """

    url: str
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    height: int
    width: int
    grid: tuple[int, int]
    planes: int
    _page: tifffile.TiffPage
    _is_lzw: bool
    _is_reversed: bool
    _dtype: np.dtype[Any]
    _options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, page: tifffile.TiffPage, url: str, dtype: np.dtype[Any]) -> "Segments":
        """Read from a page everything that decoding needs, while its file is open.

        Args:
            page: The page.
            url: URL of its file, for messages.
            dtype: Dtype of the voxels.

        Raises:
            FormatError: The pixels are not voxels, or tifffile cannot decode them.
        """
        if int(page.photometric) == PALETTE:
            raise FormatError(f"{url}: its pixels are colours of a palette, expected grey.")
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        height = height if page.is_tiled else min(height, page.imagelength)
        if page.imagedepth != 1 or min(height, width, page.samplesperpixel) < 1:
            raise FormatError(f"{url}: its pixels are not in one layer of strips or tiles, with a sample or more each.")
        samples = np.dtype(page.dtype) if page.dtype is not None else None
        if samples is None or samples.kind not in "buif":
            raise FormatError(f"{url}: its samples are {samples or 'of no known type'}, expected numbers.")
        segment_bytes, slice_bytes = (
            math.prod((*shape, page.samplesperpixel, samples.itemsize))
            for shape in ((height, width), (page.imagelength, page.imagewidth))
        )
        if segment_bytes > max(4 * slice_bytes, SMALLEST_LIMIT):
            raise FormatError(f"{url}: its tiles of {height} x {width} pixels are larger than the slice.")
        is_lzw = int(page.compression) == LZW
        is_reversed = is_lzw and int(page.fillorder) != MSB_FIRST
        if is_lzw:  # decoded by `lzw`: imagecodecs' decoder reads outside its tables if a strip is damaged
            page.compression, page.fillorder = tifffile.COMPRESSION.NONE, tifffile.FILLORDER.MSB2LSB
        try:
            page.decode  # noqa: B018  # the first access creates it, which is not thread-safe
        except (NotImplementedError, ValueError) as error:
            raise FormatError(f"{url}: cannot be decoded ({_one_line(error)}).") from error
        is_jpeg = int(page.compression) in JPEGS
        return cls(
            url=url,
            offsets=np.array(page.dataoffsets, np.int64),
            counts=np.array(page.databytecounts, np.int64),
            height=height,
            width=width,
            grid=(math.ceil(page.imagelength / height), math.ceil(page.imagewidth / width)),
            planes=page.samplesperpixel if int(page.planarconfig) == 2 else 1,
            _page=page,
            _is_lzw=is_lzw,
            _is_reversed=is_reversed,
            _dtype=dtype,
            _options={"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if is_jpeg else {},
        )

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes, including the numbers that the page holds."""
        return 10 * (self.offsets.nbytes + self.counts.nbytes)

    @property
    def needed(self) -> int:
        """Number of segments of all planes."""
        return self.planes * math.prod(self.grid)

    def row_of(self, number: int) -> int:
        """Return the first row of a segment."""
        return number % math.prod(self.grid) // self.grid[1] * self.height

    def touched(self, rows: npt.NDArray[np.intp], columns: slice, plane: int) -> npt.NDArray[np.intp]:
        """Return the numbers of the segments of a plane that hold pixels of these rows and columns."""
        down, across = self.grid
        of_rows = np.unique(rows // self.height)
        of_columns = np.arange(columns.start // self.width, (columns.stop - 1) // self.width + 1)
        return (plane * down * across + of_rows[:, None] * across + of_columns).reshape(-1)

    def decode(
        self, number: int, data: bytes | memoryview, rows: npt.NDArray[np.intp], columns: slice, out: npt.NDArray[Any]
    ) -> None:
        """Decode one segment, and copy its pixels of some rows and columns into `out`.

        Only the first plane is copied. The samples of the other planes are compared with the values in `out`.

        Args:
            number: Number of the segment.
            data: Its encoded bytes.
            rows: Row numbers, ascending.
            columns: Columns `start` to `stop` (exclusive).
            out: Array (rows, columns).

        Raises:
            FormatError: The segment is damaged, a sample is not a voxel, or the samples of a pixel differ.
        """
        top, left = self.row_of(number), number % self.grid[1] * self.width
        is_first_plane = number < math.prod(self.grid)
        some_rows = slice(*np.searchsorted(rows, (top, top + self.height)).tolist())
        some_columns = slice(max(columns.start, left), min(columns.stop, left + self.width))
        samples = self._decode(number, data, top, left)
        try:
            samples = samples[rows[some_rows] - top, some_columns.start - left : some_columns.stop - left]
        except IndexError as error:
            raise self._damaged(top, left, "it holds too few rows") from error
        here = out[some_rows, some_columns.start - columns.start : some_columns.stop - columns.start]
        if samples.shape[:2] != here.shape:
            raise self._damaged(top, left, "it holds too few columns")
        self._check(samples, samples[..., 0] if is_first_plane else here, rows[some_rows], some_columns.start)
        if is_first_plane:
            here[:] = samples[..., 0]

    def _decode(self, number: int, data: bytes | memoryview, top: int, left: int) -> npt.NDArray[Any]:
        """Return the samples of a segment, (rows, columns, samples of this plane)."""
        try:
            plain = self._decode_lzw(data) if self._is_lzw else bytes(data)
            decoded, _, _ = self._page.decode(plain, number, **self._options)
            assert decoded is not None
            return decoded[0]
        except Exception as error:  # each codec raises other types
            raise self._damaged(top, left, _one_line(error)) from error

    def _decode_lzw(self, data: bytes | memoryview) -> bytes:
        if self._is_reversed:
            data = imagecodecs.bitorder_decode(bytes(data))
        samples = 1 if self.planes > 1 else self._page.samplesperpixel
        assert self._page.dtype is not None
        target = np.empty(self.height * self.width * samples * self._page.dtype.itemsize, np.uint8)
        decoded = lzw.decode(data, target)
        if decoded.end == lzw.End.INVALID:
            raise ValueError(f"a code that cannot be, after {decoded.length} bytes")
        return target[: decoded.length].tobytes()

    def _check(
        self, samples: npt.NDArray[Any], grey: npt.NDArray[Any], rows: npt.NDArray[np.intp], first_column: int
    ) -> None:
        """Raise FormatError unless all samples are voxels and the samples of each pixel are equal."""
        assert self._page.dtype is not None  # otherwise nothing would have been decoded
        largest = np.iinfo(self._dtype).max
        if not np.can_cast(samples.dtype, self._page.dtype, "safe"):  # a reader that trusts the tags differs
            raise FormatError(
                f"{self.url}: its tags say {self._page.bitspersample} bits a sample ({self._page.dtype}), and its "
                f"image has other samples ({samples.dtype}); the file is damaged."
            )
        if samples.dtype.kind == "f":
            samples = samples.astype(np.float64)  # float16 ends at 65504, and float32 has gaps below 2**32
            wrong = ~((samples >= 0) & (samples <= largest) & (samples == np.floor(samples)))
        else:
            wrong = (samples < 0) | (samples > largest)
        where = _first(wrong)
        if where:
            row, column, _ = where
            raise FormatError(
                f"{self.url}: the value of row {rows[row]}, column {first_column + column} is {samples[where]}, which "
                f"is no whole number of 0 to {largest}: voxels are {self._dtype}, and none is rounded."
            )
        where = _first(samples != grey[..., None])
        if where:
            raise FormatError(
                f"{self.url}: the {self._page.samplesperpixel} samples of row {rows[where[0]]}, column "
                f"{first_column + where[1]} are not all equal: colours are no grey."
            )

    def _damaged(self, top: int, left: int, problem: str) -> FormatError:
        place = f"rows {top}-{min(top + self.height, self._page.imagelength) - 1}, columns {left}-"
        place += str(min(left + self.width, self._page.imagewidth) - 1)
        return FormatError(f"{self.url}: {place} cannot be decoded ({problem}); the file is damaged at its source.")


def _first(condition: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the index where a condition is first true; empty if it is true nowhere."""
    if not condition.any():
        return ()
    return tuple(map(int, np.unravel_index(int(condition.argmax()), condition.shape)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
