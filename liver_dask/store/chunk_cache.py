"""A cache of decoded chunks with a limit of bytes: the chunks that were not used for the longest time leave first.

It may be used on several threads, and in a forked process, which begins with the chunks of its parent.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

Chunk = npt.NDArray[Any] | None
"""The voxels of a chunk; None if all are 0."""

OF_EMPTY = 256
"""Bytes that are counted for a chunk besides its voxels."""


class ChunkCache:
    """Decoded chunks, by a key.

    A copy that was pickled begins empty.

    Args:
        limit: Maximum number of bytes.

    Attributes:
        nbytes: Number of bytes of all chunks.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._chunks: OrderedDict[Hashable, Chunk] = OrderedDict()
        self._renew_lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkCache, (self.limit,)

    def get(self, key: Hashable, decode: Callable[[], Chunk]) -> Chunk:
        """Return a chunk; decode it if it is not here. Several threads may decode the same chunk at once."""
        with self._locked():
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
        chunk = decode()
        if chunk is not None:
            chunk.flags.writeable = False
        with self._locked():
            if key not in self._chunks and _bytes_of(chunk) <= self.limit:
                self._chunks[key] = chunk
                self.nbytes += _bytes_of(chunk)
                while self.nbytes > self.limit:
                    self.nbytes -= _bytes_of(self._chunks.popitem(last=False)[1])
        return chunk

    def __contains__(self, key: Hashable) -> bool:
        """Return whether a chunk is here; another thread may remove it a moment later."""
        return key in self._chunks

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():  # a thread of the parent may have held the lock when this process was forked
            self._renew_lock()
        return self._lock

    def _renew_lock(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()


def bytes_of_chunk(voxels: int) -> int:
    """Return the number of bytes that are counted for a chunk with so many bytes of voxels."""
    return OF_EMPTY + voxels


def _bytes_of(chunk: Chunk) -> int:
    return bytes_of_chunk(0 if chunk is None else chunk.nbytes)
