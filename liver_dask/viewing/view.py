"""`view`, which shows a volume slice by slice in a notebook, and the server that shows it in a browser."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..archive.archives import EMPIAR_13356
from ..core.errors import InvalidArgumentError, MissingExtraError, how_to_install
from ..core.kinds import RAW
from .figures import check_looks, dataset_of

if TYPE_CHECKING:
    from .slicer import Slicer


SMALLEST = 100
"""Minimum size of the picture in pixels. In a smaller picture the axes would take all the space."""

TARGET = "LIVER_DASK_VIEW_TARGET"
"""Name of the environment variable that tells the kernel what to show."""


def view(
    target: "xr.Dataset | str | os.PathLike[str]" = EMPIAR_13356.url,
    *,
    z: int | None = None,
    labels: str | Sequence[str] | None = None,
    opacity: float = 0.4,
    contrast: tuple[float, float] = (0.5, 99.5),
    size: int = 620,
    storage_options: Mapping[str, Any] | None = None,
) -> "Slicer":
    """Show a volume slice by slice in a Jupyter widget, with its labels in colour.

    Drag the picture to move it, and turn the mouse wheel to zoom. Only the visible window is read, at the resolution of
    the screen (from the pyramid levels if a store has them): first a coarse picture, then the sharp one, then the
    slices before and after. Reads that are no longer needed are cancelled. The widget works in the same way on the
    remote archive and on a store.

    Args:
        target: A Dataset from `open_human_liver_em` or `xr.open_zarr`, or a part of one; or the path of a store, or a
            source of the archive.
        z: The first slice to show, an index in the whole volume; the middle slice if None.
        labels: The labels to show at first; all if None.
        opacity: Opacity of the labels, 0 to 1.
        contrast: Percentiles of raw that are black and white; empty glass (0) is ignored.
        size: Width of the picture in pixels, at least 100. The height follows from the shape of a slice.
        storage_options: fsspec's options for a store in object storage, as in `to_zarr`.

    Returns:
        The widget. A notebook shows it if it is the last line of a cell. `.go_to(z, y, x)` moves it, `.close()` closes
        it.

    Raises:
        MissingExtraError: ipywidgets, ipympl or matplotlib is not installed. (ImportError)
        InvalidArgumentError: A slice, a label or raw is missing, or an option is out of range. (ValueError)
    """
    try:
        from .slicer import Slicer
    except ImportError as error:
        raise MissingExtraError(
            f"The slicer needs matplotlib, ipywidgets and ipympl ({error}): {how_to_install('view')}."
        ) from error
    ds = dataset_of(target, storage_options)
    check_looks(contrast, opacity)
    labels = [labels] if isinstance(labels, str) else labels
    missing = [name for name in (RAW, *(labels or ())) if name not in ds]
    if missing:
        raise InvalidArgumentError(f"There is no {missing[0]!r} in the Dataset; it has {', '.join(map(str, ds))}.")
    if z is not None and z not in ds.indexes["z"]:
        first, last = ds.indexes["z"][0], ds.indexes["z"][-1]
        raise InvalidArgumentError(f"z={z!r} is not one of the slices {first} to {last} that the Dataset holds.")
    if not (isinstance(size, int) and size >= SMALLEST):
        raise InvalidArgumentError(f"size={size!r} must be a whole number of pixels, at least {SMALLEST}.")
    return Slicer(ds, z, None if labels is None else list(labels), opacity, contrast, size)


def serve_slicer(
    target: str, options: Mapping[str, Any], z: int | None, labels: Sequence[str] | None, port: int, browser: bool
) -> None:
    """Serve the slicer to a browser until interrupted.

    The server accepts only connections from this computer that have the token.

    Args:
        target: The path of a store, or the address of an archive.
        options: Further arguments of `open_target`.
        z: The first slice to show; the middle slice if None.
        labels: The labels to show at first; all if None.
        port: Port of the server; any free port if 0.
        browser: Whether to open a browser.

    Raises:
        MissingExtraError: voila is not installed. (ImportError)
    """
    try:
        from .browser import serve_notebook
    except ImportError as error:
        raise MissingExtraError(f"A browser needs voila ({error}): {how_to_install('app')}.") from error
    # absolute paths, because the kernel runs in another folder
    where, archive = (os.path.abspath(path) if os.path.exists(path) else path for path in (target, options["archive"]))
    given = ", ".join(f"{name}={value!r}" for name, value in {**options, "archive": archive}.items())
    cell = (
        "import os\nimport liver_dask as ld\nfrom liver_dask.store.targets import open_target\n"
        f"ld.view(open_target(os.environ[{TARGET!r}], {given}), z={z!r}, labels={labels!r})"
    )
    os.environ[TARGET] = where  # not in the notebook, which is shown and stored on disk: there may be a password
    serve_notebook(cell, port, browser)
