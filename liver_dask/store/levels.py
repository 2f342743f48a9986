"""The levels of a pyramid, for all who read them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr

from ..core.documents import read_document
from ..core.errors import DamagedError
from ..core.geometry import DIMS, Shape, check_voxel_size
from ..core.kinds import KINDS
from .group_metadata import is_consolidated
from .placement import Placement, placement_of
from .record import layout_of, open_record, read_record

if TYPE_CHECKING:
    pass
from .downsampling import DownsamplingReader


class Level(NamedTuple):
    """One level of a pyramid.

    Attributes:
        path: Its store.
        factors: How many voxels of the lowest level a voxel stands for along (z, y, x).
    """

    path: Path
    factors: Shape


def open_variables(store: Path) -> xr.Dataset:
    """A store as it was written, without dask: what was added to it since is not looked at."""
    return xr.open_zarr(store, chunks=None, consolidated=is_consolidated(store))


FOLDER = "pyramid"


SMALL_ENOUGH = 512
"""Rows and columns of the last level, at most."""


def levels_of(store: Path) -> list[Level]:
    """The complete levels of a store, itself first, each half of the one before."""
    levels = [Level(store, (1, 1, 1))]
    for factors in plan_levels(layout_of(open_record(store)).shape, voxel_size_of(store)):
        level = Level(store / FOLDER / f"s{len(levels)}", factors)
        if not level.path.is_dir():
            break
        levels.append(level)
    return levels


def open_levels(ds: xr.Dataset) -> list[tuple[xr.Dataset, Shape]]:
    """A Dataset, and the levels above it if its voxels are those of a store, or of a box of one, as they are there.

    The levels are whole, and have the coordinates that `ds` would have if it were whole, too, whatever those are. Of
    changed voxels, or where it is not sure which ones they are, there are none.

    Returns:
        For each level how many voxels of `ds` one of its voxels stands for, along (z, y, x).
    """
    levels: list[tuple[xr.Dataset, Shape]] = [(ds, (1, 1, 1))]
    found = _box_of(ds)
    if found is None:
        return levels
    store, corner = found
    for below, level in pairwise(levels_of(store)):
        if not _is_made_of(below, level, list(map(str, ds.data_vars))):
            break
        whole = open_variables(level.path)[list(ds.data_vars)]
        places = {
            dim: ds[dim].values[0] - first + (factor - 1) / 2 + factor * np.arange(whole.sizes[dim])
            for dim, first, factor in zip(DIMS, corner, level.factors, strict=True)
        }
        levels.append((whole.assign_coords(places), level.factors))
    return levels


def _box_of(ds: xr.Dataset) -> Placement | None:
    """The complete store whose variables a Dataset has, and its first voxel there; None where that is not sure."""
    found = {name: placement_of(variable.variable) for name, variable in ds.data_vars.items()}
    boxes = {
        Placement(place.array.parent, place.corner) if place and place.array.name == name else None
        for name, place in found.items()
    }
    if len(boxes) != 1 or any(variable.dims != DIMS for variable in ds.data_vars.values()):
        return None
    (box,) = boxes
    record = read_record(box.array) if box else None
    return box if record and record.get("complete") else None


def _is_made_of(below: Level, level: Level, names: Sequence[str]) -> bool:
    """Whether a level is there, complete, and made of the one below as that is now."""
    record = read_record(level.path)
    if not record or not record.get("complete"):
        return False
    step = step_between(below, level.factors)
    try:
        for name in names:
            expected = tuple(DownsamplingReader(below.path, name, step, kind).describe() for kind in KINDS)
            if not record["variables"][name]["voxels"].startswith(expected):
                return False
    except (DamagedError, LookupError, AttributeError):
        return False
    return True


def plan_levels(shape: Shape, voxel_size_nm: Sequence[float] | None) -> list[Shape]:
    """For each level above a store, how many of its voxels a voxel stands for along (z, y, x)."""
    planned: list[Shape] = []
    z, size = 1, 1
    while max(-(-length // size) for length in shape[1:]) > SMALL_ENOUGH:
        if voxel_size_nm and voxel_size_nm[0] * z <= min(voxel_size_nm[1:]) * size:
            z *= 2
        size *= 2
        planned.append((z, size, size))
    return planned


def voxel_size_of(store: Path) -> tuple[float, ...] | None:
    """Size of a store's voxels (z, y, x) in nm, if it was told.

    Raises:
        DamagedError: The store's metadata cannot be read.
    """
    path = store / "zarr.json"
    try:
        size = read_document(path, "says what the store is")["attributes"].get("voxel_size_nm")
        return check_voxel_size(size) if size else None
    except DamagedError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedError(f"{path}, which says what the store is, cannot be read ({error}).") from error


def step_between(below: Level, factors: Shape) -> Shape:
    """How many voxels of the level below a voxel of a level stands for."""
    z, y, x = (of // factor for of, factor in zip(factors, below.factors, strict=True))
    return z, y, x
