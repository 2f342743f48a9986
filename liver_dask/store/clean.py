"""Remove what interrupted exports left beside a store."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..core.disk import files_below, files_in, is_link, is_there, walk
from ..core.errors import StoreExistsError
from ..core.places import Place, path_below
from .additions import additions_beside
from .durable import TORN
from .plan import check_place
from .record import has_record, layout_of, read_record, what_is_at
from .record_checks import record_problem
from .storage.access import storage_of
from .writer import NEW, Store

WITHOUT_RECORD = re.compile(
    rf"lock(/\d+)?|{NEW}/([^/]+/)*((zarr|manifest|inventory)\.json|c(/\d+)*|{TORN.pattern})|"
    rf"progress/([0-9a-f]{{16}}/)?(run|status\.json|{TORN.pattern}|sources/[0-9a-f]{{32}}\.(json|[0-9a-f]{{8}})|"
    rf"(slabs|shards)/[^/]+/(\d+(-\d+)+(\.(json|npy|shard))?|{TORN.pattern}))"
)
"""Paths of the files that there may be before an unfinished store has its record, or after it was removed."""


def clean(target: Place, *, unfinished: bool = False) -> str:
    """Remove what interrupted exports left beside a store, and return a sentence that says what there is.

    A complete store is not touched. Files that this package did not write are kept.

    Args:
        target: The place of the store, complete or not.
        unfinished: Whether to remove an unfinished store, too, with everything that is finished of it.

    Raises:
        StoreExistsError: Another process is writing the store, or something else is in its place. (FileExistsError)
        InvalidArgumentError: The folder cannot be written. (ValueError)
    """
    target = check_place(target)
    added = [_cleaned(of, unfinished=unfinished) for of in additions_beside(target)]
    partial = target.with_name(f"{target.name}.partial")
    return " ".join(added if added and not is_there(partial) else [*added, _cleaned(target, unfinished=unfinished)])


def _cleaned(target: Place, *, unfinished: bool) -> str:
    """Remove what is left beside one store, see `clean`."""
    partial = target.with_name(f"{target.name}.partial")
    if not is_there(partial):
        return f"Nothing is left beside {target}{'' if is_there(target) else ', and there is no store either'}."
    record = next(filter(None, map(read_record, (partial / "store", target))), None)
    if record is None and _holds_only_leftovers(partial):
        return _without_record(target, partial)
    if record is None or record_problem(record):
        raise StoreExistsError(f"{partial} is {what_is_at(partial)}; nothing was removed.")
    store = Store(target, layout_of(record), record)
    regions = store.discard(finished_too=unfinished)
    if is_there(partial / "store"):
        return (
            f"{partial} is an unfinished store with {regions} finished regions, which is kept; --unfinished removes it."
        )
    return f"{partial} is removed." if not is_there(partial) else f"{partial} has files of somebody else, and is kept."


def _holds_only_leftovers(partial: Place) -> bool:
    """Return whether a folder holds what the package makes before the record of an unfinished store, and no more."""
    own = {"lock", "progress", NEW, "aside"}
    is_local = isinstance(partial, Path)
    if is_local and not partial.is_dir():
        return False
    if not is_local and not has_record(partial / "store"):
        own.add("store")  # where its record is written last, and removed first
    names = (path_below(path, partial) for path in _entries(partial))
    return {path.name for path in files_in(partial)} <= own and all(
        WITHOUT_RECORD.fullmatch(name if is_local else re.sub("^store/", f"{NEW}/", name)) for name in names
    )


def _entries(folder: Place) -> Iterator[Place]:
    """Yield all files and links below a folder."""
    yield from files_below(folder)
    if isinstance(folder, Path):
        for parent, folders, _ in walk(folder):
            yield from (path for path in (Path(parent, name) for name in folders) if is_link(path))


def _without_record(target: Place, partial: Place) -> str:
    """Remove what a run left that was killed before its store had a record."""
    storage = storage_of(target)
    with storage.claim(partial, target, NEW) as claim:
        if not _holds_only_leftovers(partial):  # another process has begun a store since
            raise StoreExistsError(f"{partial} has changed a moment ago; nothing was removed.")
        for folder in (NEW, "progress", *(() if isinstance(partial, Path) else ("store",))):
            storage.remove_tree(partial / folder)
        storage.tidy(partial, target)
        claim.remove()
    return f"{partial} is removed."
