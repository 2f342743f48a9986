"""What exists on a disk or in object storage. If that cannot be found out, it is an error, and never "does not exist".

pathlib's `exists` and `glob`, and `os.walk`, treat some I/O errors as "does not exist"; which errors depends on the
version of Python. A file that is wrongly taken for missing would be written again or left out, or its folder would be
removed.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from .places import ObjectPath, Place, Stat

P = TypeVar("P", Path, ObjectPath, Path | ObjectPath)

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path into errors of the system that name none: those of an open file, such as a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def is_there(path: Place) -> bool:
    """Return whether a path exists; a symbolic link is followed.

    Raises:
        OSError: The disk cannot answer. This holds for all functions of this module.
    """
    return _stat(path) is not None


def is_file(path: Place) -> bool:
    """Return whether a path is a file; a symbolic link is followed."""
    if isinstance(path, ObjectPath):
        return path.is_file()
    found = _stat(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def content_of(path: Place) -> bytes | None:
    """Return the content of a file; None if it does not exist."""
    if not isinstance(path, ObjectPath) and not is_there(path):
        return None
    try:
        return path.read_bytes()
    except FileNotFoundError:  # removed a moment ago, or not there
        return None


def is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link."""
    found = _stat(path, follow=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def is_listed(path: Place) -> bool:
    """Return whether a path exists, or is a symbolic link that leads nowhere."""
    return _stat(path, follow=False) is not None


def is_empty_folder(path: Place) -> bool:
    """Return whether a path is a folder with nothing in it."""
    if isinstance(path, ObjectPath):
        return path.is_dir() and not any(path.rglob("*"))  # but for empty objects in place of folders
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode) and not any(path.iterdir())


def size_of(path: Place) -> int | None:
    """Return the size of a file in bytes; None if it does not exist."""
    found = _stat(path)
    return None if found is None else found.st_size


def sizes_of(folder: Place, paths: Sequence[str]) -> list[int | None]:
    """Return the sizes of some files below a folder, None for those that do not exist; of objects by one listing."""
    if not isinstance(folder, ObjectPath):
        return [size_of(folder / path) for path in paths]
    found = folder.call("find", folder.key, detail=True)
    sizes = {key.strip("/"): int(info["size"] or 0) for key, info in found.items()}
    return [sizes.get((folder / path).key) for path in paths]


def files_in(folder: P, suffix: str = "") -> list[P]:
    """Return all entries of a folder whose names end with `suffix`, sorted."""
    found: list[P] = [path for path in folder.iterdir() if path.name.endswith(suffix)]
    return sorted(found)


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder tree as `os.walk` does, but raise errors."""

    def fail(error: OSError) -> NoReturn:
        raise error

    return os.walk(folder, onerror=fail)


def files_below(folder: Place, but: Collection[Place] = ()) -> Iterator[Place]:
    """Yield all files in a folder and in all folders below, except those in some folders."""
    if isinstance(folder, ObjectPath):
        others = [path for path in but if isinstance(path, ObjectPath)]
        yield from (path for path in folder.rglob("*") if not any(map(path.is_below, others)))
        return
    for parent, folders, files in walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) not in but]
        yield from (Path(parent, name) for name in files)


def _stat(path: Place, *, follow: bool = True) -> os.stat_result | Stat | None:
    try:
        return path.stat() if follow or isinstance(path, ObjectPath) else path.lstat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise
    except ValueError:  # the name is not valid for a path
        return None
