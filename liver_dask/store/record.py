"""Read what a store records about itself: its record, its grids, and its checksums and tables of statistics.

`writer` writes a store. Nothing in this module writes, locks or removes files.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ..archive.remote.address import ZARR_METADATA
from ..archive.remote.versions import MISSING
from ..core.disk import content_of, is_there, size_of, sizes_of
from ..core.documents import read_document, reason_of, short
from ..core.errors import (
    DamagedError,
    NotDownloadedError,
    StoreExistsError,
)
from ..core.places import Place, path_below
from .inventory import check_structure
from .layout import Layout, Shard, plan_layout
from .record_checks import record_problem
from .shards import Checksum
from .zarr_store import zarr_store

log = logging.getLogger(__name__)

RECORD = "liver_dask"
"""The group whose attributes are the record of a store."""

MANIFEST = "manifest.json"
"""File in an array's folder: size and CRC-32C of each shard, and size and ETag of each source file of the array."""

BEGUN = "annotation.json"
"""File in the group of the record: locked while a complete store is changed; it says what is being written."""

ADOPTED = "adopted"
"""Key in that file: the name of the store beside, whose variables are being moved into the store."""

ADOPTION = {"variables": dict, "metadata": dict, "files": dict, "missing": list, "is_moved": bool}
"""The other keys then: the entries of the record and of the inventory, and whether all files have their place."""

ADDITION = "is_addition"
"""Key of the record of a store whose variables are to be moved into another one."""

BUSY = "Another process is annotating {}, or adding levels or variables to it; wait for it to end."
"""Message if this file is locked."""

MISSING_FILES = "missing_files"
"""The attribute of a store that lists the files which its source did not have."""

FORMAT = 4
OLDEST_READ = 3
CHECKSUMS_SINCE = 4
"""Stores of earlier formats have no checksums after their chunks. They can be read, but not resumed."""


def read_record(store: Place) -> dict[str, Any] | None:
    """Return the record of a store, complete or not; None if there is none or its format is not supported.

    Raises:
        OSError: The disk does not tell whether there is a record.
    """
    record = _any_record(store)
    known = record is not None and record.get("format") in range(OLDEST_READ, FORMAT + 1)
    return record if known else None


def has_record(store: Place) -> bool:
    """Return whether a liver_dask store exists: of any format, complete or not, damaged or not."""
    return _any_record(store) is not None


def _any_record(store: Place) -> dict[str, Any] | None:
    """Return the record of a store of any format; an empty one if it is damaged, None if there is no record."""
    content = content_of(store / RECORD / "zarr.json")
    if content is None:
        return None
    try:
        found = json.loads(content)["attributes"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def open_record(store: Place) -> dict[str, Any]:
    """Return the record of a complete store.

    Raises:
        NotDownloadedError: There is no complete store.
        DamagedError: The record has impossible values.
    """
    record = read_record(store)
    if record is None or not record.get("complete"):
        partial = store.parent / f"{store.name}.partial"
        there = f"; {partial} is an unfinished one, finish it first" if is_there(partial) else ""
        if record is None and is_there(store):
            there = f": it is {what_is_at(store)}{there}"
        raise NotDownloadedError(f"There is no complete store of liver_dask at {store}{there}.")
    problem = record_problem(record)
    if problem:
        raise DamagedError(f"{store / RECORD / 'zarr.json'}, which says what the store is, is damaged: {problem}.")
    for lacking in what_it_lacks(record):
        _log_once(f"{store}: {lacking}")
    return record


def check_finished(path: Place) -> None:
    """Raise NotDownloadedError if a path is that of an unfinished store, or of the folder in which it is written."""
    partial = path.with_name(f"{path.name}.partial") if path.name and not is_there(path) else path
    if is_there(partial / "store" / RECORD / "zarr.json"):
        raise NotDownloadedError(
            f"{path} is not complete: {partial} is an unfinished store of liver_dask; finish it first, by the command "
            "that began it."
        )


def check_annotated(store: Place) -> None:
    """Raise StoreExistsError if a store is being changed, or this was interrupted."""
    path = store / RECORD / BEGUN
    if is_changing(store):
        if adoption_in(path.read_bytes()):
            raise StoreExistsError(
                f"Variables are being added to {store}, or this was interrupted; `liver-dask pyramid` or `annotate` "
                "finishes it, or the same call of `add_variables`."
            )
        raise StoreExistsError(
            f"The voxel size of {store} is being changed, or this was interrupted; `liver-dask annotate` finishes it."
        )


def is_changing(store: Place) -> bool:
    """Return whether a store is being changed, or this was interrupted."""
    path = store / RECORD / BEGUN
    return is_there(path) and path.is_file() and bool(size_of(path))


def adoption_in(journal: bytes) -> dict[str, Any] | None:
    """Return what a journal says about variables that are being moved into a store; None if none are."""
    try:
        found = json.loads(journal)
        name, variables = found[ADOPTED], found["variables"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    names = [name, *variables] if isinstance(variables, dict) else [None]
    is_whole = all(isinstance(found.get(key), of) for key, of in ADOPTION.items())
    return found if is_whole and all(isinstance(of, str) and "/" not in of and of != ".." for of in names) else None


def what_it_lacks(record: Mapping[str, Any]) -> list[str]:
    """Return what a store of an earlier format lacks, one sentence each."""
    if record["format"] >= FORMAT:
        return []
    sentences = [
        f"it is of format {record['format']}: its chunks have no checksums of their own, so damage is found by "
        "`verify` alone, and not by whoever reads it; write it anew to have them."
    ]
    floats = [name for name, variable in record["variables"].items() if np.dtype(variable["dtype"]).kind == "f"]
    if floats:
        sentences.append(
            f"where all voxels of a chunk of {', '.join(floats)} are 0, xarray and other readers take them for NaN."
        )
    return sentences


@functools.lru_cache(maxsize=1000)
def _log_once(sentence: str) -> None:
    log.info(sentence)


def what_is_at(path: Place) -> str:
    """Describe a path that holds no readable store, and what the user can do with it."""
    if is_there(path / "store" / RECORD / "zarr.json"):
        return "an unfinished store of liver_dask; finish it first, by the command that began it"
    record = _any_record(path)
    if record is not None:
        number = record.get("format")
        if not isinstance(number, int):
            return f"a store of liver_dask whose record, {path / RECORD / 'zarr.json'}, is damaged"
        if number > FORMAT:
            return f"a store of format {number}, of a newer liver_dask than this one: update liver_dask"
        if number < OLDEST_READ:
            return f"a store of format {number}, of an earlier liver_dask: xr.open_zarr({str(path)!r}) still opens it"
    if _is_empty_group(path):
        return "an empty Zarr group, as torch_em's own module leaves one when it is called without download=True"
    if any(is_there(path / name) for name in ZARR_METADATA):
        return f"a Zarr store that liver_dask did not write: xr.open_zarr({str(path)!r}) may open it"
    return "something that liver_dask did not write"


def _is_empty_group(path: Place) -> bool:
    """Return whether a folder holds nothing but the metadata of a Zarr group without attributes."""
    if not path.is_dir() or [entry.name for entry in path.iterdir()] != ["zarr.json"]:
        return False
    try:
        document = json.loads((path / "zarr.json").read_bytes())
        return bool(document["node_type"] == "group" and not document.get("attributes"))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def layout_of(record: Mapping[str, Any]) -> Layout:
    """Return the grids of a store from its record."""
    sizes = {name: np.dtype(variable["dtype"]).itemsize for name, variable in record["variables"].items()}
    return plan_layout(record["shape"], sizes, record["chunks"], record["shards"])


def read_checksums(store: Place, name: str) -> dict[Shard, Checksum]:
    """Return the recorded checksum of each shard of a variable.

    Raises:
        DamagedError: The manifest is missing or cannot be read.
    """
    path = store / name / MANIFEST
    try:
        shards = read_document(path, f"has the checksums of the shards of {name}")["shards"]
        return {_shard_of(place): _checksum_of(found) for place, found in shards.items()}
    except DamagedError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path}, which has the checksums of the shards of {name}, cannot be read ({error})."
        ) from error


def checksums_digest(store: Place, name: str) -> str:
    """Return a digest of the checksums of all shards of a variable: of its voxels, wherever the store is.

    Raises:
        DamagedError: The manifest is missing or cannot be read.
    """
    known = json.dumps(sorted(read_checksums(store, name).items()))
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def read_statistics(store: Place, name: str, statistic: str) -> npt.NDArray[Any]:
    """Return one statistic of each inner chunk of a variable, as an array with axes (z, y, x) in chunks.

    Args:
        store: A complete store.
        name: The variable.
        statistic: `nonzero`, `mean` or `std`; see STATISTICS.

    Raises:
        NotDownloadedError: There is no complete store.
        DamagedError: The table is missing or cannot be read.
    """
    path = store / RECORD / name / statistic
    record = open_record(store)
    try:
        check_structure(store, record, layout_of(record), path_below(path, store))
        return np.asarray(zarr.open_array(zarr_store(path), mode="r", zarr_format=3)[:])
    except Exception as error:  # zarr raises arbitrary errors for a damaged store
        reason = reason_of(error)
        raise DamagedError(f"{path}, which tells where there is something, cannot be read ({reason}).") from error


def missing_files(store: Place, names: Iterable[str]) -> list[str]:
    """List the files that the source of some variables of a complete store did not have. Their voxels are zeros.

    Raises:
        DamagedError: The manifests cannot be read.
    """
    missing: set[str] = set()
    for name in names:
        path, what = store / name / MANIFEST, f"lists the files that {name} is made of"
        try:
            missing |= set(missing_of(read_document(path, what)["sources"]))
        except (LookupError, TypeError) as error:
            raise DamagedError(f"{path}, which {what}, is damaged.") from error
    return sorted(missing)


def missing_of(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the sorted URLs of those recorded files that the source did not have."""
    return sorted(source["url"] for source in sources if source["tag"] == MISSING.etag)


def check_shards(store: Place, names: Iterable[str]) -> None:
    """Check the size of every shard, because Zarr readers read a missing shard as zeros.

    Raises:
        DamagedError: A shard is missing, or does not have its recorded size.
    """
    for name in names:
        checksums = read_checksums(store, name)
        sizes = sizes_of(store / name / "c", ["/".join(map(str, shard)) for shard in checksums])
        for (shard, expected), size in zip(checksums.items(), sizes, strict=True):
            if size != expected.size:
                raise DamagedError(
                    f"{store} has {'lost' if size is None else 'damaged'} shard {tuple(shard)} of {name}"
                )


def shard_path(store: Place, name: str, shard: Shard) -> Place:
    """Return the path of a shard."""
    return store / name / "c" / str(shard.z) / str(shard.y) / str(shard.x)


def _shard_of(place: str) -> Shard:
    """Return the shard that a key of a manifest names."""
    shard = Shard(*map(int, place.split("/")))
    if "/".join(map(str, shard)) != place or min(shard) < 0:
        raise ValueError(f"{short(place)} is no shard")
    return shard


def _checksum_of(found: Any) -> Checksum:
    if not isinstance(found, list) or len(found) != 2 or not all(type(n) is int and 0 <= n < 2**63 for n in found):
        raise ValueError(f"{short(found)} is no size and checksum")
    return Checksum(*found)
