"""Sample positions of patches: uniformly from all positions that the tables, the split and the box allow."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.geometry import Shape
from .splits import SplitGrid, SplitName
from .tables import Counts, Positions

FIRST_DRAW, LARGEST_DRAW, MOST_TRIES = 8, 1 << 14, 1 << 20
"""Number of positions that are tried at once first, at most at once, and in total."""

MOST_BESIDE = 4096
"""Number of positions that are tried in the chunk of another one."""


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


class Split(NamedTuple):
    """The split that patches belong to.

    Attributes:
        name: The split.
        grid: The grid of blocks.
        origin: Position (z, y, x) of the array in the volume.
        volume: Shape (z, y, x) of the volume in voxels.
    """

    name: SplitName
    grid: SplitGrid
    origin: Shape
    volume: Shape


class Minimum(NamedTuple):
    """A minimum number of nonzero voxels of a patch.

    Attributes:
        counts: Table of the nonzero voxels.
        voxels: The minimum.
    """

    counts: Counts
    voxels: int


@dataclass(frozen=True, eq=False)
class PatchSampler:
    """Samples positions of patches uniformly.

    Attributes:
        patch: Shape (z, y, x) of a patch in voxels.
        box: Box of the array to sample from. It is not smaller than a patch.
        minima: What each patch must contain; positions that the tables exclude are not returned.
        region: Table of the chunks that a patch may touch: those with a count. None for all.
        split: The split that each patch belongs to; None for no split.
    """

    patch: Shape
    box: Box
    minima: tuple[Minimum, ...] = ()
    region: Counts | None = None
    split: Split | None = None

    def candidates(
        self, rng: np.random.Generator, may_be: Callable[[Positions], npt.NDArray[np.bool_]] | None = None
    ) -> Iterator[Shape]:
        """Yield random positions that may be allowed, until about a million (MOST_TRIES) were tried.

        Positions that are certainly not allowed are left out. If the caller takes the first position that is allowed
        according to its voxels, all allowed positions have the same chance. Which one it is does not depend on the
        tables.

        Args:
            rng: Generator of the positions.
            may_be: Function that says which positions are not excluded for other reasons; None if there are none.
        """
        tried, count = 0, FIRST_DRAW
        while tried < MOST_TRIES and len(self._places):
            chosen = self._places[np.searchsorted(self._ends, rng.integers(0, self._ends[-1], count), side="right")]
            positions = rng.integers(chosen[:, 0], chosen[:, 1])
            positions = positions[self.may_be(positions)]
            yield from map(tuple, (positions if may_be is None else positions[may_be(positions)]).tolist())
            tried, count = tried + count, min(4 * count, LARGEST_DRAW)

    def beside(self, position: Shape, chunk: Shape, rng: np.random.Generator) -> Iterator[Shape]:
        """Yield random positions that may be allowed and begin in the same chunk as an allowed one, and at last that.

        If the given position is drawn uniformly from all allowed ones, then so is the first of these that is allowed.
        """
        low = np.array(position, np.int64) // chunk * np.array(chunk)
        high: npt.NDArray[np.int64] = np.minimum(low + chunk, np.array(self.box.stop) - self.patch + 1)
        low = np.maximum(low, self.box.start)
        for _ in range(MOST_BESIDE // FIRST_DRAW):
            positions = rng.integers(low, high, (FIRST_DRAW, 3))
            yield from map(tuple, positions[self._are_placed(positions) & self.may_be(positions)].tolist())
        yield position

    def _are_placed(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Return which positions lie in one of the boxes to draw from."""
        inside = (positions[:, None] >= self._places[:, 0]) & (positions[:, None] < self._places[:, 1])
        return np.any(np.all(inside, axis=2), axis=1)

    @cached_property
    def _places(self) -> Positions:
        """Boxes of positions to draw from, as the first position and the exclusive end of each, (boxes, 2, 3)."""
        (z, y, x), stop = self.box.start, self.box.stop
        end = np.array(stop) - self.patch + 1
        if self.split is None or self.split.name == "train":
            return np.array([[self.box.start, end]])
        name, grid, origin, volume = self.split
        start = z + origin[0], y + origin[1], x + origin[2]
        beyond = stop[0] + origin[0], stop[1] + origin[1], stop[2] + origin[2]
        return grid.places(name, start, beyond, self.patch, volume) - np.array(origin)

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Number of positions in all boxes up to each one."""
        return np.cumsum((self._places[:, 1] - self._places[:, 0]).prod(axis=1))

    def may_be(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Return which positions are not excluded."""
        allowed = np.ones(len(positions), bool)
        if self.split and self.split.name == "train":
            name, grid, origin, volume = self.split
            allowed = grid.allows(name, positions + origin, self.patch, volume)
        if self.region:
            allowed[allowed] = self.region.are_filled(positions[allowed], self.patch)
        for minimum in self.minima:
            allowed[allowed] = minimum.counts.most(positions[allowed], self.patch) >= minimum.voxels
        return allowed
