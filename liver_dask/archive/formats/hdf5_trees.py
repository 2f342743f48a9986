"""Trees of version 2 in HDF5 files, with records of chunks or of links, and the heap in which links are stored."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .hdf5_metadata import DamagedError, Hdf5Error, Metadata

DEEPEST = 16
"""Levels of a tree."""

AROUND = 10
"""Bytes of a node that are not records: signature, version, kind and checksum."""

OF_NAMES = 5
"""Kind of the trees that hold links by their names."""

HEAP_ID_BYTES = 7
MOST_LINKS = 100_000


def tree_records(metadata: Metadata, address: int, kind: int, size: int, most: int) -> npt.NDArray[np.uint8]:
    """Return all records of a tree, level by level.

    Args:
        metadata: The file.
        address: Where the header of the tree is.
        kind: What it should hold.
        size: Bytes that a record should have.
        most: Number of records that there can be.

    Returns:
        Array (records, bytes).
    """
    header = metadata.read_checked(address, 22 + metadata.address_bytes + metadata.length_bytes, b"BTHD")
    header.expect(bytes([0, kind]), "a tree")
    node_bytes, record_bytes, depth = header.number(4), header.number(2), header.number(2)
    header.take(2)
    root, count, total = header.address(), header.number(2), header.length()
    if record_bytes != size or depth > DEEPEST or not 64 <= node_bytes <= 1 << 20 or total > most:
        raise DamagedError("a tree has other records or nodes than it can have")
    if root is None:
        return np.zeros((0, size), np.uint8)
    shape = _Nodes(metadata, kind, node_bytes, size)
    level, nodes, counts, parts = depth, [root], [count], []
    while True:
        records, below = shape.read(nodes, counts, level)
        parts += records
        if not level:
            break
        nodes, counts, level = [node for node, _ in below], [count for _, count in below], level - 1
    found = np.concatenate(parts)
    if len(found) != total:
        raise DamagedError(f"a tree has {len(found)} records where its header says {total}")
    return found


class _Nodes:
    """How the nodes of a tree are laid out."""

    def __init__(self, metadata: Metadata, kind: int, node_bytes: int, record_bytes: int) -> None:
        self._metadata, self._kind = metadata, kind
        self._node_bytes, self._record_bytes = node_bytes, record_bytes

    def read(
        self, nodes: list[int], counts: list[int], level: int
    ) -> tuple[list[npt.NDArray[np.uint8]], list[tuple[int, int]]]:
        """Return the records of all nodes of a level, and of each node below its address and number of records."""
        count_bytes, pointer_bytes = self._sizes(level)
        pointers = [(count + 1) * pointer_bytes if level else 0 for count in counts]
        sizes = [AROUND + count * self._record_bytes + more for count, more in zip(counts, pointers, strict=True)]
        records, below = [], []
        parts = self._metadata.read_many(list(zip(nodes, sizes, strict=True)))
        for part, count in zip(parts, counts, strict=True):
            fields = self._metadata.checked(part, b"BTIN" if level else b"BTLF")
            fields.expect(bytes([0, self._kind]), "a node of a tree")
            data = np.frombuffer(fields.take(count * self._record_bytes), np.uint8)
            records.append(data.reshape(count, self._record_bytes))
            for _ in range(count + 1 if level else 0):
                node, number = fields.address(), fields.number(count_bytes)
                fields.take(pointer_bytes - count_bytes - self._metadata.address_bytes)
                if node is None:
                    raise DamagedError("a tree leads nowhere")
                below.append((node, number))
        return records, below

    def _sizes(self, level: int) -> tuple[int, int]:
        """Return the bytes of a count of records, and of a pointer, in a node of a level."""
        most = total = (self._node_bytes - AROUND) // self._record_bytes
        count_bytes, total_bytes, pointer_bytes = _bytes_for(most), 0, 0
        for _ in range(level):
            pointer_bytes = self._metadata.address_bytes + count_bytes + total_bytes
            most = (self._node_bytes - AROUND - pointer_bytes) // (self._record_bytes + pointer_bytes)
            total = (most + 1) * total + most
            total_bytes = _bytes_for(total)
        return count_bytes, pointer_bytes


def _bytes_for(number: int) -> int:
    return max(number.bit_length() - 1, 0) // 8 + 1


def dense_links(metadata: Metadata, heap: int, tree: int) -> Iterator[bytes]:
    """Yield the links of a group that has so many that they are not in its header."""
    records = tree_records(metadata, tree, OF_NAMES, 4 + HEAP_ID_BYTES, MOST_LINKS)
    objects = _Heap(metadata, heap)
    for record in records:
        yield objects.find(metadata.fields(record[4:].tobytes()).take(HEAP_ID_BYTES))


class _Heap:
    """A heap whose blocks are all in one table: up to some ten thousand links."""

    def __init__(self, metadata: Metadata, address: int) -> None:
        lengths = 12 * metadata.length_bytes
        header = metadata.read_checked(address, 22 + lengths + 3 * metadata.address_bytes + 4, b"FRHP")
        header.expect(bytes([0, HEAP_ID_BYTES, 0, 0, 0]), "a heap of links")
        self._is_checked = bool(header.number(1) & 2)
        header.take(4 + metadata.length_bytes + metadata.address_bytes + metadata.length_bytes + metadata.address_bytes)
        header.take(8 * metadata.length_bytes)
        width, start, largest = header.number(2), header.length(), header.length()
        bits = header.number(2)
        header.take(2)
        root, rows = header.address(), header.number(2)
        self._metadata, self._address = metadata, address
        self._offset_bytes = -(-bits // 8)
        if root is None or not 0 < start <= largest <= 1 << 26 or not 0 < width <= 1024 or self._offset_bytes > 5:
            raise DamagedError("a heap of links is not as it should be")
        self._blocks: dict[int, tuple[int, int]] = {0: (root, start)}  # by their places in the heap
        if rows:
            self._read_table(root, rows, width, start, largest)
        self._data: dict[int, bytes] = {}

    def _read_table(self, root: int, rows: int, width: int, start: int, largest: int) -> None:
        sizes = [start << max(row - 1, 0) for row in range(min(rows, 64)) for _ in range(width)]
        if rows > 64 or sizes[-1] > largest:
            raise Hdf5Error("has a group with too many objects")
        metadata = self._metadata
        around = 5 + metadata.address_bytes + self._offset_bytes
        table = metadata.read_checked(root, around + len(sizes) * metadata.address_bytes + 4, b"FHIB")
        table.take(around - 4)
        place = 0
        self._blocks = {}
        for size in sizes:
            block = table.address()
            if block is not None:
                self._blocks[place] = block, size
            place += size

    def find(self, heap_id: bytes) -> bytes:
        """Return an object by its identifier: a byte of flags, its place and its length."""
        if heap_id[0] & 0xF0:
            raise Hdf5Error("has a link that is stored in a way that is not supported")
        at = int.from_bytes(heap_id[1 : 1 + self._offset_bytes], "little")
        size = int.from_bytes(heap_id[1 + self._offset_bytes :], "little")
        for place, (address, length) in self._blocks.items():
            if place <= at and at + size <= place + length:
                return self._block(place, address, length)[at - place : at - place + size]
        raise DamagedError("a link is not where its group says")

    def _block(self, place: int, address: int, length: int) -> bytes:
        """Return a block of the heap; its checksum is verified, if it has one."""
        if place not in self._data:
            data = self._metadata.read(address, length).data
            head = 5 + self._metadata.address_bytes + self._offset_bytes
            if self._is_checked:  # its checksum was computed of the block without it
                checked = data[:head] + bytes(4) + data[head + 4 :] + data[head : head + 4]
                self._metadata.checked(checked, b"FHDB")
            self._data[place] = data
        return self._data[place]
