"""What a store looks like and in which order it is written. Pure: integers in, a plan out; no file, no network.

A **region** is the unit of work and of loss: one chunk deep (8 slices), a band of rows, and the whole width, because a
strip of the source spans the whole width. The encoded chunks of a region are kept as one **slab** for each variable;
when all slabs of a **row of shards** are there (those side by side along x), their bytes are put together to make the
shards. So no voxel is fetched, decoded or encoded twice, and memory holds regions, not shards.

A task writes a **run**: some regions of the same slices, from top to bottom. Where rows can be read in any order (raw),
a run is a few regions; where they cannot (a mask has to be inflated from its first row), it is all of them.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape, check_lengths

CHUNKS = (8, 256, 256)
SHARDS = (64, 4096, 4096)
REGION_BYTES = 64 << 20
"""A band of rows is made as high as fits into this, and at least one chunk high."""

REGIONS_PER_BATCH = 8
"""Enough that one is read while the one before is encoded; few, so that tasks end often and share the cores evenly."""


class Shard(NamedTuple):
    """The place of a shard in the grid of shards."""

    z: int
    y: int
    x: int


class Region(NamedTuple):
    """Voxels `z_start` to `z_stop` and `y_start` to `y_stop` of the store, all along x."""

    z_start: int
    z_stop: int
    y_start: int
    y_stop: int


class ShardRow(NamedTuple):
    """All shards of one variable that lie side by side along x: they are put together from the same slabs."""

    name: str
    z: int
    y: int


class Group(NamedTuple):
    """Variables that are read together, because they are made of the same files.

    Attributes:
        names: The variables.
        cuts: Rows between which reading may stop and go on without reading anything twice, ascending, the first 0 and
            the last the height; None if that is between any two rows.
        from_the_top: Whether a slice must be read in one go, from top to bottom.
        deep: Whether a task goes on with the slices behind, instead of with the rows below.
        held: Bytes that a task holds for regions to come.
    """

    names: tuple[str, ...]
    cuts: tuple[int, ...] | None = None
    from_the_top: bool = False
    deep: bool = False
    held: int = 0


class RegionBatch(NamedTuple):
    """What one task writes, one after the other, of the variables of a group.

    Regions of the same slices, from top to bottom; or all slices of some rows, if the group is `deep`.
    """

    group: Group
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Layout:
    """The grids of a store.

    Attributes:
        shape: Voxels (z, y, x) of the store.
        chunks: Voxels of an inner chunk.
        shards: Voxels of a shard, a multiple of the chunk on each axis.
        row_block: Rows of a region, a multiple of the chunk's and a divisor of the shard's.
    """

    shape: Shape
    chunks: Shape
    shards: Shape
    row_block: int

    @property
    def shards_along(self) -> Shape:
        """Shards on each axis."""
        z, y, x = (-(-length // shard) for length, shard in zip(self.shape, self.shards, strict=True))
        return z, y, x

    @property
    def chunks_per_shard(self) -> Shape:
        """Chunks on each axis of a shard."""
        z, y, x = (shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True))
        return z, y, x

    def slab_grid(self, region: Region) -> tuple[int, int]:
        """Chunks (y, x) of a region's slab."""
        return -(-(region.y_stop - region.y_start) // self.chunks[1]), -(-self.shape[2] // self.chunks[2])

    def regions(self) -> Iterator[Region]:
        """All regions, those of the same slices together, from top to bottom."""
        return self._regions_within((0, self.shape[0]), (0, self.shape[1]))

    def regions_of(self, row: ShardRow) -> Iterator[Region]:
        """The regions that a row of shards is put together from."""
        z, y = row.z * self.shards[0], row.y * self.shards[1]
        return self._regions_within((z, z + self.shards[0]), (y, y + self.shards[1]))

    def row_of(self, name: str, region: Region) -> ShardRow:
        """The row of shards that a region of a variable belongs to."""
        return ShardRow(name, region.z_start // self.shards[0], region.y_start // self.shards[1])

    def shards_of(self, row: ShardRow) -> list[Shard]:
        """The shards of a row, from left to right."""
        return [Shard(row.z, row.y, x) for x in range(self.shards_along[2])]

    def shard_rows(self, names: Iterable[str]) -> list[ShardRow]:
        """All rows of shards of some variables."""
        z, y, _ = self.shards_along
        return [ShardRow(*place) for place in product(names, range(z), range(y))]

    def voxels_of(self, region: Region) -> int:
        """Voxels of a region."""
        return (region.z_stop - region.z_start) * (region.y_stop - region.y_start) * self.shape[2]

    def _regions_within(self, z_range: tuple[int, int], y_range: tuple[int, int]) -> Iterator[Region]:
        depth, height = min(z_range[1], self.shape[0]), min(y_range[1], self.shape[1])
        step = self.chunks[0]
        for z, y in product(range(z_range[0], depth, step), range(y_range[0], height, self.row_block)):
            yield Region(z, min(z + step, depth), y, min(y + self.row_block, height))


def plan_layout(
    shape: Sequence[int],
    bytes_of_variable: Mapping[str, int],
    chunks: Sequence[int] = CHUNKS,
    shards: Sequence[int] = SHARDS,
) -> Layout:
    """Clip the shards to the array and choose the height of a region.

    Args:
        shape: Voxels (z, y, x) of the store.
        bytes_of_variable: Bytes a voxel of each variable.
        chunks: Voxels of an inner chunk.
        shards: Voxels of a shard, at most.

    Raises:
        InvalidArgumentError: A shard is not a whole number of chunks, or a length is not positive.
    """
    chunks, shards = check_lengths("chunks", chunks), check_lengths("shards", shards)
    for shard, chunk in zip(shards, chunks, strict=True):
        if shard < chunk or shard % chunk:
            raise InvalidArgumentError(
                f"shards={tuple(shards)} must be a whole number of chunks={tuple(chunks)} on each axis (z, y, x)."
            )
    clipped = [
        min(shard, -(-length // chunk) * chunk) for length, shard, chunk in zip(shape, shards, chunks, strict=True)
    ]
    row_bytes = sum(bytes_of_variable.values()) * chunks[0] * shape[2]
    rows = clipped[1] // chunks[1]
    fitting = [n for n in _divisors(rows) if n * chunks[1] * row_bytes <= REGION_BYTES]
    return Layout(_triple(shape), _triple(chunks), _triple(clipped), max(fitting, default=1) * chunks[1])


def plan_batches(
    layout: Layout, groups: Sequence[Group], written: Collection[tuple[str, Region]]
) -> Iterator[RegionBatch]:
    """The runs that write what is not written yet, slices by slices, so that shards are complete as early as can be.

    Of the same slices the longest runs come first: then all tasks end at about the same time.

    Args:
        layout: The grids of the store.
        groups: Its variables, each in one group.
        written: Regions that are there, by variable.
    """
    row_blocks = -(-layout.shape[1] // layout.row_block)
    for group in [group for group in groups if group.deep]:
        for top, bottom in pairwise(_joints(layout, group)):
            of_rows = [region for region in layout.regions() if top <= region.y_start < bottom]
            missing = [region for region in of_rows if any((name, region) not in written for name in group.names)]
            if missing:
                yield RegionBatch(group, tuple(missing))
    for regions in _parts(list(layout.regions()), row_blocks):
        for group in sorted([group for group in groups if not group.deep], key=lambda group: not group.from_the_top):
            missing = [region for region in regions if any((name, region) not in written for name in group.names)]
            length = row_blocks if group.from_the_top else REGIONS_PER_BATCH
            for part in _parts(missing, length):
                yield RegionBatch(group, tuple(part))


def _joints(layout: Layout, group: Group) -> list[int]:
    """Rows between which tasks of a deep group may be apart: ends of regions and, if that can be, of blocks."""
    _, height, _ = layout.shape
    ends = [*range(0, height, layout.row_block), height]
    return sorted({0, height, *(set(ends) & set(group.cuts or ends))})


def rows_at_once(layout: Layout, group: Group) -> int:
    """The most rows of a group that a task holds at once: those of a region, or up to a cut that lies further."""
    if group.cuts is None:
        return layout.row_block
    return layout.row_block + max(b - a for a, b in zip(group.cuts[:-1], group.cuts[1:], strict=True))


def _divisors(number: int) -> Iterator[int]:
    for small in range(1, math.isqrt(number) + 1):
        if number % small == 0:
            yield from (small, number // small)


def _parts(regions: list[Region], length: int) -> list[list[Region]]:
    return [regions[i : i + length] for i in range(0, len(regions), length)]


def _triple(numbers: Sequence[int]) -> Shape:
    z, y, x = numbers
    return int(z), int(y), int(x)
