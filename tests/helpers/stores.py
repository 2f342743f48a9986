"""Small stores of the small archive, and functions to compare them."""

import filecmp
from pathlib import Path

import numpy as np
import tensorstore
import xarray as xr
import zarr

import liver_dask as ld

from .archive import SHAPE

SMALL = {"chunks": (2, 64, 64), "shards": (4, 128, 128)}
BOX = (37, 401, 21, 290, 1, 9)


def check_store(store: Path, voxels: dict[str, np.ndarray], box: tuple[int, ...]) -> None:
    """Compare every voxel, as read by zarr-python, tensorstore and xarray."""
    x0, x1, y0, y1, z0, z1 = box
    for name, whole in voxels.items():
        expected = whole[z0:z1, y0:y1, x0:x1]
        np.testing.assert_array_equal(zarr.open_array(store / name, mode="r")[:], expected)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / name)}}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), expected)
        np.testing.assert_array_equal(xr.open_zarr(store)[name], expected)


def undisturbed(archive: Path, folder: Path, name: str = "undisturbed.zarr") -> Path:
    """Write the store of BOX in one call without any fault, and return its path."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    return Path(ld.to_zarr(ds, folder / name, bounding_box=BOX, progress=False, **SMALL))


def assert_same_files(one: Path, other: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(one, other, files, shallow=False)[1:] == ([], [])


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the relative path and the content of every file in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def slabs_of(store: Path) -> list[Path]:
    """Return the slabs that an unfinished export has written."""
    return list(Path(f"{store}.partial", "progress", "slabs").glob("*/[0-9]*"))
