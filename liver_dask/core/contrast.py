"""The values of an image that are shown as black and white."""

from typing import Any

import numpy as np
import numpy.typing as npt


def grey_range(voxels: npt.NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return the values to show as black and white: percentiles of all voxels but 0, which is empty glass.

    Args:
        voxels: Voxels of any shape and dtype. Those that are not finite are ignored.
        percentiles: The percentiles that are black and white.

    Returns:
        Two values, the second greater than the first.
    """
    seen = voxels[np.isfinite(voxels) & (voxels != 0)].astype(np.float64)
    low, high = np.percentile(seen, percentiles) if seen.size else (0, 1)
    return float(low), float(high if high > low else low + 1)
