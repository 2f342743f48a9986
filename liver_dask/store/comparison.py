"""Comparison of regions of a store with the same regions of its source."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from ..core.documents import reason_of
from ..core.places import Place
from ..core.threads import ContextPool
from .jobs import Report
from .layout import Group, Layout, Region, RegionBatch
from .rows import Part
from .worker import READERS, report_of
from .zarr_store import zarr_store

SLICES_OF_A_LAYER = 2
"""Number of slices to compare in each layer of shards, unless all voxels are compared."""


ROWS_OF_A_WINDOW = 4
"""Number of rows of a region that `sampled_batches` chooses."""


class Difference(NamedTuple):
    """Voxels of one slice of a store that differ from the source, or a region that cannot be read.

    Attributes:
        name: The variable.
        z: The slice of the store; the first slice of a region that cannot be read.
        message: What is wrong.
        region: The region of the store.
        is_unreadable: Whether the region cannot be read.
    """

    name: str
    z: int
    message: str
    region: Region
    is_unreadable: bool = False


@dataclass(frozen=True)
class Comparison:
    """A job that compares regions of a store with the same regions of its source.

    Attributes:
        store: Folder of the store.
        part: The part of the source that `batch` needs.
        batch: The batch of regions to compare; see RegionBatch for their order.
        layout: The grids of the store.
    """

    store: Place
    part: Part
    batch: RegionBatch
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Total size in bytes of the voxels to compare."""
        itemsize = sum(dtype.itemsize for dtype in self.part.dtypes.values())
        return itemsize * sum(map(self.layout.voxels_of, self.batch.regions))

    def compare(self, report: Callable[[Report], None]) -> tuple[int, list[Difference]]:
        """Compare all regions, one after another.

        Args:
            report: Called after each region, as in Task.write.

        Returns:
            The number of voxels compared (of all variables together), and the differences.
        """
        voxels = 0
        differences: list[Difference] = []
        with self.part.read_ahead(), ContextPool(READERS) as readers:
            rows = self.part.rows(self.batch, readers)
            for region in self.batch.regions:
                arrays = rows.read(region)
                for name, expected in arrays.items():
                    voxels += expected.size
                    differences += self._differences(name, region, expected)
                report(report_of(sum(array.nbytes for array in arrays.values())))
        return voxels, differences

    def _differences(self, name: str, region: Region, expected: Any) -> Iterator[Difference]:
        z, y = slice(region.z_start, region.z_stop), slice(region.y_start, region.y_stop)
        where = f"{name}[{z.start}:{z.stop}, {y.start}:{y.stop}]"
        try:
            array = zarr.open_array(zarr_store(self.store / name), mode="r", zarr_format=3)  # others cost requests, too
            found = np.asarray(array[z, y])
        except Exception as error:  # zarr may raise any type of error for a damaged store
            yield Difference(name, z.start, f"{where} cannot be read ({reason_of(error)})", region, is_unreadable=True)
            return
        for number, here in enumerate(differs(found, expected), start=z.start):
            different = np.argwhere(here)
            if len(different):
                at = map(str, (number, *(different[0] + (y.start, 0))))
                yield Difference(
                    name,
                    number,
                    f"{name}[{number}, {y.start}:{y.stop}] has {len(different)} voxels that are not the source's; "
                    f"the first is {name}[{', '.join(at)}]",
                    region,
                )


def differs(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return a boolean array that is True where voxels differ.

    Floats are compared bit by bit, but all NaNs are equal, because the bits of a NaN depend on the processor.
    """
    expected = expected.astype(found.dtype, copy=False) if expected.dtype.kind == found.dtype.kind else expected
    if found.dtype.kind != "f" or expected.dtype != found.dtype:
        return np.asarray(found != expected)
    bits = np.dtype(f"u{found.itemsize}")
    different = np.ascontiguousarray(found).view(bits) != np.ascontiguousarray(expected).view(bits)
    return different & ~(np.isnan(found) & np.isnan(expected))


def sampled_batches(layout: Layout, groups: Sequence[Group], rng: np.random.Generator) -> Iterator[RegionBatch]:
    """Choose random regions from every layer of shards and from the edges of the store.

    The regions lie in a few slices of each layer of shards, and in the first and the last slice of the store. Each of
    these slices has one region in every row of shards, and one at its top and its bottom edge. There are few slices
    with many regions each, because any region of a slice costs its strip index, or a mask from the top to that region.

    Args:
        layout: The grids of the store.
        groups: The groups of variables.
        rng: The random number generator.

    Yields:
        For each slice and group, a batch of its regions from top to bottom.
    """
    depth, height, _ = layout.shape
    slices = {0, depth - 1}
    for z in range(0, depth, layout.shards[0]):
        of_layer = range(z, min(z + layout.shards[0], depth))
        slices |= set(rng.choice(of_layer, min(SLICES_OF_A_LAYER, len(of_layer)), replace=False).tolist())
    for z in sorted(slices):
        starts = {0, max(0, height - ROWS_OF_A_WINDOW)}
        starts |= {int(rng.integers(y, min(y + layout.shards[1], height))) for y in range(0, height, layout.shards[1])}
        regions = [Region(z, z + 1, y, min(y + ROWS_OF_A_WINDOW, height)) for y in sorted(starts)]
        for group in groups:
            yield RegionBatch(group, tuple(regions))
