"""Smaller copies of a store's voxels, each half of the one before, for whoever looks from afar.

Each level is a store of its own, `STORE/pyramid/s1`, `s2`, ..., made of the level below as `to_zarr` makes a store of
the archive: region by region, on threads or over a cluster, and gone on with after a kill. What is read of the level
below is read in tiles, so memory does not grow with the volume.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.lazy.arrays import LazyWindow, Selection, VolumeArray, Window
from ..core.concurrency import cores
from ..core.documents import read_document
from ..core.errors import DamagedError, StoreExistsError
from ..core.geometry import DIMS, Shape, check_voxel_size
from ..core.kinds import KINDS, Kind, kind_of
from .array import StoredArray
from .inventory import check_structure
from .ome_zarr import Level, check_names, is_described, open_variables, write_ome_metadata
from .placement import Placement, placement_of
from .plan import Export
from .record import layout_of, open_record, read_checksums, read_record
from .zarr_group import read_group, write_group

if TYPE_CHECKING:
    from distributed import Client

FOLDER = "pyramid"

SMALL_ENOUGH = 512
"""Rows and columns of the last level, at most."""

HOW: dict[Kind, str] = {"image": "mean", "mask": "majority", "instances": "most frequent"}
"""How a level is said to be made."""

TILE = (1024, 2048)
"""Rows and columns that are read at once of the level below: with 16 slices of raw, 64 MB."""


def add_pyramid(store: str | os.PathLike[str], *, client: "Client | None" = None, progress: bool = True) -> list[str]:
    """Add smaller copies of all variables to a store, and describe it as an OME-Zarr 0.5 image with labels.

    Level by level y and x are halved, and z too as soon as voxels are no longer larger along it (never, if their size
    is not known), until a slice has 512 rows and columns or less. Numbers become the mean of the voxels that they stand
    for, rounded to the nearest, halves to even; masks are labelled where half of those voxels or more are; of instances
    the most frequent number stays.

    The store itself is as before: `xr.open_zarr(store)`; `xr.open_datatree(store, group="pyramid")` gives the levels,
    with coordinates in voxels of the whole volume. Viewers find raw and all levels at the store's root, and the masks
    and instances in its group `labels`, where shards are hard links to those of the variables (copies where the disk
    has no links). What else is in `labels`, such as a segmentation of your own, stays as it is, and so do the root's
    other attributes.

    After an interruption the same call goes on; if all is there it does nothing.

    Args:
        store: A complete store of `to_zarr`, on a file system that this process and all workers share.
        client: The cluster to work on; if None, what `to_zarr` takes then.
        progress: Whether to report on standard error.

    Returns:
        The paths of the levels, the store itself first.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: There is not enough disk or memory. (ValueError)
        StoreExistsError: Another process is at it, the levels are of another store, or something that this package did
            not make has the name of a level or label. (FileExistsError)
        DamagedError: A level cannot be read. (OSError)
    """
    root = Path(store).expanduser().absolute()
    known = open_record(root)
    check_structure(root, known, layout_of(known))
    planned = plan_levels(layout_of(known).shape, voxel_size_of(root))
    levels = [Level(root, (1, 1, 1))]
    levels += [Level(root / FOLDER / f"s{number}", factors) for number, factors in enumerate(planned, 1)]
    _check_levels(root / FOLDER, levels[1:])
    described = all(level.path.is_dir() for level in levels) and is_described(levels)
    if not described:
        check_names(levels)
    if planned and read_group(root / FOLDER) is None:
        (root / FOLDER).mkdir(exist_ok=True)
        write_group(root / FOLDER, {})
    for below, level in pairwise(levels):
        record = open_record(below.path)
        ds = halved(below, level.factors, root)
        Export.plan(ds, level.path, chunks=record["chunks"], shards=record["shards"]).run(client, "raise", progress)
    if not described:
        write_ome_metadata(levels, voxel_size_of(root))
    return [str(level.path) for level in levels]


def _check_levels(group: Path, levels: Sequence[Level]) -> None:
    """Refuse to add levels where something else has their names; before hours are spent on the first of them.

    Raises:
        StoreExistsError: The group `pyramid`, or a level in it, is not of this package.
    """
    folders = [path for path in group.iterdir() if path.is_dir()] if group.is_dir() else []
    is_new = group.is_dir() and not folders and (read_group(group) == {} or not (group / "zarr.json").exists())
    ours = {path for path in folders if _is_level(path)}
    names = {name for level in levels for name in (level.path.name, f"{level.path.name}.partial")}
    taken = [path for path in folders if path.name in names and path not in ours and any(path.iterdir())]
    if os.path.lexists(group) and not is_new and not ours:
        taken = [group]
    if taken:
        raise StoreExistsError(f"{taken[0]} is something that liver_dask did not make; rename it, and begin again.")


def _is_level(path: Path) -> bool:
    """Whether a folder is a level, or one that is not complete."""
    return read_record(path) is not None or (path.name.endswith(".partial") and (path / "lock").is_file())


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
    step = _step(below, level.factors)
    try:
        for name in names:
            told = tuple(HalvedReader(below.path, name, step, kind).describe() for kind in KINDS)
            if not record["variables"][name]["voxels"].startswith(told):
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
        told = read_document(path, "says what the store is")["attributes"].get("voxel_size_nm")
        return check_voxel_size(told) if told else None
    except DamagedError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedError(f"{path}, which says what the store is, cannot be read ({error}).") from error


def halved(below: Level, factors: Shape, root: Path) -> xr.Dataset:
    """The level above `below`, lazily: to be read a region at a time.

    Args:
        below: The level that it is made of.
        factors: How many voxels of the store a voxel is to stand for.
        root: The store.
    """
    record = open_record(below.path)
    for path in {below.path, root}:
        known = open_record(path)
        check_structure(path, known, layout_of(known))
    step = _step(below, factors)
    source = open_variables(below.path)
    variables = {}
    for name in record["variables"]:
        attrs = source[name].attrs
        reader = HalvedReader(below.path, name, step, kind_of(source[name]))
        window = LazyWindow(reader, Window.whole(reader.shape), source[name].dtype)
        variables[name] = DIMS, VolumeArray.of(window, tuple((length,) for length in window.shape)), attrs
    whole = open_variables(root)
    coordinates = {
        dim: whole[dim].values[0] + ((factor - 1) / 2 + factor * np.arange(length) if factor > 1 else np.arange(length))
        for dim, factor, length in zip(DIMS, factors, reader.shape, strict=True)
    }
    attrs = whole.attrs | {"voxels_of_the_store": list(factors)}
    size = voxel_size_of(root)
    if size:
        attrs["voxel_size_nm"] = [of * factor for of, factor in zip(size, factors, strict=True)]
    return xr.Dataset(variables, coordinates, attrs)


def _step(below: Level, factors: Shape) -> Shape:
    z, y, x = (of // factor for of, factor in zip(factors, below.factors, strict=True))
    return z, y, x


@dataclass(frozen=True)
class HalvedReader:
    """One variable of a level, read by halving what the level below has of it.

    Attributes:
        below: The level below.
        variable: The variable.
        step: How many voxels of the level below a voxel stands for: 1 or 2 along each of z, y and x.
        kind: Of the variable: how one voxel is made of several.
    """

    below: Path
    variable: str
    step: Shape
    kind: Kind

    @property
    def slices_at_once(self) -> int:
        """As many as the level below keeps together, and decodes together."""
        depth: int = open_record(self.below)["chunks"][0]
        return depth

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x) of the level."""
        z, y, x = open_record(self.below)["shape"]
        return -(-z // self.step[0]), -(-y // self.step[1]), -(-x // self.step[2])

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """Read a box; the selections are ranges of neighbours."""
        source = StoredArray(self.below, self.variable)
        corner = int(z[0]), int(y[0]), int(x[0])
        for tile in _tiles(out.shape):
            box = tuple(
                slice((start + part.start) * step, (start + part.stop) * step)
                for start, part, step in zip(corner, tile, self.step, strict=True)
            )
            with cores:
                out[tile] = halve(source[box], self.step, self.kind)

    def describe(self) -> str:
        """Of which voxels, by their checksums, and how: the same wherever the store is moved."""
        known = json.dumps(sorted(read_checksums(self.below, self.variable).items()))
        voxels = hashlib.sha256(known.encode()).hexdigest()[:32]
        what = f"{HOW[self.kind]} of {self.step} voxels of the {self.variable}"
        return f"{what} whose shards' checksums have the SHA-256 {voxels}"

    @property
    def variant(self) -> str:
        """None."""
        return ""

    def origin(self) -> None:
        """Not of an archive."""

    def look(self, z: int) -> None:
        """Find out whether the level below is there."""
        StoredArray(self.below, self.variable)

    def foreseeing(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """Nothing is fetched, so nothing can be fetched ahead."""
        return nullcontext()


def halve(voxels: npt.NDArray[Any], step: Shape, kind: Kind) -> npt.NDArray[Any]:
    """Half the size along the axes where `step` is 2; at an odd end a voxel stands for those that there are.

    Args:
        voxels: (z, y, x), integers, floats or bools.
        step: 1 or 2 for each axis.
        kind: Of an image a voxel gets the mean of those it stands for, rounded to the nearest, halves to even. Of a
            mask it gets the greatest value where half of them or more are not zero, else 0. Of instances it gets the
            number that most of them have; of several as frequent ones the smallest, but 0 only if there is no other.
    """
    odd = [(0, -length % of) for length, of in zip(voxels.shape, step, strict=True)]
    if any(more for _, more in odd):
        voxels = np.pad(voxels, odd, mode="edge")  # twice the same voxels: neither mean nor majority changes
    parts = [voxels[tuple(slice(at, None, of) for at, of in zip(place, step, strict=True))] for place in _corners(step)]
    if len(parts) == 1:
        return voxels
    return _HALVED[kind](parts)


def _corners(step: Shape) -> Iterator[tuple[int, ...]]:
    return product(*map(range, step))


def _majority(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    count = np.zeros(parts[0].shape, np.uint8)
    greatest = np.zeros_like(parts[0])
    for part in parts:
        count += part != 0
        np.maximum(greatest, part, out=greatest)
    greatest[count < len(parts) // 2] = 0
    return greatest


def _mean(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    dtype = parts[0].dtype
    if dtype.kind == "f":
        return np.mean(parts, axis=0, dtype=np.float64).astype(dtype)
    bits = len(parts).bit_length() - 1  # 2, 4 or 8 parts
    low, mean = np.zeros(parts[0].shape, dtype), np.zeros(parts[0].shape, dtype)
    for part in parts:  # the upper bits and the lower ones each for themselves: no sum needs a wider type
        mean += part >> bits
        low += part & (len(parts) - 1)
    mean += low >> bits
    low &= len(parts) - 1
    half = len(parts) // 2
    mean += (low > half) | ((low == half) & (mean & 1).astype(bool))
    return mean


def _most_frequent(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    best, most = np.zeros_like(parts[0]), np.zeros(parts[0].shape, np.uint8)
    for part in parts:
        count = np.zeros(part.shape, np.uint8)
        for other in parts:
            count += part == other
        is_better = (count > most) | ((count == most) & (part != 0) & ((best == 0) | (part < best)))
        best[is_better], most[is_better] = part[is_better], count[is_better]
    return best


_HALVED: dict[Kind, Callable[[list[npt.NDArray[Any]]], npt.NDArray[Any]]] = {
    "image": _mean,
    "mask": _majority,
    "instances": _most_frequent,
}


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Parts of a box that need no more of the level below than TILE."""
    height, width = TILE[0] // 2, TILE[1] // 2
    for y, x in product(range(0, shape[1], height), range(0, shape[2], width)):
        yield slice(0, shape[0]), slice(y, min(y + height, shape[1])), slice(x, min(x + width, shape[2]))
