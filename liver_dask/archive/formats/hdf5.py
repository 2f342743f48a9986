"""Reads slices that are HDF5 files, each with a two-dimensional dataset of integers.

h5py only parses the metadata. This module fetches the chunks in parallel, by their positions in the file, and decodes
them, because h5py allows only one thread at a time in its library. h5py reads what this module cannot decode: chunks
with other filters, and a dataset that is stored in its header.
"""

import io
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from ...core.concurrency import cores
from ...core.errors import GIVE_SHAPE, FormatError, MissingExtraError
from ..remote.cache import FolderCache
from ..remote.files import RemoteFile
from ..remote.ranges import ByteRange
from .slices import Rows, SliceReader
from .tiff import plan_pieces

BLOCK = 64 << 10
"""Bytes. Metadata are fetched in blocks of this size; the more blocks are needed, the more are fetched at once."""

MOST_AT_ONCE = 4 << 20
"""Bytes of metadata that are fetched with one request at most."""

MOST_PARSES = 1000
"""How often the metadata of a file are parsed at most."""

SMALLEST_LIMIT = 64 << 20
"""Bytes that a chunk may always take. A chunk may be larger only if it takes at most four times the slice's bytes."""

INDEX_BYTES = 20
"""Bytes of the index for each chunk."""

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ChunkIndex:
    """The positions of the chunks of a dataset, and how they are encoded.

    Attributes:
        offsets: First byte of each chunk in the file, (down, across); -1 for a chunk that is not in the file.
        sizes: Bytes of each chunk, (down, across).
        masks: Filters that were skipped for each chunk, one bit per filter, (down, across).
        shape: Rows and columns of a chunk. In a contiguous dataset, each row is a chunk.
        dtype: Dtype of the values in the file.
        filters: Numbers of the filters in the order in which they were applied; None if this module cannot decode them.
        fill: Value of the pixels that are not in the file.
        is_contiguous: Whether the rows lie in the file one after the other, so that parts of them can be read.
    """

    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    masks: npt.NDArray[np.uint32]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    filters: tuple[int, ...] | None
    fill: int
    is_contiguous: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.offsets.nbytes + self.sizes.nbytes + self.masks.nbytes


class Hdf5Slice(SliceReader):
    """One slice of labels or of raw; keeps the positions of its chunks in memory."""

    BYTES_PER_PIXEL = 0.1

    def __init__(
        self, file: RemoteFile, height: int, width: int, dtype: np.dtype[Any], dataset: str, folder: FolderCache | None
    ) -> None:
        super().__init__(file, height, width, dtype, dataset, folder)
        self._index: ChunkIndex | None = None
        self._metadata = _Metadata(file, max(4 * height * width * dtype.itemsize, SMALLEST_LIMIT))
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes: index and metadata, and the whole file if the server sends nothing less."""
        index = self._index.nbytes if self._index else 0
        return index + self._metadata.nbytes + self._file.nbytes

    def probe(self) -> None:
        """Check that the file exists and holds the expected dataset."""
        self._open()

    def prepare(self, start: int, stop: int) -> ChunkIndex:
        """Return the positions of all chunks; `start` and `stop` are ignored."""
        del start, stop
        return self._open()

    def adopt(self, prepared: ChunkIndex) -> None:
        """Use an index that another process has read from the same version of the file."""
        with self._lock:
            self._index = self._index or prepared

    def read(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read a window of pixels, see `SliceReader.read`."""
        index = self._open()
        if index.filters is None:
            self._read_by_h5py(rows, columns, out)
        elif index.is_contiguous:
            self._read_rows(index, rows, columns, out)
        else:
            self._read_chunks(index, rows, columns, out)

    def _open(self) -> ChunkIndex:
        with self._lock:
            if self._index is None:
                self._index = self._metadata.parse(self._read_index)
                self._check_places(self._index)
                if self._index.filters is None:
                    self._metadata.mark_as_metadata()  # which h5py parses again for every read
                else:
                    self._metadata.forget()
            return self._index

    def _read_index(self, h5: Any) -> ChunkIndex:
        """Return the positions of the chunks, without reading a voxel."""
        dataset = self._find(h5)
        dtype, plist = dataset.dtype, dataset.id.get_create_plist()
        if dtype.kind not in "ui":
            raise self._error(f"the values of {self._dataset} are {dtype}, expected whole numbers")
        fill = int(np.asarray(dataset.fillvalue)) if _has_fill_value(plist) else 0
        filters = tuple(int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters()))
        is_plain = h5.userblock_size == 0 and set(filters) <= {DEFLATE, SHUFFLE, FLETCHER32} and _is_whole(dataset)
        layout = plist.get_layout()
        down, across = dataset.maxshape
        if across is None and down is not None:
            is_plain = False  # HDF5 2.0 lists wrong positions of such chunks in files of the latest format
        if layout == _h5py().h5d.CHUNKED:
            self._check_chunks(dataset)
            if is_plain:
                return self._index_of_chunks(dataset, filters, fill)
        offset = dataset.id.get_offset() if layout == _h5py().h5d.CONTIGUOUS else None
        row = dtype.itemsize * self._width
        shape = self._height, 1
        sizes, masks = np.full(shape, row, np.int64), np.zeros(shape, np.uint32)
        if is_plain and layout == _h5py().h5d.CONTIGUOUS:
            offsets = np.full(shape, -1) if offset is None else offset + row * np.arange(self._height)[:, None]
            return ChunkIndex(offsets.astype(np.int64), sizes, masks, (1, self._width), dtype, (), fill, True)
        nothing = np.zeros((0, 0), np.int64)
        return ChunkIndex(nothing, nothing, masks[:0], (1, self._width), dtype, None, fill)

    def _find(self, h5: Any) -> Any:
        """Return the dataset. Soft and external links, which a hostile file might contain, are not followed."""
        group, parts = h5, [part for part in self._dataset.split("/") if part]
        for i, part in enumerate(parts):
            kind = group.get(part, getlink=True) if isinstance(group, _h5py().Group) else None
            if not isinstance(kind, _h5py().HardLink):
                there = ", ".join(list(group)[:20]) if isinstance(group, _h5py().Group) else ""
                where = "/".join(parts[:i]) or "its root"
                raise self._error(f"has no dataset {self._dataset}; {where} has {there or 'nothing'}")
            group = group[part]
        if not isinstance(group, _h5py().Dataset):
            raise self._error(f"has no dataset {self._dataset}: that is a group")
        plist = group.id.get_create_plist()
        if plist.get_layout() == _h5py().h5d.VIRTUAL or plist.get_external_count():
            raise self._error(f"the values of {self._dataset} are in other files, which are not opened")
        if group.shape != (self._height, self._width):
            found = " x ".join(map(str, group.shape or ())) or "no"
            expected = f"{self._height} x {self._width}"
            raise self._error(f"found {found} pixels (rows x columns), expected {expected}; {GIVE_SHAPE}")
        return group

    def _index_of_chunks(self, dataset: Any, filters: tuple[int, ...], fill: int) -> ChunkIndex:
        height, width = dataset.chunks
        grid = math.ceil(self._height / height), math.ceil(self._width / width)
        offsets, sizes = np.full(grid, -1, np.int64), np.zeros(grid, np.int64)
        masks = np.zeros(grid, np.uint32)

        def note(chunk: Any) -> None:
            at = chunk.chunk_offset[0] // height, chunk.chunk_offset[1] // width
            if at[0] < grid[0] and at[1] < grid[1]:
                offsets[at], sizes[at], masks[at] = chunk.byte_offset, chunk.size, chunk.filter_mask

        dataset.id.chunk_iter(note)
        return ChunkIndex(offsets, sizes, masks, (height, width), dataset.dtype, filters, fill)

    def _check_chunks(self, dataset: Any) -> None:
        """Raise FormatError if the chunks, or their index, would take more memory than the slice."""
        height, width = dataset.chunks
        slice_bytes = self._height * self._width * dataset.dtype.itemsize
        limit = max(4 * slice_bytes, SMALLEST_LIMIT)
        if height * width * dataset.dtype.itemsize > limit:
            raise self._error(f"its chunks of {height} x {width} pixels are larger than the slice")
        chunks = math.ceil(self._height / height) * math.ceil(self._width / width)
        if chunks * INDEX_BYTES > max(slice_bytes, SMALLEST_LIMIT):
            raise self._error(f"its chunks of {height} x {width} pixels are too small: their index would take more")

    def _check_places(self, index: ChunkIndex) -> None:
        """Raise FormatError if a chunk is not within the file."""
        assert self._file.version is not None
        there = index.offsets >= 0
        beyond = there & ((index.sizes <= 0) | (index.sizes > self._file.version.size - index.offsets))
        if beyond.any():
            row = int(np.argwhere(beyond)[0][0]) * index.shape[0]
            size = self._file.version.size
            raise self._error(f"is cut short or damaged: row {row} is not within its {size} bytes")

    def _fetch(
        self,
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        decode: Callable[[int, memoryview], None],
    ) -> None:
        """Fetch byte ranges in parallel; `decode(i, part)` is called for each, on any thread."""
        order = np.argsort(offsets, kind="stable")
        offsets, sizes = offsets[order], sizes[order]
        ranges = list(map(ByteRange, offsets.tolist(), (offsets + sizes).tolist()))
        pieces = plan_pieces(offsets, sizes, 1 if self.read_ahead_until else self._file.connections)

        def decode_piece(number: int, parts: list[memoryview]) -> None:
            for i, part in zip(order[pieces[number]].tolist(), parts, strict=True):
                with cores:
                    decode(i, part)

        self._file.fetch_each([ranges[piece] for piece in pieces], decode_piece)

    def _read_rows(self, index: ChunkIndex, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read parts of rows that are stored without encoding."""
        if index.offsets[0, 0] < 0:
            out[...] = self._fitting(np.full(1, index.fill, index.dtype), 0, 0)
            return
        itemsize = index.dtype.itemsize
        starts = index.offsets[rows, 0] + columns.start * itemsize
        sizes = np.full(len(rows), (columns.stop - columns.start) * itemsize)

        def decode(i: int, part: memoryview) -> None:
            values = np.frombuffer(part, index.dtype)
            out[i] = self._fitting(values[None], int(rows[i]), columns.start)[0]

        self._fetch(starts, sizes, decode)

    def _read_chunks(self, index: ChunkIndex, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read and decode the chunks that hold the pixels."""
        height, width = index.shape
        down = np.unique(rows // height).tolist()
        across = range(columns.start // width, (columns.stop - 1) // width + 1)
        places = list(product(down, across))

        def put(place: tuple[int, int], values: npt.NDArray[Any]) -> None:
            top, left = place[0] * height, place[1] * width
            some_rows = slice(*np.searchsorted(rows, (top, top + height)).tolist())
            some_columns = slice(max(columns.start, left), min(columns.stop, left + width))
            here = values[rows[some_rows] - top, some_columns.start - left : some_columns.stop - left]
            target = out[some_rows, some_columns.start - columns.start : some_columns.stop - columns.start]
            target[...] = self._fitting(here, rows[some_rows], some_columns.start)

        for place in places:
            if index.offsets[place] < 0:
                put(place, np.full(index.shape, index.fill, index.dtype))
        there = [place for place in places if index.offsets[place] >= 0]
        if there:
            at = tuple(np.array(there).T)
            self._fetch(
                index.offsets[at], index.sizes[at], lambda i, part: put(there[i], self._decode(index, there[i], part))
            )

    def _decode(self, index: ChunkIndex, place: tuple[int, int], data: bytes | memoryview) -> npt.NDArray[Any]:
        """Return the values of a chunk, (rows, columns)."""
        expected = math.prod(index.shape) * index.dtype.itemsize
        assert index.filters is not None
        try:
            for number, code in reversed(list(enumerate(index.filters))):
                if not index.masks[place] >> number & 1:
                    data = _undo(code, data, expected, index.dtype.itemsize)
            if len(data) != expected:
                raise ValueError(f"it has {len(data)} bytes instead of {expected}")
        except (ValueError, zlib_ng.error) as error:
            top, left = place[0] * index.shape[0], place[1] * index.shape[1]
            rows = f"rows {top}-{min(top + index.shape[0], self._height) - 1}"
            columns = f"columns {left}-{min(left + index.shape[1], self._width) - 1}"
            raise self._error(f"{rows}, {columns} cannot be decoded ({error})") from error
        return np.frombuffer(data, index.dtype).reshape(index.shape)

    def _read_by_h5py(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read with h5py what this module cannot decode: this is slower, and only one thread at a time can read."""
        first, stop = int(rows[0]), int(rows[-1]) + 1

        def read(h5: Any) -> npt.NDArray[Any]:
            return np.asarray(self._find(h5)[first:stop, columns])

        with self._lock:
            values = self._metadata.parse(read)
            self._metadata.forget_data()
        out[...] = self._fitting(values[rows - first], rows, columns.start)

    def _fitting(self, values: npt.NDArray[Any], rows: Any, first_column: int) -> npt.NDArray[Any]:
        """Convert values to the dtype of the voxels; raise FormatError if a value does not fit."""
        if not np.can_cast(values.dtype, self._dtype, "safe") and values.size:
            wrong = (values < 0) | (values > np.iinfo(self._dtype).max)
            if wrong.any():
                at = np.unravel_index(int(wrong.argmax()), values.shape)
                row = int(np.atleast_1d(np.asarray(rows))[at[0] if np.ndim(rows) else 0])
                raise FormatError(
                    f"{self._file.url}: the value of row {row}, column {first_column + int(at[-1])} is {values[at]}, "
                    f"which is no whole number of 0 to {np.iinfo(self._dtype).max}: voxels are {self._dtype}."
                )
        return values.astype(self._dtype, copy=False)

    def _error(self, problem: str) -> FormatError:
        return FormatError(f"{self._file.url}: {problem}.")


def _has_fill_value(plist: Any) -> bool:
    """Whether a fill value is defined. Reading one that is damaged would crash HDF5's library; asking for it raises."""
    return bool(plist.fill_value_defined() != _h5py().h5d.FILL_VALUE_UNDEFINED)


def _is_whole(dataset: Any) -> bool:
    """Whether the values of a dataset use all bits of their bytes, so that the bytes are the values."""
    kind = dataset.id.get_type()
    return bool(kind.get_precision() == 8 * kind.get_size() and kind.get_offset() == 0)


def _undo(code: int, data: bytes | memoryview, expected: int, itemsize: int) -> bytes:
    """Undo one filter.

    Raises:
        ValueError, zlib_ng.error: The data are damaged.
    """
    if code == FLETCHER32:
        if len(data) < CHECKSUM_BYTES or fletcher32(data[:-CHECKSUM_BYTES]) != bytes(data[-CHECKSUM_BYTES:]):
            raise ValueError("its checksum is wrong")
        return bytes(data[:-CHECKSUM_BYTES])
    if code == SHUFFLE:
        whole = len(data) // itemsize * itemsize  # the remaining bytes were not shuffled
        planes = np.frombuffer(data, np.uint8, whole).reshape(itemsize, -1)
        return planes.T.tobytes() + bytes(data[whole:])
    inflater = zlib_ng.decompressobj()
    most = expected + CHECKSUM_BYTES  # a checksum may have been added before the compression
    inflated = inflater.decompress(data, most + 1)
    if len(inflated) > most or not inflater.eof:
        raise ValueError("it inflates to more or less than a chunk has")
    return inflated


def fletcher32(data: bytes | memoryview) -> bytes:
    """Return the checksum of HDF5's filter of that name, in the form in which it follows the data.

    It consists of sums of big-endian words of 16 bits.
    """
    padded = bytes(data) + b"\0" * (len(data) % 2)
    words = np.frombuffer(padded, ">u2").astype(np.uint64)
    count = len(words)
    sum1 = int(words.sum())
    sum2 = int((words * np.arange(count, 0, -1, dtype=np.uint64)).sum()) if count else 0
    first, second = _folded(sum1), _folded(sum2)
    return (second << 16 | first).to_bytes(4, "little")


def _folded(total: int) -> int:
    """Return a sum of 16-bit words modulo 65535, in the range 1 to 65535 unless the sum is 0."""
    return (total - 1) % 65535 + 1 if total else 0


class _Metadata:
    """The blocks of a file that were fetched for h5py.

    If h5py reads a block that is not there, the parse ends. The block is fetched, and the file is parsed again. So no
    thread waits for the network while it holds the lock of h5py, and errors of a fetch are raised unchanged.
    """

    def __init__(self, file: RemoteFile, limit: int) -> None:
        self._file = file
        self._limit = limit  # bytes that may be fetched for h5py
        self._blocks: dict[int, bytes] = {}
        self._of_metadata: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Memory of the fetched blocks, in bytes."""
        return len(self._blocks) * BLOCK

    def forget(self) -> None:
        """Drop all blocks, because they are no longer needed."""
        self._blocks.clear()

    def forget_data(self) -> None:
        """Drop the blocks that were fetched after `mark_as_metadata`."""
        self._blocks = {number: data for number, data in self._blocks.items() if number in self._of_metadata}

    def mark_as_metadata(self) -> None:
        """Keep the present blocks in `forget_data`."""
        self._of_metadata = set(self._blocks)

    def parse(self, read: Callable[[Any], Any]) -> Any:
        """Open the file with h5py, and return what `read` returns for it.

        Raises:
            FormatError: The file is not a readable HDF5 file.
            MissingExtraError: h5py is not installed.
        """
        h5py = _h5py()
        if self._file.version is None:
            self._fetch(0, 1)
        for _ in range(MOST_PARSES):
            view = _View(self._blocks, self._size)
            try:
                with h5py.File(view, "r", locking=False) as h5:
                    return read(h5)
            except FormatError:
                if not view.lacking:
                    raise
            except Exception as error:  # h5py raises many types
                if not view.lacking:
                    reason = " ".join(str(error).split())[:200]
                    message = f"{self._file.url}: is no HDF5 that can be read, or is cut short ({reason})."
                    raise FormatError(message) from error
            if len(self._blocks) * BLOCK > self._limit:
                break
            for number in view.lacking:
                if number not in self._blocks:
                    self._fetch(number, len(self._blocks))
        raise FormatError(f"{self._file.url}: its metadata take more of the file than they can.")

    @property
    def _size(self) -> int:
        assert self._file.version is not None
        return self._file.version.size

    def _fetch(self, number: int, known: int) -> None:
        """Fetch a block and some after it: the more blocks are known, the more are fetched."""
        count = max(1, min(known // 2, MOST_AT_ONCE // BLOCK))
        data = self._file.fetch(number * BLOCK, (number + count) * BLOCK)
        for i in range(0, len(data), BLOCK):
            self._blocks[number + i // BLOCK] = bytes(data[i : i + BLOCK])


class _LackingError(Exception):
    """A read needs bytes that are not fetched yet."""


class _View(io.RawIOBase):
    """A file object for h5py, of which only the fetched blocks can be read."""

    def __init__(self, blocks: dict[int, bytes], size: int) -> None:
        self._blocks, self._size, self._position = blocks, size, 0
        self.lacking: list[int] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Do nothing, because nothing is written; h5py calls this method anyway."""
        return self._size if size is None else size

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        stop = min(self._position + len(target), self._size)
        start = self._position
        needed = range(start // BLOCK, -(-stop // BLOCK)) if stop > start else range(0)
        lacking = [number for number in needed if number not in self._blocks]
        self.lacking = self.lacking or lacking
        if self.lacking:  # later reads fail, too: h5py may read on while it closes its objects
            raise _LackingError
        for number in needed:
            block = self._blocks[number]
            first, last = max(start - number * BLOCK, 0), min(stop - number * BLOCK, len(block))
            target[number * BLOCK + first - start : number * BLOCK + last - start] = block[first:last]
        self._position = max(stop, start)
        return max(stop - start, 0)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(f"HDF5 slices need h5py ({error}): pip install 'liver_dask[hdf5]'.") from error
    return h5py
