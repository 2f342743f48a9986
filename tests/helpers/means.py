"""Means of blocks of voxels, as they are defined."""

import numpy as np


def means_of(voxels: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Return the rounded means of blocks of integers; at the end of an axis, blocks have the voxels that exist."""
    missing = [(0, -length % of) for length, of in zip(voxels.shape, factors, strict=True)]
    padded = np.pad(voxels.astype(np.float64), missing, constant_values=np.nan)
    blocks = padded.reshape([n for length, of in zip(padded.shape, factors, strict=True) for n in (length // of, of)])
    return np.rint(np.nanmean(blocks, axis=(1, 3, 5))).astype(voxels.dtype)
