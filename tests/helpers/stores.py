"""Small stores of the small archive, and functions to compare them."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorstore
import xarray as xr
import zarr

import liver_dask as ld
from liver_dask.core.places import Place
from liver_dask.store.zarr_store import zarr_store

from .archive import SHAPE
from .places import bucket_and_key, contents, files_of

SMALL = {"chunks": (2, 64, 64), "shards": (4, 128, 128)}
BOX = (37, 401, 21, 290, 1, 9)
SMALL_BOX = (37, 165, 21, 149, 1, 5)
"""A box of one shard of SMALL, for stores whose files cost a request each."""


def read_by_tensorstore(array: Place) -> np.ndarray:
    """Return all voxels of an array, as tensorstore reads them."""
    secrets: dict[str, str] = {}
    if isinstance(array, Path):
        kvstore: dict[str, Any] = {"driver": "file", "path": str(array)}
    else:
        bucket, key = bucket_and_key(array).values()
        kvstore = {
            "driver": "s3",
            "bucket": bucket,
            "path": f"{key}/",
            "endpoint": array.options["endpoint_url"],
            "aws_region": "us-east-1",
            "aws_credentials": {"type": "environment"},
        }
        secrets = {"AWS_ACCESS_KEY_ID": array.options["key"], "AWS_SECRET_ACCESS_KEY": array.options["secret"]}
    with mock.patch.dict(os.environ, secrets):
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()


def check_store(store: Place, voxels: dict[str, np.ndarray], box: tuple[int, ...]) -> None:
    """Compare every voxel, as read by zarr-python, tensorstore and xarray."""
    x0, x1, y0, y1, z0, z1 = box
    by_xarray = xr.open_zarr(zarr_store(store))
    for name, whole in voxels.items():
        expected = whole[z0:z1, y0:y1, x0:x1]
        np.testing.assert_array_equal(zarr.open_array(zarr_store(store / name), mode="r")[:], expected)
        np.testing.assert_array_equal(read_by_tensorstore(store / name), expected)
        np.testing.assert_array_equal(by_xarray[name], expected)


def undisturbed(archive: Path, folder: Path, name: str = "undisturbed.zarr") -> Path:
    """Write the store of BOX in one call without any fault, and return its path."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    return Path(ld.to_zarr(ds, folder / name, bounding_box=BOX, progress=False, **SMALL))


def assert_same_files(one: Place, other: Place) -> None:
    """Assert that two folders, wherever they are, have the same files with the same bytes."""
    assert files_of(one) == files_of(other)
    found, expected = contents(one), contents(other)
    assert [name for name, content in found.items() if content != expected[name]] == []


def slabs_of(store: Path) -> list[Path]:
    """Return the slabs that an unfinished export has written."""
    return list(Path(f"{store}.partial", "progress", "slabs").glob("*/[0-9]*"))
