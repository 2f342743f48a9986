"""Parses the fetched prefix of a PNG: its chunks, some of which form one compressed stream, and its pixel layout.

The data of a chunk are used only after they match the checksum that follows them. Therefore a byte that changed during
the transfer never becomes a pixel.
"""

import bisect
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from ...core.errors import GIVE_SHAPE, FormatError

SIGNATURE = b"\x89PNG\r\n\x1a\n"

PIECE = 64 << 10
"""Number of compressed bytes passed to the inflater at once; the bytes that it does not consume are copied."""

CHUNK_OVERHEAD = 12

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
NAME_OF_COLOUR = {GREY: "grey", RGB: "RGB", PALETTE: "palette", GREY_ALPHA: "grey and alpha", RGBA: "RGB and alpha"}
SAMPLES_OF_COLOUR = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
BITS_OF_COLOUR = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}

Bytes2D = npt.NDArray[np.uint8]


@dataclass
class Layout:
    """How the pixels of a mask are stored, from its IHDR and PLTE chunks."""

    width: int
    bits: int
    colour: int
    coloured_entries: npt.NDArray[np.bool_] | None = None  # for a palette: which of its 256 entries are not black
    is_interlaced: bool = False
    of_what: str = ""  # follows the row numbers in messages, if they are not rows of the image

    @property
    def samples(self) -> int:
        return SAMPLES_OF_COLOUR[self.colour]

    @property
    def row_bytes(self) -> int:
        return (self.width * self.samples * self.bits + 7) // 8

    @property
    def pixel_bytes(self) -> int:
        """Distance in bytes from a byte to its left neighbour in the filters."""
        return max(self.samples * self.bits // 8, 1)

    def to_bits(self, rows: Bytes2D, columns: slice) -> Bytes2D:
        """Return columns `start` to `stop` of unfiltered rows as 0 or 1, (rows, columns).

        Every colour except black is foreground.
        """
        samples = self._samples(rows, columns)
        foreground = samples > 0 if self.coloured_entries is None else self.coloured_entries[samples]
        return foreground.view(np.uint8)

    def values(self, rows: Bytes2D) -> npt.NDArray[np.uint16]:
        """Return numbers that tell colours apart, (rows, columns): 0 for black, and one for each grey or palette entry.

        Of several samples a pixel, or samples of 16 bits, it is the largest byte.
        """
        samples = self._samples(rows, slice(0, self.width)).astype(np.uint16)
        if self.coloured_entries is None:
            return samples
        return np.where(self.coloured_entries[samples], samples + 1, 0).astype(np.uint16)

    def describe(self) -> dict[str, Any]:
        """Return the layout in words, as plain JSON."""
        return {
            "dtype": f"{NAME_OF_COLOUR[self.colour]}, {self.bits} bit",
            "interlaced": self.is_interlaced,
        }

    def _samples(self, rows: Bytes2D, columns: slice) -> Bytes2D:
        """Return for each pixel its grey, its palette entry, or the largest byte of its colours."""
        if self.bits < 8:
            per_byte = 8 // self.bits
            first, last = columns.start // per_byte, -(-columns.stop // per_byte)
            shifts = np.arange(8 - self.bits, -1, -self.bits, dtype=np.uint8)
            values = (rows[:, first:last, None] >> shifts) & np.uint8((1 << self.bits) - 1)
            skipped = columns.start - first * per_byte
            return values.reshape(len(rows), -1)[:, skipped : skipped + columns.stop - columns.start]
        if self.pixel_bytes == 1:
            return rows[:, columns]
        pixels = rows.reshape(len(rows), self.width, self.pixel_bytes)[:, columns]
        of_colour = (3 if self.samples > 2 else 1) * self.bits // 8  # alpha says nothing about the class
        largest: Bytes2D = pixels[..., :of_colour].max(axis=-1)
        return largest


class Chunks:
    """The chunks in the fetched prefix of a PNG; the data of its IDAT chunks form one stream."""

    def __init__(self, url: str) -> None:
        self.prefix = bytearray()
        self.ended = False
        self.headers: dict[bytes, bytes] = {}
        self.reached_image = False
        self.lacking = 0  # missing bytes of the last chunk, according to its length field
        self.longest = 0  # bytes of the longest IDAT chunk so far
        self._idat_starts: list[int] = []  # start of the data of each complete IDAT in the stream ...
        self._idat_places: list[tuple[int, int]] = []  # ... and in the file: start, stop
        self.url = url
        self._next = len(SIGNATURE)

    def read_anew(self) -> "Chunks":
        """Return new Chunks, parsed from the same bytes."""
        chunks = Chunks(self.url)
        if self.prefix:
            chunks.append(self.prefix)
        return chunks

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of the file, and parse them."""
        self.prefix += data
        if not self.prefix.startswith(SIGNATURE):
            raise FormatError(f"{self.url}: is not a PNG: it begins with {bytes(self.prefix[:8])!r}.")
        while not self.ended and self._parse_chunk():
            pass

    def compressed(self, position: int) -> bytes:
        """Return some bytes of the stream from `position` on; empty if no more bytes with a right checksum are there.

        Therefore the decoded pixels are those that were written, and damaged data never become pixels.
        """
        i = bisect.bisect_right(self._idat_starts, position) - 1
        if i < 0:
            return b""
        start, stop = self._idat_places[i]
        start += position - self._idat_starts[i]
        return bytes(self.prefix[start : min(stop, start + PIECE)])

    def _parse_chunk(self) -> bool:
        """Parse the next chunk; return False if it is incomplete."""
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
            raise FormatError(f"{self.url}: the chunk at byte {self._next} is damaged (its checksum is wrong).")
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
        """Return the start in the stream and the length of the last IDAT chunk, in bytes."""
        if not self._idat_starts:
            return 0, 0
        start, stop = self._idat_places[-1]
        return self._idat_starts[-1], stop - start


def layout_of(chunks: Chunks, height: int, width: int) -> Layout:
    """Return the layout from the IHDR and PLTE chunks.

    Raises:
        FormatError: They are missing or damaged, or the image is not `height` x `width` pixels.
    """
    header = chunks.headers.get(b"IHDR", b"")
    if len(header) != 13:
        raise FormatError(f"{chunks.url}: has no header.")
    columns, rows, bits, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", header)
    if (rows, columns) != (height, width):
        raise FormatError(
            f"{chunks.url}: found {rows} x {columns} pixels (rows x columns), expected {height} x {width}; "
            f"{GIVE_SHAPE}."
        )
    if bits not in BITS_OF_COLOUR.get(colour, ()) or compression or filters or interlaced > 1:
        raise FormatError(
            f"{chunks.url}: found {bits} bits of colour type {colour}, compression {compression}, filters {filters} "
            f"and interlacing {interlaced}, which is no PNG that there can be; the file is damaged at its source."
        )
    layout = Layout(width, bits, colour, is_interlaced=bool(interlaced))
    if colour != PALETTE:
        return layout
    palette = chunks.headers.get(b"PLTE", b"")
    if not 3 <= len(palette) <= 3 * 256 or len(palette) % 3:
        raise FormatError(f"{chunks.url}: has no palette, or a damaged one.")
    coloured_entries = np.zeros(256, bool)
    coloured_entries[: len(palette) // 3] = np.frombuffer(palette, np.uint8).reshape(-1, 3).any(axis=1)
    return replace(layout, coloured_entries=coloured_entries)
