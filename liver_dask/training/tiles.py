"""All patches of a box in order, for validation and inference, with torch_em's words for the arguments."""

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..archive.archives import EMPIAR_13356, find_archive
from ..archive.description import Archive
from ..core.errors import InvalidArgumentError
from ..core.geometry import BoundingBox, Shape, check_lengths
from ..core.places import place_of, storage_options_of
from .arguments import check_labels
from .downloads import get_human_liver_em_paths
from .extra import import_extra, with_defaults
from .sampling import Box
from .sources import PatchSource
from .tile_grid import TileGrid

if TYPE_CHECKING:
    import torch
    from distributed import Client

    from .tile_dataset import TileDataset


def get_human_liver_em_tiles(
    path: str | os.PathLike[str],
    patch_shape: Sequence[int],
    bounding_box: Sequence[int] | None = None,
    label_choice: str | Sequence[str] = "mito",
    download: bool = False,
    full_volume: bool = False,
    *,
    halo: Sequence[int] = (0, 0, 0),
    roi: slice | Sequence[slice] | None = None,
    with_labels: bool = True,
    source: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    client: "Client | None" = None,
    storage_options: Mapping[str, Any] | None = None,
    raw_transform: Callable[[Any], Any] | None = None,
    label_transform: Callable[[Any], Any] | None = None,
    ndim: int | None = None,
    dtype: "torch.dtype | None" = None,
    label_dtype: "torch.dtype | None" = None,
) -> "TileDataset":
    """Create a dataset of all patches of a box in order, for validation and inference.

    Every patch has the whole `patch_shape`. Each voxel of the box is in the inner part of exactly one patch, and
    `assemble` of the dataset joins what a network makes of the patches to one array of these inner parts:

        tiles = ld.get_human_liver_em_tiles("liver", (16, 256, 256), box, halo=(4, 32, 32), with_labels=False)
        with torch.no_grad():
            found = tiles.assemble(model(raw) for raw in torch.utils.data.DataLoader(tiles, batch_size=2))

    At the borders of the box, patches are moved inwards, so they consist of voxels of the store, and their inner parts
    extend to the border. Neighbouring patches may therefore overlap by more than twice the halo. Along an axis on which
    the box is shorter than a patch, patches are padded on both sides by reflection (`numpy.pad`, labels too).

    There is no augmentation. The default standardisation is that of each patch, as in training; for raw that does not
    depend on the tile give a `raw_transform` with fixed numbers.

    Args:
        path: Folder of the stores, see `get_human_liver_em_paths`.
        patch_shape: Shape (z, y, x) in voxels of what the network gets, halo included.
        bounding_box: The box (x_min, x_max, y_min, y_max, z_min, z_max) in voxels, see `get_human_liver_em_data`;
            ignored if `full_volume`.
        label_choice: The class of the labels, or several classes. Labels of several classes have an additional first
            axis with one channel per class.
        download: Whether to download the store if it is missing.
        full_volume: Whether to use the whole volume instead of a box.
        halo: Number of voxels (z, y, x) on each side of a patch that only give context. With at least the radius of the
            network's receptive field, predictions are those for the whole box at once.
        roi: The part of the box to tile, as up to three slices (z, y, x) counted from the start of the box. Patches
            also show voxels around it. The default is the whole box.
        with_labels: Whether to read labels. Otherwise an item is raw alone; `label_choice` still says which store.
        source: Where to read the archive from, if not from its own address; see `open_archive`.
        shape: Shape (z, y, x) in voxels of the whole volume at `source`, if it differs from the archive's description.
        archive: The archive, by default EMPIAR-13356; see `open_archive`.
        client: The cluster that downloads, see `to_zarr`.
        storage_options: fsspec's options if `path` is an address in object storage, see `to_zarr`.
        raw_transform: Function of the raw voxels (z, y, x) of a patch; the default standardises each patch.
        label_transform: Function of the labels of a patch, which gets masks of 0 / 255; by default masks become 0 / 1,
            and instances keep their numbers as in `get_human_liver_em_dataset`.
        ndim: 3 (None), or 2 for networks in 2D: a patch has one slice, and tensors have no axis z.
        dtype: Data type of raw; the default is torch.float32.
        label_dtype: Data type of labels; the default is torch.float32.

    Returns:
        A dataset for `torch.utils.data.DataLoader` without `shuffle`. An item is raw and labels of a patch, each
        (channels, z, y, x). It has the attributes `shape`, (z, y, x) in voxels, and `bounding_box` of the tiled box.

    Raises:
        MissingExtraError: torch_em is not installed. (ImportError)
        NotDownloadedError: The store is missing or incomplete, and `download` is not given. (RuntimeError)
        InvalidArgumentError: The halo leaves nothing of a patch, the roi is empty, or another argument is not valid.
            (ValueError)
        StoreExistsError: A store contains data of another source. (FileExistsError)
    """
    extra = import_extra()
    import torch

    from .tile_dataset import TileDataset

    described = find_archive(archive).of_shape(shape)
    patch = check_lengths("patch_shape", patch_shape)
    names = check_labels(described, label_choice)
    if ndim not in (None, 3) and not (ndim == 2 and patch[0] == 1):
        raise InvalidArgumentError(f"ndim={ndim!r} must be 3, or 2 for a patch of one slice; this is {patch}.")
    edge = _check_halo(halo, patch)
    box = _check_box(bounding_box, full_volume, described)
    part = _check_roi(roi, box.shape)
    (store,) = get_human_liver_em_paths(
        path,
        [box],
        download,
        full_volume,
        source=source,
        archive=described,
        labels=(*described.labels, *(name for name in names if name not in described.labels)),  # as for training
        client=client,
        storage_options=storage_options,
    )
    one = PatchSource.stored(place_of(store, storage_options_of(path, storage_options)), names if with_labels else ())
    chosen = with_defaults(
        {
            "raw_transform": raw_transform,
            "label_transform": label_transform,
            "transform": None,
            "label_dtype": label_dtype or torch.float32,
        },
        extra,
        one,
    )
    return TileDataset(
        one.raw,
        one.labels,
        TileGrid(patch, edge, box.shape, part),
        raw_transform=chosen["raw_transform"],
        label_transform=chosen["label_transform"],
        bounding_box=_in_volume(part, box),
        with_label_channels=not isinstance(label_choice, str),
        ndim=ndim or 3,
        dtype=dtype or torch.float32,
        label_dtype=chosen["label_dtype"],
    )


def _check_halo(halo: Sequence[int], patch: Shape) -> Shape:
    """Return the halo as three numbers, or raise InvalidArgumentError."""
    try:
        z, y, x = numbers = [operator.index(length) for length in halo]
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"halo={halo!r} must be three whole numbers (z, y, x).") from None
    if any(length < 0 or 2 * length >= side for length, side in zip(numbers, patch, strict=True)):
        raise InvalidArgumentError(
            f"halo={(z, y, x)} must be at least 0 and below half of patch_shape={patch}, which includes both sides."
        )
    return z, y, x


def _check_box(bounding_box: Sequence[int] | None, full_volume: bool, archive: Archive) -> BoundingBox:
    """Return the box, or raise InvalidArgumentError."""
    if full_volume:
        return archive.full_box
    if bounding_box is None:
        raise InvalidArgumentError("Give bounding_box, or full_volume=True.")
    return archive.check_bounding_box(bounding_box)


def _check_roi(roi: Any, shape: Shape) -> Box:
    """Return the part of the box to tile, or raise InvalidArgumentError."""
    given = () if roi is None else (roi,) if isinstance(roi, slice) else roi
    if not isinstance(given, list | tuple) or len(given) > 3 or not all(isinstance(part, slice) for part in given):
        raise InvalidArgumentError(f"roi={roi!r} must be up to three slices (z, y, x).")
    slices = [*given, *[slice(None)] * (3 - len(given))]
    starts, stops, steps = zip(
        *(of_axis.indices(length) for of_axis, length in zip(slices, shape, strict=True)), strict=True
    )
    box = Box(starts, stops)
    if set(steps) != {1} or min(box.shape) < 1:
        raise InvalidArgumentError(
            f"roi={roi!r} must select voxels one by one, at least one on each axis of the {shape} voxels (z, y, x)."
        )
    return box


def _in_volume(part: Box, box: BoundingBox) -> BoundingBox:
    """Return a part of a box, counted from its start, as a box of the volume."""
    (z, y, x), (z_end, y_end, x_end) = part
    return BoundingBox(
        box.x_min + x, box.x_min + x_end, box.y_min + y, box.y_min + y_end, box.z_min + z, box.z_min + z_end
    )
