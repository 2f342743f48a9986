"""Training datasets and loaders with torch_em's function names and arguments.

Each additional argument has a default.
"""

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..archive.archives import EMPIAR_13356, find_archive
from ..archive.description import Archive
from ..core.errors import InvalidArgumentError
from ..core.geometry import BoundingBox, Shape, check_lengths
from ..core.kinds import RAW
from ..core.places import ObjectPath, place_of, storage_options_of
from .arguments import (
    Workers,
    boxes_of,
    check_cache,
    check_choices,
    check_count,
    check_labels,
    check_rank,
    check_rois,
    check_weights,
    check_workers,
    least_voxels,
    options_of,
)
from .centres import centres_of, check_centres
from .context import check_scales
from .downloads import get_human_liver_em_paths
from .extra import import_extra, with_defaults
from .sampling import Box, Minimum, PatchSampler, Split
from .sources import PatchSource, stored_sources
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
    storage_options: Mapping[str, Any] | None = None,
    stream: bool = False,
    min_foreground: float = 0.0,
    labelled_region_only: bool = False,
    class_balance: bool = False,
    foreground_share: float | None = None,
    split: SplitName | None = None,
    split_grid: SplitGrid = DEFAULT_GRID,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    rank: int | None = None,
    reuse: int = 1,
    cache_gb: float = 1.0,
    scales: Sequence[Sequence[int]] | None = None,
    **kwargs: Any,
) -> "torch.utils.data.Dataset[Any]":
    """Create a dataset of raw and label patches for training a segmentation.

    The dataset uses torch_em's own dataset class and reads Zarr stores. All positions that are allowed have the same
    chance, in every split. A patch follows from the seed, the rank and its number alone.

    At least half of the raw voxels of each patch are not 0: empty glass is not tissue.

    With `scales`, an item is raw, labels, and one context for each further scale, of the same shape and dtype as raw.
    Voxel i of a context's grid is the mean of the voxels from i * factor to (i + 1) * factor along each axis, counted
    from the beginning of the box and rounded as in a pyramid (see `add_pyramid`). A context begins at the voxel of the
    grid with which its centre is closest to that of the patch, at most half a larger voxel away along each axis; of two
    equally close voxels, at the second. If the pyramid of the store has a level of these factors, it is read;
    otherwise the same voxels are computed from finer ones, which is slow. A context is flipped like its patch.
    `raw_transform` is applied to its voxels within the box, and those outside become the mean of the result: 0 with the
    default standardisation. Contexts show raw of the whole box, also of other splits and outside of `rois`, but never
    labels.

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
        storage_options: fsspec's options if `path` is an address in object storage, see `to_zarr`.
        stream: Read each patch from `source` when it is sampled, without a store. This is for a first try: it is slow,
            and with `min_foreground` many masks are read for one patch. Strips and masks are cached in `path`/cache.
        min_foreground: Minimum share of a patch's voxels, 0 to 1, that belong to one of the labels.
        labelled_region_only: Whether to sample only where labels exist. Each patch has a labelled voxel, and all inner
            chunks (8 x 256 x 256 voxels) that it touches contain labels, or one of their neighbours in the same layer
            does. Masks cover only parts of the slices, and a voxel without a label is not necessarily background.
        class_balance: Whether each label is that of the centre voxel (position + patch_shape // 2, before flips) in the
            same share of the patches, in each box. It needs several labels. A voxel of several labels counts for the
            one that it was drawn for. All allowed positions with such a centre have the same chance, however few.
        foreground_share: The share of the patches, 0 to 1, whose centre voxel belongs to one of the labels; all others
            have an unlabelled one. By default any centre is allowed, or, with `class_balance`, the share is 1.
        split: The split to sample from: `train`, `val`, `test`, or None for all; see `split_grid`. The dataset stores
            it as `.split`, so checkpoints of torch_em's trainer contain it.
        split_grid: The grid of blocks that splits the volume, whatever boxes, patches and labels are used.
        weights: The share of each box in the patches. By default boxes have the same share if `n_samples` is given, as
            in torch_em, and otherwise a share in proportion to their size.
        seed: Seed of positions and of all random transforms. The same seed gives the same patches in the same order,
            with any number of workers. None follows `torch.manual_seed` when the dataset is made.
        rank: Number of this process in distributed training. Each rank has other patches. The default is the rank in
            torch.distributed.
        reuse: Number of patches that are drawn from the same chunks, so that each chunk is decoded once for them. It is
            faster if the boxes do not fit into the cache. All allowed positions still have the same chance, but such
            patches are no longer independent. As many groups of them as fit into the cache, 64 at most, take turns, so
            that another `cache_gb` may give other patches.
        cache_gb: Memory in GB (1e9 bytes) for decoded voxels, in each process. If all boxes fit, each chunk is decoded
            once. If they do not fit, chunks are cached only with `reuse`.
        scales: Factors (z, y, x), such as `[(1, 1, 1), (1, 4, 4)]`: the first are those of the patch itself and must be
            1. For each of the others an item has a context: raw around the patch in voxels that are larger by these
            factors, with as many voxels as the patch; see above. torch_em's trainers take items without contexts only.
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
        InvalidArgumentError: A patch is larger than a box, a label is not stored, no patch satisfies the split, the
            share of foreground or a centre voxel, or arguments cannot be combined. (ValueError)
        StoreExistsError: A store contains data of another source. (FileExistsError)
    """
    extra = import_extra()
    described = find_archive(archive).of_shape(shape)
    patch = check_lengths("patch_shape", patch_shape)
    names = check_labels(described, label_choice)
    check_choices(min_foreground, labelled_region_only, split, split_grid, seed, stream)
    check_centres(class_balance, foreground_share, names, stream, reuse)
    boxes = boxes_of(bounding_boxes, full_volume, described)
    options = options_of(extra.torch_em, kwargs, patch)
    cache_bytes = check_cache(cache_gb, reuse, stream, options["sampler"])
    factors = check_scales(scales, options["transform"], stream)
    rois = check_rois(options.pop("rois"), [box.shape for box in boxes], patch)
    if stream:
        sources = [PatchSource.streamed(_cache_in(path), source, described, names, box) for box in boxes]
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
            storage_options=storage_options,
        )
        of_place = storage_options_of(path, storage_options)
        sources = stored_sources([place_of(store, of_place) for store in stores], names, factors, cache_bytes, reuse)
    splits = [_split_of(split, split_grid, box, described.shape) for box in boxes]
    counts = [_patches_in(*places, patch) for places in zip(rois, splits, strict=True)]
    n_samples = check_count(options.pop("n_samples"))
    total = n_samples or sum(counts)
    shares = check_weights(weights, [1] * len(boxes) if n_samples else counts)
    least = least_voxels(patch, min_foreground, labelled_region_only)
    rank = extra.randomness.rank_in_use()[0] if rank is None else rank
    samplers = [
        _places(one, patch, roi, least, labelled_region_only, of_split)
        for one, roi, of_split in zip(sources, rois, splits, strict=True)
    ]
    datasets = [
        extra.dataset.PatchDataset(
            one.raw,
            one.labels,
            places,
            centres=centres_of(one, places, class_balance, foreground_share),
            roi=tuple(map(slice, roi.start, roi.stop)),
            n_samples=round(total * share / sum(shares)),
            least_tissue=least[0],
            least_labelled=least[1],
            seed=seeds,
            split={"name": split, "grid": split_grid} if split else None,
            reuse=one.reuse(reuse, patch, cache_bytes),
            with_label_channels=not isinstance(label_choice, str),
            contexts=one.contexts,
            **with_defaults(options, extra, one),
        )
        for one, roi, places, share, seeds in zip(
            sources, rois, samplers, shares, extra.dataset.seeds_of(seed, rank, len(boxes)), strict=True
        )
    ]
    mixture = extra.dataset.PatchMixture(*datasets, weights=shares, n_samples=total)
    if not stream:
        mixture.check_that_there_are_patches([one.name for one in sources])
    return mixture


def _cache_in(path: str | os.PathLike[str]) -> Path:
    """Return the folder on this machine that keeps what is streamed."""
    place = place_of(path)
    if isinstance(place, ObjectPath):
        raise InvalidArgumentError(f"stream=True keeps what it fetches in a folder of this machine, not in {place}.")
    return place / "cache"


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
    storage_options: Mapping[str, Any] | None = None,
    stream: bool = False,
    min_foreground: float = 0.0,
    labelled_region_only: bool = False,
    class_balance: bool = False,
    foreground_share: float | None = None,
    split: SplitName | None = None,
    split_grid: SplitGrid = DEFAULT_GRID,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    reuse: int = 1,
    cache_gb: float = 1.0,
    workers: Workers | None = None,
    scales: Sequence[Sequence[int]] | None = None,
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
        storage_options: fsspec's options if `path` is an address in object storage, see `to_zarr`.
        stream: Read each patch from `source` when it is sampled, without a store.
        min_foreground: Minimum share of a patch's voxels, 0 to 1, that belong to one of the labels.
        labelled_region_only: Whether to sample only where labels exist.
        class_balance: Whether each label is that of the centre voxel in the same share of the patches.
        foreground_share: The share of the patches, 0 to 1, whose centre voxel belongs to one of the labels.
        split: The split to sample from: `train`, `val`, `test`, or None for all.
        split_grid: The grid of blocks that splits the volume.
        weights: The share of each box in the patches.
        seed: Seed of positions and of all random transforms.
        rank: Number of this process in distributed training; the default is the rank in torch.distributed.
        world_size: Number of processes in distributed training; the default is that of torch.distributed.
        reuse: Number of patches that are drawn from the same chunks; for workers that are threads.
        cache_gb: Memory in GB for decoded voxels, which all threads share; each process has as much.
        workers: Whether the workers (`num_workers`) are `threads` or `processes`. Reading holds no lock, so threads are
            faster: nothing is copied between processes. The default is threads, and processes for your own transforms:
            on threads these must not draw from the global random generators.
        scales: Factors (z, y, x) of the patch, which are 1, and of each further scale: items have raw around the patch
            in larger voxels after raw and labels.
        kwargs: Further arguments of `torch_em.default_segmentation_dataset` and of `torch.utils.data.DataLoader`.

    Returns:
        A DataLoader like that of `torch_em.get_data_loader`, with `state_dict` and `load_state_dict`.

    Raises:
        InvalidArgumentError: An argument is neither one of this function nor of the two above. (ValueError)
        LiverDaskError: The same errors as `get_human_liver_em_dataset`.
    """
    extra = import_extra()
    of_dataset = inspect.signature(extra.torch_em.default_segmentation_dataset).parameters
    of_loader = inspect.signature(extra.batches.DataLoader).parameters.keys() - {"dataset", "sampler"}
    for name in kwargs.keys() - of_dataset.keys() - of_loader:
        raise InvalidArgumentError(
            f"{name!r} is no argument of this function, torch_em.default_segmentation_dataset or DataLoader."
        )
    in_use = extra.randomness.rank_in_use()
    depends = in_use if rank is None or world_size is None else None
    ranks = in_use[1] if world_size is None else world_size
    rank = in_use[0] if rank is None else rank
    check_rank(rank, ranks)
    kind = check_workers(workers, kwargs)
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
        storage_options=storage_options,
        stream=stream,
        min_foreground=min_foreground,
        labelled_region_only=labelled_region_only,
        class_balance=class_balance,
        foreground_share=foreground_share,
        split=split,
        split_grid=split_grid,
        weights=weights,
        seed=seed,
        rank=rank,
        reuse=reuse,
        cache_gb=cache_gb,
        scales=scales,
        **{name: value for name, value in kwargs.items() if name in of_dataset},
    )
    options = {"pin_memory": True} | {name: value for name, value in kwargs.items() if name not in of_dataset}
    if options.get("batch_sampler") is not None:  # the user decides which patches come when
        return extra.torch_em.get_data_loader(dataset, batch_size, **options)
    count = -(-len(dataset) // ranks)
    return extra.batches.PatchLoader(
        dataset, batch_size, count=count, ranks=depends, has_seed=seed is not None, workers=kind, **options
    )


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
            f"{split.grid.block} voxels. Choose a larger box, or smaller blocks and margins with "
            "split_grid=SplitGrid(block=(z, y, x), margin=(z, y, x))."
        )
    return math.ceil(voxels / math.prod(patch))
