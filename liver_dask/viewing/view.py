"""`view`: slide through a volume in a notebook."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..archive.archives import EMPIAR_13356
from ..archive.dataset import open_archive
from ..archive.description import Archive
from ..core.errors import InvalidArgumentError, MissingExtraError
from ..core.kinds import RAW
from ..store.record import check_shards, has_record, open_record
from .figures import Levels

if TYPE_CHECKING:
    from .slicer import Slicer


SMALLEST = 100
"""Pixels: of less than that the axes take all."""

TARGET = "LIVER_DASK_VIEW_TARGET"
"""The variable by which the kernel is told what to show."""


def view(
    target: "xr.Dataset | str | os.PathLike[str]" = EMPIAR_13356.url,
    *,
    z: int | None = None,
    labels: str | Sequence[str] | None = None,
    opacity: float = 0.4,
    contrast: tuple[float, float] = (0.5, 99.5),
    size: int = 720,
) -> "Slicer":
    """Slide through a volume: a widget for Jupyter, with its masks in colour.

    Drag and zoom by the toolbar or the wheel. Only what the window shows is read, at the resolution of the screen (of a
    store with a pyramid by its levels): a coarse picture at once, then the sharp one; what is no longer looked at is
    given up. Works the same on the archive, far away as it is, and on a store.

    Args:
        target: A Dataset that `open_human_liver_em` or `xr.open_zarr` gave, or any part of one; or the path of a store,
            or a source.
        z: The slice to begin with, counted in the whole volume; the middle one if None.
        labels: The masks to show at first; all if None.
        opacity: Of the masks, 0 to 1.
        contrast: The percentiles of raw that are black and white, empty glass left out.
        size: Width and height of the picture, in pixels.

    Returns:
        The widget; a cell shows it where it is the last line. `.go_to(z, y, x)` moves it, `.close()` ends it.

    Raises:
        MissingExtraError: ipywidgets, ipympl or matplotlib is not installed. (ImportError)
        InvalidArgumentError: There is no such slice or label, or no raw, or an option makes no sense. (ValueError)
    """
    try:
        from .slicer import Slicer
    except ImportError as error:
        raise MissingExtraError(
            f"The slicer needs matplotlib, ipywidgets and ipympl ({error}): pip install 'liver_dask[view]'."
        ) from error
    ds = target if isinstance(target, xr.Dataset) else open_target(target)
    labels = [labels] if isinstance(labels, str) else labels
    missing = [name for name in (RAW, *(labels or ())) if name not in ds]
    if missing:
        raise InvalidArgumentError(f"There is no {missing[0]!r} in the Dataset; it has {', '.join(map(str, ds))}.")
    if z is not None and z not in ds.indexes["z"]:
        first, last = ds.indexes["z"][0], ds.indexes["z"][-1]
        raise InvalidArgumentError(f"z={z!r} is not one of the slices {first} to {last} that the Dataset holds.")
    low, high = contrast
    if not (0 <= low < high <= 100 and 0 <= opacity <= 1 and size >= SMALLEST):
        raise InvalidArgumentError(
            f"contrast={contrast!r} must be two ascending percentiles, opacity={opacity!r} from 0 to 1, and "
            f"size={size!r} at least {SMALLEST}."
        )
    return Slicer(Levels(ds), z, None if labels is None else list(labels), opacity, contrast, size)


def open_target(
    target: str | os.PathLike[str], archive: Archive | str | os.PathLike[str] = EMPIAR_13356, **options: Any
) -> xr.Dataset:
    """Open a store, or else the archive at this address.

    Args:
        target: The path of a store, or the address of an archive.
        archive: Which archive is there, see `open_archive`.
        options: Those of `open_archive`.

    Raises:
        NotDownloadedError: It is a store that is not complete, or of another format than this version reads.
            (RuntimeError)
        DamagedError: It is a store that has lost a shard, which would be read as zeros.
        InvalidArgumentError: It is a Zarr store of somebody else. (ValueError)
        SliceNotFoundError: There is no such folder. (FileNotFoundError)
    """
    if has_record(Path(target)):
        names = list(open_record(Path(target))["variables"])
        check_shards(Path(target), names)
        return xr.open_zarr(target)
    return open_archive(archive, target, **options)


def serve_slicer(
    target: str, archive: str, shape: Sequence[int] | None, z: int | None, port: int, browser: bool
) -> None:
    """Show the slicer in a browser until it is interrupted; to this machine alone, and of it to who has the token.

    Raises:
        MissingExtraError: voila is not installed. (ImportError)
    """
    try:
        from .browser import serve_notebook
    except ImportError as error:
        raise MissingExtraError(f"A browser needs voila ({error}): pip install 'liver_dask[app]'.") from error
    # the kernel runs in another folder
    where, description = (os.path.abspath(path) if os.path.exists(path) else path for path in (target, archive))
    cell = (
        "import os\nimport liver_dask as ld\nfrom liver_dask.viewing.view import open_target\n"
        f"ld.view(open_target(os.environ[{TARGET!r}], {description!r}, shape={shape!r}), z={z!r})"
    )
    os.environ[TARGET] = where  # not into the notebook, which is shown and lies on the disk: there may be a password
    serve_notebook(cell, port, browser)
