"""PNG masks: files that are written chunk by chunk, and masks as Pillow reads them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_in_chunks(pixels: np.ndarray, size: int) -> bytes:
    """Return a PNG file with `size` bytes of image data per chunk. Only whole chunks can be checked and decoded."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    data = file.getvalue()
    stream, at = b"", 33
    while (kind := data[at + 4 : at + 8]) == b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        stream += data[at + 8 : at + 8 + length]
        at += 12 + length
    assert kind == b"IEND"
    chunks = [chunk(b"IDAT", stream[i : i + size]) for i in range(0, len(stream), size)]
    return data[:33] + b"".join(chunks) + data[at:]


def read_by_pillow(file: Path | io.BytesIO) -> np.ndarray:
    """Read a mask as 0 / 255: every colour except black is 255. Alpha and transparent colours are ignored."""
    with Image.open(file) as image:
        if image.mode.startswith("I"):
            return np.where(np.asarray(image) > 0, 255, 0).astype(np.uint8)
        image.info.pop("transparency", None)
        return np.where(np.asarray(image.convert("RGB")).any(axis=-1), 255, 0).astype(np.uint8)
