"""Where patches are drawn: only where the table of a store says that there is something, and of one split alone.

Pure: boxes and tables in, positions out. A position is the first voxel (z, y, x) of a patch.
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
"""Patches along a side of a block of a split, at least: large ones lose less to margins, small ones are more."""

MOST_BLOCKS = 12
"""Blocks along an axis, at most."""

ENOUGH_BLOCKS = 10
"""As many blocks as give a tenth each to `val` and to `test`."""

FIRST_DRAW, LARGEST_DRAW, CANDIDATES = 64, 1 << 14, 1 << 20
"""So many positions are tried at once, at first and later, and in all."""


class Box(NamedTuple):
    """Voxels from `start` to before `stop`, each (z, y, x)."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        z, y, x = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x


@dataclass(frozen=True, eq=False)
class Densities:
    """What share of the voxels of each inner chunk is something.

    Attributes:
        values: 0 to 1, (z, y, x) in chunks.
        chunks: Voxels of a chunk.
    """

    values: npt.NDArray[np.float32]
    chunks: Shape

    @classmethod
    def of(cls, nonzero: npt.NDArray[np.uint32], chunks: Shape, shape: Shape) -> "Densities":
        """From how many voxels of each chunk are not zero; at the ends of an array of `shape`, chunks are cut."""
        there = [np.minimum(n, length - np.arange(0, length, n)) for n, length in zip(chunks, shape, strict=True)]
        z, y, x = there
        return cls((nonzero / (z[:, None, None] * y[:, None] * x)).astype(np.float32), chunks)

    def share(self, positions: Positions, patch: Shape, at_most: bool = False) -> npt.NDArray[np.float64]:
        """The share of each patch that is something, if what a chunk has of it is spread evenly; or the most it can be.

        The most: if all that a chunk has of it lies in the patch.
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
        """1 where a chunk, or one beside it in the same layer, holds anything, else 0."""
        there = np.pad(self.values > 0, ((0, 0), (1, 1), (1, 1)))
        _, height, width = self.values.shape
        around = [there[:, y : y + height, x : x + width] for y, x in product(range(3), range(3))]
        return Densities(np.any(around, axis=0).astype(np.float32), self.chunks)


def _overlaps(
    starts: npt.NDArray[np.int64], length: int, chunk: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The chunks that stretches of an axis touch, and how many voxels of each."""
    touched = starts[:, None] // chunk + np.arange(-(-(length - 1) // chunk) + 1)
    begins = np.maximum(touched * chunk, starts[:, None])
    ends = np.minimum((touched + 1) * chunk, starts[:, None] + length)
    return np.minimum(touched, count - 1), np.maximum(ends - begins, 0).astype(np.float64)


class Constraint(NamedTuple):
    """At least so large a share of a patch must be something.

    Attributes:
        densities: How much there is.
        least: The share.
        may_be: Whether it is enough that it may be so, see `Densities.share`.
    """

    densities: Densities
    least: float
    may_be: bool = False


@dataclass(frozen=True, eq=False)
class PatchSampler:
    """Draws positions, all that are allowed with the same chance.

    Attributes:
        patch: Voxels (z, y, x) of a patch.
        boxes: A patch lies wholly in one of them; none is smaller.
        constraints: What the tables must say of it.
    """

    patch: Shape
    boxes: tuple[Box, ...]
    constraints: tuple[Constraint, ...] = ()

    @cached_property
    def _free(self) -> Positions:
        """How many positions each box has on each axis."""
        return np.array([box.shape for box in self.boxes], np.int64) - np.array(self.patch) + 1

    @cached_property
    def _firsts(self) -> Positions:
        return np.array([box.start for box in self.boxes], np.int64)

    def draw(self, rng: np.random.Generator) -> Shape | None:
        """A position; None if among a million there is none that is allowed."""
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
    """Share out a box among training, validation and test: eight, one and one of ten blocks.

    Between blocks lies a margin of a patch, so that no two splits have a voxel in common, nor voxels side by side.
    Blocks are put in order by what they hold, and of each ten neighbours in that order one is drawn for validation and
    one for test: all splits get of the rich and of the poor.

    Args:
        box: What is shared out.
        patch: Voxels (z, y, x) of a patch.
        contents: Tables of what there is, such as of the labels; none if that is not known. Blocks of nothing are left
            out.
        seed: Of the draw.

    Raises:
        InvalidArgumentError: There are not even three blocks.
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
    """Blocks that hold anything, and how much."""
    blocks = _blocks(box, patch, patches)
    held = np.zeros(len(blocks))
    for densities in contents:
        held += [densities.share(np.array([block.start]), block.shape)[0] for block in blocks]
    filled = np.flatnonzero(held > 0) if contents else np.arange(len(blocks))
    return [blocks[number] for number in filled], held[filled]


def _blocks(box: Box, patch: Shape, patches: int) -> list[Box]:
    """Blocks of at least so many patches a side, without the margins between them."""
    axes = []
    for start, stop, length in zip(box.start, box.stop, patch, strict=True):
        count = min(max((stop - start) // (patches * length), 1), MOST_BLOCKS)
        edges = np.linspace(start, stop, count + 1).astype(int).tolist()
        before, after = -(-length // 2), length // 2
        axes.append([(low + before * (low > start), high - after * (high < stop)) for low, high in pairwise(edges)])
    return [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z, y, x in product(*axes)]
