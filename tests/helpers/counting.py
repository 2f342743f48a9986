"""A made-up source of voxels that counts how many are read."""

import numpy as np

from liver_dask.archive.lazy.arrays import Selection

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
