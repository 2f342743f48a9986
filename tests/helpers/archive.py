"""The small archive that the fixtures of `conftest.py` make and serve; and slices as any such archive has them."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from liver_dask.archive.archives import EMPIAR_13356

SHAPE = (10, 300, 420)


def write_raw(file: Any, pixels: np.ndarray) -> None:
    """Write raw of a slice as the archive has it: libtiff's LZW, predictor 2, one row a strip."""
    Image.fromarray(pixels).save(file, format="TIFF", compression="tiff_lzw", tiffinfo={317: 2, 278: 1})


def counts_and_index(archive: Path, z: int) -> tuple[np.ndarray, int]:
    """Bytes of the strips of a slice, and of what says where they are."""
    path = archive / EMPIAR_13356.path("raw", z)
    with tifffile.TiffFile(path) as tiff:
        return np.array(tiff.pages[0].databytecounts), path.stat().st_size - tiff.pages[0].offset + 512


def strip_bytes(archive: Path, z: int, rows: range) -> int:
    """Bytes of the strips of some rows, by tifffile."""
    counts, _ = counts_and_index(archive, z)
    return sum(int(counts[row]) for row in rows)


def index_bytes(archive: Path, z: int) -> int:
    """Bytes behind the last strip: the directory and its arrays; and the 512 that say where it is."""
    return counts_and_index(archive, z)[1]
