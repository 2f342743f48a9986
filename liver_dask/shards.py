"""Bytes of Zarr v3 shards: chunks encoded one by one, pieces of a shard, and pieces put together.

A shard is its encoded chunks in any order, then an index (for each chunk of the grid, row by row, its offset and length
as little-endian uint64, both 2^64 - 1 where the chunk is empty), then the CRC-32C of the index. A piece is the same for
a part of the grid. Putting pieces together copies bytes and adds to offsets; nothing is decoded.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt
from zarr.codecs import BloscCodec

from .export_plan import Shape

EMPTY = np.iinfo(np.uint64).max
LEVEL = 5
"""zstd 5 takes 5 % off what level 3 writes of real EM, at half its speed, which is still faster than LZW decodes."""

CRC_BYTES = 4
COPIED_AT_ONCE = 4 << 20
PART = ".part"
"""How the name of a file ends that is being written."""
Index = npt.NDArray[np.uint64]


class Piece(NamedTuple):
    """A file that holds the chunks `first` to `first + grid` of a shard's grid."""

    path: Path
    first: Shape
    grid: Shape


def codec_of(dtype: np.dtype[Any]) -> BloscCodec:
    """How a chunk is compressed: Blosc with zstd, on shuffled bytes, or on shuffled bits where a voxel is one byte."""
    return BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=LEVEL, shuffle=_shuffle_of(dtype), blocksize=0)


def encode_chunk(voxels: npt.NDArray[Any], chunk: Shape) -> bytes:
    """Encode what there is of one chunk, filled up with zeros at the array's end; nothing for a chunk of zeros."""
    if not voxels.any():
        return b""
    if voxels.shape != chunk:
        voxels = np.pad(voxels, [(0, whole - there) for whole, there in zip(chunk, voxels.shape, strict=True)])
    little = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    return imagecodecs.blosc_encode(
        little,
        level=LEVEL,
        compressor="zstd",
        shuffle=_shuffle_of(little.dtype),
        typesize=little.itemsize,
        numthreads=1,
    )


def write_piece(path: Path, chunks: Sequence[bytes]) -> None:
    """Write encoded chunks, in the order of their grid, as a piece; it is there whole and durable, or not at all."""
    lengths = np.array([len(chunk) for chunk in chunks], np.uint64)
    index = np.full((len(chunks), 2), EMPTY, "<u8")
    filled = lengths > 0
    index[filled, 0] = (np.cumsum(lengths) - lengths)[filled]
    index[filled, 1] = lengths[filled]
    with DurableFile(path) as file:
        file.writelines(chunks)
        file.write(_with_checksum(index))


def merge_pieces(path: Path, grid: Shape, pieces: Sequence[Piece]) -> None:
    """Put the pieces of a shard together and write it, whole and durable."""
    merged = np.full((*grid, 2), EMPTY, "<u8")
    offset = 0
    with DurableFile(path) as out:
        for piece in pieces:
            with piece.path.open("rb") as file:
                index, length = _read_index(file, piece.grid)
                index[..., 0][index[..., 1] != EMPTY] += np.uint64(offset)
                merged[tuple(slice(at, at + n) for at, n in zip(piece.first, piece.grid, strict=True))] = index
                _copy(file, out, length)
                offset += length
        out.write(_with_checksum(merged))


class DurableFile:
    """A file opened for writing under another name, that gets its own when it is closed whole and on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}{PART}")

    def __enter__(self) -> Any:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)


def _read_index(file: Any, grid: Shape) -> tuple[Index, int]:
    """A piece's index, and the bytes of its chunks."""
    size = int(np.prod(grid)) * 16 + CRC_BYTES
    length = file.seek(-size, os.SEEK_END)
    tail = file.read()
    index = np.frombuffer(tail[:-CRC_BYTES], "<u8").reshape(*grid, 2).copy()
    if _with_checksum(index) != tail:
        raise OSError(f"{file.name} is damaged: the checksum of its index is wrong.")
    return index, length


def _copy(file: Any, out: Any, length: int) -> None:
    file.seek(0)
    while length:
        data = file.read(min(length, COPIED_AT_ONCE))
        out.write(data)
        length -= len(data)


def _with_checksum(index: Index) -> bytes:
    data = index.tobytes()
    return data + google_crc32c.value(data).to_bytes(CRC_BYTES, "little")


def _shuffle_of(dtype: np.dtype[Any]) -> Any:
    return "bitshuffle" if dtype.itemsize == 1 else "shuffle"
