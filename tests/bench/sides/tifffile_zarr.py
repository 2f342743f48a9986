"""tifffile's Zarr store over fsspec's HTTP, lazily as a dask array; masks by Pillow, whole."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import tifffile
import xarray as xr
import zarr

from ..processes import Task
from .files import LABELS, mask_by_pillow, url_of
from .plain_dask import write

ROWS = 256
BYTES_READ_AT_ONCE = 1 << 20
FILES_AT_ONCE = 8
KEPT = {"block_size": BYTES_READ_AT_ONCE, "cache_type": "blockcache", "cache_options": {"maxblocks": 64}}
"""Strips are not read strictly in order: a cache of one block would fetch some twice."""


def raw_of(url: str) -> da.Array:
    """Raw of a slice: a chunk of Zarr is a strip, a block of dask 256 of them."""
    file = fsspec.open(url, **KEPT).open()
    array = zarr.open_array(tifffile.imread(file, aszarr=True), mode="r")
    return da.from_array(array, chunks=(ROWS, -1), lock=True)  # of a slice there is one file, which has one position


def opened(task: Task) -> xr.Dataset:
    """The lazy Dataset."""
    depth, height, width = task.shape
    read = dask.delayed(mask_by_pillow, pure=True)
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        variables = {"raw": da.stack(list(threads.map(raw_of, [url_of(task.url, "raw", z) for z in range(depth)])))}
    for label in LABELS:
        urls = [url_of(task.url, label, z) for z in range(depth)]
        variables[label] = da.stack([da.from_delayed(read(url), (height, width), "u1") for url in urls])
    return xr.Dataset({name: (("z", "y", "x"), array) for name, array in variables.items()})


def run_open(task: Task) -> dict[str, Any]:
    return {"shape": opened(task).raw.shape}


def run_window(task: Task) -> dict[str, Any]:
    z, y, x = (slice(*bounds) for bounds in task.settings["window"])
    array = raw_of(url_of(task.url, "raw", z.start))  # who looks at one slice opens one
    found = {"raw": array[y, x].compute()[None]}
    for label in LABELS:
        found[label] = mask_by_pillow(url_of(task.url, label, z.start))[y, x][None]
    return found


def run_overview(task: Task) -> dict[str, Any]:
    z, step = task.settings["z"], task.settings["step"]
    file = fsspec.open(url_of(task.url, "raw", z), **KEPT).open()
    return {"raw": zarr.open_array(tifffile.imread(file, aszarr=True), mode="r")[::step, ::step][None]}


def run_box(task: Task) -> None:
    x0, x1, y0, y1, z0, z1 = task.settings["box"]
    write(opened(task).isel(z=slice(z0, z1), y=slice(y0, y1), x=slice(x0, x1)), Path(task.out, "box.zarr"))
