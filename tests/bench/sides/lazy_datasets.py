"""What is done in the same way with any lazy Dataset of xarray."""

from typing import Any

import xarray as xr

from ..processes import Task


def shape(ds: xr.Dataset) -> dict[str, Any]:
    """The shape, which is known without a voxel."""
    return {"shape": ds.raw.shape}


def window(ds: xr.Dataset, task: Task) -> dict[str, Any]:
    """The voxels of a window of a slice, by variable."""
    z, y, x = (slice(*bounds) for bounds in task.settings["window"])
    found = ds.isel(z=z, y=y, x=x).compute()
    return {str(name): found[name].values for name in found}


def overview(ds: xr.Dataset, task: Task) -> dict[str, Any]:
    """Every n-th row and column of a slice of raw."""
    z, step = task.settings["z"], task.settings["step"]
    return {"raw": ds.raw[z : z + 1, ::step, ::step].values}
