"""Decoding a TIFF's strips, of which only the first bytes may be there: a decoder gives no byte that may be wrong."""

import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from . import lzw

UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE = 1, 5, 8, 32946
"""What TIFF calls them."""

Bytes1D = npt.NDArray[np.uint8]

Decoder = Callable[[memoryview, Bytes1D, bool], int]
"""Fills the target from the first bytes of a strip, and returns how many bytes there were.

With the third argument the strip is whole, and holds the target and nothing else: it is an error if it holds more, or
if its checksum is wrong. That it holds less, the caller sees.
"""


class StripError(ValueError):
    """What of a strip is wrong: the end of a sentence."""


def _decode_lzw(strip: memoryview, target: Bytes1D, is_all: bool) -> int:
    decoded = lzw.decode(strip, target)
    if decoded.end == lzw.End.INVALID:
        raise StripError(f"cannot be decoded (a code that cannot be, after {decoded.length} bytes)")
    if is_all and lzw.holds_more(strip, decoded):
        raise StripError(f"holds more than {len(target)} bytes")
    return decoded.length


def _decode_deflate(strip: memoryview, target: Bytes1D, is_all: bool) -> int:
    inflater = zlib_ng.decompressobj()
    try:
        plain = inflater.decompress(strip, len(target) + is_all)  # with one byte of room it goes on to the checksum
    except (zlib.error, zlib_ng.error) as error:
        raise StripError(f"cannot be decoded ({error})") from error
    if is_all and len(plain) > len(target):
        raise StripError(f"holds more than {len(target)} bytes")
    if is_all and len(plain) == len(target) and not inflater.eof:
        raise StripError("has no checksum at its end")
    return _copy(plain, target, is_all)


def _copy(strip: memoryview | bytes, target: Bytes1D, is_all: bool) -> int:
    found = np.frombuffer(strip, np.uint8)[: len(target)]
    target[: len(found)] = found
    return len(found)


DECODER_OF_COMPRESSION: dict[int, Decoder] = {
    UNCOMPRESSED: _copy,
    LZW: _decode_lzw,
    DEFLATE: _decode_deflate,
    OLD_DEFLATE: _decode_deflate,
}
