"""Write variables that a complete store lacks: beside it, then into it."""

from typing import TYPE_CHECKING

import xarray as xr

from ..core.disk import is_listed
from ..core.errors import StoreExistsError
from ..core.places import Place
from .adoption import adopt, check_free, finish_adoption, finish_changes
from .changes import changing
from .identity import ADDED, identity_of_variable
from .plan import Export
from .record import open_record
from .record_checks import explain_difference

if TYPE_CHECKING:
    from distributed import Client

LONGEST_NAME = 100
"""Characters of the names of variables in the name of the store beside, in which they are written."""


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
    for name in missing:
        check_free(root, name)
    record = open_record(root)
    beside = root.with_name(f"{root.name}.{'-'.join(missing)[:LONGEST_NAME]}")
    export = Export.plan(ds[missing], beside, chunks=record["chunks"], shards=record["shards"])
    export.run(client, on_error, progress)
    try:
        with changing(root) as journal:
            finish_adoption(root, journal)
            if is_listed(beside):
                adopt(root, beside, journal)
    except StoreExistsError as error:
        error.add_note(f"What is added is complete in {beside}; the same call moves it into the store.")
        raise


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
