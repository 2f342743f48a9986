"""What there is on a disk; where it does not tell, that is an error, and never the answer that there is nothing.

pathlib's `exists` and `glob`, and `os.walk`, take some faults for a no; which ones depends on the version of Python.
What is thought not to be there would be written anew, left out, or have its folder removed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def is_there(path: Path) -> bool:
    """Whether a path, or what a symbolic link leads to, exists.

    Raises:
        OSError: It cannot be told, as with all of these functions.
    """
    return _stat(path) is not None


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link."""
    found = _stat(path, follow=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def is_empty_folder(path: Path) -> bool:
    """Whether a path is a folder with nothing in it."""
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode) and not any(path.iterdir())


def size_of(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    found = _stat(path)
    return None if found is None else found.st_size


def files_in(folder: Path, suffix: str = "") -> list[Path]:
    """All in a folder whose names end so, sorted."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`."""

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
    except ValueError:  # a name that no path has
        return None
