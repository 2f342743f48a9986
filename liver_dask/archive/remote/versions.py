"""The version of each file that a Dataset reads: the same one in every process, otherwise it is an error."""

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
    """Distinguishes one version of a file from another.

    Attributes:
        size: Bytes of the file.
        etag: Its ETag, or else its date; empty if the source gives neither.
        modified: Earliest time of the last change, in seconds since 1970 by this machine's clock, if known. Because it
            depends on a clock, it does not count when two versions are compared.
    """

    size: int
    etag: str
    modified: float | None = field(default=None, compare=False)


MISSING = FileVersion(0, "missing")
"""The version of a file that the source does not have, if missing slices count as zeros."""

_SEVERAL = FileVersion(-1, "several")
"""The version of a file of which two processes have read different versions."""


class Versions:
    """The versions of the files that a Dataset has read, in this process and in those that pickled it.

    All copies of a Dataset in a process share one object. A noted version is final: if the file has another version
    later, it is refused. For two processes that have not exchanged versions, the date decides: a file that was changed
    after the Dataset was opened is refused, because another process may have read the earlier version.
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self._opened = time.time()
        self._known: dict[str, FileVersion] = {}
        _of_this_process[self.id] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _joined, (self.id, self._opened, self._known.copy())

    def get(self, url: str) -> FileVersion | None:
        """Return the version of a file that is read; None if nothing of the file was read.

        Raises:
            SourceChangedError: Two processes have read different versions; cached data of both must not be used.
        """
        known = self._known.get(url)
        if known == _SEVERAL:
            raise SourceChangedError(f"{url} was read in two versions, by two processes; open the source again.")
        return known

    def note(self, url: str, found: FileVersion) -> None:
        """Record the version that a file has now.

        Raises:
            SourceChangedError: It is not the version that was read before, or may differ from the one that other
                processes have read.
        """
        if self.get(url) is None and found.modified is not None and found.modified > self._opened:
            raise SourceChangedError(
                f"{url} was changed at {_local_time(found.modified)}, after it was opened at "
                f"{_local_time(self._opened)}; other parts may have been read before, so open the source again."
            )
        known = self._known.setdefault(url, found)  # atomic: several threads may note the same file
        if known != found:
            raise SourceChangedError(
                f"{url} is not the file it was when it was first read: it had {_as_text(known)}, and has "
                f"{_as_text(found)}; open the source again."
            )

    def read_below(self, prefix: str) -> list[str]:
        """Return the URLs that begin with `prefix` of the files that were read, and so exist."""
        none_read = MISSING, _SEVERAL
        return [url for url, known in [*self._known.items()] if url.startswith(prefix) and known not in none_read]

    def _join(self, known: dict[str, FileVersion]) -> None:
        """Add the versions that another process has noted; a file with two different versions is not read any more."""
        for url, version in known.items():
            if self._known.setdefault(url, version) != version:
                self._known[url] = _SEVERAL


_of_this_process: WeakValueDictionary[str, Versions] = WeakValueDictionary()


def _joined(name: str, opened: float, known: dict[str, FileVersion]) -> Versions:
    """Return the versions of an unpickled Dataset; if this process already has them, the same object."""
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
    """Yield a dict that records, by URL, the version of each file that is read within this context.

    Reads on the threads of a ContextPool are recorded, too.
    """
    files: dict[str, FileVersion] = {}
    token = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(token)


def note_file(url: str, version: FileVersion) -> None:
    """Record that voxels of a file were read, if a `noting_files` context is active."""
    files = _noted.get()
    if files is not None:
        files[url] = version


def _as_text(version: FileVersion) -> str:
    return "been missing" if version == MISSING else f"{version.size} bytes ({version.etag})"


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec="seconds")
