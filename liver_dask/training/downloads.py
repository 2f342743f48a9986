"""Downloads of parts of the volume with torch_em's function names, arguments, file names and box convention."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..archive.archives import EMPIAR_13356, find_archive
from ..archive.dataset import open_archive
from ..archive.description import Archive
from ..core.errors import InvalidArgumentError, NotDownloadedError
from ..core.geometry import BoundingBox
from ..core.kinds import RAW
from ..core.places import Place, place_of
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
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Download a box of raw and labels, by default the masks of mito, er and nucleus, as one Zarr v3 store.

    Args:
        path: Folder of the stores. The store of a box is named `<12 hex digits of the box's MD5>.zarr`, as in torch_em.
            The name of another archive, and labels other than the default ones, are prefixed.
        bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels, each max exclusive. Tissue spans about
            x 1195..18890 and y 469..19570.
        download: Whether to download the box if its store is missing or incomplete.
        source: Where to read the archive from, if not from its own address; see `open_archive`.
        shape: Shape (z, y, x) in voxels of the whole volume at `source`, if it differs from the archive's description.
        archive: The archive, by default EMPIAR-13356; see `open_archive`.
        labels: The labels to store; by default those that the archive's description lists as default.
        client: The cluster that downloads, see `to_zarr`.
        storage_options: fsspec's options if `path` is an address in object storage, see `to_zarr`.

    Returns:
        The path of the store.

    Raises:
        NotDownloadedError: The store is missing or incomplete, and `download` is False. (RuntimeError)
        InvalidArgumentError: The box is empty, reversed or not inside the volume. (ValueError)
        StoreExistsError: Something else has the store's name. (FileExistsError)
    """
    described = find_archive(archive).of_shape(shape)
    box = described.check_bounding_box(bounding_box)
    digest = hashlib.md5("_".join(map(str, box)).encode(), usedforsecurity=False).hexdigest()[:12]
    return _store(place_of(path, storage_options), digest, box, download, source, described, labels, client)


def get_human_liver_em_full_volume(
    path: str | os.PathLike[str],
    download: bool = False,
    *,
    source: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    labels: str | Iterable[str] | None = None,
    client: "Client | None" = None,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Download the whole volume as `full_volume.zarr`: the tissue box of EMPIAR-13356, or all of a volume without one.

    The tissue box is not known if `shape` differs from the archive's description. The download is hundreds of GB and
    takes days over a long distance, on any number of machines; `liver-dask download OUT --full --dry-run` estimates it.
    It may be interrupted in any way; the same call resumes it.

    Args:
        path: Folder of the store.
        download: Whether to download the volume if its store is missing or incomplete.
        source: Where to read the archive from, if not from its own address; see `open_archive`.
        shape: Shape (z, y, x) in voxels of the whole volume at `source`, if it differs from the archive's description.
        archive: The archive, by default EMPIAR-13356; see `open_archive`.
        labels: The labels to store; by default those that the archive's description lists as default.
        client: The cluster that downloads, see `to_zarr`.
        storage_options: fsspec's options if `path` is an address in object storage, see `to_zarr`.

    Returns:
        The path of the store.

    Raises:
        NotDownloadedError: The store is missing or incomplete, and `download` is False. (RuntimeError)
    """
    described = find_archive(archive).of_shape(shape)
    return _store(
        place_of(path, storage_options), "full_volume", described.full_box, download, source, described, labels, client
    )


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
    storage_options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Download several boxes, or the whole volume, and return the paths of the stores.

    Args:
        path: Folder of the stores.
        bounding_boxes: The boxes, see `get_human_liver_em_data`; ignored if `full_volume`.
        download: Whether to download missing or incomplete stores.
        full_volume: Whether to download the whole volume instead of boxes.
        source: Where to read the archive from, if not from its own address; see `open_archive`.
        shape: Shape (z, y, x) in voxels of the whole volume at `source`, if it differs from the archive's description.
        archive: The archive, by default EMPIAR-13356; see `open_archive`.
        labels: The labels to store; by default those that the archive's description lists as default.
        client: The cluster that downloads, see `to_zarr`.
        storage_options: fsspec's options if `path` is an address in object storage, see `to_zarr`.

    Returns:
        One path per box, in the order of the boxes; a single path if `full_volume`.

    Raises:
        InvalidArgumentError: Neither `bounding_boxes` nor `full_volume` is given. (ValueError)
    """
    options: dict[str, Any] = {
        "source": source,
        "shape": shape,
        "archive": archive,
        "labels": labels,
        "client": client,
        "storage_options": storage_options,
    }
    if full_volume:
        return [get_human_liver_em_full_volume(path, download, **options)]
    if bounding_boxes is None:
        raise InvalidArgumentError("Give bounding_boxes, or full_volume=True.")
    return [get_human_liver_em_data(path, box, download, **options) for box in bounding_boxes]


def _store(
    folder: Place,
    name: str,
    box: BoundingBox,
    download: bool,
    source: str | os.PathLike[str] | None,
    archive: Archive,
    labels: str | Iterable[str] | None,
    client: "Client | None",
) -> str:
    """Download a box as a store, or find its complete store; return the path.

    The name of the store is that of torch_em, prefixed with the archive and the labels if they are not the default.

    Raises:
        NotDownloadedError: There is no complete store, and `download` is False.
    """
    names = archive.check_labels(labels)
    parts = [] if archive.name == EMPIAR_13356.name else [archive.name.replace("/", "-")]
    parts += [] if names == archive.labels else names or [RAW]
    store = folder / f"{'-'.join([*parts, name])}.zarr"
    ds = open_archive(archive, source, labels=names).assign_attrs(bounding_box=list(box))  # as torch_em records it
    if download:
        return to_zarr(ds, store, bounding_box=box, client=client)
    there = Export.plan(ds, store, box).store
    if there.is_complete():
        return str(there.target)
    raise NotDownloadedError(f"There is no complete store {store}; give download=True to fetch it.")
