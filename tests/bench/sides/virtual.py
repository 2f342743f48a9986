"""virtual-tiff, a parser of VirtualiZarr: a TIFF as a virtual Zarr store, read by obstore; masks by Pillow, whole.

It is made for references that are written once and read often: here, making them is in the time.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import xarray as xr
import zarr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import HTTPStore
from virtual_tiff import VirtualTIFF

from ..processes import Task
from .files import LABELS, mask_by_pillow, url_of
from .plain_dask import write

ROWS = 256
FILES_AT_ONCE = 8
PATIENT = {"allow_http": True, "timeout": "600s"}
zarr.config.set({"async.concurrency": 16})


def raw_of(root: str, z: int) -> xr.DataArray:
    """Raw of a slice, (y, x): a chunk is a strip, a block of dask 256 of them."""
    registry = ObjectStoreRegistry({root: HTTPStore.from_url(root, client_options=PATIENT)})
    store = VirtualTIFF(ifd=0)(url_of(root, "raw", z), registry)
    return xr.open_zarr(store, zarr_format=3, consolidated=False, chunks={"y": ROWS, "x": -1})["0"]


def opened(task: Task) -> xr.Dataset:
    """The lazy Dataset."""
    depth, height, width = task.shape
    read = dask.delayed(mask_by_pillow, pure=True)
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        raw = xr.concat(list(threads.map(partial(raw_of, task.url), range(depth))), "z")
    masks = {}
    for label in LABELS:
        urls = [url_of(task.url, label, z) for z in range(depth)]
        masks[label] = (
            ("z", "y", "x"),
            da.stack([da.from_delayed(read(url), (height, width), "u1") for url in urls]),
        )
    return xr.Dataset({"raw": raw.drop_attrs().drop_encoding(), **masks})


def run_open(task: Task) -> dict[str, Any]:
    return {"shape": opened(task).raw.shape}


def run_window(task: Task) -> dict[str, Any]:
    z, y, x = (slice(*bounds) for bounds in task.settings["window"])
    found = {"raw": raw_of(task.url, z.start).isel(y=y, x=x).values[None]}
    for label in LABELS:
        found[label] = mask_by_pillow(url_of(task.url, label, z.start))[y, x][None]
    return found


def run_overview(task: Task) -> dict[str, Any]:
    z, step = task.settings["z"], task.settings["step"]
    return {"raw": raw_of(task.url, z)[::step, ::step].values[None]}


def run_box(task: Task) -> None:
    x0, x1, y0, y1, z0, z1 = task.settings["box"]
    write(opened(task).isel(z=slice(z0, z1), y=slice(y0, y1), x=slice(x0, x1)), Path(task.out, "box.zarr"))
