"""Rows of the image in a PNG, inflated and unfiltered one after the other, from the first on."""

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
"""Rows that are decoded at once: a divisor of those of a block, and few, so that they stay in the processor's cache."""

INFLATER_BYTES = 40 << 10
"""What the state of an inflater takes."""

Fetch = Callable[[int, int], bool]
"""Fetches more of the file, given the place in the stream and how many rows are inflated; False if there is no more."""


class RowDecoder:
    """How far the stream of a PNG was decoded, and what it takes to go on. One thread uses it at a time.

    Args:
        file: The file.
        row_bytes: Bytes of an unfiltered row.

    Attributes:
        row: The next row.
        position: The place in the compressed stream, in bytes.
        is_torn: Whether an interrupt has left it so that it cannot go on.
    """

    def __init__(self, file: PngFile, row_bytes: int) -> None:
        self._file = file
        self._inflater = zlib_ng.decompressobj()
        self.position = 0
        self.is_torn = False
        self.begin(row_bytes)

    def begin(self, row_bytes: int) -> None:
        """Here the first row of an image, or of a pass of one, begins."""
        self.row = 0
        self._above = np.zeros(row_bytes, np.uint8)
        self._inflated = b""  # of the next rows, as far as they have come

    def next_rows(self, layout: Layout, end: int, fetch: Fetch) -> Bytes2D:
        """Decode the next rows, not beyond `end`; `pass_by` goes on to those that follow.

        Raises:
            FormatError: The file is damaged.
        """
        count = min(STEP_ROWS - self.row % STEP_ROWS, end - self.row)
        self._inflate(layout, count, end, fetch)
        row_length = 1 + layout.row_bytes  # more may have come, when more was wanted
        rows = np.frombuffer(self._inflated, np.uint8, count * row_length).reshape(count, row_length)
        if rows[:, 0].max() > LAST_FILTER:
            numbers = f"rows {self.row}-{self.row + count - 1}{layout.of_what}"
            raise self._file.damaged(f"{numbers} have a filter that does not exist")
        with cores:
            return unfilter(rows, self._above, layout.pixel_bytes)

    def pass_by(self, plain: Bytes2D) -> None:
        """These were the next rows. Whoever keeps them does both within `changing`."""
        self.row += len(plain)
        self._above = plain[-1].copy()
        self._inflated = self._inflated[len(plain) * (1 + len(self._above)) :]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Meanwhile what is known does not fit together; so it stays after an interrupt."""
        self.is_torn = True
        yield
        self.is_torn = False

    def _inflate(self, layout: Layout, rows: int, end: int, fetch: Fetch) -> None:
        """Inflate the next rows; fetches more of the file where needed."""
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
