"""Injection of failing file operations: all operations below a folder are counted, and one of them fails once.

The functions of `os` and `io` that pathlib, shutil, zarr and numpy use are wrapped, for all threads. An operation is
identified by its name, its file, and how often it was done to that file before. Therefore the order in which threads
run does not matter.
"""

import builtins
import errno
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ERRNOS = (errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EACCES)

OF_PATHS = ("stat", "lstat", "mkdir", "rmdir", "unlink", "remove", "listdir", "scandir", "open", "readlink", "statvfs")
OF_TWO_PATHS = ("rename", "replace", "link", "symlink")
OF_DESCRIPTORS = ("fsync", "read", "write", "pread", "fstat")
RANDOM = re.compile(r"[0-9a-f]{8}[0-9a-f-]*")
"""The random part of file names: in the names of temporary files, and in digests of URLs."""


class Operation(NamedTuple):
    """One file operation.

    Attributes:
        name: The name of the operation.
        file: The path of the file below the folder.
        before: How often the operation was done to the file before.
    """

    name: str
    file: str
    before: int


class FaultyFile(io.FileIO):
    """A file whose reads and writes are checked by a Watch."""

    def __init__(self, watch: "Watch", file: Any, mode: str, opener: Any) -> None:
        super().__init__(file, mode, opener=opener)
        self._watch, self._file = watch, file

    def readinto(self, buffer: Any) -> int | None:
        self._watch.check("file.read", self._file)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._watch.check("file.read", self._file)
        return super().readall()

    def write(self, data: Any) -> int | None:
        self._watch.check("file.write", self._file)
        return super().write(data)


class Watch:
    """Records the file operations below a folder, and lets one fail.

    Args:
        folder: The folder.
        fails: The operation that fails, or None if all succeed.
        number: The errno of the failure.

    Attributes:
        operations: All operations so far, in order.
        failed: Whether the operation has failed.
    """

    def __init__(self, folder: Path, fails: Operation | None = None, number: int = errno.EIO) -> None:
        self.operations: list[Operation] = []
        self.failed = False
        self._folder = os.path.abspath(folder)
        self._fails, self._errno = fails, number
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._readlink = os.readlink  # not the counted one

    def check(self, name: str, path: Any, dir_fd: int | None = None) -> bool:
        """Count an operation, or let it fail. Return whether its file is below the folder."""
        file = self._below(path, dir_fd)
        if file is None:
            return False
        with self._lock:
            operation = Operation(name, file, self._counts[name, file])
            self._counts[name, file] += 1
            self.operations.append(operation)
            if operation != self._fails:
                return True
            self.failed = True
        raise OSError(self._errno, os.strerror(self._errno), os.fspath(path) if not isinstance(path, int) else None)

    def _below(self, path: Any, dir_fd: int | None) -> str | None:
        """Return the path relative to the folder without its random parts, or None if it is not below the folder."""
        try:
            if isinstance(path, int):
                text = self._readlink(f"/proc/self/fd/{path}")
            else:
                text = os.fsdecode(path)
                if dir_fd is not None:
                    text = os.path.join(self._readlink(f"/proc/self/fd/{dir_fd}"), text)
        except (OSError, TypeError):
            return None
        text = os.path.abspath(text)
        if text != self._folder and not text.startswith(self._folder + os.sep):
            return None
        return RANDOM.sub("#", text[len(self._folder) + 1 :])

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Count operations and let the chosen one fail until the context is left."""
        patches = [mock.patch.object(os, name, self._of_path(name)) for name in OF_PATHS]
        patches += [mock.patch.object(os, name, self._of_two_paths(name)) for name in OF_TWO_PATHS]
        patches += [mock.patch.object(os, name, self._of_path(name)) for name in OF_DESCRIPTORS]
        opened = self._open_file(io.open)
        patches += [mock.patch.object(io, "open", opened), mock.patch.object(builtins, "open", opened)]
        for patch in patches:
            patch.start()
        try:
            yield self
        finally:
            for patch in reversed(patches):
                patch.stop()

    def _of_path(self, name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def checked(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            self.check(name, path, kwargs.get("dir_fd"))
            return call(path, *args, **kwargs)

        return checked

    def _of_two_paths(self, name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def checked(source: Any, target: Any, **kwargs: Any) -> Any:
            self.check(name, target)
            return call(source, target, **kwargs)

        return checked

    def _open_file(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: Any = None,
            errors: Any = None,
            newline: Any = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if isinstance(file, int) or not self.check("open", file):
                return call(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = FaultyFile(self, file, mode.replace("b", "").replace("t", ""), opener)
            if buffering == 0:
                return raw
            wrapper = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
            buffered = wrapper(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        return checked
