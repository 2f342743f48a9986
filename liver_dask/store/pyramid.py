"""Add downsampled copies (pyramid levels) of all variables to a store, for views of large areas.

Each level halves the one below. It is a store of its own, `STORE/pyramid/s1`, `s2`, ..., and is written from the level
below as `to_zarr` writes a store from the archive: region by region, on threads or on a cluster, and resumed after a
kill. The level below is read in tiles, so memory does not grow with the volume.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.lazy_window import LazyWindow
from ..archive.lazy.window import Window
from ..core.disk import is_listed
from ..core.errors import StoreExistsError
from ..core.geometry import DIMS
from ..core.kinds import kind_of
from ..core.places import Named, ObjectPath, Place, place_of
from .additions import add_missing
from .adoption import finish_adoption, finish_changes
from .changes import changing
from .group_metadata import read_group
from .identity import ADDED
from .inventory import check_structure
from .levels import Level, open_variables
from .ome_zarr import check_names, is_described, write_ome_metadata
from .plan import Export
from .record import check_annotated, is_changing, layout_of, open_record, read_record
from .storage.access import storage_of
from .zarr_group import write_group

if TYPE_CHECKING:
    from distributed import Client
from .downsampling import DownsamplingReader
from .levels import FACTORS, FOLDER, level_exists, method_of, plan_levels, step_between, voxel_size_of


def add_pyramid(
    store: Named,
    *,
    storage_options: Mapping[str, Any] | None = None,
    client: "Client | None" = None,
    progress: bool = True,
) -> list[str]:
    """Add pyramid levels of all variables to a store, and describe it as an OME-Zarr 0.5 image with labels.

    Each level halves y and x. It also halves z once voxels are no longer larger along z than along y and x; if the
    voxel size is unknown, z is never halved. The last level has at most 512 rows and columns per slice. A voxel of an
    image becomes the mean of the voxels it covers, rounded to the nearest integer, halves to even. Masks keep the
    share of labelled voxels in each cell of 32 x 32 voxels of a slice; labelled are the voxels that cover the most
    labelled ones. A voxel of instance labels gets the most frequent number.

    The store itself stays as it was: `xr.open_zarr(store)` opens it. `xr.open_datatree(store, group="pyramid")` opens
    the levels, with coordinates in voxels of the whole volume. Viewers find raw and all levels at the root of the
    store, and masks and instance labels in its group `labels`. The shards there are hard links to those of the
    variables, or copies where the file system has no hard links. Other content of `labels`, such as your own
    segmentation, and other attributes of the root are not changed.

    After an interruption the same call resumes. If everything is complete, it does nothing.

    Args:
        store: A complete store of `to_zarr`: a folder that all workers see, or an address in object storage.
        storage_options: fsspec's options for an address in object storage, as in `to_zarr`.
        client: The cluster to work on. None has the same meaning as in `to_zarr`.
        progress: Whether to report on standard error.

    Returns:
        The paths of the levels, the store itself first.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: There is not enough disk space or memory. (ValueError)
        StoreExistsError: Another process is writing, the levels belong to another store, or a level or label has the
            name of something that this package did not write. (FileExistsError)
        DamagedError: A level cannot be read. (OSError)
    """
    root = place_of(store, storage_options)
    known = open_record(root)
    check_structure(root, known, layout_of(known))
    levels = _planned(root)
    is_done = not is_changing(root) and all(_is_whole(of, known) for of in levels) and is_described(levels)
    with nullcontext() if is_done else changing(root) as journal:
        if journal:
            finish_adoption(root, journal)
        check_annotated(root)
        levels = _planned(root)
        if not is_done:
            check_names(levels)
        if len(levels) > 1 and read_group(root / FOLDER) is None:
            storage_of(root).make_folders([root / FOLDER])
            write_group(root / FOLDER, {})
        for below, level in pairwise(levels):
            _write_level(downsampled(below, level, root), below, level, client, progress)
        if not is_done:
            write_ome_metadata(levels, voxel_size_of(root))
    return [str(level.path) for level in levels]


def _is_whole(level: Level, known: Mapping[str, Any]) -> bool:
    """Return whether a level exists, with all variables of the store, whose record is known."""
    record = read_record(level.path) if level_exists(level.path) else None
    return record is not None and known["variables"].keys() <= record["variables"].keys()


def _write_level(ds: xr.Dataset, below: Level, level: Level, client: "Client | None", progress: bool) -> None:
    """Write a level, or what it lacks since variables were added to the store."""
    finish_changes(level.path)
    record = open_record(below.path)
    begun = read_record(level.path) or read_record(level.path.with_name(f"{level.path.name}.partial") / "store")
    own = [name for name, of in begun["variables"].items() if not of.get(ADDED)] if begun else list(ds.data_vars)
    export = Export.plan(ds[own], level.path, chunks=record["chunks"], shards=record["shards"])
    export.run(client, "raise", progress)
    add_missing(level.path, ds.drop_vars(own), client, progress=progress)


def _planned(root: Place) -> list[Level]:
    """Return the store and its levels, those that exist and those to come, whose names are free."""
    levels = [Level(root, (1, 1, 1))]
    levels += [Level(root / FOLDER / f"s{number}", factors) for number, factors in enumerate(plan_levels(root), 1)]
    _check_levels(root / FOLDER, levels[1:])
    return levels


def _check_levels(group: Place, levels: Sequence[Level]) -> None:
    """Check that the names of the levels are free, before hours are spent on the first level.

    Raises:
        StoreExistsError: This package did not write the group `pyramid`, or a level in it.
    """
    folders = [path for path in group.iterdir() if path.is_dir()] if group.is_dir() else []
    is_new = group.is_dir() and not folders and (read_group(group) == {} or not (group / "zarr.json").exists())
    ours = {path for path in folders if _is_level(path)}
    names = {name for level in levels for name in (level.path.name, f"{level.path.name}.partial")}
    taken = [path for path in folders if path.name in names and path not in ours and any(path.iterdir())]
    if is_listed(group) and not is_new and not ours:
        taken = [group]
    if taken:
        raise StoreExistsError(f"{taken[0]} is something that liver_dask did not make; rename it, and begin again.")


def _is_level(path: Place) -> bool:
    """Return whether a folder is a complete or an unfinished level, or has shards of an unfinished one."""
    partial = path if path.name.endswith(".partial") else path.with_name(f"{path.name}.partial")
    is_claimed = storage_of(partial).is_claimed(partial)
    return read_record(path) is not None or (is_claimed and (path == partial or isinstance(path, ObjectPath)))


def downsampled(below: Level, level: Level, root: Place) -> xr.Dataset:
    """Return a level as a lazy Dataset, made from the level below; it is read one region at a time.

    Args:
        below: The level to downsample.
        level: The level above it. If it exists, its masks are made as they were.
        root: The store.
    """
    record = open_record(below.path)
    for path in {below.path, root}:
        known = open_record(path)
        check_structure(path, known, layout_of(known))
    factors = level.factors
    step = step_between(below, factors)
    source = open_variables(below.path)
    variables = {}
    for name in record["variables"]:
        attrs = source[name].attrs
        method = method_of(level.path, name, kind_of(source[name]))
        reader = DownsamplingReader(below.path, name, step, method)
        window = LazyWindow(reader, Window.whole(reader.shape), source[name].dtype)
        variables[name] = DIMS, VolumeArray.of(window, tuple((length,) for length in window.shape)), attrs
    whole = open_variables(root)
    coordinates = {
        dim: whole[dim].values[0] + ((factor - 1) / 2 + factor * np.arange(length) if factor > 1 else np.arange(length))
        for dim, factor, length in zip(DIMS, factors, reader.shape, strict=True)
    }
    attrs = whole.attrs | {FACTORS: list(factors)}
    size = voxel_size_of(root)
    if size:
        attrs["voxel_size_nm"] = [of * factor for of, factor in zip(size, factors, strict=True)]
    return xr.Dataset(variables, coordinates, attrs)
