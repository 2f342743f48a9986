"""Move the variables of one complete store into another, in which they are found all at once.

The arrays and their tables get their place first; then the record and the inventory name them, and the metadata of the
root, from which readers open a store, are last. A file of the store, the journal, says what is being moved, with all
that is needed to finish: a call that was killed is finished by the next one that changes the store, or taken back if
what it had not moved yet is gone.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..core.disk import files_below, is_listed
from ..core.documents import as_object, is_same, read_document
from ..core.errors import DamagedError, StoreExistsError
from ..core.geometry import DIMS
from ..core.places import Place, path_below
from .changes import changing, set_time
from .group_metadata import read_group
from .identity import ADDED
from .inventory import FILE as INVENTORY
from .inventory import METADATA, checksum_of, checksum_of_record
from .record import ADOPTED, MISSING_FILES, RECORD, adoption_in, is_changing, open_record, read_record
from .storage.access import storage_of, write_json
from .storage.interface import Journal
from .zarr_group import write_group

STAGE = "adopted.partial"
"""A folder in the group of the record, in which an array is made before it gets its place."""


def adopt(root: Place, other: Place, journal: Journal) -> None:
    """Move the variables of a store into another of the same shape, chunks and shards, and remove it.

    Args:
        root: The store that gets them.
        other: The complete store that has them, next to it, which was written for that.
        journal: The journal of the change, which is empty.

    Raises:
        StoreExistsError: Something else has the name of a variable; nothing was changed. (FileExistsError)
        DamagedError: The metadata of a store are not what was written; nothing was changed. (OSError)
    """
    variables = open_record(other)["variables"]
    for name in variables:
        check_free(root, name)
    added, document = _read(other)
    _check(other, document["attributes"], [_checksum_in(other)])
    entries = {part: dict(_of_variables(as_object(added.get(part)), list(variables))) for part in ("metadata", "files")}
    adoption = {"variables": variables, "missing": _missing_in(added), **entries}
    _merged(root, adoption)
    _write(journal, other, adoption, is_moved=False)
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
    """Finish moving variables into a store, if a call has begun to, or take it back. The journal is empty then."""
    adoption = adoption_in(journal.read())
    if adoption is None:
        return
    other, storage = root.with_name(adoption[ADOPTED]), storage_of(root)
    folders = [place for name in adoption["variables"] for place in (name, f"{RECORD}/{name}")]
    if not adoption["is_moved"]:
        if not (read_record(other) or {}).get("complete"):  # somebody has removed or renamed it
            for folder in folders:
                journal.check()
                storage.remove_tree(root / folder)
            set_time(root)
            journal.clear()
            return
        for folder in folders:
            journal.check()
            _put(root, other, folder)
        storage.remove_tree(root / RECORD / STAGE)
        _write(journal, other, adoption, is_moved=True)
    inventory, document, attributes = _merged(root, adoption)
    journal.check()
    write_json(root / RECORD / METADATA, document)
    storage.write(root / RECORD / INVENTORY, [inventory])
    journal.check()
    write_group(root, attributes, consolidate=True)
    set_time(root)
    _remove(other, adoption["variables"])  # from here on, nothing needs it
    journal.clear()


def _put(root: Place, other: Place, folder: str) -> None:
    """Give the files of a folder of another store their place."""
    storage, stage = storage_of(root), root / RECORD / STAGE
    files = sorted(path_below(path, other / folder) for path in files_below(other / folder))
    files.sort(key=lambda where: where != METADATA)  # they come first
    storage.remove_tree(stage)
    storage.put_folder(root / folder, stage, {where: other / folder / where for where in files})
    set_time(root)


def _remove(other: Place, variables: Iterable[str]) -> None:
    """Remove a store whose variables were moved; what somebody else has put into it stays."""
    storage = storage_of(other)
    for name in (*variables, *DIMS, RECORD):
        storage.remove_tree(other / name)
    if is_listed(other):
        storage.remove(other / METADATA)
        with suppress(OSError):  # if there is something else
            storage.remove_folder(other)


def _write(journal: Journal, other: Place, adoption: Mapping[str, Any], *, is_moved: bool) -> None:
    journal.write(json.dumps({**adoption, ADOPTED: other.name, "is_moved": is_moved}).encode())


def _merged(root: Place, adoption: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any], Mapping[str, Any]]:
    """Return the inventory, the document of the record, and the attributes of a store with more variables.

    Raises:
        DamagedError: They are not what was written. A record that was already changed for this inventory is accepted.
    """
    inventory, document = _read(root)
    missing = {*_missing_in(inventory), *adoption["missing"]}
    lacking = {MISSING_FILES: sorted(missing)} if missing else {}
    merged = {**inventory, "attributes": {**as_object(inventory.get("attributes")), **lacking}}
    for part in ("metadata", "files"):
        merged[part] = dict(sorted({**as_object(inventory.get(part)), **adoption[part]}.items()))
    content = json.dumps(merged, indent=1).encode()
    record = document["attributes"]
    _check(root, record, [_checksum_in(root), list(checksum_of(content))])
    added = {name: {**of, ADDED: True} for name, of in adoption["variables"].items()}
    changed = {**record, "variables": {**record["variables"], **added}, "inventory": list(checksum_of(content))}
    document = {**document, "attributes": {**changed, "checksum": checksum_of_record(changed)}}
    return content, document, {**(read_group(root) or {}), **lacking}


def _check(store: Place, record: Mapping[str, Any], inventories: Sequence[list[int]]) -> None:
    """Raise DamagedError if a record is not what was written, or for another inventory than these."""
    is_own = record.get("checksum") == checksum_of_record(record)
    if not is_own or not any(is_same(record.get("inventory"), of) for of in inventories):
        raise DamagedError(
            f"{store} is not as it was written, so no variable was added; `liver-dask verify {store}` says more."
        )


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
