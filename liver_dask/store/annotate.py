"""Change what a finished store says about the size of its voxels, everywhere at once.

The size is in the attributes of the store and of each pyramid level, in their inventories, whose checksums are in their
records, and in the OME-Zarr metadata of the image and of the labels. A file of the store names the new size while these
are being replaced, so that a call that was killed is finished by the next one.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..archive.description import VOXEL_SIZE_GIVEN
from ..core.disk import files_in
from ..core.documents import as_object, is_same, read_document
from ..core.errors import DamagedError, StoreExistsError
from ..core.geometry import check_voxel_size
from .durable import TORN, DurableFile, write_json
from .group_metadata import read_group
from .inventory import FILE as INVENTORY
from .inventory import METADATA, checksum_of, checksum_of_record
from .levels import FOLDER, Level, levels_of
from .locks import is_same_file, open_locked
from .ome_zarr import has_description, write_ome_metadata
from .record import BEGUN, RECORD, open_record
from .zarr_group import write_group


def annotate(store: str | os.PathLike[str], *, voxel_size_nm: Sequence[float]) -> None:
    """Say how large the voxels of a complete store are, or correct it.

    The attributes of the store, the scales that viewers use (of all levels and labels), and what `verify` expects are
    changed together. No voxel is read or written, and everything else stays as it is. Levels that exist keep the shape
    of their voxels; those that `add_pyramid` adds later follow from the new size. After an interruption, call it again:
    it finishes what was begun.

    Args:
        store: A complete store of `to_zarr`.
        voxel_size_nm: Size of a voxel (z, y, x) in nm.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: The size is not three positive numbers. (ValueError)
        StoreExistsError: Another process is doing the same, or the pyramid of the store is not finished.
            (FileExistsError)
        DamagedError: The metadata of the store are not what was written; nothing was changed. (OSError)
    """
    size = check_voxel_size(voxel_size_nm)
    root = Path(store).expanduser().absolute()
    open_record(root)
    with _journal(root) as journal:
        begun = _read_size(journal)
        if begun:
            _apply(root, begun)
        if begun != size:
            for level in _check_levels(root):
                _annotated(level, size)
            journal.seek(0)
            journal.truncate()
            journal.write(json.dumps({"voxel_size_nm": size}).encode())
            journal.flush()
            os.fsync(journal.fileno())
            _apply(root, size)


@contextmanager
def _journal(root: Path) -> Iterator[BinaryIO]:
    """Open and lock the file that names the size which is being written; it is removed if all of it was written."""
    path = root / RECORD / BEGUN
    while True:
        descriptor = open_locked(path, busy=f"Another process is annotating {root}; wait for it to end.")
        with os.fdopen(descriptor, "r+b") as file:
            if is_same_file(descriptor, path):  # another process may just have finished, and removed it
                try:
                    yield file
                except BaseException:
                    if not os.fstat(descriptor).st_size:
                        path.unlink()
                    raise
                path.unlink()
                return


def _read_size(journal: BinaryIO) -> tuple[float, float, float] | None:
    """Return the size that a call has begun to write; None if it was killed before anything was changed."""
    try:
        return check_voxel_size(json.loads(journal.read())["voxel_size_nm"])
    except (ValueError, LookupError, TypeError):  # InvalidArgumentError is a ValueError
        return None


def _check_levels(root: Path) -> list[Level]:
    """Return the levels of a store, after checking that none is being made."""
    levels = levels_of(root)
    partial = [path for path in (root / FOLDER).glob("s*.partial") if path.is_dir()]
    if partial:
        raise StoreExistsError(
            f"{partial[0]} is an unfinished level; finish it first with `liver-dask pyramid {root}`."
        )
    return levels


def _apply(root: Path, size: Sequence[float]) -> None:
    """Write a size to everything that says it, the root last: readers take the size from there."""
    levels = levels_of(root)
    for level in levels:
        _write_record(level, size)
    for level in reversed(levels):
        if level.path == root and len(levels) > 1:  # its copies of the levels' metadata
            write_group(root / FOLDER, read_group(root / FOLDER) or {})
        write_group(level.path, (read_group(level.path) or {}) | _attributes(level, size))
    if has_description(root):
        write_ome_metadata(levels, size)


def _attributes(level: Level, size: Sequence[float]) -> dict[str, object]:
    """Return the attributes that say how large the voxels of a level are."""
    scaled = [of * factor for of, factor in zip(size, level.factors, strict=True)]
    return {"voxel_size_nm": scaled, "voxel_size_source": VOXEL_SIZE_GIVEN}


def _write_record(level: Level, size: Sequence[float]) -> None:
    """Write a size to the inventory of a level, and the checksum of the inventory to its record."""
    folder = level.path / RECORD
    inventory, record = _annotated(level, size)
    for torn in files_in(folder):  # left by a call that was killed here
        if TORN.fullmatch(torn.name) and torn.name.startswith((f".{METADATA}.", f".{INVENTORY}.")):
            torn.unlink()
    if inventory is not None:
        write_json(folder / METADATA, record)
        with DurableFile(folder / INVENTORY) as file:
            file.write(inventory)


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
