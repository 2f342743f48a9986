"""The grids of a store and the order in which it is written; pure computation, without access to files or the network.

A **region** is the unit of work: if an export is interrupted, only unfinished regions are lost. A region is one chunk
deep (8 slices), one row block high, and as wide as the volume, because a strip of the source spans the whole width. The
encoded chunks of a region are stored as one **slab** for each variable. A **row of shards** is all shards next to each
other along x. When all of its slabs are written, their bytes are merged into the shards. So no voxel is fetched,
decoded or encoded twice, and memory contains regions, not shards.

A task writes a **batch**: some regions of the same slices, from top to bottom. If rows can be read in any order (raw),
a batch is a few regions. If they cannot (a mask must be inflated from its first row), it is all regions of these
slices.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape, check_lengths

CHUNKS = (8, 256, 256)
"""Default chunk shape (z, y, x) in voxels."""

SHARDS = (64, 4096, 4096)
"""Default shard shape (z, y, x) in voxels."""

REGION_BYTES = 64 << 20
"""A row block is as high as fits into this number of bytes, and at least one chunk high."""

REGIONS_PER_BATCH = 8
"""Maximum number of regions in a batch, if rows can be read in any order. These are enough to read one region while the
one before is encoded. They are few, so that tasks end often and share the cores evenly."""


class Shard(NamedTuple):
    """The indices of a shard in the grid of shards."""

    z: int
    y: int
    x: int


class Region(NamedTuple):
    """A box of the store: slices `z_start` to `z_stop`, rows `y_start` to `y_stop` (without the stops), all columns."""

    z_start: int
    z_stop: int
    y_start: int
    y_stop: int


class ShardRow(NamedTuple):
    """All shards of one variable next to each other along x, which are merged from the same slabs.

    Attributes:
        name: The variable.
        z: Index of the shards along z in the grid of shards.
        y: Index of the shards along y.
    """

    name: str
    z: int
    y: int


class Group(NamedTuple):
    """Variables that are read together, because they are made from the same files.

    Attributes:
        names: The variables.
        cuts: Ascending row numbers, from 0 to the height, at which reading can stop and continue later without reading
            anything twice. None if this is possible at any row.
        from_the_top: Whether one task must read a slice as a whole, from top to bottom.
        deep: Whether a task continues with the next slices, instead of with the next rows.
        held: Bytes that a task holds for later regions.
    """

    names: tuple[str, ...]
    cuts: tuple[int, ...] | None = None
    from_the_top: bool = False
    deep: bool = False
    held: int = 0


class RegionBatch(NamedTuple):
    """The regions that one task writes, one after another, for the variables of a group.

    They are regions of the same slices from top to bottom, or all slices of some rows if the group is `deep`.
    """

    group: Group
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Layout:
    """The grids of a store.

    Attributes:
        shape: Number of voxels (z, y, x) of the store.
        chunks: Number of voxels (z, y, x) of an inner chunk.
        shards: Number of voxels (z, y, x) of a shard, a multiple of the chunk on each axis.
        row_block: Number of rows of a region: a multiple of the rows of a chunk and a divisor of the rows of a shard.
    """

    shape: Shape
    chunks: Shape
    shards: Shape
    row_block: int

    @property
    def shards_along(self) -> Shape:
        """Number of shards along each axis (z, y, x)."""
        z, y, x = (-(-length // shard) for length, shard in zip(self.shape, self.shards, strict=True))
        return z, y, x

    @property
    def chunks_per_shard(self) -> Shape:
        """Number of chunks of a shard along each axis (z, y, x)."""
        z, y, x = (shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True))
        return z, y, x

    def slab_grid(self, region: Region) -> tuple[int, int]:
        """Return the number of chunks (y, x) in the slab of a region."""
        return -(-(region.y_stop - region.y_start) // self.chunks[1]), -(-self.shape[2] // self.chunks[2])

    def regions(self) -> Iterator[Region]:
        """Yield all regions in the order of z, and those of the same slices from top to bottom."""
        return self._regions_within((0, self.shape[0]), (0, self.shape[1]))

    def regions_of(self, row: ShardRow) -> Iterator[Region]:
        """Yield the regions from whose slabs a row of shards is merged."""
        z, y = row.z * self.shards[0], row.y * self.shards[1]
        return self._regions_within((z, z + self.shards[0]), (y, y + self.shards[1]))

    def row_of(self, name: str, region: Region) -> ShardRow:
        """Return the row of shards that a region of a variable belongs to."""
        return ShardRow(name, region.z_start // self.shards[0], region.y_start // self.shards[1])

    def shards_of(self, row: ShardRow) -> list[Shard]:
        """Return the shards of a row, from left to right."""
        return [Shard(row.z, row.y, x) for x in range(self.shards_along[2])]

    def shard_rows(self, names: Iterable[str]) -> list[ShardRow]:
        """Return all rows of shards of some variables."""
        z, y, _ = self.shards_along
        return [ShardRow(*place) for place in product(names, range(z), range(y))]

    def voxels_of(self, region: Region) -> int:
        """Return the number of voxels of a region, in one variable."""
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
    """Clip the shards to the array, and choose the height of a region.

    Args:
        shape: Number of voxels (z, y, x) of the store.
        bytes_of_variable: For each variable, the bytes of a voxel.
        chunks: Number of voxels (z, y, x) of an inner chunk.
        shards: Maximum number of voxels (z, y, x) of a shard.

    Returns:
        The grids of the store.

    Raises:
        InvalidArgumentError: A shard is not a whole number of chunks, or a length is not positive. (ValueError)
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
    """Yield the batches that write all regions that are not written yet.

    The batches are in the order of z, so that shards are complete as early as possible. For the same slices, the
    longest batches come first, so that all tasks end at about the same time. Batches of `deep` groups come before all
    others.

    Args:
        layout: The grids of the store.
        groups: The groups of variables; each variable is in one group.
        written: The regions that are written already, with the names of their variables.
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
    """Return the rows at which the work of a deep group is split into tasks: ends of regions that are also `cuts`."""
    _, height, _ = layout.shape
    ends = [*range(0, height, layout.row_block), height]
    return sorted({0, height, *(set(ends) & set(group.cuts or ends))})


def rows_at_once(layout: Layout, group: Group) -> int:
    """Return the maximum number of rows of a group that a task has in memory at once.

    These are the rows of a region. If reading can only stop at some rows, the longest distance between these is added.
    """
    if group.cuts is None:
        return layout.row_block
    return layout.row_block + max(b - a for a, b in zip(group.cuts[:-1], group.cuts[1:], strict=True))


def _divisors(number: int) -> Iterator[int]:
    """Yield all divisors of a number, in any order."""
    for small in range(1, math.isqrt(number) + 1):
        if number % small == 0:
            yield from (small, number // small)


def _parts(regions: list[Region], length: int) -> list[list[Region]]:
    """Split a list into parts of this length; the last may be shorter."""
    return [regions[i : i + length] for i in range(0, len(regions), length)]


def _triple(numbers: Sequence[int]) -> Shape:
    z, y, x = numbers
    return int(z), int(y), int(x)
