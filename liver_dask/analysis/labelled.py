"""The numbers of the objects as a lazy volume: each block is labelled again, and its numbers replaced."""

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from ..core.geometry import Shape
from .components import Joined, label


def labelled(
    labels: xr.DataArray, array: da.Array, joined: Joined, connectivity: int, *, is_mask: bool
) -> xr.DataArray:
    """Return the volume of the objects' numbers.

    Args:
        labels: What was measured, for its coordinates.
        array: Its dask array.
        joined: The objects, connected.
        connectivity: Which neighbours are connected.
        is_mask: Whether all values but 0 are the same.
    """
    one, names = delayed(_labelled, pure=True), joined.labels()
    parts = np.empty([max(of.block.index[axis] for of in joined.blocks) + 1 for axis in range(3)], object)
    for of, numbers in joined.parts():
        made = one(array[of.block.voxels], names[numbers], connectivity, is_mask, of.block.core)
        parts[of.block.index] = da.from_delayed(made, of.block.core, np.uint32)
    attributes = {"kind": "instances", "long_name": "number of the object"}
    return xr.DataArray(da.block(parts.tolist()), labels.coords, labels.dims, "objects", attributes)


def _labelled(
    voxels: npt.NDArray[Any], numbers: npt.NDArray[np.uint32], connectivity: int, is_mask: bool, core: Shape
) -> npt.NDArray[np.uint32]:
    found, _ = label(voxels != 0 if is_mask else voxels, connectivity)
    z, y, x = core
    return np.concatenate([np.zeros(1, np.uint32), numbers])[found[:z, :y, :x]]
