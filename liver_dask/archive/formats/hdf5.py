"""Reads slices that are HDF5 files, each with a two-dimensional dataset of whole numbers.

This module fetches the chunks in parallel, by their positions in the file. `hdf5_objects` finds the dataset,
`hdf5_description` describes it, `hdf5_places` finds its chunks and `hdf5_filters` decodes them.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from ...core.concurrency import cores
from ...core.errors import GIVE_SHAPE, FormatError
from ..remote.cache import FolderCache
from ..remote.files import RemoteFile
from ..remote.ranges import ByteRange
from .hdf5_description import CHUNKED, COMPACT, EDGES_UNFILTERED, Description, chunk_bytes, describe
from .hdf5_filters import check_filters, filter_name, undo_filters
from .hdf5_metadata import DamagedError, Hdf5Error, Metadata
from .hdf5_objects import find_dataset, open_file
from .hdf5_places import Places, find_chunks, longest_chunk
from .slices import Rows, SliceReader
from .tiff_requests import plan_pieces

SMALLEST_LIMIT = 64 << 20
"""Bytes that a chunk or the metadata may always take. They may be larger only if they take at most four times the
slice's bytes."""

INDEX_BYTES = 20
"""Bytes of the index for each chunk."""


@dataclass(frozen=True)
class Contents:
    """A dataset, and the places of its chunks.

    Attributes:
        description: The dataset.
        places: The places of its chunks. A dataset without chunks has one, which is nowhere if no value is stored.
    """

    description: Description
    places: Places

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.places.nbytes + len(self.description.layout.data)


class Hdf5Slice(SliceReader):
    """One slice of labels or of raw; keeps the places of its chunks in memory."""

    BYTES_PER_PIXEL = 0.1

    def __init__(
        self, file: RemoteFile, height: int, width: int, dtype: np.dtype[Any], dataset: str, folder: FolderCache | None
    ) -> None:
        super().__init__(file, height, width, dtype, dataset, folder)
        self._contents: Contents | None = None
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes: the places, and the whole file if the server sends nothing less."""
        return (self._contents.nbytes if self._contents else 0) + self._file.nbytes

    def probe(self) -> None:
        """Check that the file exists and holds the expected dataset."""
        self._open()

    def describe(self) -> dict[str, Any]:
        """Return what the header of the dataset says, see `SliceReader.describe`."""
        description = self._open().description
        layout = description.layout
        return {
            "format": "HDF5",
            "dataset": self._dataset,
            "shape": list(description.shape),
            "dtype": description.number.dtype.name,
            "chunks": list(layout.chunk) if layout.kind == CHUNKED else None,
            "filters": [filter_name(one.code) for one in description.filters],
        }

    def prepare(self, start: int, stop: int) -> Contents:
        """Return the places of all chunks; `start` and `stop` are ignored."""
        del start, stop
        return self._open()

    def adopt(self, prepared: Contents) -> None:
        """Use the places that another process has found in the same version of the file."""
        with self._lock:
            self._contents = self._contents or prepared

    def read(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read a window of pixels, see `SliceReader.read`."""
        contents = self._open()
        layout = contents.description.layout
        if layout.kind == CHUNKED:
            self._read_chunks(contents, rows, columns, out)
        elif layout.kind == COMPACT:
            values = contents.description.number.values(layout.data).reshape(contents.description.shape)
            out[...] = self._fitting(values[rows, columns], rows, columns.start)
        else:
            self._read_rows(contents, rows, columns, out)

    def _open(self) -> Contents:
        with self._lock:
            if self._contents is None:
                try:
                    self._contents = self._read_contents()
                except Hdf5Error as error:
                    raise self._error(str(error)) from error
            return self._contents

    def _read_contents(self) -> Contents:
        """Find the dataset and its chunks, without reading a voxel."""
        slice_bytes = self._height * self._width * self._dtype.itemsize
        metadata = Metadata(self._file, max(4 * slice_bytes, SMALLEST_LIMIT))
        messages = find_dataset(metadata, open_file(metadata), self._dataset)
        shape = self._height, self._width
        description = describe(metadata, messages, self._dataset, shape, GIVE_SHAPE)
        if description.layout.kind == CHUNKED:
            check_filters(description.filters)
            self._check_chunks(description)
            return Contents(description, find_chunks(metadata, description))
        return Contents(description, self._place_of_all(metadata, description))

    def _place_of_all(self, metadata: Metadata, description: Description) -> Places:
        """Return the place of a dataset without chunks."""
        layout, nbytes = description.layout, math.prod(description.shape) * description.number.dtype.itemsize
        if layout.kind == COMPACT:
            wrong = len(layout.data) != nbytes
        else:
            wrong = layout.address is not None and layout.parameters != (nbytes,)
        if wrong or description.filters:
            raise DamagedError("a dataset has more or fewer bytes than values")
        offset = -1 if layout.address is None else metadata.base + layout.address
        if layout.address is not None and offset > metadata.size - nbytes:
            row = max(metadata.size - offset, 0) * description.shape[0] // nbytes
            raise DamagedError(f"row {row} is not within its {metadata.size} bytes")
        return Places(np.full((1, 1), offset), np.full((1, 1), nbytes), np.zeros((1, 1), np.uint32))

    def _check_chunks(self, description: Description) -> None:
        """Raise Hdf5Error if the chunks, or their index, would take more memory than the slice."""
        (height, width), itemsize = description.layout.chunk, description.number.dtype.itemsize
        slice_bytes = self._height * self._width * itemsize
        if height * width * itemsize > max(4 * slice_bytes, SMALLEST_LIMIT):
            raise Hdf5Error(f"its chunks of {height} x {width} pixels are larger than the slice")
        chunks = math.ceil(self._height / height) * math.ceil(self._width / width)
        if chunks * INDEX_BYTES > max(slice_bytes, SMALLEST_LIMIT):
            raise Hdf5Error(f"its chunks of {height} x {width} pixels are too small: their index would take more")

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

    def _read_rows(self, contents: Contents, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read parts of rows that are stored without encoding."""
        number, offset = contents.description.number, int(contents.places.offsets[0, 0])
        if offset < 0:
            self._put_fill(contents.description, out, rows, columns)
            return
        itemsize = number.dtype.itemsize
        starts = offset + (rows.astype(np.int64) * self._width + columns.start) * itemsize
        sizes = np.full(len(rows), (columns.stop - columns.start) * itemsize)

        def decode(i: int, part: memoryview) -> None:
            out[i] = self._fitting(number.values(part)[None], int(rows[i]), columns.start)[0]

        self._fetch(starts, sizes, decode)

    def _put_fill(self, description: Description, out: npt.NDArray[Any], rows: Rows, columns: slice) -> None:
        """Fill a window with the value of pixels that are not in the file."""
        fill = np.full((1, 1), description.fill, description.number.dtype)
        out[...] = self._fitting(fill, rows, columns.start)

    def _read_chunks(self, contents: Contents, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read and decode the chunks that hold the pixels."""
        description, offsets = contents.description, contents.places.offsets
        height, width = description.layout.chunk
        down = np.unique(rows // height).tolist()
        across = range(columns.start // width, (columns.stop - 1) // width + 1)
        is_there = offsets[np.ix_(down, across)] >= 0
        there = [(down[i], across[j]) for i, j in np.argwhere(is_there).tolist()]

        def put(place: tuple[int, int], values: npt.NDArray[Any]) -> None:
            top, left = place[0] * height, place[1] * width
            some_rows = slice(*np.searchsorted(rows, (top, top + height)).tolist())
            some_columns = slice(max(columns.start, left), min(columns.stop, left + width))
            here = values[rows[some_rows] - top, some_columns.start - left : some_columns.stop - left]
            target = out[some_rows, some_columns.start - columns.start : some_columns.stop - columns.start]
            target[...] = self._fitting(here, rows[some_rows], some_columns.start)

        if not is_there.all():
            self._put_fill(description, out, rows, columns)
        if there:
            at = tuple(np.array(there).T)
            self._fetch(
                offsets[at],
                contents.places.sizes[at],
                lambda i, part: put(there[i], self._decode(contents, there[i], part)),
            )

    def _decode(self, contents: Contents, place: tuple[int, int], data: memoryview) -> npt.NDArray[Any]:
        """Return the values of a chunk, (rows, columns)."""
        description = contents.description
        height, width = description.layout.chunk
        top, left = place[0] * height, place[1] * width
        is_at_edge = top + height > self._height or left + width > self._width
        is_plain = is_at_edge and description.layout.flags & EDGES_UNFILTERED
        filters = () if is_plain else description.filters
        skipped = int(contents.places.masks[place])
        try:
            plain = undo_filters(data, filters, skipped, chunk_bytes(description), longest_chunk(description))
        except (ValueError, zlib_ng.error) as error:
            rows = f"rows {top}-{min(top + height, self._height) - 1}"
            columns = f"columns {left}-{min(left + width, self._width) - 1}"
            raise self._error(f"{rows}, {columns} cannot be decoded ({error})") from error
        return description.number.values(plain).reshape(height, width)

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
