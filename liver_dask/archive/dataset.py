"""`open_archive` and `open_human_liver_em`: an archive as one lazy, labelled Dataset.

Nothing is asked of the archive until voxels are needed.
"""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import xarray as xr
from dask.array.core import normalize_chunks

from ..core.config import setting
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape, check_shape
from ..core.kinds import RAW
from .archives import EMPIAR_13356, find_archive
from .description import Archive, Variable
from .lazy.arrays import LazyWindow, VolumeArray, Window, check_kind_of_arrays
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
) -> xr.Dataset:
    """Open the human-liver EM volume EMPIAR-13356, or an archive laid out like it, without asking it for anything.

    Voxels are fetched where they are needed, and only the files' parts that hold them: a window of raw costs the strip
    index of its slice (once) and the strips of its rows; a window of a mask costs the file up to its last row. Indexing
    composes: `ds.raw[290][1493:1621, 2219:4267]` fetches no more than the same in one step.

    Args:
        source: The archive's root: an http(s) URL, any other fsspec URL (`s3://...`), or a local folder. What is secret
            of a URL (`user:password@`, and behind a `?` a signature or token) goes with each request to its host, and
            is shown and kept nowhere; without, `~/.netrc` is looked at.
        shape: Voxels (z, y, x) of the whole volume. A file of another size is an error when it is read.
        labels: The masks to open. `mito`, `er` and `nucleus` are known to exist; `bile_duct`, `cell_boundary`,
            `cholangiocyte`, `endothelial`, `hepatocyte` and `sinusoid` are said to.
        chunk_rows: Rows of a dask block, which is (1, chunk_rows, width); 1024 unless dask's configuration says
            otherwise (`liver-dask.chunk-rows`).
        connections: The most requests under way at once, from a process or from all workers of a dask cluster together;
            16, or `liver-dask.connections`.
        cache_dir: Folder that keeps strip indexes and masks between processes, or None; `liver-dask.cache-dir`. Once a
            process, the source is asked by one byte whether what is kept of a file is of its present version.
        cache_raw_gb: GB (10^9 bytes) of disk that `cache_dir` may take for strips of raw, those used longest ago going
            first; 0, or `liver-dask.cache-raw-gb`.
        voxel_size_nm: Size of a voxel (z, y, x) in nm, recorded in the attributes. The size in z is disputed, so there
            is no default; `ds.attrs["voxel_size_source"]` says what is known.
        missing: What becomes of a slice whose file does not exist, though its folder does: `raise` is an error, `zeros`
            gives zeros, logs a warning for each file, and has stores list them (`attrs["missing_files"]`).

    Returns:
        A Dataset of dims (z, y, x) with `raw` (uint16) and one variable a label (uint8, 0 or 255), integer index
        coordinates that keep their values in a crop, and attributes with source, licence and citation.

    Raises:
        InvalidArgumentError: A label that does not exist, a shape or number that makes no sense; `source` is a Zarr
            store. (ValueError)
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
) -> xr.Dataset:
    """Open an archive of slices without asking it for anything; see `open_human_liver_em`, which opens EMPIAR-13356.

    Args:
        archive: Its description, or the name of one that is built in (see `archives`), or the path of a file .toml that
            describes it.
        source: Where it is, if not at the address of its description: a mirror, or the folder that it was copied to.
        shape: Voxels (z, y, x) of the whole volume, if they are other than described.
        labels: The labels to open; by default those that its description says.
        chunk_rows: Rows of a dask block, see `open_human_liver_em`.
        connections: The most requests under way at once, see `open_human_liver_em`.
        cache_dir: Folder that keeps parts of files between processes, see `open_human_liver_em`.
        cache_raw_gb: GB of disk that `cache_dir` may take for raw, see `open_human_liver_em`.
        voxel_size_nm: Size of a voxel (z, y, x) in nm, if it is another than described.
        missing: What becomes of a slice whose file does not exist, see `open_human_liver_em`.

    Returns:
        A Dataset of dims (z, y, x) with `raw` and the labels, of the dtypes that the description has.

    Raises:
        InvalidArgumentError: There is no such archive, its description makes no sense, or as `open_human_liver_em`.
            (ValueError)
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
    """Open again the voxels that `LazyWindow.origin` told.

    Args:
        origin: What it told.
        variable: The description of the variable.
        source: Where the archive is now.
        missing: What becomes of slices that do not exist.
    """
    shape = check_shape(origin["shape"])
    archive = origin.get("archive", EMPIAR_13356.name)
    reader = VolumeReader(_source(source, None, None, None), archive, variable, shape, missing)
    whole = LazyWindow(reader, Window.whole(shape), np.dtype(variable.dtype))
    array = xr.DataArray(VolumeArray.of(whole, normalize_chunks(_block(shape, None), shape)), dims=DIMS)
    ranges = [range(*origin[dim]) for dim in DIMS]
    z, y, x = (slice(r.start, None if r.stop < 0 else r.stop, r.step) for r in ranges)
    return array[z, y, x].assign_attrs(variable.attributes)


@dataclass(frozen=True)
class Opened:
    """An archive as it was asked for.

    Attributes:
        archive: Its description, with the shape that was asked for.
        windows: The whole volume of each variable.
        block: Voxels (z, y, x) of a dask block.
        attrs: Attributes of the Dataset.
    """

    archive: Archive
    windows: Mapping[str, LazyWindow]
    block: Shape
    attrs: dict[str, Any]

    @property
    def coordinates(self) -> dict[str, pd.RangeIndex]:
        """Those of the Dataset: the indexes themselves."""
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
) -> Opened:
    """Check every argument of `open_archive`."""
    check_kind_of_arrays()
    archive = archive.of_shape(shape)
    if missing not in get_args(Missing):
        raise InvalidArgumentError(f"missing={missing!r} must be 'raise' or 'zeros'.")
    asked = _source(archive.url if source is None else source, connections, cache_dir, cache_raw_gb)
    whole = Window.whole(archive.shape)
    variables = [archive[name] for name in (RAW, *archive.check_labels(labels))]
    windows = {
        variable.name: LazyWindow(
            VolumeReader(asked, archive.name, variable, archive.shape, missing), whole, np.dtype(variable.dtype)
        )
        for variable in variables
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
    """Voxels of a dask block."""
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
