"""Masks as PNG files whose chunks are as small as a test wants them: only whole chunks can be checked and decoded."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png_in_chunks(pixels: np.ndarray, size: int) -> bytes:
    """A file of `pixels`, with so many bytes of the image in a chunk."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    data = file.getvalue()
    stream, at = b"", 33
    while (kind := data[at + 4 : at + 8]) == b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        stream += data[at + 8 : at + 8 + length]
        at += 12 + length
    assert kind == b"IEND"
    parts = [b"IDAT" + stream[i : i + size] for i in range(0, len(stream), size)]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return data[:33] + b"".join(chunks) + data[at:]
