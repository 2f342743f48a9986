"""Inspection of the pixels of a figure."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from liver_dask.archive.archives import EMPIAR_13356


def marks_of_mito(canvas: Any, axes: Any) -> Callable[[float, float], bool]:
    """Draw a canvas and return a function that tests whether a row and column of the axes has the colour of mito."""
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    red = np.array(to_rgb(EMPIAR_13356["mito"].color))

    def is_red(row: float, column: float) -> bool:
        right, up = axes.transData.transform((column, row))
        return bool(np.abs(picture[round(picture.shape[0] - up), round(right)] - red).max() < 0.1)

    return is_red
