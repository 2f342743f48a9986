"""Reads rows of one TIFF slice: it reads the strip index once, then only the strips that hold the rows.

This module supports a directory at the beginning or at the end, little and big endian, classic TIFF and BigTIFF, LZW,
deflate or no compression, predictor 1 or 2, and one or many rows per strip with a short last strip. All other files are
read by tiff_segments, which is slower.
"""

import logging
import math
import sys
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from ...core.concurrency import cores
from ...core.errors import FormatError
from ..lazy.breadth import slices_across
from ..lazy.lazy_window import INTERACTIVE_BYTES
from ..remote.cache import FolderCache, MemoryCache, RangeCache
from ..remote.files import WIDE_GAP, RemoteFile
from ..remote.ranges import ByteRange
from .slices import Measured, Reading, Rows, SliceReader
from .strip_codecs import DECODER_OF_COMPRESSION, UNCOMPRESSED, StripError, load_decoder
from .strip_prefix import MANY_ROWS, MEASURED_ROWS, WHOLE_FROM, PrefixShares, bytes_for, some_to_learn_from
from .tiff_directory import fetch_entries
from .tiff_index import (
    Kind,
    OtherKindError,
    StripIndex,
    beyond,
    describe_tiff,
    known_directories,
    read_strip_index,
)
from .tiff_requests import bridged_bytes, plan_pieces, traffic_of_strips
from .tiff_segments import Segments

log = logging.getLogger(__name__)


ROWS_LIMIT = 96 << 20
"""Bytes of pixels from small windows that stay cached, for a user who returns to the same place."""


FEW_ROWS = 8


LARGE_INDEX = 32 << 10
"""A strip index of at least LARGE_INDEX bytes is fetched only in part for at most FEW_ROWS rows of many slices."""


@dataclass(frozen=True)
class _Stretch:
    """Neighbouring pixels of a row, from column `start` on."""

    start: int
    pixels: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


class TiffSlice(SliceReader):
    """One slice of raw or of labels; keeps its strip index in memory."""

    BYTES_PER_PIXEL = 1.0

    def __init__(
        self, file: RemoteFile, height: int, width: int, dtype: np.dtype[Any], dataset: str, folder: FolderCache | None
    ) -> None:
        super().__init__(file, height, width, dtype, dataset, folder)
        if file.source.cache_dir and file.source.cache_raw_bytes:
            file.range_cache = RangeCache(file.source.cache_dir, file.source.cache_raw_bytes)
        self._index: StripIndex | None = None
        self._segments: Segments | None = None  # replaces the index if the file is of another kind
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes: strip index or segments, and the whole file if the server sends nothing less."""
        index = 0 if self._index is None else self._index.nbytes
        segments = 0 if self._segments is None else self._segments.nbytes
        return index + segments + self._file.nbytes

    def probe(self) -> None:
        """Check that the file exists and that its directory is as expected."""
        self._open(np.arange(self._height))

    def describe(self) -> dict[str, Any]:
        """Return what the directory says, see `SliceReader.describe`."""
        self.probe()
        return describe_tiff(self._file, self._height, self._width)

    def read(self, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        """Read a window of pixels, see `SliceReader.read`."""
        index = self._open(rows)
        if self.read_ahead_until or out.nbytes > INTERACTIVE_BYTES or not self._may_cache():
            self._read_pixels(index, rows, columns, out)
            return
        lacking = [i for i, row in enumerate(rows.tolist()) if not self._copy_cached(row, columns, out[i])]
        if lacking:
            pixels = np.empty((len(lacking), out.shape[1]), self._dtype)
            self._read_pixels(index, rows[lacking], columns, pixels)
            out[lacking] = pixels
            for row, cached in zip(rows[lacking].tolist(), pixels, strict=True):
                cached_rows.put(self._key(row), _Stretch(columns.start, cached.copy()))

    def prepare(self, start: int, stop: int) -> StripIndex | None:
        """Return the strip index with at least the entries of these rows; None if the file is read by segments."""
        index = self._open(np.arange(start, stop))
        return index if isinstance(index, StripIndex) else None

    def adopt(self, index: StripIndex) -> None:
        """Use a strip index that another process has loaded from the same version of the file."""
        with self._lock:
            if self._index is None:
                self._index = index

    def read_points(self, y: Rows, x: Rows, out: npt.NDArray[Any]) -> None:
        """Read single pixels, see `SliceReader.read_points`.

        Each row is read from its first column to the last point in it.
        """
        rows, row_of_point = np.unique(y, return_inverse=True)
        index = self._open(rows)
        if isinstance(index, Segments):
            self._read_points_of_segments(index, y, x, out)
            return
        stops = np.zeros(len(rows), np.intp)
        np.maximum.at(stops, row_of_point, x + 1)
        points_of_row = dict(zip(rows.tolist(), _points_by(row_of_point), strict=True))
        is_kept = np.array([self._pick_cached(row, points, x, out) for row, points in points_of_row.items()])
        caches = int(stops.sum()) * self._dtype.itemsize <= INTERACTIVE_BYTES and self._may_cache()

        def take(row: int, pixels: npt.NDArray[Any]) -> None:
            out[points_of_row[row]] = pixels[x[points_of_row[row]]]
            if caches:
                cached_rows.put(self._key(row), _Stretch(0, pixels.copy()))

        if not is_kept.all():
            self._read_row_beginnings(index, rows[~is_kept], stops[~is_kept], take)

    def _pick_cached(self, row: int, points: Rows, x: Rows, out: npt.NDArray[Any]) -> bool:
        """Fill `out` with the points of a row from the cache; return False if not all of them are cached."""
        cached = cached_rows.get(self._key(row))
        columns = x[points]
        if cached is None or columns.min() < cached.start or columns.max() >= cached.start + len(cached.pixels):
            return False
        out[points] = cached.pixels[columns - cached.start]
        return True

    @property
    def _kind(self) -> "Kind":
        return self._file.source.url, self._height, self._width, self._dtype.itemsize

    def _key(self, row: int) -> Hashable:
        return self._file.key, row, self._dtype.itemsize

    def measure(self, rows: Rows, last_column: int) -> Measured:
        """Return how many bytes hold some rows, see `SliceReader.measure`; a few of the rows are read."""
        index = self._open(rows)
        whole_file = self.measured_whole()
        if whole_file:
            return whole_file
        if not isinstance(index, StripIndex):
            numbers = np.unique(
                np.concatenate([index.touched(rows, slice(0, last_column), plane) for plane in range(index.planes)])
            )
            size = float(index.counts[numbers].sum())
            return Measured(size, size, size, self._file.takes_several_ranges)
        some = rows[np.unique(np.linspace(0, len(rows) - 1, MEASURED_ROWS).astype(np.intp))]
        self.read(some, slice(0, last_column), np.empty((len(some), last_column), self._dtype))  # to learn the share
        strips = np.unique(rows // index.rows_per_strip)
        part = self._bytes_wanted(index, strips, np.full(len(strips), last_column))
        bridged = bridged_bytes(index.offsets[strips], part)
        whole = float(index.counts[strips].sum())
        return Measured(float(part.sum()), whole, float(bridged), self._file.takes_several_ranges)

    @classmethod
    def traffic(cls, reading: Reading, row_blocks: int) -> tuple[float, float]:
        """Estimate the traffic: the strip index, and the strips of the rows up to the last column."""
        return traffic_of_strips(reading, row_blocks)

    def _may_cache(self) -> bool:
        return bool(self._file.version and self._file.version.etag)

    def _copy_cached(self, row: int, columns: slice, out: npt.NDArray[Any]) -> bool:
        """Fill `out` with columns of a row from the cache; return False if they are not cached."""
        cached = cached_rows.get(self._key(row))
        if cached is None or columns.start < cached.start or columns.stop > cached.start + len(cached.pixels):
            return False
        out[:] = cached.pixels[columns.start - cached.start : columns.stop - cached.start]
        return True

    def _open(self, rows: Rows) -> StripIndex | Segments:
        """Return the strip index with at least the entries of these rows, or the segments.

        The first call loads the directory.
        """
        with self._opening:
            if self._segments is None:
                try:
                    return self._load_index(rows)
                except OtherKindError as other:
                    self._segments = other.segments
                    log.info("%s; it is read strip by strip, or tile by tile, by tifffile, which is slower", other)
            return self._segments

    def _read_pixels(self, index: StripIndex | Segments, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        if isinstance(index, StripIndex):
            self._read_strips(index, rows, columns, out)
        else:
            for plane in range(index.planes):
                self._read_segments(index, index.touched(rows, columns, plane), rows, columns, out)

    def _read_segments(
        self, segments: Segments, numbers: Rows, rows: Rows, columns: slice, out: npt.NDArray[Any]
    ) -> None:
        """Read the pixels of rows and columns that are in some segments of one plane."""
        self._decode_segments(segments, numbers, lambda number, part: segments.decode(number, part, rows, columns, out))

    def _decode_segments(self, segments: Segments, numbers: Rows, decode: Callable[[int, memoryview], None]) -> None:
        """Fetch segments; `decode(number, part)` is called for each, on any thread."""
        ranges, pieces = self._plan(segments.offsets[numbers], segments.counts[numbers])

        def decode_piece(i: int, parts: list[memoryview]) -> None:
            for number, part in zip(numbers[pieces[i]].tolist(), parts, strict=True):
                with cores:
                    decode(number, part)

        self._file.fetch_each([ranges[piece] for piece in pieces], decode_piece)

    def _read_points_of_segments(self, segments: Segments, y: Rows, x: Rows, out: npt.NDArray[Any]) -> None:
        """Read single pixels of strips or tiles; each strip or tile is fetched and decoded once."""
        of_plane = math.prod(segments.grid)
        numbers, segment_of_point = np.unique(
            y // segments.height * segments.grid[1] + x // segments.width, return_inverse=True
        )
        points = _points_by(segment_of_point)
        of_first_plane: dict[int, npt.NDArray[Any]] = {}

        def decode(number: int, part: memoryview) -> None:
            i = int(np.searchsorted(numbers, number % of_plane))
            rows, columns = np.unique(y[points[i]]), slice(int(x[points[i]].min()), int(x[points[i]].max()) + 1)
            pixels = of_first_plane.get(i, np.empty((len(rows), columns.stop - columns.start), self._dtype))
            segments.decode(number, part, rows, columns, pixels)
            out[points[i]] = pixels[np.searchsorted(rows, y[points[i]]), x[points[i]] - columns.start]
            if segments.planes > 1:
                of_first_plane[i] = pixels

        for plane in range(segments.planes):
            self._decode_segments(segments, numbers + plane * of_plane, decode)

    def _plan(
        self, offsets: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
    ) -> tuple[list[ByteRange], list[slice]]:
        """Return the byte ranges, each from its offset on, and the slice of them that each request fetches."""
        ranges = list(map(ByteRange, offsets.tolist(), (offsets + wanted).tolist()))
        return ranges, plan_pieces(offsets, wanted, 1 if self.read_ahead_until else self._file.connections)

    def _read_strips(self, index: StripIndex, rows: Rows, columns: slice, out: npt.NDArray[Any]) -> None:
        load_decoder(index.compression)
        strips, strip_of_row = np.unique(rows // index.rows_per_strip, return_inverse=True)
        stops = np.full(len(strips), columns.stop)
        if (self.read_ahead_until or out.nbytes > INTERACTIVE_BYTES) and len(strips) >= MANY_ROWS:
            self._learn_ahead(index, strips, columns.stop)
        ranges, pieces = self._plan(index.offsets[strips], self._bytes_wanted(index, strips, stops))
        straight = index.rows_per_strip == 1 and columns.start == 0 and out.flags.c_contiguous

        def decode_piece(i: int, parts: list[memoryview]) -> None:
            here = slice(*np.searchsorted(strip_of_row, (pieces[i].start, pieces[i].stop)))
            row_in_strip = rows[here] % index.rows_per_strip
            deep = int(row_in_strip.max()) + 1
            wide = columns.stop if deep == 1 else self._width  # the last row needed is decoded only up to there
            shape = len(parts), deep, wide
            block = out[here].reshape(shape) if straight else np.empty(shape, self._dtype)
            self._decode(index, strips[pieces[i]], parts, stops[pieces[i]], block)
            if not straight:
                with cores:
                    out[here] = block[strip_of_row[here] - pieces[i].start, row_in_strip, columns]

        self._file.fetch_each([ranges[piece] for piece in pieces], decode_piece)

    def _learn_ahead(self, index: StripIndex, strips: Rows, x_stop: int) -> None:
        """Learn which share of a strip holds the columns up to `x_stop` from a few of many strips, if it is not known.

        If the share were guessed too low, every strip would lack some bytes, and all slices that are read at once would
        be fetched twice. Nothing is learned where strips are fetched whole, as from a source that answers one range of
        a file at once; it is known to be one after this request.
        """
        is_whole = index.rows_per_strip > 1 or index.compression == UNCOMPRESSED or x_stop >= WHOLE_FROM * self._width
        if is_whole or not self._file.takes_several_ranges:
            return
        with prefix_shares.learning(self._file.source.url, self._width, x_stop) as is_unknown:
            if not is_unknown:
                return
            some = some_to_learn_from(strips)
            stops = np.full(len(some), x_stop)
            starts, wanted = index.offsets[some], self._bytes_wanted(index, some, stops)
            if (np.diff(starts) < wanted[:-1]).any():  # the rows are in another order than in the file
                return
            ranges = list(map(ByteRange, starts.tolist(), (starts + wanted).tolist()))
            parts = self._file.fetch_at_once(ranges)
            if parts is not None:
                self._decode(index, some, parts, stops, np.empty((len(some), 1, x_stop), self._dtype))

    def _read_row_beginnings(
        self, index: StripIndex, rows: Rows, stops: Rows, take: Callable[[int, npt.NDArray[Any]], None]
    ) -> None:
        """Read each row up to its own column; `take(row, pixels)` is called for each, in any order, on any thread."""
        load_decoder(index.compression)
        strips, strip_of_row = np.unique(rows // index.rows_per_strip, return_inverse=True)
        stops_of_strips = np.zeros(len(strips), np.intp)
        np.maximum.at(stops_of_strips, strip_of_row, stops)
        ranges, pieces = self._plan(index.offsets[strips], self._bytes_wanted(index, strips, stops_of_strips))

        def decode_piece(i: int, parts: list[memoryview]) -> None:
            here = range(*np.searchsorted(strip_of_row, (pieces[i].start, pieces[i].stop)).tolist())
            deep = max(int(rows[row]) % index.rows_per_strip for row in here) + 1
            some_stops = stops_of_strips[pieces[i]]
            block = np.empty((len(parts), deep, int(some_stops.max()) if deep == 1 else self._width), self._dtype)
            self._decode(index, strips[pieces[i]], parts, some_stops, block)
            for row in here:
                pixels = block[strip_of_row[row] - pieces[i].start, rows[row] % index.rows_per_strip]
                take(int(rows[row]), pixels[: stops[row]])

        self._file.fetch_each([ranges[piece] for piece in pieces], decode_piece)

    def _bytes_wanted(self, index: StripIndex, strips: Rows, stops: Rows) -> npt.NDArray[np.int64]:
        """Return how many bytes of each strip to fetch.

        A strip with several rows is fetched whole, because the positions of its rows are not learned; and so is one
        whose end is fetched anyway, because a single range reaches from it to the next strip.
        """
        counts = index.counts[strips]
        if index.rows_per_strip > 1:
            return counts
        wanted = prefix_shares.bytes_wanted(self._file.source.url, self._width, stops, counts)
        if not self._file.takes_several_ranges:
            ahead = np.diff(index.offsets[strips]) - counts[:-1]
            is_bridged = (ahead >= 0) & (ahead + counts[:-1] - wanted[:-1] <= WIDE_GAP)
            wanted[:-1] = np.where(is_bridged, counts[:-1], wanted[:-1])
            if is_bridged[-1:].any():
                wanted[-1] = counts[-1]  # if it lacked a few bytes, these would take one more request
        return wanted

    def _decode(
        self, index: StripIndex, strips: Rows, parts: list[memoryview], stops: Rows, block: npt.NDArray[Any]
    ) -> None:
        """Decode strips into `block`, (strips, rows of a strip, columns).

        The values below and to the right of the needed pixels are undefined. `parts` holds the first bytes of each
        strip. If they are too few for the columns up to the strip's entry in `stops`, more bytes are fetched.
        """
        _, deep, wide = block.shape
        there = np.minimum(deep, self._height - strips * index.rows_per_strip)  # the last strip may be short
        lengths = ((there - 1) * wide + stops).tolist()
        targets = [rows.reshape(-1)[:n].view(np.uint8) for rows, n in zip(block, lengths, strict=True)]
        with cores:
            decoded = [self._decode_strip(index, *one) for one in zip(strips.tolist(), parts, targets, strict=True)]
        short = [i for i, target in enumerate(targets) if decoded[i] < len(target)]
        while short:
            self._fetch_more(index, strips, parts, targets, decoded, short)
            short = [i for i in short if decoded[i] < len(targets[i])]
        with cores:
            if index.rows_per_strip == 1:
                for i in range(len(strips) if len(strips) <= MEASURED_ROWS else 1):
                    if stops[i] < self._width:
                        self._learn(index, int(strips[i]), parts[i], int(stops[i]))
            if index.big_endian != (sys.byteorder == "big"):
                block.byteswap(inplace=True)
            if index.predictor == 2:
                imagecodecs.delta_decode(block, axis=-1, out=block)

    def _fetch_more(
        self,
        index: StripIndex,
        strips: Rows,
        parts: list[memoryview],
        targets: list[npt.NDArray[np.uint8]],
        decoded: list[int],
        short: list[int],
    ) -> None:
        """Fetch more bytes of the strips in `short`, of which too few were fetched, and decode these strips again."""
        ranges = []
        for i in short:
            start, count = int(index.offsets[strips[i]]), int(index.counts[strips[i]])
            stop = bytes_for(count, len(parts[i]), decoded[i], len(targets[i]))
            ranges.append(ByteRange(start + len(parts[i]), start + stop))
        for i, more in zip(short, self._file.fetch_ranges(ranges), strict=True):
            parts[i] = memoryview(b"".join((parts[i], more)))
        with cores:
            for i in short:
                decoded[i] = self._decode_strip(index, int(strips[i]), parts[i], targets[i])

    def _learn(self, index: StripIndex, strip: int, part: memoryview, x_stop: int) -> None:
        """Learn how many bytes of a strip its columns up to `x_stop` take, from how far its first bytes decode."""
        row = np.empty(self._width, self._dtype).view(np.uint8)
        with suppress(StripError):  # the error is beyond the needed pixels
            decoded = DECODER_OF_COMPRESSION[index.compression](part, row, False)
            needed = len(part) * x_stop * self._dtype.itemsize / decoded
            prefix_shares.learn(self._file.source.url, self._width, x_stop, needed / int(index.counts[strip]))

    def _decode_strip(self, index: StripIndex, number: int, part: memoryview, target: npt.NDArray[np.uint8]) -> int:
        """Decode the first bytes of a strip, and return how many bytes of the target they gave.

        A complete strip must give all bytes of the target, otherwise FormatError is raised.
        """
        is_whole = len(part) == index.counts[number]
        # some writers pad the last strip if it is short
        is_all = is_whole and len(target) == index.rows_per_strip * self._width * self._dtype.itemsize
        try:
            count = DECODER_OF_COMPRESSION[index.compression](part, target, is_all)
        except StripError as error:
            problem = str(error)
        else:
            if count == len(target) or not is_whole:
                return count
            problem = f"holds {count} of {len(target)} bytes"
        first = number * index.rows_per_strip
        raise FormatError(
            f"{self._file.url}: the strip of rows {first}-{first + index.rows_per_strip - 1} {problem}; "
            "the file is damaged at its source."
        )

    def _load_index(self, rows: Rows) -> StripIndex:
        """Return the strip index with at least the entries of these rows."""
        with self._lock:
            if self._index is None:
                self._index = self._load_cached_index() or self._fetch_entries(rows)
            if self._index is None or not self._index.knows(rows):
                self._index = self._fetch_index()
            return self._index

    def _fetch_entries(self, rows: Rows) -> StripIndex | None:
        """Return the strip index with the entries of these rows and their neighbours, or None.

        It returns None if it is better to fetch the whole index, which takes one round trip less. So a part of the
        index is fetched only for a few rows of many slices. The whole index is fetched if other rows are read later.
        """
        known = known_directories.get(self._kind)
        is_thin = len(rows) <= FEW_ROWS and slices_across() > self._file.source.connections
        if known is None or known[0].nbytes < LARGE_INDEX or not is_thin or self._folder:
            return None
        directory, index = known
        entries = fetch_entries(self._file, directory, (rows // index.rows_per_strip).tolist())
        if entries is not None:
            index = replace(index, offsets=entries[0], counts=entries[1])
            if not beyond(index, self._file).any(where=index.offsets != 0):
                return index
        log.info("%s: its directory is not like another slice's", self._file.url)
        known_directories[self._kind] = None
        return None

    def _load_cached_index(self) -> StripIndex | None:
        cached = self._folder.load("strips", self._file.url) if self._folder else None
        if cached is None or not self._file.is_current(cached[0]):
            return None
        index = StripIndex.from_bytes(cached[1])
        if (index.height, index.width, index.itemsize) != (self._height, self._width, self._dtype.itemsize):
            return None  # the cached or the expected numbers are wrong: the file shows which
        return index

    def _fetch_index(self) -> StripIndex:
        index = read_strip_index(self._file, self._height, self._width, self._dtype)
        if self._folder and self._file.version and self._file.version.etag:
            self._folder.store("strips", self._file.url, self._file.version, index.to_bytes())
        return index


def _points_by(group: Rows) -> list[Rows]:
    """Return the numbers of the points in each group; every group has at least one point."""
    return np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])


prefix_shares = PrefixShares()


cached_rows: MemoryCache[_Stretch] = MemoryCache(ROWS_LIMIT)
