"""Tables of counts as stores have them, in small."""

import numpy as np

from liver_dask.training.tables import Counts

CHUNKS = (2, 4, 5)


def table_of(voxels: np.ndarray) -> Counts:
    """The number of nonzero voxels of each chunk."""
    counts = [-(-length // chunk) for length, chunk in zip(voxels.shape, CHUNKS, strict=True)]
    nonzero = np.zeros(counts, np.uint32)
    for z, y, x in np.ndindex(*counts):
        here = voxels[z * 2 : z * 2 + 2, y * 4 : y * 4 + 4, x * 5 : x * 5 + 5]
        nonzero[z, y, x] = np.count_nonzero(here)
    return Counts(nonzero, CHUNKS, voxels.shape)
