"""Downsampling by 2: the mean for images, the majority for masks, the most frequent number for instances."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..archive.lazy.window import Selection
from ..core.concurrency import cores
from ..core.geometry import Shape
from ..core.kinds import Kind
from .array import StoredArray
from .record import open_record, read_checksums

HOW: dict[Kind, str] = {"image": "mean", "mask": "majority", "instances": "most frequent"}
"""Name of the downsampling method in `DownsamplingReader.describe`."""


TILE = (1024, 2048)
"""Maximum rows and columns of the level below that are read at once: with 16 slices of raw, 64 MB."""


@dataclass(frozen=True)
class DownsamplingReader:
    """Reader of one variable of a pyramid level, which downsamples the variable in the level below.

    Attributes:
        below: Folder of the level below.
        variable: Name of the variable.
        step: Size of a voxel (z, y, x) in voxels of the level below: 1 or 2 along each axis.
        kind: Kind of the variable, which determines the downsampling method.
    """

    below: Path
    variable: str
    step: Shape
    kind: Kind

    @property
    def slices_at_once(self) -> int:
        """Number of slices that one call should read: the slices in a chunk of the level below, decoded together."""
        depth: int = open_record(self.below)["chunks"][0]
        return depth

    @property
    def shape(self) -> Shape:
        """Shape (z, y, x) of the level in voxels."""
        z, y, x = open_record(self.below)["shape"]
        return -(-z // self.step[0]), -(-y // self.step[1]), -(-x // self.step[2])

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """Read a box into `out`, (len(z), len(y), len(x)); the selections must be contiguous ranges."""
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
        """Return a text that identifies the method and, by their checksums, the voxels of the level below.

        The text does not change if the store is moved.
        """
        known = json.dumps(sorted(read_checksums(self.below, self.variable).items()))
        voxels = hashlib.sha256(known.encode()).hexdigest()[:32]
        what = f"{HOW[self.kind]} of {self.step} voxels of the {self.variable}"
        return f"{what} whose shards' checksums have the SHA-256 {voxels}"

    @property
    def variant(self) -> str:
        """Empty, because all readers of the same voxels are equal."""
        return ""

    def origin(self) -> None:
        """Return None, because the voxels do not come from an archive."""

    def probe(self, z: int) -> None:
        """Check that the level below can be opened."""
        StoredArray(self.below, self.variable)

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """Do nothing, because no data are fetched over the network."""
        return nullcontext()


def downsample(voxels: npt.NDArray[Any], step: Shape, kind: Kind) -> npt.NDArray[Any]:
    """Downsample voxels by 2 along the axes where `step` is 2.

    If an axis has an odd length, its last voxel covers only the voxels that exist.

    Args:
        voxels: Voxels (z, y, x): integers, floats or bools.
        step: 1 or 2 for each axis.
        kind: An image voxel becomes the mean of the voxels it covers; integers are rounded to the nearest, halves to
            even. A mask voxel becomes their greatest value if at least half of them are nonzero, otherwise 0. An
            instance voxel becomes their most frequent number. If several numbers are equally frequent, it becomes the
            smallest nonzero one.

    Returns:
        Voxels (z, y, x) with the same dtype.
    """
    odd = [(0, -length % of) for length, of in zip(voxels.shape, step, strict=True)]
    if any(more for _, more in odd):
        voxels = np.pad(voxels, odd, mode="edge")  # repeating the last voxels changes neither mean nor majority
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
    for part in parts:  # upper and lower bits are added separately, so that no sum needs a wider type
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
    """Yield parts of a box that need at most TILE rows and columns of the level below."""
    height, width = TILE[0] // 2, TILE[1] // 2
    for y, x in product(range(0, shape[1], height), range(0, shape[2], width)):
        yield slice(0, shape[0]), slice(y, min(y + height, shape[1])), slice(x, min(x + width, shape[2]))
