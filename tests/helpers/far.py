"""What a window of a slice shows at a distance, computed from all voxels of the slice."""

import numpy as np
import numpy.typing as npt


def far(slice_: npt.NDArray, y: tuple[int, int], x: tuple[int, int], step: int) -> npt.NDArray:
    """An image, (rows, columns): of each block of `step` x `step` voxels, the mean of the row in the middle."""
    rows = np.minimum(np.arange(y[0], y[1], step) + step // 2, len(slice_) - 1)
    blocks = [slice_[rows, first : first + step].astype(float) for first in range(x[0], x[1], step)]
    means = np.stack([block.mean(1) for block in blocks], axis=1)
    return (np.rint(means) if slice_.dtype.kind in "iu" else means).astype(slice_.dtype)


def far_shares(slice_: npt.NDArray, y: tuple[int, int], x: tuple[int, int], step: int) -> npt.NDArray:
    """The share of labelled voxels, (rows, columns), of what stands for a voxel of a mask."""
    return far((slice_ > 0).astype(float), y, x, step)


def cells(array: npt.NDArray, size: int = 32) -> dict[tuple[int, int], npt.NDArray]:
    """The cells of an array, by their place."""
    return {
        (row, column): array[row : row + size, column : column + size]
        for row in range(0, array.shape[0], size)
        for column in range(0, array.shape[1], size)
    }


def assert_shares(labelled: npt.NDArray, shares: npt.NDArray) -> None:
    """Check that each cell has as many labelled voxels as its share demands, first those with the greatest share."""
    assert labelled.shape == shares.shape
    for place, wanted in cells(shares).items():
        found = cells(labelled)[place] > 0
        assert abs(found.sum() - wanted.sum()) < 1 + 1e-6, place
        if found.any() and not found.all():
            assert wanted[found].min() >= wanted[~found].max() - 1e-6, place
