"""What can be viewed by its path or address: a store, or an archive."""

import os
from collections.abc import Mapping
from typing import Any

import xarray as xr

from ..archive.archives import EMPIAR_13356
from ..archive.dataset import open_archive
from ..archive.description import Archive
from ..core.addresses import OF_A_USER
from ..core.errors import SliceNotFoundError
from ..core.places import S3, ObjectPath, Place, place_of
from .record import check_finished, check_shards, has_record, open_record
from .zarr_store import zarr_store


def open_target(
    target: str | os.PathLike[str],
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    *,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Open a store, or the archive at an address if it is not that of a store.

    Args:
        target: The path of a store, or its address in object storage, or the address of an archive.
        archive: The archive at this address, see `open_archive`.
        storage_options: fsspec's options for a store in object storage, as in `to_zarr`.
        options: Further arguments of `open_archive`.

    Raises:
        NotDownloadedError: The store is not complete, or this version cannot read its format. (RuntimeError)
        DamagedError: A shard of the store is missing, and would be read as zeros. (OSError)
        InvalidArgumentError: The target is a Zarr store that this package did not write. (ValueError)
        SliceNotFoundError: The folder does not exist, or there is nothing at the address. (FileNotFoundError)
    """
    place = stored_at(target, storage_options)
    if place is not None and _has_record(place):
        check_shards(place, list(open_record(place)["variables"]))
        return xr.open_zarr(zarr_store(place))
    if isinstance(place, ObjectPath) and place.protocol in S3 and not _may_be_there(place):
        shown = str(place).partition("?")[0]  # what follows may be a secret
        raise SliceNotFoundError(f"There is nothing at {shown}: no store, no archive, or no such bucket.")
    return open_archive(archive, target, **options)


def _may_be_there(place: ObjectPath) -> bool:
    """Return whether there is an object below an address, as far as the storage says."""
    try:
        return place.exists()
    except OSError:  # which reading slices tells better
        return True


def _has_record(place: Place) -> bool:
    """Return whether a store is there; raise NotDownloadedError if it is unfinished."""
    try:
        if has_record(place):
            return True
        check_finished(place)
    except PermissionError:  # public storage that may not be listed answers so for what does not exist
        return False
    return False


def stored_at(target: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Place | None:
    """Return the place that a store may be at; None for the address of a web server, and what is no address.

    None, too, for an address with a user that an archive may have, and a store may not.
    """
    text = str(target)
    if text.startswith(("http://", "https://")) or "::" in text or not text:
        return None
    protocol, _, path = text.partition("://")
    if protocol in OF_A_USER and "@" in path.partition("/")[0]:
        return None
    return place_of(target, options)
