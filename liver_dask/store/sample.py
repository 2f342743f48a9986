"""Look at some slices of what is to be written, so that an estimate of its cost is not guessed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.formats.slices import Measured
from ..archive.lazy.arrays import VolumeArray
from ..archive.reader import VolumeReader
from ..core.kinds import kind_of
from .inputs import Source
from .shards import encode_chunk

SLICES = 3
"""Slices that are looked at: the first, the middle one and the last. Of raw, their strip indexes are fetched, and the
strips of some rows; of masks that are read from the top, all down to the last row."""

ROWS = 16
PLACES = 5
"""Rows of each of these slices that are encoded, to learn how well they compress: ROWS at each of PLACES from top to
bottom, because the tissue may be wider in the middle."""

PIECE = 1024
"""Columns that are encoded together, about as many voxels as an inner chunk has."""


@dataclass(frozen=True)
class Sample:
    """What some slices have shown.

    Attributes:
        measured: For each variable of the archive, the bytes of one of its files.
        stored: For each variable of the store that is one of the archive, the bytes on disk of a voxel.
        halved: The same of a voxel of a pyramid level, which has the mean of the voxels it covers.
    """

    measured: Mapping[VolumeReader, Measured] = field(default_factory=dict)
    stored: Mapping[str, float] = field(default_factory=dict)
    halved: Mapping[str, float] = field(default_factory=dict)


def sample(source: Source) -> Sample:
    """Read a little of what is to be written. Variables that are computed are left out.

    Args:
        source: The variables to write.

    Raises:
        LiverDaskError: The source could not be read; the message names the file.
    """
    measured, stored, halved = {}, {}, {}
    for name, variable in source.ds.data_vars.items():
        array = variable.data
        lazy = array.lazy if isinstance(array, VolumeArray) else None
        if lazy is None or not isinstance(lazy.read, VolumeReader):
            continue
        slices, rows, columns = (np.asarray(of) for of in lazy.window.selections)
        few = np.unique(np.linspace(0, len(slices) - 1, SLICES).astype(np.intp))
        found = [lazy.read.measure(int(z), np.unique(rows), int(columns.max()) + 1) for z in slices[few]]
        known = [of for of in found if of]
        if known:
            measured[lazy.read] = _mean(known)
        voxels = _some_rows(variable[few])
        stored[str(name)] = _bytes_of_voxel(voxels)
        halved[str(name)] = _bytes_of_voxel(_halved(voxels, is_image=kind_of(variable) == "image"))
    return Sample(measured, stored, halved)


def _mean(found: list[Measured]) -> Measured:
    part, whole, bridged = np.mean([(of.part, of.whole, of.bridged) for of in found], axis=0).tolist()
    several, files = all(of.takes_several_ranges for of in found), all(of.is_file for of in found)
    return Measured(part, whole, bridged, several, files)


def _some_rows(variable: xr.DataArray) -> npt.NDArray[Any]:
    """Return ROWS rows in the middle of each of PLACES equal parts, or all rows if there are fewer."""
    height = variable.sizes["y"]
    middles = ((np.arange(PLACES) + 0.5) * height / PLACES).astype(np.intp)
    rows = (
        (middles[:, None] + np.arange(-ROWS // 2, ROWS // 2)).ravel() if height > ROWS * PLACES else np.arange(height)
    )
    return variable[:, rows].compute(scheduler="threads").to_numpy()


def _halved(voxels: npt.NDArray[Any], *, is_image: bool) -> npt.NDArray[Any]:
    """Return every second row and column, averaged if it is an image."""
    height, width = (length // 2 * 2 for length in voxels.shape[1:])
    if not is_image or not height or not width:
        return voxels[:, ::2, ::2]
    cells = voxels[:, :height, :width].reshape(len(voxels), height // 2, 2, width // 2, 2)
    return cells.mean((2, 4)).round().astype(voxels.dtype)


def _bytes_of_voxel(voxels: npt.NDArray[Any]) -> float:
    """Return the bytes that a voxel takes on disk, as it is encoded in a store."""
    pieces = np.split(voxels, range(PIECE, voxels.shape[2], PIECE), axis=2)
    return sum(len(encode_chunk(piece, piece.shape, has_means=False).data) for piece in pieces) / voxels.size
