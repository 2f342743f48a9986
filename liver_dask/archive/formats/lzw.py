"""TIFF's LZW, of strips that may be cut anywhere or damaged: every code is checked before it is used.

Other decoders expect whole strips of a known writer: they guess the last code of a cut one, or read outside their
tables where a code cannot be. Here a code counts only if all of its bits are there, and decoding stops where the target
is full.

A code that is not a byte itself stands for what some earlier code stood for, and one byte more. Both follow each other
in the output, so a table of places in the output is all that is needed.
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
    OVERFULL = 1  # the target is full, and the last code stood for more
    CUT = 2  # no further code is there with all of its bits
    EARLY = 3  # the data end, by their own code, and the target is not full
    INVALID = 4  # a code that cannot be


class Decoded(NamedTuple):
    """What came of a strip.

    Attributes:
        length: How many bytes of the target are surely right; the others are as they were.
        end: Why there are no more.
        bits: How many of the strip were used.
        width: Bits of the code that would follow.
    """

    length: int
    end: End
    bits: int
    width: int


def decode(strip: bytes | memoryview, target: Bytes1D) -> Decoded:
    """Decode a strip, or the first bytes of one, as far as it goes or the target is full."""
    coded = np.frombuffer(strip, np.uint8)
    coded.flags.writeable = False
    length, end, bits, width = _decode(coded, target)
    return Decoded(length, End(end), bits, width)


def holds_more(strip: bytes | memoryview, decoded: Decoded) -> bool:
    """Whether a whole strip holds more than the target that it filled.

    Some writers leave out the code that ends the data, some write it too narrow, and some fill up to an even number of
    bytes.
    """
    if decoded.end != End.FULL:
        return decoded.end == End.OVERFULL
    if 8 * len(strip) - decoded.bits < 2 * 8:
        return False
    last = bytes(strip[decoded.bits // 8 : math.ceil((decoded.bits + decoded.width) / 8)])
    code = int.from_bytes(last, "big") >> -(decoded.bits + decoded.width) % 8 & (1 << decoded.width) - 1
    return code not in (CLEAR, END_OF_DATA) and code >> 1 != END_OF_DATA


CLEAR, END_OF_DATA = map(np.uint64, (256, 257))
"""The codes that are no bytes, and stand for none."""

MOST = np.uint64(5120)
"""Entries of a table, the last 1024 of which no code can ask for: a writer that goes on without a Clear is followed as
far as libtiff and imagecodecs do, which take such strips for damaged from then on."""

NARROWEST, WIDEST, NARROWEST_MASK = map(np.uint64, (9, 12, 511))
"""Bits of a code."""

PLACE, LENGTH = np.uint64(13), np.uint64((1 << 13) - 1)
"""A table's entry: from which bit on it says where the bytes are, and the bits below, which say how many they are."""

ZERO, ONE, TWO, THREE, FOUR, BYTE, WORD = map(np.uint64, (0, 1, 2, 3, 4, 8, 32))
# All numbers of the loop are unsigned, and of one kind: numba asks of signed ones whether they count from the end,
# which takes as long as all the rest.

FULL, OVERFULL, CUT, EARLY, INVALID = map(int, End)


def _loop(strip: Bytes1D, target: Bytes1D) -> tuple[Any, int, Any, Any]:
    size, strip_bytes = np.uint64(len(target)), np.uint64(len(strip))
    table = np.empty(5121, np.uint64)
    window = window_bits = at = out = stop = entry = ZERO
    width, mask, free = NARROWEST, NARROWEST_MASK, END_OF_DATA
    end = FULL
    if strip_bytes >= TWO and (strip[0] != 0x80 or strip[1] >= 0x80):
        return 0, INVALID, 0, 9  # does not begin with a Clear
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
            table[free] = entry + ONE  # what the code before stood for, and this byte
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
            width, mask, free = NARROWEST, NARROWEST_MASK, END_OF_DATA  # with the next code a place that no code has
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
