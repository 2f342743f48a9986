"""A Dataset as a Zarr v3 store that is made as it is read: metadata from the start, chunks when they are asked for."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

import cachetools
import numpy as np
import xarray as xr
from numcodecs.zstd import Zstd
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from ..core.errors import LiverDaskError
from ..core.geometry import Shape
from ..core.threads import ContextPool
from .ahead import ReaderAhead
from .documents import ROOT, Documents
from .rows import RowReader
from .scales import ServedScale

log = logging.getLogger(__name__)

THREADS = 16
"""Number of slices that are read at the same time, of all variables."""

CACHED_BYTES = 128 << 20
"""Bytes of chunks that stay in memory for viewers that return to a place."""

_zstd = Zstd(level=1)


class DatasetStore(Store):
    """A read-only Zarr store of a Dataset, as OME-Zarr 0.5 with multiscales and labels. Nothing is written anywhere.

    Args:
        ds: The Dataset; see `liver_dask.as_zarr`.
    """

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, ds: xr.Dataset) -> None:
        super().__init__(read_only=True)
        self._ds = ds
        self._documents = Documents(ds)
        self._pool = ContextPool(THREADS, "liver_dask-serve")
        self._rows = {name: RowReader(ds[name], self._pool) for name in self._documents.names}
        self._ahead = ReaderAhead(self._documents.scales, self._rows)
        self._chunks: cachetools.LRUCache[tuple[ServedScale, Shape], bytes] = cachetools.LRUCache(CACHED_BYTES, len)
        self._lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetStore, (self._ds,)

    def __str__(self) -> str:
        return f"liver_dask://{id(self)}"

    def close(self) -> None:
        """Cancel all reads."""
        super().close()
        self._ahead.close()
        for rows in self._rows.values():
            rows.close()
        self._pool.give_up()

    def begin(self, z: int) -> None:
        """Begin to read the last scale of a slice from its files, in the background: viewers begin with it.

        Args:
            z: The slice, an index in the Dataset.
        """
        for name, rows in self._rows.items():
            rows.begin(z, self._documents.scales[name][-1].factor)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key; None if there is no such key.

        Raises:
            LiverDaskError: The source could not be read. The message names the file, the slice and the rows.
        """
        content = await self.read(key)
        if content is None:
            return None
        start, stop = _range_of(byte_range, len(content))
        return (prototype or default_buffer_prototype()).buffer.from_bytes(content[start:stop])

    async def read(self, key: str) -> bytes | None:
        """Return the bytes of a key; None if there is no such key. A cancelled call cancels the read."""
        chunk = self._documents.chunk_of(key)
        if chunk is not None:
            return await self._chunk(*chunk)
        if key == ROOT:
            try:
                await self.find_contrast()
            except LiverDaskError as error:  # the voxels may be there all the same
                log.warning("There is no contrast: %s", error)
        return self._documents.read(key)

    async def find_contrast(self) -> None:
        """Find the contrast of the image, from rows of a slice in the middle, or of another one if that fails.

        They are the rows of the last scale, with which viewers begin, so that they cost nothing more.

        Raises:
            LiverDaskError: None of these slices can be read.
        """
        image = self._documents.image
        if image is None or self._documents.has_contrast:
            return
        depth, height, width = self._ds[image].shape
        rows = np.arange(0, height, self._documents.scales[image][-1].factor)
        failed: LiverDaskError | None = None
        for z in dict.fromkeys((depth // 2, depth // 4, 3 * depth // 4)):
            try:
                pixels = await asyncio.wrap_future(self._rows[image].ask(z, rows, slice(0, width)))
            except LiverDaskError as error:
                failed = failed or error
            else:
                self._documents.set_contrast(pixels)
                return
        assert failed is not None
        raise failed

    async def read_for_viewer(self, key: str) -> bytes | None:
        """Return the bytes of a key as `read` does; when nothing more is asked for, the next slice is read."""
        chunk = self._documents.chunk_of(key)
        if chunk is None:
            return await self.read(key)
        self._ahead.begin(*chunk)
        content = None
        try:
            content = await self._chunk(*chunk)
        finally:
            self._ahead.end(is_answered=content is not None)
        return content

    async def _chunk(self, scale: ServedScale, place: Shape) -> bytes:
        with self._lock:
            known = self._chunks.get((scale, place))
        if known is not None:
            return known
        rows, columns = scale.rows(place), scale.columns(place)
        pixels = await asyncio.wrap_future(self._rows[scale.name].ask(place[0], rows, columns))
        content = await asyncio.to_thread(_encoded, scale, pixels, place)
        with self._lock:
            self._chunks[scale, place] = content
        return content

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return the bytes of several keys, see `get`."""
        return await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges))

    async def exists(self, key: str) -> bool:
        """Return whether there is a key. No voxel is read."""
        return self._documents.chunk_of(key) is not None or self._documents.has(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    async def set_partial_values(self, key_start_values: Iterable[tuple[str, int, Any]]) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield the keys of the metadata and coordinates; those of chunks follow from the metadata."""
        for key in self._documents.keys:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with a prefix, see `list`."""
        for key in self._documents.keys:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names that follow a prefix."""
        prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        names = {key[len(prefix) :].split("/")[0] for key in self._documents.keys if key.startswith(prefix)}
        for name in sorted(names):
            yield name


def _encoded(scale: ServedScale, pixels: Any, place: Shape) -> bytes:
    voxels = scale.voxels(pixels, place)
    content = np.asarray(voxels, voxels.dtype.newbyteorder("<")).tobytes()
    return content if scale.kind == "image" else bytes(_zstd.encode(content))


def _range_of(byte_range: ByteRequest | None, length: int) -> tuple[int, int]:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, length
    if isinstance(byte_range, SuffixByteRequest):
        return max(length - byte_range.suffix, 0), length
    return 0, length
