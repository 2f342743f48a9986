"""Directories of TIFFs that are written alike: what one says of its strips, the next need not tell again.

Of such a file a few entries of the strip index do where a few rows are read. They are fetched along with the directory,
which is then compared with the known one, byte for byte but for where it lies.
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
"""Bytes of a file that say where its directory is."""

NEIGHBOURS = 256
"""So many strips' entries on either side are fetched along: few bytes, and who looks at a row looks at the next."""

STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TYPE_OF_PLACE = {3: "u2", 4: "u4", 16: "u8"}
CLASSIC, BIG = 42, 43


class Entries(NamedTuple):
    """One of the two arrays of a strip index.

    Attributes:
        place: Bytes from the beginning of the directory to that of the array; negative where it lies before.
        dtype: Of an entry, byte order included.
        length: How many entries there are.
    """

    place: int
    dtype: np.dtype[np.unsignedinteger]
    length: int

    def byte_range(self, directory: int, first: int, stop: int) -> ByteRange:
        """Where some entries are in a file whose directory begins at a place."""
        start = directory + self.place
        return ByteRange(start + first * self.dtype.itemsize, start + stop * self.dtype.itemsize)


@dataclass(frozen=True)
class Directory:
    """A directory as files that are written alike share it.

    Attributes:
        header: What their first bytes say of the format.
        length: Bytes that it takes.
        fields: Its fields, the places of what does not fit into them counted from its own beginning.
        offsets: Of the strips.
        counts: Of the strips' bytes.
    """

    header: bytes
    length: int
    fields: bytes
    offsets: Entries
    counts: Entries

    @property
    def nbytes(self) -> int:
        """Bytes of the whole strip index."""
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
    """Where the first directory of a file begins, by its first bytes; 0 where they do not say so."""
    form = _format_of(header)
    return form.place.unpack_from(header, form.place_in_header)[0] if form else 0


def read_directory(header: bytes, data: bytes) -> Directory | None:
    """What files that are written alike share of a directory.

    Args:
        header: The first bytes of the file.
        data: The directory; what follows its fields is not looked at.

    Returns:
        None where it is not all there, or has no strip index in arrays.
    """
    form = _format_of(header)
    if form is None or len(data) < form.number.size:
        return None
    (count,) = form.number.unpack_from(data)
    size = form.number.size + count * form.field.size
    if len(data) < size:
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
    return Directory(header[: form.place_in_header], size, fields, arrays[STRIP_OFFSETS], arrays[STRIP_BYTE_COUNTS])


Numbers = npt.NDArray[np.int64]


def fetch_entries(file: RemoteFile, like: Directory, strips: Iterable[int]) -> tuple[Numbers, Numbers] | None:
    """Fetch what a file's strip index has of some strips and their neighbours, in two requests.

    Returns:
        Offsets and counts of all strips, 0 where they were not fetched; None if the directory is not as it was thought,
        or any of them cannot be.
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
    """Start and stop of the entries to fetch, none of them twice."""
    blocks: list[tuple[int, int]] = []
    for strip in sorted(strips):
        first, stop = max(strip - NEIGHBOURS, 0), min(strip + NEIGHBOURS + 1, length)
        if blocks and first <= blocks[-1][1]:
            first = blocks.pop()[0]
        blocks.append((first, stop))
    return blocks
