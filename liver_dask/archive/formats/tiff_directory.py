"""Directories of TIFF files that were written in the same way, and parts of their strip indexes.

If the directory of one such file is known, a few entries of the strip index are enough to read a few rows of another
one. They are fetched together with the directory of that file. This directory is then compared with the known one, byte
for byte, except for its position in the file.
"""

import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..remote.files import RemoteFile
from ..remote.ranges import ByteRange

HEADER = 16
"""Number of bytes at the beginning of a file that give the position of its directory."""

NEIGHBOURS = 256
"""Number of strips on either side whose entries are fetched, too.

They take few bytes, and a user who views a row usually views the next row as well.
"""

STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TYPE_OF_PLACE = {3: "u2", 4: "u4", 16: "u8"}
CLASSIC, BIG = 42, 43


class Entries(NamedTuple):
    """One of the two arrays of a strip index.

    Attributes:
        place: Bytes from the beginning of the directory to that of the array; negative if the array is before it.
        dtype: Dtype of an entry, including the byte order.
        length: Number of entries.
    """

    place: int
    dtype: np.dtype[np.unsignedinteger]
    length: int

    def byte_range(self, directory: int, first: int, stop: int) -> ByteRange:
        """Return the byte range of entries `first` to `stop` in a file whose directory begins at byte `directory`."""
        start = directory + self.place
        return ByteRange(start + first * self.dtype.itemsize, start + stop * self.dtype.itemsize)


@dataclass(frozen=True)
class Directory:
    """The part of a directory that is the same in all files that were written in the same way.

    Attributes:
        header: First bytes of the files, which describe the format.
        length: Bytes of the directory, including the position of the next one, which is 0.
        fields: The fields. Positions of values that do not fit in a field are relative to the directory's beginning.
        offsets: The array of the strips' offsets.
        counts: The array of the strips' byte counts.
    """

    header: bytes
    length: int
    fields: bytes
    offsets: Entries
    counts: Entries

    @property
    def nbytes(self) -> int:
        """Size of the whole strip index in bytes."""
        return sum(entries.length * entries.dtype.itemsize for entries in (self.offsets, self.counts))


class _Format(NamedTuple):
    order: str
    place: struct.Struct
    place_in_header: int
    number: struct.Struct
    field: struct.Struct


def _format_of(header: bytes) -> _Format | None:
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    if order is None or len(header) < HEADER:
        return None
    version = struct.unpack_from(order + "H", header, 2)[0]
    if version == CLASSIC:
        return _Format(order, struct.Struct(order + "I"), 4, struct.Struct(order + "H"), struct.Struct(order + "HHI4s"))
    if version == BIG and struct.unpack_from(order + "HH", header, 4) == (8, 0):
        return _Format(order, struct.Struct(order + "Q"), 8, struct.Struct(order + "Q"), struct.Struct(order + "HHQ8s"))
    return None


def place_of_directory(header: bytes) -> int:
    """Return the position of the first directory, according to the file's first bytes; 0 if they do not give one."""
    form = _format_of(header)
    return form.place.unpack_from(header, form.place_in_header)[0] if form else 0


def read_directory(header: bytes, data: bytes) -> Directory | None:
    """Return the part of a directory that is the same in all files that were written in the same way.

    Args:
        header: The first bytes of the file.
        data: The directory; bytes after its fields are ignored.

    Returns:
        The directory; None if it is incomplete, does not store the strip index in arrays, or is not the only one.
    """
    form = _format_of(header)
    if form is None or len(data) < form.number.size:
        return None
    (count,) = form.number.unpack_from(data)
    size = form.number.size + count * form.field.size
    next_directory = data[size : size + form.place.size]
    if next_directory != bytes(form.place.size):
        return None
    begins, fields, arrays = place_of_directory(header), b"", {}
    for etag, kind, length, value in form.field.iter_unpack(data[form.number.size : size]):
        if BYTES_OF_TYPE.get(kind, 1) * length > form.place.size:
            place = form.place.unpack(value)[0] - begins
            value = place.to_bytes(form.place.size + 1, "big", signed=True)
            if kind in TYPE_OF_PLACE:
                arrays[etag] = Entries(place, np.dtype(form.order + TYPE_OF_PLACE[kind]), length)
        fields += struct.pack(">HHQ", etag, kind, length) + value
    if not {STRIP_OFFSETS, STRIP_BYTE_COUNTS} <= arrays.keys():
        return None
    length = size + form.place.size
    return Directory(header[: form.place_in_header], length, fields, arrays[STRIP_OFFSETS], arrays[STRIP_BYTE_COUNTS])


Numbers = npt.NDArray[np.int64]


def fetch_entries(file: RemoteFile, like: Directory, strips: Iterable[int]) -> tuple[Numbers, Numbers] | None:
    """Fetch the entries of some strips and their neighbours from a file's strip index, in two requests.

    Args:
        file: The file.
        like: The expected directory.
        strips: Numbers of the strips.

    Returns:
        Offsets and byte counts of all strips, 0 where they were not fetched. None if the directory is not as expected,
        or if the position of the directory or of an entry is impossible.
    """
    header = bytes(file.fetch(0, HEADER))
    begins = place_of_directory(header)
    arrays = like.offsets, like.counts
    blocks = _with_neighbours(strips, like.offsets.length)
    directory = ByteRange(begins, begins + like.length)
    of_arrays = [[entries.byte_range(begins, *block) for block in blocks] for entries in arrays]
    ranges = sorted([directory, *itertools.chain(*of_arrays)])
    assert file.version is not None
    apart = all(one.stop <= other.start for one, other in itertools.pairwise(ranges))
    if not (begins and apart and ranges[0].start > 0 and ranges[-1].stop <= file.version.size):
        return None
    fetched = dict(zip(ranges, file.fetch_ranges(ranges), strict=True))
    if read_directory(header, bytes(fetched[directory])) != like:
        return None
    found = []
    for entries, ranges in zip(arrays, of_arrays, strict=True):
        numbers = np.zeros(entries.length, np.int64)
        for block, byte_range in zip(blocks, ranges, strict=True):
            numbers[slice(*block)] = np.frombuffer(fetched[byte_range], entries.dtype)
        found.append(numbers)
    offsets, counts = found
    return offsets, counts


def _with_neighbours(strips: Iterable[int], length: int) -> list[tuple[int, int]]:
    """Return the start and stop of each block of entries to fetch; no entry is in two blocks."""
    blocks: list[tuple[int, int]] = []
    for strip in sorted(strips):
        first, stop = max(strip - NEIGHBOURS, 0), min(strip + NEIGHBOURS + 1, length)
        if blocks and first <= blocks[-1][1]:
            first = blocks.pop()[0]
        blocks.append((first, stop))
    return blocks
