"""Where the voxels come from that a model gets: an archive, a store, or any other array of dask."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import optimize, tokenize

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.futures import held_by_a_cluster
from ..archive.lazy.lazy_window import LazyWindow, Reader
from ..archive.lazy.leaves import Read, leaves_in
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape
from ..core.threads import ContextPool
from ..store.array import StoredArray
from ..store.placement import placement_of
from ..store.record import open_record

READERS = 8
"""Number of blocks of dask that are read at the same time."""

Box = tuple[slice, slice, slice]
"""Voxels (z, y, x) from the first to the last, exclusive, both within the volume."""


class Raw(Protocol):
    """The volume that a model gets; it is picklable."""

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""

    @property
    def is_read_by_rows(self) -> bool:
        """Whether rows are read over the full width, because the files of an archive are."""

    @property
    def inputs(self) -> Iterable[LazyWindow]:
        """The windows of an archive that it is read from, as far as they are known."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x)."""

    def reads(self, box: Box) -> Iterable[Read]:
        """Return what is read of an archive for a box."""

    def reading(self, others: Mapping[Reader, Reader]) -> "Raw":
        """Return the same volume, read by other readers of the same voxels where there are any."""

    def part(self, z: slice) -> "Raw":
        """Return what is needed to read some slices, with the same numbers, as small as it can be sent."""

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """Announce that all these rows will be read within the context, one part after the other."""

    def probe(self, z: int) -> None:
        """Check that a slice exists and is as expected, without reading it."""

    def described(self) -> Any:
        """Return JSON that identifies the voxels, equal in every process and for every copy of an archive."""

    @property
    def variant(self) -> str:
        """See `Reader.variant`."""


def raw_of(variable: xr.DataArray) -> Raw:
    """Return the volume that a variable (z, y, x) holds.

    Raises:
        InvalidArgumentError: A cluster holds its voxels. (ValueError)
    """
    data = variable.variable._data
    if isinstance(data, VolumeArray) and data.lazy:
        return OfArchive(data.lazy)
    placed = placement_of(variable.variable)
    if placed is not None:
        folder, name = placed.array.parent, placed.array.name
        return OfStore(StoredArray(folder, name), placed.corner, _shape(variable), _voxels_of(folder, name))
    array = variable.data if variable.chunks is not None else variable.chunk("auto").data
    if any(True for _ in held_by_a_cluster(array)):
        raise InvalidArgumentError("A cluster holds raw (persist); give the variable as it was before.")
    inputs = tuple(leaf for leaf in leaves_in(array) if isinstance(leaf, LazyWindow))
    return OfArray(array, f"computed {tokenize(array)}", _shape(variable), inputs)


@dataclass(frozen=True)
class OfArchive:
    """A window of a variable of an archive, or of anything that is read the same way."""

    lazy: LazyWindow

    is_read_by_rows = True

    @property
    def shape(self) -> Shape:
        """See Raw."""
        z, y, x = self.lazy.shape
        return z, y, x

    @property
    def inputs(self) -> Iterable[LazyWindow]:
        """See Raw."""
        return (self.lazy,)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """See Raw."""
        return self.lazy.read_side_by_side(box)

    def reads(self, box: Box) -> Iterable[Read]:
        """See Raw."""
        return (Read(self.lazy, self.lazy.window[box]),)

    def reading(self, others: Mapping[Reader, Reader]) -> "OfArchive":
        """See Raw."""
        return OfArchive(replace(self.lazy, read=others.get(self.lazy.read, self.lazy.read)))

    def part(self, z: slice) -> "OfArchive":
        """See Raw."""
        return self

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """See Raw."""
        of_z, of_y, _ = self.lazy.window.selections
        return self.lazy.read.read_ahead(of_z[z], of_y[y])

    def probe(self, z: int) -> None:
        """See Raw."""
        self.lazy.read.probe(int(self.lazy.window.selections[0][z]))

    def described(self) -> Any:
        """See Raw."""
        origin = self.lazy.origin()
        if origin is None:
            return self.lazy.describe()
        return {key: value for key, value in origin.items() if key != "source"}

    @property
    def variant(self) -> str:
        """See Raw."""
        return self.lazy.read.variant


@dataclass(frozen=True)
class OfStore:
    """A box of a variable of a complete store.

    Attributes:
        array: The variable.
        corner: The first voxel (z, y, x) of the box.
        shape: Voxels (z, y, x) of the box.
        voxels: What the record of the store says about the voxels of the variable.
    """

    array: StoredArray
    corner: Shape
    shape: Shape
    voxels: Any

    is_read_by_rows = False
    inputs = ()
    variant = ""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """See Raw."""
        z, y, x = (slice(of.start + at, of.stop + at) for of, at in zip(box, self.corner, strict=True))
        return self.array[z, y, x]

    def reads(self, box: Box) -> Iterable[Read]:
        """See Raw: nothing."""
        return ()

    def reading(self, others: Mapping[Reader, Reader]) -> "OfStore":
        """See Raw."""
        return self

    def part(self, z: slice) -> "OfStore":
        """See Raw."""
        return self

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """See Raw: nothing is fetched from an archive."""
        return nullcontext()

    def probe(self, z: int) -> None:
        """See Raw: the store was opened."""

    def described(self) -> Any:
        """See Raw: what an archive's box is in a store is the same as that box of the archive."""
        if not isinstance(self.voxels, dict):
            return [self.voxels, [[at, at + of] for at, of in zip(self.corner, self.shape, strict=True)]]
        box = {
            dim: range(*self.voxels[dim])[at : at + length]
            for dim, at, length in zip(DIMS, self.corner, self.shape, strict=True)
        }
        origin = {key: value for key, value in self.voxels.items() if key != "source"}
        return origin | {dim: [of.start, of.stop, of.step] for dim, of in box.items()}


@dataclass(frozen=True, eq=False)
class OfArray:
    """Any array of dask.

    Attributes:
        array: The array, or some slices of it.
        name: What identifies the whole array.
        shape: Voxels (z, y, x) of the whole array.
        inputs: The windows of an archive that the whole array is computed from.
        first: The first slice of `array`.
    """

    array: da.Array
    name: str
    shape: Shape
    inputs: tuple[LazyWindow, ...]
    first: int = 0

    variant = ""

    @property
    def is_read_by_rows(self) -> bool:
        """See Raw."""
        return bool(self.inputs)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """See Raw."""
        part = self.array[self._slices(box[0]), box[1], box[2]]
        if part.npartitions == 1:
            return np.asarray(part.compute(scheduler="sync"))
        with ContextPool(READERS) as pool:
            return np.asarray(part.compute(scheduler="threads", pool=pool))

    def reads(self, box: Box) -> Iterable[Read]:
        """See Raw: known where each voxel is computed from that of the same place."""
        return [Read(lazy, lazy.window[box]) for lazy in self.inputs if lazy.shape == self.shape]

    def reading(self, others: Mapping[Reader, Reader]) -> "OfArray":
        """See Raw: the readers are within the graph."""
        return self

    def part(self, z: slice) -> "OfArray":
        """See Raw."""
        (culled,) = optimize(self.array[self._slices(z)])
        return replace(self, array=culled, first=z.start)

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """See Raw: what the graph reads is not known."""
        return nullcontext()

    def probe(self, z: int) -> None:
        """See Raw: the first slice of each window stands for all."""
        for lazy in self.inputs:
            if lazy.nbytes:
                lazy.read.probe(int(lazy.window.selections[0][0]))

    def described(self) -> Any:
        """See Raw."""
        return self.name

    def _slices(self, z: slice) -> slice:
        return slice(z.start - self.first, z.stop - self.first)


def _shape(variable: xr.DataArray) -> Shape:
    z, y, x = variable.shape
    return z, y, x


def _voxels_of(store: Any, name: str) -> Any:
    return open_record(store)["variables"][name]["voxels"]
