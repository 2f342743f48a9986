"""Which storage a place belongs to."""

import json
from pathlib import Path
from typing import Any

from ...core.places import Place
from .bucket import Bucket
from .folder import Folder
from .interface import Storage

_FOLDER, _BUCKET = Folder(), Bucket()


def storage_of(place: Place) -> Storage[Any]:
    """Return how a place is written."""
    return _FOLDER if isinstance(place, Path) else _BUCKET


def write_json(place: Place, content: Any) -> None:
    """Write a JSON document to a file."""
    storage_of(place).write(place, [json.dumps(content, indent=1).encode()])
