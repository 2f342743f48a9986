"""A made-up source of voxels that counts how many are read."""

import numpy as np

from liver_dask.archive.lazy.arrays import LazyWindow, Selection, VolumeArray, Window

SHAPE = (5, 24, 17)
WHOLE = np.arange(np.prod(SHAPE), dtype="u2").reshape(SHAPE)


class CountingReader:
    """Reads from an array and notes how many voxels it was asked for."""

    variant = ""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, z: Selection, y: Selection, x: Selection, out: np.ndarray) -> None:
        self.read += len(z) * len(y) * len(x)
        out[:] = WHOLE[np.ix_(z, y, x)]

    def describe(self) -> str:
        return "test"


def volume_array(kind: type[CountingReader] = CountingReader) -> tuple[VolumeArray, CountingReader]:
    """All of it in blocks, the last of them smaller, and what reads it."""
    reader = kind()
    chunks = ((1,) * 5, (10, 10, 4), (17,))
    return VolumeArray.of(LazyWindow(reader, Window.whole(SHAPE), WHOLE.dtype), chunks), reader
