"""Works of this package whose growth is measured; the client of a cluster is dask's default, and so it is used."""

from pathlib import Path
from typing import Any

import xarray as xr

import liver_dask as ld

from ..processes import Task


def run_to_zarr(task: Task) -> None:
    ds = ld.open_human_liver_em(task.url, shape=task.shape)
    ld.to_zarr(ds, task.settings["store"], bounding_box=task.settings["box"], progress=False)


def run_fractions(task: Task) -> dict[str, Any]:
    ds = ld.open_human_liver_em(task.url, shape=task.shape).isel(z=slice(*task.settings["box"][4:]))
    return {str(name): shares.values for name, shares in ds.liver.fractions().compute().items()}


def run_add_pyramid(task: Task) -> None:
    ld.add_pyramid(Path(task.settings["store"]), progress=False)


def run_measure(task: Task) -> dict[str, Any]:
    ds = xr.open_zarr(task.settings["store"])
    return {"objects": len(ld.measure(ds.mito, ds.raw, progress=False))}
