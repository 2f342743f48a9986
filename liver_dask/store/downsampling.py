"""Downsampling by 2: the mean for images, the share of masks, the most frequent number for instances."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..archive.lazy.window import Selection
from ..core.concurrency import cores
from ..core.geometry import Shape
from ..core.kinds import Kind
from ..core.places import Place
from .array import StoredArray
from .mask_shares import CELL, keep_share
from .record import checksums_digest, open_record

Method = Literal["mean", "kept share", "most frequent", "majority"]
"""Name of a downsampling method, also in `DownsamplingReader.describe`. Earlier versions made masks by majority."""

METHODS: dict[Kind, Method] = {"image": "mean", "mask": "kept share", "instances": "most frequent"}
"""The methods of new levels."""

TILE = (1024, 2048)
"""Maximum rows and columns of the level below that are read at once: with 16 slices of raw, 64 MB."""


@dataclass(frozen=True)
class DownsamplingReader:
    """Reader of one variable of a pyramid level, which downsamples the variable in the level below.

    Attributes:
        below: Folder of the level below.
        variable: Name of the variable.
        step: Size of a voxel (z, y, x) in voxels of the level below: 1 or 2 along each axis.
        method: The downsampling method.
    """

    below: Place
    variable: str
    step: Shape
    method: Method

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
        cell = (1, CELL, CELL) if self.method == "kept share" else (1, 1, 1)
        corner = int(z[0]), int(y[0]), int(x[0])
        for tile in _tiles(out.shape):
            first = [start + part.start for start, part in zip(corner, tile, strict=True)]
            end = [start + part.stop for start, part in zip(corner, tile, strict=True)]
            begins = [at // of * of for at, of in zip(first, cell, strict=True)]  # a method needs whole cells
            ends = [-(-at // of) * of for at, of in zip(end, cell, strict=True)]
            box = tuple(slice(a * of, b * of) for a, b, of in zip(begins, ends, self.step, strict=True))
            wanted = tuple(slice(a - at, b - at) for a, b, at in zip(first, end, begins, strict=True))
            with cores:
                out[tile] = downsample(source[box], self.step, self.method, begins)[wanted]

    def describe(self) -> str:
        """Return a text that identifies the method and, by their checksums, the voxels of the level below.

        The text does not change if the store is moved.
        """
        voxels = checksums_digest(self.below, self.variable)
        what = f"{self.method} of {self.step} voxels of the {self.variable}"
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


def downsample(
    voxels: npt.NDArray[Any], step: Shape, method: Method, corner: Sequence[int] = (0, 0, 0)
) -> npt.NDArray[Any]:
    """Downsample voxels by 2 along the axes where `step` is 2.

    If an axis has an odd length, its last voxel covers only the voxels that exist.

    Args:
        voxels: Voxels (z, y, x): integers, floats or bools.
        step: 1 or 2 for each axis.
        method: With "mean", a voxel becomes the mean of the voxels it covers; integers are rounded to the nearest,
            halves to even. With "kept share", as many voxels of each cell of 32 x 32 are labelled as keep the share of
            labelled voxels, those that cover most first; they get the greatest value that they cover, and the others
            0. With "majority", those are labelled that cover at least half labelled voxels. With "most frequent", a
            voxel becomes the most frequent number; if several are equally frequent, the smallest nonzero one.
        corner: Position (z, y, x) in the new level of the first voxel, where a cell begins.

    Returns:
        Voxels (z, y, x) with the same dtype.
    """
    odd = [(0, -length % of) for length, of in zip(voxels.shape, step, strict=True)]
    if any(more for _, more in odd):
        voxels = np.pad(voxels, odd, mode="edge")  # repeating the last voxels changes neither mean nor share
    parts = [voxels[tuple(slice(at, None, of) for at, of in zip(place, step, strict=True))] for place in _corners(step)]
    if len(parts) == 1:
        return voxels
    return _kept_share(parts, corner) if method == "kept share" else _DOWNSAMPLED[method](parts)


def _corners(step: Shape) -> Iterator[tuple[int, ...]]:
    return product(*map(range, step))


def _counted(parts: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Return how many voxels of each block are labelled, and the greatest value of these; 0 if none is."""
    count = np.zeros(parts[0].shape, np.uint8)
    greatest = np.zeros_like(parts[0])
    for part in parts:
        count += part != 0
        if part.dtype.kind in "ub":
            np.maximum(greatest, part, out=greatest)
        else:  # 0 is not the least value
            np.copyto(greatest, part, where=(part != 0) & ((greatest == 0) | (part > greatest)))
    return count, greatest


def _kept_share(parts: list[npt.NDArray[Any]], corner: Sequence[int]) -> npt.NDArray[Any]:
    count, greatest = _counted(parts)
    z, y, x = corner
    greatest[~keep_share(count, len(parts), (z, y, x), np.empty(count.shape, bool))] = 0
    return greatest


def _majority(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    count, greatest = _counted(parts)
    greatest[count < len(parts) // 2] = 0
    return greatest


def _mean(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    dtype = parts[0].dtype
    if dtype.kind == "b":
        return np.asarray(2 * np.sum(parts, axis=0, dtype=np.uint8) > len(parts))
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


_DOWNSAMPLED: dict[Method, Callable[[list[npt.NDArray[Any]]], npt.NDArray[Any]]] = {
    "mean": _mean,
    "majority": _majority,
    "most frequent": _most_frequent,
}


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield parts of a box that need at most TILE rows and columns of the level below."""
    height, width = TILE[0] // 2, TILE[1] // 2
    for y, x in product(range(0, shape[1], height), range(0, shape[2], width)):
        yield slice(0, shape[0]), slice(y, min(y + height, shape[1])), slice(x, min(x + width, shape[2]))
