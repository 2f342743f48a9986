"""Split a volume into training, validation and test data: blocks of a fixed grid, which depend on the volume alone.

A voxel belongs to one split, whatever boxes, patches, labels and stores are used. Margins between the splits are kept
when patches are drawn.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape, check_lengths
from .tables import Positions

SplitName = Literal["train", "val", "test"]

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

CLASSES = 10
"""One of ten blocks is for validation, and another one for test."""

STEPS = (5, 3, 1)
"""Blocks are numbered modulo 10 by 5 z + 3 y + x, so that ten blocks in a row have ten different numbers, and so have
blocks of 4 x 3 or 3 x 4 (y, x), or of 2 x 2 x 2 eight of them."""


@dataclass(frozen=True)
class SplitGrid:
    """A grid of blocks that splits a volume; use the same one for training, validation and test.

    Attributes:
        block: Voxels (z, y, x) of a block.
        margin: Voxels (z, y, x) that patches for validation and test keep away from blocks of other splits.
        seed: Another seed gives another choice of blocks.

    Raises:
        InvalidArgumentError: A length is not positive, or the margins leave nothing of a block. (ValueError)
    """

    block: Shape = (64, 1024, 1024)
    margin: Shape = (8, 64, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", check_lengths("block", self.block))
        margin = tuple(self.margin)
        if len(margin) != 3 or any(
            not isinstance(of, int) or of < 0 or 2 * of >= side for of, side in zip(margin, self.block, strict=True)
        ):
            raise InvalidArgumentError(
                f"margin={self.margin} must be three numbers (z, y, x) of at least 0, below half of "
                f"block={self.block}; give both."
            )
        object.__setattr__(self, "margin", margin)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidArgumentError(f"seed={self.seed!r} must be a whole number of at least 0.")

    @cached_property
    def _split_of_class(self) -> npt.NDArray[np.intp]:
        """The split (its number in SPLITS) of each of the ten classes of blocks."""
        found = np.zeros(CLASSES, np.intp)
        val, test, *_ = np.random.default_rng(self.seed).permutation(CLASSES)
        found[[val, test]] = 1, 2
        return found

    def split_of(self, blocks: Positions) -> npt.NDArray[np.intp]:
        """Return the split of blocks.

        Args:
            blocks: Numbers (z, y, x) of the blocks in the grid, (..., 3).

        Returns:
            0 for training, 1 for validation, 2 for test; with the axes of `blocks` but the last.
        """
        return self._split_of_class[(blocks * np.array(STEPS)).sum(axis=-1) % CLASSES]

    def allows(self, split: SplitName, positions: Positions, patch: Shape, volume: Shape) -> npt.NDArray[np.bool_]:
        """Return which patches belong to a split.

        All blocks that a patch touches are of its split. A patch for validation or test also keeps the margin.

        Args:
            split: The split.
            positions: Positions of the patches in the volume, (n, 3).
            patch: Voxels (z, y, x) of a patch.
            volume: Voxels (z, y, x) of the volume. Its borders need no margin.

        Returns:
            Whether it belongs to the split, for each position, (n,).
        """
        margin = np.zeros(3, np.int64) if split == "train" else np.array(self.margin)
        first = np.maximum(positions - margin, 0) // self.block
        last = (np.minimum(positions + patch + margin, volume) - 1) // self.block
        allowed = np.ones(len(positions), bool)
        for offset in product(*map(range, (last - first).max(axis=0) + 1)):
            allowed &= self.split_of(np.minimum(first + offset, last)) == SPLITS.index(split)
        return allowed

    def changes(self, split: SplitName, start: Positions, stop: Positions, patch: Shape) -> list[npt.NDArray[np.int64]]:
        """Return, for each axis, the positions at which the answer of `allows` may change, in any order.

        Between them it is the same for all positions.

        Args:
            split: The split.
            start: First position (z, y, x) in the volume.
            stop: Exclusive end of the positions.
            patch: Voxels (z, y, x) of a patch.

        Returns:
            The positions along z, along y and along x.
        """
        found = []
        for low, high, side, length, of in zip(start, stop, self.block, patch, self.margin, strict=True):
            margin = 0 if split == "train" else of
            borders = np.arange((low - margin) // side, (high + length + margin) // side + 1) * side
            found.append(np.concatenate([borders + margin, borders - length - margin + 1]))
        return found

    def places(self, split: SplitName, start: Shape, stop: Shape, patch: Shape, volume: Shape) -> Positions:
        """Return the positions in a box that belong to validation or test, as disjoint boxes of positions.

        Two blocks of one of these splits never touch, not even with a corner, so each patch lies in one block.

        Args:
            split: `val` or `test`.
            start: First voxel (z, y, x) of the box, in the volume.
            stop: Exclusive end of the box.
            patch: Voxels (z, y, x) of a patch.
            volume: Voxels (z, y, x) of the volume.

        Returns:
            First position and exclusive end of each box of positions, (boxes, 2, 3).
        """
        numbers = [
            np.arange(low // side, (high - 1) // side + 1)
            for low, high, side in zip(start, stop, self.block, strict=True)
        ]
        blocks = np.stack(np.meshgrid(*numbers, indexing="ij"), axis=-1).reshape(-1, 3)
        blocks = blocks[self.split_of(blocks) == SPLITS.index(split)]
        first, end = blocks * self.block, (blocks + 1) * self.block
        first = np.where(first > 0, first + self.margin, 0)
        end = np.where(end < volume, end - self.margin, volume)
        found = np.stack([np.maximum(first, start), np.minimum(end, stop) - patch + 1], axis=1)
        return found[(found[:, 0] < found[:, 1]).all(axis=1)]

    def voxels(self, split: SplitName, start: Shape, stop: Shape) -> int:
        """Return how many voxels of a box belong to a split, margins included.

        Args:
            split: The split.
            start: First voxel (z, y, x) of the box, in the volume.
            stop: Exclusive end of the box.

        Returns:
            The number of voxels.
        """
        lengths, numbers = [], []
        for low, high, side in zip(start, stop, self.block, strict=True):
            of_axis = np.arange(low // side, (high - 1) // side + 1)
            numbers.append(of_axis)
            lengths.append(np.minimum((of_axis + 1) * side, high) - np.maximum(of_axis * side, low))
        z, y, x = lengths
        sizes = z[:, None, None] * y[:, None] * x
        blocks = np.stack(np.meshgrid(*numbers, indexing="ij"), axis=-1)
        return int(sizes[self.split_of(blocks) == SPLITS.index(split)].sum())


DEFAULT_GRID = SplitGrid()
