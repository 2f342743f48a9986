"""What a store looks like and in which order it is written. Pure: integers in, a plan out; no file, no network.

A **region** is the unit of work and of loss: one chunk deep (8 slices), a band of rows, and the whole width, because a
strip of the source spans the whole width. Its encoded chunks are written as one **piece** for each shard that they
belong to; when all pieces of a shard are there, their bytes are put together to make the shard. So no voxel is fetched,
decoded or encoded twice, and memory holds regions, not shards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from .errors import InvalidArgumentError
from .volume import check_lengths

CHUNKS = (8, 256, 256)
SHARDS = (64, 4096, 4096)
REGION_BYTES = 64 << 20
"""A band of rows is made as high as fits into this, and at least one chunk high."""

Shape = tuple[int, int, int]


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


@dataclass(frozen=True)
class Layout:
    """The grids of a store.

    Attributes:
        shape: Voxels (z, y, x) of the store.
        chunks: Voxels of an inner chunk.
        shards: Voxels of a shard, a multiple of the chunk on each axis.
        band: Rows of a region, a multiple of the chunk's and a divisor of the shard's.
    """

    shape: Shape
    chunks: Shape
    shards: Shape
    band: int

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

    def regions(self) -> Iterator[Region]:
        """All regions, down the rows first: a mask is read from top to bottom, and not looked at again."""
        return self._regions_within((0, self.shape[0]), (0, self.shape[1]))

    def regions_of(self, shard: Shard) -> Iterator[Region]:
        """The regions that a shard is put together from."""
        z, y = shard.z * self.shards[0], shard.y * self.shards[1]
        return self._regions_within((z, z + self.shards[0]), (y, y + self.shards[1]))

    def shards_of(self, region: Region) -> list[Shard]:
        """The shards that hold a region, from left to right."""
        z, y = region.z_start // self.shards[0], region.y_start // self.shards[1]
        return [Shard(z, y, x) for x in range(self.shards_along[2])]

    def _regions_within(self, z_range: tuple[int, int], y_range: tuple[int, int]) -> Iterator[Region]:
        depth, height = min(z_range[1], self.shape[0]), min(y_range[1], self.shape[1])
        step = self.chunks[0]
        for z, y in product(range(z_range[0], depth, step), range(y_range[0], height, self.band)):
            yield Region(z, min(z + step, depth), y, min(y + self.band, height))


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
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * chunks[1] * row_bytes <= REGION_BYTES]
    return Layout(_triple(shape), _triple(chunks), _triple(clipped), max(fitting, default=1) * chunks[1])


def _triple(numbers: Sequence[int]) -> Shape:
    z, y, x = numbers
    return int(z), int(y), int(x)
