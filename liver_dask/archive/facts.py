"""Facts about the files of an archive that an examination found, kept in a file, and what they are used for.

They are used for estimates and for what is told before a download. No voxel follows from them: a file that was missing
is asked for all the same.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..core.addresses import is_address
from ..core.disk import naming
from ..core.documents import as_list, as_object, is_same, read_document, short
from ..core.errors import DamagedError, InvalidArgumentError, StoreExistsError

FORMAT = 1
"""Number of the format of the document; a change that older versions would read wrongly gets a new one."""

LARGEST_FILE = 1 << 50
"""Bytes; more is no size of a file."""

KEY = "liver_dask_facts"
"""The key of the format's number, by which a document of facts is recognized."""


@dataclass(frozen=True)
class KnownFiles:
    """The known sizes of the files of one variable. A pickle has none of them, because workers need none.

    Attributes:
        sizes: Bytes of the file of each slice; None if it is not known.
        missing: Slices whose files were missing.
        date: When that was so; empty if nothing is known.
    """

    sizes: tuple[int | None, ...] = ()
    missing: frozenset[int] = field(default_factory=frozenset)
    date: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return KnownFiles, ()

    def mean_bytes(self, slices: Sequence[int]) -> float | None:
        """Return the mean size of the files of some slices, or of all if none is named; None if it is not known.

        A missing file counts as one without bytes.
        """
        asked = [z for z in slices or range(len(self.sizes)) if 0 <= z < len(self.sizes)]
        known = [self.sizes[z] or 0 for z in asked if self.sizes[z] is not None or z in self.missing]
        return float(np.mean(known)) if known else None


def read_facts(
    path: str | os.PathLike[str], archive: str, source: str, shape: Sequence[int], files: Mapping[str, tuple[str, int]]
) -> dict[str, KnownFiles]:
    """Return the known files of each variable.

    Args:
        path: The file that an examination has saved.
        archive: Name of the archive that is opened.
        source: Its address, without credentials.
        shape: Its voxels (z, y, x).
        files: For each variable, the path of its files and the number of the first.

    Raises:
        InvalidArgumentError: The file cannot be read, or has facts about another archive, address, shape or files.
            (ValueError)
    """
    if is_address(os.fspath(path)):
        raise InvalidArgumentError(f"{path} is an address; give a file on this machine that has facts.")
    try:
        document = as_object(read_document(Path(path), "has facts about an archive"))
    except DamagedError as error:
        raise InvalidArgumentError(str(error)) from error
    if not is_same(document.get(KEY), FORMAT):
        raise InvalidArgumentError(
            f"{path} has no facts that this version reads; liver-dask doctor --save writes them."
        )
    for name, wanted in {"archive": archive, "source": source, "shape": list(shape)}.items():
        if not is_same(document.get(name), wanted):
            found = short(document.get(name))
            raise InvalidArgumentError(
                f"{path} has facts about another archive: its {name} is {found}, and that of this one is "
                f"{short(wanted)}; examine this one (liver-dask doctor --save)."
            )
    date, known = document.get("date"), as_object(document.get("variables"))
    if not isinstance(date, str) or not _is_date(date):
        raise InvalidArgumentError(
            f"{path} has facts of a date that makes no sense, {short(date)}; examine the archive again."
        )
    return {
        name: _known_files(path, name, as_object(known[name]), of, shape[0], date)
        for name, of in files.items()
        if name in known
    }


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _known_files(
    path: str | os.PathLike[str], name: str, table: Mapping[str, Any], files: tuple[str, int], depth: int, date: str
) -> KnownFiles:
    if (table.get("files"), table.get("first")) != files:
        raise InvalidArgumentError(
            f"{path} has facts about other files of {name}, {short(table.get('files'))}; examine the archive again."
        )
    sizes = as_list(table.get("sizes"))
    is_right = len(sizes) == depth and all(of is None or (type(of) is int and 0 <= of <= LARGEST_FILE) for of in sizes)
    missing: set[int] = set()
    for pair in as_list(table.get("missing")):
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(z) is int for z in pair)
        if not is_pair or not 0 <= pair[0] <= pair[1] < depth:
            is_right = False
            break
        missing |= {*range(pair[0], pair[1] + 1)}
    if not is_right or any(sizes[z] is not None for z in missing):
        raise InvalidArgumentError(f"{path} has facts about {name} that make no sense; examine the archive again.")
    return KnownFiles(tuple(sizes), frozenset(missing), date)


def check_facts_path(path: Path) -> None:
    """Check that facts can be saved in a file.

    Raises:
        StoreExistsError: The file is something else than facts that were saved earlier.
        InvalidArgumentError: There is no such folder, or no file can be made in it. (ValueError)
    """
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"There is no folder {path.parent} to save facts in.")
    if path.exists() or path.is_symlink():
        found: Any = None
        with suppress(DamagedError):
            found = read_document(path, "may have facts about an archive")
        if KEY not in as_object(found):
            raise StoreExistsError(f"{path} is something other than facts about an archive; choose another path.")
    new = _new_beside(path)
    try:  # better than after minutes of examination
        with new.open("x"):
            pass
        new.unlink()
    except OSError as error:
        raise InvalidArgumentError(f"Cannot write {path}: {error.strerror or error}.") from error


def save_facts(document: Mapping[str, Any], path: Path) -> None:
    """Write the facts of a report (`ArchiveReport.as_json`) to a file; facts that were there are replaced at once.

    Raises:
        StoreExistsError, InvalidArgumentError: As in `check_facts_path`.
        OSError: The file cannot be written.
    """
    check_facts_path(path)
    new = _new_beside(path)
    try:
        with naming(path), new.open("x") as file:
            json.dump(document, file, indent=1)
        os.replace(new, path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # which names the user's file
        raise


def _new_beside(path: Path) -> Path:
    """Return the place of a temporary file in the same folder."""
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}")
