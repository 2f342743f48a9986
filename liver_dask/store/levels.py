"""Find and open the levels of a store's pyramid."""

from collections.abc import Iterator, Sequence
from itertools import count, pairwise, takewhile
from typing import NamedTuple, get_args

import numpy as np
import xarray as xr

from ..core.disk import is_file
from ..core.documents import read_document
from ..core.errors import DamagedError
from ..core.geometry import DIMS, Shape, check_voxel_size
from ..core.kinds import Kind
from ..core.places import Place
from .downsampling import METHODS, DownsamplingReader, Method
from .group_metadata import is_consolidated, read_group
from .placement import Placement, placement_of
from .record import RECORD, layout_of, open_record, read_record
from .zarr_store import zarr_store


class Level(NamedTuple):
    """One level of a pyramid.

    Attributes:
        path: Folder of the level, which is a store itself.
        factors: Size of a voxel (z, y, x) in voxels of the finest level.
    """

    path: Place
    factors: Shape


def open_variables(store: Place) -> xr.Dataset:
    """Open a store without dask. Later additions that are not in its consolidated metadata are ignored."""
    return xr.open_zarr(zarr_store(store), chunks=None, consolidated=is_consolidated(store))


FOLDER = "pyramid"

FACTORS = "voxels_of_the_store"
"""Attribute of a level: the size of its voxels (z, y, x) in voxels of the store."""

END = "liver_dask_end"
"""Attribute of an opened level: where the store ends along z, y and x, in the coordinates of the Dataset."""


SMALL_ENOUGH = 512
"""Maximum number of rows and columns of the coarsest level."""


def levels_of(store: Place) -> list[Level]:
    """Return the levels of a store: the store itself, then each existing pyramid level, from fine to coarse.

    Each level has half the rows and columns of the previous one. The list ends before the first missing level.
    """
    levels = [Level(store, (1, 1, 1))]
    for factors in plan_levels(store):
        level = Level(store / FOLDER / f"s{len(levels)}", factors)
        if not level_exists(level.path):
            break
        levels.append(level)
    return levels


def level_exists(path: Place) -> bool:
    """Return whether a level exists, and is not being written there, as in object storage."""
    unfinished = path.with_name(f"{path.name}.partial") / "store" / RECORD / "zarr.json"
    return path.is_dir() and not is_file(unfinished)


def current_levels(store: Place, names: Sequence[str]) -> list[Level]:
    """Return the levels of a store up to the first that was not made from the current voxels of the level below.

    Args:
        store: The store.
        names: The variables that are compared.
    """
    levels = levels_of(store)
    return [levels[0], *(level for _, level in takewhile(lambda pair: _is_made_of(*pair, names), pairwise(levels)))]


def open_levels(ds: xr.Dataset) -> list[tuple[xr.Dataset, Shape]]:
    """Return a Dataset and the pyramid levels above it.

    There are levels only if `ds` holds the unchanged voxels of a store or of a box of a store. If the voxels are
    changed, or their position in the store is not certain, the result contains `ds` only.

    The levels cover the whole store. Their coordinates continue those of `ds`: they are the coordinates that `ds` would
    have if it covered the whole store.

    Returns:
        Pairs of a level and the size of its voxels (z, y, x) in voxels of `ds`; the first pair is `ds` itself. The
        attribute END of the others says where the store ends.
    """
    levels: list[tuple[xr.Dataset, Shape]] = [(ds, (1, 1, 1))]
    found = _box_of(ds)
    if found is None:
        return levels
    store, corner = found
    shape = layout_of(open_record(store)).shape
    end = [int(ds[dim].values[0]) - at + length for dim, at, length in zip(DIMS, corner, shape, strict=True)]
    for level in current_levels(store, list(map(str, ds.data_vars)))[1:]:
        whole = open_variables(level.path)[list(ds.data_vars)]
        places = {
            dim: ds[dim].values[0] - first + (factor - 1) / 2 + factor * np.arange(whole.sizes[dim])
            for dim, first, factor in zip(DIMS, corner, level.factors, strict=True)
        }
        levels.append((whole.assign_coords(places).assign_attrs({END: end}), level.factors))
    return levels


def _box_of(ds: xr.Dataset) -> Placement | None:
    """Return the complete store whose variables a Dataset holds and its first voxel there; None if not certain.

    The `array` of the returned Placement is the folder of the store.
    """
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
    """Return whether a level exists, is complete, and was made from the current voxels of the level below."""
    record = read_record(level.path)
    if not record or not record.get("complete"):
        return False
    step = step_between(below, level.factors)
    try:
        for name in names:
            expected = tuple(DownsamplingReader(below.path, name, step, how).describe() for how in get_args(Method))
            if not record["variables"][name]["voxels"].startswith(expected):
                return False
    except (DamagedError, LookupError, AttributeError):
        return False
    return True


def method_of(level: Place, name: str, kind: Kind) -> Method:
    """Return how a variable of a level was downsampled, or will be: earlier versions made masks by majority."""
    for folder in (level, level.with_name(f"{level.name}.partial") / "store"):
        try:
            made = (read_record(folder) or {})["variables"][name]["voxels"]
        except (LookupError, TypeError):
            continue
        if kind == "mask" and str(made).startswith("majority of"):
            return "majority"
    return METHODS[kind]


def plan_levels(store: Place) -> list[Shape]:
    """Plan the pyramid levels above a store, up to one of SMALL_ENOUGH rows and columns; see `factors_of_levels`.

    Returns:
        For each level, the size of its voxels (z, y, x) in voxels of the store.
    """
    _, rows, columns = layout_of(open_record(store)).shape
    longest = max(rows, columns)
    return list(takewhile(lambda factors: 2 * longest > SMALL_ENOUGH * factors[1], factors_of_levels(store)))


def levels_to_come(shape: Shape, voxel_size_nm: Sequence[float] | None) -> list[Shape]:
    """Return what `plan_levels` will return for a store of this shape (z, y, x) that has no level yet."""
    found, factors = [], (1, 1, 1)
    while max(shape[1:]) > SMALL_ENOUGH * factors[1]:
        factors = _next_factors(factors, voxel_size_nm)
        found.append(factors)
    return found


def factors_of_levels(store: Place) -> Iterator[Shape]:
    """Yield the sizes of the voxels of a store's levels (z, y, x), in voxels of the store, without end.

    A level that exists has the size that it was made with. Of others, each level halves rows and columns. It halves z
    only if the voxel size is known and voxels of the level below are at most as long along z as along both y and x.
    """
    size, factors = voxel_size_of(store), (1, 1, 1)
    for number in count(1):
        factors = _recorded_factors(store / FOLDER / f"s{number}", factors) or _next_factors(factors, size)
        yield factors


def _next_factors(below: Shape, voxel_size_nm: Sequence[float] | None) -> Shape:
    z, y, x = below
    is_short = voxel_size_nm is not None and voxel_size_nm[0] * z <= min(voxel_size_nm[1] * y, voxel_size_nm[2] * x)
    return z * (2 if is_short else 1), 2 * y, 2 * x


def _recorded_factors(level: Place, below: Shape) -> Shape | None:
    """Return the size of the voxels of a level if it exists and can stand above `below`, otherwise None."""
    z, y, x = below
    found = (read_group(level) or {}).get(FACTORS)
    return next((of for of in ((z, 2 * y, 2 * x), (2 * z, 2 * y, 2 * x)) if found == list(of)), None)


def voxel_size_of(store: Place) -> tuple[float, ...] | None:
    """Return the size of a store's voxels (z, y, x) in nm; None if the store does not contain it.

    Raises:
        DamagedError: The store's metadata cannot be read, or the size is not valid.
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
    """Return the size (z, y, x) of a voxel of a level in voxels of the level below.

    Args:
        below: The level below.
        factors: The factors of the level.
    """
    z, y, x = (of // factor for of, factor in zip(factors, below.factors, strict=True))
    return z, y, x
