"""Change what a finished store says about the size of its voxels, everywhere at once.

The size is in the attributes of the store and of each pyramid level, in their inventories, whose checksums are in their
records, and in the OME-Zarr metadata of the image and of the labels. A file of the store names the new size while these
are being replaced, so that a call that was killed is finished by the next one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..archive.description import VOXEL_SIZE_GIVEN
from ..core.disk import files_in
from ..core.documents import as_object, is_same, read_document
from ..core.errors import DamagedError, InvalidArgumentError, StoreExistsError
from ..core.geometry import check_voxel_size
from ..core.places import Named, Place, place_of
from .adoption import finish_adoption, finish_changes
from .changes import changing
from .durable import TORN
from .group_metadata import is_consolidated, read_group
from .inventory import FILE as INVENTORY
from .inventory import METADATA, VOXEL_SIZE, Metadata, checksum_of, checksum_of_record
from .label_group import LABELS
from .levels import FACTORS, FOLDER, Level, levels_of
from .ome_zarr import rescaled
from .record import RECORD, layout_of, open_record
from .storage.access import storage_of, write_json
from .storage.interface import Journal
from .zarr_group import group_document, write_group


def annotate(
    store: Named,
    *,
    voxel_size_nm: Sequence[float],
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Say how large the voxels of a complete store are, or correct it.

    The attributes of the store, the scales that viewers use (of all levels and labels), and what `verify` expects are
    changed together. No voxel is read or written, and everything else stays as it is. Levels that exist keep the shape
    of their voxels; those that `add_pyramid` adds later follow from the new size. After an interruption, call it again:
    it finishes what was begun.

    Args:
        store: A complete store of `to_zarr`.
        voxel_size_nm: Size of a voxel (z, y, x) in nm.
        storage_options: fsspec's options for an address in object storage, as in `to_zarr`.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: The size is not three positive numbers, the store is a level of a pyramid, or a folder of
            the store cannot be written. (ValueError)
        StoreExistsError: Another process is annotating the store or adding to it, or a level is not finished.
            (FileExistsError)
        DamagedError: The metadata of the store are not what was written; nothing was changed. (OSError)
    """
    size = check_voxel_size(voxel_size_nm)
    root = place_of(store, storage_options)
    open_record(root)
    if FACTORS in (read_group(root) or {}):
        raise InvalidArgumentError(f"{root} is a level of the pyramid of another store; annotate that store.")
    with changing(root) as journal:
        finish_adoption(root, journal)
        for level in levels_of(root)[1:]:
            finish_changes(level.path)
        begun = _read_size(journal)
        if begun:
            _apply(root, begun, journal)
        if begun != size:
            _check(root, size)
            journal.write(json.dumps({"voxel_size_nm": size}).encode())
            _apply(root, size, journal)
        journal.clear()


def _read_size(journal: Journal) -> tuple[float, float, float] | None:
    """Return the size that a call has begun to write; None if it was killed before anything was changed."""
    try:
        return check_voxel_size(json.loads(journal.read())["voxel_size_nm"])
    except (ValueError, LookupError, TypeError, RecursionError):  # InvalidArgumentError is a ValueError
        return None


def _check(root: Place, size: Sequence[float]) -> None:
    """Find out everything that could prevent writing a size, before anything is changed."""
    levels = levels_of(root)
    folder = root / FOLDER
    partial = [path for path in files_in(folder, ".partial") if path.is_dir()] if folder.is_dir() else []
    if partial:
        raise StoreExistsError(
            f"{partial[0]} is an unfinished level; finish it first with `liver-dask pyramid {root}`."
        )
    for level in levels:
        record = open_record(level.path)
        metadata = Metadata(level.path, record, layout_of(record), VOXEL_SIZE)
        if metadata.problems:
            raise DamagedError(
                f"{level.path} is not as it was written ({metadata.problems[0]}), so nothing was changed; "
                f"`liver-dask verify {root}` says more."
            )
        _annotated(level, size)
    groups = _groups(levels, size)
    for folder in (*groups, *(level.path / RECORD for level in levels)):
        if not storage_of(folder).is_writable(folder):
            raise InvalidArgumentError(f"{folder} cannot be written, so nothing was changed.")
    for group, attributes in groups.items():
        group_document(group, attributes)


def _apply(root: Place, size: Sequence[float], journal: Journal) -> None:
    """Write a size to everything that says it, as long as no other process has taken over."""
    levels = levels_of(root)
    for level in levels:
        journal.check()
        _write_record(level, size)
    for group, attributes in _groups(levels, size).items():
        journal.check()
        write_group(group, attributes)


def _groups(levels: Sequence[Level], size: Sequence[float]) -> dict[Place, dict[str, Any]]:
    """Return the attributes of all groups to write, in this order: the root is last, as readers look there."""
    root, described = levels[0].path, rescaled(levels, size, VOXEL_SIZE_GIVEN)
    groups = {level.path: (read_group(level.path) or {}) | _attributes(level, size) for level in levels[1:]}
    groups |= {group: attributes for group, attributes in described.items() if group != root}
    for group in (root / FOLDER, root / LABELS):  # these may have copies of the metadata in them
        if is_consolidated(group):
            groups[group] = read_group(group) or {}
    attributes = described.get(root, read_group(root) or {})
    return groups | {root: attributes | _attributes(levels[0], size)}


def _attributes(level: Level, size: Sequence[float]) -> dict[str, object]:
    """Return the attributes that say how large the voxels of a level are."""
    scaled = [of * factor for of, factor in zip(size, level.factors, strict=True)]
    return dict(zip(VOXEL_SIZE, (scaled, VOXEL_SIZE_GIVEN), strict=True))


def _write_record(level: Level, size: Sequence[float]) -> None:
    """Write a size to the inventory of a level, and the checksum of the inventory to its record."""
    folder = level.path / RECORD
    inventory, record = _annotated(level, size)
    for torn in files_in(folder):  # left by a call that was killed here
        if TORN.fullmatch(torn.name) and torn.name.startswith((f".{METADATA}.", f".{INVENTORY}.")):
            storage_of(folder).remove(torn)
    if inventory is not None:
        write_json(folder / METADATA, record)
        storage_of(folder).write(folder / INVENTORY, [inventory])


def _annotated(level: Level, size: Sequence[float]) -> tuple[bytes | None, Mapping[str, Any]]:
    """Return the inventory of a level, and the document of its record, with a size.

    The inventory is None if an earlier version wrote the level, which recorded none.

    Raises:
        DamagedError: They are not what was written. A record that was already changed for this inventory is accepted.
    """
    inventory, path = level.path / RECORD / INVENTORY, level.path / RECORD / METADATA
    document = read_document(path, "says what the store is")
    record = document["attributes"]
    if not inventory.exists() and not record.keys() & {"inventory", "checksum"}:
        return None, document
    found = as_object(read_document(inventory, "lists the metadata of the store"))
    attributes = {**as_object(found.get("attributes")), **_attributes(level, size)}
    content = json.dumps({**found, "attributes": attributes}, indent=1).encode()
    known = [list(checksum_of(of)) for of in (inventory.read_bytes(), content)]
    if record.get("checksum") != checksum_of_record(record) or not any(
        is_same(record.get("inventory"), of) for of in known
    ):
        raise DamagedError(
            f"{path} or {inventory} is not what was written, so nothing was changed; `liver-dask verify` says more."
        )
    changed = record | {"inventory": known[1]}
    return content, document | {"attributes": changed | {"checksum": checksum_of_record(changed)}}
