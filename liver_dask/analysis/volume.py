"""What is read of the variables that are measured: the voxels of a block, on any process."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute, optimize

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.futures import held_by_a_cluster
from ..archive.reader import readers_of
from ..core.config import setting
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape
from ..core.threads import ContextPool

READERS = 8
"""Number of slices that are read concurrently, on any number of cores: with a distant archive, most of them wait."""


class Volume(NamedTuple):
    """Variables of the same voxels.

    Attributes:
        arrays: Their dask arrays, by the names under which they are read.
    """

    arrays: Mapping[str, da.Array]

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        z, y, x = next(iter(self.arrays.values())).shape
        return int(z), int(y), int(x)

    @property
    def chunks(self) -> Shape:
        """The largest block of dask (z, y, x) of any variable."""
        z, y, x = (max(max(array.chunks[axis]) for array in self.arrays.values()) for axis in range(3))
        return z, y, x

    @property
    def is_read_by_rows(self) -> bool:
        """Whether rows are read over the full width, because the files of an archive are."""
        return any(readers_of(array) for array in self.arrays.values())

    @property
    def is_from_the_top(self) -> bool:
        """Whether a file must be read from its first row, so that the rows of a slice are best read in order."""
        return any(reader.is_from_the_top for array in self.arrays.values() for reader in readers_of(array))

    @property
    def bytes_of_voxel(self) -> int:
        """Bytes of a voxel of all variables."""
        return sum(array.dtype.itemsize for array in self.arrays.values())

    @property
    def connections(self) -> int:
        """Maximum number of concurrent requests."""
        every = [reader.source.connections for array in self.arrays.values() for reader in readers_of(array)]
        return max(every, default=setting("connections"))

    def part(self, z: slice, y: slice, x: slice) -> "Volume":
        """Return a part, as small as it can be sent to another process."""
        parts = {name: array[z, y, x] for name, array in self.arrays.items()}
        return Volume({name: part if _is_small(part) else _culled(part) for name, part in parts.items()})

    def read(self, readers: ContextPool) -> dict[str, npt.NDArray[Any]]:
        """Read all voxels, on several threads if there is more than one chunk."""
        arrays = list(self.arrays.values())
        is_one = all(array.npartitions == 1 for array in arrays)
        options: dict[str, Any] = {"scheduler": "sync"} if is_one else {"scheduler": "threads", "pool": readers}
        found = zip(self.arrays, map(np.asarray, compute(*arrays, **options)), strict=True)
        return {name: of.astype(of.dtype.newbyteorder("="), copy=False) for name, of in found}


def volume_of(variables: Mapping[str, xr.DataArray]) -> Volume:
    """Return what is read of some variables.

    Raises:
        InvalidArgumentError: They do not have the same voxels (z, y, x), or a cluster holds them. (ValueError)
    """
    first_name, first = next(iter(variables.items()))
    for name, variable in variables.items():
        if not isinstance(variable, xr.DataArray) or variable.dims != DIMS:
            what = f"dims {variable.dims}" if isinstance(variable, xr.DataArray) else f"a {type(variable).__name__}"
            raise InvalidArgumentError(f"{name} is {what}; give a DataArray with dims {DIMS}, such as ds.mito.")
        if not variable.size:
            raise InvalidArgumentError(f"{name} holds no voxels: {_text(variable)}.")
        if variable.shape != first.shape or not _same_places(variable, first):
            raise InvalidArgumentError(
                f"{name} has other voxels than {first_name}: {_text(variable)} and {_text(first)}; "
                "select the same of both."
            )
    volume = Volume({name: _dask_array(variable) for name, variable in variables.items()})
    for name, array in volume.arrays.items():
        if any(True for _ in held_by_a_cluster(array)):
            raise InvalidArgumentError(f"A cluster holds {name} (persist); give the variable as it was before.")
    return volume


def _dask_array(variable: xr.DataArray) -> da.Array:
    return variable.data if variable.chunks is not None else variable.chunk("auto").data


def _culled(array: da.Array) -> da.Array:
    """Return the array with no tasks but those that it needs."""
    culled: da.Array = optimize(array)[0]
    return culled


def _is_small(array: da.Array) -> bool:
    """Return whether an array is pickled without a graph."""
    return isinstance(array, VolumeArray) and array.lazy is not None


def _same_places(one: xr.DataArray, other: xr.DataArray) -> bool:
    return all(
        one.indexes[dim].equals(other.indexes[dim]) for dim in DIMS if dim in one.indexes and dim in other.indexes
    )


def _text(variable: xr.DataArray) -> str:
    """Say where a variable is."""
    return ", ".join(
        f"{dim} {variable.indexes[dim][0]}..{variable.indexes[dim][-1]}" if dim in variable.indexes and length
        else f"{dim} of {length}"
        for dim, length in variable.sizes.items()
    )  # fmt: skip
