"""torch_em's functions that keep parts of the volume: the same names, arguments, file names and meaning of a box."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..archive.archives import EMPIAR_13356, find_archive
from ..archive.dataset import open_archive
from ..archive.description import Archive
from ..core.errors import InvalidArgumentError, NotDownloadedError
from ..core.geometry import BoundingBox
from ..core.kinds import RAW
from ..store.plan import Export
from ..store.to_zarr import to_zarr

if TYPE_CHECKING:
    from distributed import Client


def get_human_liver_em_data(
    path: str | os.PathLike[str],
    bounding_box: Sequence[int],
    download: bool = False,
    *,
    source: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    labels: str | Iterable[str] | None = None,
    client: "Client | None" = None,
) -> str:
    """Keep a box of raw and of labels, by default the masks of mito, er and nucleus, as one Zarr v3 store.

    Args:
        path: Folder for the stores; a box is `<12 hex digits of its MD5>.zarr` in it, as in torch_em;
            of another archive, or of other labels than usual, these are named before.
        bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels, each max exclusive. Tissue spans about
            x 1195..18890 and y 469..19570.
        download: Whether to fetch the box if it is not there.
        source: Where to fetch it from, if not at the archive's own address; see `open_archive`.
        shape: Voxels (z, y, x) of the whole volume at `source`, if they are other than described.
        archive: Which archive, if not EMPIAR-13356; see `open_archive`.
        labels: The labels to keep; by default those that the archive's description says.
        client: The cluster to work on, see `to_zarr`.

    Returns:
        The path of the store.

    Raises:
        NotDownloadedError: The store is not there, or not complete, and `download` is False. (RuntimeError)
        InvalidArgumentError: The box is empty, reversed or leaves the volume. (ValueError)
        StoreExistsError: Something else has the store's name. (FileExistsError)
    """
    described = find_archive(archive).of_shape(shape)
    box = described.check_bounding_box(bounding_box)
    digest = hashlib.md5("_".join(map(str, box)).encode(), usedforsecurity=False).hexdigest()[:12]
    return _store(Path(path), digest, box, download, source, described, labels, client)


def get_human_liver_em_full_volume(
    path: str | os.PathLike[str],
    download: bool = False,
    *,
    source: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    labels: str | Iterable[str] | None = None,
    client: "Client | None" = None,
) -> str:
    """Keep the whole volume as `full_volume.zarr`: of EMPIAR-13356 the box that holds tissue, of another shape all.

    That is hundreds of GB and days from far away, on however many machines: `liver-dask download OUT --full --dry-run`
    tells. It may be interrupted, in whatever way; the same call goes on.

    Args:
        path: Folder for the store.
        download: Whether to fetch what is not there.
        source: Where to fetch it from, if not at the archive's own address; see `open_archive`.
        shape: Voxels (z, y, x) of the whole volume at `source`, if they are other than described.
        archive: Which archive, if not EMPIAR-13356; see `open_archive`.
        labels: The labels to keep; by default those that the archive's description says.
        client: The cluster to work on, see `to_zarr`.

    Returns:
        The path of the store.

    Raises:
        NotDownloadedError: The store is not there, or not complete, and `download` is False. (RuntimeError)
    """
    described = find_archive(archive).of_shape(shape)
    return _store(Path(path), "full_volume", described.full_box, download, source, described, labels, client)


def get_human_liver_em_paths(
    path: str | os.PathLike[str],
    bounding_boxes: Sequence[Sequence[int]] | None = None,
    download: bool = False,
    full_volume: bool = False,
    *,
    source: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    labels: str | Iterable[str] | None = None,
    client: "Client | None" = None,
) -> list[str]:
    """Keep several boxes, or the whole volume, and give the paths of the stores.

    Args:
        path: Folder for the stores.
        bounding_boxes: The boxes, see `get_human_liver_em_data`; not looked at if `full_volume`.
        download: Whether to fetch what is not there.
        full_volume: Whether to keep the whole volume instead.
        source: Where to fetch from, if not at the archive's own address; see `open_archive`.
        shape: Voxels (z, y, x) of the whole volume at `source`, if they are other than described.
        archive: Which archive, if not EMPIAR-13356; see `open_archive`.
        labels: The labels to keep; by default those that the archive's description says.
        client: The cluster to work on, see `to_zarr`.

    Returns:
        One path a box, in their order.

    Raises:
        InvalidArgumentError: Neither boxes nor `full_volume` are given. (ValueError)
    """
    options: dict[str, Any] = {
        "source": source,
        "shape": shape,
        "archive": archive,
        "labels": labels,
        "client": client,
    }
    if full_volume:
        return [get_human_liver_em_full_volume(path, download, **options)]
    if bounding_boxes is None:
        raise InvalidArgumentError("Give bounding_boxes, or full_volume=True.")
    return [get_human_liver_em_data(path, box, download, **options) for box in bounding_boxes]


def _store(
    folder: Path,
    name: str,
    box: BoundingBox,
    download: bool,
    source: str | os.PathLike[str] | None,
    archive: Archive,
    labels: str | Iterable[str] | None,
    client: "Client | None",
) -> str:
    """Keep a box as a store, or find it there; its name is torch_em's, unless more tells it from others."""
    names = archive.check_labels(labels)
    parts = [] if archive.name == EMPIAR_13356.name else [archive.name.replace("/", "-")]
    parts += [] if names == archive.labels else names or [RAW]
    store = folder / f"{'-'.join([*parts, name])}.zarr"
    ds = open_archive(archive, source, labels=names)
    if download:
        return to_zarr(ds, store, bounding_box=box, client=client)
    there = Export.plan(ds, store, box).store
    if there.is_complete():
        return str(there.target)
    raise NotDownloadedError(f"There is no complete store {store}; give download=True to fetch it.")
