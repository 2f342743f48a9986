"""`to_zarr`: keep what a Dataset holds as a sharded Zarr v3 store, on threads of this process or over a cluster."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import xarray as xr

from .layout import CHUNKS, SHARDS
from .plan import Export
from .pyramid import add_pyramid

if TYPE_CHECKING:
    from distributed import Client


def to_zarr(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    client: "Client | None" = None,
    bounding_box: Sequence[int] | None = None,
    chunks: Sequence[int] = CHUNKS,
    shards: Sequence[int] = SHARDS,
    on_error: Literal["raise", "continue"] = "raise",
    pyramid: bool = False,
    progress: bool = True,
) -> str:
    """Write a Dataset, or a box of it, as a sharded Zarr v3 store; `xr.open_zarr(path)` gives it back.

    Every strip and every mask is fetched and decoded once, every chunk encoded once; for what is computed, more often
    where its graph makes it so, which is logged, or refused. Memory is bounded by regions (8
    slices of a band of rows), whatever the size of the box or of the shards. The store appears under `path` when it is
    complete; until then it is `path` + `.partial`, and the same call goes on with what that holds, however the last one
    ended. A store that is there already and was made by the same call is returned as it is, without a request.

    Args:
        ds: What `open_human_liver_em` gave, cropped or changed lazily or not: variables of dims (z, y, x). Of voxels
            that were computed before (`persist`, `compute`) nothing tells from which files they are: the store's
            manifest lists none, and no change of them is noticed.
        path: The store to write, on a file system that this process and all workers share. Missing folders above it
            are made. Of a symbolic link it is made where that leads.
        client: The cluster to work on, of whatever kind. All its processes together, and all calls that write on it at
            once, have no more requests under way than `connections` of `open_human_liver_em` says. If None, it is the
            one that dask itself would take: a `Client` that was made and is open, else threads of this process, which
            `with dask.config.set(scheduler="threads"):` takes whatever there is. In a task of a cluster None is threads
            of its worker: who hands out such tasks has shared out the work already; with `client=get_client()` it is
            shared out once more, and the task leaves its place meanwhile.
        bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole volume, each max exclusive; all
            that `ds` holds if None.
        chunks: Voxels (z, y, x) of an inner chunk, which is the least that a reader decodes.
        shards: Voxels (z, y, x) of a shard, which is one file; clipped to the box.
        on_error: `raise` stops at the first region that cannot be written; `continue` writes all others first. Either
            way nothing is filled in, the store stays unfinished, and the same call tries the rest again.
        pyramid: Whether to add smaller copies of all variables, and what makes the store an OME-Zarr image: see
            `add_pyramid`, which can do so later, too.
        progress: Whether to report on standard error.

    Returns:
        The path of the store.

    Raises:
        InvalidArgumentError: The box leaves the Dataset or is empty; shards are not whole chunks; there is not enough
            disk, or memory for a worker; what is computed would fetch a file more than `liver-dask.most-refetches`
            times (4) on average, or needs something large in all regions. (ValueError)
        StoreExistsError: `path` holds something else than this call would write, or is being written. (FileExistsError)
        ExportError: Some regions could not be written; `.failures` lists them. (RuntimeError)
        LiverDaskError: The source could not be read; the message names the file, the slice and the rows.
    """
    export = Export.plan(ds, path, bounding_box, chunks, shards)
    export.run(client, on_error, progress)
    if pyramid:
        add_pyramid(export.store.target, client=client, progress=progress)
    return str(export.store.target)
