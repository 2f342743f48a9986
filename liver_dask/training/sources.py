"""The arrays that training reads: of a store, or of the archive itself."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..archive.dataset import open_archive
from ..archive.description import Archive
from ..archive.lazy.lazy_window import LazyWindow
from ..core.config import setting
from ..core.geometry import BoundingBox, Shape, crop
from ..core.kinds import RAW, Kind
from ..core.places import Place
from ..core.threads import ContextPool
from ..store.array import StoredArray
from ..store.chunk_cache import ChunkCache, bytes_of_chunk
from ..store.record import layout_of, open_record, read_statistics
from ..store.scales import ScaledImage
from .reuse import Reuse
from .tables import Counts

STREAM_CACHE_GB = 20.0
"""Cache size in GB for the strips of a streamed archive, unless dask's configuration sets another size."""

READERS = 8
"""Number of slices of a streamed patch that are read in parallel."""


class StreamedArray:
    """One variable of a box of the archive, read on access.

    Args:
        lazy: The box. Its pickle is small.

    Attributes:
        shape: Shape (z, y, x) in voxels.
        dtype: Data type of a voxel.
    """

    def __init__(self, lazy: LazyWindow) -> None:
        self._lazy = lazy
        self.dtype = lazy.dtype
        z, y, x = lazy.shape
        self.shape: Shape = z, y, x

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read voxels, with the slices in parallel.

        The threads end with this call, because longer-lived threads would not survive a fork.
        """
        window = LazyWindow(self._lazy.read, self._lazy.window[key], self._lazy.dtype)
        out = np.empty(window.shape, window.dtype)
        with ContextPool(READERS) as pool:
            window.read_slices(slice(None), pool, out)
        return out


@dataclass(frozen=True)
class PatchSource:
    """The arrays that the patches of one box are read from.

    Attributes:
        name: Name in error messages.
        raw: The image.
        labels: One array per class.
        names: Names of the labels.
        tables: For each stored variable, the number of nonzero voxels per chunk, from the store's table. Empty if
            streamed.
        kinds: Kinds of the labels.
        contexts: Raw of the store in larger voxels, for each factor.
    """

    name: str
    raw: StoredArray | StreamedArray
    labels: tuple[StoredArray | StreamedArray, ...]
    names: tuple[str, ...]
    tables: dict[str, Counts]
    kinds: tuple[Kind, ...]
    contexts: tuple[ScaledImage, ...] = ()

    @classmethod
    def stored(
        cls, store: Place, names: tuple[str, ...], factors: Sequence[Shape] = (), cache: ChunkCache | None = None
    ) -> "PatchSource":
        """Open a complete store, and its raw in voxels that are larger by each of the factors (z, y, x)."""
        record = open_record(store)
        layout = layout_of(record)
        tables = {
            name: Counts(read_statistics(store, name, "nonzero"), layout.chunks, layout.shape)
            for name in record["variables"]
        }
        raw, *labels = (StoredArray(store, name, cache) for name in (RAW, *names))
        kinds = tuple(record["variables"][name].get("kind", "mask") for name in names)
        contexts = tuple(ScaledImage(store, RAW, of, cache) for of in factors)
        return cls(str(store), raw, tuple(labels), names, tables, kinds, contexts)

    def reuse(self, times: int, patch: Shape, cache_bytes: int) -> Reuse | None:
        """Return which patches are drawn from the same chunks; None if each patch is drawn on its own."""
        if times == 1:
            return None
        sizes = [array.dtype.itemsize for array in (self.raw, *self.labels)]
        return Reuse.within(times, patch, self.tables[RAW].chunks, sum(sizes), cache_bytes)

    @classmethod
    def streamed(
        cls,
        cache: Path,
        source: str | os.PathLike[str] | None,
        archive: Archive,
        names: tuple[str, ...],
        box: BoundingBox,
    ) -> "PatchSource":
        """Open a box of the archive, without any request."""
        ds = open_archive(
            archive,
            source,
            labels=names,
            cache_dir=setting("cache-dir") or cache,
            cache_raw_gb=setting("cache-raw-gb") or STREAM_CACHE_GB,
        )
        part = crop(ds, box)
        raw, *labels = (StreamedArray(part[name].data.lazy) for name in (RAW, *names))
        kinds = tuple(archive[name].kind for name in names)
        return cls(ds.attrs["source"], raw, tuple(labels), names, {}, kinds)


def stored_sources(
    stores: Sequence[Place], names: tuple[str, ...], factors: Sequence[Shape], cache_bytes: int, reuse: int
) -> list[PatchSource]:
    """Open complete stores, with one cache for all of them if they fit into it, or if chunks are used several times.

    Otherwise a cache would be slower than none: patches rarely meet in a large volume, and without a cache only the
    needed part of a chunk is decoded.
    """
    fit = sum(_decoded_bytes(store, names) for store in stores) <= cache_bytes
    cache = ChunkCache(cache_bytes) if fit or reuse > 1 else None
    return [PatchSource.stored(store, names, factors, cache) for store in stores]


def _decoded_bytes(store: Place, names: tuple[str, ...]) -> int:
    """Return the number of bytes of all decoded chunks of raw and some labels."""
    record = open_record(store)
    layout = layout_of(record)
    chunks = math.prod(-(-length // chunk) for length, chunk in zip(layout.shape, layout.chunks, strict=True))
    sizes = [np.dtype(record["variables"][name]["dtype"]).itemsize for name in (RAW, *names)]
    return chunks * sum(bytes_of_chunk(math.prod(layout.chunks) * size) for size in sizes)
