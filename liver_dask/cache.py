"""What is kept of a file once it was read: in memory (bounded, least recently used out), and in a folder if asked.

A folder's entry is one file, written whole under another name and then renamed, so that processes may share it and a
kill leaves either the old entry or the new. No database: such folders lie on cluster file systems without locks.
"""

import hashlib
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cachetools

from .transport import Identity


class Sized(Protocol):
    """Anything that knows how many bytes of memory it takes, which may grow."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""


T = TypeVar("T", bound=Sized)


class MemoryCache:
    """Objects by key, as many as fit into `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._kept: cachetools.LRUCache[Hashable, Any] = cachetools.LRUCache(limit, getsizeof=lambda item: item.nbytes)
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under `key`, or else what `make` returns; `make` must be quick, it runs under the lock."""
        with self._lock:
            if key not in self._kept:
                self._put(key, make())
            return self._kept[key]

    def grown(self, key: Hashable, item: Sized) -> None:
        """Measure an item anew after it was used, and drop the least recently used where the limit is passed."""
        with self._lock:
            self._kept.pop(key, None)
            self._put(key, item)

    def drop(self, key: Hashable) -> None:
        """Forget one item."""
        with self._lock:
            self._kept.pop(key, None)

    def _put(self, key: Hashable, item: Sized) -> None:
        if item.nbytes <= self._kept.maxsize:  # a larger one is used and not kept
            self._kept[key] = item


class FolderCache:
    """Entries by kind and URL; each says of which version of the file it is, and is checked when it is read."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser()

    def load(self, kind: str, url: str) -> tuple[Identity, bytes] | None:
        """The entry, or None where there is none or it is damaged."""
        try:
            header, _, payload = self._path(kind, url).read_bytes().partition(b"\n")
            told = json.loads(header)
        except (OSError, ValueError):
            return None
        if told.get("url") != url or told.get("crc32") != zlib.crc32(payload):
            return None
        return Identity(told["size"], told["tag"]), payload

    def store(self, kind: str, url: str, identity: Identity, payload: bytes) -> None:
        """Write the entry in one step; another process's entry for the same file is replaced."""
        path = self._path(kind, url)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"url": url, "size": identity.size, "tag": identity.tag, "crc32": zlib.crc32(payload)}
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n" + payload)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    def drop(self, url: str) -> None:
        """Forget all entries of one file."""
        for kind in self._folder.glob("*"):
            self._path(kind.name, url).unlink(missing_ok=True)

    def _path(self, kind: str, url: str) -> Path:
        return self._folder / kind / hashlib.sha256(url.encode()).hexdigest()[:32]
