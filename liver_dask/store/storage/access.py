"""Which storage a place belongs to, and how zarr reads it."""

import json
from pathlib import Path
from typing import Any

from zarr.storage import FsspecStore

from ...core.places import Place
from .bucket import Bucket
from .folder import Folder
from .interface import Storage

_FOLDER, _BUCKET = Folder(), Bucket()


def storage_of(place: Place) -> Storage[Any]:
    """Return how a place is written."""
    return _FOLDER if isinstance(place, Path) else _BUCKET


def zarr_store(place: Place) -> Any:
    """Return what zarr and xarray open to read a store: the path, or a store of zarr for object storage."""
    if isinstance(place, Path):
        return place
    return FsspecStore.from_url(
        str(place), storage_options={"use_listings_cache": False, **place.options}, read_only=True
    )


def write_json(place: Place, content: Any) -> None:
    """Write a JSON document to a file."""
    storage_of(place).write(place, [json.dumps(content, indent=1).encode()])
