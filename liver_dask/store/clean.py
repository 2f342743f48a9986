"""Remove what interrupted exports left beside a store."""

from ..core.disk import is_there
from ..core.errors import StoreExistsError
from ..core.places import Place
from .additions import additions_beside
from .plan import check_place
from .record import layout_of, read_record, what_is_at
from .record_checks import record_problem
from .writer import Store


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
    if record is None or record_problem(record):
        raise StoreExistsError(f"{partial} is {what_is_at(partial)}; nothing was removed.")
    store = Store(target, layout_of(record), record)
    regions = store.discard(finished_too=unfinished)
    if is_there(partial / "store"):
        return (
            f"{partial} is an unfinished store with {regions} finished regions, which is kept; --unfinished removes it."
        )
    return f"{partial} is removed." if not is_there(partial) else f"{partial} has files of somebody else, and is kept."
