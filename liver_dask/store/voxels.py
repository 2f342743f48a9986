"""The voxels of a variable as jobs read them, box by box: from an archive, a store, or any other array of dask.

A variable that was opened from an archive or a store is read without a graph: of a large volume, dask would need longer
to find the tasks of a box than it takes to read it.
"""

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
from ..archive.lazy.derived import DerivedReader, readers_below
from ..archive.lazy.futures import held_by_a_cluster
from ..archive.lazy.lazy_window import LazyWindow, Reader
from ..archive.lazy.leaves import Read, leaves_in
from ..archive.reader import VolumeReader
from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape
from ..core.places import Place
from ..core.threads import ContextPool
from .array import StoredArray
from .placement import placement_of
from .record import checksums_digest, read_record

READERS = 8
"""Number of dask's blocks of a box that are read concurrently, on any number of cores: with a distant archive, most of
them wait."""

Box = tuple[slice, slice, slice]
"""Voxels (z, y, x) from the first to the last, exclusive, both within the volume."""


class Voxels(Protocol):
    """The voxels of a variable; picklable."""

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""

    @property
    def inputs(self) -> Iterable[LazyWindow]:
        """The windows of an archive that they are read from, as far as they are known."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x)."""

    def reads(self, box: Box) -> Iterable[Read]:
        """Return what is read of an archive for a box."""

    @property
    def is_shared(self) -> bool:
        """Whether `reading` replaces the readers, so that several can share what is read."""

    def reading(self, others: Mapping[Reader, Reader]) -> "Voxels":
        """Return the same voxels, read by other readers of the same files where there are any."""

    def part(self, box: Box) -> "Voxels":
        """Return what is needed to read a box, at the same indexes, as small as it can be sent."""

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """Announce that all these rows will be read within the context, one part after the other."""

    def probe(self, z: int) -> None:
        """Check that a slice exists and is as expected, without reading it."""

    def described(self) -> Any:
        """Return JSON that identifies the voxels, equal in every process; of an archive, with its address."""

    @property
    def variant(self) -> str:
        """See `Reader.variant`."""


def voxels_of(name: str, variable: xr.DataArray) -> Voxels:
    """Return how the voxels of a variable (z, y, x) are read.

    Args:
        name: What it is called in messages.
        variable: The variable.

    Raises:
        InvalidArgumentError: A cluster holds its voxels. (ValueError)
    """
    data = variable.variable._data
    if isinstance(data, VolumeArray) and data.lazy:
        return OfArchive(data.lazy)
    placed = placement_of(variable.variable)
    if placed is not None and _is_stored(placed.array):
        folder, array = placed.array.parent, placed.array.name
        return OfStore(StoredArray(folder, array), placed.corner, _shape(variable), checksums_digest(folder, array))
    array = variable.data if variable.chunks is not None else variable.chunk("auto").data
    if any(True for _ in held_by_a_cluster(array)):
        raise InvalidArgumentError(f"A cluster holds {name} (persist); give the variable as it was before.")
    inputs = tuple(leaf for leaf in leaves_in(array) if isinstance(leaf, LazyWindow))
    return OfArray(array, f"computed {tokenize(array)}", _shape(variable), inputs)


def files_below(voxels: Voxels) -> set[VolumeReader]:
    """Return the readers of the archive's files that voxels are made of."""
    found = (reader for lazy in voxels.inputs for reader in readers_below(lazy.read))
    return {reader for reader in found if isinstance(reader, VolumeReader)}


@dataclass(frozen=True)
class OfArchive:
    """A window of a variable of an archive, or of anything that is read the same way."""

    lazy: LazyWindow

    is_shared = True

    @property
    def shape(self) -> Shape:
        """See Voxels."""
        z, y, x = self.lazy.shape
        return z, y, x

    @property
    def inputs(self) -> Iterable[LazyWindow]:
        """See Voxels."""
        return (self.lazy,)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """See Voxels."""
        return self.lazy.read_side_by_side(box)

    def reads(self, box: Box) -> Iterable[Read]:
        """See Voxels."""
        return (Read(self.lazy, self.lazy.window[box]),)

    def reading(self, others: Mapping[Reader, Reader]) -> "OfArchive":
        """See Voxels."""
        return OfArchive(replace(self.lazy, read=others.get(self.lazy.read, self.lazy.read)))

    def part(self, box: Box) -> "OfArchive":
        """See Voxels."""
        if not isinstance(self.lazy.read, DerivedReader):
            return self
        return OfArchive(replace(self.lazy, read=self.lazy.read.part(self.lazy.window.selections[0][box[0]])))

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """See Voxels."""
        of_z, of_y, _ = self.lazy.window.selections
        return self.lazy.read.read_ahead(of_z[z], of_y[y])

    def probe(self, z: int) -> None:
        """See Voxels."""
        self.lazy.read.probe(int(self.lazy.window.selections[0][z]))

    def described(self) -> Any:
        """See Voxels."""
        return self.lazy.describe()

    @property
    def variant(self) -> str:
        """See Voxels."""
        return self.lazy.read.variant


@dataclass(frozen=True)
class OfStore:
    """A box of a variable of a complete store.

    Attributes:
        array: The variable.
        corner: The first voxel (z, y, x) of the box.
        shape: Voxels (z, y, x) of the box.
        checksums: A digest of the checksums of all shards of the variable.
    """

    array: StoredArray
    corner: Shape
    shape: Shape
    checksums: str

    inputs = ()
    variant = ""
    is_shared = True

    def read(self, box: Box) -> npt.NDArray[Any]:
        """See Voxels."""
        z, y, x = (slice(of.start + at, of.stop + at) for of, at in zip(box, self.corner, strict=True))
        return self.array[z, y, x]

    def reads(self, box: Box) -> Iterable[Read]:
        """See Voxels: nothing."""
        return ()

    def reading(self, others: Mapping[Reader, Reader]) -> "OfStore":
        """See Voxels."""
        return self

    def part(self, box: Box) -> "OfStore":
        """See Voxels."""
        return self

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """See Voxels: nothing is fetched from an archive."""
        return nullcontext()

    def probe(self, z: int) -> None:
        """See Voxels: the store was opened."""

    def described(self) -> Any:
        """See Voxels: by what was written; the place of the store does not matter."""
        box = [[at, at + length] for at, length in zip(self.corner, self.shape, strict=True)]
        return {"checksums": self.checksums, "box": box}


@dataclass(frozen=True, eq=False)
class OfArray:
    """Any array of dask.

    Attributes:
        array: The array, or a box of it.
        name: What identifies the whole array.
        shape: Voxels (z, y, x) of the whole array.
        inputs: The windows of an archive that the whole array is computed from.
        corner: The first voxel (z, y, x) of `array`.
    """

    array: da.Array
    name: str
    shape: Shape
    inputs: tuple[LazyWindow, ...]
    corner: Shape = (0, 0, 0)

    variant = ""
    is_shared = False

    def read(self, box: Box) -> npt.NDArray[Any]:
        """See Voxels."""
        part = self._cut(box)
        if part.npartitions == 1:
            return np.asarray(part.compute(scheduler="sync"))
        with ContextPool(READERS) as pool:
            return np.asarray(part.compute(scheduler="threads", pool=pool))

    def reads(self, box: Box) -> Iterable[Read]:
        """See Voxels: known where each voxel is computed from that of the same place."""
        return [Read(lazy, lazy.window[box]) for lazy in self.inputs if lazy.shape == self.shape]

    def reading(self, others: Mapping[Reader, Reader]) -> "OfArray":
        """See Voxels: the readers are within the graph."""
        return self

    def part(self, box: Box) -> "OfArray":
        """See Voxels."""
        (culled,) = optimize(self._cut(box))
        z, y, x = (of.start for of in box)
        return replace(self, array=culled, corner=(z, y, x))

    def read_ahead(self, z: slice, y: slice) -> AbstractContextManager[None]:
        """See Voxels: what the graph reads is not known."""
        return nullcontext()

    def probe(self, z: int) -> None:
        """See Voxels: the first slice of each window stands for all."""
        for lazy in self.inputs:
            if lazy.nbytes:
                lazy.read.probe(int(lazy.window.selections[0][0]))

    def described(self) -> Any:
        """See Voxels."""
        return self.name

    def _cut(self, box: Box) -> da.Array:
        return self.array[tuple(slice(of.start - at, of.stop - at) for of, at in zip(box, self.corner, strict=True))]


def _shape(variable: xr.DataArray) -> Shape:
    z, y, x = variable.shape
    return z, y, x


def _is_stored(array: Place) -> bool:
    """Return whether an array is a variable of a complete store."""
    record = read_record(array.parent)
    return bool(record and record.get("complete") and array.name in record["variables"])
