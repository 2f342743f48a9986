"""Decoded rows of a mask, kept in memory as compressed blocks of one bit per pixel."""

from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt

from ...core.concurrency import cores
from .slices import PreparedRows

BLOCK_ROWS = 256
"""Number of rows that are compressed together."""

ZSTD_LEVEL = 1


Bytes2D = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MaskRows(PreparedRows):
    """Compressed rows of a mask, small enough to keep in memory and to send to other processes.

    Attributes:
        width: Number of columns.
        first: Number of the first block.
        blocks: Compressed blocks of BLOCK_ROWS rows, one bit per pixel; the last has as many rows as were decoded.
    """

    width: int
    first: int
    blocks: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """Size of the blocks in bytes."""
        return sum(map(len, self.blocks))

    def read(self, rows: npt.NDArray[np.intp], columns: slice, out: Bytes2D) -> None:
        """Read a window of pixels, which are 0 or 255.

        Args:
            rows: Row numbers, ascending and distinct.
            columns: Columns `start` to `stop` (exclusive).
            out: Array (rows, columns) to fill.
        """
        used = slice(columns.start // 8, -(-columns.stop // 8))
        skipped = columns.start - 8 * used.start
        for number in range(int(rows[0]) // BLOCK_ROWS, int(rows[-1]) // BLOCK_ROWS + 1):
            here = slice(*np.searchsorted(rows, (number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS)))
            if here.start == here.stop:
                continue
            with cores:
                packed = decompress(self.blocks[number - self.first], self.width)
                wanted = rows[here] - number * BLOCK_ROWS
                if wanted[-1] - wanted[0] == len(wanted) - 1:
                    some = packed[wanted[0] : wanted[-1] + 1, used]
                else:
                    some = packed[wanted, used]
                bits = np.unpackbits(some, axis=1, count=skipped + columns.stop - columns.start)
                np.negative(bits[:, skipped:], out=out[here])  # 1 becomes 255


def compress(packed: Bytes2D) -> bytes:
    """Compress rows of one bit per pixel, (rows, bytes of a row)."""
    return bytes(imagecodecs.zstd_encode(packed, ZSTD_LEVEL))


def decompress(block: bytes, width: int) -> Bytes2D:
    """Return the rows that `compress` got, (rows, bytes of a row)."""
    return np.frombuffer(imagecodecs.zstd_decode(block), np.uint8).reshape(-1, (width + 7) // 8)
