"""What is read of the variables that are measured: the voxels of a block, on any process."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.reader import VolumeReader
from ..core.config import setting
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape
from ..store.voxels import Box, Voxels, files_below, voxels_of


class Volume(NamedTuple):
    """Variables of the same voxels.

    Attributes:
        variables: How they are read, by the names under which they are.
        dtypes: Their data types.
        chunks: The largest chunk of dask (z, y, x) of any variable.
    """

    variables: Mapping[str, Voxels]
    dtypes: Mapping[str, np.dtype[Any]]
    chunks: Shape

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        return next(iter(self.variables.values())).shape

    @property
    def is_read_by_rows(self) -> bool:
        """Whether rows are read over the full width, because the files of an archive are."""
        return bool(self._readers)

    @property
    def is_from_the_top(self) -> bool:
        """Whether a file must be read from its first row, so that the rows of a slice are best read in order."""
        return any(reader.is_from_the_top for reader in self._readers)

    @property
    def bytes_of_voxel(self) -> int:
        """Bytes of a voxel of all variables."""
        return sum(dtype.itemsize for dtype in self.dtypes.values())

    @property
    def connections(self) -> int:
        """Maximum number of concurrent requests."""
        return max((reader.source.connections for reader in self._readers), default=setting("connections"))

    @property
    def _readers(self) -> set[VolumeReader]:
        return set().union(*map(files_below, self.variables.values()))

    def part(self, box: Box) -> "Volume":
        """Return what is needed to read a box, as small as it can be sent to another process."""
        return self._replace(variables={name: of.part(box) for name, of in self.variables.items()})

    def read(self, box: Box) -> dict[str, npt.NDArray[Any]]:
        """Return the voxels of a box of all variables."""
        found = {name: of.read(box) for name, of in self.variables.items()}
        return {name: of.astype(of.dtype.newbyteorder("="), copy=False) for name, of in found.items()}


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
    z, y, x = (max(max(_chunks(of)[axis]) for of in variables.values()) for axis in range(3))
    return Volume(
        {name: voxels_of(name, of) for name, of in variables.items()},
        {name: of.dtype for name, of in variables.items()},
        (z, y, x),
    )


def _chunks(variable: xr.DataArray) -> tuple[tuple[int, ...], ...]:
    return variable.chunks or variable.chunk("auto").chunks or ()


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
