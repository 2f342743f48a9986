"""Strips of LZW and deflate: what comes of them equals what a decoder by the specification gives, at any cut.

An input is the compression, how many bytes are wanted (two bytes), where to cut, and the strip.
"""

import zlib

import numpy as np

from liver_dask.archive.formats.strip_codecs import DECODER_OF_COMPRESSION, DEFLATE, LZW, StripError

CLEAR, END_OF_DATA, MOST_ENTRIES = 256, 257, 5121
AROUND = 32


def lzw_by_specification(strip: bytes, most: int) -> tuple[bytes, bool]:
    """The first bytes of a strip, and whether all codes up to there can be."""
    number, bits, at, width = int.from_bytes(strip, "big"), 8 * len(strip), 0, 9
    out, table, last = b"", None, b""
    while len(out) < most and at + width <= bits:
        code = number >> (bits - at - width) & ((1 << width) - 1)
        at += width
        if code == CLEAR:
            table, last, width = [bytes([value]) for value in range(256)] + [b"", b""], b"", 9
            continue
        if table is None:
            return out, False
        if code == END_OF_DATA:
            break
        if code > len(table) or (code == len(table) and not last):
            return out, False
        here = table[code] if code < len(table) else last + last[:1]
        if last:
            table.append(last + here[:1])
        out, last = out + here, here
        if len(table) == MOST_ENTRIES:
            return out, False
        width = min(max(width, (len(table) + 1).bit_length()), 12)
    return out[:most], True


def deflate_by_zlib(strip: bytes, most: int) -> tuple[bytes, bool]:
    """The first bytes of a strip, and whether it is one."""
    try:
        return zlib.decompressobj().decompress(strip, most) if most else b"", True
    except zlib.error:
        return b"", False


def decoded(compression: int, strip: bytes, size: int, is_all: bool) -> bytes | None:
    """What comes of a strip; None where it is refused."""
    around = np.full(size + 2 * AROUND, 0xA5, np.uint8)
    try:
        count = DECODER_OF_COMPRESSION[compression](memoryview(strip), around[AROUND : AROUND + size], is_all)
    except StripError:
        return None
    finally:
        assert (around[:AROUND] == 0xA5).all()
        assert (around[AROUND + size :] == 0xA5).all()
    assert 0 <= count <= size
    return around[AROUND : AROUND + count].tobytes()


def one_input(data: bytes) -> None:
    """Decode a strip whole and cut."""
    if len(data) < 4:
        return
    compression = LZW if data[0] % 2 else DEFLATE
    size = 1 + (data[1] << 8 | data[2]) % 6000
    strip = data[4:]
    cut = strip[: len(strip) * data[3] // 256]
    by_specification = lzw_by_specification if compression == LZW else deflate_by_zlib
    for part in (cut, strip):
        right, is_strip = by_specification(part, size)
        found = decoded(compression, part, size, False)
        assert (found is not None) == is_strip
        assert found is None or found == right
    assert decoded(compression, strip, size, True) in (None, right)
