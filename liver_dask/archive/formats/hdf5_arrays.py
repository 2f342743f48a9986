"""Arrays in HDF5 files that list the chunks of a dataset: of a fixed length, or growing."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .hdf5_description import Layout
from .hdf5_metadata import CHECKSUM_BYTES, DamagedError, Metadata

Stored = npt.NDArray[np.uint8]
"""Entries as they are stored, (chunks, bytes); those that are not stored are all ones, as those of absent chunks."""

OF_FIXED_ARRAY = (10,)
OF_EXTENSIBLE_ARRAY = (32, 4, 4, 16, 10)
"""The parameters that the HDF5 library gives. No program is known that writes others, so others are refused."""


class _Block(NamedTuple):
    """A block of an array.

    Attributes:
        address: Where it is.
        head: Its bytes up to the first page, with a checksum; 0 if there are no pages.
        first: Number of its first entry.
        entries: Number of its entries.
        page: Most entries of a page.
        pages: Bits of the pages that are stored, the highest bit of a byte first; empty if all are.
        first_bit: Number of the bit of the first page.
    """

    address: int
    head: int
    first: int
    entries: int
    page: int
    pages: bytes = b""
    first_bit: int = 0


class _Entries:
    """Collects the wanted entries of an array."""

    def __init__(self, metadata: Metadata, size: int, wanted: npt.NDArray[np.int64]) -> None:
        """Nothing is collected yet.

        Args:
            metadata: The file.
            size: Bytes of an entry.
            wanted: Numbers of the entries, ascending.
        """
        self._metadata, self._size, self._wanted = metadata, size, wanted
        self.stored: Stored = np.full((len(wanted), size), 0xFF, np.uint8)

    def wants(self, first: int, count: int) -> bool:
        """Whether one of some entries is wanted."""
        start, stop = np.searchsorted(self._wanted, (first, first + count))
        return bool(stop > start)

    def put(self, first: int, data: bytes) -> None:
        """Collect the wanted ones of some entries, of which the first has the number `first`."""
        entries = np.frombuffer(data, np.uint8).reshape(-1, self._size)
        start, stop = np.searchsorted(self._wanted, (first, first + len(entries)))
        self.stored[start:stop] = entries[self._wanted[start:stop] - first]

    def read_pages(self, blocks: list[_Block]) -> None:
        """Fetch the wanted pages of blocks whose entries are in pages, each with a checksum."""
        firsts, places = [], []
        for block in blocks:
            start, stop = np.searchsorted(self._wanted, (block.first, block.first + block.entries))
            for page in np.unique((self._wanted[start:stop] - block.first) // block.page).tolist():
                first = page * block.page
                count = min(block.page, block.entries - first)
                bit = block.first_bit + page
                if not block.pages or block.pages[bit // 8] & 0x80 >> bit % 8:
                    at = block.address + block.head + page * (block.page * self._size + CHECKSUM_BYTES)
                    places.append((at, count * self._size + CHECKSUM_BYTES))
                    firsts.append(block.first + first)
        for first, part in zip(firsts, self._metadata.read_many(places), strict=True):
            self.put(first, self._metadata.checked(part).data)


def fixed_array(
    metadata: Metadata, layout: Layout, size: int, is_filtered: bool, wanted: npt.NDArray[np.int64], most: int
) -> Stored:
    """Return entries of an array of a fixed length.

    Args:
        metadata: The file.
        layout: Where the array is.
        size: Bytes of an entry.
        is_filtered: Whether the chunks have filters.
        wanted: Numbers of the entries, ascending.
        most: Number of all entries.
    """
    assert layout.address is not None
    _check_parameters(layout, OF_FIXED_ARRAY)
    (page_bits,) = layout.parameters
    of_length = most.to_bytes(metadata.length_bytes, "little") if most < 1 << 8 * metadata.length_bytes else b""
    size_of_header = 12 + metadata.length_bytes + metadata.address_bytes
    header = metadata.read_checked(layout.address, size_of_header, b"FAHD")
    header.expect(bytes([0, is_filtered, size, page_bits]) + of_length, "the index of its chunks")
    address = header.address()
    entries = _Entries(metadata, size, wanted)
    if address is None:
        return entries.stored
    page = 1 << page_bits
    head = 6 + metadata.address_bytes
    expected = bytes([0, is_filtered]) + layout.address.to_bytes(metadata.address_bytes, "little")
    if most <= page:
        block = metadata.read_checked(address, head + most * size + CHECKSUM_BYTES, b"FADB")
        block.expect(expected, "the index of its chunks")
        entries.put(0, block.take(block.left))
    else:
        bitmap = -(-most // (8 * page))
        block = metadata.read_checked(address, head + bitmap + CHECKSUM_BYTES, b"FADB")
        block.expect(expected, "the index of its chunks")
        pages = _Block(address, head + bitmap + CHECKSUM_BYTES, 0, most, page, block.take(bitmap))
        entries.read_pages([pages])
    return entries.stored


def extensible_array(
    metadata: Metadata, layout: Layout, size: int, is_filtered: bool, wanted: npt.NDArray[np.int64]
) -> Stored:
    """Return entries of an array that grows, see `fixed_array`."""
    assert layout.address is not None
    _check_parameters(layout, OF_EXTENSIBLE_ARRAY)
    entries = _Entries(metadata, size, wanted)
    bits, in_index, pointers, least, page_bits = layout.parameters
    header_bytes = 12 + 6 * metadata.length_bytes + metadata.address_bytes + CHECKSUM_BYTES
    header = metadata.read_checked(layout.address, header_bytes, b"EAHD")
    parameters = bytes([0, is_filtered, size, bits, in_index, least, pointers, page_bits])
    header.expect(parameters, "the index of its chunks")
    header.take(4 * metadata.length_bytes)
    stop = header.length()
    header.length()
    address = header.address()
    if address is not None:
        _Growing(entries, metadata, layout, size, is_filtered).collect(address)
    if (entries.stored[wanted >= stop, : metadata.address_bytes] != 0xFF).any():
        raise DamagedError("the index of its chunks has more chunks than it says")
    return entries.stored


def _check_parameters(layout: Layout, usual: tuple[int, ...]) -> None:
    if layout.parameters != usual:
        raise DamagedError("the index of its chunks has parameters that no program writes")


class _Growing:
    """The blocks of an array that grows: the first entries and pointers to blocks, and pointers to more pointers."""

    def __init__(self, entries: _Entries, metadata: Metadata, layout: Layout, size: int, is_filtered: bool) -> None:
        assert layout.address is not None
        bits, self._in_index, self._pointers, self._least, page_bits = layout.parameters
        self._entries, self._metadata, self._size = entries, metadata, size
        self._page = 1 << page_bits
        self._levels = 1 + bits - int(math.log2(self._least))
        self._offset_bytes = -(-bits // 8)
        self._begins = bytes([0, is_filtered]) + layout.address.to_bytes(metadata.address_bytes, "little")
        self._around = 6 + metadata.address_bytes + CHECKSUM_BYTES

    def collect(self, address: int) -> None:
        """Collect the wanted entries of all blocks."""
        metadata = self._metadata
        direct = 2 * int(math.log2(self._pointers))
        addresses = 2 * (self._pointers - 1) + max(self._levels - direct, 0)
        size = self._around + self._in_index * self._size + addresses * metadata.address_bytes
        index = metadata.read_checked(address, size, b"EAIB")
        index.expect(self._begins, "the index of its chunks")
        self._entries.put(0, index.take(self._in_index * self._size))
        first, blocks, tables = 0, [], []
        for level in range(self._levels):
            number, count = 1 << level // 2, self._least << (level + 1) // 2
            if level < direct:
                blocks += [self._block(index.address(), first + i * count, count) for i in range(number)]
            else:
                tables.append((index.address(), number, first, count))
            first += number * count
        self._read_blocks(blocks + self._read_tables(tables))

    def _block(self, address: int | None, first: int, count: int, pages: bytes = b"", number: int = 0) -> _Block | None:
        """Return a block; None if it is not stored, or has no wanted entry. It is the block `number` of its table."""
        if address is None or not self._entries.wants(self._in_index + first, count):
            return None
        head = self._around + self._offset_bytes if count > self._page else 0
        first_bit = number * (count // self._page)
        return _Block(address, head, self._in_index + first, count, self._page, pages, first_bit)

    def _read_tables(self, tables: list[tuple[int | None, int, int, int]]) -> list[_Block | None]:
        """Return the blocks of those tables that lead to wanted entries."""
        metadata = self._metadata
        wanted, places = [], []
        for address, number, first, count in tables:
            if address is not None and self._entries.wants(self._in_index + first, number * count):
                bitmap = -(-(count // self._page) // 8) if count > self._page else 0
                size = self._around + self._offset_bytes + number * (bitmap + metadata.address_bytes)
                wanted.append((number, first, count, bitmap))
                places.append((address, size))
        blocks: list[_Block | None] = []
        for part, (number, first, count, bitmap) in zip(metadata.read_many(places), wanted, strict=True):
            table = metadata.checked(part, b"EASB")
            table.expect(self._begins + first.to_bytes(self._offset_bytes, "little"), "the index of its chunks")
            pages = table.take(number * bitmap)
            blocks += [self._block(table.address(), first + i * count, count, pages, i) for i in range(number)]
        return blocks

    def _read_blocks(self, blocks: list[_Block | None]) -> None:
        """Collect the wanted entries of some blocks."""
        head = self._around + self._offset_bytes
        wanted = [block for block in blocks if block is not None]
        places = [(block.address, block.head or head + block.entries * self._size) for block in wanted]
        for part, block in zip(self._metadata.read_many(places), wanted, strict=True):
            fields = self._metadata.checked(part, b"EADB")
            fields.expect(self._begins, "the index of its chunks")
            fields.take(self._offset_bytes)  # the number of its first entry, which the library writes wrongly
            if not block.head:
                self._entries.put(block.first, fields.take(fields.left))
        self._entries.read_pages([block for block in wanted if block.head])
