"""The scales at which a Dataset is served: its voxels, and every 2nd, 4th, 8th, ... row with its columns combined."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..core.geometry import Shape
from ..core.kinds import Kind, kind_of
from ..store.columns import combined
from ..store.levels import SMALL_ENOUGH
from ..store.ome_metadata import Scale

CHUNK = (1, 64, 2048)
"""Voxels (z, y, x) of a chunk: wide and low, because rows are fetched from their left edge; whole cells of masks.

Viewers ask for all coarser scales of what they show. Of a lower chunk, fewer rows lie beside the picture; of a higher
one, more is read at once, as browsers send only six requests at the same time."""

HOW = (
    "every n-th row; its columns averaged, their share of the label kept in cells of 32 x 32 voxels, or the middle one"
)
"""How scales are made, for OME-Zarr's `type`."""


@dataclass(frozen=True)
class ServedScale:
    """A variable at one scale.

    Attributes:
        name: The variable.
        kind: Kind of its voxels.
        dtype: Data type of its voxels.
        whole: Shape (z, y, x) of the variable.
        factor: Number of rows, and of columns, for which a voxel stands.
    """

    name: str
    kind: Kind
    dtype: np.dtype[Any]
    whole: Shape
    factor: int

    @property
    def shape(self) -> Shape:
        """Shape (z, y, x) at this scale."""
        z, y, x = self.whole
        return z, -(-y // self.factor), -(-x // self.factor)

    @property
    def chunks(self) -> Shape:
        """Voxels (z, y, x) of a chunk."""
        z, y, x = (min(most, length) for most, length in zip(CHUNK, self.shape, strict=True))
        return z, y, x

    def has(self, chunk: Shape) -> bool:
        """Return whether there is such a chunk."""
        return all(0 <= i < -(-n // of) for i, n, of in zip(chunk, self.shape, self.chunks, strict=True))

    def chunks_of(self, z: int, rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[Shape]:
        """Yield the chunks that show a part of a slice: rows and columns of the variable, first and end (exclusive)."""
        spans = (
            range(first // (self.factor * length), -(-end // (self.factor * length)))
            for (first, end), length in zip((rows, columns), self.chunks[1:], strict=True)
        )
        yield from ((z, y, x) for y, x in product(*spans) if self.has((z, y, x)))

    def rows(self, chunk: Shape) -> npt.NDArray[np.intp]:
        """Return the rows of the variable that a chunk shows."""
        first = chunk[1] * self.chunks[1]
        return np.arange(first, min(first + self.chunks[1], self.shape[1])) * self.factor

    def columns(self, chunk: Shape) -> slice:
        """Return the columns of the variable that a chunk shows."""
        first, width = chunk[2] * self.chunks[2] * self.factor, self.chunks[2] * self.factor
        return slice(first, min(first + width, self.whole[2]))

    def voxels(self, pixels: npt.NDArray[Any], chunk: Shape) -> npt.NDArray[Any]:
        """Return the voxels of a chunk; beyond the end of the array they are 0.

        Args:
            pixels: The rows and columns that the chunk shows.
            chunk: The chunk.
        """
        z, y, x = (i * of for i, of in zip(chunk, self.chunks, strict=True))
        found = combined(pixels[None], self.factor, self.kind, (z, y, x))
        if found.shape == self.chunks:
            return np.ascontiguousarray(found)
        out = np.zeros(self.chunks, self.dtype)
        out[tuple(map(slice, found.shape))] = found
        return out

    def scale(self, path: str, corner: tuple[float, float, float]) -> Scale:
        """Return where the voxels are.

        Args:
            path: Path of the array.
            corner: Position (z, y, x) of the first voxel of the Dataset.
        """
        z, y, x = corner
        return Scale(path, (1, self.factor, self.factor), (z, y, x + (self.factor - 1) / 2))


def scales_of(name: str, variable: xr.DataArray) -> Iterator[ServedScale]:
    """Yield the scales of a variable, from fine to coarse; the last one has at most 512 rows and columns."""
    z, y, x = variable.shape
    factor = 1
    while True:
        yield ServedScale(name, kind_of(variable), variable.dtype, (z, y, x), factor)
        if max(y, x) <= SMALL_ENOUGH * factor:
            return
        factor *= 2
