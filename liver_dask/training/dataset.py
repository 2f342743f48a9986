"""torch_em's dataset class with patches from a PatchSampler, and several of them together.

Importing this module needs the extra `train`. Other modules import it only when it is used.
"""

import contextvars
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch_em
from torch_em.data import SegmentationDataset

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape
from ..core.malloc import keep_memory
from .centres import Centres, CentreSampler
from .randomness import SILVER, PatchNumber, fraction_of, generator_of, global_generators, new_seed
from .sampling import PatchSampler
from .tables import SeenCells
from .transforms import flipped

MOST_READS = 5000
"""Maximum number of positions to read for one patch. A read takes about 1 ms."""

Window = tuple[slice, ...]


class Voxels(Protocol):
    """An array that is read window by window. It pickles to a few bytes, and unpickling opens it again."""

    shape: Shape

    def __getitem__(self, key: Window) -> npt.NDArray[Any]:
        """Read a window, given by one slice for each of z, y and x."""


_draw: contextvars.ContextVar[tuple[Iterator[Shape], np.random.Generator, str]] = contextvars.ContextVar("draw")
"""The candidates of the patch that is drawn now, the generator of its flips, and what its centre voxel must be."""


class PatchDataset(SegmentationDataset):
    """A `torch_em.data.SegmentationDataset` of random patches of one box.

    A patch follows from the seed and its number alone.

    Args:
        raw: The image.
        labels: One array per class.
        places: Sampler of positions.
        least_tissue: Minimum number of a patch's raw voxels that are not 0.
        least_labelled: Minimum number of a patch's voxels that belong to one of the labels.
        seed: Seed of all patches.
        flips: Whether to flip patches at random along each axis, before all other transforms.
        split: The name of the split and its grid, or None. Checkpoints store it.
        with_label_channels: Whether labels have an additional first axis with one channel per class.
        n_samples: Number of patches per epoch.
        ndim: Number of dimensions of a transformed patch: 3 (None), or 2 for patches of one slice.
        centres: Samplers of positions by the centre voxel, which take the place of `places`; or None.
        of_torch_em: The other arguments of `SegmentationDataset`, by name.
    """

    def __init__(
        self,
        raw: Voxels,
        labels: tuple[Voxels, ...],
        places: PatchSampler,
        *,
        least_tissue: int,
        least_labelled: int,
        seed: tuple[int, ...],
        flips: bool,
        split: dict[str, Any] | None,
        with_label_channels: bool,
        n_samples: int,
        ndim: int | None,
        centres: Centres | None = None,
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
        self.centres = centres
        self.least_tissue, self.least_labelled = least_tissue, least_labelled
        self.seed = seed
        self.flips = flips
        self.split = split
        self._seen = SeenCells(raw.shape, places.patch)
        self._is_first = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return raw and labels of the patch with this number, transformed."""
        if self._is_first and torch.utils.data.get_worker_info():
            keep_memory()  # 25 % more patches per second
        self._is_first = False
        with self._drawing(index), global_generators(generator_of(*self.seed, index, 2)):
            found: tuple[torch.Tensor, torch.Tensor] = super().__getitem__(index)
        return found

    def check_that_there_are_patches(self) -> None:
        """Read one patch, or one with each kind of centre voxel.

        Raises:
            InvalidArgumentError: No patch is allowed.
        """
        for centre in self.centres.samplers if self.centres else (None,):
            with self._drawing(0, centre):
                if centre:
                    centre.check_that_there_are_voxels()
                self._get_desired_raw_and_labels()

    @contextmanager
    def _drawing(self, number: int, centre: CentreSampler | None = None) -> Iterator[None]:
        """Draw the patch with this number within the context; its centre voxel follows from the number if not given."""
        position, flip = (generator_of(*self.seed, number, use) for use in range(2))
        if self.centres and centre is None:
            centre = self.centres.at(fraction_of(number, SILVER))
        wanted = f", with {centre.centre.name} at its centre," if centre else ""
        token = _draw.set(((centre or self.places).candidates(position), flip, wanted))
        try:
            yield
        finally:
            _draw.reset(token)

    def _get_desired_raw_and_labels(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return raw and labels of the first candidate that is allowed; torch_em calls this.

        Raises:
            InvalidArgumentError: No such patch was found.
        """
        candidates, flip, wanted = _draw.get()
        reads = 0
        for position in candidates:
            if self.least_labelled and self._seen.most(position) < self.least_labelled:
                continue
            reads += 1
            if reads > MOST_READS:
                break
            found = self._read(position)
            if found:
                raw, masks = flipped(*found, flip) if self.flips else found
                chosen = masks if self._with_label_channels else masks[0]
                return raw, self.pre_label_transform(chosen) if self.pre_label_transform else chosen
        raise InvalidArgumentError(
            f"No patch {self.patch_shape}{wanted} was found that is of tissue and has {self.least_labelled} labelled "
            f"voxels{self._where()}; ask for less, or choose smaller patches, another box or another split."
        )

    def _where(self) -> str:
        if not self.places.split:
            return ""
        name, grid, *_ = self.places.split
        return f" in blocks of {grid.block} voxels for {name}, margins {grid.margin} (see split_grid)"

    def _read(self, position: Shape) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
        """Return raw (z, y, x) and labels (classes, z, y, x) of a patch; None if it is not allowed."""
        window = tuple(slice(start, start + n) for start, n in zip(position, self.places.patch, strict=True))
        masks = self._read_labels(window) if self.least_labelled else None
        if masks is not None:
            labelled: npt.NDArray[np.bool_] = np.asarray(masks.any(axis=0))
            if np.count_nonzero(labelled) < self.least_labelled:
                self._seen.learn(position, labelled)
                return None
        raw = self.raw[window]
        if np.count_nonzero(raw) < self.least_tissue:
            return None
        return raw, self._read_labels(window) if masks is None else masks

    def _read_labels(self, window: Window) -> npt.NDArray[Any]:
        masks = [label[window] for label in self.labels]
        return masks[0][None] if len(masks) == 1 else np.stack(masks)


class PatchMixture(torch_em.data.ConcatDataset):
    """Patches of several boxes in given proportions.

    Patch number n comes from a box that follows from n alone; in any sequence of consecutive numbers each box has its
    share. The n-th time that an index is asked for, another patch is returned: that of epoch n. This also holds if
    several workers ask for it, because the counts are in shared memory.

    Args:
        datasets: One dataset per box.
        weights: Share of each box; they need not add up to 1.
        n_samples: Number of patches per epoch.

    Attributes:
        split: The name of the split and its grid, or None.
    """

    def __init__(self, *datasets: PatchDataset, weights: Sequence[float], n_samples: int) -> None:
        super().__init__(*datasets)
        self.split = datasets[0].split
        self._len = n_samples
        self._ends = np.cumsum(weights) / np.sum(weights)
        self._times_asked = torch.zeros(n_samples, dtype=torch.int32).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._times_asked.share_memory_()  # a copy that was pickled, or loaded from a checkpoint, is not shared

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return raw and labels of a patch, transformed.

        Args:
            index: Index from 0 to the length of an epoch, or a PatchNumber.
        """
        if isinstance(index, PatchNumber):
            epoch, index = divmod(index, self._len)
            self._times_asked[index] = epoch + 1
            return self._patch(epoch * self._len + index)
        if not -self._len <= index < self._len:
            raise IndexError(f"index {index} is out of range for {self._len} patches")
        index = int(index) % self._len
        epoch = int(self._times_asked[index])
        self._times_asked[index] += 1
        return self._patch(epoch * self._len + index)

    def _patch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        box = int(np.searchsorted(self._ends, fraction_of(number), side="right"))
        return self.datasets[min(box, len(self.datasets) - 1)][int(number)]

    def check_that_there_are_patches(self, names: Sequence[str]) -> None:
        """Read one patch of each box that has a share, or one with each kind of centre voxel.

        So impossible demands are an error immediately, and not in a worker.

        Args:
            names: Names of the boxes in the error message.

        Raises:
            InvalidArgumentError: No patch of a box is allowed.
        """
        for dataset, name, share in zip(self.datasets, names, np.diff(self._ends, prepend=0), strict=True):
            try:
                if share:
                    dataset.check_that_there_are_patches()
            except InvalidArgumentError as error:
                others = ", or leave this box out with a weight of 0" if len(self.datasets) > 1 else ""
                raise InvalidArgumentError(f"{name}: {str(error).removesuffix('.')}{others}.") from error


def seeds_of(seed: int | None, rank: int, count: int) -> list[tuple[int, ...]]:
    """Return the seeds of several boxes; without a seed, new ones that follow from torch's global generator."""
    common = new_seed() if seed is None else int(seed)
    return [(common, rank, number) for number in range(count)]
