"""Training datasets and loaders with torch_em's function names and arguments.

Each additional argument has a default.
"""

import inspect
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..archive.archives import EMPIAR_13356, find_archive
from ..archive.description import Archive
from ..core.errors import InvalidArgumentError, MissingExtraError
from ..core.geometry import BoundingBox, Shape, check_lengths
from ..core.kinds import RAW
from .arguments import (
    boxes_of,
    check_choices,
    check_count,
    check_labels,
    check_rois,
    check_weights,
    least_voxels,
    options_of,
)
from .downloads import get_human_liver_em_paths
from .sampling import Box, Minimum, PatchSampler, Split
from .sources import PatchSource
from .splits import DEFAULT_GRID, SplitGrid, SplitName
from .tables import union

if TYPE_CHECKING:
    import torch
    from distributed import Client


def get_human_liver_em_dataset(
    path: str | os.PathLike[str],
    patch_shape: Sequence[int],
    bounding_boxes: Sequence[Sequence[int]] | None = None,
    label_choice: str | Sequence[str] = "mito",
    download: bool = False,
    full_volume: bool = False,
    *,
    source: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    client: "Client | None" = None,
    stream: bool = False,
    min_foreground: float = 0.0,
    labelled_region_only: bool = False,
    split: SplitName | None = None,
    split_grid: SplitGrid = DEFAULT_GRID,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    rank: int | None = None,
    **kwargs: Any,
) -> "torch.utils.data.Dataset[Any]":
    """Create a dataset of raw and label patches for training a segmentation.

    The dataset uses torch_em's own dataset class and reads Zarr stores. All positions that are allowed have the same
    chance, in every split. A patch follows from the seed, the rank and its number alone.

    At least half of the raw voxels of each patch are not 0: empty glass is not tissue.

    Args:
        path: Folder of the stores, see `get_human_liver_em_paths`.
        patch_shape: Shape (z, y, x) of a patch in voxels.
        bounding_boxes: Boxes (x_min, x_max, y_min, y_max, z_min, z_max) in voxels; ignored if `full_volume`.
        label_choice: The class to segment, or several classes. Labels of several classes have an additional first axis
            with one channel per class.
        download: Whether to download missing stores.
        full_volume: Whether to use the whole volume instead of boxes.
        source: Where to read the archive from, if not from its own address; see `open_archive`.
        shape: Shape (z, y, x) in voxels of the whole volume at `source`, if it differs from the archive's description.
        archive: The archive, by default EMPIAR-13356; see `open_archive`.
        client: The cluster that downloads, see `to_zarr`.
        stream: Read each patch from `source` when it is sampled, without a store. This is for a first try: it is slow,
            and with `min_foreground` many masks are read for one patch. Strips and masks are cached in `path`/cache.
        min_foreground: Minimum share of a patch's voxels, 0 to 1, that belong to one of the labels.
        labelled_region_only: Whether to sample only where labels exist. Each patch has a labelled voxel, and all inner
            chunks (8 x 256 x 256 voxels) that it touches contain labels, or one of their neighbours in the same layer
            does. Masks cover only parts of the slices, and a voxel without a label is not necessarily background.
        split: The split to sample from: `train`, `val`, `test`, or None for all; see `split_grid`. The dataset stores
            it as `.split`, so checkpoints of torch_em's trainer contain it.
        split_grid: The grid of blocks that splits the volume, whatever boxes, patches and labels are used.
        weights: The share of each box in the patches. By default boxes have the same share if `n_samples` is given, as
            in torch_em, and otherwise a share in proportion to their size.
        seed: Seed of positions and of all random transforms. The same seed gives the same patches in the same order,
            with any number of workers. None follows `torch.manual_seed` when the dataset is made.
        rank: Number of this process in distributed training. Each rank has other patches. The default is the rank in
            torch.distributed.
        kwargs: Further arguments of `torch_em.default_segmentation_dataset`. Masks are 0 / 1 by default; a
            `label_transform` gets masks of 0 / 255, as in torch_em. Instances keep their numbers; where float32
            would not hold them, they are numbered anew in each patch.

    Returns:
        A `torch_em.data.ConcatDataset` with one `torch_em.data.SegmentationDataset` per box. When an index is asked for
        again, another patch is returned: that of the next epoch.

    Raises:
        MissingExtraError: torch_em is not installed. (ImportError)
        NotDownloadedError: A store is missing or incomplete, and neither `download` nor `stream` is given.
            (RuntimeError)
        InvalidArgumentError: A patch is larger than a box, a label is not stored, or no patch satisfies the split or
            the share of foreground. (ValueError)
        StoreExistsError: A store contains data of another source. (FileExistsError)
    """
    extra = import_extra()
    described = find_archive(archive).of_shape(shape)
    patch = check_lengths("patch_shape", patch_shape)
    names = check_labels(described, label_choice)
    check_choices(min_foreground, labelled_region_only, split, seed, stream)
    boxes = boxes_of(bounding_boxes, full_volume, described)
    options = options_of(extra.torch_em, kwargs, patch)
    rois = check_rois(options.pop("rois"), [box.shape for box in boxes], patch)
    if stream:
        sources = [PatchSource.streamed(Path(path) / "cache", source, described, names, box) for box in boxes]
    else:
        stored = (*described.labels, *(name for name in names if name not in described.labels))
        stores = get_human_liver_em_paths(
            path,
            bounding_boxes,
            download,
            full_volume,
            source=source,
            archive=described,
            labels=stored,
            client=client,
        )
        sources = [PatchSource.stored(Path(store).absolute(), names) for store in stores]
    splits = [_split_of(split, split_grid, box, described.shape) for box in boxes]
    counts = [_patches_in(*places, patch) for places in zip(rois, splits, strict=True)]
    n_samples = check_count(options.pop("n_samples"))
    total = n_samples or sum(counts)
    shares = check_weights(weights, [1] * len(boxes) if n_samples else counts)
    least = least_voxels(patch, min_foreground, labelled_region_only)
    rank = extra.randomness.rank_in_use()[0] if rank is None else rank
    datasets = [
        extra.dataset.PatchDataset(
            one.raw,
            one.labels,
            _places(one, patch, roi, least, labelled_region_only, of_split),
            roi=tuple(map(slice, roi.start, roi.stop)),
            n_samples=round(total * share / sum(shares)),
            least_tissue=least[0],
            least_labelled=least[1],
            seed=seeds,
            split={"name": split, "grid": split_grid} if split else None,
            with_label_channels=not isinstance(label_choice, str),
            **with_defaults(options, extra, one),
        )
        for one, roi, of_split, share, seeds in zip(
            sources, rois, splits, shares, extra.dataset.seeds_of(seed, rank, len(boxes)), strict=True
        )
    ]
    mixture = extra.dataset.PatchMixture(*datasets, weights=shares, n_samples=total)
    if not stream:
        mixture.check_that_there_are_patches([one.name for one in sources])
    return mixture


def get_human_liver_em_loader(
    path: str | os.PathLike[str],
    patch_shape: Sequence[int],
    batch_size: int,
    bounding_boxes: Sequence[Sequence[int]] | None = None,
    label_choice: str | Sequence[str] = "mito",
    download: bool = False,
    full_volume: bool = False,
    *,
    source: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    client: "Client | None" = None,
    stream: bool = False,
    min_foreground: float = 0.0,
    labelled_region_only: bool = False,
    split: SplitName | None = None,
    split_grid: SplitGrid = DEFAULT_GRID,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    **kwargs: Any,
) -> "torch.utils.data.DataLoader[Any]":
    """Create a loader of batches of raw and label patches; see `get_human_liver_em_dataset`.

    The stream of batches can be continued exactly: `loader.state_dict()`, and `loader.load_state_dict(state)` in a new
    process, as in torchdata. In distributed training, each rank has other patches, and a part of the epoch.

    Args:
        path: Folder of the stores.
        patch_shape: Shape (z, y, x) of a patch in voxels.
        batch_size: Number of patches in a batch.
        bounding_boxes: Boxes (x_min, x_max, y_min, y_max, z_min, z_max) in voxels; ignored if `full_volume`.
        label_choice: The class to segment, or several classes.
        download: Whether to download missing stores.
        full_volume: Whether to use the whole volume instead of boxes.
        source: Where to read the archive from, if not from its own address.
        shape: Shape (z, y, x) in voxels of the whole volume at `source`, if it differs from the archive's description.
        archive: The archive, by default EMPIAR-13356.
        client: The cluster that downloads.
        stream: Read each patch from `source` when it is sampled, without a store.
        min_foreground: Minimum share of a patch's voxels, 0 to 1, that belong to one of the labels.
        labelled_region_only: Whether to sample only where labels exist.
        split: The split to sample from: `train`, `val`, `test`, or None for all.
        split_grid: The grid of blocks that splits the volume.
        weights: The share of each box in the patches.
        seed: Seed of positions and of all random transforms.
        rank: Number of this process in distributed training; the default is the rank in torch.distributed.
        world_size: Number of processes in distributed training; the default is that of torch.distributed.
        kwargs: Further arguments of `torch_em.default_segmentation_dataset` and of `torch.utils.data.DataLoader`.

    Returns:
        A DataLoader like that of `torch_em.get_data_loader`, with `state_dict` and `load_state_dict`.

    Raises:
        LiverDaskError: The same errors as `get_human_liver_em_dataset`.
    """
    extra = import_extra()
    of_dataset = inspect.signature(extra.torch_em.default_segmentation_dataset).parameters
    in_use = extra.randomness.rank_in_use()
    ranks = in_use[1] if world_size is None else world_size
    rank = in_use[0] if rank is None else rank
    if not 0 <= rank < ranks:
        raise InvalidArgumentError(f"rank={rank} must be at least 0 and below world_size={ranks}.")
    dataset = get_human_liver_em_dataset(
        path,
        patch_shape,
        bounding_boxes,
        label_choice,
        download,
        full_volume,
        source=source,
        shape=shape,
        archive=archive,
        client=client,
        stream=stream,
        min_foreground=min_foreground,
        labelled_region_only=labelled_region_only,
        split=split,
        split_grid=split_grid,
        weights=weights,
        seed=seed,
        rank=rank,
        **{name: value for name, value in kwargs.items() if name in of_dataset},
    )
    options = {"pin_memory": True} | {name: value for name, value in kwargs.items() if name not in of_dataset}
    if options.keys() & {"sampler", "batch_sampler"}:  # the user decides which patches come when
        return extra.torch_em.get_data_loader(dataset, batch_size, **options)
    count = -(-len(dataset) // ranks)
    return extra.batches.PatchLoader(dataset, batch_size, count=count, **options)


class _Extra(NamedTuple):
    """torch_em, and the modules that need it."""

    torch_em: Any
    dataset: Any
    batches: Any
    transforms: Any
    randomness: Any


def import_extra() -> _Extra:
    """Import torch_em and the modules that need it.

    Raises:
        MissingExtraError: They cannot be imported.
    """
    try:
        import torch_em

        from . import batches, dataset, randomness, transforms
    except ImportError as error:
        raise MissingExtraError(
            f"Training needs torch and torch_em ({error}): pip install 'liver_dask[train]'."
        ) from error
    return _Extra(torch_em, dataset, batches, transforms, randomness)


def _split_of(name: SplitName | None, grid: SplitGrid, box: BoundingBox, volume: Shape) -> Split | None:
    return None if name is None else Split(name, grid, (box.z_min, box.y_min, box.x_min), volume)


def _places(
    source: PatchSource,
    patch: Shape,
    roi: Box,
    least: tuple[int, int],
    labelled_region_only: bool,
    split: Split | None,
) -> PatchSampler:
    """Return the sampler of positions, with the tables of a store; `least` is the least tissue and labelled voxels."""
    minima: list[Minimum] = []
    region = None
    if source.tables:
        labels = union([source.tables[name] for name in source.names])
        tables = (source.tables[RAW], labels)
        minima = [Minimum(table, voxels) for table, voxels in zip(tables, least, strict=True) if voxels]
        region = labels.nearby() if labelled_region_only else None
    return PatchSampler(patch, roi, tuple(minima), region, split)


def with_defaults(options: dict[str, Any], extra: _Extra, source: PatchSource) -> dict[str, Any]:
    """Add the default transforms, and a label transform that returns masks of 0 / 1."""
    chosen = dict(options)
    own = extra.transforms
    raw_transform = chosen["raw_transform"]
    chosen["raw_transform"] = own.standardized if raw_transform is None else own.Widened(raw_transform)
    chosen["flips"] = chosen["transform"] is None
    is_mask = tuple(kind == "mask" for kind in source.kinds)
    kornia = extra.torch_em.transform.augmentation.KorniaAugmentationPipeline  # it computes with float32
    in_float32 = chosen["label_dtype"].is_floating_point or isinstance(chosen["transform"], kornia)
    if any(is_mask) and not all(is_mask) and chosen["label_transform"] is None:
        chosen["label_transform"] = own.ByChannel(is_mask, in_float32)
    elif not all(is_mask):
        widened = own.Widened(chosen["label_transform"])
        chosen["label_transform"] = own.Renumbered(widened) if in_float32 else widened
    elif chosen["label_transform"] is None:
        chosen["label_transform"] = own.binary
    return chosen


def _patches_in(box: Box, split: Split | None, patch: Shape) -> int:
    """Return how many patches cover a box, or its part of a split, if they are next to each other, rounded up."""
    if split is None:
        return math.ceil(math.prod(box.shape) / math.prod(patch))
    (z, y, x), start, stop = split.origin, box.start, box.stop
    voxels = split.grid.voxels(
        split.name, (z + start[0], y + start[1], x + start[2]), (z + stop[0], y + stop[1], x + stop[2])
    )
    if not voxels:
        raise InvalidArgumentError(
            f"The box of {box.shape} voxels (z, y, x) at {split.origin} has no block for {split.name}: blocks have "
            f"{split.grid.block} voxels. Choose a larger box, or smaller blocks with split_grid=SplitGrid(block=...)."
        )
    return math.ceil(voxels / math.prod(patch))
