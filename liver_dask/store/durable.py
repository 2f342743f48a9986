"""Files whose bytes are on the disk before they get their names."""

import os
import re
import secrets
from pathlib import Path
from typing import Any


class DurableFile:
    """A file opened for writing under another name, that gets its own when it is closed whole and on the disk.

    Its folder must be there: a writer that comes late, after the store was completed or removed, must not make it anew.
    """

    def __init__(self, path: Path, part: Path | None = None) -> None:
        self._path = path
        part = part or path.with_name(f".{path.name}")
        self._part = part.with_name(f"{part.name}.{secrets.token_hex(4)}")  # two may write the same file

    def __enter__(self) -> Any:
        self._file = self._part.open("xb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                self._part.replace(self._path)
                sync_folder(self._path.parent)
        finally:
            self._part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


TORN = re.compile(r"\..+\.[0-9a-f]{8}")
"""Temporary name of a DurableFile until it is complete. If its process is killed, the file remains under this name."""
