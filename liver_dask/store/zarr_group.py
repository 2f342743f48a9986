"""Read and write the metadata of Zarr groups; a change is atomic and durable."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zarr

from ..core.disk import files_in
from ..core.documents import reason_of
from ..core.errors import DamagedError
from .durable import TORN, DurableFile
from .group_metadata import METADATA, is_consolidated, read_metadata


def write_group(group: Path, attributes: Mapping[str, Any], *, consolidate: bool = False) -> None:
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
    for torn in [
        path for path in files_in(group) if path.name.startswith(f".{METADATA}.") and TORN.fullmatch(path.name)
    ]:  # left by a run that was killed here
        torn.unlink()
    with DurableFile(group / METADATA) as file:
        file.write(content)


def group_document(group: Path, attributes: Mapping[str, Any], *, consolidate: bool = False) -> bytes:
    """Return what `write_group` would write with the same arguments."""
    consolidate = consolidate or is_consolidated(group)
    with tempfile.TemporaryDirectory(prefix="liver_dask-metadata-") as shadow:
        for path in _metadata_below(group) if consolidate else [group / METADATA][: (group / METADATA).exists()]:
            copy = Path(shadow, path.relative_to(group))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        try:
            zarr.open_group(shadow, mode="a", use_consolidated=False).attrs.put(dict(attributes))
            if consolidate:
                with warnings.catch_warnings(action="ignore", category=UserWarning):  # not in the specification yet
                    zarr.consolidate_metadata(shadow)
        except RecursionError as error:
            what = f"The metadata of {group}, or of something in it, are nested too deeply for Zarr to write them."
            raise DamagedError(what) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # what zarr raises for damaged metadata
            what = f"The metadata of {group}, or of something in it, cannot be read ({reason_of(error)})."
            raise DamagedError(what) from error
        return Path(shadow, METADATA).read_bytes()


def _metadata_below(node: Path) -> Iterator[Path]:
    """Yield the paths of the metadata files of a group and of all groups and arrays in it."""
    document = read_metadata(node)
    if document is None:
        return
    yield node / METADATA
    if document.get("node_type") == "group":
        for child in sorted(node.iterdir()):
            if child.is_dir():
                yield from _metadata_below(child)
