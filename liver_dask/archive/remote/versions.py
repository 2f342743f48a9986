"""Which version of each file a Dataset reads: one, in whatever process, or it is an error."""

import contextvars
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from ...core.errors import SourceChangedError


@dataclass(frozen=True)
class FileVersion:
    """What tells one version of a file from another.

    Attributes:
        size: Bytes of the file.
        etag: Its ETag, or else its date; empty where the source tells neither.
        modified: When it was changed at the earliest, in seconds since 1970 by this machine's clock, if that is known.
            It is told by a clock, and so does not count when two versions are compared.
    """

    size: int
    etag: str
    modified: float | None = field(default=None, compare=False)


MISSING = FileVersion(0, "missing")
"""Stands for the version of a file that the source does not have, where that is taken for zeros."""

_SEVERAL = FileVersion(-1, "several")
"""Stands for the versions of a file of which two processes have each read another."""


class Versions:
    """The versions of the files that a Dataset has read, in this process and wherever its pickles came from.

    All copies of a Dataset in a process share one. A version that is noted stays: a file that is found to be another is
    refused. Two processes that have not heard of each other are told apart from the date: a file that was changed after
    the Dataset was opened is refused, since another process may have read what it was before.
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self._opened = time.time()
        self._known: dict[str, FileVersion] = {}
        _of_this_process[self.id] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _joined, (self.id, self._opened, self._known.copy())

    def get(self, url: str) -> FileVersion | None:
        """The version of a file that is read, if any of it was.

        Raises:
            SourceChangedError: Two processes have read two versions; what is kept of either is not to be used.
        """
        known = self._known.get(url)
        if known == _SEVERAL:
            raise SourceChangedError(f"{url} was read in two versions, by two processes; open the source again.")
        return known

    def note(self, url: str, found: FileVersion) -> None:
        """Take note of which version of a file is there now.

        Raises:
            SourceChangedError: It is not the one that was read before, or may not be the one that others have read.
        """
        if self.get(url) is None and found.modified is not None and found.modified > self._opened:
            raise SourceChangedError(
                f"{url} was changed at {_local_time(found.modified)}, after it was opened at "
                f"{_local_time(self._opened)}; other parts may have been read before, so open the source again."
            )
        known = self._known.setdefault(url, found)  # one step: threads may note the same file
        if known != found:
            raise SourceChangedError(
                f"{url} is not the file it was when it was first read: it had {_told(known)}, and has {_told(found)}; "
                "open the source again."
            )

    def has_read_below(self, prefix: str) -> bool:
        """Whether a file whose URL begins so was read, and so is there."""
        none_read = MISSING, _SEVERAL
        return any(url.startswith(prefix) and known not in none_read for url, known in [*self._known.items()])

    def _join(self, known: dict[str, FileVersion]) -> None:
        """Take over what another process has noted; a file of which the two know two versions is read no more."""
        for url, version in known.items():
            if self._known.setdefault(url, version) != version:
                self._known[url] = _SEVERAL


_of_this_process: WeakValueDictionary[str, Versions] = WeakValueDictionary()


def _joined(name: str, opened: float, known: dict[str, FileVersion]) -> Versions:
    """The versions of a Dataset that was unpickled: those that this process has of it, if it has it already."""
    versions = _of_this_process.get(name)
    if versions is None:
        versions = Versions()
        del _of_this_process[versions.id]
        versions.id, versions._opened = name, opened
        versions = _of_this_process.setdefault(name, versions)
    versions._join(known)
    return versions


_noted: contextvars.ContextVar[dict[str, FileVersion] | None] = contextvars.ContextVar("noted", default=None)


@contextmanager
def noting_files() -> Iterator[dict[str, FileVersion]]:
    """Meanwhile the files that voxels are read of are noted by URL, on whatever thread of a ContextPool."""
    files: dict[str, FileVersion] = {}
    token = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(token)


def note_file(url: str, version: FileVersion) -> None:
    """Tell whoever wants to know that voxels were read of a file."""
    files = _noted.get()
    if files is not None:
        files[url] = version


def _told(version: FileVersion) -> str:
    return "been missing" if version == MISSING else f"{version.size} bytes ({version.etag})"


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec="seconds")
