"""Objects of a volume from those of its blocks.

Each block is labelled by itself (cc3d). What a block and the next one have in common is a plane of voxels, which both
have read. The connected voxels of that plane have the same numbers in both, because the plane is the same, and each of
these parts belongs to one object of either block. So a block returns, for each of its planes, the object of each part,
and two blocks are put together without their voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.errors import MissingExtraError, how_to_install
from ..core.geometry import Shape
from .blocks import Block
from .counting import FIRST, NEVER, Counts, count

Labels = npt.NDArray[np.uint32]

IN_PLANE = {6: 4, 18: 8, 26: 8}
"""Which neighbours are connected within a plane, for each connectivity in space."""


class Objects(NamedTuple):
    """The objects of one block.

    Attributes:
        block: The block.
        counts: A row for each object, see `counting`.
        sums: The sum of the image over each object.
        values: The value of the voxels of each object.
        first: For each axis, the objects of the parts of the block's first plane.
        last: The same for its last plane, if that is the first one of the next block.
    """

    block: Block
    counts: Counts
    sums: npt.NDArray[np.float64]
    values: npt.NDArray[Any]
    first: tuple[Labels | None, ...]
    last: tuple[Labels | None, ...]


def check_extra() -> None:
    """Raise MissingExtraError if a package is not installed that is needed in the end."""
    for package in ("cc3d", "scipy.sparse"):
        try:
            import_module(package)
        except ImportError:
            name = package.partition(".")[0]
            raise MissingExtraError(f"Measuring needs the package {name}: {how_to_install('measure')}.") from None


def label(voxels: npt.NDArray[Any], connectivity: int) -> tuple[Labels, int]:
    """Number the connected voxels of equal value of a block, or of a plane, from 1."""
    import cc3d

    if not voxels.any():  # cc3d takes longer to find that out
        return np.zeros(voxels.shape, np.uint32), 0
    if voxels.dtype == bool:  # cc3d 4.1 writes past its table for these, with 8 neighbours in a plane
        voxels = voxels.view(np.uint8)
    if voxels.dtype == np.uint64:  # it takes no number above those of int64, and only equality counts
        voxels = voxels.view(np.int64)
    options: dict[str, Any] = {"connectivity": connectivity, "out_dtype": np.uint32, "return_N": True}
    found, number = cc3d.connected_components(np.ascontiguousarray(voxels), **options)
    return found, int(number)


def objects_of(
    voxels: npt.NDArray[Any],
    block: Block,
    shape: Shape,
    connectivity: int,
    raw: npt.NDArray[Any] | None,
    others: npt.NDArray[np.uint8],
) -> Objects:
    """Label and count a block, see `Objects`; `voxels`, `raw` and `others` have the block's margin."""
    labels, number = label(voxels, connectivity)
    counts, sums = count(labels, number, block, shape, raw, others)
    values = np.zeros(number + 1, voxels.dtype)
    for of_plane, in_plane in zip(labels, voxels, strict=True):  # one at a time, because numpy copies such indexes
        values[of_plane.reshape(-1)] = in_plane.reshape(-1)
    first, last = (
        tuple(_parts(voxels, labels, axis, at, connectivity) if is_shared[axis] else None for axis in range(3))
        for at, is_shared in ((0, [start > 0 for start in block.start]), (-1, [*map(block.has_margin, range(3))]))
    )
    return Objects(block, counts, sums, values[1:], first, last)


def _parts(voxels: npt.NDArray[Any], labels: Labels, axis: int, at: int, connectivity: int) -> Labels:
    """Return the object of each connected part of a plane."""
    parts, number = label(voxels.take(at, axis), IN_PLANE[connectivity])
    found = np.zeros(number + 1, np.uint32)
    found[parts.reshape(-1)] = labels.take(at, axis).reshape(-1)
    return found[1:]


@dataclass(frozen=True)
class Joined:
    """The objects of a volume.

    Attributes:
        blocks: The objects of the blocks.
        numbers: For those of all blocks, one after another, the object of the volume, from 0.
        count: Number of objects of the volume.
        values: The value that names each object, if one value is one object.
    """

    blocks: Sequence[Objects]
    numbers: npt.NDArray[np.int64]
    count: int
    values: npt.NDArray[Any] | None = None

    def parts(self) -> Iterator[tuple[Objects, npt.NDArray[np.int64]]]:
        """Yield the objects of each block, and which objects of the volume they belong to."""
        begin = 0
        for of in self.blocks:
            yield of, self.numbers[begin : begin + len(of.counts)]
            begin += len(of.counts)

    def labels(self) -> npt.NDArray[np.uint32]:
        """Return the label of each object: its value, or its number in the order of the objects' first voxels."""
        if self.values is not None:
            return self.values
        first = np.full(self.count, NEVER)
        for of, numbers in self.parts():
            np.minimum.at(first, numbers, of.counts[:, FIRST])
        labels = np.empty(self.count, np.uint32)
        labels[np.argsort(first)] = np.arange(1, self.count + 1, dtype=np.uint32)
        return labels


def join(blocks: Sequence[Objects]) -> Joined:
    """Put together the objects that go on in the next block."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    begins = np.cumsum([0, *(len(of.counts) for of in blocks)])
    at = {of.block.index: i for i, of in enumerate(blocks)}
    pairs = [np.zeros((0, 2), np.int64)]
    for i, one in enumerate(blocks):
        for axis in range(3):
            after = at.get(_next(one.block.index, axis))
            last, first = one.last[axis], None if after is None else blocks[after].first[axis]
            if last is not None and first is not None:
                both = np.stack([last, first], 1).astype(np.int64) - 1 + (begins[i], begins[after])
                pairs.append(np.unique(both, axis=0))
    edges, total = np.concatenate(pairs), int(begins[-1])
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(total, total))
    count, numbers = connected_components(graph, directed=False)
    return Joined(blocks, numbers.astype(np.int64), int(count))


def join_by_value(blocks: Sequence[Objects]) -> Joined:
    """Put together what has the same value, whether or not it is connected."""
    values, numbers = np.unique(np.concatenate([of.values for of in blocks]), return_inverse=True)
    return Joined(blocks, numbers.astype(np.int64), len(values), values)


def _next(index: Shape, axis: int) -> Shape:
    z, y, x = (number + (axis == i) for i, number in enumerate(index))
    return z, y, x
