"""torch_em's dataset class with patches from a PatchSampler, and several of them together.

Importing this module needs the extra `train`. Other modules import it only when it is used.
"""

import contextvars
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch_em
from torch_em.data import SegmentationDataset
from torch_em.util import ensure_tensor_with_channels

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape
from ..core.malloc import keep_memory
from .centres import Centres, CentreSampler
from .context import Scaled, read_context
from .randomness import SILVER, PatchNumber, fraction_of, generator_of, global_generators, new_seed
from .reuse import Reuse
from .sampling import PatchSampler
from .tables import Positions, SeenCells
from .transforms import NO_FLIP, Flip, flipped, random_flip

MOST_READS = 5000
"""Maximum number of positions to read for one patch. A read takes about 1 ms."""

Window = tuple[slice, ...]


class Voxels(Protocol):
    """An array that is read window by window. It pickles to a few bytes, and unpickling opens it again."""

    shape: Shape

    def __getitem__(self, key: Window) -> npt.NDArray[Any]:
        """Read a window, given by one slice for each of z, y and x."""


@dataclass
class _Draw:
    """The patch that is drawn now.

    Attributes:
        candidates: The positions to try.
        rng: Generator of its flips.
        position: Its position, once it is drawn.
        flip: How it was flipped.
        wanted: What its centre voxel must be, in error messages.
    """

    candidates: Iterator[Shape]
    rng: np.random.Generator
    position: Shape = (0, 0, 0)
    flip: Flip = NO_FLIP
    wanted: str = ""


_draw: contextvars.ContextVar[_Draw] = contextvars.ContextVar("draw")


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
        has_own_transforms: Whether no transform is the user's, so that none draws from global random generators.
        split: The name of the split and its grid, or None. Checkpoints store it.
        reuse: Which patches are drawn from the same chunks; None if each patch is drawn on its own.
        with_label_channels: Whether labels have an additional first axis with one channel per class.
        n_samples: Number of patches per epoch.
        ndim: Number of dimensions of a transformed patch: 3 (None), or 2 for patches of one slice.
        centres: Samplers of positions by the centre voxel, which take the place of `places`; or None.
        contexts: Raw in larger voxels; an item has a context of the patch from each of them.
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
        has_own_transforms: bool,
        split: dict[str, Any] | None,
        reuse: Reuse | None,
        with_label_channels: bool,
        n_samples: int,
        ndim: int | None,
        centres: Centres | None = None,
        contexts: tuple[Scaled, ...] = (),
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
        self.has_own_transforms = has_own_transforms
        self.split = split
        self.reuse = reuse
        self._anchors: dict[int, Shape] = {}
        self.contexts = contexts
        self._seen = SeenCells(raw.shape, places.patch)
        self._is_first = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def set_seed(self, seed: int) -> None:
        """Draw the patches of another seed from now on."""
        self.seed = (seed, *self.seed[1:])
        self._anchors = {}  # they follow from the seed; what was seen of the masks does not

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        """Return raw and labels of the patch with this number, and its contexts, transformed."""
        if self._is_first and torch.utils.data.get_worker_info():
            keep_memory()  # 25 % more patches per second
        self._is_first = False
        seeded = nullcontext() if self.has_own_transforms else global_generators(generator_of(*self.seed, index, 2))
        with self._drawing(index), seeded:
            found: tuple[torch.Tensor, ...] = super().__getitem__(index)
            return (*found, *self._read_contexts()) if self.contexts else found

    def _read_contexts(self) -> Iterator[torch.Tensor]:
        """Yield the contexts of the patch that was drawn."""
        draw = _draw.get()
        for raw in self.contexts:
            context = read_context(raw, draw.position, self.places.patch, draw.flip, self._ndim, self.raw_transform)
            yield ensure_tensor_with_channels(context, ndim=self._ndim, dtype=self.dtype)

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
        candidates = self._candidates(number, position, centre)
        wanted = f", with {centre.centre.name} at its centre," if centre else ""
        token = _draw.set(_Draw(candidates, flip, wanted=wanted))
        try:
            yield
        finally:
            _draw.reset(token)

    def _candidates(self, number: int, rng: np.random.Generator, centre: CentreSampler | None) -> Iterator[Shape]:
        """Return the positions to try for a patch."""
        if self.reuse:
            return self._beside(number, rng)
        return centre.candidates(rng) if centre else self._anywhere(rng)

    def _beside(self, number: int, rng: np.random.Generator) -> Iterator[Shape]:
        """Yield candidates that begin in the chunk of the patch's group."""
        assert self.reuse is not None
        group = self.reuse.turn_of(number).group
        anchor = self._anchors.get(group)
        if anchor is None:
            anchor, *_ = self._first_allowed(self._anywhere(generator_of(*self.seed, group, 3)))
            for old in [one for one in list(self._anchors) if one < group - 2 * self.reuse.groups]:
                self._anchors.pop(old, None)  # on another thread a group may be drawn that was just removed
            self._anchors[group] = anchor
        yield from self.places.beside(anchor, self.reuse.chunk, rng)

    def _get_desired_raw_and_labels(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return raw and labels of the first candidate that is allowed; torch_em calls this.

        Raises:
            InvalidArgumentError: No such patch was found.
        """
        draw = _draw.get()
        draw.position, raw, masks = self._first_allowed(draw.candidates, draw.wanted)
        if self.flips:
            draw.flip = random_flip(draw.rng)
            raw, masks = flipped(raw, masks, draw.flip)
            if not self.has_own_transforms:  # torch takes no views with negative strides
                raw, masks = np.ascontiguousarray(raw), np.ascontiguousarray(masks)
        chosen = masks if self._with_label_channels else masks[0]
        return raw, self.pre_label_transform(chosen) if self.pre_label_transform else chosen

    def _first_allowed(
        self, candidates: Iterator[Shape], wanted: str = ""
    ) -> tuple[Shape, npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the position, raw and labels of the first candidate that is allowed."""
        reads = 0
        for position in candidates:
            if self.least_labelled and not self._may_be_labelled(np.array([position]))[0]:
                continue
            reads += 1
            if reads > MOST_READS:
                break
            found = self._read(position)
            if found:
                return position, *found
        labelled = f" and has {self.least_labelled} labelled voxels" if self.least_labelled else ""
        raise InvalidArgumentError(
            f"No patch {self.patch_shape}{wanted} was found that is of tissue{labelled}{self._where()}; if there "
            "are any, they are too rare: ask for less, or choose smaller patches, another box or another split."
        )

    def _anywhere(self, rng: np.random.Generator) -> Iterator[Shape]:
        """Yield candidates with any centre."""
        return self.places.candidates(rng, self._may_be_labelled if self.least_labelled else None)

    def _may_be_labelled(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Return which positions may have enough labelled voxels, according to the masks that were read."""
        return self._seen.most(positions) >= self.least_labelled

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
        has_own_transforms: Whether no transform is the user's.
    """

    def __init__(self, *datasets: PatchDataset, weights: Sequence[float], n_samples: int) -> None:
        super().__init__(*datasets)
        self.split = datasets[0].split
        self.has_own_transforms = all(dataset.has_own_transforms for dataset in datasets)
        self._len = n_samples
        self._ends = np.cumsum(weights) / np.sum(weights)
        self._times_asked = torch.zeros(n_samples, dtype=torch.int32).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._times_asked.share_memory_()  # a copy that was pickled, or loaded from a checkpoint, is not shared

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        """Return raw and labels of a patch, and its contexts, transformed.

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

    def _patch(self, number: int) -> tuple[torch.Tensor, ...]:
        reuse = self.datasets[0].reuse
        counted = reuse.turn_of(number).group if reuse else number  # all patches of a group are of one box
        box = int(np.searchsorted(self._ends, fraction_of(counted), side="right"))
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


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return numpy's data type of a mask that torch need not convert; uint8 if numpy has no such type."""
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:  # bfloat16
        return np.dtype(np.uint8)
