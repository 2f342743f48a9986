"""Windows of a store next to the same of its source."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from ..core.documents import reason_of
from ..core.threads import ContextPool
from .jobs import Report
from .layout import Group, Layout, Region, RegionBatch
from .rows import Part
from .worker import READERS, report_of

if TYPE_CHECKING:
    pass


SLICES_OF_A_LAYER = 2
"""Slices of each layer of shards that are looked at, unless all are."""


ROWS_OF_A_WINDOW = 4


class Difference(NamedTuple):
    """Voxels of one slice of a store that are not the source's; or a window that cannot be read."""

    name: str
    z: int
    message: str


@dataclass(frozen=True)
class Comparison:
    """Windows of a store next to the same of its source.

    Attributes:
        store: The store.
        part: What `run` needs of the source.
        run: The windows, of the same slices, from top to bottom.
        layout: The grids of the store.
    """

    store: Path
    part: Part
    run: RegionBatch
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Bytes of voxels to compare."""
        itemsize = sum(dtype.itemsize for dtype in self.part.dtypes.values())
        return itemsize * sum(map(self.layout.voxels_of, self.run.regions))

    def compare(self, report: Callable[[Report], None]) -> tuple[int, list[Difference]]:
        """Voxels compared, and what is wrong; see Task.write."""
        voxels = 0
        differences: list[Difference] = []
        with self.part.read_ahead(), ContextPool(READERS) as readers:
            rows = self.part.rows(self.run, readers)
            for region in self.run.regions:
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
            found = np.asarray(zarr.open_array(self.store / name, mode="r")[z, y])
        except Exception as error:  # whatever zarr makes of a damaged store
            yield Difference(name, z.start, f"{where} cannot be read ({reason_of(error)})")
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
                )


def differs(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where voxels are not the same: floats to the bit, but any NaN is as good as another, which processors choose."""
    expected = expected.astype(found.dtype, copy=False) if expected.dtype.kind == found.dtype.kind else expected
    if found.dtype.kind != "f" or expected.dtype != found.dtype:
        return np.asarray(found != expected)
    bits = np.dtype(f"u{found.itemsize}")
    different = np.ascontiguousarray(found).view(bits) != np.ascontiguousarray(expected).view(bits)
    return different & ~(np.isnan(found) & np.isnan(expected))


def sampled_batches(layout: Layout, groups: Sequence[Group], rng: np.random.Generator) -> Iterator[RegionBatch]:
    """Rows of some slices of every layer of shards: in each, some of every row of shards; and the store's edges.

    Few slices and many rows of each, since the strip index of a slice and the masks down to a row are fetched for any.
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
