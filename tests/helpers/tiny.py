"""A store of some kilobytes, and functions to change its metadata."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import liver_dask as ld
from liver_dask.core.places import Place
from liver_dask.demo import make_archive

from .places import consolidate, files_of, put, read, remove

SHAPE = (4, 40, 50)
LAYOUT: dict[str, Any] = {"chunks": (2, 16, 16), "shards": (4, 32, 32)}


def make_tiny_store(folder: Any, source: str | Path | None = None, name: str = "a.zarr") -> Any:
    """Write a store of `raw` and `er` to a place in a folder, and return that.

    Its source is `source` if given, or else a new archive with the shape SHAPE in `folder`.
    """
    if source is None:
        source = folder / "archive"
        source.mkdir(parents=True)
        make_archive(source, SHAPE)
    ds = ld.open_human_liver_em(source, shape=SHAPE, labels=["er"])
    ld.to_zarr(ds, folder / name, progress=False, **LAYOUT)
    return folder / name


def edit(path: Place, change: Callable[[Any], Any]) -> None:
    """Change a JSON file. `change` either edits the document in place or returns a new one."""
    document = json.loads(read(path))
    changed = change(document)
    if isinstance(path, Path):
        remove(path)  # do not write in place: masks are hard links
    put(path, json.dumps(document if changed is None else changed))


def edit_record(store: Place, change: Callable[[Any], Any]) -> None:
    """Change the record of a store."""
    edit(store / "liver_dask" / "zarr.json", lambda document: change(document["attributes"]))


def forget_what_was_recorded(store: Place) -> None:
    """Convert a store to that of an earlier version, which did not record its small files."""
    if "liver_dask/inventory.json" in files_of(store):
        remove(store / "liver_dask" / "inventory.json")

    def drop(record: dict[str, Any]) -> None:
        record.pop("inventory", None)
        record.pop("checksum", None)

    edit_record(store, drop)
    with warnings.catch_warnings(action="ignore"):
        consolidate(store)


def nested(depth: int) -> list[Any]:
    """Return lists nested `depth` levels deep, around an empty list."""
    return [nested(depth - 1)] if depth else []
