"""Bytes of Zarr v3 shards: chunks encoded one by one, kept as slabs, and slabs put together.

A shard is its encoded chunks in any order, then an index (for each chunk of the grid, row by row, its offset and length
as little-endian uint64, both 2^64 - 1 where the chunk is empty), then the CRC-32C of the index. A slab is alike, for a
layer of chunks one deep and all along x, and its index has the CRC-32C of each chunk besides: what is put into a shard
is what was encoded. Putting slabs together copies bytes and adds to offsets; nothing is decoded.
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt
from zarr.codecs import BloscCodec

from .errors import DamagedError
from .export_plan import Shape

EMPTY = np.iinfo(np.uint64).max
LEVEL = 5
"""zstd 5 takes 5 % off what level 3 writes of real EM, at half its speed, which is still faster than LZW decodes."""

CRC_BYTES = 4
Index = npt.NDArray[np.uint64]


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


def codec_of(dtype: np.dtype[Any]) -> BloscCodec:
    """How a chunk is compressed: Blosc with zstd, on shuffled bytes, or on shuffled bits where a voxel is one byte."""
    return BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=LEVEL, shuffle=_shuffle_of(dtype), blocksize=0)


def encode_chunk(voxels: npt.NDArray[Any], chunk: Shape) -> bytes:
    """Encode what there is of one chunk, filled up with zeros at the array's end; nothing for a chunk of zeros."""
    if voxels.shape != chunk:
        voxels = np.pad(voxels, [(0, whole - there) for whole, there in zip(chunk, voxels.shape, strict=True)])
    little = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    if not little.any():  # of neighbouring bytes: three times as fast as of a part of a region
        return b""
    return imagecodecs.blosc_encode(
        little,
        level=LEVEL,
        compressor="zstd",
        shuffle=_shuffle_of(little.dtype),
        typesize=little.itemsize,
        numthreads=1,
    )


def decode_chunk(data: bytes, dtype: np.dtype[Any], chunk: Shape) -> npt.NDArray[Any]:
    """Undo `encode_chunk`; DamagedError where the bytes are not a chunk."""
    try:
        voxels = imagecodecs.blosc_decode(data) if data else bytes(int(np.prod(chunk)) * dtype.itemsize)
        return np.frombuffer(voxels, dtype.newbyteorder("<")).reshape(chunk)
    except (imagecodecs.BloscError, SystemError, ValueError) as error:  # the second of a size below 0
        raise DamagedError(f"a chunk cannot be decoded ({error})") from error


def write_slab(path: Path, chunks: Sequence[bytes]) -> None:
    """Write encoded chunks, row by row, as a slab; it is there whole and durable, or not at all."""
    lengths = np.array([len(chunk) for chunk in chunks], np.uint64)
    index = np.zeros((len(chunks), 3), "<u8")
    index[:, 0] = np.cumsum(lengths) - lengths
    index[:, 1] = lengths
    index[:, 2] = [google_crc32c.value(chunk) for chunk in chunks]
    with DurableFile(path) as file:
        file.writelines(chunks)
        file.write(_with_checksum(index))


def merge_slabs(path: Path, part: Path, grid: Shape, slabs: Iterable[Slab], x_chunks: slice) -> Checksum:
    """Put the part of some slabs that lies in one shard together and write the shard, whole and durable.

    Args:
        path: The shard to write.
        part: Its name until it is whole.
        grid: Chunks (z, y, x) of a shard.
        slabs: All slabs that hold chunks of it.
        x_chunks: Which chunks along x of the slabs are the shard's.

    Raises:
        DamagedError: A slab does not hold the bytes that were written to it.
    """
    merged = np.full((*grid, 2), EMPTY, "<u8")
    offset, checksum = 0, 0
    with DurableFile(path, part) as out:
        for slab in slabs:
            with slab.path.open("rb") as file:
                for y, row in enumerate(_read_slab_index(file, slab.grid)[:, x_chunks], start=slab.y):
                    for x, (start, length, crc) in enumerate(row.tolist()):
                        if not length:
                            continue
                        chunk = _read_chunk(file, start, length, crc)
                        out.write(chunk)
                        checksum = google_crc32c.extend(checksum, chunk)
                        merged[slab.z, y, x] = offset, length
                        offset += length
        end = _with_checksum(merged)
        out.write(end)
    return Checksum(offset + len(end), google_crc32c.extend(checksum, end))


def read_shard_index(file: Any, grid: Shape) -> Index:
    """The offset and length of each chunk of a shard, (z, y, x, 2).

    Raises:
        DamagedError: The index is not what was written, or points out of the file.
    """
    index, begins = _read_index(file, (*grid, 2))
    offsets, lengths = (column[index[..., 1] != EMPTY] for column in (index[..., 0], index[..., 1]))
    if ((offsets > begins) | (lengths > begins) | (offsets + lengths > begins)).any():
        raise DamagedError("its index points out of the file")
    return index


class DurableFile:
    """A file opened for writing under another name, that gets its own when it is closed whole and on the disk.

    Its folder must be there: a writer that comes late, after the store was completed or removed, must not make it anew.
    """

    def __init__(self, path: Path, part: Path | None = None) -> None:
        self._path = path
        part = part or path.with_name(f".{path.name}")
        self._part = part.with_name(f"{part.name}.{secrets.token_hex(4)}")  # two may write the same file

    def __enter__(self) -> Any:
        self._file = self._part.open("xb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                self._part.replace(self._path)
                sync_folder(self._path.parent)
        finally:
            self._part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_slab_index(file: Any, grid: tuple[int, int]) -> Index:
    try:
        return _read_index(file, (*grid, 3))[0]
    except DamagedError as error:
        raise DamagedError(f"{file.name} is damaged: {error}.") from error


def _read_chunk(file: Any, start: int, length: int, crc: int) -> bytes:
    file.seek(start)
    chunk: bytes = file.read(length)
    if google_crc32c.value(chunk) != crc:
        raise DamagedError(f"{file.name} is damaged: a chunk is not as it was written.")
    return chunk


def _read_index(file: Any, shape: tuple[int, ...]) -> tuple[Index, int]:
    """The index at the end of a file, and where it begins."""
    size = int(np.prod(shape)) * 8 + CRC_BYTES
    if file.seek(0, os.SEEK_END) < size:
        raise DamagedError("it is cut short")
    begins = file.seek(-size, os.SEEK_END)
    tail = file.read()
    index = np.frombuffer(tail[:-CRC_BYTES], "<u8").reshape(shape)
    if _with_checksum(index) != tail:
        raise DamagedError("the checksum of its index is wrong")
    return index, begins


def _with_checksum(index: Index) -> bytes:
    data = index.tobytes()
    return data + google_crc32c.value(data).to_bytes(CRC_BYTES, "little")


def _shuffle_of(dtype: np.dtype[Any]) -> Any:
    return "bitshuffle" if dtype.itemsize == 1 else "shuffle"
