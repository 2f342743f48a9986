"""An archive of the liver's full size, in few bytes: the code of README and docs runs on it as it is written there.

Each slice has 20000 x 20000 pixels, in the archive's own formats. All slices of a variable are one file (hard links),
and its rows repeat, so that it compresses to some megabytes.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile

from helpers.archive import write_raw
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import RAW

SIZE = EMPIAR_13356.shape[1]
PERIOD = 128
"""Rows after which a slice repeats. A disc of each mask is in each square of as many rows and columns."""


def make_liver_sized_archive(folder: Path) -> None:
    """Write an archive of the full shape of EMPIAR-13356 into a folder."""
    offsets = {"mito": (0, 0), "er": (30, 30), "nucleus": (64, 64)}
    for variable in (RAW, *EMPIAR_13356.labels):
        paths = [folder / EMPIAR_13356.path(variable, z) for z in range(EMPIAR_13356.shape[0])]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        paths[0].write_bytes(_raw() if variable == RAW else _mask(*offsets[variable]))
        for path in paths[1:]:
            os.link(paths[0], path)


def _tissue() -> tuple[slice, slice]:
    """Rows and columns with tissue."""
    box = EMPIAR_13356.tissue_box
    assert box is not None
    return slice(box[2], box[3]), slice(box[0], box[1])


def _raw() -> bytes:
    """A TIFF with one row of LZW in each strip, predictor 2, and the directory at the end."""
    rows, columns = _tissue()
    pixels = np.zeros((PERIOD + 1, SIZE), np.uint16)  # the last row is empty
    steps = np.arange(SIZE) // 40 + 7 * np.arange(PERIOD)[:, None]
    pixels[:PERIOD, columns] = (20000 + 150 * (steps % 97))[:, columns]
    written = io.BytesIO()
    write_raw(written, pixels)
    written.seek(0)
    with tifffile.TiffFile(written) as tiff:
        places = zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True)
        strips = [written.getbuffer()[start : start + count].tobytes() for start, count in places]
    chosen = [strips[row % PERIOD if rows.start <= row < rows.stop else PERIOD] for row in range(SIZE)]
    counts = np.array([len(strip) for strip in chosen], np.uint32)
    starts = (8 + np.cumsum(counts) - counts).astype(np.uint32)
    data = b"".join(chosen)
    data += b"\0" * (len(data) % 2)
    arrays = 8 + len(data)
    directory = arrays + 2 * counts.nbytes
    # width, height, bits, LZW, black is zero, offsets, samples, rows of a strip, counts, predictor
    entries = [(256, 4, 1, SIZE), (257, 4, 1, SIZE), (258, 3, 1, 16), (259, 3, 1, 5), (262, 3, 1, 1)]
    entries += [(273, 4, SIZE, arrays), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, SIZE, arrays + counts.nbytes)]
    entries += [(317, 3, 1, 2)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = struct.pack("<2sHI", b"II", 42, directory)
    return head + data + starts.tobytes() + counts.tobytes() + table + struct.pack("<I", 0)


def _mask(down: int, right: int) -> bytes:
    """A PNG of 8-bit grey, 0 or 255."""
    rows, columns = _tissue()
    y, x = np.mgrid[:PERIOD, :PERIOD]
    disc = ((y - 40) ** 2 + (x - 40) ** 2 < 20**2).astype(np.uint8) * 255
    square = np.roll(disc, (down, right), (0, 1))
    pixels = np.tile(square, (1, SIZE // PERIOD + 1))[:, :SIZE]
    pixels[:, : columns.start] = pixels[:, columns.stop :] = 0
    filtered = np.pad(pixels, ((0, 0), (1, 0)))  # filter 0 before each row
    empty = bytes(SIZE + 1)
    deflate = zlib.compressobj(1)
    parts = [deflate.compress(empty * rows.start)]
    full, rest = divmod(rows.stop - rows.start, PERIOD)
    period = np.roll(filtered, -rows.start, 0).tobytes()
    parts += [deflate.compress(period) for _ in range(full)]
    parts += [deflate.compress(period[: rest * (SIZE + 1)] + empty * (SIZE - rows.stop)), deflate.flush()]
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"".join(parts)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
