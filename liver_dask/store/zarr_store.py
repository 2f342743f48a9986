"""What zarr and xarray open to read a store, in a folder or in object storage."""

from pathlib import Path
from typing import Any

from zarr.storage import FsspecStore

from ..core.places import Place


def zarr_store(place: Place) -> Any:
    """Return what zarr and xarray open to read a store: the path, or a store of zarr for object storage."""
    if isinstance(place, Path):
        return place
    return FsspecStore.from_url(str(place), storage_options=place.filesystem_options, read_only=True)
