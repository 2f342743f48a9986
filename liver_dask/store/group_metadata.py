"""Read the metadata of Zarr groups."""

import json
from typing import Any

from ..core.places import Place

METADATA = "zarr.json"


def read_group(group: Place) -> dict[str, Any] | None:
    """Return the attributes of a group; None if there is no group or its metadata cannot be read."""
    document = read_metadata(group)
    if document is None or document.get("node_type") != "group":
        return None
    attributes = document.get("attributes", {})
    return attributes if isinstance(attributes, dict) else None


def is_consolidated(group: Place) -> bool:
    """Return whether the metadata of a group include those of its members (consolidated metadata)."""
    return bool((read_metadata(group) or {}).get("consolidated_metadata"))


def read_metadata(node: Place) -> dict[str, Any] | None:
    """Return the metadata of a group or array; None if there are none. Raise OSError if the disk cannot be read."""
    try:
        return parsed((node / METADATA).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def parsed(content: bytes | None) -> dict[str, Any] | None:
    """Return a document; None if it is no JSON object."""
    try:
        document = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
