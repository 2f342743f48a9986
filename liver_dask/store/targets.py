"""What can be viewed by its path or address: a store, or an archive."""

import os
from pathlib import Path
from typing import Any

import xarray as xr

from ..archive.archives import EMPIAR_13356
from ..archive.dataset import open_archive
from ..archive.description import Archive
from .record import check_finished, check_shards, has_record, open_record


def open_target(
    target: str | os.PathLike[str], archive: Archive | str | os.PathLike[str] = EMPIAR_13356, **options: Any
) -> xr.Dataset:
    """Open a store, or the archive at an address if it is not the path of a store.

    Args:
        target: The path of a store, or the address of an archive.
        archive: The archive at this address, see `open_archive`.
        options: Further arguments of `open_archive`.

    Raises:
        NotDownloadedError: The store is not complete, or this version cannot read its format. (RuntimeError)
        DamagedError: A shard of the store is missing, and would be read as zeros. (OSError)
        InvalidArgumentError: The target is a Zarr store that this package did not write. (ValueError)
        SliceNotFoundError: The folder does not exist. (FileNotFoundError)
    """
    if has_record(Path(target)):
        names = list(open_record(Path(target))["variables"])
        check_shards(Path(target), names)
        return xr.open_zarr(target)
    check_finished(Path(target))
    return open_archive(archive, target, **options)
