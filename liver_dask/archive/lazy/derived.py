"""Readers whose voxels are computed from those of other readers, such as the prediction of a model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from .lazy_window import LazyWindow, Reader
from .leaves import Read
from .window import Selection, Window


@runtime_checkable
class DerivedReader(Reader, Protocol):
    """Computes voxels from those that other readers read."""

    @property
    def inputs(self) -> Iterable[LazyWindow]:
        """The windows of an archive that are read, as far as they are known."""

    def reads(self, window: Window) -> Iterable[Read]:
        """Return what is read of an archive for the voxels of a window."""

    @property
    def times(self) -> float:
        """How often the rows of the inputs are read by it alone, if it cannot share them with others; else 0."""

    def reading(self, others: Mapping[Reader, Reader]) -> "DerivedReader":
        """Return the same reader, which reads by other readers of the same voxels where there are any."""

    def part(self, z: Selection) -> "DerivedReader":
        """Return a reader of some slices alone, with the same numbers, as small as it can be sent."""


def reads_of_archive(read: Read) -> Iterator[Read]:
    """Yield what is read of an archive for a part of a window: the part itself, unless its voxels are derived."""
    if isinstance(read.lazy.read, DerivedReader):
        for one in read.lazy.read.reads(read.window) if read.nbytes else ():
            yield from reads_of_archive(one)
    else:
        yield read


def readers_below(reader: Any) -> Iterator[Any]:
    """Yield a reader, or the readers that its voxels are derived from."""
    if isinstance(reader, DerivedReader):
        for lazy in reader.inputs:
            yield from readers_below(lazy.read)
    else:
        yield reader
