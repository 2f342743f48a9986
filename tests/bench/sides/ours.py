"""This package, with its defaults."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

import liver_dask as ld

from ..processes import Task
from ..timed import Timed, timed_patches
from .lazy_datasets import overview, shape, window
from .served import timed_screen


def opened(task: Task) -> xr.Dataset:
    """The lazy Dataset."""
    return ld.open_human_liver_em(task.url, shape=task.shape)


def run_open(task: Task) -> dict[str, Any]:
    return shape(opened(task))


def run_window(task: Task) -> dict[str, Any]:
    return window(opened(task), task)


def run_overview(task: Task) -> dict[str, Any]:
    return overview(opened(task), task)


def run_box(task: Task) -> None:
    ld.to_zarr(opened(task), Path(task.out, "box.zarr"), bounding_box=task.settings["box"], progress=False)


def run_statistics(task: Task) -> dict[str, Any]:
    ds = opened(task).isel(z=slice(*task.settings["z"]))
    found = ds.liver.fractions().compute()
    return {str(name): found[name].values for name in found}


def run_slab(task: Task) -> None:
    ds = opened(task).isel(y=slice(*task.settings["y"]))
    ld.to_zarr(ds, Path(task.out, "slab.zarr"), client=Client.current(), progress=False)


def run_store(task: Task) -> None:
    ld.get_human_liver_em_data(task.settings["store"], task.settings["box"], True, source=task.url, shape=task.shape)
    ld.add_pyramid(next(Path(task.settings["store"]).glob("*.zarr")), progress=False)


def run_patches(task: Task) -> Timed:
    given = task.settings

    def loader(**more: Any) -> Any:
        return ld.get_human_liver_em_loader(
            given["store"],
            patch_shape=tuple(given["patch"]),
            batch_size=1,
            bounding_boxes=[given["box"]],
            label_choice="mito",
            source=task.url,
            shape=task.shape,
            **{"num_workers": given["loaders"], "n_samples": 100_000, "pin_memory": False, **given["options"], **more},
        )

    plain = loader(num_workers=0, raw_transform=np.asarray, transform=lambda *arrays: arrays)
    return timed_patches(iter(loader()), iter(plain), 4 * given["loaders"], given["seconds"])


def run_gateway(task: Task) -> Timed:
    return timed_screen(task)
