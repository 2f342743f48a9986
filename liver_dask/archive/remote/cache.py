"""What is kept of a file once it was read: in memory (bounded, least recently used out), and in a folder if asked.

A folder's entry is one file, written whole under another name and then renamed, so that processes may share it and a
kill leaves either the old entry or the new. No database: such folders lie on cluster file systems without locks.
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
"""By kind, what a folder keeps; the last only if it was asked for."""

BLOCK_BYTES = 4 << 20
"""Ranges that begin in the same part of so many bytes of a file are one entry."""

TEMPORARY = ".part-"
BEGINS = b'{"url": '
_NAME_OF_ENTRY = re.compile(rf"(strips|masks)/([0-9a-f]{{32}}|{TEMPORARY}\w+)|raw/[0-9a-f]{{32}}/(\d+|{TEMPORARY}\w+)")

SPARE = 16
"""Oldest entries are dropped when all but this part of the limit is taken."""


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
    """Entries by kind and URL; each says of which version of the file it is, and is checked when it is read.

    Nothing else in the folder is touched: what is removed has the place and the name of an entry, and begins like one.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser()

    def load(self, kind: str, url: str, part: str = "") -> tuple[FileVersion, bytes] | None:
        """The entry, or None where there is none or it is damaged."""
        try:
            header, _, payload = self._path(kind, url, part).read_bytes().partition(b"\n")
            entry = json.loads(header)
            version = FileVersion(int(entry["size"]), str(entry["tag"]))
            is_whole = entry["url"] == url and entry["crc32"] == _checksum(url, version, payload)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return (version, payload) if is_whole else None

    def store(self, kind: str, url: str, version: FileVersion, payload: bytes, part: str = "") -> None:
        """Write the entry in one step; another process's entry for the same file is replaced.

        A folder that cannot be written is logged, and no error: the voxels are there without it.
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
            self._tell(f"{url} cannot be kept in {self._folder}: {error}")

    def drop(self, url: str) -> None:
        """Forget all of one file."""
        for kind in WHAT_IS_KEPT:
            path = self._path(kind, url)
            for entry in path.glob("*") if kind == RAW else [path]:
                self.remove(entry)

    def touch(self, kind: str, url: str, part: str) -> None:
        """Take note that an entry was used."""
        with suppress(OSError):
            os.utime(self._path(kind, url, part))

    def entries(self, kind: str) -> list[tuple[float, int, Path]]:
        """When each entry was used, its bytes and its file; what a killed process left counts as one."""
        found = []
        for folder, _, names in os.walk(self._folder / kind):
            for path in [Path(folder, name) for name in names]:
                if _NAME_OF_ENTRY.fullmatch(path.relative_to(self._folder).as_posix()):
                    with suppress(OSError):  # another process may have dropped it
                        found.append((path.stat().st_mtime, path.stat().st_size, path))
        return found

    def clear(self) -> None:
        """Forget everything."""
        for kind in WHAT_IS_KEPT:
            for _, _, path in self.entries(kind):
                self.remove(path)
            with suppress(OSError):
                (self._folder / kind).rmdir()

    def remove(self, path: Path) -> bool:
        """Remove an entry, and its folder with the last of them; False for what is none, or cannot be removed."""
        try:
            with path.open("rb") as file:
                if not file.read(len(BEGINS)).startswith(BEGINS):
                    return False
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            self._tell(f"{path} cannot be removed: {error}")
            return False
        if path.parent.parent == self._folder / RAW:
            with suppress(OSError):
                path.parent.rmdir()
        return True

    def _tell(self, problem: str) -> None:
        """Log what is wrong with the folder: the first time as a warning, then as a detail."""
        token = object()
        is_first = _told.setdefault(self._folder, token) is token  # in one step: threads may tell the same
        log.log(logging.WARNING if is_first else logging.INFO, "%s", problem)

    def _path(self, kind: str, url: str, part: str = "") -> Path:
        return self._folder / kind / hashlib.sha256(url.encode()).hexdigest()[:32] / part


def _checksum(url: str, version: FileVersion, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(f"{url}\n{version.size}\n{version.etag}\n".encode()))


_told: dict[Path, object] = {}
"""Folders of which this process has told that something is wrong with them."""


class RangeCache:
    """Ranges of files, in a folder, up to `limit` bytes of disk; those used longest ago go first."""

    def __init__(self, folder: str, limit: int) -> None:
        self._folder = FolderCache(folder)
        self._limit = limit

    def find(self, url: str, version: FileVersion, ranges: Sequence[ByteRange]) -> list[memoryview | None]:
        """The bytes of each range of this version of a file; None for those that are not kept."""
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
        """Keep ranges; what another process keeps of the same part of the file at the same moment may be lost."""
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


if hasattr(os, "register_at_fork"):  # the parent's thread that holds it is not there to release it
    os.register_at_fork(after_in_child=_new_lock)


def _block_of(byte_range: ByteRange) -> str:
    return str(byte_range.start // BLOCK_BYTES)
