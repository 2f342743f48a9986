"""Cut a box into overlapping patches, in order, so that each voxel is in the inner part of exactly one of them."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..core.geometry import Shape
from .sampling import Box


class Tile(NamedTuple):
    """A patch, and the part of the result that comes from it; each attribute has one slice for z, y and x.

    Attributes:
        window: The voxels of the array that the patch shows, without padding.
        inner: The part of the patch that the result gets, counted from the start of the padded patch.
        target: The same part, counted from the start of the tiled box.
    """

    window: tuple[slice, ...]
    inner: tuple[slice, ...]
    target: tuple[slice, ...]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a box of an array, x fastest, as few as possible.

    Between its inner part and its border a patch has at least `halo` voxels, except where the array ends. A patch does
    not leave the array: the last one of an axis is moved inwards. Along an axis on which the array is shorter than a
    patch, there is one tile, and padding on both sides.

    Attributes:
        patch: Shape (z, y, x) of a patch in voxels.
        halo: Number of voxels (z, y, x) on each side of a patch that are not part of the result, less than half of it.
        shape: Shape (z, y, x) of the array in voxels.
        box: The box of the array to tile; it is not empty.
    """

    patch: Shape
    halo: Shape
    shape: Shape
    box: Box

    def __len__(self) -> int:
        return math.prod(map(len, self._axes))

    def __getitem__(self, number: int) -> Tile:
        """Return the tile with this number, 0 to the number of tiles less 1."""
        places = np.unravel_index(number, [len(axis) for axis in self._axes])
        parts = [axis[place] for axis, place in zip(self._axes, places, strict=True)]
        return Tile(*zip(*parts, strict=True))

    @cached_property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Number of voxels to add to each window, before and after it, along (z, y, x)."""
        missing = [max(length - there, 0) for length, there in zip(self.patch, self.shape, strict=True)]
        return tuple((count // 2, count - count // 2) for count in missing)

    @cached_property
    def _axes(self) -> list[list[tuple[slice, slice, slice]]]:
        """Window, inner part and target of the tiles along each axis."""
        axes = zip(self.patch, self.halo, self.shape, self.box.start, self.box.stop, self.padding, strict=True)
        return [
            _intervals(patch, halo, length, start, stop, before)
            for patch, halo, length, start, stop, (before, _) in axes
        ]


def _intervals(
    patch: int, halo: int, length: int, start: int, stop: int, before: int
) -> list[tuple[slice, slice, slice]]:
    """Return window, inner part and target of the tiles of an interval of an axis.

    Args:
        patch: Voxels of a patch.
        halo: Voxels between its inner part and its border.
        length: Voxels of the whole axis.
        start: First voxel of the interval.
        stop: Exclusive end of the interval.
        before: Voxels of padding before a window.
    """
    low, high = max(start - halo, 0), min(stop + halo, length)  # what the network should see
    count = 1 + max(math.ceil((high - low - patch) / (patch - 2 * halo)), 0)
    found, done = [], start
    for number in range(count):
        # of several patches the last one ends at `high`; a single one may be longer than that, and begins at `low`
        first = low + number * (patch - 2 * halo) if count == 1 or number < count - 1 else high - patch
        first = max(min(first, length - patch), 0)
        end = stop if number == count - 1 else first + patch - halo
        corner = first - before
        window = slice(first, min(first + patch, length))
        found.append((window, slice(done - corner, end - corner), slice(done - start, end - start)))
        done = end
    return found
