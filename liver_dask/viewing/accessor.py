"""`ds.liver`: what this package does with a Dataset, as methods of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..core import geometry as boxes
from . import figures as pictures
from .view import view

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .slicer import Slicer


@xr.register_dataset_accessor("liver")  # type: ignore[no-untyped-call]  # xarray gives it no types
class LiverAccessor:
    """Methods of a Dataset of the archive or of a store; each calls the function that it is named after."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def crop(self, bounding_box: Sequence[int]) -> xr.Dataset:
        """See `boxes.crop`."""
        return boxes.crop(self._ds, bounding_box)

    def overview(self, z: int, pixels: int = pictures.PIXELS) -> xr.Dataset:
        """A whole slice, strided, lazily; see `pictures.window`."""
        return pictures.window(self._ds, z, pixels=pixels)

    def show(self, z: int, y: pictures.Bounds = None, x: pictures.Bounds = None, **options: Any) -> "Figure":
        """See `pictures.show`."""
        return pictures.show(self._ds, z, y, x, **options)

    def view(self, **options: Any) -> "Slicer":
        """See `view.view`."""
        return view(self._ds, **options)

    def fractions(self) -> xr.Dataset:
        """See `pictures.fractions`."""
        return pictures.fractions(self._ds)
