"""Check and plan the export of a Dataset to one store.

`driver` schedules the work, `worker` contains what a worker does, and `writer` contains the files of a store and how an
export resumes after a kill.
"""

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.futures import held_by_a_cluster, wait_for
from ..archive.reader import VolumeReader
from ..core.config import setting
from ..core.disk import is_link
from ..core.documents import changing_attributes
from ..core.errors import InvalidArgumentError, RemoteError
from ..core.geometry import DIMS, check_voxel_size, crop
from ..core.kinds import RESERVED_NAMES, kind_of
from ..core.metrics import traffic
from ..core.places import Named, ObjectPath, Place, place_of
from .driver import Driver
from .estimate import STORED_BYTES_PER_BYTE, STORED_SHARE, Estimate, FilesRead, estimate
from .inputs import Source, in_blocks, with_shared_blocks
from .jobs import client_in_force, open_runner
from .layout import CHUNKS, SHARDS, Layout, plan_layout
from .levels import levels_to_come
from .preflight import check_call, check_disk, check_held, check_memory, check_times, check_workers
from .progress import Meter, show_progress
from .record import read_record
from .sample import Sample
from .shards import codecs_of
from .source_checks import check_same_archive, read_sources
from .spot_check import check_same_voxels
from .status import StatusFile
from .writer import Store

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

NOTHING = Sample()

LONGEST_NAME = 240
"""Maximum bytes of a store's name. File systems allow 255, and the names next to the store are longer than its own."""

LONGEST_VARIABLE = 200
"""Maximum bytes of the name of a variable, which is that of a folder."""

LARGEST_VOXEL = 8
"""Bytes per voxel. Numpy has longer floats, Zarr does not."""


class Export:
    """Export of a Dataset to one store.

    Attributes:
        store: The store to write.
        source: The variables to write.
        fetched: Bytes that `run` fetched, in all processes.
        requests: Number of requests for these bytes.
    """

    def __init__(self, ds: xr.Dataset, source: Source, target: Place) -> None:
        self.source = source
        readers = {reader for of_name in source.readers.values() for reader in of_name}
        allows_missing = any(reader.missing == "zeros" for reader in readers)
        content = _content_of(in_blocks(ds, source.layout), source)
        self.store = Store(target, source.layout, content, allows_missing)
        self.fetched = self.requests = 0
        self._held = [future for array in source.arrays for future in held_by_a_cluster(array)]

    @classmethod
    def plan(
        cls,
        ds: xr.Dataset,
        path: Named,
        bounding_box: Sequence[int] | None = None,
        chunks: Sequence[int] = CHUNKS,
        shards: Sequence[int] = SHARDS,
        storage_options: Mapping[str, Any] | None = None,
    ) -> "Export":
        """Check all arguments of `to_zarr` and plan the export. Nothing is written.

        Args:
            ds: Variables with dims (z, y, x).
            path: Place of the store.
            bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole volume, each maximum
                exclusive. None exports all of `ds`.
            chunks: Voxels (z, y, x) per inner chunk.
            shards: Voxels (z, y, x) per shard.
            storage_options: fsspec's options for an address in object storage.

        Raises:
            InvalidArgumentError: An argument cannot be used. (ValueError)
        """
        target = check_place(path, storage_options)
        check_variables(ds)
        if ds.attrs.get("voxel_size_nm") is not None:
            check_voxel_size(ds.attrs["voxel_size_nm"])
        part = crop(ds, bounding_box)
        sizes = {str(name): variable.dtype.itemsize for name, variable in part.data_vars.items()}
        layout = plan_layout([part.sizes[dim] for dim in DIMS], sizes, chunks, shards)
        return cls(part, Source(crop(with_shared_blocks(ds), bounding_box), layout), target)

    @property
    def connections(self) -> int:
        """Maximum number of concurrent requests."""
        every = [reader.source.connections for readers in self.source.readers.values() for reader in readers]
        return max(every, default=setting("connections"))

    def estimate(self, known: Sample = NOTHING) -> Estimate:
        """Estimate the cost of the export. For an unfinished store, estimate the remaining part.

        Args:
            known: What some slices have shown. Without it, sizes are known facts, or guesses.
        """
        variables = {str(name): variable for name, variable in self.source.ds.data_vars.items()}
        sizes = {
            name: (variable.dtype.itemsize, known.stored.get(name, _stored_bytes(variable)))
            for name, variable in variables.items()
        }
        files = {
            group: [replace(used, measured=known.measured.get(used.reader)) for used in of_group]
            for group, of_group in self.source.files_read().items()
        }
        return estimate(self.store.layout, self.source.groups, sizes, files, frozenset(self.store.written()))

    def pyramid_bytes(self, known: Sample = NOTHING) -> int:
        """Estimate the bytes on disk of the levels of a pyramid.

        Args:
            known: As for `estimate`.
        """
        of_voxel = sum(
            known.halved.get(str(name), _stored_bytes(variable)) for name, variable in self.source.ds.data_vars.items()
        )
        shape, size = self.store.layout.shape, self.source.ds.attrs.get("voxel_size_nm")
        levels = np.array(levels_to_come(shape, size)).reshape(-1, 3)
        return int(of_voxel * np.ceil(np.array(shape) / levels).prod(axis=1).sum())

    @property
    def known_files(self) -> dict[str, FilesRead]:
        """What an examination of the archive found about the files of each of its variables that was examined."""
        every = [used for of_group in self.source.files_read().values() for used in of_group]
        return {used.reader.name: used for used in every if used.reader.known.date}

    def run(
        self,
        client: "Client | None" = None,
        on_error: str = "raise",
        progress: bool = True,
        voxel_size_nm: Sequence[float] | None = None,
        *,
        pyramid: bool = False,
    ) -> None:
        """Write the missing regions, then complete the store.

        Args:
            client: The cluster to work on. None selects the client that dask would use, or threads of this process.
            on_error: `raise` or `continue`; see `to_zarr`.
            progress: Whether to report the progress on standard error.
            voxel_size_nm: The size (z, y, x) that the caller says. A store that was begun with another one is refused.
                None accepts any.
            pyramid: Whether there must be room on the disk for the levels of a pyramid, too.

        Raises:
            StoreExistsError: The path holds something other than this call would write.
        """
        client = client_in_force() if client is None else client
        check_call(client, on_error)
        if self.store.is_complete():
            self.store.check_voxel_size(voxel_size_nm)
            self._check_address(complete=True)
            self.store.tidy_beside()
            return
        expected = self.estimate()
        check_times(expected)
        if setting("check-room"):
            check_disk(self.store, expected.disk + (self.pyramid_bytes() if pyramid else 0))
            check_memory(client, expected)
        check_held(self._held, client)
        with self.store.locked(self._write_metadata) as run_name:
            if not run_name:
                return
            self.store.check_voxel_size(voxel_size_nm)
            try:
                self._check_address(complete=False)
                if client:
                    check_workers(client, self.store)
                self._write(client, run_name, on_error == "continue", progress)
                self.store.complete()
            except BaseException as error:
                self.store.tidy_after(error)
                raise

    def _check_address(self, *, complete: bool) -> None:
        """Raise StoreExistsError if the store was begun from another address that serves another archive.

        If the archive cannot be reached, a complete store is accepted with a warning.
        """
        target = self.store.target
        for name in self.store.moved(read_record(target) if complete else None):
            sources = read_sources(target, name) if complete else self.store.sources(name)
            try:
                check_same_archive(target, sources, self.source.readers[name])
                check_same_voxels(self.store, self.source, name, complete=complete)
            except RemoteError as error:
                if not complete:
                    raise
                log.warning("%s is taken for a store of the same archive, which cannot be asked now: %s", target, error)

    def _write(self, client: "Client | None", run_name: str, continue_on_error: bool, progress: bool) -> None:
        traffic.take()  # discard the counts from before this run
        written, finished = self.store.written(), self.store.finished
        total, done = finished.nbytes(), finished.nbytes(written)
        title = f"{'Resuming' if done else 'Writing'} {self.store.target.name}"
        status = StatusFile(finished.folder, Meter(total, done))
        with show_progress(title, total, progress and done < total, done) as advance:
            driver = Driver(self.source, finished, run_name, self.connections, continue_on_error, advance, status)
            try:
                with open_runner(client, driver.report, driver.heartbeat) as runner:
                    wait_for(self._held)
                    driver.write(written, runner)
                status.remove()
            except BaseException:
                driver.tell_status(ended=True)
                raise
            finally:
                self.fetched, self.requests = driver.fetched, driver.requests

    def _write_metadata(self, store: Any) -> None:
        """Write everything in the store except its shards, with xarray, into a store of zarr."""
        layout = self.store.layout
        variables = {
            str(name): (DIMS, da.zeros(layout.shape, dtype=variable.dtype, chunks=-1), variable.attrs)
            for name, variable in self.source.ds.data_vars.items()
        }
        encoding = {
            str(name): {
                "chunks": layout.chunks,
                "shards": layout.shards,
                "compressors": codecs_of(variable.dtype),
                "fill_value": variable.dtype.type(0),
                "_FillValue": None,  # otherwise xarray takes NaN as the fill value of floats
            }
            for name, variable in self.source.ds.data_vars.items()
        }
        coordinates = self.source.ds.coords.to_dataset().compute().drop_encoding().coords
        template = xr.Dataset(variables, coordinates, self.source.ds.attrs)
        template.to_zarr(store, compute=False, zarr_format=3, consolidated=False, encoding=encoding)
        for name, variable in variables.items():
            if variable[1].dtype == bool:
                _write_as_bool(zarr.open_group(store, mode="a", zarr_format=3), name, layout)


def _write_as_bool(group: zarr.Group, name: str, layout: Layout) -> None:
    """Make an array one of bool, as which versions of xarray before 2026.9 did not write it, but as int8."""
    array = group[name]
    if isinstance(array, zarr.Array) and array.dtype != bool:
        attributes = {key: of for key, of in array.attrs.items() if key != "dtype"}
        group.create_array(
            name, shape=layout.shape, dtype=bool, chunks=layout.chunks, shards=layout.shards, fill_value=False,
            compressors=codecs_of(np.dtype(bool)), dimension_names=DIMS, attributes=attributes, overwrite=True,
        )  # fmt: skip


def check_place(path: Named, options: Mapping[str, Any] | None = None) -> Place:
    """Return the place of a store. A symbolic link is resolved, because a finished store cannot replace a link.

    Raises:
        InvalidArgumentError: The path is not a folder name or an address in object storage, or is a symbolic link
            without a target.
    """
    try:
        given = place_of(path, options) if path else Path()
        target = Path(os.path.realpath(given)) if isinstance(given, Path) and is_link(given) else given
        usable = "\0" not in str(target) and 0 < len(os.fsencode(target.name)) < LONGEST_NAME
    except InvalidArgumentError:
        raise
    except (TypeError, RuntimeError, ValueError):
        usable = False
    if not usable:
        raise InvalidArgumentError(
            f"Cannot write {path!r}: a store is a new folder, or an address in object storage such as "
            "s3://bucket/crop.zarr."
        )
    if isinstance(target, Path) and is_link(target):
        raise InvalidArgumentError(f"Cannot write {path!r}: the symbolic link {target} leads nowhere.")
    if isinstance(target, ObjectPath) and "/" not in target.key:
        raise InvalidArgumentError(f"Cannot write {target}: give a name in the bucket, such as {target}/crop.zarr.")
    return target


def check_variables(ds: xr.Dataset) -> None:
    """Raise InvalidArgumentError for variables or coordinates that a store cannot return unchanged."""
    if not isinstance(ds, xr.Dataset):
        advice = f"ds[[{ds.name!r}]]" if isinstance(ds, xr.DataArray) and ds.name else "array.to_dataset(name='raw')"
        raise InvalidArgumentError(f"A store is made of a Dataset, not of a {type(ds).__name__}: give {advice}.")
    if not ds.data_vars:
        raise InvalidArgumentError("The Dataset has no variables; nothing would be written.")
    for name, variable in ds.data_vars.items():
        _check_variable(name, variable)
    for name, coordinate in ds.coords.items():
        _check_attributes(f"Coordinate {name!r}", coordinate)
        if name in RESERVED_NAMES:
            raise InvalidArgumentError(f"Coordinate {name!r} cannot be kept; rename it, or drop it.")
        if getattr(ds.indexes.get(name), "nlevels", 1) > 1:
            raise InvalidArgumentError(f"Coordinate {name!r} is a MultiIndex, and cannot be kept; see reset_index.")


def _check_variable(name: Hashable, variable: xr.DataArray) -> None:
    is_word = isinstance(name, str) and name.isidentifier() and len(name.encode()) <= LONGEST_VARIABLE
    if not is_word or name in RESERVED_NAMES:
        raise InvalidArgumentError(
            f"A variable named {name!r} cannot be kept; rename it to a word of letters, digits and _, other than "
            f"{', '.join(RESERVED_NAMES)}."
        )
    if variable.dims != DIMS and set(variable.dims) == set(DIMS):
        raise InvalidArgumentError(
            f"Variable {name!r} has dims {variable.dims}, and a store needs {DIMS}: ds.transpose{DIMS}."
        )
    if variable.dims != DIMS:
        raise InvalidArgumentError(
            f"Variable {name!r} has dims {variable.dims}, and a store needs {DIMS}; "
            "select with slices, such as z=slice(290, 291), to keep a dim."
        )
    if variable.dtype.kind not in "biuf" or variable.dtype.itemsize > LARGEST_VOXEL:
        raise InvalidArgumentError(f"Variable {name!r} is of {variable.dtype}; only numbers and bool can be kept.")
    _check_attributes(f"Variable {name!r}", variable)


def _check_attributes(what: str, variable: xr.DataArray) -> None:
    changing = changing_attributes(variable.attrs)
    if changing:
        raise InvalidArgumentError(
            f"{what} has the attribute {min(changing)!r}, by which readers would change its values; drop it."
        )


def _stored_bytes(variable: xr.DataArray) -> float:
    """Return the approximate bytes per voxel on disk."""
    share = STORED_SHARE if variable.dtype.kind == "f" else STORED_BYTES_PER_BYTE[kind_of(variable)]
    return share * variable.dtype.itemsize


def _content_of(blocks: xr.Dataset, source: Source) -> dict[str, Any]:
    """Return the record of a store. `identity_of` selects the part of it that identifies the store."""
    layout = source.layout
    return {
        "shape": list(layout.shape),
        "chunks": list(layout.chunks),
        "shards": list(layout.shards),
        "variables": {
            str(name): {
                "dtype": variable.dtype.newbyteorder("<").str,
                "kind": kind_of(variable),
                "voxels": _origin(variable.data),
                "files": sorted({reader.files for reader in source.readers[str(name)]}),
                **_description(variable.data),
            }
            for name, variable in blocks.data_vars.items()
        },
    }


def _origin(array: Any) -> Any:
    """Describe which voxels an array holds, equally in every process; a computed array has its dask name."""
    lazy = array.lazy if isinstance(array, VolumeArray) else None
    return (lazy.origin() or lazy.describe()) if lazy else f"computed {tokenize(array)}"


def _description(array: Any) -> dict[str, Any]:
    """Return the archive's description of an array, so that `verify` works where that description is not installed."""
    lazy = array.lazy if isinstance(array, VolumeArray) else None
    reads = lazy.read if lazy else None
    return {"description": reads.variable.described()} if isinstance(reads, VolumeReader) else {}
