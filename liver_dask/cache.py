"""What is kept of a file once it was read: in memory (bounded, least recently used out), and in a folder if asked.

A folder's entry is one file, written whole under another name and then renamed, so that processes may share it and a
kill leaves either the old entry or the new. No database: such folders lie on cluster file systems without locks.
"""

import hashlib
import json
import logging
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import cachetools

from .transport import Identity

log = logging.getLogger(__name__)

KINDS = ("strips", "masks")
"""What a folder keeps: strip indexes, and masks as far as they were fetched."""


class Sized(Protocol):
    """Anything that knows how many bytes of memory it takes, which may grow."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""


T = TypeVar("T", bound=Sized)


class MemoryCache(Generic[T]):
    """Items by key, as many as fit into `limit` bytes; the least recently used goes first. A fork starts with none.

    An item that somebody holds is found all the same: it takes no more memory for that.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clear()
        if hasattr(os, "register_at_fork"):  # the parent's threads may hold locks that nobody would release
            os.register_at_fork(after_in_child=self._clear)

    def get(self, key: Hashable) -> T | None:
        """The item, or None."""
        with self._lock:
            return self._find(key)

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """The item, or else what `make` returns; `make` must be quick, it runs under the lock."""
        with self._lock:
            item = self._find(key)
            if item is None:
                item = make()
                self._put(key, item)
            return item

    def put(self, key: Hashable, item: T) -> None:
        """Keep an item, or measure one anew that has grown."""
        with self._lock:
            self._kept.pop(key, None)
            self._put(key, item)

    def drop(self, key: Hashable) -> None:
        """Forget one item."""
        with self._lock:
            self._kept.pop(key, None)
            self._held.pop(key, None)

    def drop_where(self, is_stale: Callable[[Any], bool]) -> None:
        """Forget all items of the keys that `is_stale` says."""
        with self._lock:
            for known in (self._kept, self._held):
                for key in [key for key in known if is_stale(key)]:
                    known.pop(key, None)

    def _find(self, key: Hashable) -> T | None:
        item = self._kept.get(key)
        return self._held.get(key) if item is None else item

    def _put(self, key: Hashable, item: T) -> None:
        self._held[key] = item
        if item.nbytes <= self._limit:  # a larger one is used and not kept
            self._kept[key] = item

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._held: WeakValueDictionary[Hashable, T] = WeakValueDictionary()
        self._kept: cachetools.LRUCache[Hashable, T] = cachetools.LRUCache(self._limit, lambda item: item.nbytes)


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
        if not isinstance(told, dict) or told.get("url") != url or told.get("crc32") != zlib.crc32(payload):
            return None
        return Identity(told["size"], told["tag"]), payload

    def store(self, kind: str, url: str, identity: Identity, payload: bytes) -> None:
        """Write the entry in one step; another process's entry for the same file is replaced.

        A folder that cannot be written is logged, and no error: the voxels are there without it.
        """
        path = self._path(kind, url)
        header = {"url": url, "size": identity.size, "tag": identity.tag, "crc32": zlib.crc32(payload)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
                file.write(json.dumps(header).encode() + b"\n" + payload)
            os.replace(file.name, path)
        except OSError as error:
            log.warning("%s cannot be kept in %s: %s", url, self._folder, error)

    def drop(self, url: str) -> None:
        """Forget all entries of one file."""
        for kind in KINDS:
            self._path(kind, url).unlink(missing_ok=True)

    def _path(self, kind: str, url: str) -> Path:
        return self._folder / kind / hashlib.sha256(url.encode()).hexdigest()[:32]
