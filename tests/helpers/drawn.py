"""What is to be seen in a figure."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from liver_dask.archive.archives import EMPIAR_13356


def marks_of_mito(canvas: Any, axes: Any) -> Callable[[float, float], bool]:
    """Draw a canvas; tells whether there is the colour of mitochondria at a row and a column of the axes."""
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    red = np.array(to_rgb(EMPIAR_13356["mito"].color))

    def is_red(row: float, column: float) -> bool:
        right, up = axes.transData.transform((column, row))
        return bool(np.abs(picture[round(picture.shape[0] - up), round(right)] - red).max() < 0.1)

    return is_red
