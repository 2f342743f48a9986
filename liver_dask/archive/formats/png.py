"""Rows of one PNG mask: only the file's prefix up to the last row is fetched and inflated, and no row twice.

A PNG has no random access, but it has prefixes: what is below the rows that were decoded is decoded from there on. What
is decoded is kept compressed, a bit a pixel: all of a mask takes about a megabyte, whatever is read of it and in
whatever order. An interlaced PNG has not even prefixes: it is fetched and decoded whole.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from ...core.concurrency import Allowance, cores
from ...core.errors import FormatError
from ..remote.cache import FolderCache
from ..remote.files import RemoteFile
from ..remote.ranges import Span
from .png_filters import LAST_FILTER, unfilter
from .png_interlace import pass_shapes, weave
from .png_stream import Chunks, Layout, layout_of
from .slices import PreparedRows, Reading, SliceReader

BLOCK_ROWS = 256
"""Rows that are compressed together."""

STEP_ROWS = 64
"""Rows that are decoded at once: a divisor of those of a block, and few, so that they stay in the processor's cache."""

FIRST_REQUEST = 128 << 10
SMALLEST_REQUEST = 128 << 10
"""What follows the first request is split over the connections, but into no smaller ranges (bytes)."""

MARGIN = 16 << 10
MARGIN_LIMIT = 128 << 10
"""Bytes fetched beyond what rows are guessed to take: some, and up to the end of a chunk unless chunks are long."""

PRIOR_ROWS = 512
DENSER = 1.04
"""How much of a file some rows take is guessed from the rows so far and this many average ones, or from what is left of
the file and its rows, whichever is more, and a little is added: a further request costs more than some bytes."""

INFLATER_BYTES = 40 << 10
ZSTD_LEVEL = 1

Bytes2D = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MaskRows(PreparedRows):
    """Decoded rows of a mask, compressed: small enough to be kept, and to be sent to other processes.

    Attributes:
        width: Columns.
        first: The number of the first block.
        blocks: Each has BLOCK_ROWS rows, the last as many as were decoded; a bit a pixel.
    """

    width: int
    first: int
    blocks: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return sum(map(len, self.blocks))

    def read(self, rows: npt.NDArray[np.intp], columns: slice, out: Bytes2D) -> None:
        """Read pixels of ascending, distinct rows and of columns `start` to `stop` into `out`, (rows, columns).

        They are 0 or 255.
        """
        used = slice(columns.start // 8, -(-columns.stop // 8))
        skipped = columns.start - 8 * used.start
        for number in range(int(rows[0]) // BLOCK_ROWS, int(rows[-1]) // BLOCK_ROWS + 1):
            here = slice(*np.searchsorted(rows, (number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS)))
            if here.start == here.stop:
                continue
            with cores:
                packed = _decompress(self.blocks[number - self.first], self.width)
                wanted = rows[here] - number * BLOCK_ROWS
                if wanted[-1] - wanted[0] == len(wanted) - 1:
                    some = packed[wanted[0] : wanted[-1] + 1, used]
                else:
                    some = packed[wanted, used]
                bits = np.unpackbits(some, axis=1, count=skipped + columns.stop - columns.start)
                np.negative(bits[:, skipped:], out=out[here])  # 1 becomes 255


def _compress(packed: Bytes2D) -> bytes:
    return bytes(imagecodecs.zstd_encode(packed, ZSTD_LEVEL))


def _decompress(block: bytes, width: int) -> Bytes2D:
    return np.frombuffer(imagecodecs.zstd_decode(block), np.uint8).reshape(-1, (width + 7) // 8)


class _Place:
    """How far a stream was decoded, and what it takes to go on."""

    def __init__(self, row_bytes: int) -> None:
        self.inflater = zlib_ng.decompressobj()
        self.position = 0  # in the compressed stream
        self.begin(row_bytes)

    def begin(self, row_bytes: int) -> None:
        """Here the first row of an image begins."""
        self.row = 0
        self.above = np.zeros(row_bytes, np.uint8)
        self.inflated = b""  # of the next rows, as far as they have come

    def pass_by(self, plain: Bytes2D) -> None:
        """These were the next rows."""
        self.row += len(plain)
        self.above = plain[-1].copy()
        self.inflated = self.inflated[len(plain) * (1 + len(self.above)) :]


class PngSlice(SliceReader):
    """One slice of a label; keeps what it fetched of the file, and what it decoded."""

    FROM_THE_TOP = True
    HAS_MASKS = True
    BYTES_PER_PIXEL = 0.006  # masks of real EM, 20000 x 20000 pixels, are files of 0.5 to 4.8 MB

    def __init__(
        self, file: RemoteFile, height: int, width: int, dtype: np.dtype[Any], dataset: str, folder: FolderCache | None
    ) -> None:
        super().__init__(file, height, width, dtype, dataset, folder)
        self._stored = 0
        self._chunks = Chunks(file.url)
        self._layout: Layout | None = None
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        """Nothing is decoded."""
        self._place = _Place(self._layout.row_bytes if self._layout else 0)
        self._blocks: list[bytes] = []
        self._starts = [0]  # of blocks, in the compressed stream
        self._below = np.empty((0, (self._width + 7) // 8), np.uint8)  # rows that are no whole block yet
        self._is_changing = False

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Meanwhile what is known of how far it is decoded does not fit together; so it stays after an interrupt."""
        self._is_changing = True
        yield
        self._is_changing = False

    @property
    def nbytes(self) -> int:
        """Bytes kept: of the file, and of what was decoded."""
        of_file = self._file.nbytes + len(self._chunks.prefix)
        return of_file + sum(map(len, self._blocks)) + self._below.nbytes + self._width + INFLATER_BYTES

    def look(self) -> None:
        """Find out whether the file is there and as expected, by its header."""
        with self._lock:
            self._layout_now()

    def read(self, rows: npt.NDArray[np.intp], columns: slice, out: Bytes2D) -> None:
        """Read pixels of ascending, distinct rows and of columns `start` to `stop` into `out`, (rows, columns)."""
        self.prepare(int(rows[0]), int(rows[-1]) + 1).read(rows, columns, out)

    def prepare(self, start: int, stop: int) -> MaskRows:
        """Rows `start` to `stop`, and some around them."""
        with self._lock:
            layout = self._layout_now()
            if layout.is_interlaced:
                self._decode_interlaced(layout)
            while self._rows_decoded() < stop:
                self._decode_some(layout, stop)
            self._keep_in_folder()
            first, last = start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)
            below = [_compress(self._below)] if last > len(self._blocks) else []
            return MaskRows(self._width, first, (*self._blocks[first:last], *below))

    @classmethod
    def traffic(cls, reading: Reading, bands: int) -> tuple[float, float]:
        """The file down to the last row, at once."""
        prefix = reading.bytes_per_pixel * reading.width * reading.last_row
        return 1 + min(math.ceil(prefix / SMALLEST_REQUEST), reading.connections), prefix

    def _rows_decoded(self) -> int:
        return min(len(self._blocks) * BLOCK_ROWS + len(self._below), self._height)

    def _decode_some(self, layout: Layout, stop: int) -> None:
        """Decode the next rows, not beyond a block's end or `stop`."""
        block_end = min(BLOCK_ROWS * (len(self._blocks) + 1), self._height)
        plain = self._next_rows(layout, self._place, min(block_end, stop), stop)
        with cores:
            packed = np.packbits(layout.to_bits(plain, slice(0, self._width)), axis=1)
            below = np.concatenate([self._below, packed])
            block = _compress(below) if self._place.row + len(plain) == block_end else None
        with self._changing():
            self._place.pass_by(plain)
            self._below = below
            if block:
                self._blocks.append(block)
                self._starts.append(self._place.position)
                self._below = below[:0]

    def _next_rows(self, layout: Layout, place: _Place, end: int, stop: int) -> Bytes2D:
        """Inflate and unfilter the next rows, not beyond `end`."""
        count = min(STEP_ROWS - place.row % STEP_ROWS, end - place.row)
        self._inflate(layout, place, count, stop)
        row_length = 1 + layout.row_bytes  # more may have come, when more was wanted
        rows = np.frombuffer(place.inflated, np.uint8, count * row_length).reshape(count, row_length)
        if rows[:, 0].max() > LAST_FILTER:
            numbers = f"rows {place.row}-{place.row + count - 1}{layout.of_what}"
            raise self._damaged(f"{numbers} have a filter that does not exist")
        with cores:
            return unfilter(rows, place.above, layout.pixel_bytes)

    def _inflate(self, layout: Layout, place: _Place, rows: int, stop: int) -> None:
        """Inflate the next rows; fetches more of the file where needed to reach `stop`."""
        count = rows * (1 + layout.row_bytes)
        while len(place.inflated) < count:
            piece = self._chunks.compressed(place.position)
            if not piece:
                rows_done = place.row + len(place.inflated) * rows // count
                if self._fetch_more(place.position, rows_done, stop):
                    continue
            with cores, self._changing():
                try:
                    part = place.inflater.decompress(piece, count - len(place.inflated))
                except zlib_ng.error as error:
                    problem = f"cannot be inflated below row {place.row}{layout.of_what} ({error})"
                    raise self._damaged(problem) from error
                place.position += len(piece) - len(place.inflater.unconsumed_tail)
                place.inflated = place.inflated + part if place.inflated else part
            if not part and not piece:
                raise self._damaged(f"ends before row {stop - 1}{layout.of_what}")

    def _decode_interlaced(self, layout: Layout) -> None:
        """Decode all of an interlaced mask, the first time."""
        if self._blocks:
            return
        assert self._file.identity is not None
        while self._fetch_range(self._file.identity.size):
            pass
        with one_interlaced:
            passes = self._decode_passes(layout)
            blocks = []
            for first in range(0, self._height, BLOCK_ROWS):
                with cores:
                    bits = weave(passes, first, min(BLOCK_ROWS, self._height - first), self._width)
                    blocks.append(_compress(np.packbits(bits, axis=1)))
        self._blocks = blocks

    def _decode_passes(self, layout: Layout) -> list[Bytes2D]:
        place = _Place(layout.row_bytes)
        passes = []
        for number, (rows, columns) in enumerate(pass_shapes(self._height, self._width), 1):
            of_pass = replace(layout, width=columns, of_what=f" of pass {number}")
            place.begin(of_pass.row_bytes)
            packed = np.empty((rows, (columns + 7) // 8), np.uint8)
            while columns and place.row < rows:
                plain = self._next_rows(of_pass, place, rows, rows)
                packed[place.row : place.row + len(plain)] = np.packbits(
                    of_pass.to_bits(plain, slice(0, columns)), axis=1
                )
                place.pass_by(plain)
            passes.append(packed)
        return passes

    def _layout_now(self) -> Layout:
        """How the file is made; fetches its beginning, the first time, and begins anew after an interrupt."""
        if self._is_changing:
            self._chunks = self._chunks.read_anew()
            self._begin()
        if self._layout is None:
            if not self._chunks.prefix:
                self._load_beginning()
            while not self._chunks.reached_image:
                if not self._fetch_range(FIRST_REQUEST):
                    raise self._damaged("holds no image")
            self._layout = layout_of(self._chunks, self._height, self._width)
            self._begin()
        return self._layout

    def _load_beginning(self) -> None:
        kept = self._folder.load("masks", self._file.url) if self._folder else None
        if kept and self._file.is_current(kept[0]):
            self._append(kept[1])
            self._stored = len(kept[1])
        else:
            self._append(self._file.fetch(0, FIRST_REQUEST))

    def _fetch_more(self, position: int, rows_done: int, stop: int) -> bool:
        """Fetch about as much as the rows up to `stop` will take; False where the image has ended."""
        assert self._file.identity is not None
        expected = self._file.identity.size / self._height
        rate = (position + PRIOR_ROWS * expected) / (rows_done + PRIOR_ROWS)
        rate = max(rate, (self._file.identity.size - position) / max(self._height - rows_done, 1))
        block = min(rows_done // BLOCK_ROWS, len(self._starts)) - 1
        if block >= 0:  # below the margin without tissue the latest rows tell more than all
            rate = max(rate, (position - self._starts[block]) / (rows_done - block * BLOCK_ROWS))
        expected_bytes = int((max(stop, self.foreseen) - rows_done) * rate * DENSER)
        expected_bytes += MARGIN + min(self._chunks.longest, MARGIN_LIMIT)
        return self._fetch_range(max(expected_bytes, self._chunks.lacking))

    def _fetch_range(self, count: int) -> bool:
        """Fetch the next `count` bytes of the file, over several connections."""
        assert self._file.identity is not None
        first = len(self._chunks.prefix)
        count = min(count, self._file.identity.size - first)
        if count <= 0 or self._chunks.ended:
            return False
        step = max(SMALLEST_REQUEST, -(-count // self._file.connections))
        requests = [[Span(start, min(start + step, first + count))] for start in range(first, first + count, step)]
        parts: dict[int, list[memoryview]] = {}
        self._file.fetch_each(requests, parts.__setitem__)
        self._append(b"".join(part for i in range(len(requests)) for part in parts[i]))
        return True

    def _append(self, data: bytes | memoryview) -> None:
        with self._changing():
            self._chunks.append(data)

    def _keep_in_folder(self) -> None:
        """Store what was fetched: at first, at the end, and whenever it has grown by half."""
        prefix = self._chunks.prefix
        if not (self._folder and self._file.identity and self._file.identity.tag) or len(prefix) == self._stored:
            return
        if len(prefix) == self._file.identity.size or len(prefix) > 1.5 * self._stored:
            self._folder.store("masks", self._file.url, self._file.identity, bytes(prefix))
            self._stored = len(prefix)

    def _damaged(self, problem: str) -> FormatError:
        return FormatError(f"{self._file.url}: {problem}; the file is damaged or cut short at its source.")


one_interlaced = Allowance(1)
"""To decode an interlaced mask takes a bit a pixel of all of it: not many at the same time."""
