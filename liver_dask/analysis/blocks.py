"""The blocks in which a volume is measured; pure computation.

A block has a **core**, and the cores fill the volume without overlap. It is read with one further voxel after its end
on each axis, where there is one: its **margin**. So any two neighbouring voxels, also diagonal ones, are together in
the block whose core holds the smaller of their coordinates, and the first plane of a block is the last plane of the
one before it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ..core.geometry import Shape
from ..store.layout import CHUNKS

MOST_VOXELS = 16 << 20
"""A block has at most this many voxels, if chunks are not larger. It needs about eight bytes of memory for each."""

THICKNESS = 16
"""Slices of a block, where a block is as wide as the volume; one more is read, so that a sixteenth is read twice."""


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        index: Its index (z, y, x) in the grid of blocks.
        start: Its first voxel (z, y, x).
        core: Voxels (z, y, x) without the margin.
        read: Voxels (z, y, x) with the margin.
    """

    index: Shape
    start: Shape
    core: Shape
    read: Shape

    @property
    def voxels(self) -> tuple[slice, slice, slice]:
        """Where it is in the volume, with its margin."""
        z, y, x = (slice(start, start + length) for start, length in zip(self.start, self.read, strict=True))
        return z, y, x

    def has_margin(self, axis: int) -> bool:
        """Return whether there is another block after it on an axis."""
        return self.read[axis] > self.core[axis]


def blocks_of(shape: Shape, size: Shape) -> Iterator[Block]:
    """Yield the blocks of a volume in the order of z, y, x.

    Args:
        shape: Voxels (z, y, x) of the volume.
        size: Voxels (z, y, x) of a block's core; the last ones may be smaller.
    """
    for index in product(*(range(math.ceil(length / of)) for length, of in zip(shape, size, strict=True))):
        start = [number * of for number, of in zip(index, size, strict=True)]
        core = [min(of, length - at) for of, length, at in zip(size, shape, start, strict=True)]
        read = [min(of + 1, length - at) for of, length, at in zip(core, shape, start, strict=True)]
        yield Block(_triple(index), _triple(start), _triple(core), _triple(read))


def size_of_blocks(shape: Shape, chunks: Shape, *, full_width: bool) -> Shape:
    """Choose the size of blocks: whole chunks, up to MOST_VOXELS, about as long on each axis.

    Args:
        shape: Voxels (z, y, x) of the volume.
        chunks: Voxels (z, y, x) of a chunk.
        full_width: Whether rows are read over the full width of the volume, so that blocks should be as wide.
    """
    if full_width:
        depth = min(THICKNESS, shape[0])
        return depth, max(1, min(shape[1], MOST_VOXELS // (depth * shape[2]))), shape[2]
    size = [min(of, length) for of, length in zip(chunks, shape, strict=True)]
    while True:
        longer = [
            (size[axis], axis)
            for axis in range(3)
            if size[axis] < shape[axis] and math.prod(size) // size[axis] * (size[axis] + chunks[axis]) <= MOST_VOXELS
        ]
        if not longer:
            return _triple(size)
        _, axis = min(longer)
        size[axis] = min(size[axis] + chunks[axis], shape[axis])


def size_of_flat_blocks(shape: Shape, chunks: Shape, *, full_width: bool) -> Shape:
    """Choose the size of blocks that lie within the regions of a store: one chunk along z and y, long along x.

    A region is written at once, and a block that several regions share would be labelled for each of them.

    Args:
        shape: Voxels (z, y, x) of the volume.
        chunks: Voxels (z, y, x) of a chunk.
        full_width: As in `size_of_blocks`.
    """
    if full_width:
        depth = min(CHUNKS[0], shape[0])
        return depth, max(1, min(shape[1], MOST_VOXELS // (depth * shape[2]))), shape[2]
    z, y, x = (min(of, length) for of, length in zip(chunks, shape, strict=True))
    return z, y, min(shape[2], max(1, MOST_VOXELS // (z * y * x)) * x)


def _triple(numbers: Sequence[int]) -> Shape:
    z, y, x = numbers
    return z, y, x
