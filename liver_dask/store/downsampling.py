"""Halving voxels: of an image the mean, of a mask the majority, of instances the most frequent number."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..archive.lazy.arrays import Selection
from ..core.concurrency import cores
from ..core.geometry import Shape
from ..core.kinds import Kind
from .array import StoredArray
from .record import open_record, read_checksums

if TYPE_CHECKING:
    pass


HOW: dict[Kind, str] = {"image": "mean", "mask": "majority", "instances": "most frequent"}
"""How a level is said to be made."""


TILE = (1024, 2048)
"""Rows and columns that are read at once of the level below: with 16 slices of raw, 64 MB."""


@dataclass(frozen=True)
class DownsamplingReader:
    """One variable of a level, read by downsampling what the level below has of it.

    Attributes:
        below: The level below.
        variable: The variable.
        step: How many voxels of the level below a voxel stands for: 1 or 2 along each of z, y and x.
        kind: Of the variable: how one voxel is made of several.
    """

    below: Path
    variable: str
    step: Shape
    kind: Kind

    @property
    def slices_at_once(self) -> int:
        """As many as the level below keeps together, and decodes together."""
        depth: int = open_record(self.below)["chunks"][0]
        return depth

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x) of the level."""
        z, y, x = open_record(self.below)["shape"]
        return -(-z // self.step[0]), -(-y // self.step[1]), -(-x // self.step[2])

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """Read a box; the selections are ranges of neighbours."""
        source = StoredArray(self.below, self.variable)
        corner = int(z[0]), int(y[0]), int(x[0])
        for tile in _tiles(out.shape):
            box = tuple(
                slice((start + part.start) * step, (start + part.stop) * step)
                for start, part, step in zip(corner, tile, self.step, strict=True)
            )
            with cores:
                out[tile] = downsample(source[box], self.step, self.kind)

    def describe(self) -> str:
        """Of which voxels, by their checksums, and how: the same wherever the store is moved."""
        known = json.dumps(sorted(read_checksums(self.below, self.variable).items()))
        voxels = hashlib.sha256(known.encode()).hexdigest()[:32]
        what = f"{HOW[self.kind]} of {self.step} voxels of the {self.variable}"
        return f"{what} whose shards' checksums have the SHA-256 {voxels}"

    @property
    def variant(self) -> str:
        """None."""
        return ""

    def origin(self) -> None:
        """Not of an archive."""

    def probe(self, z: int) -> None:
        """Find out whether the level below is there."""
        StoredArray(self.below, self.variable)

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """Nothing is fetched, so nothing can be fetched ahead."""
        return nullcontext()


def downsample(voxels: npt.NDArray[Any], step: Shape, kind: Kind) -> npt.NDArray[Any]:
    """Half the size along the axes where `step` is 2; at an odd end a voxel stands for those that there are.

    Args:
        voxels: (z, y, x), integers, floats or bools.
        step: 1 or 2 for each axis.
        kind: Of an image a voxel gets the mean of those it stands for, rounded to the nearest, halves to even. Of a
            mask it gets the greatest value where half of them or more are not zero, else 0. Of instances it gets the
            number that most of them have; of several as frequent ones the smallest, but 0 only if there is no other.
    """
    odd = [(0, -length % of) for length, of in zip(voxels.shape, step, strict=True)]
    if any(more for _, more in odd):
        voxels = np.pad(voxels, odd, mode="edge")  # twice the same voxels: neither mean nor majority changes
    parts = [voxels[tuple(slice(at, None, of) for at, of in zip(place, step, strict=True))] for place in _corners(step)]
    if len(parts) == 1:
        return voxels
    return _DOWNSAMPLED[kind](parts)


def _corners(step: Shape) -> Iterator[tuple[int, ...]]:
    return product(*map(range, step))


def _majority(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    count = np.zeros(parts[0].shape, np.uint8)
    greatest = np.zeros_like(parts[0])
    for part in parts:
        count += part != 0
        np.maximum(greatest, part, out=greatest)
    greatest[count < len(parts) // 2] = 0
    return greatest


def _mean(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    dtype = parts[0].dtype
    if dtype.kind == "f":
        return np.mean(parts, axis=0, dtype=np.float64).astype(dtype)
    bits = len(parts).bit_length() - 1  # 2, 4 or 8 parts
    low, mean = np.zeros(parts[0].shape, dtype), np.zeros(parts[0].shape, dtype)
    for part in parts:  # the upper bits and the lower ones each for themselves: no sum needs a wider type
        mean += part >> bits
        low += part & (len(parts) - 1)
    mean += low >> bits
    low &= len(parts) - 1
    half = len(parts) // 2
    mean += (low > half) | ((low == half) & (mean & 1).astype(bool))
    return mean


def _most_frequent(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    best, most = np.zeros_like(parts[0]), np.zeros(parts[0].shape, np.uint8)
    for part in parts:
        count = np.zeros(part.shape, np.uint8)
        for other in parts:
            count += part == other
        is_better = (count > most) | ((count == most) & (part != 0) & ((best == 0) | (part < best)))
        best[is_better], most[is_better] = part[is_better], count[is_better]
    return best


_DOWNSAMPLED: dict[Kind, Callable[[list[npt.NDArray[Any]]], npt.NDArray[Any]]] = {
    "image": _mean,
    "mask": _majority,
    "instances": _most_frequent,
}


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Parts of a box that need no more of the level below than TILE."""
    height, width = TILE[0] // 2, TILE[1] // 2
    for y, x in product(range(0, shape[1], height), range(0, shape[2], width)):
        yield slice(0, shape[0]), slice(y, min(y + height, shape[1])), slice(x, min(x + width, shape[2]))
