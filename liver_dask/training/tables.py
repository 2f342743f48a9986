"""How many nonzero voxels a patch may have, from the table of a store and from masks that were read before.

A table has one count per inner chunk, so it gives bounds for a patch and no exact numbers. A position whose upper bound
is too small needs no reading; every other position is decided from its voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.geometry import Shape

Positions = npt.NDArray[np.int64]
"""Positions of patches, (n, 3): the index (z, y, x) of the first voxel of each."""

CELLS_PER_PATCH = 8
"""Number of cells of `SeenCells` along each axis of a patch."""

LARGEST_CELL: Shape = (8, 64, 64)
"""Voxels (z, y, x). The number of voxels of a cell fits into 16 bits."""

AT_ONCE = 1024
"""Number of patches whose cells are looked up at once."""

MOST_CELLS = 1 << 25
"""Largest number of cells of a table, two bytes each. Memory is used only for the parts that were read."""


@dataclass(frozen=True, eq=False)
class Counts:
    """The number of nonzero voxels in each inner chunk of an array.

    Attributes:
        values: Counts, one per chunk, (z, y, x) in chunks.
        chunks: Shape (z, y, x) of a chunk in voxels.
        shape: Shape (z, y, x) of the array in voxels. The last chunk of each axis may be cut there.
    """

    values: npt.NDArray[np.integer]
    chunks: Shape
    shape: Shape

    def most(self, positions: Positions, patch: Shape) -> npt.NDArray[np.int64]:
        """Return the largest possible number of nonzero voxels of each patch.

        As many nonzero voxels of each chunk as possible are assumed to lie in the patch.
        """
        found, overlap = self._touched(positions, patch)
        return np.minimum(found, overlap).sum(axis=(1, 2, 3))

    def are_filled(self, positions: Positions, patch: Shape) -> npt.NDArray[np.bool_]:
        """Return whether all chunks that a patch touches have nonzero voxels."""
        found, overlap = self._touched(positions, patch)
        return np.asarray(((found > 0) | (overlap == 0)).all(axis=(1, 2, 3)))

    def nearby(self) -> "Counts":
        """Return 1 for chunks that contain nonzero voxels, or have such a neighbour in the same z layer, otherwise 0.

        Diagonal neighbours count, too.
        """
        there = np.pad(self.values > 0, ((0, 0), (1, 1), (1, 1)))
        _, height, width = self.values.shape
        around = [there[:, y : y + height, x : x + width] for y, x in product(range(3), range(3))]
        return Counts(np.any(around, axis=0).astype(np.uint8), self.chunks, self.shape)

    def _touched(self, positions: Positions, patch: Shape) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the counts of the chunks that patches touch, and the number of common voxels, both (n, z, y, x)."""
        axes = zip(positions.T, patch, self.chunks, self.values.shape, strict=True)
        (z, of_z), (y, of_y), (x, of_x) = (_overlaps(*of_axis) for of_axis in axes)
        found = self.values[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]].astype(np.int64)
        return found, of_z[:, :, None, None] * of_y[:, None, :, None] * of_x[:, None, None, :]


def union(tables: Sequence[Counts]) -> Counts:
    """Return upper bounds of the number of voxels that are nonzero in one of several arrays with the same chunks."""
    first = tables[0]
    total = np.stack([table.values for table in tables]).sum(axis=0, dtype=np.int64)
    return Counts(total, first.chunks, first.shape)


def _overlaps(
    starts: npt.NDArray[np.int64], length: int, chunk: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
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
    return np.minimum(touched, count - 1), np.maximum(ends - begins, 0)


class SeenCells:
    """The exact number of labelled voxels in small cells of the volume, as far as masks were read.

    It bounds the number of labelled voxels of a patch much better than the table of the store, so masks are read in
    vain less and less.

    Args:
        shape: Shape (z, y, x) of the volume in voxels.
        patch: Shape (z, y, x) of a patch in voxels.
    """

    def __init__(self, shape: Shape, patch: Shape) -> None:
        self._shape = shape
        cell = [min(max(n // CELLS_PER_PATCH, 1), most) for n, most in zip(patch, LARGEST_CELL, strict=True)]
        self._cell = cell
        self._patch = patch

    @cached_property
    def _seen(self) -> npt.NDArray[np.uint16]:
        """For each cell, 0 if it was not read, otherwise the number of labelled voxels plus 1."""
        return np.zeros([-(-length // cell) for length, cell in zip(self._shape, self._cell, strict=True)], np.uint16)

    @property
    def is_small(self) -> bool:
        """Whether the table is small enough to be kept."""
        cells = np.prod([-(-length // cell) for length, cell in zip(self._shape, self._cell, strict=True)])
        return int(cells) <= MOST_CELLS

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_seen"}

    def learn(self, position: Shape, labelled: npt.NDArray[np.bool_]) -> None:
        """Record the cells that lie completely in a patch.

        Args:
            position: Position (z, y, x) of the patch.
            labelled: Which of its voxels are labelled, (z, y, x).
        """
        if not self.is_small:
            return
        inside, into = [], []
        for start, length, cell, end in zip(position, labelled.shape, self._cell, self._shape, strict=True):
            first, last = -(-start // cell), (start + length) // cell
            if start + length == end:
                last = -(-end // cell)  # the last cell of the volume may be smaller
            if last <= first:
                return
            inside.append(np.arange(first, last) * cell - start)
            into.append(slice(first, last))
        counts: npt.NDArray[Any] = labelled
        for axis, (edges, cell) in enumerate(zip(inside, self._cell, strict=True)):
            part = counts[(slice(None),) * axis + (slice(edges[0], edges[-1] + cell),)]
            counts = np.add.reduceat(part, edges - edges[0], axis=axis, dtype=np.uint16)
        self._seen[tuple(into)] = counts + 1

    def most(self, positions: Positions) -> npt.NDArray[np.int64]:
        """Return the largest possible number of labelled voxels of the patches at some positions, (n,)."""
        if not self.is_small or "_seen" not in vars(self):
            return np.full(len(positions), np.prod(self._patch))
        parts = [self._most(positions[i : i + AT_ONCE]) for i in range(0, len(positions), AT_ONCE)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _most(self, positions: Positions) -> npt.NDArray[np.int64]:
        axes = zip(positions.T, self._patch, self._cell, self._seen.shape, strict=True)
        (z, of_z), (y, of_y), (x, of_x) = (_overlaps(*of_axis) for of_axis in axes)
        seen = self._seen[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]].astype(np.int32)
        overlap = (of_z[:, :, None, None] * of_y[:, None, :, None] * of_x[:, None, None, :]).astype(np.int32)
        return np.where(seen == 0, overlap, np.minimum(seen - 1, overlap)).sum(axis=(1, 2, 3), dtype=np.int64)
