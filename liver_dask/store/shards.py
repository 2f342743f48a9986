"""Encode and decode the bytes of Zarr v3 shards: encode chunks, write them as slabs, and merge slabs into shards.

A shard consists of three parts:

- The encoded chunks, in any order.
- The index. It contains, for each chunk of the grid, row by row, the offset and length as little-endian uint64. Both
  are 2^64 - 1 where the chunk is empty.
- The CRC-32C of the index.

A chunk is a Blosc buffer followed by its CRC-32C, which every Zarr reader verifies before it decodes. A slab has the
same structure, for a layer of chunks that is one chunk deep and spans x. Its index also contains the statistics of the
voxels. Merging slabs copies bytes and shifts offsets; nothing is decoded. Reading a part of a chunk decodes only the
Blosc blocks that contain it.
"""

import math
import os
import struct
from typing import Any, NamedTuple

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt
from zarr.codecs import BloscCodec, Crc32cCodec

from ..core.errors import DamagedError
from ..core.geometry import Shape
from ..core.places import Place

EMPTY = np.iinfo(np.uint64).max


ZSTD_OF_VOXELS: tuple[int, Any] = (5, "shuffle")
"""Compression level, and how bytes are shuffled first. On real EM, the output of level 5 is 5 % smaller than that of
level 3. Level 5 encodes at half the speed, which is still faster than LZW decoding."""


ZSTD_OF_BYTES: tuple[int, Any] = (3, "noshuffle")
"""The same for voxels of one byte. Bit shuffling would make masks, which are a few percent of a store, smaller by a
third. But it takes twice as long to encode and up to five times as long to decode: Blosc has no fast code for it."""


CRC_BYTES = 4


CRC_OF_CHECKED = 0x48674BC7
"""The CRC-32C of any bytes followed by their own CRC-32C. It allows a check without a copy of the bytes."""


BLOSC_HEADER = 16


Index = npt.NDArray[np.uint64]


STATISTICS = np.dtype([("nonzero", "<u4"), ("mean", "<f4"), ("std", "<f4")])
"""Statistics of the voxels of a chunk that lie within the array: number of nonzero voxels and, except for masks, mean
and standard deviation."""


MEMCPYED = 0x02
"""Flag of a Blosc buffer whose bytes are not compressed."""


class Chunk(NamedTuple):
    """An encoded chunk, and the STATISTICS of its voxels."""

    data: bytes
    statistics: npt.NDArray[np.void]


class Checksum(NamedTuple):
    """Number of bytes of a file and their CRC-32C."""

    size: int
    crc32c: int


def codecs_of(dtype: np.dtype[Any]) -> list[BloscCodec | Crc32cCodec]:
    """Return the zarr codecs that compress a chunk and add its checksum."""
    level, shuffle = _zstd_of(dtype)
    blosc = BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=level, shuffle=shuffle, blocksize=0)
    return [blosc, Crc32cCodec()]


def encode_chunk(voxels: npt.NDArray[Any], chunk: Shape, *, has_means: bool = True) -> Chunk:
    """Encode one chunk, padded with zeros at the end of the array. If all bits are zero, the result has no bytes.

    Readers fill omitted chunks with 0. A chunk that contains -0.0 is encoded, because its sign would be lost otherwise.

    Args:
        voxels: The voxels (z, y, x) of the chunk that lie within the array.
        chunk: Voxels (z, y, x) per chunk.
        has_means: Whether to compute mean and standard deviation.
    """
    little = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    statistics = statistics_of(little, has_means=has_means)  # contiguous bytes are three times as fast
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
    return Chunk(data + crc32c_of(data), statistics)


def decode_chunk(data: bytes, dtype: np.dtype[Any], chunk: Shape, *, has_checksum: bool = True) -> npt.NDArray[Any]:
    """Decode the bytes of `encode_chunk`.

    Args:
        data: The encoded chunk.
        dtype: Data type of a voxel.
        chunk: Voxels (z, y, x) per chunk.
        has_checksum: Whether the bytes end with a checksum, as all chunks do since store format 4.

    Returns:
        The voxels (z, y, x), little-endian.

    Raises:
        DamagedError: The bytes are not a chunk.
    """
    if not data:
        return np.zeros(chunk, dtype.newbyteorder("<"))
    return _decode_chunk(checked(data) if has_checksum else data, dtype, chunk)


def _decode_chunk(data: bytes | memoryview, dtype: np.dtype[Any], chunk: Shape) -> npt.NDArray[Any]:
    voxels = _decode(data)
    try:
        return np.frombuffer(voxels, dtype.newbyteorder("<")).reshape(chunk)
    except ValueError as error:
        raise DamagedError(f"a chunk cannot be decoded ({error})") from error


def _decode(data: bytes | memoryview) -> Any:
    try:
        return imagecodecs.blosc_decode(data, numthreads=1)
    except (imagecodecs.BloscError, SystemError) as error:  # SystemError for a size below 0
        raise DamagedError(f"a chunk cannot be decoded ({error})") from error


def decode_planes(
    data: bytes, dtype: np.dtype[Any], chunk: Shape, planes: slice, *, has_checksum: bool = True
) -> npt.NDArray[Any]:
    """Decode some planes along z of a chunk. Only the Blosc blocks that contain them are decoded.

    A Blosc buffer consists of a header, the offset of each block, and the blocks. The header has the flags at byte 2,
    and from byte 4 the sizes of the voxels, of a block and of the buffer. Each block is encoded independently, so some
    adjacent blocks with a new header and offsets form a valid buffer.

    Args:
        data: The encoded chunk.
        dtype: Data type of a voxel.
        chunk: Voxels (z, y, x) per chunk.
        planes: The planes along z, with start and stop.
        has_checksum: Whether the bytes end with a checksum; see `decode_chunk`.

    Returns:
        The voxels (z, y, x) of the planes, little-endian.

    Raises:
        DamagedError: The bytes are not a chunk.
    """
    content = checked(data) if has_checksum else data
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
    """Build a smaller Blosc buffer of the blocks that contain the decoded bytes `begin` to `end`.

    Args:
        data: A Blosc buffer.
        whole: Its size when decoded.
        begin: First decoded byte that is needed.
        end: Last decoded byte that is needed, plus one.

    Returns:
        The number of decoded bytes before the new buffer, and the buffer. If all blocks are needed or cannot be
        separated, None and the unchanged `data`. Blocks can only be separated if they are stored in order. One encoding
        thread stores them in order; several threads need not.
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


def read_shard_index(file: Any, grid: Shape) -> Index:
    """Read the offset and length of each chunk of a shard, as an array (z, y, x, 2).

    Raises:
        DamagedError: The index is not what was written, or points outside the file.
    """
    index, begins = read_index(file, (*grid, 2), np.dtype("<u8"))
    offsets, lengths = (column[index[..., 1] != EMPTY] for column in (index[..., 0], index[..., 1]))
    if ((offsets > begins) | (lengths > begins) | (offsets + lengths > begins)).any():
        raise DamagedError("its index points out of the file")
    return index


def read_row(shard: Place, grid: Shape, dtype: np.dtype[Any], chunk: Shape, z: int, y: int) -> npt.NDArray[Any]:
    """Decode one row of a shard, as long as its chunks are wide together.

    Args:
        shard: The file of the shard.
        grid: Chunks (z, y, x) per shard.
        dtype: Data type of a voxel.
        chunk: Voxels (z, y, x) per chunk.
        z: The slice of the row, counted from the start of the store.
        y: The row, counted in the same way.

    Raises:
        DamagedError: The shard is damaged.
    """
    row = np.zeros(grid[2] * chunk[2], dtype)
    place = z // chunk[0] % grid[0], y // chunk[1] % grid[1]
    with shard.open("rb") as file:
        for x, (offset, length) in enumerate(read_shard_index(file, grid)[place].tolist()):
            if offset != EMPTY:
                file.seek(offset)
                planes = decode_planes(file.read(length), dtype, chunk, slice(z % chunk[0], z % chunk[0] + 1))
                row[x * chunk[2] : (x + 1) * chunk[2]] = planes[0, y % chunk[1]]
    return row


def statistics_of(voxels: npt.NDArray[Any], *, has_means: bool) -> npt.NDArray[np.void]:
    """Compute the STATISTICS of a chunk's voxels; mean and standard deviation only if `has_means`."""
    known = np.zeros((), STATISTICS)
    known["nonzero"] = np.count_nonzero(voxels)
    if known["nonzero"] and has_means:
        with np.errstate(all="ignore"):  # a computed variable may contain values without a mean
            values = voxels.reshape(-1).astype(np.float32)  # half the time of float64; numpy adds pairwise
            known["mean"] = mean = values.mean()
            values -= mean
            known["std"] = np.sqrt(np.square(values, out=values).mean())
    return known


def read_index(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """Return the index at the end of a file, and the offset where it begins."""
    size = math.prod(shape) * dtype.itemsize + CRC_BYTES
    if file.seek(0, os.SEEK_END) < size:
        raise DamagedError("it is cut short")
    begins = file.seek(-size, os.SEEK_END)
    return index_in(file.read(), shape, dtype), begins


def index_in(tail: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the index that the last bytes of a file hold with their checksum.

    Raises:
        DamagedError: They do not.
    """
    if len(tail) != math.prod(shape) * dtype.itemsize + CRC_BYTES:
        raise DamagedError("it is cut short")
    index = np.frombuffer(tail[:-CRC_BYTES], dtype).reshape(shape)
    if with_checksum(index) != tail:
        raise DamagedError("the checksum of its index is wrong")
    return index


def with_checksum(index: npt.NDArray[Any]) -> bytes:
    """Return the bytes of an index, followed by their checksum."""
    data = index.tobytes()
    return data + crc32c_of(data)


def crc32c_of(data: bytes) -> bytes:
    """Return the CRC-32C of some bytes in the form that Zarr's codec appends."""
    return google_crc32c.value(data).to_bytes(CRC_BYTES, "little")


def checked(data: bytes) -> memoryview:
    """Return the bytes before the checksum at the end; raise DamagedError if the checksum does not match."""
    if len(data) <= CRC_BYTES or google_crc32c.value(data) != CRC_OF_CHECKED:
        raise DamagedError("a chunk is not as it was written: its checksum is wrong")
    return memoryview(data)[:-CRC_BYTES]


def _zstd_of(dtype: np.dtype[Any]) -> tuple[int, Any]:
    return ZSTD_OF_BYTES if dtype.itemsize == 1 else ZSTD_OF_VOXELS
