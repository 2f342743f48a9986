"""Compare some rows of a store with an archive at another address, before the store is resumed or returned."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ..core.errors import StoreExistsError
from .comparison import differs
from .inputs import Source
from .layout import Region
from .writer import Store
from .zarr_store import zarr_store

ROWS = 4
"""Rows with voxels that are not zero to compare, of each variable."""

MOST_ROWS = 16
"""Rows to look at for them: glass is zero everywhere."""


def check_same_voxels(store: Store, source: Source, name: str, *, complete: bool) -> None:
    """Refuse an archive that has the same name and other voxels.

    Sizes of files cannot tell: uncompressed slices always have the same. So the first row of some regions is read from
    the archive and compared with what is stored.

    Args:
        store: The store.
        source: The variables of the call.
        name: The variable to compare.
        complete: Whether the store is complete, or to be resumed.

    Raises:
        StoreExistsError: A voxel differs.
        LiverDaskError: The archive cannot be read.
    """
    regions = store.layout.regions() if complete else (of for key, of in sorted(store.written()) if key == name)
    compared = 0
    for region in _some(regions):
        found = _first_row(store, name, region) if complete else store.finished.first_row(name, region)
        if not found.any():
            continue
        z, y = region.z_start, region.y_start
        rows = source.ds[name][z : z + 1, y : y + 1]
        expected = rows.compute(scheduler="threads").to_numpy().reshape(-1)
        if differs(found, expected).any():
            raise StoreExistsError(
                f"{store.target} was made from another archive of the same name, or one that was described otherwise: "
                f"{name}[{z}, {y}] has other voxels now. Choose another path."
            )
        compared += 1
        if compared == ROWS:
            return


def _first_row(store: Store, name: str, region: Region) -> npt.NDArray[Any]:
    """Return the first row of a region of a complete store, of its first slice."""
    array = zarr.open_array(zarr_store(store.target / name), mode="r", zarr_format=3)
    return np.asarray(array[region.z_start, region.y_start])


def _some(regions: Iterable[Region]) -> list[Region]:
    """Return regions from all over the store, those in the middle first."""
    found = list(regions)
    places = {int(i) for i in np.linspace(0, len(found) - 1, MOST_ROWS)} if found else set()
    return [found[i] for i in sorted(places, key=lambda i: abs(i - len(found) / 2))]
