"""Training datasets and loaders with torch_em's function names and arguments.

Each additional argument has a default.
"""

import inspect
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..archive.archives import EMPIAR_13356, find_archive
from ..archive.dataset import open_archive
from ..archive.description import Archive
from ..archive.lazy.lazy_window import LazyWindow
from ..core.config import setting
from ..core.errors import InvalidArgumentError, MissingExtraError
from ..core.geometry import BoundingBox, Shape, check_lengths, crop
from ..core.kinds import RAW, Kind
from ..core.threads import ContextPool
from ..store.array import StoredArray
from ..store.record import layout_of, open_record, read_statistics
from .downloads import get_human_liver_em_paths
from .sampling import SPLITS, Box, Constraint, Densities, PatchSampler, SplitName, plan_split

if TYPE_CHECKING:
    import torch
    from distributed import Client

LEAST_TISSUE = 0.5
"""Minimum share of tissue in a patch, according to the store's table. Empty patches are rejected in any case."""

STREAM_CACHE_GB = 20.0
"""Cache size in GB for the strips of a streamed archive, unless dask's configuration sets another size."""

ALL = 1 - 1e-6
"""Smallest share that counts as all of a patch; the difference to 1 allows for rounding errors."""

READERS = 8
"""Number of slices of a streamed patch that are read in parallel."""

SET_HERE = (
    "raw_paths",
    "raw_key",
    "label_paths",
    "label_key",
    "patch_shape",
    "is_seg_dataset",
    "verify_paths",
    "with_channels",
    "with_label_channels",
)
"""Arguments of torch_em's function that the volume and the labels determine."""


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
    seed: int | None = None,
    **kwargs: Any,
) -> "torch.utils.data.Dataset[Any]":
    """Create a dataset of raw and label patches for training a segmentation.

    The dataset uses torch_em's own dataset class and reads Zarr stores. Patches are sampled uniformly from all allowed
    positions. Patches without tissue (all raw voxels are 0) are never returned.

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
        labelled_region_only: Whether to sample only where labels exist: each inner chunk (8 x 256 x 256 voxels) that a
            patch touches contains labels, or one of its neighbours does. Masks cover only parts of the slices, and a
            voxel without a label is not necessarily background.
        split: The split to sample from: a share of the blocks of each box, see `plan_split`. It is the same for the
            same store and patch shape. The dataset stores it as `.split`, so checkpoints of torch_em's trainer contain
            it.
        seed: Seed of the sampling: the same seed and number of workers give the same patches in the same order. None
            follows `torch.manual_seed`.
        kwargs: Further arguments of `torch_em.default_segmentation_dataset`. Masks are 0 / 1 by default; a
            `label_transform` gets masks of 0 / 255, as in torch_em. Instances keep their numbers in both cases.

    Returns:
        A `torch_em.data.ConcatDataset` with one `torch_em.data.SegmentationDataset` per box.

    Raises:
        MissingExtraError: torch_em is not installed. (ImportError)
        NotDownloadedError: A store is missing or incomplete, and neither `download` nor `stream` is given.
            (RuntimeError)
        InvalidArgumentError: A patch is larger than a box, a label is not stored, or no patch satisfies the split or
            the share of foreground. (ValueError)
        StoreExistsError: A store contains data of another source. (FileExistsError)
    """
    torch_em, torch_dataset = _import_extra()
    described = find_archive(archive).of_shape(shape)
    patch = check_lengths("patch_shape", patch_shape)
    names = _check_labels(described, label_choice)
    _check_choices(min_foreground, labelled_region_only, split, seed, stream)
    boxes = _boxes(bounding_boxes, full_volume, described)
    options = _options_of(torch_em, kwargs)
    rois = _check_rois(options.pop("rois"), [box.shape for box in boxes], patch)
    if stream:
        sources = [_Source.streamed(Path(path) / "cache", source, described, names, box) for box in boxes]
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
        sources = [_Source.stored(Path(store).absolute(), names) for store in stores]
    samples = _shared_out(options.pop("n_samples"), len(sources))
    datasets = []
    for number, (one, roi) in enumerate(zip(sources, rois, strict=True)):
        splits = plan_split(roi, patch, list(one.tables.values())) if split else None
        parts = splits[split] if splits and split else [roi]
        dataset = torch_dataset.PatchDataset(
            one.raw,
            one.labels,
            one.places(patch, parts, min_foreground, labelled_region_only),
            roi=tuple(map(slice, roi.start, roi.stop)),
            n_samples=samples[number] or _patches_in(parts, patch),
            min_foreground=min_foreground,
            seed=None if seed is None else (seed, number),
            split={"name": split, "blocks": splits} if splits else None,
            with_label_channels=not isinstance(label_choice, str),
            **_with_defaults(options, torch_em, torch_dataset, one),
        )
        if not stream:
            dataset.check_that_there_are_patches(one.name)
        datasets.append(dataset)
    return torch_em.data.ConcatDataset(*datasets)


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
    seed: int | None = None,
    **kwargs: Any,
) -> "torch.utils.data.DataLoader[Any]":
    """Create a loader of batches of raw and label patches; see `get_human_liver_em_dataset`.

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
        split: The share of the blocks of each box to sample from: `train`, `val`, `test`, or None for all.
        seed: Seed of the sampling, of the order with `shuffle`, and of the random transforms in the workers.
        kwargs: Further arguments of `torch_em.default_segmentation_dataset` and of `torch.utils.data.DataLoader`.

    Returns:
        The DataLoader that `torch_em.get_data_loader` creates.

    Raises:
        LiverDaskError: The same errors as `get_human_liver_em_dataset`.
    """
    torch_em, _ = _import_extra()
    of_dataset = inspect.signature(torch_em.default_segmentation_dataset).parameters
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
        seed=seed,
        **{name: value for name, value in kwargs.items() if name in of_dataset},
    )
    of_loader = {name: value for name, value in kwargs.items() if name not in of_dataset}
    if seed is not None and "generator" not in of_loader:
        import torch

        of_loader["generator"] = torch.Generator().manual_seed(seed)
    return torch_em.get_data_loader(dataset, batch_size, **of_loader)


class StreamedArray:
    """One variable of a box of the archive, read on access.

    Args:
        lazy: The box. Its pickle is small.

    Attributes:
        shape: Shape (z, y, x) in voxels.
    """

    def __init__(self, lazy: LazyWindow) -> None:
        self._lazy = lazy
        z, y, x = lazy.shape
        self.shape: Shape = z, y, x

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read voxels, with the slices in parallel.

        The threads end with this call, because longer-lived threads would not survive a fork.
        """
        window = LazyWindow(self._lazy.read, self._lazy.window[key], self._lazy.dtype)
        out = np.empty(window.shape, window.dtype)
        with ContextPool(READERS) as pool:
            window.read_slices(slice(None), pool, out)
        return out


@dataclass(frozen=True)
class _Source:
    """The arrays that one dataset reads.

    Attributes:
        name: Name in error messages.
        raw: The image.
        labels: One array per class.
        names: Names of the labels.
        tables: For each stored variable, the share of nonzero voxels per chunk, from the store's table. Empty if
            streamed.
        kinds: Kinds of the labels.
    """

    name: str
    raw: StoredArray | StreamedArray
    labels: tuple[StoredArray | StreamedArray, ...]
    names: tuple[str, ...]
    tables: dict[str, Densities]
    kinds: frozenset[Kind]

    @classmethod
    def stored(cls, store: Path, names: tuple[str, ...]) -> "_Source":
        record = open_record(store)
        layout = layout_of(record)
        tables = {
            name: Densities.of(read_statistics(store, name, "nonzero"), layout.chunks, layout.shape)
            for name in record["variables"]
        }
        raw, *labels = (StoredArray(store, name) for name in (RAW, *names))
        kinds = frozenset(record["variables"][name].get("kind", "mask") for name in names)
        return cls(str(store), raw, tuple(labels), names, tables, kinds)

    @classmethod
    def streamed(
        cls,
        cache: Path,
        source: str | os.PathLike[str] | None,
        archive: Archive,
        names: tuple[str, ...],
        box: BoundingBox,
    ) -> "_Source":
        ds = open_archive(
            archive,
            source,
            labels=names,
            cache_dir=setting("cache-dir") or cache,
            cache_raw_gb=setting("cache-raw-gb") or STREAM_CACHE_GB,
        )
        part = crop(ds, box)
        raw, *labels = (StreamedArray(part[name].data.lazy) for name in (RAW, *names))
        kinds = frozenset(archive[name].kind for name in names)
        return cls(ds.attrs["source"], raw, tuple(labels), names, {}, kinds)

    def places(
        self, patch: Shape, parts: Sequence[Box], min_foreground: float, labelled_region_only: bool
    ) -> PatchSampler:
        """Create a sampler of positions that satisfy the constraints, as far as the tables can decide.

        If chunks are much larger than a patch, or contain only few voxels of a label, the expected share of foreground
        is too low for every patch. In this case the sampler returns positions where the share may be large enough, and
        the dataset decides from the masks.
        """
        boxes = tuple(parts)
        if not self.tables:
            return PatchSampler(patch, boxes)
        tissue = self.tables[RAW]
        together = Densities(np.add.reduce([self.tables[name].values for name in self.names]), tissue.chunks)
        constraints = [Constraint(tissue, LEAST_TISSUE)]
        if labelled_region_only:
            constraints.append(Constraint(together.nearby(), ALL))
        if not min_foreground:
            return PatchSampler(patch, boxes, tuple(constraints))
        sampler = PatchSampler(patch, boxes, (*constraints, Constraint(together, min_foreground)))
        if sampler.draw(np.random.default_rng(0)):
            return sampler
        return PatchSampler(patch, boxes, (*constraints, Constraint(together, min_foreground, may_be=True)))


def _import_extra() -> tuple[Any, Any]:
    """Import torch_em and the module that needs it.

    Raises:
        MissingExtraError: They cannot be imported.
    """
    try:
        import torch_em

        from . import dataset as torch_dataset
    except ImportError as error:
        raise MissingExtraError(
            f"Training needs torch and torch_em ({error}): pip install 'liver_dask[train]'."
        ) from error
    return torch_em, torch_dataset


def _check_labels(archive: Archive, label_choice: str | Sequence[str]) -> tuple[str, ...]:
    names = archive.check_labels(label_choice)
    if not names:
        raise InvalidArgumentError(
            f"label_choice={label_choice!r} has no label; choose of {', '.join(archive.labels)}."
        )
    return names


def _check_choices(
    min_foreground: float, labelled_region_only: bool, split: str | None, seed: int | None, stream: bool
) -> None:
    if not isinstance(min_foreground, (int, float)) or not 0 <= min_foreground <= 1:
        raise InvalidArgumentError(f"min_foreground={min_foreground!r} must be a share, 0 to 1.")
    if split is not None and split not in SPLITS:
        raise InvalidArgumentError(f"split={split!r} must be one of {', '.join(SPLITS)}, or None.")
    if seed is not None and not (isinstance(seed, int) and seed >= 0):
        raise InvalidArgumentError(f"seed={seed!r} must be a whole number of at least 0, or None.")
    if stream and labelled_region_only:
        raise InvalidArgumentError("labelled_region_only needs the table of a store; download one, or do not stream.")


def _boxes(bounding_boxes: Sequence[Sequence[int]] | None, full_volume: bool, archive: Archive) -> list[BoundingBox]:
    if full_volume:
        return [archive.full_box]
    if not bounding_boxes:
        raise InvalidArgumentError("Give bounding_boxes, or full_volume=True.")
    return [archive.check_bounding_box(box) for box in bounding_boxes]


def _options_of(torch_em: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of torch_em's function with its defaults, without those that the volume determines.

    Raises:
        InvalidArgumentError: An argument does not exist, or the volume determines it.
    """
    known = inspect.signature(torch_em.default_segmentation_dataset).parameters
    for name, value in given.items():
        if name not in known:
            raise InvalidArgumentError(f"torch_em.default_segmentation_dataset has no argument {name!r}.")
        if name in SET_HERE and name not in ("is_seg_dataset", "verify_paths"):
            raise InvalidArgumentError(
                f"{name}={value!r} cannot be given: it follows from the volume and label_choice."
            )
    return {name: given.get(name, of.default) for name, of in known.items() if name not in SET_HERE}


def _with_defaults(options: dict[str, Any], torch_em: Any, torch_dataset: Any, source: _Source) -> dict[str, Any]:
    """Add the default transforms of torch_em, and a label transform that returns masks of 0 / 1."""
    chosen = dict(options)
    if chosen["raw_transform"] is None:
        chosen["raw_transform"] = torch_em.transform.get_raw_transform()
    else:
        chosen["raw_transform"] = torch_dataset.Widened(chosen["raw_transform"])
    has_own_transform = chosen["transform"] is not None
    if not has_own_transform:
        anisotropic = source.raw.shape[0] < source.raw.shape[1] // 2  # the same rule as in torch_em
        chosen["transform"] = torch_em.transform.get_augmentations(
            chosen["ndim"] or ("anisotropic" if anisotropic else 3)
        )
    if "instances" in source.kinds:
        widened = torch_dataset.Widened(chosen["label_transform"])
        chosen["label_transform"] = widened if has_own_transform else torch_dataset.Renumbered(widened)
    elif chosen["label_transform"] is None:
        chosen["label_transform"] = torch_dataset.binary
    return chosen


def _check_rois(rois: Any, shapes: Sequence[Shape], patch: Shape) -> list[Box]:
    """Return the part of each box to sample from.

    Raises:
        InvalidArgumentError: `rois` are not three slices per box, or a part is too small for a patch.
    """
    whole = (slice(None),) * 3
    given = [whole] * len(shapes) if rois is None else list(rois)
    if len(given) != len(shapes) or not all(
        isinstance(roi, tuple) and len(roi) == 3 and all(isinstance(part, slice) for part in roi) for roi in given
    ):
        raise InvalidArgumentError(f"rois={rois!r} must be a list with three slices (z, y, x) for each box.")
    found = []
    for roi, shape in zip(given, shapes, strict=True):
        starts, stops, steps = zip(
            *(part.indices(length) for part, length in zip(roi, shape, strict=True)), strict=True
        )
        box = Box(starts, stops)
        if set(steps) != {1} or any(length < needed for length, needed in zip(box.shape, patch, strict=True)):
            raise InvalidArgumentError(
                f"patch_shape={patch} does not fit into {'a roi' if rois else 'a box'} of {box.shape} voxels (z, y, x)."
            )
        found.append(box)
    return found


def _shared_out(n_samples: int | None, count: int) -> list[int | None]:
    """Distribute the samples evenly over the boxes, as torch_em does."""
    if n_samples is None:
        return [None] * count
    return [n_samples // count + (number < n_samples % count) for number in range(count)]


def _patches_in(boxes: Sequence[Box], patch: Shape) -> int:
    """Return how many patches cover the boxes if they are placed next to each other, rounded up."""
    return math.ceil(sum(math.prod(box.shape) for box in boxes) / math.prod(patch))
