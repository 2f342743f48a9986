"""torch_em's dataset class with patches from a PatchSampler, read from a store or from the archive.

Importing this module needs the extra `train`. Other modules import it only when it is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch_em.data import SegmentationDataset

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape
from ..core.kinds import FOREGROUND
from ..core.malloc import keep_memory
from .sampling import PatchSampler

MOST_DRAWS = 5000
"""Maximum number of positions to try for one patch if masks must be read to check it. A try takes about 1 ms."""

Window = tuple[slice, ...]


class Voxels(Protocol):
    """An array that is read window by window. It pickles to a few bytes, and unpickling opens it again."""

    shape: Shape

    def __getitem__(self, key: Window) -> npt.NDArray[Any]:
        """Read a window, given by one slice for each of z, y and x."""


def binary(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert masks of 0 / 255 to 0 / 1, as losses such as Dice or BCE expect."""
    return labels // np.uint8(FOREGROUND)


EXACT_IN_FLOAT32 = 1 << 24

WIDER = {np.dtype("uint16"): np.int32, np.dtype("uint32"): np.int64}


@dataclass(frozen=True)
class Widened:
    """A wrapper of a transform (or of none) that converts results of uint16 or uint32 to int32 or int64.

    torch_em (0.10.9) converts uint16 and uint32 to int16 and int32, so that large values would become negative.

    Attributes:
        transform: The wrapped transform; None leaves the voxels unchanged.
    """

    transform: Callable[[Any], Any] | None

    def __call__(self, voxels: npt.NDArray[Any]) -> Any:
        """Transform a patch and convert its dtype."""
        out = self.transform(voxels) if self.transform else voxels
        wider = WIDER.get(getattr(out, "dtype", None))
        return out if wider is None else out.astype(wider)


@dataclass(frozen=True)
class Renumbered:
    """A transform of instance labels, for augmentations that compute with float32.

    That cannot tell large numbers apart: two objects would become one. So numbers from 2^24 on become 1, 2, ... in each
    patch; 0 stays 0.
    """

    transform: Callable[[Any], Any]

    def __call__(self, labels: npt.NDArray[Any]) -> Any:
        """Transform a patch."""
        out = self.transform(labels)
        if getattr(out, "dtype", None) != np.int64 or not out.size or out.max() < EXACT_IN_FLOAT32:
            return out
        numbers, place = np.unique(out, return_inverse=True)
        return place.reshape(out.shape) + (numbers[0] != 0)


class PatchDataset(SegmentationDataset):
    """A `torch_em.data.SegmentationDataset` of patches at positions from a PatchSampler.

    Each draw of a position uses its own random generator. Its seed consists of `seed`, the worker's seed (torch gives
    each worker a new one in each epoch) and the number of the draw. Therefore no two workers sample the same patches,
    and no global state is used.

    Args:
        raw: The image.
        labels: One array per class.
        places: Sampler of positions.
        min_foreground: Minimum share of a patch's voxels, 0 to 1, that belong to one of the labels.
        seed: Seed of the sampling; None follows `torch.manual_seed`.
        split: Name of this split and the blocks of all splits. It is stored for documentation only.
        with_label_channels: Whether labels have an additional first axis with one channel per class.
        n_samples: Number of patches per epoch.
        ndim: Number of dimensions of a transformed patch: 3 (None), or 2 for patches of one slice.
        of_torch_em: The other arguments of `SegmentationDataset`, by name.
    """

    def __init__(
        self,
        raw: Voxels,
        labels: tuple[Voxels, ...],
        places: PatchSampler,
        *,
        min_foreground: float,
        seed: tuple[int, ...] | None,
        split: dict[str, Any] | None,
        with_label_channels: bool,
        n_samples: int,
        ndim: int | None,
        **of_torch_em: Any,
    ) -> None:
        # torch_em's own __init__ opens files. This method sets the same attributes; a test compares them.
        self.__dict__.update(of_torch_em)
        self.raw, self.labels = raw, labels
        self.raw_path = self.raw_key = self.label_path = self.label_key = self.trafo_halo = None
        self.patch_shape = self.sample_shape = places.patch
        self.shape = raw.shape
        self._ndim = ndim or len(raw.shape)
        self._len = n_samples
        self._with_channels, self._with_label_channels = False, with_label_channels
        self.places = places
        self.min_foreground = min_foreground
        self.seed = seed
        self.split = split
        self._drawn = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _sample_bounding_box(self) -> Window:
        position = self.places.draw(self._rng())
        if position is None:
            raise InvalidArgumentError(
                f"There is no patch {self.patch_shape} of tissue, labelled as was asked for (min_foreground="
                f"{self.min_foreground}); ask for less, for smaller patches, or for another box or split."
            )
        return tuple(slice(start, start + length) for start, length in zip(position, self.places.patch, strict=True))

    def _get_desired_raw_and_labels(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return raw and labels of a patch that satisfies the constraints exactly.

        The sampler can only estimate them, because the tables contain one value per chunk.

        Raises:
            InvalidArgumentError: No such patch was found in MOST_DRAWS tries.
        """
        for _ in range(MOST_DRAWS):
            window = self._sample_bounding_box()
            labels = self._read_labels(window) if self.min_foreground else None
            if labels is not None and labels.any(axis=0).mean() < self.min_foreground:
                continue
            raw = self.raw[window]
            if raw.any():
                masks = self._read_labels(window) if labels is None else labels
                chosen = masks if self._with_label_channels else masks[0]
                return raw, self.pre_label_transform(chosen) if self.pre_label_transform else chosen
        raise InvalidArgumentError(
            f"Of {MOST_DRAWS} patches {self.patch_shape} none was of tissue and had a share of "
            f"{self.min_foreground} labelled; ask for less, for smaller patches, or for another box."
        )

    def check_that_there_are_patches(self, name: str) -> None:
        """Read one patch, so that impossible constraints raise an error immediately and not later in a worker.

        Args:
            name: Name of the source in the error message.

        Raises:
            InvalidArgumentError: No patch satisfies the constraints.
        """
        try:
            self._get_desired_raw_and_labels()
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{name}: {error}") from error
        self._drawn = 0

    def _read_labels(self, window: Window) -> npt.NDArray[Any]:
        masks = [label[window] for label in self.labels]
        return masks[0][None] if len(masks) == 1 else np.stack(masks)

    def _rng(self) -> np.random.Generator:
        self._drawn += 1
        worker = torch.utils.data.get_worker_info()
        if worker and self._drawn == 1:
            keep_memory()  # 25 % more patches per second
        if self.seed is None:
            return np.random.default_rng((torch.initial_seed(), self._drawn))
        return np.random.default_rng((*self.seed, worker.seed if worker else 0, self._drawn))
