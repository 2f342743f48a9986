"""What is counted of each object of a block, in one pass over its voxels, compiled by numba."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.compiled import Compiled
from .blocks import Block

NUM, SUM, MIN, MAX, FIRST, FACES, CONTACTS = 0, 1, 4, 7, 10, 11, 14
"""Columns of the counts: voxels; sums, minima and maxima (exclusive) of z, y, x; the first voxel; and faces along z, y,
x, of the object and then of its contact with each further label."""

NEVER = np.iinfo(np.int64).max
"""Minimum of no voxels."""

Counts = npt.NDArray[np.int64]


def count(
    labels: npt.NDArray[np.uint32],
    number: int,
    block: Block,
    shape: Sequence[int],
    raw: npt.NDArray[Any] | None,
    others: npt.NDArray[np.uint8],
) -> tuple[Counts, npt.NDArray[np.float64]]:
    """Count the objects of a block.

    Voxels of the core are counted, and faces between a voxel of the core and the next one on an axis, which may be in
    the margin. So each voxel and each face of the volume is counted in one block.

    Args:
        labels: The number of each voxel's object, with the margin; 0 for none.
        number: The largest of these numbers.
        block: The block.
        shape: Voxels (z, y, x) of the volume.
        raw: An image, with the margin.
        others: For each further label: 1 where it is, else 0; with the margin.

    Returns:
        A row for each object from 1 to `number`, in columns as above, with positions in the volume, and the sums of
        `raw`.
    """
    counts = np.zeros((number + 1, CONTACTS + 3 * len(others)), np.int64)
    counts[:, MIN:MAX] = counts[:, FIRST] = NEVER
    sums = np.zeros(number + 1, np.float64)
    image = np.zeros((1, 1, 1), np.uint8) if raw is None else np.ascontiguousarray(raw)
    loop = _loops.get(image.dtype.str[1:])
    if loop is None:
        image, loop = image.astype(np.float64), _loops["f8"]
    core, start, whole = (np.array(of, np.int64) for of in (block.core, block.start, shape))
    loop(np.ascontiguousarray(labels), image, raw is not None, others, core, start, whole, counts, sums)
    counts[:, SUM:MIN] += counts[:, NUM, None] * start
    return counts[1:], sums[1:]


def _count(labels, raw, has_raw, others, core, start, whole, counts, sums):  # type: ignore[no-untyped-def]  # numba infers
    depth, height, width = labels.shape
    for z in range(core[0]):
        for y in range(core[1]):
            row = ((start[0] + z) * whole[1] + start[1] + y) * whole[2] + start[2]
            for x in range(core[2]):
                here = labels[z, y, x]
                if here:
                    of = counts[here]
                    of[NUM] += 1
                    of[SUM] += z
                    of[SUM + 1] += y
                    of[SUM + 2] += x
                    of[MIN] = min(of[MIN], start[0] + z)
                    of[MIN + 1] = min(of[MIN + 1], start[1] + y)
                    of[MIN + 2] = min(of[MIN + 2], start[2] + x)
                    of[MAX] = max(of[MAX], start[0] + z + 1)
                    of[MAX + 1] = max(of[MAX + 1], start[1] + y + 1)
                    of[MAX + 2] = max(of[MAX + 2], start[2] + x + 1)
                    of[FIRST] = min(of[FIRST], row + x)
                    if has_raw:
                        sums[here] += raw[z, y, x]
                for axis in range(3):
                    next_z, next_y, next_x = z + (axis == 0), y + (axis == 1), x + (axis == 2)
                    if next_z == depth or next_y == height or next_x == width:
                        continue
                    there = labels[next_z, next_y, next_x]
                    if here == there:
                        continue
                    if here:
                        counts[here, FACES + axis] += 1
                        for i in range(len(others)):
                            counts[here, CONTACTS + 3 * i + axis] += others[i, next_z, next_y, next_x]
                    if there:
                        counts[there, FACES + axis] += 1
                        for i in range(len(others)):
                            counts[there, CONTACTS + 3 * i + axis] += others[i, z, y, x]


_loops = {
    of: Compiled(
        f"void(u4[:,:,::1], {of}[:,:,::1], b1, u1[:,:,:,::1], i8[::1], i8[::1], i8[::1], i8[:,::1], f8[::1])", _count
    )
    for of in ("u1", "u2", "f4", "f8")
}
"""By the data type of the image; others are converted to the last one."""
