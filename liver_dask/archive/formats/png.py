"""Reads rows of one PNG mask: it fetches and inflates only the file's prefix up to the last row, and no row twice.

A PNG has no random access, but its rows can be decoded from a prefix of the file, and decoding can continue from there
later. Decoded rows are kept compressed, with one bit per pixel: a whole mask takes about a megabyte, whatever is read
of it and in whatever order. An interlaced PNG cannot be decoded from a prefix: it is fetched and decoded whole.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.concurrency import ConcurrencyLimit, cores
from ..remote.cache import FolderCache
from ..remote.files import RemoteFile
from .mask_rows import BLOCK_ROWS, Bytes2D, MaskRows, compress
from .png_file import FIRST_REQUEST, SMALLEST_REQUEST, PngFile
from .png_filters import load_ahead
from .png_interlace import pass_shapes, weave
from .png_rows import INFLATER_BYTES, RowDecoder
from .png_stream import Layout
from .slices import Measured, Reading, Rows, SliceReader

MARGIN = 16 << 10
MARGIN_LIMIT = 128 << 10
"""Bytes that are fetched beyond the estimate for the rows.

These are MARGIN bytes, and as many as the longest chunk has, but at most MARGIN_LIMIT, to reach the end of a chunk.
"""

PRIOR_ROWS = 512
DENSER = 1.04
"""Parameters of the estimate of the bytes that some rows take.

The estimate is based on the rows so far and PRIOR_ROWS average rows, or on the rest of the file and its rows, whichever
gives more. It is multiplied by DENSER, because one more request costs more than some bytes.
"""


class PngSlice(SliceReader):
    """One slice of a label; keeps the fetched part of the file and the decoded rows in memory."""

    FROM_THE_TOP = True
    HAS_MASKS = True
    BYTES_PER_PIXEL = 0.006  # masks of real EM data, 20000 x 20000 pixels, are files of 0.5 to 4.8 MB

    def __init__(
        self, file: RemoteFile, height: int, width: int, dtype: np.dtype[Any], dataset: str, folder: FolderCache | None
    ) -> None:
        super().__init__(file, height, width, dtype, dataset, folder)
        self._png = PngFile(file, height, width, folder)
        self._lock = threading.Lock()
        self._begin(0)

    def _begin(self, row_bytes: int) -> None:
        """Start again, with no decoded rows."""
        self._decoder = RowDecoder(self._png, row_bytes)
        self._has_begun = row_bytes > 0
        self._blocks: list[bytes] = []
        self._starts = [0]  # where each block starts in the compressed stream
        self._below = np.empty((0, (self._width + 7) // 8), np.uint8)  # rows that do not fill a block yet

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes: the fetched part of the file and the decoded rows."""
        return self._png.nbytes + sum(map(len, self._blocks)) + self._below.nbytes + self._width + INFLATER_BYTES

    def probe(self) -> None:
        """Check that the file exists and that its header is as expected."""
        with self._lock:
            self._png.layout()

    def describe(self) -> dict[str, Any]:
        """Return what the header says, see `SliceReader.describe`; it is an error if the file has no end."""
        with self._lock:
            self._png.check_end()
            return {"format": "PNG", "shape": [self._height, self._width], **self._png.layout().describe()}

    def values(self) -> Iterator[npt.NDArray[Any]]:
        """Yield all values, see `SliceReader.values`; the file is fetched and decoded whole, and not kept decoded."""
        with self._lock:
            layout = self._png.layout()
            load_ahead()
            while self._png.fetch(self._png.size):
                pass
            decoder = RowDecoder(self._png, layout.row_bytes)
            shapes = pass_shapes(self._height, self._width) if layout.is_interlaced else [(self._height, self._width)]
            for rows, columns in shapes:
                of_pass = replace(layout, width=columns)
                decoder.begin(of_pass.row_bytes)
                while columns and decoder.row < rows:
                    plain = decoder.next_rows(of_pass, rows, lambda position, rows_done: False)  # all bytes are here
                    yield of_pass.values(plain)
                    decoder.pass_by(plain)

    def read(self, rows: Rows, columns: slice, out: Bytes2D) -> None:
        """Read a window of pixels, see `SliceReader.read`."""
        self.prepare(int(rows[0]), int(rows[-1]) + 1).read(rows, columns, out)

    def prepare(self, start: int, stop: int) -> MaskRows:
        """Return rows `start` to `stop`, and some rows around them."""
        with self._lock:
            layout = self._png.layout()
            load_ahead()
            if self._decoder.is_torn or not self._has_begun:  # the first time, or after an interrupt
                self._begin(layout.row_bytes)
            if layout.is_interlaced:
                self._decode_interlaced(layout)
            while self._rows_decoded() < stop:
                self._decode_some(layout, stop)
            self._png.store_in_folder()
            first, last = start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)
            below = [compress(self._below)] if last > len(self._blocks) else []
            return MaskRows(self._width, first, (*self._blocks[first:last], *below))

    def measure(self, rows: Rows, last_column: int) -> Measured:
        """Return how many bytes hold the rows from the top on, see `SliceReader.measure`; they are fetched."""
        self.prepare(int(rows[-1]), int(rows[-1]) + 1)
        size = float(len(self._png.chunks.prefix))
        whole = self.measured_whole()
        return whole or Measured(size, size, size, self._file.takes_several_ranges)

    @classmethod
    def traffic(cls, reading: Reading, row_blocks: int) -> tuple[float, float]:
        """Estimate the traffic: the file's prefix down to the last row, fetched in one step."""
        if reading.measured and reading.measured.is_file:
            return 1, reading.measured.whole
        prefix = reading.bytes_per_pixel * reading.width * reading.last_row
        if reading.measured:
            prefix = reading.measured.part
        rest = max(prefix - FIRST_REQUEST, 0)
        return 1 + min(math.ceil(rest / SMALLEST_REQUEST), reading.connections), prefix

    def _rows_decoded(self) -> int:
        return min(len(self._blocks) * BLOCK_ROWS + len(self._below), self._height)

    def _decode_some(self, layout: Layout, stop: int) -> None:
        """Decode the next rows, but not beyond the end of a block or row `stop`."""
        block_end = min(BLOCK_ROWS * (len(self._blocks) + 1), self._height)
        plain = self._decoder.next_rows(
            layout, min(block_end, stop), lambda position, rows_done: self._fetch_more(position, rows_done, stop)
        )
        with cores:
            packed = np.packbits(layout.to_bits(plain, slice(0, self._width)), axis=1)
            below = np.concatenate([self._below, packed])
            block = compress(below) if self._decoder.row + len(plain) == block_end else None
        with self._decoder.changing():
            self._decoder.pass_by(plain)
            self._below = below
            if block:
                self._blocks.append(block)
                self._starts.append(self._decoder.position)
                self._below = below[:0]

    def _fetch_more(self, position: int, rows_done: int, stop: int) -> bool:
        """Fetch about as many bytes as the rows up to `stop` take; return False if the image has ended."""
        size = self._png.size
        rate = (position + PRIOR_ROWS * size / self._height) / (rows_done + PRIOR_ROWS)
        rate = max(rate, (size - position) / max(self._height - rows_done, 1))
        block = min(rows_done // BLOCK_ROWS, len(self._starts)) - 1
        if block >= 0:  # below the empty margin, the latest rows predict better than all rows
            rate = max(rate, (position - self._starts[block]) / (rows_done - block * BLOCK_ROWS))
        expected_bytes = int((max(stop, self.read_ahead_until) - rows_done) * rate * DENSER)
        expected_bytes += MARGIN + min(self._png.chunks.longest, MARGIN_LIMIT)
        return self._png.fetch(max(expected_bytes, self._png.chunks.lacking))

    def _decode_interlaced(self, layout: Layout) -> None:
        """Decode a whole interlaced mask, unless it is already decoded."""
        if self._blocks:
            return
        while self._png.fetch(self._png.size):
            pass
        with one_interlaced:
            passes = self._decode_passes(layout)
            blocks = []
            for first in range(0, self._height, BLOCK_ROWS):
                with cores:
                    bits = weave(passes, first, min(BLOCK_ROWS, self._height - first), self._width)
                    blocks.append(compress(np.packbits(bits, axis=1)))
        self._blocks = blocks

    def _decode_passes(self, layout: Layout) -> list[Bytes2D]:
        decoder = RowDecoder(self._png, layout.row_bytes)
        passes = []
        for number, (rows, columns) in enumerate(pass_shapes(self._height, self._width), 1):
            of_pass = replace(layout, width=columns, of_what=f" of pass {number}")
            decoder.begin(of_pass.row_bytes)
            packed = np.empty((rows, (columns + 7) // 8), np.uint8)
            while columns and decoder.row < rows:
                plain = decoder.next_rows(of_pass, rows, lambda position, rows_done: False)  # all bytes are here
                packed[decoder.row : decoder.row + len(plain)] = np.packbits(
                    of_pass.to_bits(plain, slice(0, columns)), axis=1
                )
                decoder.pass_by(plain)
            passes.append(packed)
        return passes


one_interlaced = ConcurrencyLimit(1)
"""Limits how many interlaced masks are decoded at once: each takes memory of one bit per pixel of the whole mask."""
