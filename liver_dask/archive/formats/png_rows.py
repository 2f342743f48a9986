"""Inflates and unfilters the rows of a PNG image one after the other, from the first row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from zlib_ng import zlib_ng

from ...core.concurrency import cores
from .mask_rows import Bytes2D
from .png_file import PngFile
from .png_filters import LAST_FILTER, unfilter
from .png_stream import Layout

STEP_ROWS = 64
"""Number of rows that are decoded at once: it divides BLOCK_ROWS, and is small so that the rows fit the CPU cache."""

INFLATER_BYTES = 40 << 10
"""Memory of an inflater's state, in bytes."""

Fetch = Callable[[int, int], bool]
"""Fetches more of the file; returns False if there is no more.

The arguments are the position in the stream and the number of inflated rows.
"""


class RowDecoder:
    """The state of decoding the stream of a PNG, from which decoding continues. Only one thread may use it at a time.

    Args:
        file: The file.
        row_bytes: Bytes of an unfiltered row.

    Attributes:
        row: Number of the next row.
        position: Position in the compressed stream, in bytes.
        is_torn: Whether an interrupt has left the state inconsistent, so that decoding cannot continue.
    """

    def __init__(self, file: PngFile, row_bytes: int) -> None:
        self._file = file
        self._inflater = zlib_ng.decompressobj()
        self.position = 0
        self.is_torn = False
        self.begin(row_bytes)

    def begin(self, row_bytes: int) -> None:
        """Start with the first row of an image or of an interlacing pass, at the current position."""
        self.row = 0
        self._above = np.zeros(row_bytes, np.uint8)
        self._inflated = b""  # the available inflated bytes of the next rows

    def next_rows(self, layout: Layout, end: int, fetch: Fetch) -> Bytes2D:
        """Decode the next rows, but not beyond row `end`. Call `pass_by` to advance to the rows after them.

        Returns:
            The unfiltered bytes, (rows, bytes of a row).

        Raises:
            FormatError: The file is damaged.
        """
        count = min(STEP_ROWS - self.row % STEP_ROWS, end - self.row)
        self._inflate(layout, count, end, fetch)
        row_length = 1 + layout.row_bytes  # _inflated may hold more, from a call for more rows
        rows = np.frombuffer(self._inflated, np.uint8, count * row_length).reshape(count, row_length)
        if rows[:, 0].max() > LAST_FILTER:
            numbers = f"rows {self.row}-{self.row + count - 1}{layout.of_what}"
            raise self._file.damaged(f"{numbers} have a filter that does not exist")
        with cores:
            return unfilter(rows, self._above, layout.pixel_bytes)

    def pass_by(self, plain: Bytes2D) -> None:
        """Advance past the rows that `next_rows` returned.

        A caller that stores the rows does so in the same `changing` block.
        """
        self.row += len(plain)
        self._above = plain[-1].copy()
        self._inflated = self._inflated[len(plain) * (1 + len(self._above)) :]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark the state as inconsistent during a change; the mark remains if the change is interrupted."""
        self.is_torn = True
        yield
        self.is_torn = False

    def _inflate(self, layout: Layout, rows: int, end: int, fetch: Fetch) -> None:
        """Inflate the next rows, and fetch more of the file if necessary."""
        count = rows * (1 + layout.row_bytes)
        while len(self._inflated) < count:
            piece = self._file.chunks.compressed(self.position)
            if not piece:
                rows_done = self.row + len(self._inflated) * rows // count
                if fetch(self.position, rows_done):
                    continue
            with cores, self.changing():
                try:
                    part = self._inflater.decompress(piece, count - len(self._inflated))
                except zlib_ng.error as error:
                    problem = f"cannot be inflated below row {self.row}{layout.of_what} ({error})"
                    raise self._file.damaged(problem) from error
                self.position += len(piece) - len(self._inflater.unconsumed_tail)
                self._inflated = self._inflated + part if self._inflated else part
            if not part and not piece:
                raise self._file.damaged(f"ends before row {end - 1}{layout.of_what}")
