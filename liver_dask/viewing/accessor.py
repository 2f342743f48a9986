"""The xarray accessor `ds.liver`, which offers this package's functions for Datasets as methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xarray as xr

from ..core import geometry as boxes
from . import figures as pictures
from . import levels
from .planes import Bounds
from .view import view

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .slicer import Slicer


@xr.register_dataset_accessor("liver")  # type: ignore[no-untyped-call]  # xarray has no type annotations for it
class LiverAccessor:
    """The methods `ds.liver.crop`, `ds.liver.show`, ... of a Dataset of an archive or of a store."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def crop(self, bounding_box: Sequence[int]) -> xr.Dataset:
        """Return a box of the Dataset, lazily.

        Args:
            bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole volume, each max exclusive.

        Returns:
            A Dataset of the box, whose coordinates keep their values.

        Raises:
            InvalidArgumentError: The box is empty, or exceeds the Dataset. (ValueError)
        """
        return boxes.crop(self._ds, bounding_box)

    def overview(self, z: int, pixels: int = levels.PIXELS) -> xr.Dataset:
        """Return a whole slice at a low resolution, lazily.

        Args:
            z: The slice, an index in the whole volume.
            pixels: Maximum number of rows and columns.

        Returns:
            A Dataset of dims (y, x), with every n-th row. Its columns are averaged; masks keep their share of labelled
            voxels.

        Raises:
            InvalidArgumentError: There is no such slice, or `pixels` is out of range. (ValueError)
        """
        return levels.window(self._ds, z, pixels=pixels)

    def show(
        self,
        z: int,
        y: Bounds = None,
        x: Bounds = None,
        *,
        labels: str | Sequence[str] | None = None,
        opacity: float = 0.4,
        contrast: tuple[float, float] = (0.5, 99.5),
        pixels: int = levels.PIXELS,
        axes: "Axes | None" = None,
    ) -> "Figure":
        """Draw a window of a slice: raw, and masks over it in colour; see `liver_dask.show`.

        Args:
            z: The slice, an index in the whole volume.
            y: First row and end (exclusive), as a pair or a slice; all rows if None.
            x: First column and end (exclusive), as a pair or a slice; all columns if None.
            labels: The labels to show; all labels of the Dataset if None.
            opacity: Opacity of the labels, 0 to 1.
            contrast: Percentiles of raw that are black and white; empty glass (0) is ignored.
            pixels: Maximum number of rows and columns to show; a larger window is fetched at a lower resolution.
            axes: Axes to draw into; a new figure if None.

        Returns:
            The figure, whose axes count voxels of the whole volume.

        Raises:
            MissingExtraError: matplotlib is not installed. (ImportError)
            InvalidArgumentError: The window is not inside the Dataset, raw or a label is missing, or an option is out
                of range. (ValueError)
        """
        return pictures.show(
            self._ds, z, y, x, labels=labels, opacity=opacity, contrast=contrast, pixels=pixels, axes=axes
        )

    def view(
        self,
        *,
        z: int | None = None,
        labels: str | Sequence[str] | None = None,
        opacity: float = 0.4,
        contrast: tuple[float, float] = (0.5, 99.5),
        size: int = 620,
    ) -> "Slicer":
        """Show the Dataset slice by slice in a Jupyter widget; see `liver_dask.view`.

        Args:
            z: The first slice to show, an index in the whole volume; the middle slice if None.
            labels: The labels to show at first; all if None.
            opacity: Opacity of the labels, 0 to 1.
            contrast: Percentiles of raw that are black and white; empty glass (0) is ignored.
            size: Width of the picture in pixels, at least 100.

        Returns:
            The widget. A notebook shows it if it is the last line of a cell. `.go_to(z, y, x)` moves it, `.close()`
            closes it.

        Raises:
            MissingExtraError: ipywidgets, ipympl or matplotlib is not installed. (ImportError)
            InvalidArgumentError: A slice, a label or raw is missing, or an option is out of range. (ValueError)
        """
        return view(self._ds, z=z, labels=labels, opacity=opacity, contrast=contrast, size=size)

    def fractions(self) -> xr.Dataset:
        """Return the share of each label in each slice, lazily.

        Returns:
            A Dataset with one variable of dim z for each label: its labelled voxels as a fraction of all voxels of the
            slice, 0 to 1.
        """
        return pictures.fractions(self._ds)
