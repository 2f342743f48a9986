"""The strip index of a TIFF: the position and encoding of each strip, read from few bytes of the file."""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import tifffile

from ...core.errors import GIVE_SHAPE, FormatError, LiverDaskError
from ..remote.files import RemoteFile
from .slices import Rows
from .strip_codecs import DECODER_OF_COMPRESSION, UNCOMPRESSED
from .tiff_directory import HEADER, Directory, read_directory
from .tiff_segments import Segments

HEAD = 512
"""Number of bytes that are read first: they give the position of the directory, or hold it if it comes first."""


BOTH_ENDS_FROM = 1 << 22
"""Pixels of a slice from which on the beginning and the end of the file are fetched with one request.

In a small file, these two byte ranges might cover the whole file or more, which servers refuse.
"""


INDEX_BYTES_PER_ROW = 8
"""Bytes of the strip index per row, in a classic TIFF with one row per strip: an offset and a count of 4 bytes each."""


@dataclass(frozen=True)
class StripIndex:
    """The positions of the strips of one slice, and how they are encoded.

    Attributes:
        offsets: First byte of each strip in the file.
        counts: Number of bytes of each strip.
        height: Rows of the slice.
        width: Columns of the slice.
        rows_per_strip: Rows of a strip; the last may have fewer.
        compression: The TIFF code: 1 (none), 5 (LZW), 8 or 32946 (deflate).
        predictor: 1 (none) or 2 (differences along a row).
        big_endian: Whether the values' bytes are stored high byte first.
        itemsize: Bytes of a pixel.
    """

    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    height: int
    width: int
    rows_per_strip: int
    compression: int
    predictor: int
    big_endian: bool
    itemsize: int = 2  # for cached indexes of older versions, which supported only this size

    @property
    def needed(self) -> int:
        """Number of strips that hold all rows."""
        return -(-self.height // self.rows_per_strip)

    def row_of(self, strip: int) -> int:
        """Return the first row of a strip."""
        return strip * self.rows_per_strip

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.offsets.nbytes + self.counts.nbytes

    def knows(self, rows: Rows) -> bool:
        """Return whether the index has the positions of these rows; a partial index lacks those of other strips."""
        return bool((self.offsets[rows // self.rows_per_strip] > 0).all())

    def to_bytes(self) -> bytes:
        """Return the index as one npz file."""
        out = io.BytesIO()
        np.savez(out, **asdict(self))
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "StripIndex":
        """Return the index that `to_bytes` has written."""
        with np.load(io.BytesIO(data), allow_pickle=False) as saved:
            scalars = {name: saved[name].item() for name in saved.files if saved[name].ndim == 0}
            return cls(offsets=saved["offsets"], counts=saved["counts"], **scalars)


Kind = tuple[str, int, int, int]
"""Address of an archive, and the rows, columns and bytes per pixel of its slices."""


known_directories: dict[Kind, tuple[Directory, StripIndex] | None] = {}
"""The expected directory of a slice and a strip index without entries, per archive and slice size.

The value is None if a directory was not as expected.
"""


class OtherKindError(FormatError):
    """A StripIndex cannot describe the file; `segments` can be read instead."""

    def __init__(self, message: str, segments: Segments) -> None:
        super().__init__(message)
        self.segments = segments


DAMAGED = (tifffile.TiffFileError, struct.error)
"""What tifffile raises besides Python's own errors; its newer versions have a ValueError in place of the first."""

MOST_PAGES = 32
"""Maximum number of pages of a file, of which all but the first are smaller copies and masks."""


def read_strip_index(file: RemoteFile, height: int, width: int, dtype: np.dtype[Any]) -> StripIndex:
    """Parse the directory of a TIFF; fetch only the bytes that hold it (two or three requests).

    Raises:
        FormatError: The file is not a TIFF, is cut short, or is not one page of `height` x `width` grey pixels of
            `dtype` in strips. It is an OtherKindError if the pixels can be read in another way.
    """
    with _opened(file, height, width) as (tiff, page, sparse):
        if (page.imagelength, page.imagewidth) != (height, width):
            found, expected = f"{page.imagelength} x {page.imagewidth}", f"{height} x {width}"
            raise FormatError(f"{file.url}: found {found} pixels (rows x columns), expected {expected}; {GIVE_SHAPE}.")
        _check_alone(tiff, file.url)
        difference = _difference(page, dtype)
        if difference:
            segments = Segments.of(page, file.url, dtype)
            _check_places(segments, file)
            raise OtherKindError(f"{file.url}: {difference}", segments)
        index = StripIndex(
            offsets=np.array(page.dataoffsets, np.int64),
            counts=np.array(page.databytecounts, np.int64),
            height=height,
            width=width,
            rows_per_strip=min(page.rowsperstrip, height),
            compression=int(page.compression),
            predictor=int(page.predictor),
            big_endian=tiff.byteorder == ">",
            itemsize=dtype.itemsize,
        )
        _check_places(index, file)
        _learn_directory(sparse.directory(page.offset), index, file)
        return _by_rows(index)


def describe_tiff(file: RemoteFile, height: int, width: int) -> dict[str, Any]:
    """Return what the directory of a TIFF says, as plain JSON.

    Args:
        file: The file.
        height: Expected rows, which limit what is fetched.
        width: Expected columns.

    Raises:
        FormatError: The file is not a TIFF, or is cut short.
    """
    with _opened(file, height, width) as (tiff, page, _):
        kind = {1: "uint", 2: "int", 3: "float"}.get(int(page.sampleformat), "other")
        samples = page.samplesperpixel
        is_first = page.offset < min(page.dataoffsets, default=0)
        layout = (
            {"layout": "tiles", "tile": [page.tilelength, page.tilewidth]}
            if page.is_tiled
            else {"layout": "strips", "rows_per_strip": min(page.rowsperstrip, page.imagelength)}
        )
        return {
            "format": "BigTIFF" if tiff.is_bigtiff else "TIFF",
            "shape": [page.imagelength, page.imagewidth],
            "dtype": f"{kind}{page.bitspersample}" + (f" x {samples}" if samples > 1 else ""),
            "byte_order": "big" if tiff.byteorder == ">" else "little",
            "directory": "at the start" if is_first else "at the end",
            "compression": tifffile.COMPRESSION(int(page.compression)).name.lower(),
            "predictor": int(page.predictor),
            **layout,
            "pages": _pages(tiff),
        }


def _first_page(tiff: tifffile.TiffFile, file: RemoteFile) -> tifffile.TiffPage:
    try:
        page = tiff.pages[0]
    except IndexError as error:
        assert file.version is not None
        size = file.version.size
        raise FormatError(
            f"{file.url}: is cut short or damaged: its directory is not within its {size} bytes."
        ) from error
    assert isinstance(page, tifffile.TiffPage)
    return page


def _pages(tiff: tifffile.TiffFile) -> int:
    """Return the number of pages, at most MOST_PAGES."""
    for number in range(1, MOST_PAGES):
        try:
            tiff.pages[number]
        except IndexError:
            return number
    return MOST_PAGES


@contextmanager
def _opened(
    file: RemoteFile, height: int, width: int
) -> Iterator[tuple[tifffile.TiffFile, tifffile.TiffPage, "_Sparse"]]:
    """Open a TIFF of which only the needed bytes are fetched; errors of tifffile become a FormatError."""
    sparse = _Sparse(file, height, width)
    try:
        with tifffile.TiffFile(cast(IO[bytes], sparse)) as tiff:
            page = _first_page(tiff, file)
            yield tiff, page, sparse
    except LiverDaskError:
        raise
    except (*DAMAGED, ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        if sparse.failure:  # the file is not damaged: tifffile treats every failed read as damage
            raise sparse.failure from error
        raise FormatError(f"{file.url}: is no TIFF that can be read, or is cut short ({error}).") from error


def _check_alone(tiff: tifffile.TiffFile, url: str) -> None:
    """Raise FormatError if a file holds several images. Smaller copies and masks of the first one are ignored."""
    several = True
    try:
        for number in range(1, MOST_PAGES):
            page: Any = tiff.pages[number]
            if not page.is_reduced and not page.is_mask:
                break
    except IndexError:  # ImageJ and tifffile may write one directory for all images
        shape = (tiff.shaped_metadata or ({},))[0].get("shape", (1,))
        of_page = tiff.pages.first.imagelength * tiff.pages.first.imagewidth * tiff.pages.first.samplesperpixel
        several = int((tiff.imagej_metadata or {}).get("images", 1)) > 1 or math.prod(shape) > of_page
    if several:
        raise FormatError(f"{url}: holds several images, and a slice is one image; write each to a file of its own.")


def _by_rows(index: StripIndex) -> StripIndex:
    """Return the index with one strip per row if the strips are complete and uncompressed, otherwise unchanged."""
    row_bytes = index.width * index.itemsize
    rows = np.arange(index.height)
    strips, row_in_strip = np.divmod(rows, index.rows_per_strip)
    whole = np.bincount(strips) * row_bytes
    if index.compression != UNCOMPRESSED or index.rows_per_strip == 1 or (index.counts < whole).any():
        return index
    offsets = index.offsets[strips] + row_in_strip * row_bytes
    return replace(index, offsets=offsets, counts=np.full(index.height, row_bytes), rows_per_strip=1)


def _learn_directory(directory: Directory | None, index: StripIndex, file: RemoteFile) -> None:
    """Record what to expect of the directories of other slices."""
    kind = file.source.url, index.height, index.width, index.itemsize
    if directory and directory.offsets.length == directory.counts.length == index.needed:
        nothing = np.zeros(0, np.int64)
        known_directories.setdefault(kind, (directory, replace(index, offsets=nothing, counts=nothing)))


def _difference(page: tifffile.TiffPage, dtype: np.dtype[Any]) -> str:
    """Return what a StripIndex does not support in the page; empty if it supports everything."""
    found_and_expected: list[tuple[str, Any, Sequence[Any]]] = [
        ("samples a pixel", page.samplesperpixel, [1]),
        ("photometric interpretation (0 and 1 are grey)", int(page.photometric), [0, 1]),
        ("bits a sample", page.bitspersample, [8 * dtype.itemsize]),
        ("sample format (1 is unsigned)", int(page.sampleformat), [1]),
        ("layout", "tiles" if page.is_tiled else "strips", ["strips"]),
        ("compression", int(page.compression), list(DECODER_OF_COMPRESSION)),
        ("predictor", int(page.predictor), [1, 2]),
        ("fill order", int(page.fillorder), [1]),
    ]
    return "; ".join(
        f"found {name} {found}, expected {' or '.join(map(str, expected))}"
        for name, found, expected in found_and_expected
        if found not in expected
    )


def _check_places(index: StripIndex | Segments, file: RemoteFile) -> None:
    """Raise FormatError if a strip or tile is missing or not within the file."""
    if not len(index.offsets) == len(index.counts) == index.needed:
        raise FormatError(f"{file.url}: has {len(index.offsets)} strips or tiles where {index.needed} are needed.")
    wrong = np.flatnonzero(beyond(index, file))
    if len(wrong):
        assert file.version is not None
        row, size = index.row_of(int(wrong[0])), file.version.size
        raise FormatError(f"{file.url}: is cut short or damaged: row {row} is not within its {size} bytes.")


def beyond(index: StripIndex | Segments, file: RemoteFile) -> npt.NDArray[np.bool_]:
    """Return which strips or tiles are not within the file, as one bool for each."""
    assert file.version is not None
    return (index.offsets <= 0) | (index.counts <= 0) | (index.counts > file.version.size - index.offsets)


class _Sparse(io.RawIOBase):
    """A file object for tifffile that fetches only the bytes that are read, and those likely to be read next."""

    def __init__(self, file: RemoteFile, height: int, width: int) -> None:
        self._file = file
        self._near_end = 32 * height + (64 << 10)  # a directory of that many strips is not larger
        self._longest = self._near_end + height * width // 8 + (1 << 20)  # neither is one of the smallest tiles
        large = height * width >= BOTH_ENDS_FROM
        self._fetched = dict(file.fetch_ends(HEAD, INDEX_BYTES_PER_ROW * height + HEAD)) if large else {}
        if 0 not in self._fetched:
            self._fetched[0] = bytes(file.fetch(0, HEAD))
        assert file.version is not None
        self._size = file.version.size
        self._position = 0
        self.failure: LiverDaskError | None = None

    def read(self, size: int = -1) -> bytes:
        """Read at most the rest of the file, so that a damaged directory cannot cause a larger allocation."""
        left = max(self._size - self._position, 0)
        return super().read(left if size < 0 else min(size, left)) or b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise ValueError(f"a place before the file begins ({position})")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        stop = min(self._position + len(target), self._size)
        if stop - self._position > self._longest:
            raise ValueError(f"a directory of {stop - self._position} bytes")
        if stop <= self._position:
            return 0
        data = self._bytes(self._position, stop)
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def directory(self, begins: int) -> Directory | None:
        """Return the directory at `begins` as `read_directory` does; None if it was not read."""
        parts = [data[begins - first :] for first, data in self._fetched.items() if first <= begins < first + len(data)]
        return read_directory(self._fetched[0][:HEADER], parts[0]) if parts else None

    def _bytes(self, start: int, stop: int) -> bytes:
        for first, data in self._fetched.items():
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        ahead = 2 * (stop - start) + 4096  # the two arrays of a directory have similar sizes and are adjacent
        if self._size - start <= self._near_end:
            ahead = self._size - start
        try:
            self._fetched[start] = bytes(self._file.fetch(start, min(start + ahead, self._size)))
        except LiverDaskError as error:
            self.failure = error
            raise
        return self._fetched[start][: stop - start]
