"""A decoder of TIFF's LZW for strips that may be cut anywhere or damaged: it checks every code before it uses it.

Other decoders expect complete strips of a known writer. They guess the last code of a cut strip, or read outside their
tables at an invalid code. This decoder uses a code only if all of its bits are available, and stops when the target is
full.

A code that is not a single byte stands for the bytes of an earlier code and one more byte. These bytes follow each
other in the output, so a table of positions in the output is sufficient.
"""

import math
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...core.compiled import Compiled

Bytes1D = npt.NDArray[np.uint8]


class End(IntEnum):
    """Why decoding stopped."""

    FULL = 0  # the target is full
    OVERFULL = 1  # the target is full, and the last code stands for more bytes
    CUT = 2  # the next code is incomplete or missing
    EARLY = 3  # the end-of-data code comes before the target is full
    INVALID = 4  # a code is invalid


class Decoded(NamedTuple):
    """The result of decoding a strip.

    Attributes:
        length: Number of bytes of the target that are certainly right; the other bytes are unchanged.
        end: Why decoding stopped.
        bits: Number of bits of the strip that were used.
        width: Number of bits of the code that would follow.
    """

    length: int
    end: End
    bits: int
    width: int


def load_ahead() -> None:
    """Load the decoder; `decode` waits for it."""
    _decode.load_ahead()


def decode(strip: bytes | memoryview, target: Bytes1D) -> Decoded:
    """Decode a strip, or its first bytes, as far as possible or until the target is full."""
    coded = np.frombuffer(strip, np.uint8)
    coded.flags.writeable = False
    length, end, bits, width = _decode(coded, target)
    return Decoded(length, End(end), bits, width)


def holds_more(strip: bytes | memoryview, decoded: Decoded) -> bool:
    """Return whether a complete strip holds more than the target that it filled.

    Some writers omit the end-of-data code, some write it with too few bits, and some pad the strip to an even number of
    bytes. None of this counts as more data.
    """
    if decoded.end != End.FULL:
        return decoded.end == End.OVERFULL
    if 8 * len(strip) - decoded.bits < 2 * 8:
        return False
    last = bytes(strip[decoded.bits // 8 : math.ceil((decoded.bits + decoded.width) / 8)])
    code = int.from_bytes(last, "big") >> -(decoded.bits + decoded.width) % 8 & (1 << decoded.width) - 1
    return code not in (CLEAR, END_OF_DATA) and code >> 1 != END_OF_DATA


CLEAR, END_OF_DATA = map(np.uint64, (256, 257))
"""Control codes, which stand for no bytes."""

MOST = np.uint64(5120)
"""Entries of a table. No code can refer to the last 1024 of them.

If a writer continues without a Clear code, this decoder continues as far as libtiff and imagecodecs do. They treat such
strips as damaged from there on.
"""

NARROWEST, WIDEST, NARROWEST_MASK = map(np.uint64, (9, 12, 511))
"""Smallest and largest number of bits of a code, and the mask of the smallest."""

PLACE, LENGTH = np.uint64(13), np.uint64((1 << 13) - 1)
"""Layout of a table entry: the bits from PLACE on give the position of the bytes, the bits of LENGTH their number."""

ZERO, ONE, TWO, THREE, FOUR, BYTE, WORD = map(np.uint64, (0, 1, 2, 3, 4, 8, 32))
# All numbers of the loop are of one unsigned type. For signed indexes, numba checks whether they count from the end,
# which takes as long as all the rest.

FULL, OVERFULL, CUT, EARLY, INVALID = map(int, End)


def _loop(strip: Bytes1D, target: Bytes1D) -> tuple[Any, int, Any, Any]:
    size, strip_bytes = np.uint64(len(target)), np.uint64(len(strip))
    table = np.empty(5121, np.uint64)
    window = window_bits = at = out = stop = entry = ZERO
    width, mask, free = NARROWEST, NARROWEST_MASK, END_OF_DATA
    end = FULL
    if strip_bytes >= TWO and (strip[0] != 0x80 or strip[1] >= 0x80):
        return 0, INVALID, 0, 9  # the strip does not begin with a Clear code
    while out < size:
        if window_bits < width:
            if at + FOUR <= strip_bytes:
                a, b, c, d = strip[at], strip[at + ONE], strip[at + TWO], strip[at + THREE]
                word = (
                    np.uint64(a) << np.uint64(24) | np.uint64(b) << np.uint64(16) | np.uint64(c) << BYTE | np.uint64(d)
                )
                window, window_bits, at = window << WORD | word, window_bits + WORD, at + FOUR
            else:
                while at < strip_bytes:
                    window, window_bits, at = window << BYTE | np.uint64(strip[at]), window_bits + BYTE, at + ONE
                if window_bits < width:
                    end = CUT
                    break
        window_bits -= width
        code = (window >> window_bits) & mask
        if code < CLEAR:
            table[free] = entry + ONE  # the bytes of the previous code, and this byte
            entry = out << PLACE | ONE
            target[out] = code
            out += ONE
        elif code > END_OF_DATA:
            table[free] = entry + ONE
            if code > free:
                end = INVALID
                break
            length, place = table[code] & LENGTH, table[code] >> PLACE
            entry = out << PLACE | length
            stop = out + length
            while out < min(stop, size):
                target[out] = target[place]
                out += ONE
                place += ONE
        elif code == CLEAR:
            width, mask, free = NARROWEST, NARROWEST_MASK, END_OF_DATA  # the next code fills an entry that no code uses
            continue
        else:
            end = EARLY
            break
        if free == MOST:
            end = INVALID
            break
        free += ONE
        if free >= mask and width < WIDEST:
            width += ONE
            mask = mask + mask + ONE
    if end == FULL and stop > size:
        end = OVERFULL
    return out, end, BYTE * at - window_bits, width


_decode = Compiled("UniTuple(int64, 4)(Array(uint8, 1, 'C', readonly=True), Array(uint8, 1, 'C'))", _loop)
