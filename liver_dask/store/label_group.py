"""The group `labels` of a store, which presents its masks to viewers next to a user's own labels.

`labels/NAME/0`, `1`, ... contain copies of the metadata of a mask's arrays, and hard links to their shards. In OME-Zarr
this group is also the place for a user's own segmentations. Therefore this module replaces or removes only labels that
are byte-for-byte copies of this store's arrays. A label gets its name only when it is complete.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..core.disk import files_below, is_empty_folder, is_listed
from ..core.errors import StoreExistsError
from ..core.places import Place, path_below
from .durable import TORN
from .group_metadata import read_group
from .record import RECORD
from .storage.access import storage_of
from .zarr_group import new_group, write_group

LABELS = "labels"
METADATA = "zarr.json"

Arrays = Mapping[str, Sequence[Place]]
"""For each mask, the folders of the arrays of its levels; the finest level is the first."""


def check_labels(store: Place, arrays: Arrays) -> None:
    """Check that nothing else has the names of the labels.

    Raises:
        StoreExistsError: `labels` is not a group, or a label with one of these names is not a copy of these arrays.
    """
    group = store / LABELS
    if _is_taken(group) and read_group(group) is None and not _is_begun(group, arrays):
        raise StoreExistsError(f"{group} is not a Zarr v3 group, so labels cannot be added to it; move it away.")
    for name, levels in arrays.items():
        label = group / name
        if _is_taken(label) and not _is_of(label, levels):
            raise StoreExistsError(
                f"{label} is not what liver_dask makes of {name}: somebody made or changed it. It is left as it is; "
                "give it another name, or remove it, and begin again."
            )


def other_labels(store: Place, arrays: Arrays) -> list[Place]:
    """Return the labels with these names that are not byte-for-byte copies of these arrays.

    Such labels are changed, damaged, or a user's own.
    """
    labels = [(store / LABELS / name, levels) for name, levels in arrays.items()]
    return [label for label, levels in labels if _is_taken(label) and not _is_whole(label, levels)]


def labels_are_there(store: Place, names: Sequence[str]) -> bool:
    """Return whether the group lists and contains labels with these names, of any origin."""
    listed = _listed(read_group(store / LABELS))
    return listed is not None and all(name in listed and (store / LABELS / name).is_dir() for name in names)


def add_labels(store: Place, arrays: Arrays, attributes: Mapping[str, Mapping[str, Any]], version: str) -> None:
    """Add labels to the group and their names to its list. All other content of the group stays unchanged.

    Args:
        store: The store.
        arrays: The arrays of the labels, already checked with `check_labels`.
        attributes: The OME-Zarr attributes of each label.
        version: Version of OME-Zarr.
    """
    group, stage, storage = store / LABELS, store / RECORD / f"{LABELS}.partial", storage_of(store)
    _remove_stage(stage)  # left by a killed process; only this function writes into that folder
    _remove_older_partial(store, arrays)
    storage.make_folders([group])
    for name, levels in arrays.items():
        if not _is_whole(group / name, levels):
            storage.put_folder(group / name, stage, _files_of_label(group / name, levels, attributes[name]))
    _remove_stage(stage)
    known = read_group(group) or {}
    listed = _listed(known) or []
    listed = [*listed, *(name for name in arrays if name not in listed)]
    write_group(group, known | {"ome": {"version": version, **_ome_of(known), LABELS: listed}})


def _listed(attributes: Mapping[str, Any] | None) -> list[Any] | None:
    """Return the list of labels in the attributes of the group; None if there is none."""
    listed = _ome_of(attributes or {}).get(LABELS)
    return listed if isinstance(listed, list) else None


def _ome_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OME-Zarr attributes of a group; empty if there are none."""
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else {}


def _is_taken(path: Place) -> bool:
    """Return whether the path exists and is not an empty folder; files and broken links count as existing."""
    return is_listed(path) and not is_empty_folder(path)


def _is_begun(group: Place, arrays: Arrays) -> bool:
    """Return whether the group contains only labels of these arrays.

    The group is in this state if a process was killed before it wrote the metadata of the group.
    """
    if not group.is_dir() or group.is_symlink():
        return False
    labels = [entry for entry in group.iterdir() if not _is_torn(entry)]
    return all(entry.name in arrays and _is_of(entry, arrays[entry.name]) for entry in labels)


def _is_torn(entry: Place) -> bool:
    """Return whether a file is what a killed process left of the metadata of a group."""
    return entry.name.startswith(f".{METADATA}.") and bool(TORN.fullmatch(entry.name))


def _is_of(label: Place, levels: Sequence[Place]) -> bool:
    """Return whether a label contains copies of these arrays, at least one, and nothing else."""
    if not label.is_dir() or label.is_symlink() or read_group(label) is None:
        return False
    copies = [entry for entry in label.iterdir() if entry.name != METADATA and not _is_torn(entry)]
    arrays = {str(number): array for number, array in enumerate(levels)}
    return bool(copies) and all(copy.name in arrays and _is_copy(copy, arrays[copy.name]) for copy in copies)


def _is_whole(label: Place, levels: Sequence[Place]) -> bool:
    return _is_of(label, levels) and all((label / str(number)).is_dir() for number in range(len(levels)))


def _is_copy(copy: Place, array: Place) -> bool:
    """Return whether two folders contain the same files: hard links to the same files, or files with equal bytes."""
    files = _files_of(copy)
    if not copy.is_dir() or copy.is_symlink() or files != _files_of(array):
        return False
    return all(storage_of(array).is_copy(copy / name, array / name) for name in files)


def _files_of(folder: Place) -> set[str]:
    return {path_below(path, folder) for path in files_below(folder)}


def _files_of_label(label: Place, levels: Sequence[Place], attributes: Mapping[str, Any]) -> dict[str, bytes | Place]:
    """Return the files of a label: its metadata, and for each other one the file that it is a copy of."""
    known = read_group(label) or {}  # attributes of an older version of the label, with a user's additions
    ome = {**attributes, **_ome_of(known), "multiscales": attributes["multiscales"]}
    files: dict[str, bytes | Place] = {METADATA: new_group(known | {"ome": ome})}
    for number, array in enumerate(levels):
        files |= {f"{number}/{path_below(path, array)}": path for path in files_below(array)}
    return files


def _remove_stage(stage: Place) -> None:
    with suppress(OSError):
        storage_of(stage).remove_tree(stage)


def _remove_older_partial(store: Place, arrays: Arrays) -> None:
    """Remove the group `labels.partial` that a killed process of an earlier version left.

    It is removed only if it contains nothing but copies of these arrays.
    """
    partial = store / f"{LABELS}.partial"
    labels = [entry for entry in partial.iterdir() if entry.name != METADATA] if partial.is_dir() else []
    if labels and all(label.name in arrays and _is_of(label, arrays[label.name]) for label in labels):
        storage_of(partial).remove_tree(partial)
