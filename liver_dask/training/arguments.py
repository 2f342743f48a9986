"""Check the arguments of the training functions, and convert them to what they mean."""

import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np

from ..archive.description import Archive
from ..core.errors import InvalidArgumentError
from ..core.geometry import BoundingBox, Shape
from .sampling import Box
from .splits import SPLITS, SplitGrid

LEAST_TISSUE = 0.5
"""Minimum share of a patch's raw voxels that are not 0, and so are tissue and not the empty glass around it."""

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


TRANSFORMS = ("raw_transform", "label_transform", "transform", "label_transform2", "pre_label_transform", "sampler")
"""Arguments of torch_em's function that are a user's own code."""

Workers = Literal["threads", "processes"]

MOST_GB = 1_000_000
"""Largest cache in GB."""

OF_PROCESSES = {
    "multiprocessing_context": None,
    "worker_init_fn": None,
    "batch_sampler": None,
    "timeout": 0,
    "in_order": True,
}
"""Arguments of DataLoader that are for processes, and their defaults."""


def check_workers(workers: Workers | None, given: dict[str, Any]) -> Workers:
    """Return what the workers of a loader are; see `get_human_liver_em_loader`.

    Args:
        workers: What the user chose.
        given: The other arguments.

    Raises:
        InvalidArgumentError: There is no such kind, or an argument is only for processes.
    """
    if workers not in ("threads", "processes", None):
        raise InvalidArgumentError(f"workers={workers!r} must be 'threads' or 'processes', or None.")
    for name, least in (("num_workers", 0), ("prefetch_factor", 1)):
        count = given.get(name, least)
        if name == "prefetch_factor" and count is None:
            continue
        if not (isinstance(count, int | np.integer) and count >= least):
            raise InvalidArgumentError(f"{name}={count!r} must be a whole number of at least {least}.")
    of_processes = [name for name, default in OF_PROCESSES.items() if given.get(name, default) != default]
    if workers == "threads" and of_processes:
        raise InvalidArgumentError(f"{of_processes[0]} is for processes: leave it out, or give workers='processes'.")
    if workers:
        return workers
    return "processes" if of_processes or has_own_code(given) else "threads"


def check_rank(rank: Any, world_size: Any) -> None:
    """Raise InvalidArgumentError unless this is the number of one of `world_size` processes."""
    if not (isinstance(rank, int | np.integer) and isinstance(world_size, int | np.integer) and 0 <= rank < world_size):
        raise InvalidArgumentError(
            f"rank={rank!r} must be a whole number of at least 0, and below world_size={world_size!r}."
        )


def has_own_code(given: dict[str, Any]) -> bool:
    """Return whether a transform or a sampler is the user's, which may draw from global random generators."""
    return any(given.get(name) is not None for name in TRANSFORMS)


def check_labels(archive: Archive, label_choice: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the labels, at least one; or raise InvalidArgumentError."""
    names = archive.check_labels(label_choice)
    if not names:
        raise InvalidArgumentError(
            f"label_choice={label_choice!r} has no label; choose of {', '.join(archive.labels)}."
        )
    return names


def check_choices(
    min_foreground: float,
    labelled_region_only: bool,
    split: str | None,
    split_grid: SplitGrid,
    seed: int | None,
    stream: bool,
) -> None:
    """Raise InvalidArgumentError if an argument that says which patches to draw is not valid."""
    if not isinstance(min_foreground, Real) or not 0 <= min_foreground <= 1:
        raise InvalidArgumentError(f"min_foreground={min_foreground!r} must be a share, 0 to 1.")
    if split is not None and split not in SPLITS:
        raise InvalidArgumentError(f"split={split!r} must be one of {', '.join(SPLITS)}, or None.")
    if not isinstance(split_grid, SplitGrid):
        raise InvalidArgumentError(
            f"split_grid={split_grid!r} must be a SplitGrid, such as SplitGrid(block=(64, 512, 512))."
        )
    if seed is not None and not (isinstance(seed, int | np.integer) and seed >= 0):
        raise InvalidArgumentError(f"seed={seed!r} must be a whole number of at least 0, or None.")
    if stream and labelled_region_only:
        raise InvalidArgumentError("labelled_region_only needs the table of a store; download one, or do not stream.")


def boxes_of(bounding_boxes: Sequence[Sequence[int]] | None, full_volume: bool, archive: Archive) -> list[BoundingBox]:
    """Return the boxes, at least one; or raise InvalidArgumentError."""
    if full_volume:
        return [archive.full_box]
    if bounding_boxes is None or len(bounding_boxes) == 0:
        raise InvalidArgumentError("Give bounding_boxes, or full_volume=True.")
    if isinstance(bounding_boxes[0], int):
        raise InvalidArgumentError(
            f"bounding_boxes={tuple(bounding_boxes)} must be a list of boxes: write bounding_boxes=[(...)]."
        )
    return [archive.check_bounding_box(box) for box in bounding_boxes]


def options_of(torch_em: Any, given: dict[str, Any], patch: Shape) -> dict[str, Any]:
    """Return the arguments of torch_em's function with its defaults, without those that the volume determines.

    Raises:
        InvalidArgumentError: An argument does not exist, the volume determines it, or `ndim` does not fit the patch.
    """
    known = inspect.signature(torch_em.default_segmentation_dataset).parameters
    for name, value in given.items():
        if name not in known:
            raise InvalidArgumentError(f"torch_em.default_segmentation_dataset has no argument {name!r}.")
        if name in SET_HERE and name not in ("is_seg_dataset", "verify_paths"):
            raise InvalidArgumentError(
                f"{name}={value!r} cannot be given: it follows from the volume and label_choice."
            )
    for name in given.keys() & {"dtype", "label_dtype"}:
        if not isinstance(given[name], type(known[name].default)):
            raise InvalidArgumentError(f"{name}={given[name]!r} must be a dtype of torch, such as torch.float32.")
    for name in TRANSFORMS:
        if given.get(name) is not None and not callable(given[name]):
            raise InvalidArgumentError(f"{name}={given[name]!r} must be a function.")
    ndim = given.get("ndim")
    if ndim not in (None, 3) and not (ndim == 2 and patch[0] == 1):
        raise InvalidArgumentError(f"ndim={ndim!r} must be 3, or 2 for a patch of one slice; this is {patch}.")
    return {name: given.get(name, of.default) for name, of in known.items() if name not in SET_HERE}


def check_rois(rois: Any, shapes: Sequence[Shape], patch: Shape) -> list[Box]:
    """Return the part of each box to sample from.

    Raises:
        InvalidArgumentError: `rois` are not up to three slices per box, or a part is too small for a patch.
    """
    given = [()] * len(shapes) if rois is None else rois
    is_one = isinstance(given, slice) or (isinstance(given, tuple) and any(isinstance(part, slice) for part in given))
    if is_one and len(shapes) == 1:
        given = [given]  # of the only box
    given = [(roi,) if isinstance(roi, slice) else roi for roi in given] if isinstance(given, list | tuple) else []
    if len(given) != len(shapes) or not all(
        isinstance(roi, tuple) and len(roi) <= 3 and all(isinstance(part, slice) for part in roi) for roi in given
    ):
        raise InvalidArgumentError(f"rois={rois!r} must be a list with up to three slices (z, y, x) for each box.")
    given = [roi + (slice(None),) * (3 - len(roi)) for roi in given]
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


def check_count(n_samples: Any) -> int | None:
    """Return the number of patches of an epoch, or raise InvalidArgumentError."""
    if n_samples is not None and not (isinstance(n_samples, int | np.integer) and n_samples > 0):
        raise InvalidArgumentError(f"n_samples={n_samples!r} must be a whole number above 0, or None.")
    return None if n_samples is None else int(n_samples)


def check_weights(weights: Sequence[float] | None, default: Sequence[float]) -> list[float]:
    """Return one weight per box, or raise InvalidArgumentError; the default if there are none."""
    if weights is None:
        return [float(weight) for weight in default]
    numbers = list(weights) if isinstance(weights, Iterable) else []
    if (
        len(numbers) != len(default)
        or not all(isinstance(weight, Real) and 0 <= weight < math.inf for weight in numbers)
        or not sum(numbers)
    ):
        raise InvalidArgumentError(
            f"weights={weights!r} must be one number of at least 0 for each of the {len(default)} boxes, not all 0."
        )
    return [float(weight) for weight in numbers]


def check_cache(cache_gb: float, reuse: int, stream: bool, sampler: Any) -> int:
    """Return the number of bytes of the cache, or raise InvalidArgumentError."""
    if not isinstance(cache_gb, Real) or not 0 <= cache_gb <= MOST_GB:
        raise InvalidArgumentError(f"cache_gb={cache_gb!r} must be a number of GB, 0 to {MOST_GB}.")
    if not (isinstance(reuse, int | np.integer) and reuse > 0):
        raise InvalidArgumentError(f"reuse={reuse!r} must be a whole number above 0.")
    if reuse > 1 and stream:
        raise InvalidArgumentError(f"reuse={reuse} needs the chunks of a store; download one, or do not stream.")
    if reuse > 1 and sampler is not None:
        raise InvalidArgumentError(
            f"sampler cannot be combined with reuse={reuse}: it could reject all patches of a chunk; leave one out."
        )
    if reuse > 1 and not cache_gb:
        raise InvalidArgumentError(f"reuse={reuse} needs a cache; give cache_gb above 0.")
    return int(cache_gb * 1e9)


def least_voxels(patch: Shape, min_foreground: float, labelled_region_only: bool) -> tuple[int, int]:
    """Return how many voxels of a patch must be tissue, and how many must be labelled, at least."""
    voxels = math.prod(patch)
    labelled = math.ceil(round(min_foreground * voxels, 6))  # 0.07 * 100 is a little more than 7
    return math.ceil(LEAST_TISSUE * voxels), max(labelled, int(labelled_region_only))
