"""Context of a patch: raw around it, in larger voxels, with as many voxels as the patch."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape, check_lengths
from .transforms import Flip


class Scaled(Protocol):
    """Raw of a box in larger voxels, which is read window by window."""

    factors: Shape
    shape: Shape

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read a window, given by one slice for each of z, y and x, in the larger voxels."""


def check_scales(scales: Sequence[Sequence[int]] | None, transform: Any, stream: bool) -> list[Shape]:
    """Return the factors of the contexts; none if there are no scales.

    Args:
        scales: Factors (z, y, x) of the patch, which are 1, and of each context.
        transform: The user's transform of raw and labels, or None.
        stream: Whether patches are read from the archive.

    Raises:
        InvalidArgumentError: The scales are not lists of three positive integers, the first is not (1, 1, 1), or there
            are contexts together with `transform` or `stream`. (ValueError)
    """
    if scales is None:
        return []
    try:
        given = list(map(tuple, scales))
    except TypeError:
        raise InvalidArgumentError(
            f"scales={scales!r} must be a list of factors (z, y, x), such as [(1, 1, 1), (1, 4, 4)]."
        ) from None
    factors = [check_lengths(f"scales[{number}]", of) for number, of in enumerate(given)]
    if factors[:1] != [(1, 1, 1)]:
        raise InvalidArgumentError(f"scales={scales!r} must begin with (1, 1, 1), the scale of the patch itself.")
    if factors[1:] and stream:
        raise InvalidArgumentError(
            "scales cannot be streamed, because a context needs many times the voxels of a patch; download a store."
        )
    if factors[1:] and transform is not None:
        raise InvalidArgumentError(
            "transform cannot be combined with scales, because it would change the patch and not its contexts; leave "
            "it out (patches are flipped together with their contexts), or apply it to the batches."
        )
    return factors[1:]


def context_start(position: Shape, patch: Shape, factors: Shape) -> Shape:
    """Return the first voxel of a context, in its own voxels; see `get_human_liver_em_dataset` for the rule.

    Args:
        position: First voxel (z, y, x) of the patch.
        patch: Shape of the patch, and of the context, in their own voxels.
        factors: Size (z, y, x) of a voxel of the context.
    """
    z, y, x = (
        (2 * start + length - factor * length + factor) // (2 * factor)
        for start, length, factor in zip(position, patch, factors, strict=True)
    )
    return z, y, x


def read_context(
    raw: Scaled, position: Shape, patch: Shape, flip: Flip, ndim: int, transform: Callable[[Any], Any] | None
) -> Any:
    """Return the context of a patch, flipped and then transformed.

    The transform gets the voxels within the box. The others become the mean of what it returns.

    Args:
        raw: Raw of the box in larger voxels.
        position: First voxel (z, y, x) of the patch.
        patch: Shape (z, y, x) of the patch.
        flip: A slice for each axis, with step -1 where the patch was flipped.
        ndim: 3, or 2 for a context (y, x) of one slice.
        transform: The transform of raw. It must keep the last `ndim` axes.

    Raises:
        InvalidArgumentError: The transform changes the number of voxels along an axis. (ValueError)
    """
    start = context_start(position, patch, raw.factors)
    inside, outside = [], []
    for first, length, end in zip(start, patch, raw.shape, strict=True):
        low, high = max(first, 0), min(first + length, end)
        inside.append(slice(low, high))
        outside.append((low - first, first + length - high))
    voxels = raw[tuple(inside)][flip]
    outside = [ends[::-1] if part.step == -1 else ends for ends, part in zip(outside, flip, strict=True)][-ndim:]
    if ndim == 2:
        voxels = voxels[0]
    found = voxels if transform is None else transform(voxels)
    if tuple(found.shape[-ndim:]) != voxels.shape:
        raise InvalidArgumentError(
            f"raw_transform made {tuple(found.shape)} voxels of {voxels.shape}; with scales it must keep the shape."
        )
    return _filled(np.asarray(found), outside) if np.any(outside) else found


def _filled(voxels: npt.NDArray[Any], outside: list[tuple[int, int]]) -> npt.NDArray[Any]:
    """Return voxels with as many more before and after them along the last axes as given, each of them their mean."""
    widths = [(0, 0)] * (voxels.ndim - len(outside)) + outside
    fractional = voxels.astype(np.result_type(voxels, np.float32))
    return np.pad(fractional, widths, constant_values=voxels.mean(dtype=np.float64))
