"""What the voxels of a variable are: an image, a mask or the numbers of instances. The one place that decides it."""

from typing import Literal, get_args

import xarray as xr

Kind = Literal["image", "mask", "instances"]
"""`image`: intensities. `mask`: 0, or one value where there is a label. `instances`: 0, or the number of an object."""

KINDS: tuple[Kind, ...] = get_args(Kind)

RAW = "raw"
"""The image that viewers show and models are trained on."""

FOREGROUND = 255
"""The value of a labelled voxel in the mask of an archive; all others are 0."""

RESERVED_NAMES = ("liver_dask", "pyramid", "labels")
"""What else a store holds, or will when it has a pyramid: no names of variables."""


def kind_of(variable: xr.DataArray | xr.Variable) -> Kind:
    """The kind of a variable of an archive, of a store, or made by a user.

    The attribute `kind` tells it, if it is one of `image`, `mask` and `instances`; instances are integers. Without, a
    variable with the CF attribute `flag_values`, or of bool, is a mask, and any other is an image.
    """
    kind = variable.attrs.get("kind")
    if kind in KINDS and (kind != "instances" or variable.dtype.kind in "iu"):
        return kind
    return "mask" if "flag_values" in variable.attrs or variable.dtype == bool else "image"


def labels_of(ds: xr.Dataset) -> list[str]:
    """The variables of a Dataset that are masks or instances."""
    return [str(name) for name, variable in ds.data_vars.items() if kind_of(variable) != "image"]
