"""Read and write the metadata of Zarr groups; a change is atomic and durable."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype

from ..core.disk import content_of, files_in, is_there
from ..core.documents import reason_of
from ..core.errors import DamagedError
from ..core.places import ObjectPath, Place, path_below
from .durable import TORN
from .group_metadata import METADATA, is_consolidated, parsed
from .storage.access import storage_of


def write_group(group: Place, attributes: Mapping[str, Any], *, consolidate: bool = False) -> None:
    """Set the attributes of a group, and create the group's metadata if they do not exist.

    Zarr itself changes metadata in several steps. A kill between them would leave a store for which xarray warns.

    Args:
        group: Folder of the group. It must exist.
        attributes: All attributes of the group.
        consolidate: Whether to consolidate the metadata of all members. Groups that are already consolidated stay so.

    Raises:
        DamagedError: The metadata are nested too deeply, or those of a member cannot be read.
    """
    content = group_document(group, attributes, consolidate=consolidate)
    for path in files_in(group) if is_there(group) else ():  # left by a run that was killed here
        if path.name.startswith(f".{METADATA}.") and TORN.fullmatch(path.name):
            storage_of(group).remove(path)
    storage_of(group).write(group / METADATA, [content])


def new_group(attributes: Mapping[str, Any]) -> bytes:
    """Return the metadata of a new group."""
    found: dict[str, Any] = {}
    zarr.open_group(zarr.storage.MemoryStore(found), mode="w", attributes=dict(attributes))
    return bytes(found[METADATA].to_bytes())


def group_document(group: Place, attributes: Mapping[str, Any], *, consolidate: bool = False) -> bytes:
    """Return what `write_group` would write with the same arguments."""
    consolidate = consolidate or is_consolidated(group)
    found: dict[str, Any] = {}
    of_buffers = default_buffer_prototype().buffer
    for path, content in _metadata_below(group, descend=consolidate):
        found[path_below(path, group)] = of_buffers.from_bytes(content)
    store = zarr.storage.MemoryStore(found)
    try:
        zarr.open_group(store, mode="a", use_consolidated=False).attrs.put(dict(attributes))
        if consolidate:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # not in the specification yet
                zarr.consolidate_metadata(store)
    except RecursionError as error:
        what = f"The metadata of {group}, or of something in it, are nested too deeply for Zarr to write them."
        raise DamagedError(what) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # what zarr raises for damaged metadata
        what = f"The metadata of {group}, or of something in it, cannot be read ({reason_of(error)})."
        raise DamagedError(what) from error
    return bytes(found[METADATA].to_bytes())


def _metadata_below(node: Place, *, descend: bool) -> Iterator[tuple[Place, bytes]]:
    """Yield path and content of the metadata of a group and, to descend, of all groups and arrays in it."""
    content = content_of(node / METADATA)
    document = parsed(content)
    if content is None or document is None:
        return
    yield node / METADATA, content
    if descend and document.get("node_type") == "group":
        for child in files_in(node):
            if isinstance(child, ObjectPath) or child.is_dir():
                yield from _metadata_below(child, descend=True)
