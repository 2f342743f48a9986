"""Slabs: the encoded chunks of a region, written one by one and merged into shards. Nothing is decoded."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ..core.crc32c import joined
from ..core.errors import DamagedError
from ..core.geometry import Shape
from ..core.places import Place, tail_of
from ..core.threads import ContextPool
from .shards import CRC_BYTES, CRC_OF_CHECKED, EMPTY, STATISTICS, Checksum, Chunk, decode_chunk, index_in, with_checksum
from .storage.access import storage_of
from .storage.interface import Extent
from .storage.parts import LEAST

SLABS_AT_ONCE = 8
"""How many indexes of slabs are read at the same time: in object storage, each is a request."""

Table = npt.NDArray[np.void]


IN_SLAB = np.dtype([("offset", "<u8"), ("length", "<u8"), ("statistics", STATISTICS), ("", "<u4")])
"""Entry of a slab's index for each chunk; as long as four uint64."""


class Slab(NamedTuple):
    """A file with a layer of encoded chunks, one chunk deep, across all of x.

    Attributes:
        path: The file.
        z: Layer in the chunk grid of the shard.
        y: First row in the chunk grid of the shard.
        grid: Chunks (y, x) of the slab.
    """

    path: Place
    z: int
    y: int
    grid: tuple[int, int]


def write_slab(path: Place, chunks: Sequence[Chunk], grid: tuple[int, int], columns: int) -> None:
    """Write encoded chunks as a slab. The file appears only when it is complete and durable.

    Chunks of the same shard are next to each other in the file, so that they are one extent of it.

    Args:
        path: The slab.
        chunks: The chunks, row by row.
        grid: Chunks (y, x) of the slab.
        columns: Chunks along x of a shard.
    """
    order = np.argsort(np.arange(len(chunks)) % grid[1] // columns, kind="stable")
    index = np.zeros(len(chunks), IN_SLAB)
    index["length"] = lengths = np.array([len(chunk.data) for chunk in chunks], np.uint64)
    index["offset"][order] = np.cumsum(lengths[order]) - lengths[order]
    index["statistics"] = [chunk.statistics for chunk in chunks]
    storage_of(path).write(path, [*(chunks[i].data for i in order), with_checksum(index)])


def merge_slabs(
    path: Place, part: Place, grid: Shape, slabs: Iterable[Slab], x_chunks: slice
) -> tuple[Checksum, Table]:
    """Merge those chunks of some slabs that belong to one shard, and write the shard completely and durably.

    Args:
        path: The shard to write.
        part: Temporary name of the file until it is complete, where one is needed.
        grid: Chunks (z, y, x) per shard.
        slabs: All slabs that contain chunks of the shard.
        x_chunks: The chunks along x of the slabs that belong to the shard.

    Returns:
        Size and checksum of the shard, and the STATISTICS of each chunk of its grid.

    Raises:
        DamagedError: A slab does not contain the bytes that were written to it.
    """
    merged, known = np.full((*grid, 2), EMPTY, "<u8"), np.zeros(grid, STATISTICS)
    extents: list[Extent] = []
    offset, checksum = 0, 0
    slabs = list(slabs)
    with ContextPool(SLABS_AT_ONCE) as pool:
        indexes = list(pool.map(_read_slab_index, slabs))
    of_shard = [index[:, x_chunks] for index in indexes]
    is_short = [int(index["length"].sum()) < LEAST for index in of_shard]  # such parts cannot be copied within S3 ...
    for i in np.argsort(is_short, kind="stable"):  # ... except at the end, where the index is uploaded anyway
        slab = slabs[i]
        for y, row in enumerate(of_shard[i], start=slab.y):
            known[slab.z, y, : len(row)] = row["statistics"]
            for x, (start, length, *_) in enumerate(row.tolist()):
                if length:
                    extents.append(Extent(slab.path, start, length))
                    checksum = joined(checksum, CRC_OF_CHECKED, length)
                    merged[slab.z, y, x] = offset, length
                    offset += length
    end = with_checksum(merged)
    storage_of(path).write(path, [*extents, end], part)
    return Checksum(offset + len(end), joined(checksum, google_crc32c.value(end), len(end))), known


def read_first_row(path: Place, grid: tuple[int, int], dtype: np.dtype[Any], chunk: Shape) -> npt.NDArray[Any]:
    """Decode the first row of a slab, of its first slice; as long as its chunks are wide together.

    Raises:
        DamagedError: The slab is damaged.
    """
    row = np.zeros(grid[1] * chunk[2], dtype)
    index = _read_slab_index(Slab(path, 0, 0, grid))[0]
    with path.open("rb") as file:
        for i, (offset, length) in enumerate(zip(index["offset"].tolist(), index["length"].tolist(), strict=True)):
            if length:
                file.seek(offset)
                row[i * chunk[2] : (i + 1) * chunk[2]] = decode_chunk(file.read(length), dtype, chunk)[0, 0]
    return row


def _read_slab_index(slab: Slab) -> Table:
    try:
        return index_in(tail_of(slab.path, math.prod(slab.grid) * IN_SLAB.itemsize + CRC_BYTES), slab.grid, IN_SLAB)
    except DamagedError as error:
        raise DamagedError(f"{slab.path} is damaged: {error}.") from error
