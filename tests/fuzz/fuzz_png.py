"""Masks: whatever is in a PNG, it is read as Pillow reads it, or refused in one sentence.

An input is one byte that says how the rest is taken, and the rest: a file; a file whose checksums are made right; or a
header (colour, bits, interlacing, rows, columns) and the image before it is deflated.
"""

import io
import struct
import warnings
import zlib

import numpy as np

from helpers.masks import chunk, read_by_pillow
from helpers.memory_file import MemoryFile
from liver_dask.archive.formats.png import PngSlice
from liver_dask.archive.formats.png_stream import SIGNATURE
from liver_dask.core.errors import FormatError

LARGEST = 64
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16)]
KINDS += [(6, 8), (6, 16)]
PALETTE = bytes(3) + bytes(range(1, 46))


def with_checksums(data: bytes) -> bytes:
    """The same file, all of whose chunks have the right checksum."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        stop = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if stop + 4 > len(out):
            break
        out[stop : stop + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : stop]))
        at = stop + 4
    return bytes(out)


def of_image(data: bytes) -> bytes:
    """A file of a header and an image."""
    kind, interlaced, rows, columns = data[0] % len(KINDS), data[1] % 2, data[2] % LARGEST + 1, data[3] % LARGEST + 1
    colour, bits = KINDS[kind]
    header = struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", PALETTE) if colour == 3 else b""
    return (
        SIGNATURE + chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(data[4:], 1)) + chunk(b"IEND", b"")
    )


def expectation(data: bytes) -> np.ndarray | None:
    """0 / 255, or None where Pillow refuses it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_by_pillow(io.BytesIO(data))
    except Exception:
        return None


def one_input(data: bytes) -> None:
    """Read a mask in parts, and whole."""
    if len(data) < 8:
        return
    file = [bytes, with_checksums, of_image][data[0] % 3](data[1:])
    columns, rows = struct.unpack_from(">II", file.ljust(24, b"\0"), 16)
    if not (1 <= rows <= LARGEST and 1 <= columns <= LARGEST):
        rows = columns = 32
    mask = PngSlice(MemoryFile(file), rows, columns, np.dtype("uint8"), "", None)
    whole = np.full((rows, columns), 7, np.uint8)
    part = np.full((rows - rows // 2, columns - columns // 3), 7, np.uint8)
    try:
        mask.read(np.arange(rows // 2, rows), slice(columns // 3, columns), part)
        mask.read(np.arange(rows), slice(0, columns), whole)
    except FormatError as error:
        if "\n" in str(error):
            raise AssertionError("is more than a sentence") from error
        return
    assert np.isin(whole, (0, 255)).all()
    assert (part == whole[rows // 2 :, columns // 3 :]).all()
    expected = expectation(file)
    if expected is not None and expected.shape == whole.shape:
        of_high_bytes = file[24] == 16 and file[25] != 0  # all that Pillow has of 16-bit colours
        wrong = (expected > whole) if of_high_bytes else (expected != whole)
        assert not wrong.any()
