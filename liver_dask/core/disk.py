"""What exists on a disk; if the disk cannot answer, that raises an error and never counts as "does not exist".

pathlib's `exists` and `glob`, and `os.walk`, treat some I/O errors as "does not exist"; which errors depends on the
version of Python. A file that is wrongly taken for missing would be written again or left out, or its folder would be
removed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def is_there(path: Path) -> bool:
    """Return whether a path exists; a symbolic link is followed.

    Raises:
        OSError: The disk cannot answer. This holds for all functions of this module.
    """
    return _stat(path) is not None


def is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link."""
    found = _stat(path, follow=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def is_empty_folder(path: Path) -> bool:
    """Return whether a path is a folder with nothing in it."""
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode) and not any(path.iterdir())


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it does not exist."""
    found = _stat(path)
    return None if found is None else found.st_size


def files_in(folder: Path, suffix: str = "") -> list[Path]:
    """Return all entries of a folder whose names end with `suffix`, sorted."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder tree as `os.walk` does, but raise errors."""

    def fail(error: OSError) -> NoReturn:
        raise error

    return os.walk(folder, onerror=fail)


def _stat(path: Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat() if follow else path.lstat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise
    except ValueError:  # the name is not valid for a path
        return None
