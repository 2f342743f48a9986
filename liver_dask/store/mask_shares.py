"""Downsampling of masks that keeps the share of labelled voxels.

A majority cannot do that level after level: if ties are labelled, a network of membranes swells until it fills the
picture, and if they are not, it vanishes. Here a cell of CELL x CELL voxels of a slice gets as many labelled voxels as
its share demands, first those that cover the most labelled voxels. So the edges of large objects stay smooth.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.compiled import Compiled
from ..core.geometry import Shape

CELL = 32
"""Rows and columns of a cell, in voxels of the new level."""


def keep_share(
    counts: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], parts: int, corner: Shape, out: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Decide which voxels of a new level are labelled.

    Args:
        counts: How many of the voxels below each new voxel are labelled, (z, y, x); whole cells, or up to the end of
            an axis.
        parts: How many voxels are below a new voxel.
        corner: Position (z, y, x) in the new level of the first voxel, where a cell begins.
        out: Where the result is written, as large as `counts`.

    Returns:
        `out`: for each voxel, whether it is labelled.
    """
    _KEEP_SHARE[counts.itemsize](counts, parts, *corner, out)
    return out


def _keep_share_loop(counts: Any, parts: int, z: int, y: int, x: int, out: Any) -> None:
    depth, height, width = counts.shape
    found = np.zeros(parts + 1, np.int64)
    for k in range(depth):
        for j in range(0, height, CELL):
            for i in range(0, width, CELL):
                cell = counts[k, j : j + CELL, i : i + CELL]
                labelled = out[k, j : j + CELL, i : i + CELL]
                found[:] = 0
                total = 0
                for count in cell.flat:
                    found[count] += 1
                    total += count
                # What rounding takes from one cell, it gives to others near it: these fractions are spread evenly over
                # the cells of a neighbourhood (multiples of 1 / p, 1 / p^2, 1 / p^3, where p^4 = p + 1).
                place = (z + k) * 0.8191725133961645 + (y + j) // CELL * 0.6710436067037893
                place += (x + i) // CELL * 0.5497004779019703
                left = int(total / parts + place % 1.0)
                least = parts
                while least > 0 and found[least] <= left:
                    left -= found[least]
                    least -= 1
                seen = 0
                for row in range(cell.shape[0]):
                    for column in range(cell.shape[1]):
                        count = cell[row, column]
                        labelled[row, column] = count > least
                        if count == least and least > 0:  # of these, `left` are labelled, in even steps
                            labelled[row, column] = (seen + 1) * left // found[least] > seen * left // found[least]
                            seen += 1


_KEEP_SHARE = {
    size: Compiled(f"void({counts}[:,:,::1], int64, int64, int64, int64, boolean[:,:,::1])", _keep_share_loop)
    for size, counts in ((1, "uint8"), (2, "uint16"))
}
