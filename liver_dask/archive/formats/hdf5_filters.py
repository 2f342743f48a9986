"""Undoes the filters of the chunks of an HDF5 dataset, which encoded each chunk one after the other."""

from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from .hdf5_description import Filter
from .hdf5_metadata import CHECKSUM_BYTES, Hdf5Error

DEFLATE, SHUFFLE, FLETCHER32, SZIP, N_BIT, SCALE_OFFSET, LZF = 1, 2, 3, 4, 5, 6, 32000
"""Numbers of the filters."""

NAMES = {
    DEFLATE: "gzip",
    SHUFFLE: "shuffle",
    FLETCHER32: "fletcher32",
    SZIP: "szip",
    N_BIT: "nbit",
    SCALE_OFFSET: "scaleoffset",
    LZF: "lzf",
}

INTEGERS = 2
"""The kind of scaling of SCALE_OFFSET that is for whole numbers."""

NUMBERS = 1
"""The kind of values of N_BIT that are plain numbers."""

SCALE_OFFSET_HEADER = 21
AT_ONCE = 1 << 16
"""Numbers that are unpacked at once: a multiple of 8, so that each time begins with a whole byte."""

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Step:
    """One filter, as it is undone for a chunk.

    Attributes:
        values: Parameters of the filter.
        expected: Bytes of the chunk without filters.
        longest: Bytes that the result of the step can have at most.
    """

    values: tuple[int, ...]
    expected: int
    longest: int


def filter_name(code: int) -> str:
    """Return the name of a filter, as HDF5's tools write it."""
    return NAMES.get(code, f"filter {code}")


def check_filters(filters: tuple[Filter, ...]) -> None:
    """Raise Hdf5Error if a filter cannot be undone.

    SZIP is among them: its decoders take whatever is in memory for the pixels of a chunk that is cut short.
    """
    for one in filters:
        if one.code not in UNDO:
            name = "szip" if one.code == SZIP else f"with the number {one.code}"
            raise Hdf5Error(f"is encoded by the filter {name}, which is not supported; use gzip (h5repack -f GZIP=4)")


def undo_filters(data: Buffer, filters: tuple[Filter, ...], skipped: int, expected: int, longest: int) -> Buffer:
    """Return the bytes of a chunk without its filters.

    Args:
        data: The chunk as it is in the file.
        filters: In the order in which they were applied.
        skipped: Filters that were not applied to this chunk, one bit each.
        expected: Bytes of the result.
        longest: Bytes that a chunk can have between two filters.

    Raises:
        ValueError, zlib_ng.error: The chunk is damaged.
    """
    for number, one in reversed(list(enumerate(filters))):
        if not skipped >> number & 1:
            data = UNDO[one.code](data, Step(one.values, expected, longest))
    if len(data) != expected:
        raise ValueError(f"it has {len(data)} bytes instead of {expected}")
    return data


def _inflate(data: Buffer, step: Step) -> Buffer:
    inflater = zlib_ng.decompressobj()
    inflated: bytes = inflater.decompress(data, step.longest + 1)
    if len(inflated) > step.longest or not inflater.eof:
        raise ValueError("it inflates to more or less than a chunk has")
    return inflated


def _unshuffle(data: Buffer, step: Step) -> Buffer:
    """Put the bytes of each number together again."""
    size = step.values[0] if step.values else 0
    if size < 1:
        raise ValueError("its bytes are shuffled in an unknown way")
    whole = len(data) // size * size  # the remaining bytes were not shuffled
    planes = np.frombuffer(data, np.uint8, whole).reshape(size, -1)
    return planes.T.tobytes() + bytes(data[whole:])


def _check_sum(data: Buffer, _: Step) -> Buffer:
    """Verify the checksum at the end. Old versions of HDF5 swapped its bytes; these are accepted, as HDF5 does."""
    plain, end = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if not len(plain):
        raise ValueError("it is too short to have a checksum")
    found = int(imagecodecs.h5checksum_fletcher32(plain))
    swapped = (found & 0x00FF00FF) << 8 | (found & 0xFF00FF00) >> 8
    if int.from_bytes(end, "little") not in (found, swapped):
        raise ValueError("its checksum is wrong")
    return plain


def _expand(data: Buffer, step: Step) -> Buffer:
    out = np.empty(step.longest, np.uint8)
    try:
        return memoryview(imagecodecs.lzf_decode(data, out=out))
    except RuntimeError as error:  # as are the errors of imagecodecs
        raise ValueError(str(error)) from error


def _restore_bits(data: Buffer, step: Step) -> Buffer:
    """Undo N_BIT, which stores only the bits of numbers that are used; complete numbers are left as they are."""
    _, is_complete, count, kind, size, order, bits, first = _parameters(step, 8)
    if is_complete:
        return data
    if kind != NUMBERS:
        raise ValueError("its bits are packed in an unknown way")
    dtype = _dtype_of(size, order)
    if not 0 < bits <= 8 * size or first + bits > 8 * size or count * size != step.expected:
        raise ValueError("its bits are packed in an impossible way")
    return (_unpack(data, count, bits) << np.uint64(first)).astype(dtype).tobytes()


def _add_minimum(data: Buffer, step: Step) -> Buffer:
    """Undo SCALE_OFFSET, which stores differences from the minimum with few bits, all ones for the fill value."""
    scaling, _, count, kind, size, _, order, has_fill, low, high = _parameters(step, 10)
    dtype = _dtype_of(size, order)
    header, packed = bytes(data[:SCALE_OFFSET_HEADER]), data[SCALE_OFFSET_HEADER:]
    bits = int.from_bytes(header[:4], "little")
    if scaling != INTEGERS or kind or count * size != step.expected or len(header) < SCALE_OFFSET_HEADER:
        raise ValueError("it is scaled in an unknown way")
    if bits > 8 * size or header[4] != 8 or has_fill not in (0, 1):
        raise ValueError("it is scaled in an impossible way")
    if bits == 8 * size:
        return np.frombuffer(packed, f"<u{size}").astype(dtype).tobytes()
    stored = _unpack(packed, count, bits)
    values = stored + np.frombuffer(header[5:13], "<u8")
    if has_fill:
        values[stored == (1 << bits) - 1] = high << 32 | low
    return values.astype(f"u{size}").astype(dtype).tobytes()


def _parameters(step: Step, count: int) -> tuple[int, ...]:
    """Return the first parameters of a filter; those that are not there are 0."""
    return (*step.values, *(0,) * count)[:count]


def _dtype_of(size: int, order: int) -> np.dtype[np.unsignedinteger]:
    if size not in (1, 2, 4, 8) or order not in (0, 1):
        raise ValueError("it has numbers of an unknown size")
    return np.dtype(f"{'<>'[order]}u{size}")


def _unpack(data: Buffer, count: int, bits: int) -> npt.NDArray[np.uint64]:
    """Return numbers of `bits` bits each, which follow each other, the highest bit first."""
    if len(data) * 8 < count * bits:
        raise ValueError("it has fewer bits than it should")
    packed, values = np.frombuffer(data, np.uint8), np.zeros(count, np.uint64)
    for first in range(0, count if bits else 0, AT_ONCE):
        some = min(AT_ONCE, count - first)
        part = np.unpackbits(packed[first * bits // 8 :], count=some * bits).reshape(some, bits)
        wide = np.zeros((some, 64), np.uint8)
        wide[:, 64 - bits :] = part
        values[first : first + some] = np.packbits(wide, axis=1).view(">u8")[:, 0]
    return values


UNDO: dict[int, Callable[[Buffer, Step], Buffer]] = {
    DEFLATE: _inflate,
    SHUFFLE: _unshuffle,
    FLETCHER32: _check_sum,
    N_BIT: _restore_bits,
    SCALE_OFFSET: _add_minimum,
    LZF: _expand,
}
