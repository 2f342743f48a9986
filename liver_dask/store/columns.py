"""Larger voxels for views of what has no smaller copies: some rows, of which several columns become one.

A row of an archive is fetched from its left edge. So all of its columns cost no more than a few of them, and an average
shows the tissue where single voxels would show noise.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.lazy_window import LazyWindow
from ..archive.lazy.window import Selection, Window
from ..core.geometry import Shape
from ..core.kinds import Kind, kind_of
from .mask_shares import CELL, keep_share
from .scales import block_means

BYTES_AT_ONCE = 64 << 20
"""Bytes of rows that are in memory at once, unless one cell of a mask needs more."""

BYTES_IN_CACHE = 1 << 20
"""Bytes of rows that are combined in one step; rows that do not fit into a processor's cache take much longer."""


def combine_columns(variable: xr.DataArray, step: int) -> xr.DataArray:
    """Combine every `step` columns of a variable into one. The result is lazy if the variable is lazy.

    Args:
        variable: A variable with dims (y, x).
        step: Number of columns that become one.

    Returns:
        The variable, (y, x), without coordinates; see `combined` for its voxels.
    """
    kind, columns = kind_of(variable), -(-variable.sizes["x"] // step)
    is_lazy = variable.chunks is not None or not variable.variable._in_memory
    data = variable.variable._data if variable.chunks is not None else None
    combined_data: Any
    if isinstance(data, VolumeArray) and data.lazy:
        reader = ColumnReader(data.lazy, step, kind)
        window = Window.whole((1, *reader.shape[1:]))[0, slice(None), slice(None)]
        lengths = tuple((length,) for length in window.shape)
        combined_data = VolumeArray.of(LazyWindow(reader, window, variable.dtype), lengths)
    elif is_lazy:
        rows = (variable if variable.chunks is not None else variable.chunk()).chunk(y=-1, x=-1).data
        combined_data = rows.map_blocks(
            partial(_combined_rows, step=step, kind=kind), chunks=(rows.chunks[0], (columns,)), dtype=variable.dtype
        )
    else:
        combined_data = _combined_rows(variable.values, step, kind)
    return xr.DataArray(combined_data, dims=("y", "x"), name=variable.name, attrs=variable.attrs)


def _combined_rows(pixels: npt.NDArray[Any], step: int, kind: Kind) -> npt.NDArray[Any]:
    return combined(pixels[None], step, kind)[0]


@dataclass(frozen=True)
class ColumnReader:
    """Reader of a window whose columns are combined.

    Attributes:
        lazy: The window.
        step: Number of columns that become one.
        kind: Kind of the voxels.
    """

    lazy: LazyWindow
    step: int
    kind: Kind

    @property
    def slices_at_once(self) -> int:
        """Number of slices that one call should read."""
        return self.lazy.read.slices_at_once

    @property
    def shape(self) -> Shape:
        """Number of slices, of rows, and of columns after they were combined."""
        z, y, x = map(len, self.lazy.window.selections)
        return z, y, -(-x // self.step)

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """Read voxels at the given indexes, none of them empty, into `out`, (len(z), len(y), len(x))."""
        cell = CELL if self.kind == "mask" else 1  # the voxels of a cell are decided together
        rows = (
            np.unique(y) if cell == 1 else np.arange(min(y) // cell * cell, _end_of_cell(max(y), cell, self.shape[1]))
        )
        first = int(min(x)) // cell * cell
        columns = slice(first * self.step, _end_of_cell(int(max(x)), cell, self.shape[2]) * self.step)
        row_bytes = (
            len(z) * len(range(*columns.indices(len(self.lazy.window.selections[2])))) * self.lazy.dtype.itemsize
        )
        at_once = max(1, BYTES_AT_ONCE // (row_bytes * cell)) * cell
        for some in (rows[i : i + at_once] for i in range(0, len(rows), at_once)):
            window = Window(self.lazy.window.selections)[np.asarray(z, np.intp), some, columns]
            voxels = np.empty(window.shape, self.lazy.dtype)
            self.lazy.read(*window.selections, voxels)
            found = combined(voxels, self.step, self.kind, (0, int(some[0]), first))
            here = np.flatnonzero(np.isin(y, some))
            out[:, here] = found[:, np.searchsorted(some, np.asarray(y)[here])][:, :, np.asarray(x, np.intp) - first]

    def describe(self) -> str:
        """Return which voxels these are."""
        return f"{self.step} columns as one ({self.kind}) of {self.lazy.describe()}"

    @property
    def variant(self) -> str:
        """How missing voxels are treated."""
        return self.lazy.read.variant

    def origin(self) -> None:
        """Return None, because the voxels are not those of an archive."""

    def probe(self, z: int) -> None:
        """Check that a slice exists and is as expected, without reading it."""
        self.lazy.read.probe(int(self.lazy.window.selections[0][z]))

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """Announce that all these rows will be read within the context, one part after the other."""
        window = Window(self.lazy.window.selections)[np.asarray(z, np.intp), np.asarray(y, np.intp), slice(None)]
        return self.lazy.read.read_ahead(*window.selections[:2])


def _end_of_cell(index: int, cell: int, length: int) -> int:
    """Return the end (exclusive) of the cell in which an index is."""
    return min((index // cell + 1) * cell, length)


def combined(
    pixels: npt.NDArray[Any], step: int, kind: Kind, corner: tuple[int, int, int] = (0, 0, 0)
) -> npt.NDArray[Any]:
    """Combine every `step` columns into one.

    Args:
        pixels: Voxels (z, y, x).
        step: Number of columns that become one; the last one may have fewer.
        kind: Kind of the voxels. Those of images are averaged; integers are rounded to the nearest, halves to even. Of
            instances, and of integers of 64 bits, the voxel in the middle is taken. Of masks, as many are labelled in
            each cell of 32 x 32 of the result as keep the share of labelled voxels, those first that stand for most of
            them.
        corner: Position of the first voxel in the result, where a cell of a mask begins.

    Returns:
        Voxels (z, y, columns) with the same dtype.
    """
    if step == 1:
        return pixels
    if kind == "mask":
        return _share_of_mask(pixels, step, corner)
    if not is_averaged(kind, pixels.dtype):
        starts = np.arange(0, pixels.shape[2], step)
        return pixels[:, :, (starts + np.minimum(starts + step, pixels.shape[2])) // 2]
    rows = max(1, BYTES_IN_CACHE // (pixels.shape[0] * pixels.shape[2] * pixels.dtype.itemsize))
    parts = [block_means(pixels[:, i : i + rows], (1, 1, step)) for i in range(0, pixels.shape[1], rows)]
    return np.concatenate(parts, axis=1)


def is_averaged(kind: Kind, dtype: np.dtype[Any]) -> bool:
    """Return whether voxels are averaged: those of images, except integers of 64 bits, whose sums might overflow."""
    return kind == "image" and not (dtype.kind in "iu" and dtype.itemsize == 8)


def _share_of_mask(pixels: npt.NDArray[Any], step: int, corner: tuple[int, int, int]) -> npt.NDArray[Any]:
    labelled = pixels != 0
    starts = np.arange(0, pixels.shape[2], step)
    counts = np.add.reduceat(labelled, starts, axis=2, dtype=np.uint16)
    last = pixels.shape[2] - starts[-1]
    counts[..., -1] = counts[..., -1].astype(int) * step // last  # as if the last one were whole
    chosen = keep_share(counts, step, corner, np.empty(counts.shape, bool))
    value = pixels.reshape(-1)[labelled.argmax()] if pixels.size else 0  # all labelled voxels have the same
    return np.where(chosen, value, 0).astype(pixels.dtype)
