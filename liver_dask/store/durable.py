"""Atomic and durable writes: a file gets its name only after its bytes are on the disk."""

import os
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..core.disk import naming, walk


class DurableFile:
    """A file that is written under a temporary name, and renamed when it is complete and on the disk.

    The file's folder must exist. It is not created, because a late writer must not recreate a folder of a store that
    was completed or removed in the meantime.

    Args:
        path: Final path of the file.
        part: Path from which the temporary name is derived; by default a hidden file in the same folder.
    """

    def __init__(self, path: Path, part: Path | None = None) -> None:
        self._path = path
        part = part or path.with_name(f".{path.name}")
        self._part = part.with_name(f"{part.name}.{secrets.token_hex(4)}")  # two writers may write the same file

    def __enter__(self) -> Any:
        self._file = self._part.open("xb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:  # of the open file
            error.filename = str(self._path)
        try:
            with naming(self._path), self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                self._part.replace(self._path)
                sync_folder(self._path.parent)
        finally:
            self._part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the file names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path, *, skip: Collection[Path]) -> None:
    """Make all files of a folder durable that were written by others, except those in the folders `skip`."""
    skipped = tuple(f"{path}{os.sep}" for path in skip)
    for folder, folders, files in walk(root):
        for name in files:
            if not f"{folder}{os.sep}".startswith(skipped):
                with Path(folder, name).open("rb") as file:
                    os.fsync(file.fileno())
        if folders or files:  # a folder with only shards was made durable with each of them
            sync_folder(Path(folder))


TORN = re.compile(r"\..+\.[0-9a-f]{8}")
"""Temporary name of a DurableFile until it is complete. If its process is killed, the file remains under this name."""
