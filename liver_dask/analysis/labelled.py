"""The numbers of the objects as a lazy volume: each block is labelled again, and its numbers replaced.

It has no graph: it is read like a variable of an archive, block by block.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.lazy_window import LazyWindow, Reader
from ..archive.lazy.leaves import Read
from ..archive.lazy.window import Selection, Window
from ..core.geometry import Shape
from ..store.voxels import Box, Voxels
from .blocks import Block
from .components import Joined, label

OBJECTS = "objects "
"""How the text begins that identifies a volume of objects; JSON follows."""

Numbers = npt.NDArray[np.uint32]
"""For the objects of a block, from 1, their numbers in the volume."""


def labelled(labels: xr.DataArray, voxels: Voxels, joined: Joined, connectivity: int, *, is_mask: bool) -> xr.DataArray:
    """Return the volume of the objects' numbers.

    Args:
        labels: What was measured, for its coordinates.
        voxels: How it is read.
        joined: The objects, connected.
        connectivity: Which neighbours are connected.
        is_mask: Whether all values but 0 are the same.
    """
    names = joined.labels()
    parts = {of.block.index: (of.block, names[numbers]) for of, numbers in joined.parts()}
    core = next(iter(parts.values()))[0].core
    reader = ObjectsReader(voxels, parts, core, connectivity, is_mask)
    chunks = tuple(
        tuple(min(size, length - at) for at in range(0, length, size))
        for size, length in zip(core, labels.shape, strict=True)
    )
    array = VolumeArray.of(LazyWindow(reader, Window.whole(labels.shape), np.dtype(np.uint32)), chunks)
    attributes = {"kind": "instances", "long_name": "number of the object"}
    return xr.DataArray(array, labels.coords, labels.dims, "objects", attributes)


@dataclass(frozen=True, eq=False)
class ObjectsReader:
    """Reader of the numbers of the objects of a volume.

    Attributes:
        voxels: What is labelled.
        parts: The blocks, by index (z, y, x), and the numbers of their objects.
        core: Voxels (z, y, x) of a block.
        connectivity: Which neighbours are connected.
        is_mask: Whether all values but 0 are the same.
    """

    voxels: Voxels
    parts: Mapping[Shape, tuple[Block, Numbers]]
    core: Shape
    connectivity: int
    is_mask: bool

    @property
    def slices_at_once(self) -> int:
        """See Reader: those of a block."""
        return self.core[0]

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """See Reader."""
        along = [list(_blocks(of, size)) for of, size in zip((z, y, x), self.core, strict=True)]
        for (i, of_z), (j, of_y), (k, of_x) in product(*along):
            block, numbers = self.parts[i, j, k]
            wanted = of_z, of_y, of_x
            inside = [np.asarray(of)[at] - start for of, at, start in zip((z, y, x), wanted, block.start, strict=True)]
            out[np.ix_(*wanted)] = self._labelled(block, numbers)[np.ix_(*inside)]

    def _labelled(self, block: Block, numbers: Numbers) -> Numbers:
        voxels = self.voxels.read(block.voxels)
        voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
        found, _ = label(voxels != 0 if self.is_mask else voxels, self.connectivity)
        return np.concatenate([np.zeros(1, np.uint32), numbers])[found]

    def describe(self) -> str:
        """See Reader: what is labelled, and how. The blocks do not matter."""
        known = {"connectivity": self.connectivity, "is_mask": self.is_mask, "labels": self.voxels.described()}
        return OBJECTS + json.dumps(known, sort_keys=True)

    @property
    def variant(self) -> str:
        """See Reader."""
        return self.voxels.variant

    def origin(self) -> None:
        """See Reader: it cannot be opened again."""

    def probe(self, z: int) -> None:
        """See Reader."""
        self.voxels.probe(z)

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """See Reader."""
        of_z, of_y, _ = self._needed(Window((z, y, range(1))))
        return self.voxels.read_ahead(of_z, of_y)

    @property
    def inputs(self) -> Iterable[LazyWindow]:
        """See DerivedReader."""
        return self.voxels.inputs

    def reads(self, window: Window) -> Iterable[Read]:
        """See DerivedReader."""
        return self.voxels.reads(self._needed(window))

    @property
    def times(self) -> float:
        """See DerivedReader."""
        of_z, of_y, _ = ((of + 1) / of for of in self.core)
        return 0 if self.voxels.is_shared else of_z * of_y

    def reading(self, others: Mapping[Reader, Reader]) -> "ObjectsReader":
        """See DerivedReader."""
        return replace(self, voxels=self.voxels.reading(others))

    def part(self, z: Selection) -> "ObjectsReader":
        """See DerivedReader."""
        of_z, _, _ = self._needed(Window((z, range(1), range(1))))
        _, height, width = self.voxels.shape
        numbers = {int(of) // self.core[0] for of in z}
        parts = {index: of for index, of in self.parts.items() if index[0] in numbers}
        return replace(self, voxels=self.voxels.part((of_z, slice(0, height), slice(0, width))), parts=parts)

    def _needed(self, window: Window) -> Box:
        """Return the box that is read for a window: whole blocks, with the voxel after each."""
        box = []
        for of, size, length in zip(window.selections, self.core, self.voxels.shape, strict=True):
            first, last = (int(at) // size for at in (min(of), max(of)))
            box.append(slice(first * size, min((last + 1) * size + 1, length)))
        z, y, x = box
        return z, y, x


def _blocks(selection: Selection, size: int) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yield the numbers of the blocks that hold some indexes of an axis, and where these indexes are."""
    numbers = np.asarray(selection, np.intp) // size
    for number in np.unique(numbers).tolist():
        yield number, np.flatnonzero(numbers == number)
