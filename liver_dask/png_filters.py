"""Undoing PNG's row filters, which write each byte as its difference from what bytes to the left and above foretell.

None is a copy, Up and Sub are sums: numpy and imagecodecs do a whole row at once. Paeth is no sum, but in a mask, where
bytes are alike for long stretches, it comes down to few of them. What is left goes to libpng, which is slower: some
filtered rows, with the row before them on top, are themselves a small uncompressed PNG.
"""

import struct
from itertools import chain

import imagecodecs
import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

NONE, SUB, UP, AVERAGE, PAETH = range(5)
LAST_FILTER = PAETH
SIGNATURE = b"\x89PNG\r\n\x1a\n"
KIND_OF_STEP = {1: (8, 0), 2: (8, 4), 3: (8, 2), 4: (8, 6), 6: (16, 2), 8: (16, 6)}
"""Bits of a sample and colour type of pixels that take so many bytes."""

LIBPNG_ROWS = 16
"""Rows of the small PNG: few enough that it and its copies stay in the processor's cache."""

Bytes1D = npt.NDArray[np.uint8]
Bytes2D = npt.NDArray[np.uint8]


def unfilter(rows: Bytes2D, above: Bytes1D, step: int) -> Bytes2D:
    """The bytes of filtered rows.

    Args:
        rows: (rows, 1 + bytes of a row): first in each row is the number of its filter.
        above: The bytes of the row above the first.
        step: How many bytes before a byte is the one that filters take as left of it; divides the bytes of a row.
    """
    filters = rows[:, 0].tolist()
    if not any(filters):
        return rows[:, 1:]
    plain = np.empty((len(rows), len(above)), np.uint8)
    row = 0
    while row < len(rows):
        if _undo_as_sums(filters[row], rows[row, 1:], above, plain[row], step):
            row += 1
        else:
            some = slice(row, min(row + LIBPNG_ROWS, len(rows)))
            plain[some] = _undo_by_libpng(rows[some], above, step)
            row = some.stop
        above = plain[row - 1]
    return plain


def _undo_as_sums(kind: int, row: Bytes1D, above: Bytes1D, plain: Bytes1D, step: int) -> bool:
    """Fill `plain`, one row, or return False where that takes libpng."""
    if kind == NONE:
        plain[:] = row
    elif kind == UP:
        np.add(row, above, out=plain)
    elif kind == SUB:
        imagecodecs.delta_decode(row.reshape(-1, step), axis=0, out=plain.reshape(-1, step))
    else:
        samples = (slice(sample, None, step) for sample in range(step))
        return kind == PAETH and all(_undo_paeth_as_sums(row[s], above[s], plain[s]) for s in samples)
    return True


def _undo_paeth_as_sums(row: Bytes1D, above: Bytes1D, plain: Bytes1D) -> bool:
    """Fill `plain`, of one byte a pixel, or return False where Paeth's filter is not the following.

    Paeth foretells a byte by those to its left, above it, and above to the left. Where the latter two are equal, it
    takes left, as Sub does. Where they differ but left equals one of them, it takes above, as Up does: with no more
    than two values, as in a mask, nothing else occurs. So a row is made of stretches that begin like Up and go on like
    Sub. A stretch needs nothing of the one before: its sum is its last byte, the left of the next one's first.
    """
    is_start = np.empty(len(row), np.bool_)
    is_start[0] = True
    np.not_equal(above[1:], above[:-1], out=is_start[1:])
    starts = is_start.nonzero()[0]
    foretold = above[starts]
    left = (foretold + np.add.reduceat(row, starts, dtype=np.uint8))[:-1]
    if not ((left == foretold[:-1]) | (left == foretold[1:])).all():
        return False
    foretold[1:] -= left  # what makes a sum over the whole row, with no left for its first byte, right at each start
    plain[:] = row
    plain[starts] += foretold
    imagecodecs.delta_decode(plain, out=plain)
    return True


def _undo_by_libpng(rows: Bytes2D, above: Bytes1D, step: int) -> Bytes2D:
    block = np.zeros((len(rows) + 1, rows.shape[1]), np.uint8)
    block[0, 1:] = above
    block[1:] = rows
    samples = imagecodecs.png_decode(_png_of(block, step))
    if samples.itemsize == 2:
        samples = samples.astype(">u2").view(np.uint8)
    return samples.reshape(len(block), len(above))[1:]


def _png_of(rows: Bytes2D, step: int) -> bytes:
    """Filtered rows as a PNG, stored rather than compressed."""

    def chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        crc = zlib_ng.crc32(data, zlib_ng.crc32(kind))
        return struct.pack(">I", len(data)), kind, data, struct.pack(">I", crc)

    width = (rows.shape[1] - 1) // step
    header = struct.pack(">IIBBBBB", width, len(rows), *KIND_OF_STEP[step], 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib_ng.compress(rows, 0)), chunk(b"IEND", b"")
    return b"".join([SIGNATURE, *chain.from_iterable(parts)])
