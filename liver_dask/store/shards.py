"""Bytes of Zarr v3 shards: chunks encoded one by one, kept as slabs, and slabs put together.

A shard is its encoded chunks in any order, then an index (for each chunk of the grid, row by row, its offset and length
as little-endian uint64, both 2^64 - 1 where the chunk is empty), then the CRC-32C of the index. A chunk is a Blosc
buffer and its CRC-32C, which every reader of Zarr compares before it decodes. A slab is alike, for a layer of chunks
one deep and all along x, and its index says besides what is known of the voxels. Putting slabs together copies bytes
and adds to offsets; nothing is decoded. Reading a part of a chunk decodes only the blocks of Blosc that hold it.
"""

import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt
from zarr.codecs import BloscCodec, Crc32cCodec

from ..core.errors import DamagedError
from ..core.geometry import Shape
from .durable import DurableFile

EMPTY = np.iinfo(np.uint64).max


ZSTD_OF_VOXELS: tuple[int, Any] = (5, "shuffle")
"""Level, and how bytes are shuffled first. Level 5 takes 5 % off what level 3 writes of real EM, at half its speed, but
still faster than LZW decodes."""


ZSTD_OF_BYTES: tuple[int, Any] = (3, "noshuffle")
"""For voxels of one byte. Shuffled bits are smaller by a third, of the few percent of a store that masks are, but take
twice as long to encode, and up to five times as long to decode: Blosc has no fast code for that."""


CRC_BYTES = 4


CRC_OF_CHECKED = 0x48674BC7
"""The CRC-32C of any bytes with their own CRC-32C behind them: so both are compared without a copy of the former."""


BLOSC_HEADER = 16


Index = npt.NDArray[np.uint64]


Table = npt.NDArray[np.void]


STATISTICS = np.dtype([("nonzero", "<u4"), ("mean", "<f4"), ("std", "<f4")])
"""What is known of a chunk's voxels, as far as there are voxels in it: how many are not zero; and, but for masks,
mean and standard deviation."""


IN_SLAB = np.dtype([("offset", "<u8"), ("length", "<u8"), ("statistics", STATISTICS), ("", "<u4")])
"""What the index of a slab says of each chunk; as many bytes as four uint64."""


MEMCPYED = 0x02
"""The flag of a Blosc buffer whose voxels are not compressed."""


class Chunk(NamedTuple):
    """An encoded chunk, and what is known of its voxels (of STATISTICS)."""

    data: bytes
    statistics: npt.NDArray[np.void]


class Slab(NamedTuple):
    """A file that holds a layer of chunks: those from row `y` on of layer `z` of a shard's grid, all along x."""

    path: Path
    z: int
    y: int
    grid: tuple[int, int]


class Checksum(NamedTuple):
    """What a file is known by: its bytes and their CRC-32C."""

    size: int
    crc32c: int


def codecs_of(dtype: np.dtype[Any]) -> list[BloscCodec | Crc32cCodec]:
    """How a chunk is compressed and protected, as zarr's metadata say it."""
    level, shuffle = _zstd_of(dtype)
    blosc = BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=level, shuffle=shuffle, blocksize=0)
    return [blosc, Crc32cCodec()]


def encode_chunk(voxels: npt.NDArray[Any], chunk: Shape, *, has_means: bool = True) -> Chunk:
    """Encode what there is of one chunk, filled up with zeros at the array's end; nothing where all bits are zero.

    Readers take 0 for what is left out; -0.0, whose sign they would lose by that, is kept.
    """
    little = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    statistics = statistics_of(little, has_means=has_means)  # of neighbouring bytes: that is three times as fast
    if not statistics["nonzero"] and not (little.dtype.kind == "f" and little.view(np.uint8).any()):
        return Chunk(b"", statistics)
    if little.shape != chunk:
        little = np.pad(little, [(0, whole - there) for whole, there in zip(chunk, little.shape, strict=True)])
    level, shuffle = _zstd_of(little.dtype)
    data = imagecodecs.blosc_encode(
        little,
        level=level,
        compressor="zstd",
        shuffle=shuffle,
        typesize=little.itemsize,
        numthreads=1,
    )
    return Chunk(data + _crc32c(data), statistics)


def decode_chunk(data: bytes, dtype: np.dtype[Any], chunk: Shape, *, has_checksum: bool = True) -> npt.NDArray[Any]:
    """Undo `encode_chunk`; DamagedError where the bytes are not a chunk.

    Args:
        data: What `encode_chunk` made.
        dtype: Of a voxel.
        chunk: Voxels of the chunk.
        has_checksum: Whether it ends with one, as all do since format 4 of a store.
    """
    if not data:
        return np.zeros(chunk, dtype.newbyteorder("<"))
    return _decode_chunk(_checked(data) if has_checksum else data, dtype, chunk)


def _decode_chunk(data: bytes | memoryview, dtype: np.dtype[Any], chunk: Shape) -> npt.NDArray[Any]:
    voxels = _decode(data)
    try:
        return np.frombuffer(voxels, dtype.newbyteorder("<")).reshape(chunk)
    except ValueError as error:
        raise DamagedError(f"a chunk cannot be decoded ({error})") from error


def _decode(data: bytes | memoryview) -> Any:
    try:
        return imagecodecs.blosc_decode(data, numthreads=1)
    except (imagecodecs.BloscError, SystemError) as error:  # the latter of a size below 0
        raise DamagedError(f"a chunk cannot be decoded ({error})") from error


def decode_planes(
    data: bytes, dtype: np.dtype[Any], chunk: Shape, planes: slice, *, has_checksum: bool = True
) -> npt.NDArray[Any]:
    """Some planes along z of a chunk: only the blocks of Blosc that hold them are decoded; see `decode_chunk`.

    A Blosc buffer is a header (flags at byte 2; bytes of voxels, of a block, and of the buffer from byte 4), the place
    of each block, and the blocks, each encoded for itself: some neighbouring blocks are a buffer again.

    Raises:
        DamagedError: The bytes are not a chunk.
    """
    content = _checked(data) if has_checksum else data
    plane = chunk[1] * chunk[2] * dtype.itemsize
    begin, end = planes.start * plane, planes.stop * plane
    try:
        skipped, blocks = _some_blocks(content, chunk[0] * plane, begin, end)
    except (ValueError, struct.error) as error:
        raise DamagedError(f"a chunk cannot be decoded ({error})") from error
    if skipped is None:
        return _decode_chunk(blocks, dtype, chunk)[planes]
    voxels = np.frombuffer(_decode(blocks), np.uint8)[begin - skipped : end - skipped]
    if len(voxels) != end - begin:
        raise DamagedError("a chunk cannot be decoded (it is too short)")
    return voxels.view(dtype.newbyteorder("<")).reshape(planes.stop - planes.start, *chunk[1:])


def _some_blocks(data: bytes | memoryview, whole: int, begin: int, end: int) -> tuple[int | None, bytes | memoryview]:
    """Of a Blosc buffer of `whole` bytes one of the blocks that hold bytes `begin` to `end`; how many bytes it skips.

    All of it, and None, where blocks cannot be told apart: one thread leaves them in their order, others need not.
    """
    if len(data) <= BLOSC_HEADER or data[2] & MEMCPYED:
        return None, data
    size, block = struct.unpack_from("<II", data, 4)
    if size != whole or not 0 < block < size:
        return None, data
    count = -(-size // block)
    first, last = begin // block, -(-end // block)
    if first == count - 1 and size % block:
        first -= 1  # a buffer is no shorter than a block
    if (first, last) == (0, count):
        return None, data
    places = np.append(np.frombuffer(data, "<i4", count, BLOSC_HEADER), len(data)).astype(np.int64)
    if (np.diff(places) <= 0).any():
        return None, data
    blocks = data[places[first] : places[last]]
    moved = places[first:last] - places[first] + BLOSC_HEADER + 4 * (last - first)
    sizes = struct.pack("<III", min(last * block, size) - first * block, block, int(moved[0]) + len(blocks))
    return first * block, b"".join((data[:4], sizes, moved.astype("<i4").tobytes(), blocks))


def write_slab(path: Path, chunks: Sequence[Chunk]) -> None:
    """Write encoded chunks, row by row, as a slab; it is there whole and durable, or not at all."""
    index = np.zeros(len(chunks), IN_SLAB)
    index["length"] = lengths = np.array([len(chunk.data) for chunk in chunks], np.uint64)
    index["offset"] = np.cumsum(lengths) - lengths
    index["statistics"] = [chunk.statistics for chunk in chunks]
    with DurableFile(path) as file:
        file.writelines(chunk.data for chunk in chunks)
        file.write(_with_checksum(index))


def merge_slabs(path: Path, part: Path, grid: Shape, slabs: Iterable[Slab], x_chunks: slice) -> tuple[Checksum, Table]:
    """Put the part of some slabs that lies in one shard together and write the shard, whole and durable.

    Args:
        path: The shard to write.
        part: Its name until it is whole.
        grid: Chunks (z, y, x) of a shard.
        slabs: All slabs that hold chunks of it.
        x_chunks: Which chunks along x of the slabs are the shard's.

    Returns:
        Size and checksum of the shard, and what is known of its chunks: STATISTICS for each of its grid.

    Raises:
        DamagedError: A slab does not hold the bytes that were written to it.
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
        end = _with_checksum(merged)
        out.write(end)
    return Checksum(offset + len(end), google_crc32c.extend(checksum, end)), known


def read_shard_index(file: Any, grid: Shape) -> Index:
    """The offset and length of each chunk of a shard, (z, y, x, 2).

    Raises:
        DamagedError: The index is not what was written, or points out of the file.
    """
    index, begins = _read_index(file, (*grid, 2), np.dtype("<u8"))
    offsets, lengths = (column[index[..., 1] != EMPTY] for column in (index[..., 0], index[..., 1]))
    if ((offsets > begins) | (lengths > begins) | (offsets + lengths > begins)).any():
        raise DamagedError("its index points out of the file")
    return index


TORN = re.compile(r"\..+\.[0-9a-f]{8}")
"""How a DurableFile is named before it is whole; so it stays where its process is killed."""


def statistics_of(voxels: npt.NDArray[Any], *, has_means: bool) -> npt.NDArray[np.void]:
    """What is known of a chunk's voxels, see STATISTICS; mean and deviation only if that is wanted."""
    known = np.zeros((), STATISTICS)
    known["nonzero"] = np.count_nonzero(voxels)
    if known["nonzero"] and has_means:
        with np.errstate(all="ignore"):  # a computed variable may hold what has no mean
            values = voxels.reshape(-1).astype(np.float32)  # half the time of float64; numpy adds pairwise
            known["mean"] = mean = values.mean()
            values -= mean
            known["std"] = np.sqrt(np.square(values, out=values).mean())
    return known


def _read_slab_index(file: Any, grid: tuple[int, int]) -> Table:
    try:
        return _read_index(file, grid, IN_SLAB)[0]
    except DamagedError as error:
        raise DamagedError(f"{file.name} is damaged: {error}.") from error


def _read_chunk(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    chunk: bytes = file.read(length)
    try:
        _checked(chunk)
    except DamagedError as error:
        raise DamagedError(f"{file.name} is damaged: {error}.") from error
    return chunk


def _read_index(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """The index at the end of a file, and where it begins."""
    size = math.prod(shape) * dtype.itemsize + CRC_BYTES
    if file.seek(0, os.SEEK_END) < size:
        raise DamagedError("it is cut short")
    begins = file.seek(-size, os.SEEK_END)
    tail = file.read()
    index = np.frombuffer(tail[:-CRC_BYTES], dtype).reshape(shape)
    if _with_checksum(index) != tail:
        raise DamagedError("the checksum of its index is wrong")
    return index, begins


def _with_checksum(index: npt.NDArray[Any]) -> bytes:
    data = index.tobytes()
    return data + _crc32c(data)


def _crc32c(data: bytes) -> bytes:
    """The CRC-32C of some bytes, as Zarr's codec puts it behind them."""
    return google_crc32c.value(data).to_bytes(CRC_BYTES, "little")


def _checked(data: bytes) -> memoryview:
    """What lies before the checksum at the end; DamagedError if that is not its checksum."""
    if len(data) <= CRC_BYTES or google_crc32c.value(data) != CRC_OF_CHECKED:
        raise DamagedError("a chunk is not as it was written: its checksum is wrong")
    return memoryview(data)[:-CRC_BYTES]


def _zstd_of(dtype: np.dtype[Any]) -> tuple[int, Any]:
    return ZSTD_OF_BYTES if dtype.itemsize == 1 else ZSTD_OF_VOXELS
