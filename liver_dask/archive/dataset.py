"""`open_archive` and `open_human_liver_em`: an archive as one lazy, labelled Dataset.

No request is sent to the archive until voxels are needed.
"""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd
import xarray as xr
from dask.array.core import normalize_chunks

from ..core.addresses import is_address
from ..core.config import setting
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape, check_shape
from ..core.kinds import RAW
from .archives import EMPIAR_13356, find_archive
from .description import Archive, Variable
from .facts import KnownFiles, read_facts
from .lazy.arrays import VolumeArray, check_kind_of_arrays
from .lazy.lazy_window import LazyWindow
from .lazy.window import Window
from .reader import Missing, VolumeReader
from .remote.address import archive_url
from .remote.source import Source


def open_human_liver_em(
    source: str | os.PathLike[str] = EMPIAR_13356.url,
    *,
    shape: Sequence[int] = EMPIAR_13356.shape,
    labels: str | Iterable[str] = EMPIAR_13356.labels,
    chunk_rows: int | None = None,
    connections: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_raw_gb: float | None = None,
    voxel_size_nm: Sequence[float] | None = None,
    missing: Missing = "raise",
    facts: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Open the human-liver EM volume EMPIAR-13356, or an archive with the same layout, without any request.

    Voxels are fetched when they are needed, and only the parts of the files that hold them. A window of raw costs the
    strip index of its slice (once) and the strips of its rows. A window of a mask costs the file from its start to the
    last row of the window. Indexing steps are combined: `ds.raw[290][1493:1621, 2219:4267]` fetches no more than the
    same selection in one step.

    Args:
        source: The archive's root: an http(s) URL, any other fsspec URL (`s3://...`), or a local folder. Secret parts
            of a URL (`user:password@`, and a signature or token after a `?`) are sent with each request to its host;
            they are never shown or stored. Without them, `~/.netrc` is used.
        shape: Voxels (z, y, x) of the whole volume. Reading a file of another size is an error.
        labels: The masks to open. `mito`, `er` and `nucleus` are known to exist; `bile_duct`, `cell_boundary`,
            `cholangiocyte`, `endothelial`, `hepatocyte` and `sinusoid` are reported to exist.
        chunk_rows: Rows of a dask chunk, which has the shape (1, chunk_rows, width); the default is 1024, or
            `liver-dask.chunk-rows` in dask's configuration.
        connections: The maximum number of concurrent requests, from one process or from all workers of a dask cluster
            together; the default is 16, or `liver-dask.connections`.
        cache_dir: Folder that caches strip indexes and masks between processes, or None; the default is
            `liver-dask.cache-dir`. Once per process, a one-byte request checks whether the cached data of a file
            belongs to its current version.
        cache_raw_gb: Disk space in GB (10^9 bytes) that `cache_dir` may use for strips of raw; the least recently used
            strips are removed first. The default is 0, or `liver-dask.cache-raw-gb`.
        voxel_size_nm: Size of a voxel (z, y, x) in nm, recorded in the attributes. The size in z is disputed, so there
            is no default; `ds.attrs["voxel_size_source"]` says what is known.
        missing: How to treat a slice whose file does not exist although its folder exists. `raise` raises an error.
            `zeros` returns zeros and logs a warning for each file; stores list these files (`attrs["missing_files"]`).
        facts: File of facts about this archive that `liver-dask doctor --save` wrote. Estimates then use the real sizes
            of files, and tell which are missing; no voxel follows from them.

    Returns:
        A Dataset of dims (z, y, x) with `raw` (uint16) and one variable per label (uint8, 0 or 255). It has integer
        index coordinates, which keep their values in a crop, and attributes with source, licence and citation.

    Raises:
        InvalidArgumentError: A label does not exist, a shape or number is not valid, or `source` is a Zarr store.
            (ValueError)
        SliceNotFoundError: `source` is a local folder that does not exist. (FileNotFoundError)
    """
    return open_archive(
        EMPIAR_13356,
        source,
        shape=shape,
        labels=labels,
        chunk_rows=chunk_rows,
        connections=connections,
        cache_dir=cache_dir,
        cache_raw_gb=cache_raw_gb,
        voxel_size_nm=voxel_size_nm,
        missing=missing,
        facts=facts,
    )


def open_archive(
    archive: Archive | str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    shape: Sequence[int] | None = None,
    labels: str | Iterable[str] | None = None,
    chunk_rows: int | None = None,
    connections: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_raw_gb: float | None = None,
    voxel_size_nm: Sequence[float] | None = None,
    missing: Missing = "raise",
    facts: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Open an archive of slices without any request; see `open_human_liver_em`, which opens EMPIAR-13356.

    Args:
        archive: The description of the archive, the name of a built-in one (see `archives`), or the path of a .toml
            file that describes it.
        source: Where the archive is, if not at the address in its description: a mirror, or a folder with a copy.
        shape: Voxels (z, y, x) of the whole volume, if the shape differs from the description.
        labels: The labels to open; the default is those that the description selects.
        chunk_rows: Rows of a dask chunk, see `open_human_liver_em`.
        connections: The maximum number of concurrent requests, see `open_human_liver_em`.
        cache_dir: Folder that caches parts of files between processes, see `open_human_liver_em`.
        cache_raw_gb: Disk space in GB that `cache_dir` may use for raw, see `open_human_liver_em`.
        voxel_size_nm: Size of a voxel (z, y, x) in nm, if it differs from the description.
        missing: How to treat a slice whose file does not exist, see `open_human_liver_em`.
        facts: File of facts about this archive, see `open_human_liver_em`.

    Returns:
        A Dataset of dims (z, y, x) with `raw` and the labels, with the dtypes of the description.

    Raises:
        InvalidArgumentError: There is no such archive, its description is not valid, or an error as in
            `open_human_liver_em`. (ValueError)
        SliceNotFoundError: `source` is a local folder that does not exist. (FileNotFoundError)
    """
    opened = prepare(
        find_archive(archive),
        source,
        shape=shape,
        labels=labels,
        chunk_rows=chunk_rows,
        connections=connections,
        cache_dir=cache_dir,
        cache_raw_gb=cache_raw_gb,
        voxel_size_nm=voxel_size_nm,
        missing=missing,
        facts=facts,
    )
    arrays = {
        name: VolumeArray.of(window, normalize_chunks(opened.block, window.shape))
        for name, window in opened.windows.items()
    }
    variables = {name: (DIMS, array, opened.archive[name].attributes) for name, array in arrays.items()}
    return xr.Dataset(variables, opened.coordinates, opened.attrs)


def open_origin(
    origin: Mapping[str, Any], variable: Variable, source: str | os.PathLike[str], missing: Missing
) -> xr.DataArray:
    """Open again the voxels that `LazyWindow.origin` describes.

    Args:
        origin: The result of `LazyWindow.origin`.
        variable: The description of the variable.
        source: Where the archive is now.
        missing: How to treat slices that do not exist.
    """
    shape = check_shape(origin["shape"])
    archive = origin.get("archive", EMPIAR_13356.name)
    reader = VolumeReader(_source(source, None, None, None), archive, variable, shape, missing, may_become_zeros=False)
    whole = LazyWindow(reader, Window.whole(shape), np.dtype(variable.dtype))
    array = xr.DataArray(VolumeArray.of(whole, normalize_chunks(_block(shape, None), shape)), dims=DIMS)
    ranges = [range(*origin[dim]) for dim in DIMS]
    z, y, x = (slice(r.start, None if r.stop < 0 else r.stop, r.step) for r in ranges)
    return array[z, y, x].assign_attrs(variable.attributes)


@dataclass(frozen=True)
class Opened:
    """An opened archive, with all arguments checked.

    Attributes:
        archive: The description, with the requested shape.
        windows: The whole volume of each variable.
        block: Voxels (z, y, x) of a dask chunk.
        attrs: Attributes of the Dataset.
    """

    archive: Archive
    windows: Mapping[str, LazyWindow]
    block: Shape
    attrs: dict[str, Any]

    @property
    def coordinates(self) -> dict[str, pd.RangeIndex]:
        """The index coordinates of the Dataset."""
        return {dim: pd.RangeIndex(length) for dim, length in zip(DIMS, self.archive.shape, strict=True)}


def prepare(
    archive: Archive,
    source: str | os.PathLike[str] | None,
    *,
    shape: Sequence[int] | None,
    labels: str | Iterable[str] | None,
    chunk_rows: int | None,
    connections: int | None,
    cache_dir: str | os.PathLike[str] | None,
    cache_raw_gb: float | None,
    voxel_size_nm: Sequence[float] | None,
    missing: Missing,
    facts: str | os.PathLike[str] | None = None,
) -> Opened:
    """Check all arguments of `open_archive`."""
    check_kind_of_arrays()
    archive = archive.of_shape(shape)
    if missing not in get_args(Missing):
        raise InvalidArgumentError(f"missing={missing!r} must be 'raise' or 'zeros'.")
    asked = _source(archive.url if source is None else source, connections, cache_dir, cache_raw_gb)
    whole = Window.whole(archive.shape)
    chosen = archive.check_labels(labels)  # in any order; variables have that of the description
    variables = [archive[RAW], *(variable for variable in archive.variables if variable.name in chosen)]
    known: dict[str, KnownFiles] = {}
    if facts is not None:
        files = {variable.name: (variable.files, variable.first) for variable in variables}
        known = read_facts(facts, archive.name, asked.url, archive.shape, files)
    readers = [VolumeReader(asked, archive.name, variable, archive.shape, missing) for variable in variables]
    windows = {
        reader.name: LazyWindow(
            replace(reader, known=known.get(reader.name, reader.known)), whole, np.dtype(reader.variable.dtype)
        )
        for reader in readers
    }
    attrs = archive.attributes(asked.url, voxel_size_nm)
    return Opened(archive, windows, _block(archive.shape, chunk_rows), attrs)


def _source(
    source: str | os.PathLike[str],
    connections: int | None,
    cache_dir: str | os.PathLike[str] | None,
    cache_raw_gb: float | None,
) -> Source:
    cache_dir = setting("cache-dir", cache_dir)
    if cache_dir and is_address(os.fspath(cache_dir)):
        raise InvalidArgumentError(f"cache_dir={os.fspath(cache_dir)!r} is an address; give a folder on this machine.")
    url, secret = archive_url(source)
    return Source(
        url=url,
        connections=_at_least_one("connections", setting("connections", connections)),
        timeout=_seconds("timeout", setting("timeout")),
        attempts=_at_least_one("attempts", setting("attempts")),
        cache_dir=os.path.abspath(os.path.expanduser(cache_dir)) if cache_dir else None,
        cache_raw_bytes=_raw_bytes(setting("cache-raw-gb", cache_raw_gb), cache_dir),
        secret=secret,
    )


def _block(shape: Shape, chunk_rows: int | None) -> Shape:
    """Return the voxels (z, y, x) of a dask chunk."""
    _, height, width = shape
    return 1, min(_at_least_one("chunk_rows", setting("chunk-rows", chunk_rows)), height), width


def _at_least_one(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InvalidArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
    return number


def _seconds(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0
    if not 0 < number < float("inf"):
        raise InvalidArgumentError(f"{name}={value!r} must be a number of seconds above 0.")
    return number


def _raw_bytes(gigabytes: Any, cache_dir: Any) -> int:
    try:
        count = float(gigabytes) * 1e9
    except (TypeError, ValueError):
        count = -1
    if not 0 <= count < float("inf"):
        raise InvalidArgumentError(f"cache_raw_gb={gigabytes!r} must be a number of gigabytes, or 0.")
    if count and not cache_dir:
        raise InvalidArgumentError(f"cache_raw_gb={gigabytes!r} needs a folder to keep strips in: give cache_dir.")
    return int(count)
