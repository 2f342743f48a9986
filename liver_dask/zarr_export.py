"""`to_zarr`: keep what a Dataset holds as a sharded Zarr v3 store, region by region, resumable after a kill.

A store is written as `NAME.partial` and gets its name in one step when it is complete; it also carries a record of what
it is and of being complete, as attributes of its group `liver_dask`. Finished pieces stay in `NAME.partial` whatever
happens, and the same call goes on from them.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask.base import compute, tokenize

from . import volume
from .errors import InvalidArgumentError, StoreExistsError
from .export_plan import CHUNKS, SHARDS, Layout, Region, Shard, plan_layout
from .progress import show_progress
from .remote import traffic
from .shards import PART, DurableFile, Piece, codec_of, encode_chunk, merge_pieces, write_piece
from .window import VolumeArray

RECORD = "liver_dask"
"""The group whose attributes say what a store is."""

READERS = 8
"""Files of a region that are read side by side, on however few cores: far from the archive, most of them wait."""

PIECES = "pieces"
FORMAT = 1


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
    if not export.is_written():
        export.run(progress)
    return str(export.target)


def is_written(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    bounding_box: Sequence[int] | None = None,
    chunks: Sequence[int] = CHUNKS,
    shards: Sequence[int] = SHARDS,
) -> bool:
    """Whether `to_zarr` with these arguments has nothing left to do.

    Raises:
        StoreExistsError: `path` holds something else than this call would write. (FileExistsError)
    """
    return Export.plan(ds, path, bounding_box, chunks, shards).is_written()


def read_record(store: Path) -> dict[str, Any] | None:
    """What `to_zarr` recorded of a store, complete or not; None if it is not one of ours."""
    try:
        found = json.loads((store / RECORD / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


class Export:
    """The making of one store: what is to be written, and where."""

    def __init__(self, ds: xr.Dataset, layout: Layout, target: Path) -> None:
        self.target = target
        self._ds = ds
        self._layout = layout
        self._record = _record_of(ds, layout)
        self._partial = target.with_name(target.name + ".partial")

    @classmethod
    def plan(
        cls,
        ds: xr.Dataset,
        path: str | os.PathLike[str],
        bounding_box: Sequence[int] | None,
        chunks: Sequence[int],
        shards: Sequence[int],
    ) -> "Export":
        """Check all arguments of `to_zarr`; nothing is touched."""
        target = _local_path(path)
        crop = _crop(ds, bounding_box)
        sizes = {str(name): variable.dtype.itemsize for name, variable in crop.data_vars.items()}
        return cls(crop, plan_layout([crop.sizes[dim] for dim in volume.DIMS], sizes, chunks, shards), target)

    def is_written(self) -> bool:
        """Whether the very store is there, complete; StoreExistsError if something else is."""
        if not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir())):
            return False
        found = read_record(self.target)
        if found and found["complete"] and _same(found, self._record):
            return True
        what = "a store of another box, source or layout" if found else "something that liver_dask did not write"
        raise StoreExistsError(f"{self.target} holds {what}; remove it, or choose another path.")

    def run(self, progress: bool) -> None:
        """Write every region that is not there yet, then give the store its name."""
        self._prepare()
        remaining = [region for region in self._layout.regions() if not self._is_written(region)]
        total = sum(map(self._bytes_of, remaining))
        already = traffic.bytes
        with (
            show_progress(f"Writing {self.target.name}", total, progress and bool(remaining)) as advance,
            ThreadPoolExecutor(os.cpu_count()) as encoders,
            ThreadPoolExecutor(1) as writer,
        ):
            try:
                for region in self._write_each(remaining, encoders, writer):
                    fetched = (traffic.bytes - already) / 1e6
                    advance(self._bytes_of(region), f"{fetched:.0f} MB fetched")
            except BaseException as error:
                self._tidy_after(error)
                raise
        self._finish()

    def _write_each(
        self, regions: Sequence[Region], encoders: ThreadPoolExecutor, writer: ThreadPoolExecutor
    ) -> Iterator[Region]:
        """Read one region while the one before is encoded and written; give each when it is on the disk."""
        before: tuple[Region, Future[None]] | None = None
        for region in regions:
            arrays = self._read(region)
            if before:
                before[1].result()
                yield before[0]
            before = region, writer.submit(self._write, region, arrays, encoders)
        if before:
            before[1].result()
            yield before[0]

    def _read(self, region: Region) -> dict[str, npt.NDArray[Any]]:
        part = self._ds.isel(z=slice(region.z_start, region.z_stop), y=slice(region.y_start, region.y_stop))
        arrays = compute(
            {str(name): variable.data for name, variable in part.data_vars.items()},
            scheduler="threads",
            num_workers=READERS,
        )
        return arrays[0]

    def _write(self, region: Region, arrays: dict[str, npt.NDArray[Any]], encoders: ThreadPoolExecutor) -> None:
        """Encode a region, write its pieces, and each shard whose last piece that was."""
        across = self._layout.chunks_per_shard[2]
        for name, voxels in arrays.items():
            rows = list(encoders.map(self._encode_row, _cut(voxels, 1, self._layout.chunks[1])))
            for shard in self._layout.shards_of(region):
                piece: list[bytes] = []
                for row in rows:
                    there = row[shard.x * across : (shard.x + 1) * across]
                    piece += there + [b""] * (across - len(there))  # a shard has chunks beyond the array's end, too
                write_piece(self._piece_path(name, region, shard), piece)
        for name, shard in product(arrays, self._layout.shards_of(region)):
            if all(self._piece_path(name, part, shard).exists() for part in self._layout.regions_of(shard)):
                self._merge(name, shard)

    def _encode_row(self, voxels: npt.NDArray[Any]) -> list[bytes]:
        return [encode_chunk(chunk, self._layout.chunks) for chunk in _cut(voxels, 2, self._layout.chunks[2])]

    def _merge(self, name: str, shard: Shard) -> None:
        """Make a shard of its pieces, and remove them."""
        deep, high, wide = self._layout.chunks_per_shard
        pieces = [
            Piece(
                self._piece_path(name, region, shard),
                first=(
                    region.z_start // self._layout.chunks[0] % deep,
                    region.y_start // self._layout.chunks[1] % high,
                    0,
                ),
                grid=(1, -(-(region.y_stop - region.y_start) // self._layout.chunks[1]), wide),
            )
            for region in self._layout.regions_of(shard)
        ]
        merge_pieces(self._shard_path(name, shard), (deep, high, wide), pieces)
        for piece in pieces:
            piece.path.unlink()

    def _prepare(self) -> None:
        """Make the unfinished store, without a shard, unless this same call has left one."""
        if self._partial.exists():
            if not _same(read_record(self._partial), self._record):
                raise StoreExistsError(
                    f"{self._partial} is the unfinished store of another call (another box, source or layout); "
                    "finish that call, remove the folder, or choose another path."
                )
            return
        new = self._partial.with_name(f".{self._partial.name}.new")
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            _write_metadata(new, self._ds, self._layout, self._record)
            new.replace(self._partial)
        except OSError as error:
            raise InvalidArgumentError(f"Cannot write {self.target}: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _finish(self) -> None:
        """Make the shards that a kill left in pieces, then record that all is there and give the store its name."""
        z, y, x = self._layout.shards_along
        for name, place in product(self._record["variables"], product(range(z), range(y), range(x))):
            if not self._shard_path(name, Shard(*place)).exists():
                self._merge(name, Shard(*place))
        shutil.rmtree(self._partial / PIECES, ignore_errors=True)
        for part in self._partial.rglob("*" + PART):  # of a run that was killed
            part.unlink()
        metadata = self._partial / RECORD / "zarr.json"
        document = json.loads(metadata.read_bytes())
        document["attributes"]["complete"] = True
        with DurableFile(metadata) as file:
            file.write(json.dumps(document, indent=2).encode())
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # not in the Zarr specification as yet ...
            zarr.consolidate_metadata(self._partial)  # ... but xarray warns of stores without
        self._partial.replace(self.target)

    def _tidy_after(self, error: BaseException) -> None:
        """Leave nothing where nothing was finished; else say what is kept."""
        kept = sum(self._is_written(region) for region in self._layout.regions())
        if kept:
            total = sum(1 for _ in self._layout.regions())
            error.add_note(f"{kept} of {total} regions are kept in {self._partial}; the same call goes on from them.")
        else:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _is_written(self, region: Region) -> bool:
        return all(
            self._piece_path(name, region, shard).exists() or self._shard_path(name, shard).exists()
            for name, shard in product(self._record["variables"], self._layout.shards_of(region))
        )

    def _bytes_of(self, region: Region) -> int:
        voxels = (region.z_stop - region.z_start) * (region.y_stop - region.y_start) * self._layout.shape[2]
        return voxels * sum(variable.dtype.itemsize for variable in self._ds.data_vars.values())

    def _shard_path(self, name: str, shard: Shard) -> Path:
        return self._partial / name / "c" / str(shard.z) / str(shard.y) / str(shard.x)

    def _piece_path(self, name: str, region: Region, shard: Shard) -> Path:
        return self._partial / PIECES / name / f"{region.z_start}-{region.y_start}-{shard.x}"


def _local_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text or "://" in text:
        raise InvalidArgumentError(f"Cannot write {text!r}: a store is written to a folder of a local file system.")
    return Path(text).expanduser()


def _crop(ds: xr.Dataset, bounding_box: Sequence[int] | None) -> xr.Dataset:
    """The box of `ds`, by the global indexes in its coordinates."""
    if not ds.data_vars:
        raise InvalidArgumentError("The Dataset has no variables; nothing would be written.")
    for name, variable in ds.data_vars.items():
        if variable.dims != volume.DIMS:
            raise InvalidArgumentError(
                f"Variable {name!r} has dims {variable.dims}, and a store needs {volume.DIMS}; "
                "select with slices, such as z=slice(290, 291), to keep a dim."
            )
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


def _record_of(ds: xr.Dataset, layout: Layout) -> dict[str, Any]:
    """What makes two calls the same: the same voxels in the same layout."""
    return {
        "format": FORMAT,
        "complete": False,
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
    return array.lazy.describe() if isinstance(array, VolumeArray) else f"computed {tokenize(array)}"


def _same(found: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return found is not None and {**found, "complete": None} == {**wanted, "complete": None}


def _write_metadata(folder: Path, ds: xr.Dataset, layout: Layout, record: dict[str, Any]) -> None:
    """All of the store but its shards."""
    variables = {
        str(name): (volume.DIMS, da.zeros(layout.shape, dtype=variable.dtype, chunks=-1), variable.attrs)
        for name, variable in ds.data_vars.items()
    }
    encoding = {
        str(name): {"chunks": layout.chunks, "shards": layout.shards, "compressors": [codec_of(variable.dtype)]}
        for name, variable in ds.data_vars.items()
    }
    template = xr.Dataset(variables, ds.coords, ds.attrs)
    template.to_zarr(folder, compute=False, zarr_format=3, consolidated=False, encoding=encoding)
    zarr.open_group(folder, mode="a").create_group(RECORD, attributes=record)


def _cut(voxels: npt.NDArray[Any], axis: int, step: int) -> list[npt.NDArray[Any]]:
    """Parts of `step` along an axis, the last as long as there is."""
    return np.split(voxels, range(step, voxels.shape[axis], step), axis=axis)
