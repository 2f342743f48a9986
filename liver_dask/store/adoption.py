"""Move the variables of one complete store into another, in which they are found all at once.

The arrays and their tables get their place first; then the record and the inventory name them, and the metadata of the
root, from which readers open a store, are last. A file of the store says what is being moved, so that a call which was
killed is finished by the next one that changes the store.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.disk import files_below, is_listed
from ..core.documents import as_object, is_same, read_document
from ..core.errors import DamagedError, StoreExistsError
from ..core.places import Place, path_below
from .changes import changing, set_time
from .group_metadata import read_group
from .identity import ADDED
from .inventory import FILE as INVENTORY
from .inventory import METADATA, checksum_of, checksum_of_record
from .record import ADOPTED, BEGUN, MISSING_FILES, RECORD, adopted_of, is_changing, open_record
from .storage.access import storage_of, write_json
from .storage.interface import Journal
from .zarr_group import write_group

STAGE = "adopted.partial"
"""A folder in the group of the record, in which an array is made before it gets its place."""


def adopt(root: Place, other: Place, journal: Journal) -> None:
    """Move the variables of a store into another of the same shape, chunks and shards, and remove it.

    Args:
        root: The store that gets them.
        other: The complete store that has them, next to it.
        journal: The journal of the change, which is empty.

    Raises:
        StoreExistsError: Something else has the name of a variable; nothing was changed. (FileExistsError)
        DamagedError: The metadata of a store are not what was written; nothing was changed. (OSError)
    """
    for name in open_record(other)["variables"]:
        check_free(root, name)
    _merged(root, other)
    journal.write(json.dumps({ADOPTED: other.name}).encode())
    finish_adoption(root, journal)


def check_free(root: Place, name: str) -> None:
    """Raise StoreExistsError if there is something of a name in a store."""
    for place in (root / name, root / RECORD / name):
        if is_listed(place):
            raise StoreExistsError(
                f"{place} is there already, and not as a variable that liver_dask wrote; choose another name for "
                f"{name}."
            )


def finish_changes(root: Place) -> None:
    """Finish moving variables into a store, if a call has begun to and was interrupted.

    Raises:
        StoreExistsError: Another process is changing the store. (FileExistsError)
    """
    if is_changing(root):
        with changing(root) as journal:
            finish_adoption(root, journal)


def finish_adoption(root: Place, journal: Journal) -> None:
    """Finish moving variables into a store, if a call has begun to. The journal is empty then."""
    name = adopted_of(journal.read())
    if name is None:
        return
    other = root.with_name(name)
    if not name.startswith(f"{root.name}."):
        raise DamagedError(f"{root / RECORD / BEGUN} says that {name} is being moved into {root}, which cannot be.")
    variables = open_record(other)["variables"]
    storage, stage = storage_of(root), root / RECORD / STAGE
    for folder in [place for name in variables for place in (name, f"{RECORD}/{name}")]:
        journal.check()
        files = sorted(path_below(path, other / folder) for path in files_below(other / folder))
        files.sort(key=lambda where: where != METADATA)  # they come first
        storage.remove_tree(stage)
        storage.put_folder(root / folder, stage, {where: other / folder / where for where in files})
        set_time(root)
    storage.remove_tree(stage)
    inventory, document, attributes = _merged(root, other)
    journal.check()
    write_json(root / RECORD / METADATA, document)
    storage.write(root / RECORD / INVENTORY, [inventory])
    journal.check()
    write_group(root, attributes, consolidate=True)
    set_time(root)
    journal.clear()
    storage.remove_tree(other)  # from here on, nothing needs it


def _merged(root: Place, other: Place) -> tuple[bytes, Mapping[str, Any], Mapping[str, Any]]:
    """Return the inventory, the document of the record, and the attributes of a store with the variables of another.

    Raises:
        DamagedError: They are not what was written. A record that was already changed for this inventory is accepted.
    """
    new = open_record(other)["variables"]
    inventory, document = _read(root)
    added, added_document = _read(other)
    missing = {*_missing_in(inventory), *_missing_in(added)}
    attributes = {**as_object(inventory.get("attributes")), **({MISSING_FILES: sorted(missing)} if missing else {})}
    merged = {**inventory, "attributes": attributes}
    for part in ("metadata", "files"):
        found = {**as_object(inventory.get(part)), **dict(_of_variables(as_object(added.get(part)), list(new)))}
        merged[part] = dict(sorted(found.items()))
    content = json.dumps(merged, indent=1).encode()
    record = document["attributes"]
    for of, at, known in (
        (record, root, (_checksum_in(root), list(checksum_of(content)))),
        (added_document["attributes"], other, (_checksum_in(other),)),
    ):
        if of.get("checksum") != checksum_of_record(of) or not any(is_same(of.get("inventory"), one) for one in known):
            raise DamagedError(
                f"{at} is not as it was written, so no variable was added; `liver-dask verify {at}` says more."
            )
    variables = record["variables"] | {name: of | {ADDED: True} for name, of in new.items()}
    changed = record | {"variables": variables, "inventory": list(checksum_of(content))}
    document = {**document, "attributes": changed | {"checksum": checksum_of_record(changed)}}
    of_root = read_group(root) or {}
    return content, document, of_root | {key: attributes[key] for key in (MISSING_FILES,) if key in attributes}


def _read(store: Place) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the inventory of a store, and the document of its record."""
    inventory = as_object(read_document(store / RECORD / INVENTORY, "lists the metadata of the store"))
    return inventory, read_document(store / RECORD / METADATA, "says what the store is")


def _checksum_in(store: Place) -> list[int]:
    return list(checksum_of((store / RECORD / INVENTORY).read_bytes()))


def _of_variables(part: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of an inventory that are about some variables, and not about coordinates."""
    for path, entry in part.items():
        first, _, rest = path.partition("/")
        if first in names or (first == RECORD and rest.partition("/")[0] in names):
            yield path, entry


def _missing_in(inventory: Mapping[str, Any]) -> list[str]:
    found = as_object(inventory.get("attributes")).get(MISSING_FILES, [])
    return [of for of in found if isinstance(of, str)] if isinstance(found, list) else []
