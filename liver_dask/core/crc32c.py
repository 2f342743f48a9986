"""The CRC-32C of bytes that are put together, from the CRC-32C of each part: no byte is read again."""

from .compiled import Compiled

_POLYNOMIAL = 0x82F63B78
"""The polynomial of CRC-32C. The highest bit of a number is the coefficient of x**0."""


def _joined(first: int, second: int, length: int, polynomial: int) -> int:
    """Multiply the first CRC by x**(8 * length), modulo the polynomial over GF(2), and add the second."""
    power = 1 << 23  # x**8, and its squares
    while length:
        moved, square = 0, 0
        one, other = first, power
        for bit in range(31, -1, -1):
            if power & (1 << bit):
                moved ^= one
                square ^= other
            one = (one >> 1) ^ (polynomial if one & 1 else 0)
            other = (other >> 1) ^ (polynomial if other & 1 else 0)
        first = moved if length & 1 else first
        power = square
        length >>= 1
    return first ^ second


_compiled = Compiled("i8(i8, i8, i8, i8)", _joined)


def joined(first: int, second: int, length: int) -> int:
    """Return the CRC-32C of two byte strings, one after the other.

    Args:
        first: CRC-32C of the first; 0 if it is empty.
        second: CRC-32C of the second.
        length: Number of bytes of the second.
    """
    return int(_compiled(first, second, length, _POLYNOMIAL))
