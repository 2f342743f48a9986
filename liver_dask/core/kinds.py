"""The kind of a variable: image, mask or instance labels. Only this module decides it."""

from typing import Literal, get_args

import xarray as xr

Kind = Literal["image", "mask", "instances"]
"""`image`: intensities. `mask`: 0, or one value for all labelled voxels. `instances`: 0, or the number of an object."""

KINDS: tuple[Kind, ...] = get_args(Kind)

RAW = "raw"
"""The image that viewers show and that models are trained on."""

FOREGROUND = 255
"""The value of a labelled voxel in the mask of an archive; all other voxels are 0."""

RESERVED_NAMES = ("liver_dask", "pyramid", "labels")
"""Other names in a store, some of them only once it has a pyramid; a variable cannot have these names."""


def kind_of(variable: xr.DataArray | xr.Variable) -> Kind:
    """Return the kind of a variable of an archive or a store, or of one that a user made.

    The attribute `kind` decides if it is `image`, `mask` or `instances`; `instances` also needs an integer dtype.
    Otherwise, a variable with the CF attribute `flag_values`, or of dtype bool, is a mask, and any other variable is an
    image.
    """
    kind = variable.attrs.get("kind")
    if kind in KINDS and (kind != "instances" or variable.dtype.kind in "iu"):
        return kind
    return "mask" if "flag_values" in variable.attrs or variable.dtype == bool else "image"


def labels_of(ds: xr.Dataset) -> list[str]:
    """Return the names of the variables of a Dataset that are masks or instance labels."""
    return [str(name) for name, variable in ds.data_vars.items() if kind_of(variable) != "image"]
