"""An image of a store in larger voxels, of any size: from the pyramid if it has them, otherwise computed on access."""

import logging
import math
from collections.abc import Iterator
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.geometry import Shape
from ..core.places import Place
from .array import StoredArray
from .chunk_cache import ChunkCache
from .downsampling import downsample
from .levels import Level, current_levels, factors_of_levels, plan_levels, step_between
from .record import layout_of, open_record

log = logging.getLogger(__name__)

MOST_VOXELS = 1 << 24
"""Maximum number of stored voxels that are read at once to compute larger ones, unless one row needs more."""


class ScaledImage:
    """An image of a complete store in voxels that are larger by a factor along each axis.

    Voxel i along an axis covers the voxels from i * factor to (i + 1) * factor of the store, as far as they exist, and
    is their mean. If `add_pyramid` makes levels of these factors, the voxels are those of the level, whether or not
    this store has it: means of means, rounded at each level. Other means of integers are exact, and rounded once. Both
    round to the nearest integer, halves to even.

    A level of the store's pyramid that has these factors is read. Otherwise finer voxels are read, of a level if
    possible, and their means are computed in parts, so that memory is bounded.

    Args:
        store: Folder of the store.
        name: Name of the image.
        factors: Size of a voxel (z, y, x) in voxels of the store.
        cache: Where decoded chunks are kept, see `StoredArray`.

    Attributes:
        factors: Size of a voxel (z, y, x) in voxels of the store.
        shape: Number of voxels (z, y, x).
        dtype: Data type of the voxels, that of the store.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: The store does not contain the image. (ValueError)
        DamagedError: The metadata of the array do not match the record of the store. (OSError)
    """

    def __init__(self, store: Place, name: str, factors: Shape, cache: ChunkCache | None = None) -> None:
        z, y, x = layout_of(open_record(store)).shape
        self.factors = factors
        self.shape: Shape = -(-z // factors[0]), -(-y // factors[1]), -(-x // factors[2])
        steps = [(1, 1, 1), *takewhile(lambda level: level[1] <= factors[1], factors_of_levels(store))]
        if steps[-1] != factors:
            steps = [(1, 1, 1), factors]
        paths = {level.factors: level.path for level in current_levels(store, [name])}
        nearest = max(number for number, level in enumerate(steps) if level in paths)
        self._image = StoredArray(paths[steps[nearest]], name, cache)
        self._steps = [step_between(Level(store, below), level) for below, level in pairwise(steps[nearest:])]
        self.dtype = self._image.dtype
        if self._steps and factors in plan_levels(store):
            log.warning(
                "Voxels of %s are computed from %d times as many, which is slow; add_pyramid(%r) stores them.",
                *(factors, math.prod(map(math.prod, self._steps)), str(store)),
            )

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read the voxels of a box.

        Args:
            key: One slice without a step for each of z, y and x, in the larger voxels.

        Returns:
            A new array (z, y, x) of `dtype`.

        Raises:
            DamagedError: A shard is missing, or differs from what was written. (OSError)
        """
        if not self._steps:
            return self._image[key]
        starts, stops = zip(*(of.indices(n)[:2] for of, n in zip(key, self.shape, strict=True)), strict=True)
        out = np.empty([max(stop - start, 0) for start, stop in zip(starts, stops, strict=True)], self.dtype)
        total = tuple(map(math.prod, zip(*self._steps, strict=True)))
        for rows in _parts(out.shape, math.prod(total)):
            first = starts[0], starts[1] + rows.start, starts[2]
            last = stops[0], starts[1] + rows.stop, stops[2]
            box = tuple(slice(low * of, high * of) for low, high, of in zip(first, last, total, strict=True))
            voxels = self._image[box]
            for step in self._steps:
                # downsample returns the same in half the time
                voxels = downsample(voxels, step, "mean") if max(step) <= 2 else block_means(voxels, step)
            out[:, rows] = voxels
        return out


def block_means(voxels: npt.NDArray[Any], factors: Shape) -> npt.NDArray[Any]:
    """Return the means of blocks of voxels.

    Args:
        voxels: Voxels (z, y, x): integers of up to 32 bits, or floats.
        factors: Size of a block (z, y, x). At the end of an axis, a block has only the voxels that exist.

    Returns:
        Means (z, y, x) with the same dtype; integers are rounded to the nearest, halves to even.
    """
    exact: type[Any] = {"f": np.float64, "i": np.int64}.get(voxels.dtype.kind, np.uint64)
    sums, counts = voxels, np.ones((1, 1, 1), exact)
    for axis, factor in enumerate(factors):
        ends = np.append(np.arange(factor, voxels.shape[axis], factor), voxels.shape[axis])
        lengths = np.diff(ends, prepend=0).astype(exact)
        counts = counts * np.expand_dims(lengths, tuple({0, 1, 2} - {axis}))
        if factor > 1:
            sums = _sums(sums, axis, factor, exact)
    if exact is np.float64:
        return (sums / counts).astype(voxels.dtype)
    means, rest = np.divmod(sums, counts)
    means += (2 * rest > counts) | ((2 * rest == counts) & (means % 2 == 1))
    return means.astype(voxels.dtype)


def _sums(voxels: npt.NDArray[Any], axis: int, factor: int, dtype: type[Any]) -> npt.NDArray[Any]:
    """Return the sums of `factor` consecutive voxels along an axis; np.add.reduceat takes ten times as long."""
    along = np.moveaxis(voxels, axis, 0)
    sums = along[::factor].astype(dtype)
    for offset in range(1, min(factor, len(along))):
        others = along[offset::factor]
        sums[: len(others)] += others
    return np.moveaxis(sums, 0, axis)


def _parts(shape: tuple[int, ...], factor: int) -> Iterator[slice]:
    """Yield rows of a box that are computed from at most MOST_VOXELS voxels, `factor` times as many as there are."""
    if not math.prod(shape):
        return
    rows = max(1, MOST_VOXELS // (shape[0] * shape[2] * factor))
    for first in range(0, shape[1], rows):
        yield slice(first, min(first + rows, shape[1]))
