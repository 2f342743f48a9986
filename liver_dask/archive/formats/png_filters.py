"""Undoes PNG's row filters, which store each byte as its difference from a prediction by bytes to the left and above.

The bytes of a mask are equal over long stretches. A stretch without a change is filled at once. Therefore the loops run
at some GB/s, and most of the time for a mask is spent on inflating.
"""

import numpy as np
import numpy.typing as npt

from ...core.compiled import Compiled

NONE, SUB, UP, AVERAGE, PAETH = range(5)
LAST_FILTER = PAETH

Bytes1D = npt.NDArray[np.uint8]
Bytes2D = npt.NDArray[np.uint8]


def load_ahead() -> None:
    """Load what undoes the filters of masks; to be called before one waits for a file."""
    _undo.load_ahead()


def unfilter(rows: Bytes2D, above: Bytes1D, step: int) -> Bytes2D:
    """Return the unfiltered bytes of rows, (rows, bytes of a row).

    Args:
        rows: Filtered rows, (rows, 1 + bytes of a row); the first byte of each row is the number of its filter.
        above: The unfiltered bytes of the row above the first one.
        step: Distance in bytes from a byte to its left neighbour in the filters; it divides the bytes of a row.
    """
    if not rows[:, 0].any():
        return rows[:, 1:]
    plain = np.empty((len(rows), len(above)), np.uint8)
    if step == 1:
        _undo(_read_only(rows), _read_only(above), plain)
    else:
        _undo_of_pixels(_read_only(rows), _read_only(above), np.uint64(step), plain)
    return plain


def _read_only(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a contiguous read-only view, for which the loops are compiled."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


STRETCH = np.uint64(32)
"""Number of bytes that are compared together; enough for the widest registers of the processor."""

ZERO, SAME = np.uint64(0), np.uint8(0)
# All indexes of the loops are unsigned. For signed indexes, numba checks whether they count from the end, and then no
# loop is vectorised.


def _loop(rows: Bytes2D, above: Bytes1D, plain: Bytes2D) -> None:
    """Undo the filters of rows with one byte per pixel."""
    width = np.uint64(plain.shape[1])
    for number in range(plain.shape[0]):
        kind, row, out = rows[number, 0], rows[number, 1:], plain[number]
        if kind == NONE:
            for i in range(width):
                out[i] = row[i]
        elif kind == UP:
            for i in range(width):
                out[i] = row[i] + above[i]
        elif kind == AVERAGE:
            left = SAME
            for i in range(width):
                left = np.uint8(row[i] + (np.int32(left) + np.int32(above[i])) // 2)
                out[i] = left
        else:
            left = corner = SAME
            start = ZERO
            while start < width:
                stop = min(start + STRETCH, width)
                changes = SAME
                if kind == SUB:
                    for i in range(start, stop):
                        changes |= row[i]
                else:
                    for i in range(start, stop):
                        changes |= row[i] | (above[i] ^ corner)
                if changes == SAME:
                    for i in range(start, stop):
                        out[i] = left
                elif kind == SUB:
                    for i in range(start, stop):
                        left = np.uint8(row[i] + left)
                        out[i] = left
                else:
                    for i in range(start, stop):
                        up = above[i]
                        if up == corner:
                            left = np.uint8(row[i] + left)
                        elif left == corner:
                            left = np.uint8(row[i] + up)
                        else:
                            a, b, c = np.int32(left), np.int32(up), np.int32(corner)
                            by_a, by_b, by_c = abs(b - c), abs(a - c), abs(a + b - c - c)
                            left = np.uint8(row[i] + (a if by_a <= min(by_b, by_c) else b if by_b <= by_c else c))
                        out[i] = left
                        corner = up
                start = stop
        above = out


def _loop_of_pixels(rows: Bytes2D, above: Bytes1D, step: np.uint64, plain: Bytes2D) -> None:
    """Undo the filters of rows with several bytes per pixel."""
    width = np.uint64(plain.shape[1])
    for number in range(plain.shape[0]):
        kind, row, out = rows[number, 0], rows[number, 1:], plain[number]
        for i in range(width):
            a = b = c = predicted = np.int32(0)
            if i >= step:
                a, c = np.int32(out[i - step]), np.int32(above[i - step])
            b = np.int32(above[i])
            if kind == SUB:
                predicted = a
            elif kind == UP:
                predicted = b
            elif kind == AVERAGE:
                predicted = (a + b) // 2
            elif kind == PAETH:
                by_a, by_b, by_c = abs(b - c), abs(a - c), abs(a + b - c - c)
                predicted = a if by_a <= min(by_b, by_c) else b if by_b <= by_c else c
            out[i] = np.uint8(row[i] + predicted)
        above = out


_ROWS, _ROW, _PLAIN = (
    "Array(uint8, 2, 'C', readonly=True)",
    "Array(uint8, 1, 'C', readonly=True)",
    "Array(uint8, 2, 'C')",
)
_undo = Compiled(f"void({_ROWS}, {_ROW}, {_PLAIN})", _loop)
_undo_of_pixels = Compiled(f"void({_ROWS}, {_ROW}, uint64, {_PLAIN})", _loop_of_pixels)
