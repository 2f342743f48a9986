"""Write variables that a complete store lacks: beside it, then into it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from ..core.disk import files_in, is_link, is_listed, is_there
from ..core.errors import StoreExistsError
from ..core.kinds import Kind, kind_of
from ..core.places import Place
from .adoption import adopt, check_free, finish_adoption, finish_changes
from .changes import changing
from .group_metadata import read_group
from .identity import ADDED, identity_of_variable
from .label_group import LABELS
from .levels import FACTORS, Level, levels_of
from .plan import Export
from .record import ADDITION, open_record, read_record
from .record_checks import explain_difference

if TYPE_CHECKING:
    from distributed import Client

ADDING = ".adding-"
"""After the name of a store, the beginning of the names of stores beside it that are to become part of it."""

LONGEST_NAME = 100
"""Bytes of the names of variables in the name of the store beside, in which they are written; else a digest of them."""


def add_missing(
    root: Place, ds: xr.Dataset, client: "Client | None", on_error: str = "raise", progress: bool = True
) -> None:
    """Write those variables of a Dataset that a store does not have, beside it, then move them into it.

    Raises:
        StoreExistsError: It has another variable, or something else, of the same name.
    """
    finish_changes(root)
    missing = [name for name in map(str, ds.data_vars) if not _has(root, name, ds)]
    if not missing:
        return
    check_names(root, {name: kind_of(ds[name]) for name in missing})
    record = open_record(root)
    names = "-".join(missing)
    if len(names.encode()) > LONGEST_NAME:
        names = hashlib.sha256(names.encode()).hexdigest()[:16]
    beside = root.with_name(f"{root.name}{ADDING}{names}")
    for place in (beside, beside.with_name(f"{beside.name}.partial") / "store"):
        is_ours = _is_addition(place) and not (isinstance(place, Path) and is_link(place))
        if is_listed(place) and not is_ours:
            raise StoreExistsError(f"{place} is in the way, and was not made to be added to {root}; rename it.")
    export = Export.plan(ds[missing], beside, chunks=record["chunks"], shards=record["shards"])
    export.store.content[ADDITION] = True
    export.run(client, on_error, progress)
    try:
        with changing(root) as journal:
            finish_adoption(root, journal)
            if is_listed(beside):
                adopt(root, beside, journal)
    except StoreExistsError as error:
        error.add_note(f"What is added is complete in {beside}; the same call moves it into the store.")
        raise


def additions_beside(target: Place) -> list[Place]:
    """Return the places of unfinished stores of variables that were to be added to a store."""
    if not is_there(target) or not is_there(target.parent):
        return []
    try:
        found = files_in(target.parent, ".partial")
    except PermissionError:  # whoever may not list what is beside a store has added nothing to it
        return []
    added = [path for path in found if path.name.startswith(f"{target.name}{ADDING}") and _is_addition(path / "store")]
    return [path.with_name(path.name.removesuffix(".partial")) for path in added]


def _is_addition(place: Place) -> bool:
    """Return whether a store, complete or not, is one that was made to become part of another."""
    return bool((read_record(place) or {}).get(ADDITION))


def check_names(root: Place, kinds: Mapping[str, Kind]) -> None:
    """Check that the names of new variables are free, also in the levels and labels that they will get.

    Raises:
        StoreExistsError: Something else has one of the names.
    """
    for name, kind in kinds.items():
        for level in levels_of(root) if FACTORS not in (read_group(root) or {}) else [Level(root, (1, 1, 1))]:
            check_free(level.path, name)
        label = root / LABELS / name
        if kind != "image" and is_listed(label):
            raise StoreExistsError(f"{label} is there already; choose another name for {name}, or remove it.")


def _has(root: Place, name: str, ds: xr.Dataset) -> bool:
    """Return whether a store has exactly this variable."""
    record = open_record(root)
    found = record["variables"].get(name)
    if found is None:
        return False
    wanted = Export.plan(ds[[name]], root, chunks=record["chunks"], shards=record["shards"]).store.content
    if identity_of_variable(found) == identity_of_variable(wanted["variables"][name]):
        return True
    there = record | {"variables": {name: {key: of for key, of in found.items() if key != ADDED}}}
    raise StoreExistsError(
        f"{root} has another {name}; choose another name for what is added.{explain_difference(there, wanted)}"
    )
