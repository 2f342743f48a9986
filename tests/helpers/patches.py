"""Tables of counts as stores have them, in small, and datasets of patches of arrays in memory."""

from typing import Any

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


def patches_of(raw: Any, labels: tuple[Any, ...], places: Any, **options: Any) -> Any:
    """A PatchDataset of arrays, without transforms, unless `options` say otherwise."""
    import torch

    from liver_dask.training.dataset import PatchDataset

    transforms = ("raw_transform", "label_transform", "label_transform2", "transform", "sampler", "pre_label_transform")
    plain = {
        "least_tissue": 20,
        "least_labelled": 0,
        "seed": (0,),
        "flips": False,
        "has_own_transforms": True,
        "reuse": None,
        "split": None,
        "with_label_channels": False,
        "n_samples": 1,
        "ndim": None,
        "dtype": torch.float32,
        "label_dtype": torch.float32,
        "with_padding": False,
    }
    return PatchDataset(raw, labels, places, **dict.fromkeys(transforms), **(plain | options))
