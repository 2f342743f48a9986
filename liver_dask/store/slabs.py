"""Slabs: the encoded chunks of a region, written one by one and merged into shards. Nothing is decoded."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ..core.errors import DamagedError
from ..core.geometry import Shape
from .durable import DurableFile
from .shards import EMPTY, STATISTICS, Checksum, Chunk, checked, decode_chunk, read_index, with_checksum

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

    path: Path
    z: int
    y: int
    grid: tuple[int, int]


def write_slab(path: Path, chunks: Sequence[Chunk]) -> None:
    """Write encoded chunks, row by row, as a slab. The file appears only when it is complete and durable."""
    index = np.zeros(len(chunks), IN_SLAB)
    index["length"] = lengths = np.array([len(chunk.data) for chunk in chunks], np.uint64)
    index["offset"] = np.cumsum(lengths) - lengths
    index["statistics"] = [chunk.statistics for chunk in chunks]
    with DurableFile(path) as file:
        file.writelines(chunk.data for chunk in chunks)
        file.write(with_checksum(index))


def merge_slabs(path: Path, part: Path, grid: Shape, slabs: Iterable[Slab], x_chunks: slice) -> tuple[Checksum, Table]:
    """Merge those chunks of some slabs that belong to one shard, and write the shard completely and durably.

    Args:
        path: The shard to write.
        part: Temporary name of the file until it is complete.
        grid: Chunks (z, y, x) per shard.
        slabs: All slabs that contain chunks of the shard.
        x_chunks: The chunks along x of the slabs that belong to the shard.

    Returns:
        Size and checksum of the shard, and the STATISTICS of each chunk of its grid.

    Raises:
        DamagedError: A slab does not contain the bytes that were written to it.
    """
    merged, known = np.full((*grid, 2), EMPTY, "<u8"), np.zeros(grid, STATISTICS)
    offset, checksum = 0, 0
    with DurableFile(path, part) as out:
        for slab in slabs:
            with slab.path.open("rb") as file:
                for y, row in enumerate(_read_slab_index(file, slab.grid)[:, x_chunks], start=slab.y):
                    known[slab.z, y, : len(row)] = row["statistics"]
                    for x, (start, length, *_) in enumerate(row.tolist()):
                        if not length:
                            continue
                        chunk = _read_chunk(file, start, length)
                        out.write(chunk)
                        checksum = google_crc32c.extend(checksum, chunk)
                        merged[slab.z, y, x] = offset, length
                        offset += length
        end = with_checksum(merged)
        out.write(end)
    return Checksum(offset + len(end), google_crc32c.extend(checksum, end)), known


def read_first_row(path: Path, grid: tuple[int, int], dtype: np.dtype[Any], chunk: Shape) -> npt.NDArray[Any]:
    """Decode the first row of a slab, of its first slice; as long as its chunks are wide together.

    Raises:
        DamagedError: The slab is damaged.
    """
    row = np.zeros(grid[1] * chunk[2], dtype)
    with path.open("rb") as file:
        index = _read_slab_index(file, grid)[0]
        for i, (offset, length) in enumerate(zip(index["offset"].tolist(), index["length"].tolist(), strict=True)):
            if length:
                file.seek(offset)
                row[i * chunk[2] : (i + 1) * chunk[2]] = decode_chunk(file.read(length), dtype, chunk)[0, 0]
    return row


def _read_slab_index(file: Any, grid: tuple[int, int]) -> Table:
    try:
        return read_index(file, grid, IN_SLAB)[0]
    except DamagedError as error:
        raise DamagedError(f"{file.name} is damaged: {error}.") from error


def _read_chunk(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    chunk: bytes = file.read(length)
    try:
        checked(chunk)
    except DamagedError as error:
        raise DamagedError(f"{file.name} is damaged: {error}.") from error
    return chunk
