"""The small archive that the fixtures of `conftest.py` create and serve, and functions for its slices."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from liver_dask.archive.archives import EMPIAR_13356

SHAPE = (10, 300, 420)


def write_raw(file: Any, pixels: np.ndarray) -> None:
    """Write raw of a slice in the archive's format: LZW by libtiff, predictor 2, one row per strip."""
    Image.fromarray(pixels).save(file, format="TIFF", compression="tiff_lzw", tiffinfo={317: 2, 278: 1})


def counts_and_index(archive: Path, z: int) -> tuple[np.ndarray, int]:
    """Return the number of bytes of each strip of a slice, and of the index that locates them."""
    path = archive / EMPIAR_13356.path("raw", z)
    with tifffile.TiffFile(path) as tiff:
        return np.array(tiff.pages[0].databytecounts), path.stat().st_size - tiff.pages[0].offset + 512


def strip_bytes(archive: Path, z: int, rows: range) -> int:
    """Return the number of bytes of the strips of some rows, according to tifffile."""
    counts, _ = counts_and_index(archive, z)
    return sum(int(counts[row]) for row in rows)


def index_bytes(archive: Path, z: int) -> int:
    """Return the number of bytes of the index.

    It consists of everything after the last strip (the directory and its arrays), and of the first 512 bytes of the
    file, which locate the directory.
    """
    return counts_and_index(archive, z)[1]
