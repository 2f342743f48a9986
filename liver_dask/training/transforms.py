"""The default transforms: flips along each axis and standardisation, as torch_em does them, and what labels need.

Flips are done on the small integers that were read, before all other transforms. This gives the same distribution of
patches as flips after them, with a fraction of the work. Transforms that know directions, such as affinities, get the
patch as the network will see it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.compiled import Compiled
from ..core.kinds import FOREGROUND

EPSILON = 1e-7
"""Added to the standard deviation, as torch_em does."""

EXACT_IN_FLOAT32 = 1 << 24

WIDER = {np.dtype("uint16"): np.int32, np.dtype("uint32"): np.int64}


Flip = tuple[slice, slice, slice]

NO_FLIP: Flip = slice(None), slice(None), slice(None)


def random_flip(rng: np.random.Generator) -> Flip:
    """Return a slice for each of z, y and x, which flips the axis with a chance of a half."""
    z, y, x = (slice(None, None, -1) if flip else slice(None) for flip in rng.integers(0, 2, 3))
    return z, y, x


def flipped(raw: npt.NDArray[Any], labels: npt.NDArray[Any], flip: Flip) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return views of raw (z, y, x) and labels (..., z, y, x), flipped by a slice for each axis."""
    return raw[flip], labels[(..., *flip)]


def standardized(raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return raw (z, y, x) less its mean, divided by its standard deviation, as a new contiguous array."""
    out = np.empty(raw.shape, np.float32)
    if raw.ndim == 3 and raw.dtype.kind == "u" and raw.itemsize <= 2:
        flips = tuple(stride < 0 for stride in raw.strides)
        straight = raw[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
        _standardize(np.ascontiguousarray(straight, np.uint16), *flips, out)
        return out
    out[...] = raw
    out -= out.mean()
    flat = out.ravel()
    out *= np.float32(1 / (np.sqrt(np.dot(flat, flat) / max(flat.size, 1)) + EPSILON))
    return out


def _standardize_loop(raw: Any, flip_z: bool, flip_y: bool, flip_x: bool, out: Any) -> None:
    """Standardize `raw` (z, y, x) into `out`, flipped along some axes, in two passes and with exact sums."""
    depth, height, width = raw.shape
    total: Any = 0
    squares: Any = 0
    for value in raw.ravel():
        total += np.int64(value)
        squares += np.int64(value) * np.int64(value)
    size = max(raw.size, 1)
    mean = total / size
    scale = 1 / (np.sqrt(max(squares / size - mean * mean, 0.0)) + EPSILON)
    least, factor = np.float32(mean), np.float32(scale)
    for z in range(depth):
        for y in range(height):
            row = raw[depth - 1 - z if flip_z else z, height - 1 - y if flip_y else y]
            if flip_x:
                for x in range(width):
                    out[z, y, x] = (np.float32(row[width - 1 - x]) - least) * factor
            else:
                for x in range(width):
                    out[z, y, x] = (np.float32(row[x]) - least) * factor


_standardize = Compiled("void(uint16[:,:,::1], boolean, boolean, boolean, float32[:,:,::1])", _standardize_loop)


@dataclass(frozen=True)
class Binary:
    """A transform of masks of 0 / 255 to 0 / 1, as losses such as Dice or BCE expect.

    Attributes:
        dtype: Data type of the result.
    """

    dtype: np.dtype[Any]

    def __call__(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Transform a patch."""
        return (labels == FOREGROUND).astype(self.dtype, order="C")


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
    """A transform of instance labels, for networks and augmentations that compute with float32.

    That cannot tell large numbers apart: two objects would become one. So numbers from 2^24 on become 1, 2, ... in each
    patch; 0 stays 0.
    """

    transform: Callable[[Any], Any]

    def __call__(self, labels: npt.NDArray[Any]) -> Any:
        """Transform a patch."""
        return renumbered(self.transform(labels))


def renumbered(labels: Any) -> Any:
    """Return labels with numbers that float32 holds; labels without larger ones are returned unchanged."""
    if getattr(labels, "dtype", None) != np.int64 or not labels.size or labels.max() < EXACT_IN_FLOAT32:
        return labels
    numbers, place = np.unique(labels, return_inverse=True)
    return place.reshape(labels.shape) + (numbers[0] != 0)


@dataclass(frozen=True)
class ByChannel:
    """The label transform of masks beside instances, one channel for each: masks become 0 and 1, instances stay.

    Attributes:
        is_mask: Whether each channel is a mask.
        in_float32: Whether numbers that float32 does not hold become 1, 2, ... in each patch.
    """

    is_mask: tuple[bool, ...]
    in_float32: bool

    def __call__(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Transform a patch (channels, z, y, x)."""
        out = labels.astype(np.int64)
        for channel, is_mask in zip(out, self.is_mask, strict=True):
            if is_mask:
                channel //= FOREGROUND
            elif self.in_float32:
                channel[...] = renumbered(channel)
        return out
