"""`to_zarr`: write a Dataset as a sharded Zarr v3 store, on threads of this process or on a cluster."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from ..archive.description import VOXEL_SIZE_GIVEN
from ..core.places import Named
from .layout import CHUNKS, SHARDS
from .plan import Export
from .pyramid import add_pyramid

if TYPE_CHECKING:
    from distributed import Client


def to_zarr(
    ds: xr.Dataset,
    path: Named,
    *,
    storage_options: Mapping[str, Any] | None = None,
    client: "Client | None" = None,
    bounding_box: Sequence[int] | None = None,
    chunks: Sequence[int] = CHUNKS,
    shards: Sequence[int] = SHARDS,
    on_error: Literal["raise", "continue"] = "raise",
    pyramid: bool = False,
    progress: bool = True,
) -> str:
    """Write a Dataset, or a box of it, as a sharded Zarr v3 store. `xr.open_zarr(path)` opens the result.

    Every strip and every mask is fetched and decoded once, and every chunk is encoded once. Computed variables may
    need more fetches if their graph requires it; this is logged, or raises an error. Memory is bounded by the size of
    regions (8 slices of a row block), whatever the size of the box or of the shards. The store appears at `path` when
    it is complete. Until then it is at `path` + `.partial`, and the same call resumes it, however the last call ended.
    If the same call has already written a complete store at `path`, its path is returned without any request.

    Args:
        ds: The Dataset of `open_human_liver_em`, cropped or changed lazily or not, with variables of dims (z, y, x).
            For voxels that were computed before (`persist`, `compute`), the source files are unknown: the store's
            manifest does not list them, and changes of these files are not noticed.
        path: The store to write: a folder on a file system that this process and all workers share, or an address in
            object storage, such as `s3://bucket/crop.zarr`, where each worker writes by itself. Missing parent folders
            are created. If `path` is a symbolic link, the store is written at its target.
        storage_options: fsspec's options for an address in object storage, such as `key`, `secret` and `endpoint_url`
            of S3. They are sent to the workers, and written nowhere. Without them, the storage's package looks for
            credentials where it always does, in the environment and in files of the user.
        client: The dask cluster to work on, of any kind. All its processes together, including all calls that write on
            it at the same time, have at most as many concurrent requests as the `connections` of
            `open_human_liver_em`. None uses the scheduler that dask itself would use: an open `Client` if there is one,
            otherwise threads of this process. `with dask.config.set(scheduler="threads"):` always selects threads.
            Inside a dask task, None uses threads of the worker, because the code that submits such tasks has already
            distributed the work. `client=get_client()` distributes it again, and the task secedes from its worker
            in the meantime.
        bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole volume, each maximum exclusive.
            None writes all of `ds`.
        chunks: Voxels (z, y, x) per inner chunk, which is the smallest unit that a reader decodes.
        shards: Voxels (z, y, x) per shard, which is one file. Shards are clipped to the box.
        on_error: `raise` stops at the first region that cannot be written. `continue` writes all other regions first.
            In both cases nothing is filled in, the store stays unfinished, and the same call retries the rest.
        pyramid: Whether to add pyramid levels of all variables and the metadata of an OME-Zarr image. `add_pyramid` can
            also do this later.
        progress: Whether to report on standard error.

    Returns:
        The path of the store.

    Raises:
        InvalidArgumentError: The box is empty or exceeds the Dataset; a shard is not a whole number of chunks; there is
            not enough disk space, or not enough memory for a worker; or computed variables would fetch a file more than
            `liver-dask.most-refetches` times (4) on average, or need large results in all regions. (ValueError)
        StoreExistsError: `path` holds something other than this call would write, or another process is writing it;
            or it holds the same voxels with another voxel size than `open_human_liver_em(voxel_size_nm=...)` was given.
            (FileExistsError)
        ExportError: Some regions could not be written; `.failures` lists them. (RuntimeError)
        LiverDaskError: The source could not be read. The message names the file, the slice and the rows.
    """
    export = Export.plan(ds, path, bounding_box, chunks, shards, storage_options)
    is_given = ds.attrs.get("voxel_size_source") == VOXEL_SIZE_GIVEN  # one of a description may be corrected later
    size = ds.attrs.get("voxel_size_nm") if is_given else None
    export.run(client, on_error, progress, size, pyramid=pyramid)
    if pyramid:
        add_pyramid(export.store.target, client=client, progress=progress)
    return str(export.store.target)
