"""`to_zarr`: keep what a Dataset holds as a sharded Zarr v3 store, region by region.

Regions are read one after the other; while one is read, the one before is encoded and written. What a store is on disk,
and how a run goes on after a kill, is in `store`.
"""

import os
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute, tokenize

from . import volume
from .errors import InvalidArgumentError
from .export_plan import CHUNKS, SHARDS, Layout, Region, plan_layout
from .progress import show_progress
from .remote import traffic
from .shards import codec_of, encode_chunk
from .store import RECORD, Store
from .window import VolumeArray

READERS = 8
"""Files of a region that are read side by side, on however few cores: far from the archive, most of them wait."""

LONGEST_NAME = 240
"""Bytes of a store's name; the file system's limit is 255, and names beside it are longer."""

DECODED_ATTRIBUTES = {"_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned"}


def to_zarr(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    bounding_box: Sequence[int] | None = None,
    chunks: Sequence[int] = CHUNKS,
    shards: Sequence[int] = SHARDS,
    progress: bool = True,
) -> str:
    """Write a Dataset, or a box of it, as a sharded Zarr v3 store; `xr.open_zarr(path)` gives it back.

    Memory is bounded by regions (8 slices of a band of rows), whatever the size of the box. The store appears under
    `path` when it is complete; until then it is `path` + `.partial`, and the same call goes on with what that holds. A
    store that is there already and was made by the same call is returned as it is, without a request.

    Args:
        ds: What `open_human_liver_em` gave, cropped or changed lazily or not: variables of dims (z, y, x).
        path: The store to write, on a local file system. Missing folders above it are made.
        bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole volume, each max exclusive; all
            that `ds` holds if None.
        chunks: Voxels (z, y, x) of an inner chunk, which is the least that a reader decodes.
        shards: Voxels (z, y, x) of a shard, which is one file; clipped to the box.
        progress: Whether to report on standard error.

    Returns:
        The path of the store.

    Raises:
        InvalidArgumentError: The box leaves the Dataset or is empty; shards are not whole chunks. (ValueError)
        StoreExistsError: `path` holds something else than this call would write. (FileExistsError)
        LiverDaskError: The source could not be read; the message names the file, the slice and the rows.
    """
    export = Export.plan(ds, path, bounding_box, chunks, shards)
    if not export.store.is_written():
        export.run(progress)
    return str(export.store.target)


class Export:
    """The making of one store: what is to be written, and where."""

    def __init__(self, ds: xr.Dataset, layout: Layout, target: Path) -> None:
        self.store = Store(target, layout, _content_of(ds, layout))
        self._ds = ds
        self._layout = layout

    @classmethod
    def plan(
        cls,
        ds: xr.Dataset,
        path: str | os.PathLike[str],
        bounding_box: Sequence[int] | None = None,
        chunks: Sequence[int] = CHUNKS,
        shards: Sequence[int] = SHARDS,
    ) -> "Export":
        """Check all arguments of `to_zarr`; nothing is touched."""
        target = _local_path(path)
        crop = _crop(ds, bounding_box)
        sizes = {str(name): variable.dtype.itemsize for name, variable in crop.data_vars.items()}
        layout = plan_layout([crop.sizes[dim] for dim in volume.DIMS], sizes, chunks, shards)
        return cls(_in_blocks(crop, layout), layout, target)

    def run(self, progress: bool) -> None:
        """Write every region that is not there yet, then complete the store."""
        with self.store.claimed(self._write_metadata) as unfinished:
            if not unfinished:
                return
            try:
                self._write_remaining(progress)
            except BaseException as error:
                self.store.tidy_after(error)
                raise
            self.store.complete()

    def _write_remaining(self, progress: bool) -> None:
        remaining = [region for region in self._layout.regions() if not self.store.is_region_written(region)]
        total = sum(map(self._bytes_of, remaining))
        already = traffic.bytes
        with (
            show_progress(f"Writing {self.store.target.name}", total, progress and bool(remaining)) as advance,
            ThreadPoolExecutor(READERS) as readers,
            ThreadPoolExecutor(os.cpu_count()) as encoders,
            ThreadPoolExecutor(1) as writer,
        ):
            before: tuple[Region, Future[None]] | None = None
            for region in [*remaining, None]:  # one region is read while the one before is encoded and written
                arrays = self._read(region, readers) if region else {}
                if before:
                    before[1].result()
                    advance(self._bytes_of(before[0]), f"{(traffic.bytes - already) / 1e6:.0f} MB fetched")
                before = (region, writer.submit(self._write, region, arrays, encoders)) if region else None

    def _read(self, region: Region, readers: ThreadPoolExecutor) -> dict[str, npt.NDArray[Any]]:
        part = self._ds.isel(z=slice(region.z_start, region.z_stop), y=slice(region.y_start, region.y_stop))
        blocks = {str(name): variable.data for name, variable in part.data_vars.items()}
        return compute(blocks, scheduler="threads", pool=readers)[0]

    def _write(self, region: Region, arrays: dict[str, npt.NDArray[Any]], encoders: ThreadPoolExecutor) -> None:
        for name, voxels in arrays.items():
            rows = list(encoders.map(self._encode_row, _cut(voxels, 1, self._layout.chunks[1])))
            self.store.write_region(region, name, rows)

    def _encode_row(self, voxels: npt.NDArray[Any]) -> list[bytes]:
        return [encode_chunk(chunk, self._layout.chunks) for chunk in _cut(voxels, 2, self._layout.chunks[2])]

    def _bytes_of(self, region: Region) -> int:
        voxels = (region.z_stop - region.z_start) * (region.y_stop - region.y_start) * self._layout.shape[2]
        return voxels * sum(variable.dtype.itemsize for variable in self._ds.data_vars.values())

    def _write_metadata(self, folder: Path) -> None:
        """All of the store but its shards, as xarray writes it."""
        variables = {
            str(name): (volume.DIMS, da.zeros(self._layout.shape, dtype=variable.dtype, chunks=-1), variable.attrs)
            for name, variable in self._ds.data_vars.items()
        }
        encoding = {
            str(name): {
                "chunks": self._layout.chunks,
                "shards": self._layout.shards,
                "compressors": [codec_of(variable.dtype)],
            }
            for name, variable in self._ds.data_vars.items()
        }
        coordinates = self._ds.coords.to_dataset().compute().coords
        template = xr.Dataset(variables, coordinates, self._ds.attrs)
        template.to_zarr(folder, compute=False, zarr_format=3, consolidated=False, encoding=encoding)


def _local_path(path: str | os.PathLike[str]) -> Path:
    try:
        text = os.fspath(path)
        target = Path(text).expanduser().absolute()
        usable = (
            bool(text) and "://" not in text and "\0" not in text and 0 < len(os.fsencode(target.name)) < LONGEST_NAME
        )
    except (TypeError, RuntimeError, ValueError):
        usable = False
    if not usable:
        raise InvalidArgumentError(f"Cannot write {path!r}: a store is a new folder on a local file system.")
    return target


def _crop(ds: xr.Dataset, bounding_box: Sequence[int] | None) -> xr.Dataset:
    """The box of `ds`, by the global indexes in its coordinates."""
    if not ds.data_vars:
        raise InvalidArgumentError("The Dataset has no variables; nothing would be written.")
    for name, variable in ds.data_vars.items():
        _check_variable(name, variable)
    if 0 in ds.sizes.values():
        raise InvalidArgumentError(f"The Dataset holds no voxels: its sizes are {dict(ds.sizes)}.")
    if bounding_box is None:
        return ds
    held = held_box(ds)
    box = volume.check_bounding_box(bounding_box, held)
    return ds.isel(
        z=slice(box.z_min - held.z_min, box.z_max - held.z_min),
        y=slice(box.y_min - held.y_min, box.y_max - held.y_min),
        x=slice(box.x_min - held.x_min, box.x_max - held.x_min),
    )


def _check_variable(name: Hashable, variable: xr.DataArray) -> None:
    """Refuse what would be read back as something else, or not at all."""
    if not isinstance(name, str) or not name.isidentifier() or name == RECORD:
        raise InvalidArgumentError(
            f"A variable named {name!r} cannot be kept; rename it to a word other than {RECORD!r}."
        )
    if variable.dims != volume.DIMS:
        raise InvalidArgumentError(
            f"Variable {name!r} has dims {variable.dims}, and a store needs {volume.DIMS}; "
            "select with slices, such as z=slice(290, 291), to keep a dim."
        )
    if variable.dtype.kind not in "biuf":
        raise InvalidArgumentError(f"Variable {name!r} is of {variable.dtype}; only numbers and bool can be kept.")
    decoded = DECODED_ATTRIBUTES & variable.attrs.keys()
    if decoded:
        raise InvalidArgumentError(
            f"Variable {name!r} has the attribute {min(decoded)!r}, by which readers would change its values; drop it."
        )


def _in_blocks(ds: xr.Dataset, layout: Layout) -> xr.Dataset:
    """Variables that are not of dask (of the engine without `chunks`, or in memory) as dask arrays, for `_read`."""
    block = dict(zip(volume.DIMS, (1, layout.band, layout.shape[2]), strict=True))
    return ds.assign(
        {name: variable.chunk(block) for name, variable in ds.data_vars.items() if variable.chunks is None}
    )


def held_box(ds: xr.Dataset) -> volume.BoundingBox:
    """The box of the volume that a Dataset holds, by its coordinates, which must run one by one."""
    bounds = {}
    for dim in volume.DIMS:
        index = ds.indexes.get(dim)
        if index is None or not np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            raise InvalidArgumentError(
                f"The coordinate {dim!r} does not run one by one, so a box of it is not defined."
            )
        bounds[dim] = int(index[0]), int(index[-1]) + 1
    return volume.BoundingBox(*bounds["x"], *bounds["y"], *bounds["z"])


def _content_of(ds: xr.Dataset, layout: Layout) -> dict[str, Any]:
    """What makes two calls the same: the same voxels in the same layout."""
    return {
        "shape": list(layout.shape),
        "chunks": list(layout.chunks),
        "shards": list(layout.shards),
        "variables": {
            str(name): {"dtype": variable.dtype.str, "voxels": _describe(variable.data)}
            for name, variable in ds.data_vars.items()
        },
    }


def _describe(array: Any) -> str:
    """Which voxels an array stands for, the same in every process; of a changed one, dask's name for it."""
    lazy = array.lazy if isinstance(array, VolumeArray) else None
    return lazy.describe() if lazy else f"computed {tokenize(array)}"


def _cut(voxels: npt.NDArray[Any], axis: int, step: int) -> list[npt.NDArray[Any]]:
    """Parts of `step` along an axis, the last as long as there is."""
    return np.split(voxels, range(step, voxels.shape[axis], step), axis=axis)
