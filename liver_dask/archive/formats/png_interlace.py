"""Adam7, the interlacing of PNG: seven passes, each a small image of some columns of some rows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row step and column step of each pass."""

Bytes2D = npt.NDArray[np.uint8]


def pass_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the rows and columns of each pass.

    A pass without pixels is not in the file; its filter bytes are missing, too.
    """
    return [(len(range(y, height, down)), len(range(x, width, right))) for y, x, down, right in PASSES]


def weave(passes: Sequence[Bytes2D], first: int, rows: int, width: int) -> Bytes2D:
    """Return some rows of the image as 0 or 1, (rows, columns).

    Args:
        passes: The pixels of each pass, (rows, bytes of a row), one bit per pixel.
        first: The first row, a multiple of 8.
        rows: Number of rows.
        width: Columns of the image.
    """
    bits = np.empty((rows, width), np.uint8)
    for (y, x, down, right), pixels in zip(PASSES, passes, strict=True):
        target = bits[y::down, x::right]
        if target.size:
            here = pixels[first // down : first // down + len(target)]
            target[:] = np.unpackbits(here, axis=1, count=target.shape[1])
    return bits
