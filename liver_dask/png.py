"""Rows of one PNG mask: only the file's prefix up to the last row is fetched and inflated, and no row twice.

What is inflated has been compared with its checksum, which is behind each chunk of the file: a byte that changed on its
way gives no pixel.

A PNG has no random access, but it has prefixes, and the state of an inflater can be copied. So a mask keeps a
checkpoint every 256 rows (the inflater, its place in the file, the row before), about 60 kB each at full width, and a
later read goes on from the nearest one above it. dask reads blocks in any order: those decoded on the way to another
are kept for a while, a bit a pixel. So reading a mask block by block costs one decode in all, in whatever order.

An interlaced PNG has not even prefixes: it is fetched and decoded whole, once, and kept compressed.
"""

import bisect
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from .allowance import Allowance, cores
from .byteranges import Span
from .cache import FolderCache, MemoryCache
from .errors import FormatError
from .png_filters import LAST_FILTER, SIGNATURE, unfilter
from .png_interlace import pass_shapes, weave
from .remote import RemoteFile
from .volume import FOREGROUND

BLOCK_ROWS = 256
"""Rows from one checkpoint to the next."""

STEP_ROWS = 64
"""Rows that are decoded at once: a divisor of those of a block, and few, since many masks are read side by side."""

BLOCKS_LIMIT = 64 << 20
"""Bytes of decoded blocks that a process keeps, a bit a pixel: one whole mask and some."""

FIRST_REQUEST = 128 << 10
SMALLEST_REQUEST = 128 << 10
"""What follows the first request is split over the connections, but into no smaller ranges (bytes)."""

PIECE = 64 << 10
"""Compressed bytes handed to the inflater at once; what it leaves over is copied."""

MARGIN = 16 << 10
MARGIN_LIMIT = 128 << 10
"""Bytes fetched beyond what rows are guessed to take: some, and up to the end of a chunk unless chunks are long."""

CHUNK_OVERHEAD = 12
PRIOR_ROWS = 512
DENSER = 1.08
"""How much of a file some rows take is guessed from the rows so far, and from this many average ones, and a little is
added: a further request costs more than some bytes."""

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES_OF_COLOUR = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
BITS_OF_COLOUR = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}

Bytes2D = npt.NDArray[np.uint8]


@dataclass
class _Layout:
    """How the pixels of a mask are stored, from its IHDR and PLTE."""

    width: int
    bits: int
    colour: int
    coloured_entries: npt.NDArray[np.bool_] | None = None  # of a palette: which of its 256 are not black
    is_interlaced: bool = False
    of_what: str = ""  # follows the rows in messages, where they are not those of the image

    @property
    def samples(self) -> int:
        return SAMPLES_OF_COLOUR[self.colour]

    @property
    def row_bytes(self) -> int:
        return (self.width * self.samples * self.bits + 7) // 8

    @property
    def pixel_bytes(self) -> int:
        """Bytes from a pixel to what filters take as left of it."""
        return max(self.samples * self.bits // 8, 1)

    def to_bits(self, rows: Bytes2D, columns: slice) -> Bytes2D:
        """Columns `start` to `stop` of unfiltered rows as 0 / 1: foreground is whatever has a colour but black."""
        if self.bits < 8:
            per_byte = 8 // self.bits
            first, last = columns.start // per_byte, -(-columns.stop // per_byte)
            shifts = np.arange(8 - self.bits, -1, -self.bits, dtype=np.uint8)
            values = (rows[:, first:last, None] >> shifts) & np.uint8((1 << self.bits) - 1)
            skipped = columns.start - first * per_byte
            samples = values.reshape(len(rows), -1)[:, skipped : skipped + columns.stop - columns.start]
        elif self.pixel_bytes == 1:
            samples = rows[:, columns]
        else:  # alpha says nothing about the class
            pixels = rows.reshape(len(rows), self.width, self.pixel_bytes)[:, columns]
            samples = pixels[..., : (3 if self.samples > 2 else 1) * self.bits // 8].max(axis=-1)
        foreground = samples > 0 if self.coloured_entries is None else self.coloured_entries[samples]
        return foreground.view(np.uint8)


@dataclass
class _Checkpoint:
    """All that is needed to go on inflating at `row`: nothing above it, and no compressed byte before `position`."""

    row: int
    inflater: Any
    position: int
    above: npt.NDArray[np.uint8]

    def copy(self) -> "_Checkpoint":
        return _Checkpoint(self.row, self.inflater.copy(), self.position, self.above)


def _row(point: _Checkpoint) -> int:
    return point.row


class PngSlice:
    """One slice of a label; keeps what it fetched of the file, and its checkpoints."""

    def __init__(self, file: RemoteFile, height: int, width: int, folder: FolderCache | None) -> None:
        self._file = file
        self._height, self._width = height, width
        self._folder = folder
        self._stored = 0
        self._chunks = _Chunks(file.url)
        self._layout: _Layout | None = None
        self._checkpoints: list[_Checkpoint] = []
        self._latest: _Checkpoint | None = None
        self._interlaced_blocks: list[bytes] = []  # each deflated
        self.foreseen = 0  # rows up to this one will be read, so that what they take may be fetched at once
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes kept: of the file, of the checkpoints, and of what was interlaced."""
        of_blocks = sum(map(len, self._interlaced_blocks))
        of_checkpoints = (len(self._checkpoints) + 1) * (self._width + (40 << 10))
        return self._file.nbytes + len(self._chunks.prefix) + of_checkpoints + of_blocks

    def look(self) -> None:
        """Find out whether the file is there and as expected, by its header."""
        with self._lock:
            self._load_layout()

    def read(self, rows: npt.NDArray[np.intp], columns: slice, out: Bytes2D) -> None:
        """Read pixels of ascending, distinct rows and of columns `start` to `stop` into `out`, (rows, columns)."""
        stop = int(rows[-1]) + 1
        with self._lock:
            layout = self._load_layout()
            for block in range(int(rows[0]) // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
                wanted = rows[slice(*np.searchsorted(rows, (block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)))]
                for first, bits in self._read_block(layout, block, wanted, columns, stop) if len(wanted) else ():
                    here = slice(*np.searchsorted(rows, (first, first + len(bits))))
                    some = bits if len(rows[here]) == len(bits) else bits[rows[here] - first]
                    np.multiply(some, np.uint8(FOREGROUND), out=out[here])
            self._keep_in_folder()

    def _read_block(
        self, layout: _Layout, block: int, wanted: npt.NDArray[np.intp], columns: slice, stop: int
    ) -> Iterator[tuple[int, Bytes2D]]:
        """Some rows at a time, the number of the first and their pixels as 0 / 1: all that are wanted of a block."""
        packed = self._interlaced_block(layout, block) if layout.is_interlaced else _blocks.get(self._key(block))
        if packed is None:
            state = self._nearest(int(wanted[0]))
            end = min((block + 1) * BLOCK_ROWS, stop, self._height)
            nothing_else = len(wanted) == BLOCK_ROWS and columns == slice(0, self._width)
            while state.row < end:
                number, row = divmod(state.row, BLOCK_ROWS)
                packed = None
                if row == 0 and state.row + BLOCK_ROWS <= end and not (number == block and nothing_else):
                    packed = self._pack_block(layout, state, stop)
                    continue
                first, plain = state.row, self._next_rows(layout, state, end, stop)
                if number == block:
                    yield first, layout.to_bits(plain, columns)
            self._latest = state
        if packed is not None:
            first, last = int(wanted[0]) - block * BLOCK_ROWS, int(wanted[-1]) + 1 - block * BLOCK_ROWS
            yield int(wanted[0]), np.unpackbits(packed[first:last], axis=1, count=columns.stop)[:, columns]

    def _pack_block(self, layout: _Layout, state: _Checkpoint, stop: int) -> Bytes2D:
        """Decode and keep a block that is on the way to another, or of which only a part was asked for."""
        number, end = state.row // BLOCK_ROWS, state.row + BLOCK_ROWS
        parts = []
        while state.row < end:
            bits = layout.to_bits(self._next_rows(layout, state, end, stop), slice(0, self._width))
            parts.append(np.packbits(bits, axis=1))
        packed = np.concatenate(parts)
        _blocks.put(self._key(number), packed)
        return packed

    def _key(self, block: int) -> tuple[tuple[str, str], int]:
        return self._file.key, block

    def _nearest(self, row: int) -> _Checkpoint:
        """A copy of the last checkpoint at or above `row`."""
        known = [*self._checkpoints, *([self._latest] if self._latest else [])]
        return max((point for point in known if point.row <= row), key=_row).copy()

    def _next_rows(self, layout: _Layout, state: _Checkpoint, end: int, stop: int) -> Bytes2D:
        """Decode the next rows, not beyond `end`, leaving a checkpoint where a new block begins."""
        plain = self._decode_rows(layout, state, end, stop)
        if state.row == self._checkpoints[-1].row + BLOCK_ROWS:
            self._checkpoints.append(state.copy())
        return plain

    def _decode_rows(self, layout: _Layout, state: _Checkpoint, end: int, stop: int) -> Bytes2D:
        """Inflate and unfilter the next rows, not beyond `end`."""
        count = min(STEP_ROWS - state.row % STEP_ROWS, end - state.row)
        inflated = self._inflate(layout, state, count, stop)
        block = np.frombuffer(inflated, np.uint8).reshape(count, 1 + layout.row_bytes)
        if block[:, 0].max() > LAST_FILTER:
            rows = f"rows {state.row}-{state.row + count - 1}{layout.of_what}"
            raise self._damaged(f"{rows} have a filter that does not exist")
        with cores:
            plain = unfilter(block, state.above, layout.pixel_bytes)
        state.above = plain[-1].copy()
        state.row += count
        return plain

    def _interlaced_block(self, layout: _Layout, block: int) -> Bytes2D:
        """A block of an interlaced mask, a bit a pixel; the first time, the whole mask is decoded."""
        if not self._interlaced_blocks:
            assert self._file.identity is not None
            while self._fetch_range(self._file.identity.size):
                pass
            with one_interlaced:
                self._interlaced_blocks = self._decode_interlaced(layout)
        rows = min(BLOCK_ROWS, self._height - block * BLOCK_ROWS)
        return np.frombuffer(zlib_ng.decompress(self._interlaced_blocks[block]), np.uint8).reshape(rows, -1)

    def _decode_interlaced(self, layout: _Layout) -> list[bytes]:
        state = self._checkpoints[0].copy()
        passes = []
        for number, (rows, columns) in enumerate(pass_shapes(self._height, self._width), 1):
            of_pass = replace(layout, width=columns, of_what=f" of pass {number}")
            state.row, state.above = 0, np.zeros(of_pass.row_bytes, np.uint8)
            packed = np.empty((rows, (columns + 7) // 8), np.uint8)
            while columns and state.row < rows:
                first, plain = state.row, self._decode_rows(of_pass, state, rows, rows)
                packed[first : state.row] = np.packbits(of_pass.to_bits(plain, slice(0, columns)), axis=1)
            passes.append(packed)
        blocks = []
        for first in range(0, self._height, BLOCK_ROWS):
            with cores:
                bits = weave(passes, first, min(BLOCK_ROWS, self._height - first), self._width)
                blocks.append(zlib_ng.compress(np.packbits(bits, axis=1), 1))
        return blocks

    def _inflate(self, layout: _Layout, state: _Checkpoint, rows: int, stop: int) -> bytearray:
        """The bytes of the next rows; fetches more of the file where needed to reach `stop`."""
        count = rows * (1 + layout.row_bytes)
        inflated = bytearray()
        while len(inflated) < count:
            piece = self._chunks.compressed(state.position)
            if not piece:
                rows_done = state.row + len(inflated) * rows // count
                if self._fetch_more(state.position, rows_done, stop):
                    continue
            try:
                with cores:
                    part = state.inflater.decompress(piece, count - len(inflated))
            except zlib_ng.error as error:
                raise self._damaged(f"cannot be inflated below row {state.row}{layout.of_what} ({error})") from error
            if not part and not piece:
                raise self._damaged(f"ends before row {stop - 1}{layout.of_what}")
            state.position += len(piece) - len(state.inflater.unconsumed_tail)
            inflated += part
        return inflated

    def _load_layout(self) -> _Layout:
        if self._layout is None:
            kept = self._folder.load("masks", self._file.url) if self._folder else None
            if kept and self._file.is_current(kept[0]):
                self._chunks.append(kept[1])
                self._stored = len(kept[1])
            else:
                self._chunks.append(self._file.fetch(0, FIRST_REQUEST))
            while not self._chunks.reached_image:
                if not self._fetch_range(FIRST_REQUEST):
                    raise self._damaged("holds no image")
            self._layout = _layout_of(self._chunks, self._height, self._width)
            above_first = np.zeros(self._layout.row_bytes, np.uint8)
            self._checkpoints = [_Checkpoint(0, zlib_ng.decompressobj(), 0, above_first)]
        return self._layout

    def _fetch_more(self, position: int, rows_done: int, stop: int) -> bool:
        """Fetch about as much as the rows up to `stop` will take; False where the image has ended."""
        assert self._file.identity is not None
        expected = self._file.identity.size / self._height
        rate = (position + PRIOR_ROWS * expected) / (rows_done + PRIOR_ROWS)
        above = max(
            (point for point in self._checkpoints if point.row <= rows_done - BLOCK_ROWS), key=_row, default=None
        )
        if above:  # below the margin without tissue the latest rows tell more than all
            rate = max(rate, (position - above.position) / (rows_done - above.row))
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
        self._chunks.append(b"".join(part for i in range(len(requests)) for part in parts[i]))
        return True

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


_blocks: MemoryCache[Bytes2D] = MemoryCache(BLOCKS_LIMIT)

one_interlaced = Allowance(1)
"""To decode an interlaced mask takes a bit a pixel of all of it: not many at the same time."""


class _Chunks:
    """The chunks of a PNG as far as its prefix was fetched; the data of its IDAT chunks are one stream."""

    def __init__(self, url: str) -> None:
        self.prefix = bytearray()
        self.ended = False
        self.headers: dict[bytes, bytes] = {}
        self.reached_image = False
        self.lacking = 0  # bytes of the last chunk that are still to come, as far as it says
        self.longest = 0  # bytes of the longest chunk of the image so far
        self._idat_starts: list[int] = []  # where the data of each whole IDAT begin in the stream ...
        self._idat_places: list[tuple[int, int]] = []  # ... and in the file: start, stop
        self._url = url
        self._next = len(SIGNATURE)

    def append(self, data: bytes | memoryview) -> None:
        """Add what follows in the file."""
        self.prefix += data
        if not self.prefix.startswith(SIGNATURE):
            raise FormatError(f"{self._url}: is not a PNG: it begins with {bytes(self.prefix[:8])!r}.")
        while not self.ended and self._parse_chunk():
            pass

    def compressed(self, position: int) -> bytes:
        """Some of the stream from `position` on; empty where no more has come of which the checksum is right.

        So what is decoded is what was written, and what turns out to be damaged has given no pixel to anybody.
        """
        i = bisect.bisect_right(self._idat_starts, position) - 1
        if i < 0:
            return b""
        start, stop = self._idat_places[i]
        start += position - self._idat_starts[i]
        return bytes(self.prefix[start : min(stop, start + PIECE)])

    def _parse_chunk(self) -> bool:
        """Take note of the next chunk; False if it is not all there."""
        if len(self.prefix) < self._next + 8:
            return False
        length, kind = struct.unpack_from(">I4s", self.prefix, self._next)
        start, stop = self._next + 8, self._next + 8 + length
        self.reached_image |= kind == b"IDAT"
        self.lacking = max(stop + 4 - len(self.prefix), 0)
        if self.lacking:
            return False
        with memoryview(self.prefix) as view:
            crc = zlib_ng.crc32(view[start - 4 : stop])
        if crc != int.from_bytes(self.prefix[stop : stop + 4], "big"):
            raise FormatError(f"{self._url}: the chunk at byte {self._next} is damaged (its checksum is wrong).")
        if kind == b"IDAT":
            self._idat_starts.append(sum(self._last_idat()))
            self._idat_places.append((start, stop))
            self.longest = max(self.longest, length + CHUNK_OVERHEAD)
        else:
            self.headers[kind] = bytes(self.prefix[start:stop])
        self.ended = kind == b"IEND"
        self._next = stop + 4
        return True

    def _last_idat(self) -> tuple[int, int]:
        """Start in the stream and length of the last IDAT chunk."""
        if not self._idat_starts:
            return 0, 0
        start, stop = self._idat_places[-1]
        return self._idat_starts[-1], stop - start


def _layout_of(chunks: _Chunks, height: int, width: int) -> _Layout:
    """Read IHDR and PLTE, or say what of them is not as expected."""
    header = chunks.headers.get(b"IHDR", b"")
    if len(header) != 13:
        raise FormatError(f"{chunks._url}: has no header.")
    columns, rows, bits, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", header)
    if (rows, columns) != (height, width):
        raise FormatError(
            f"{chunks._url}: found {rows} x {columns} pixels (rows x columns), expected {height} x {width}."
        )
    if bits not in BITS_OF_COLOUR.get(colour, ()) or compression or filters or interlaced > 1:
        raise FormatError(
            f"{chunks._url}: found {bits} bits of colour type {colour}, compression {compression}, filters {filters} "
            f"and interlacing {interlaced}, which is no PNG that there can be; the file is damaged at its source."
        )
    layout = _Layout(width, bits, colour, is_interlaced=bool(interlaced))
    if colour != PALETTE:
        return layout
    palette = chunks.headers.get(b"PLTE", b"")
    if not 3 <= len(palette) <= 3 * 256 or len(palette) % 3:
        raise FormatError(f"{chunks._url}: has no palette, or a damaged one.")
    coloured_entries = np.zeros(256, bool)
    coloured_entries[: len(palette) // 3] = np.frombuffer(palette, np.uint8).reshape(-1, 3).any(axis=1)
    return replace(layout, coloured_entries=coloured_entries)
