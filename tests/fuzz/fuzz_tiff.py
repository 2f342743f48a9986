"""Raw slices: whatever is in a TIFF, its pixels are those that tifffile reads, or it is refused in one sentence.

An input is one byte that says which rows and columns are read, and a file.
"""

import io
import logging
import warnings

import numpy as np
import tifffile

from helpers.memory_file import MemoryFile
from liver_dask.archive.formats.tiff import TiffSlice, prefix_shares
from liver_dask.core.errors import FormatError

HEIGHT, WIDTH = 12, 20
UNCOMPRESSED, LZW = 1, 5

logging.getLogger("tifffile").setLevel(logging.CRITICAL)
warnings.simplefilter("ignore")


def read_by_tifffile(data: bytes) -> np.ndarray | None:
    """The grey of the first page, or None where it is refused.

    None, too, of LZW, which may end the process, and of a predictor without compression, which runs on from row to row.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page = tiff.pages[0]
            if int(page.compression) == LZW or (int(page.compression) == UNCOMPRESSED and int(page.predictor) != 1):
                return None
            pixels = page.asarray()
            return pixels if pixels.shape == (HEIGHT, WIDTH) else None
    except Exception:
        return None


def one_input(data: bytes) -> None:
    """Read a slice at points, in parts, and whole."""
    if not data:
        return
    prefix_shares._clear()  # nothing is learnt from what was read before
    rows, columns = np.arange(data[0] % HEIGHT, HEIGHT), slice(data[0] // HEIGHT % (WIDTH - 2), WIDTH - data[0] % 3)
    file = data[1:]
    whole = np.full((HEIGHT, WIDTH), 0xA5A5, np.uint16)
    part = np.full((len(rows), columns.stop - columns.start), 0xA5A5, np.uint16)
    y = rows[::-1].repeat(2)
    x = (7 * np.arange(len(y)) + data[0]) % WIDTH
    points = np.full(len(y), 0xA5A5, np.uint16)
    try:
        TiffSlice(MemoryFile(file), HEIGHT, WIDTH, np.dtype("uint16"), "", None).read_points(y, x, points)
        raw = TiffSlice(MemoryFile(file), HEIGHT, WIDTH, np.dtype("uint16"), "", None)
        raw.read(rows, columns, part)
        raw.read(np.arange(HEIGHT), slice(0, WIDTH), whole)
    except FormatError as error:
        if "\n" in str(error):
            raise AssertionError("is more than a sentence") from error
        return
    assert (part == whole[rows, columns]).all()
    assert (points == whole[y, x]).all()
    expected = read_by_tifffile(file)
    assert expected is None or (expected == whole).all()
