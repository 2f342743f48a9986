"""The parts of OME-Zarr 0.5 metadata: images of several scales, labels, and what viewers show at first."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..archive.archives import color_of
from ..core.geometry import DIMS

VERSION = "0.5"


class Scale(NamedTuple):
    """An array that is one scale of an image.

    Attributes:
        path: Path of the array, relative to the group of the image.
        factors: Size of a voxel (z, y, x) in voxels of the whole volume.
        first: Position (z, y, x) of the centre of the first voxel, in voxels of the whole volume.
    """

    path: str
    factors: Sequence[float]
    first: Sequence[float]


def multiscale(
    name: str, scales: Iterable[Scale], voxel_size_nm: Sequence[float] | None, voxel_size_source: str, how: str
) -> dict[str, Any]:
    """Return the description of an image of several scales.

    Args:
        name: Name of the image.
        scales: The scales, from fine to coarse.
        voxel_size_nm: Size (z, y, x) of a voxel of the whole volume in nm. None gives scales in voxels, without a unit.
        voxel_size_source: Where this size is known from.
        how: How each scale was made from the one before.
    """
    unit = {"unit": "nanometer"} if voxel_size_nm else {}
    size = voxel_size_nm or (1.0, 1.0, 1.0)

    def in_units(voxels: Sequence[float]) -> list[float]:
        return [of * at for of, at in zip(size, voxels, strict=True)]

    return {
        "name": name,
        "axes": [{"name": dim, "type": "space", **unit} for dim in DIMS],
        "datasets": [
            {
                "path": scale.path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": in_units(scale.factors)},
                    {"type": "translation", "translation": in_units(scale.first)},
                ],
            }
            for scale in scales
        ],
        "type": how,
        "metadata": {"voxel_size_source": voxel_size_source},
    }


def image_label(name: str, variable: xr.DataArray) -> dict[str, Any]:
    """Return the description of a label. Instances get no colours, so viewers choose them."""
    properties: dict[str, Any] = {}
    if "flag_values" in variable.attrs:
        value = int(variable.attrs["flag_values"][-1])
        meaning = str(variable.attrs.get("flag_meanings", name)).split()[-1]
        properties = {
            "colors": [{"label-value": value, "rgba": [*bytes.fromhex(color_of(variable)[1:]), 255]}],
            "properties": [{"label-value": value, "name": meaning}],
        }
    return {"version": VERSION, **properties, "source": {"image": "../../"}}


def grey_channel(name: str, dtype: np.dtype[Any], shown: tuple[float, float]) -> dict[str, Any]:
    """Return how viewers show an image at first.

    Args:
        name: Name of the image.
        dtype: Data type of its voxels.
        shown: The values that are black and white.
    """
    low, high = shown
    least, most = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (low, high)
    window = {"min": least, "max": most, "start": low, "end": high}
    channel = {"label": name, "color": "FFFFFF", "active": True, "window": window}
    return {"channels": [channel], "rdefs": {"model": "greyscale"}}
