"""How well a prediction agrees with a mask."""

import numpy as np
import xarray as xr

from ..core.errors import InvalidArgumentError
from .volume import volume_of


def segmentation_scores(prediction: xr.DataArray, mask: xr.DataArray, *, threshold: float | None = None) -> xr.Dataset:
    """Compare a prediction with a mask, lazily: Dice coefficient and intersection over union, by slices and in all.

    Args:
        prediction: A mask, or what becomes one above `threshold`; dims (z, y, x).
        mask: What is right, of the same voxels; all that is not 0 is labelled.
        threshold: The value above which a voxel of the prediction is labelled, in its own units: for `ld.predict` as
            uint8, 127 stands for a probability of one half. None: all that is not 0 is labelled.

    Returns:
        A lazy Dataset of `dice` and `iou` (float64) along z, with the coordinate of the mask, and `dice_in_all` and
        `iou_in_all` without a dim. They are NaN where neither has a labelled voxel.

    Raises:
        InvalidArgumentError: The two do not have the same voxels, or a prediction of floating-point numbers has no
            threshold. (ValueError)
    """
    volume_of({"prediction": prediction, "mask": mask})
    if threshold is None and prediction.dtype.kind == "f":
        raise InvalidArgumentError(
            f"The prediction is of {prediction.dtype}; say above which threshold it is labelled."
        )
    if threshold is None and prediction.attrs.get("kind") == "image":
        raise InvalidArgumentError("The prediction is an image; say above which threshold it is labelled, such as 127.")
    predicted = prediction != 0 if threshold is None else prediction > threshold
    right = (mask != 0).assign_coords(predicted.coords)
    both = (predicted & right).sum(["y", "x"], dtype=np.int64)
    either = predicted.sum(["y", "x"], dtype=np.int64) + right.sum(["y", "x"], dtype=np.int64)
    scores = {}
    for end, of_both, of_either in (("", both, either), ("_in_all", both.sum(), either.sum())):
        scores[f"dice{end}"] = 2 * of_both / of_either.where(of_either > 0)
        scores[f"iou{end}"] = of_both / (of_either - of_both).where(of_either > 0)
    return xr.Dataset(scores, attrs={} if threshold is None else {"threshold": threshold})
