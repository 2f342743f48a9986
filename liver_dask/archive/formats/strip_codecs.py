"""Decoders of TIFF strips, of which only the first bytes may be available.

A decoder returns no byte that may be wrong.
"""

import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from . import lzw

UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE = 1, 5, 8, 32946
"""TIFF codes of the compressions."""

Bytes1D = npt.NDArray[np.uint8]

Decoder = Callable[[memoryview, Bytes1D, bool], int]
"""Decodes the first bytes of a strip into the target and returns the number of decoded bytes.

If the third argument is true, the strip is complete and must hold exactly the target. The decoder raises StripError if
the strip holds more or if its checksum is wrong. The caller checks whether the strip holds less.
"""


class StripError(ValueError):
    """A strip is damaged. The message is the end of a sentence that starts with the name of the strip."""


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
        plain = inflater.decompress(strip, len(target) + is_all)  # with one spare byte, zlib goes on to the checksum
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


def load_decoder(compression: int) -> None:
    """Load what decodes strips of this compression; to be called before one waits for them."""
    if compression == LZW:
        lzw.load_ahead()
