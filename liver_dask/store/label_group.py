"""The group `labels` of a store: the arrays of its masks once more, for viewers, beside whatever a user keeps there.

`labels/NAME/0`, `1`, ... have the metadata of a mask's arrays again, and hard links to their shards. By OME-Zarr it is
also the place for a user's own segmentations. So nothing in it is replaced or removed but what holds, byte for byte,
the very arrays of this store; and a label gets its name when it is whole.
"""

import filecmp
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr

from ..core.disk import walk
from ..core.errors import StoreExistsError
from .durable import TORN, sync_folder
from .group_metadata import read_group
from .record import RECORD
from .zarr_group import write_group

LABELS = "labels"
METADATA = "zarr.json"

Arrays = Mapping[str, Sequence[Path]]
"""For each mask the arrays of its levels, the finest first."""


def check_labels(store: Path, arrays: Arrays) -> None:
    """Refuse to add labels where something else has their names.

    Raises:
        StoreExistsError: `labels` is no group, or a label of one of these names is not of these arrays.
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


def other_labels(store: Path, arrays: Arrays) -> list[Path]:
    """The labels of these names that are not, byte for byte, of these arrays: changed, damaged, or a user's own."""
    labels = [(store / LABELS / name, levels) for name, levels in arrays.items()]
    return [label for label, levels in labels if _is_taken(label) and not _is_whole(label, levels)]


def labels_are_there(store: Path, names: Sequence[str]) -> bool:
    """Whether the group lists and has labels of these names, whoever made them."""
    listed = _listed(read_group(store / LABELS))
    return listed is not None and all(name in listed and (store / LABELS / name).is_dir() for name in names)


def add_labels(store: Path, arrays: Arrays, attributes: Mapping[str, Mapping[str, Any]], version: str) -> None:
    """Add labels to the group, and their names to its list; what else is in the group stays as it is.

    Args:
        store: The store.
        arrays: The arrays that they are made of; `check_labels` has been asked.
        attributes: Of OME-Zarr, for each label.
        version: Of OME-Zarr.
    """
    group, new = store / LABELS, store / RECORD / f"{LABELS}.partial"
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed: nobody else writes into that folder
    _remove_older_partial(store, arrays)
    group.mkdir(exist_ok=True)
    for name, levels in arrays.items():
        if not _is_whole(group / name, levels):
            _write_label(new, group / name, levels, attributes[name])
    shutil.rmtree(new, ignore_errors=True)
    known = read_group(group) or {}
    listed = _listed(known) or []
    listed = [*listed, *(name for name in arrays if name not in listed)]
    write_group(group, known | {"ome": {"version": version, **_ome_of(known), LABELS: listed}})


def _listed(attributes: Mapping[str, Any] | None) -> list[Any] | None:
    """The labels that the attributes of the group list."""
    listed = _ome_of(attributes or {}).get(LABELS)
    return listed if isinstance(listed, list) else None


def _ome_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a group says by OME-Zarr."""
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else {}


def _is_taken(path: Path) -> bool:
    """Whether there is something, if only a file or a link to nowhere."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _is_begun(group: Path, arrays: Arrays) -> bool:
    """Whether the group holds labels of these arrays and nothing else: a run ended before it gave it metadata."""
    if not group.is_dir() or group.is_symlink():
        return False
    torn = f".{METADATA}."
    labels = [entry for entry in group.iterdir() if not (entry.name.startswith(torn) and TORN.fullmatch(entry.name))]
    return all(entry.name in arrays and _is_of(entry, arrays[entry.name]) for entry in labels)


def _is_of(label: Path, levels: Sequence[Path]) -> bool:
    """Whether a label is of these arrays, and of nothing else."""
    if not label.is_dir() or label.is_symlink() or read_group(label) is None:
        return False
    copies = [entry for entry in label.iterdir() if entry.name != METADATA]
    arrays = {str(number): array for number, array in enumerate(levels)}
    return bool(copies) and all(copy.name in arrays and _is_copy(copy, arrays[copy.name]) for copy in copies)


def _is_whole(label: Path, levels: Sequence[Path]) -> bool:
    return _is_of(label, levels) and all((label / str(number)).is_dir() for number in range(len(levels)))


def _is_copy(copy: Path, array: Path) -> bool:
    """Whether two folders hold the same files: the same by hard links, or at least the same bytes."""
    files = _files_of(copy)
    if not copy.is_dir() or copy.is_symlink() or files != _files_of(array):
        return False
    return all(
        os.path.samefile(copy / name, array / name) or filecmp.cmp(copy / name, array / name, shallow=False)
        for name in files
    )


def _files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _write_label(stage: Path, label: Path, levels: Sequence[Path], attributes: Mapping[str, Any]) -> None:
    """Make a label in a folder of this package's own, and put it in its place, or in that of an older one of ours."""
    new, old = stage / label.name, stage / f"{label.name}.old"
    known = read_group(label) or {}  # of an older one, with what a user has added
    ome = {**attributes, **_ome_of(known), "multiscales": attributes["multiscales"]}
    zarr.open_group(new, mode="w-", attributes=known | {"ome": ome})
    for number, array in enumerate(levels):
        _link_array(array, new / str(number))
    _sync_label(new)
    if label.is_dir():
        label.replace(old)
    new.replace(label)
    sync_folder(label.parent)


def _link_array(array: Path, copy: Path) -> None:
    """The same array elsewhere, without its bytes a second time where the disk has hard links."""
    for folder, _, files in walk(array):
        there = copy / Path(folder).relative_to(array)
        there.mkdir()
        for name in files:
            try:
                os.link(Path(folder, name), there / name)
            except OSError:
                shutil.copyfile(Path(folder, name), there / name)


def _sync_label(label: Path) -> None:
    """Make a label durable: its names, and the bytes of what is no link."""
    for folder, _, files in walk(label):
        for name in files:
            with Path(folder, name).open("rb") as file:
                if os.fstat(file.fileno()).st_nlink == 1:
                    os.fsync(file.fileno())
        sync_folder(Path(folder))


def _remove_older_partial(store: Path, arrays: Arrays) -> None:
    """Remove what an earlier version left when it was killed: a group `labels.partial` of copies, and nothing else."""
    partial = store / f"{LABELS}.partial"
    labels = [entry for entry in partial.iterdir() if entry.name != METADATA] if partial.is_dir() else []
    if labels and all(label.name in arrays and _is_of(label, arrays[label.name]) for label in labels):
        shutil.rmtree(partial)
