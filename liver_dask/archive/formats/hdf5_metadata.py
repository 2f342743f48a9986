"""The metadata of an HDF5 file: bytes that are fetched in blocks and checked, and the fields in them.

The HDF5 library is not used for reading, because damaged metadata can crash it, or keep it busy forever.
"""

from collections.abc import Sequence
from itertools import pairwise

import imagecodecs

from ..remote.files import RemoteFile
from ..remote.ranges import ByteRange

BLOCK = 64 << 10
"""Bytes. Metadata are fetched in blocks of this size, because what is nearby is often needed next."""

CHECKSUM_BYTES = 4

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Hdf5Error(ValueError):
    """The file is damaged or not supported. The message is a sentence without its first words, the address."""


class DamagedError(Hdf5Error):
    """The file is no HDF5, or is damaged."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"is no HDF5 that can be read, or is cut short or damaged ({problem})")


class Fields:
    """The fields of a part of the metadata, which are read one after the other.

    Args:
        data: The part.
        address_bytes: Bytes of an address.
        length_bytes: Bytes of a length.
    """

    def __init__(self, data: bytes, address_bytes: int, length_bytes: int) -> None:
        self.data = data
        self._sizes = address_bytes, length_bytes
        self._at = 0

    @property
    def left(self) -> int:
        """Number of bytes that are not yet read."""
        return len(self.data) - self._at

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self.left:
            raise DamagedError("a part of its metadata is too short")
        self._at += count
        return self.data[self._at - count : self._at]

    def number(self, count: int) -> int:
        """Return the number in the next bytes."""
        return int.from_bytes(self.take(count), "little")

    def length(self) -> int:
        """Return the next length."""
        return self.number(self._sizes[1])

    def limit(self) -> int | None:
        """Return the next length; None if it stands for infinity."""
        return _unless_all_ones(self.take(self._sizes[1]))

    def address(self) -> int | None:
        """Return the next address; None if it stands for nothing."""
        return _unless_all_ones(self.take(self._sizes[0]))

    def expect(self, expected: bytes, what: str) -> None:
        """Raise DamagedError if the next bytes are not as expected."""
        if self.take(len(expected)) != expected:
            raise DamagedError(f"{what} is not where it should be, or not as expected")


def _unless_all_ones(field: bytes) -> int | None:
    return None if field == b"\xff" * len(field) else int.from_bytes(field, "little")


class Metadata:
    """The metadata of a file.

    Attributes:
        base: Position of the superblock in the file. All addresses are relative to it.
        address_bytes: Bytes of an address.
        length_bytes: Bytes of a length.
    """

    def __init__(self, file: RemoteFile, limit: int) -> None:
        """Fetch nothing yet.

        Args:
            file: The file.
            limit: Number of bytes that may be fetched.
        """
        self._file = file
        self._limit = limit
        self._blocks: dict[int, bytes] = {}
        self.base = 0
        self.address_bytes = self.length_bytes = 8

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        if self._file.version is None:
            self._block(0)
        assert self._file.version is not None
        return self._file.version.size

    def fields(self, data: bytes) -> Fields:
        """Return the fields of some bytes."""
        return Fields(data, self.address_bytes, self.length_bytes)

    def read(self, address: int, size: int) -> Fields:
        """Return the fields of a part of the file."""
        first, stop = self._place(address, size)
        numbers = range(first // BLOCK, -(-stop // BLOCK))
        data = b"".join(self._block(number) for number in numbers)
        return self.fields(data[first - numbers.start * BLOCK : stop - numbers.start * BLOCK] if size else b"")

    def read_checked(self, address: int, size: int, signature: bytes) -> Fields:
        """Return the fields behind the signature of a part that ends with a checksum, which is verified.

        Args:
            address: Where the part begins.
            size: Its bytes, with signature and checksum.
            signature: What it begins with.
        """
        return self.checked(self.read(address, size).data, signature)

    def checked(self, part: bytes, signature: bytes = b"") -> Fields:
        """Return the fields between the signature and the checksum of a part; both are verified."""
        data, checksum = part[:-CHECKSUM_BYTES], part[-CHECKSUM_BYTES:]
        fields = self.fields(data)
        fields.expect(signature, f"a part {signature!r}")
        if imagecodecs.h5checksum_lookup3(data) != int.from_bytes(checksum, "little"):
            raise DamagedError("a checksum of its metadata is wrong")
        return fields

    def read_many(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return many parts, given by address and size, which are fetched in parallel.

        Raises:
            DamagedError: Parts overlap, are not in the file, or are too large together.
        """
        ranges = [ByteRange(*self._place(*place)) for place in places]
        order = sorted(range(len(ranges)), key=ranges.__getitem__)
        if any(ranges[i].stop > ranges[j].start for i, j in pairwise(order)):
            raise DamagedError("parts of its metadata overlap")
        found: dict[int, bytes] = {}
        for i in order:
            first, last = ranges[i].start // BLOCK, (ranges[i].stop - 1) // BLOCK
            if all(number in self._blocks for number in range(first, last + 1)):
                found[i] = self.read(*places[i]).data
        lacking = [i for i in order if i not in found]
        self._count(sum(ranges[i].stop - ranges[i].start for i in lacking))
        share = max(-(-len(lacking) // max(self._file.connections, 1)), 16)
        requests = [lacking[i : i + share] for i in range(0, len(lacking), share)]

        def keep(number: int, parts: list[memoryview]) -> None:
            found.update(zip(requests[number], map(bytes, parts), strict=True))

        if requests:
            self._file.fetch_each([[ranges[i] for i in request] for request in requests], keep)
        return [found[i] for i in range(len(ranges))]

    def _place(self, address: int, size: int) -> tuple[int, int]:
        """Return where a part begins and ends in the file."""
        first = self.base + address
        if size > self.size - first:
            raise DamagedError(f"it has {self.size} bytes, and its metadata refer to later ones")
        return first, first + size

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._count(BLOCK)
            self._blocks[number] = bytes(self._file.fetch(number * BLOCK, (number + 1) * BLOCK))
        return self._blocks[number]

    def _count(self, fetched: int) -> None:
        self._limit -= fetched
        if self._limit < 0:
            raise Hdf5Error("its metadata take more of the file than they can")
