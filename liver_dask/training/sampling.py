"""Sample positions of patches that satisfy constraints from a store's tables, within one split.

The functions are pure: they take boxes and tables, and return positions. A position is the index (z, y, x) of the first
voxel of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape

Positions = npt.NDArray[np.int64]
SplitName = Literal["train", "val", "test"]

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
LARGE_BLOCK, SMALL_BLOCK = 4, 2
"""Minimum side of a block of a split, in patches. Large blocks lose less to margins; small blocks are more numerous."""

MOST_BLOCKS = 12
"""Maximum number of blocks along an axis."""

ENOUGH_BLOCKS = 10
"""Number of blocks from which `val` and `test` each get a tenth."""

FIRST_DRAW, LARGEST_DRAW, CANDIDATES = 64, 1 << 14, 1 << 20
"""Number of positions that are tried at once first, at most at once, and in total."""


class Box(NamedTuple):
    """A box of voxels.

    Attributes:
        start: First voxel (z, y, x).
        stop: Exclusive end (z, y, x).
    """

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        """Shape (z, y, x) in voxels."""
        z, y, x = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x


@dataclass(frozen=True, eq=False)
class Densities:
    """The share of nonzero voxels in each inner chunk.

    Attributes:
        values: Shares, 0 to 1, one per chunk, (z, y, x).
        chunks: Shape (z, y, x) of a chunk in voxels.
    """

    values: npt.NDArray[np.float32]
    chunks: Shape

    @classmethod
    def of(cls, nonzero: npt.NDArray[np.uint32], chunks: Shape, shape: Shape) -> "Densities":
        """Compute the shares from counts.

        Args:
            nonzero: Number of nonzero voxels in each chunk, (z, y, x) in chunks.
            chunks: Shape (z, y, x) of a chunk in voxels.
            shape: Shape (z, y, x) of the array in voxels. The last chunk of each axis is cut there.
        """
        there = [np.minimum(n, length - np.arange(0, length, n)) for n, length in zip(chunks, shape, strict=True)]
        z, y, x = there
        return cls((nonzero / (z[:, None, None] * y[:, None] * x)).astype(np.float32), chunks)

    def share(self, positions: Positions, patch: Shape, at_most: bool = False) -> npt.NDArray[np.float64]:
        """Estimate the share of nonzero voxels in patches.

        Args:
            positions: Positions of the patches, (n, 3).
            patch: Shape (z, y, x) of a patch in voxels.
            at_most: If False, assume that the nonzero voxels of each chunk are evenly distributed. If True, return the
                largest possible share: as many nonzero voxels of each chunk as possible lie in the patch.

        Returns:
            One share per patch, 0 to 1.
        """
        cells, weights = zip(
            *(
                _overlaps(positions[:, axis], patch[axis], self.chunks[axis], self.values.shape[axis])
                for axis in range(3)
            ),
            strict=True,
        )
        z, y, x = cells
        found = self.values[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
        voxels = np.einsum("nz,ny,nx->nzyx", *weights)
        held = np.minimum(found * np.prod(self.chunks), voxels) if at_most else found * voxels
        return held.sum(axis=(1, 2, 3)) / np.prod(patch)

    def nearby(self) -> "Densities":
        """Return 1 for chunks that contain nonzero voxels, or have such a neighbour in the same z layer, otherwise 0.

        Diagonal neighbours count, too.
        """
        there = np.pad(self.values > 0, ((0, 0), (1, 1), (1, 1)))
        _, height, width = self.values.shape
        around = [there[:, y : y + height, x : x + width] for y, x in product(range(3), range(3))]
        return Densities(np.any(around, axis=0).astype(np.float32), self.chunks)


def _overlaps(
    starts: npt.NDArray[np.int64], length: int, chunk: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return which chunks intervals of an axis overlap, and by how many voxels.

    Args:
        starts: First voxel of each interval, (n,).
        length: Length of an interval in voxels.
        chunk: Length of a chunk in voxels.
        count: Number of chunks along the axis.

    Returns:
        Chunk numbers and overlaps in voxels, both (n, m), where m is the largest number of chunks that an interval can
        overlap.
    """
    touched = starts[:, None] // chunk + np.arange(-(-(length - 1) // chunk) + 1)
    begins = np.maximum(touched * chunk, starts[:, None])
    ends = np.minimum((touched + 1) * chunk, starts[:, None] + length)
    return np.minimum(touched, count - 1), np.maximum(ends - begins, 0).astype(np.float64)


class Constraint(NamedTuple):
    """A minimum share of nonzero voxels in a patch.

    Attributes:
        densities: Shares of nonzero voxels per chunk.
        least: The minimum share, 0 to 1.
        may_be: Whether to compare the largest possible share instead of the expected one, see `at_most` of
            `Densities.share`.
    """

    densities: Densities
    least: float
    may_be: bool = False


@dataclass(frozen=True, eq=False)
class PatchSampler:
    """Samples positions uniformly from all allowed positions.

    Attributes:
        patch: Shape (z, y, x) of a patch in voxels.
        boxes: Boxes to sample from. Each patch lies completely in one box, and no box is smaller than a patch.
        constraints: Constraints that each patch satisfies according to the tables.
    """

    patch: Shape
    boxes: tuple[Box, ...]
    constraints: tuple[Constraint, ...] = ()

    @cached_property
    def _free(self) -> Positions:
        """Number of positions in each box along each axis, (boxes, 3)."""
        return np.array([box.shape for box in self.boxes], np.int64) - np.array(self.patch) + 1

    @cached_property
    def _firsts(self) -> Positions:
        return np.array([box.start for box in self.boxes], np.int64)

    def draw(self, rng: np.random.Generator) -> Shape | None:
        """Sample a position; return None if none of about a million (CANDIDATES) tries satisfies the constraints."""
        ends = np.cumsum(self._free.prod(axis=1))
        tried, count = 0, FIRST_DRAW if self.constraints else 1
        while tried < CANDIDATES:
            chosen = np.searchsorted(ends, rng.integers(0, ends[-1], count), side="right")
            positions = self._firsts[chosen] + rng.integers(0, self._free[chosen])
            allowed = np.ones(count, bool)
            for constraint in self.constraints:
                share = constraint.densities.share(positions[allowed], self.patch, constraint.may_be)
                allowed[allowed] = share >= constraint.least
            if allowed.any():
                z, y, x = positions[np.argmax(allowed)].tolist()
                return z, y, x
            tried, count = tried + count, min(4 * count, LARGEST_DRAW)
        return None


def plan_split(box: Box, patch: Shape, contents: Sequence[Densities], seed: int = 0) -> dict[SplitName, list[Box]]:
    """Split a box into blocks for training, validation and test: eight, one and one of every ten blocks.

    A margin of one patch separates the blocks, so that two splits have neither common nor adjacent voxels. The blocks
    are sorted by their content. From each group of about ten successive blocks, one is chosen at random for validation
    and one for test. Therefore all splits contain blocks with much and with little content.

    Args:
        box: The box to split.
        patch: Shape (z, y, x) of a patch in voxels.
        contents: Tables of the content, for example of the labels; empty if the content is unknown. Blocks without
            content are omitted.
        seed: Seed of the random choice.

    Returns:
        The blocks of each split.

    Raises:
        InvalidArgumentError: There are fewer than three blocks.
    """
    for patches in (LARGE_BLOCK, SMALL_BLOCK):
        blocks, held = _filled_blocks(box, patch, patches, contents)
        if len(blocks) >= ENOUGH_BLOCKS:
            break
    if len(blocks) < len(SPLITS):
        raise InvalidArgumentError(
            f"A box of {box.shape} voxels (z, y, x) has no room for three splits and margins between: "
            f"it holds {len(blocks)} blocks of twice the patch {patch}. Keep a larger box, or one for each split."
        )
    order = np.argsort(-held, kind="stable")
    rng = np.random.default_rng(seed)
    shared: dict[SplitName, list[Box]] = {name: [] for name in SPLITS}
    for stratum in np.array_split(order, max(round(len(blocks) / ENOUGH_BLOCKS), 1)):
        val, test, *train = rng.permutation(stratum).tolist()
        parts: dict[SplitName, list[int]] = {"val": [val], "test": [test], "train": train}
        for name, numbers in parts.items():
            shared[name] += [blocks[number] for number in sorted(numbers)]
    return shared


def _filled_blocks(
    box: Box, patch: Shape, patches: int, contents: Sequence[Densities]
) -> tuple[list[Box], npt.NDArray[np.float64]]:
    """Return the blocks with content, and how much content each has; all blocks if `contents` is empty."""
    blocks = _blocks(box, patch, patches)
    held = np.zeros(len(blocks))
    for densities in contents:
        held += [densities.share(np.array([block.start]), block.shape)[0] for block in blocks]
    filled = np.flatnonzero(held > 0) if contents else np.arange(len(blocks))
    return [blocks[number] for number in filled], held[filled]


def _blocks(box: Box, patch: Shape, patches: int) -> list[Box]:
    """Return blocks whose sides are at least `patches` patches long, minus the margins between them.

    An axis that is shorter is not divided.
    """
    axes = []
    for start, stop, length in zip(box.start, box.stop, patch, strict=True):
        count = min(max((stop - start) // (patches * length), 1), MOST_BLOCKS)
        edges = np.linspace(start, stop, count + 1).astype(int).tolist()
        before, after = -(-length // 2), length // 2
        axes.append([(low + before * (low > start), high - after * (high < stop)) for low, high in pairwise(edges)])
    return [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z, y, x in product(*axes)]
