"""Caches of file contents: in memory (bounded, least recently used), and optionally in a folder.

An entry of a folder is one file. It is written completely under another name and then renamed, so that processes can
share it, and a kill leaves either the old or the new entry. There is no database, because such folders are often on
cluster file systems without locks.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import cachetools
import numpy as np

from .ranges import ByteRange
from .versions import FileVersion

log = logging.getLogger(__name__)

RAW = "raw"
WHAT_IS_KEPT = {"strips": "strip indexes", "masks": "masks, as far as they were fetched", RAW: "strips of raw"}
"""What a folder caches, by kind; the last kind only on request."""

BLOCK_BYTES = 4 << 20
"""Ranges that begin in the same block of this many bytes of a file form one entry."""

TEMPORARY = ".part-"
BEGINS = b'{"url": '
_NAME_OF_ENTRY = re.compile(rf"(strips|masks)/([0-9a-f]{{32}}|{TEMPORARY}\w+)|raw/[0-9a-f]{{32}}/(\d+|{TEMPORARY}\w+)")

SPARE = 16
"""Once less than 1/SPARE of the limit is free, the least recently used entries are evicted until 2/SPARE is free."""


class Sized(Protocol):
    """An object that knows its size in memory, which may grow."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory now."""


T = TypeVar("T", bound=Sized)


class MemoryCache(Generic[T]):
    """Items by key, up to `limit` bytes; the least recently used is evicted first. A fork starts with an empty cache.

    An evicted item is still found while other code holds a reference to it, because this takes no additional memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clear()
        if hasattr(os, "register_at_fork"):  # the child lacks the threads that may hold locks
            os.register_at_fork(after_in_child=self._clear)

    def get(self, key: Hashable) -> T | None:
        """Return the item, or None."""
        with self._lock:
            return self._find(key)

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the item, or else the result of `make`, which must be fast because it runs under the lock."""
        with self._lock:
            item = self._find(key)
            if item is None:
                item = make()
                self._put(key, item)
            return item

    def put(self, key: Hashable, item: T) -> None:
        """Cache an item, or update the size of an item that has grown."""
        with self._lock:
            self._kept.pop(key, None)
            self._put(key, item)

    def drop(self, key: Hashable) -> None:
        """Evict one item."""
        with self._lock:
            self._kept.pop(key, None)
            self._held.pop(key, None)

    def _find(self, key: Hashable) -> T | None:
        item = self._kept.get(key)
        return self._held.get(key) if item is None else item

    def _put(self, key: Hashable, item: T) -> None:
        self._held[key] = item
        if item.nbytes <= self._limit:  # a larger item is used but not cached
            self._kept[key] = item

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._held: WeakValueDictionary[Hashable, T] = WeakValueDictionary()
        self._kept: cachetools.LRUCache[Hashable, T] = cachetools.LRUCache(self._limit, lambda item: item.nbytes)


class FolderCache:
    """Entries by kind and URL; each records the version of its file and has a checksum, verified at each read.

    Other files in the folder are never touched: a file is removed only if its place, its name and its first bytes are
    those of an entry.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser()

    def load(self, kind: str, url: str, part: str = "") -> tuple[FileVersion, bytes] | None:
        """Return the entry, or None if it is missing or damaged."""
        try:
            header, _, payload = self._path(kind, url, part).read_bytes().partition(b"\n")
            entry = json.loads(header)
            version = FileVersion(int(entry["size"]), str(entry["tag"]))
            is_whole = entry["url"] == url and entry["crc32"] == _checksum(url, version, payload)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return (version, payload) if is_whole else None

    def store(self, kind: str, url: str, version: FileVersion, payload: bytes, part: str = "") -> None:
        """Write the entry atomically; it replaces another process's entry for the same file.

        If the folder cannot be written, this is logged and is not an error: the voxels are available without the cache.
        """
        path = self._path(kind, url, part)
        crc = _checksum(url, version, payload)
        header = {"url": url, "size": version.size, "tag": version.etag, "crc32": crc}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
            try:
                with open(descriptor, "wb") as file:
                    file.write(json.dumps(header).encode() + b"\n" + payload)
                os.replace(new, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new)
                raise
        except OSError as error:
            self._warn_once(f"{url} cannot be kept in {self._folder}: {error}")

    def drop(self, url: str) -> None:
        """Remove all entries of one file."""
        for kind in WHAT_IS_KEPT:
            path = self._path(kind, url)
            for entry in path.glob("*") if kind == RAW else [path]:
                self.remove(entry)

    def touch(self, kind: str, url: str, part: str) -> None:
        """Record that an entry was used."""
        with suppress(OSError):
            os.utime(self._path(kind, url, part))

    def entries(self, kind: str) -> list[tuple[float, int, Path]]:
        """Return time of last use, bytes and path of each entry; remains of a killed process count as entries."""
        found = []
        for folder, _, names in os.walk(self._folder / kind):
            for path in [Path(folder, name) for name in names]:
                if _NAME_OF_ENTRY.fullmatch(path.relative_to(self._folder).as_posix()):
                    with suppress(OSError):  # another process may have removed it
                        found.append((path.stat().st_mtime, path.stat().st_size, path))
        return found

    def clear(self) -> None:
        """Remove all entries."""
        for kind in WHAT_IS_KEPT:
            for _, _, path in self.entries(kind):
                self.remove(path)
            with suppress(OSError):
                (self._folder / kind).rmdir()

    def remove(self, path: Path) -> bool:
        """Remove an entry, and its folder if then empty; return False if it is not an entry or cannot be removed."""
        try:
            with path.open("rb") as file:
                if not file.read(len(BEGINS)).startswith(BEGINS):
                    return False
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            self._warn_once(f"{path} cannot be removed: {error}")
            return False
        if path.parent.parent == self._folder / RAW:
            with suppress(OSError):
                path.parent.rmdir()
        return True

    def _warn_once(self, problem: str) -> None:
        """Log a problem with the folder: the first time as a warning, then at INFO level."""
        token = object()
        is_first = _warned.setdefault(self._folder, token) is token  # atomic: several threads may have the same problem
        log.log(logging.WARNING if is_first else logging.INFO, "%s", problem)

    def _path(self, kind: str, url: str, part: str = "") -> Path:
        return self._folder / kind / hashlib.sha256(url.encode()).hexdigest()[:32] / part


def _checksum(url: str, version: FileVersion, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(f"{url}\n{version.size}\n{version.etag}\n".encode()))


_warned: dict[Path, object] = {}
"""Folders for which this process has already logged a warning."""


class RangeCache:
    """Ranges of files in a folder, up to `limit` bytes of disk; the least recently used are evicted first."""

    def __init__(self, folder: str, limit: int) -> None:
        self._folder = FolderCache(folder)
        self._limit = limit

    def find(self, url: str, version: FileVersion, ranges: Sequence[ByteRange]) -> list[memoryview | None]:
        """Return the bytes of each range of this version of a file; None for ranges that are not cached."""
        blocks = {
            number: self._load(url, version, number) for number in {_block_of(byte_range) for byte_range in ranges}
        }
        found: list[memoryview | None] = []
        for byte_range in ranges:
            kept = blocks[_block_of(byte_range)].get(byte_range.start, memoryview(b""))
            found.append(
                kept[: byte_range.stop - byte_range.start] if len(kept) >= byte_range.stop - byte_range.start else None
            )
        for number in {
            _block_of(byte_range) for byte_range, part in zip(ranges, found, strict=True) if part is not None
        }:
            self._folder.touch(RAW, url, number)
        return found

    def keep(self, url: str, version: FileVersion, ranges: Sequence[ByteRange], parts: Sequence[memoryview]) -> None:
        """Cache ranges.

        If another process writes to the same block of the file at the same time, its ranges may be lost.
        """
        new: defaultdict[str, dict[int, memoryview]] = defaultdict(dict)
        for byte_range, part in zip(ranges, parts, strict=True):
            new[_block_of(byte_range)][byte_range.start] = part
        with _keeping:
            for number, of_block in new.items():
                all_parts = self._load(url, version, number) | of_block
                head = np.array([[start, len(part)] for start, part in all_parts.items()], "<i8")
                payload = b"".join([len(head).to_bytes(8, "little"), head.tobytes(), *all_parts.values()])
                self._folder.store(RAW, url, version, payload, number)
            self._trim()

    def _load(self, url: str, version: FileVersion, number: str) -> dict[int, memoryview]:
        loaded = self._folder.load(RAW, url, number)
        if loaded is None or loaded[0] != version:
            return {}
        payload = memoryview(loaded[1])
        count = int.from_bytes(payload[:8], "little")
        head = np.frombuffer(payload[8 : 8 + 16 * count], "<i8").reshape(count, 2)
        stops = 8 + 16 * count + np.cumsum(head[:, 1])
        return {
            start: payload[stop - length : stop]
            for (start, length), stop in zip(head.tolist(), stops.tolist(), strict=True)
        }

    def _trim(self) -> None:
        entries = sorted(self._folder.entries(RAW))
        room = self._limit - sum(size for _, size, _ in entries)
        for _, size, path in entries if room < self._limit // SPARE else ():
            if room >= 2 * self._limit // SPARE:
                break
            room += size if self._folder.remove(path) else 0


_keeping = threading.Lock()


def _new_lock() -> None:
    global _keeping
    _keeping = threading.Lock()


if hasattr(os, "register_at_fork"):  # the child lacks the thread that may hold the lock
    os.register_at_fork(after_in_child=_new_lock)


def _block_of(byte_range: ByteRange) -> str:
    return str(byte_range.start // BLOCK_BYTES)
