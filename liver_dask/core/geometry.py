"""Boxes of a Dataset by the indexes of the whole volume, which its coordinates hold."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from . import volume
from .errors import InvalidArgumentError


def crop(ds: xr.Dataset, bounding_box: Sequence[int] | None) -> xr.Dataset:
    """The part of a Dataset that a box of the volume holds, lazily.

    Args:
        ds: What `open_human_liver_em` gave, or a store, or a part of either: dims (z, y, x), with coordinates.
        bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole volume, each max exclusive; all
            of `ds` if None.

    Raises:
        InvalidArgumentError: The box leaves `ds` or is empty, or coordinates do not run one by one. (ValueError)
    """
    _check_size(ds)
    if bounding_box is None:
        return ds
    held = held_box(ds)
    box = volume.check_bounding_box(bounding_box, held)
    return ds.isel(
        z=slice(box.z_min - held.z_min, box.z_max - held.z_min),
        y=slice(box.y_min - held.y_min, box.y_max - held.y_min),
        x=slice(box.x_min - held.x_min, box.x_max - held.x_min),
    )


def held_box(ds: xr.Dataset) -> volume.BoundingBox:
    """The box of the volume that a Dataset holds, by its coordinates, which must run one by one."""
    _check_size(ds)
    bounds = {}
    for dim in volume.DIMS:
        index = ds.indexes.get(dim)
        if index is None or not np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            raise InvalidArgumentError(
                f"The coordinate {dim!r} does not run one by one, so a box of it is not defined."
            )
        bounds[dim] = int(index[0]), int(index[-1]) + 1
    return volume.BoundingBox(*bounds["x"], *bounds["y"], *bounds["z"])


def _check_size(ds: xr.Dataset) -> None:
    if 0 in ds.sizes.values():
        raise InvalidArgumentError(f"The Dataset holds no voxels: its sizes are {dict(ds.sizes)}.")
