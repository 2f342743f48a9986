"""Decoded rows of a mask, kept compressed: a bit a pixel."""

from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt

from ...core.concurrency import cores
from .slices import PreparedRows

BLOCK_ROWS = 256
"""Rows that are compressed together."""

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
                packed = decompress(self.blocks[number - self.first], self.width)
                wanted = rows[here] - number * BLOCK_ROWS
                if wanted[-1] - wanted[0] == len(wanted) - 1:
                    some = packed[wanted[0] : wanted[-1] + 1, used]
                else:
                    some = packed[wanted, used]
                bits = np.unpackbits(some, axis=1, count=skipped + columns.stop - columns.start)
                np.negative(bits[:, skipped:], out=out[here])  # 1 becomes 255


def compress(packed: Bytes2D) -> bytes:
    """Rows, a bit a pixel, as they are kept."""
    return bytes(imagecodecs.zstd_encode(packed, ZSTD_LEVEL))


def decompress(block: bytes, width: int) -> Bytes2D:
    """Undo `compress`."""
    return np.frombuffer(imagecodecs.zstd_decode(block), np.uint8).reshape(-1, (width + 7) // 8)
