"""The places of the chunks of an HDF5 dataset, by each of the six kinds of indexes."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .hdf5_arrays import extensible_array, fixed_array
from .hdf5_description import (
    EXTENSIBLE_ARRAY,
    FIXED_ARRAY,
    IMPLICIT,
    OLD_TREE,
    SINGLE,
    SINGLE_IS_FILTERED,
    UNLIMITED,
    Description,
    chunk_bytes,
)
from .hdf5_metadata import DamagedError, Metadata
from .hdf5_trees import tree_records

DEEPEST = 16
"""Levels of a tree."""

USUAL_ENTRIES = 64
"""Entries for which a node of a tree of version 1 usually has room."""

ROOM = 64 << 10
"""Bytes by which a chunk with filters may be larger than twice the plain one. No filter makes it longer than that."""

MOST_CHUNKS = 1 << 40
"""A limit for damaged files, far above what an index can list."""

TREE_OF_PLAIN_CHUNKS, TREE_OF_FILTERED_CHUNKS = 10, 11

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """The places of the chunks of a dataset.

    Attributes:
        offsets: First byte of each chunk in the file, (down, across); -1 for a chunk that is not in the file.
        sizes: Bytes of each chunk, (down, across).
        masks: Filters that were skipped for each chunk, one bit per filter, (down, across).
    """

    offsets: Numbers
    sizes: Numbers
    masks: npt.NDArray[np.uint32]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.offsets.nbytes + self.sizes.nbytes + self.masks.nbytes


def longest_chunk(description: Description) -> int:
    """Return how many bytes a chunk can have in the file."""
    plain = chunk_bytes(description)
    return 2 * plain + ROOM if description.filters else plain


def find_chunks(metadata: Metadata, description: Description) -> Places:
    """Return the places of all chunks.

    Raises:
        DamagedError: The index is damaged, or a chunk is not within the file, or chunks overlap.
    """
    layout = description.layout
    grid = _grid(description.shape, layout.chunk)
    places = Places(np.full(grid, -1, np.int64), np.zeros(grid, np.int64), np.zeros(grid, np.uint32))
    if layout.address is None:
        return places
    if layout.index == OLD_TREE:
        at, entries = _old_tree(metadata, description)
    elif layout.index in (SINGLE, IMPLICIT):
        at, entries = _without_index(metadata, description)
    elif layout.index in (FIXED_ARRAY, EXTENSIBLE_ARRAY):
        at, entries = _array(metadata, description)
    else:
        at, entries = _tree(metadata, description)
    if (at >= grid).any() or len(np.unique(at @ np.array([grid[1], 1]))) < len(at):
        raise DamagedError("the index of its chunks has chunks outside of the dataset, or one twice")
    down, across = at.T
    places.offsets[down, across], places.sizes[down, across], places.masks[down, across] = entries
    _check(places, metadata, description)
    return places


def _grid(shape: tuple[int, int], chunk: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // chunk[0]), -(-shape[1] // chunk[1])


def _check(places: Places, metadata: Metadata, description: Description) -> None:
    """Raise DamagedError if a chunk is not within the file, is too large, or overlaps another one."""
    there = places.offsets >= 0
    offsets, sizes = places.offsets[there], places.sizes[there]
    beyond = (sizes <= 0) | (sizes > metadata.size - offsets)
    if beyond.any():
        row = int(np.argwhere(there)[int(beyond.argmax())][0]) * description.layout.chunk[0]
        raise DamagedError(f"row {row} is not within its {metadata.size} bytes")
    if (sizes > longest_chunk(description)).any():
        raise DamagedError("a chunk takes more bytes than it can")
    order = np.argsort(offsets)
    if (offsets[order][1:] < (offsets + sizes)[order][:-1]).any():
        raise DamagedError("chunks overlap")


Entries = tuple[Numbers, Numbers, Numbers]
"""Offset in the file, size and mask of each chunk."""


def _entries(metadata: Metadata, description: Description, stored: npt.NDArray[np.uint8]) -> Entries:
    """Return what entries of an array or a tree say: an address, and with filters a size and a mask."""
    addresses = _numbers(stored[:, : metadata.address_bytes])
    is_there = (stored[:, : metadata.address_bytes] != 0xFF).any(axis=1)
    offsets = np.where(is_there, addresses + metadata.base, -1)
    if description.filters:
        return offsets, _numbers(stored[:, metadata.address_bytes : -4]), _numbers(stored[:, -4:])
    return offsets, np.full(len(stored), chunk_bytes(description)), np.zeros(len(stored), np.int64)


def _entry_bytes(metadata: Metadata, description: Description) -> int:
    """Return the bytes of an entry for a chunk."""
    if not description.filters:
        return metadata.address_bytes
    is_long = description.layout.has_long_sizes
    bits = chunk_bytes(description).bit_length()
    return metadata.address_bytes + (metadata.length_bytes if is_long else min(1 + (bits + 7) // 8, 8)) + 4


def _numbers(columns: npt.NDArray[np.uint8]) -> Numbers:
    """Return little-endian numbers of up to 8 bytes each. Absurd ones become numbers that are merely too large."""
    wide = np.zeros((len(columns), 8), np.uint8)
    wide[:, : columns.shape[1]] = columns
    return np.minimum(wide.view("<u8")[:, 0], 1 << 61).astype(np.int64)


def _all_chunks(description: Description) -> Numbers:
    """Return rows and columns in the grid of all chunks, (chunks, 2)."""
    return np.argwhere(np.ones(_grid(description.shape, description.layout.chunk), bool))


def _numbers_in_order(description: Description, at: Numbers) -> Numbers:
    """Return the number of each chunk among all that there can be when the dataset has grown to its limits."""
    first, second = (1, 0) if description.limits[1] == UNLIMITED else (0, 1)  # the axis that can grow comes first
    chunks = -(-description.limits[second] // description.layout.chunk[second])
    if chunks * (int(at[:, first].max()) + 1) > MOST_CHUNKS:
        raise DamagedError("it has room for more chunks than there can be")
    return at[:, first] * chunks + at[:, second]


def _without_index(metadata: Metadata, description: Description) -> tuple[Numbers, Entries]:
    """Return a single chunk, or chunks that lie in the file one after the other."""
    layout, at = description.layout, _all_chunks(description)
    assert layout.address is not None
    size, mask = layout.parameters or (chunk_bytes(description), 0)
    if layout.index == SINGLE:
        if len(at) > 1 or bool(layout.flags & SINGLE_IS_FILTERED) != bool(description.filters):
            raise DamagedError("it says that it has a single chunk")
        number = np.zeros(1, np.int64)
    else:
        if description.filters or UNLIMITED in description.limits:
            raise DamagedError("it says that its chunks need no index")
        number = _numbers_in_order(description, at)
    last = int(number.max()) * size
    if max(layout.address, last, size) > metadata.size:
        raise DamagedError(f"its chunks are not within its {metadata.size} bytes")
    offsets = metadata.base + layout.address + number * size
    return at, (offsets, np.full(len(at), size), np.full(len(at), mask))


def _array(metadata: Metadata, description: Description) -> tuple[Numbers, Entries]:
    """Return the chunks that are listed in an array."""
    layout, limits, at = description.layout, description.limits, _all_chunks(description)
    assert layout.address is not None
    if limits.count(UNLIMITED) != (layout.index == EXTENSIBLE_ARRAY):
        raise DamagedError("the index of its chunks is not one for its limits")
    numbers = _numbers_in_order(description, at)
    order = np.argsort(numbers)
    size, is_filtered = _entry_bytes(metadata, description), bool(description.filters)
    if layout.index == FIXED_ARRAY:
        most = math.prod(_grid(limits, layout.chunk))
        if most > MOST_CHUNKS:
            raise DamagedError("it has room for more chunks than there can be")
        stored = fixed_array(metadata, layout, size, is_filtered, numbers[order], most)
    else:
        stored = extensible_array(metadata, layout, size, is_filtered, numbers[order])
    return at[order], _entries(metadata, description, stored)


def _tree(metadata: Metadata, description: Description) -> tuple[Numbers, Entries]:
    """Return the chunks that are records of a tree of version 2."""
    size = _entry_bytes(metadata, description)
    kind = TREE_OF_FILTERED_CHUNKS if description.filters else TREE_OF_PLAIN_CHUNKS
    assert description.layout.address is not None
    most = math.prod(_grid(description.shape, description.layout.chunk))
    records = tree_records(metadata, description.layout.address, kind, size + 16, most)
    at = np.stack([_numbers(records[:, size : size + 8]), _numbers(records[:, size + 8 :])], axis=1)
    return at, _entries(metadata, description, records[:, :size])


def _old_tree(metadata: Metadata, description: Description) -> tuple[Numbers, Entries]:
    """Return the chunks that are entries of a tree of version 1, which has no checksums."""
    nodes: list[Any] = [description.layout.address]
    bounds: list[Any] = [(None, None)]
    most = math.prod(_grid(description.shape, description.layout.chunk))
    address = f"<u{metadata.address_bytes}"
    entry = np.dtype([("size", "<u4"), ("mask", "<u4"), ("at", "<u8", 3), ("child", address)])
    steps = [*description.layout.chunk, description.number.dtype.itemsize]
    level = metadata.read(nodes[0] + 5, 1).number(1)
    for expected in range(min(level, DEEPEST), -1, -1):  # level by level, so that no circle is followed
        parts, below = [], []
        for node, between in zip(_old_nodes(metadata, nodes, entry), bounds, strict=True):
            entries, keys = _old_entries(node, entry, 8 + 2 * metadata.address_bytes, between, steps)
            parts.append(entries)
            below += list(pairwise(keys))
            if node[5] != expected:
                raise DamagedError("the tree of its chunks is not in order")
        chunks = np.concatenate(parts)
        if len(chunks) > most:
            raise DamagedError("the tree of its chunks is not in order")
        if not len(chunks):
            break
        nodes, bounds = chunks["child"].tolist(), below
    at = chunks["at"][:, :2] // np.array(description.layout.chunk, np.uint64)
    sizes = chunks["size"].astype(np.int64)
    if not description.filters and (sizes != chunk_bytes(description)).any():
        raise DamagedError("the tree of its chunks has chunks of another size")
    offsets = np.minimum(chunks["child"].astype(np.uint64), 1 << 61).astype(np.int64) + metadata.base
    return np.minimum(at, 1 << 31).astype(np.int64), (offsets, sizes, chunks["mask"].astype(np.int64))


def _old_nodes(metadata: Metadata, nodes: list[int], entry: np.dtype[Any]) -> list[bytes]:
    """Fetch the nodes of one level: first as much as nodes usually have, then more if they have more."""
    head, key = 8 + 2 * metadata.address_bytes, entry.itemsize - metadata.address_bytes
    usually = head + USUAL_ENTRIES * entry.itemsize + key
    order = sorted({*nodes, metadata.size - metadata.base})
    room = {node: following - node for node, following in pairwise(order)}
    usual = [(node, max(min(usually, room.get(node, 0)), head)) for node in nodes]
    found = []
    for (node, size), data in zip(usual, metadata.read_many(usual), strict=True):
        if data[:5] != b"TREE\x01":
            raise DamagedError("the tree of its chunks leads to something else")
        needed = head + int.from_bytes(data[6:8], "little") * entry.itemsize + key
        found.append(data if needed <= size else metadata.read(node, needed).data)
    return found


def _old_entries(
    node: bytes, entry: np.dtype[Any], head: int, between: tuple[Any, Any], steps: list[int]
) -> tuple[npt.NDArray[Any], list[list[int]]]:
    """Return the entries of a node, and its keys: one more, ascending, and within those of the node above.

    A key is a row, a column, and a byte of the pixel, which is 0 except in the last key. `steps` divide them.
    """
    count = int.from_bytes(node[6:8], "little")
    entries = np.frombuffer(node, entry, count, head)
    last = np.frombuffer(node, "<u8", 3, head + count * entry.itemsize + 8).tolist() if count else []
    keys = [*entries["at"].tolist(), last]
    first, stop = between
    if not count:
        if first is not None:
            raise DamagedError("the tree of its chunks has an empty node")
        return entries, []
    is_outside = first is not None and (keys[0] < first or keys[-1] > stop)
    is_wrong = entries["at"][:, 2].any() or any(at % step for key in keys for at, step in zip(key, steps, strict=True))
    if is_outside or is_wrong or any(one >= two for one, two in pairwise(keys)):
        raise DamagedError("the tree of its chunks is not in order")
    return entries, keys
