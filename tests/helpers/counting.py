"""A synthetic source of voxels that counts how many are read."""

import numpy as np

from liver_dask.archive.lazy.arrays import VolumeArray
from liver_dask.archive.lazy.lazy_window import LazyWindow
from liver_dask.archive.lazy.window import Selection, Window

SHAPE = (5, 24, 17)
WHOLE = np.arange(np.prod(SHAPE), dtype="u2").reshape(SHAPE)


class CountingReader:
    """A reader of an array that counts the requested voxels.

    Attributes:
        read: Number of voxels read so far.
    """

    variant = ""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, z: Selection, y: Selection, x: Selection, out: np.ndarray) -> None:
        self.read += len(z) * len(y) * len(x)
        out[:] = WHOLE[np.ix_(z, y, x)]

    def describe(self) -> str:
        return "test"


def volume_array(kind: type[CountingReader] = CountingReader) -> tuple[VolumeArray, CountingReader]:
    """Return a lazy array of the whole source in blocks, the last of which is smaller, and its reader."""
    reader = kind()
    chunks = ((1,) * 5, (10, 10, 4), (17,))
    return VolumeArray.of(LazyWindow(reader, Window.whole(SHAPE), WHOLE.dtype), chunks), reader
