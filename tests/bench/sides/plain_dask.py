"""Dask and xarray with the usual libraries: `dask.delayed` over fsspec, tifffile for the index, imagecodecs to decode.

Blocks are 512 rows of a slice, whose strips are fetched by one request; a mask is fetched and decoded whole. Eight
threads, because they mostly wait.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import imagecodecs
import numpy as np
import tifffile
import xarray as xr
from zarr.codecs import BloscCodec

from ..processes import Task
from .files import LABELS, fetch, url_of
from .lazy_datasets import overview, shape, window

ROWS = 512
BYTES_OF_A_LOOK = 1 << 18
CHUNKS, WIDEST_SHARD = (8, 256, 256), 4096
dask.config.set(num_workers=8)


@lru_cache(maxsize=64)
def index_of(url: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the strips of a file are: offsets and byte counts."""
    with fsspec.open(url, block_size=BYTES_OF_A_LOOK) as file, tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        return np.array(page.dataoffsets), np.array(page.databytecounts)


def read_rows(url: str, start: int, stop: int, width: int) -> np.ndarray:
    """Rows of raw."""
    offsets, counts = index_of(url)
    first, end = int(offsets[start]), int(offsets[stop - 1] + counts[stop - 1])
    data = fsspec.filesystem("http").cat_file(url, start=first, end=end)
    rows = np.empty((1, stop - start, width), np.uint16)
    for row, (offset, count) in enumerate(zip(offsets[start:stop] - first, counts[start:stop], strict=True)):
        imagecodecs.lzw_decode(data[offset : offset + count], out=rows[0, row].view(np.uint8))
    return imagecodecs.delta_decode(rows, axis=-1, out=rows)


def read_mask(url: str) -> np.ndarray:
    """A whole mask."""
    return imagecodecs.png_decode(fetch(url))[None]


def opened(task: Task) -> xr.Dataset:
    """The lazy Dataset."""
    depth, height, width = task.shape
    read = dask.delayed(read_rows, pure=True)
    slices = []
    for z in range(depth):
        url = url_of(task.url, "raw", z)
        bounds = [(start, min(start + ROWS, height)) for start in range(0, height, ROWS)]
        blocks = [
            da.from_delayed(read(url, start, stop, width), (1, stop - start, width), "u2") for start, stop in bounds
        ]
        slices.append(da.concatenate(blocks, axis=1))
    variables = {"raw": da.concatenate(slices)}
    read = dask.delayed(read_mask, pure=True)
    for label in LABELS:
        urls = [url_of(task.url, label, z) for z in range(depth)]
        variables[label] = da.concatenate([da.from_delayed(read(url), (1, height, width), "u1") for url in urls])
    return xr.Dataset({name: (("z", "y", "x"), array) for name, array in variables.items()})


def write(ds: xr.Dataset, path: Path) -> None:
    """Write shards of a block of dask each."""
    sides = {"z": CHUNKS[0], "y": min(ds.sizes["y"], WIDEST_SHARD // 4), "x": min(ds.sizes["x"], WIDEST_SHARD)}
    compressors = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")
    options = {"chunks": CHUNKS, "shards": tuple(sides.values()), "compressors": compressors}
    encoding = dict.fromkeys(ds.data_vars, options)
    ds.chunk(sides).to_zarr(path, encoding=encoding, zarr_format=3, consolidated=False)


def run_open(task: Task) -> dict[str, Any]:
    return shape(opened(task))


def run_window(task: Task) -> dict[str, Any]:
    return window(opened(task), task)


def run_overview(task: Task) -> dict[str, Any]:
    return overview(opened(task), task)


def run_box(task: Task) -> None:
    x0, x1, y0, y1, z0, z1 = task.settings["box"]
    write(opened(task).isel(z=slice(z0, z1), y=slice(y0, y1), x=slice(x0, x1)), Path(task.out, "box.zarr"))


def run_statistics(task: Task) -> dict[str, Any]:
    ds = opened(task)[list(LABELS)].isel(z=slice(*task.settings["z"]))
    found = (ds > 0).mean(("y", "x")).compute()
    return {str(name): found[name].values for name in found}


def run_slab(task: Task) -> None:
    write(opened(task).isel(y=slice(*task.settings["y"])), Path(task.out, "slab.zarr"))
