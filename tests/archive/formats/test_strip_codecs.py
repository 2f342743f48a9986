"""Decoding of strips of every compression, also where they are cut short; more of LZW is in test_lzw.py."""

import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

import liver_dask as ld
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats.strip_codecs import (
    DECODER_OF_COMPRESSION,
    DEFLATE,
    LZW,
    OLD_DEFLATE,
    UNCOMPRESSED,
    StripError,
)

PLAIN = np.random.default_rng(0).integers(0, 40, 1000, np.uint8)
CODED = {
    UNCOMPRESSED: PLAIN.tobytes(),
    LZW: imagecodecs.lzw_encode(PLAIN.tobytes()),
    DEFLATE: zlib.compress(PLAIN.tobytes()),
    OLD_DEFLATE: zlib.compress(PLAIN.tobytes(), 1),
}
STORED = zlib.compress(PLAIN.tobytes(), 0)


@pytest.mark.parametrize("compression", DECODER_OF_COMPRESSION)
def test_every_prefix(compression: int) -> None:
    """Of a strip that is cut anywhere, a decoder gives only right bytes, and nearly all that are there."""
    coded = CODED[compression]
    target = np.empty(len(PLAIN), np.uint8)
    counts = []
    for length in range(len(coded) + 1):
        target[:] = 0xA5
        counts.append(DECODER_OF_COMPRESSION[compression](memoryview(coded)[:length], target, False))
        assert np.array_equal(target[: counts[-1]], PLAIN[: counts[-1]]), f"of the first {length} bytes"
        assert (target[counts[-1] :] == 0xA5).all()
    assert counts == sorted(counts)
    assert counts[-1] == len(PLAIN)
    assert max(np.diff(counts)) <= 300, "bytes that are there are not taken"
    assert DECODER_OF_COMPRESSION[compression](memoryview(coded), target, True) == len(PLAIN)


@pytest.mark.parametrize(
    ("coded", "told"),
    [
        (STORED[:-1] + bytes([STORED[-1] ^ 1]), "cannot be decoded"),
        (STORED[:500] + bytes([STORED[500] ^ 1]) + STORED[501:], "cannot be decoded"),
        (STORED[:-4], "no checksum"),
        (STORED[:-1], "no checksum"),
        (zlib.compress(PLAIN.tobytes() + b"!"), "holds more than 1000 bytes"),
    ],
    ids=["a changed checksum", "a changed byte", "no checksum", "a cut one", "more"],
)
def test_the_checksum_of_a_whole_deflate_strip(coded: bytes, told: str) -> None:
    """A whole Deflate strip with a wrong, a missing or a cut checksum, or with too many bytes, is an error."""
    with pytest.raises(StripError, match=told):
        DECODER_OF_COMPRESSION[DEFLATE](memoryview(coded), np.empty(len(PLAIN), np.uint8), True)


def test_a_changed_byte_of_a_stored_row_is_noticed(tmp_path: Path) -> None:
    """A changed byte in a row that Deflate stores uncompressed is an error that names the row."""
    path = tmp_path / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (20, 30), np.uint16)
    options = {"compression": "deflate", "compressionargs": {"level": 0}, "rowsperstrip": 1}
    tifffile.imwrite(path, pixels, **options)
    with tifffile.TiffFile(path) as tiff:
        middle = tiff.pages[0].dataoffsets[5] + tiff.pages[0].databytecounts[5] // 2
    data = bytearray(path.read_bytes())
    data[middle] ^= 1
    path.write_bytes(data)
    ds = ld.open_human_liver_em(tmp_path, shape=(1, 20, 30))
    with pytest.raises(ld.FormatError, match="the strip of rows 5-5 cannot be decoded"):
        ds.raw.compute()
