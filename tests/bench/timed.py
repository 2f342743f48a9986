"""What the work of a side returns, and how patches are timed."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


class Timed(NamedTuple):
    """Work that measured itself, because something before it does not count.

    Attributes:
        seconds: What counts.
        arrays: What came of it, by name, to be compared with the truth.
        note: What else is told.
    """

    seconds: float
    arrays: Mapping[str, Any]
    note: str = ""


PATCHES_OF_A_FIGURE = 100
CHECKED = 4

kept: list[Any] = []
"""Loaders, whose workers some end with an error if they are not needed any longer."""


def timed_patches(batches: Iterator[Any], plain: Iterator[Any], warm_up: int, seconds: float) -> Timed:
    """Time a loader of one patch a batch.

    Args:
        batches: Raw and labels, as the loader yields them by default.
        plain: Those without augmentation and standardisation, which are compared with the truth.
        warm_up: So many patches are not counted.
        seconds: It is timed for so long.

    Returns:
        The seconds of PATCHES_OF_A_FIGURE patches, and some of the plain ones.
    """
    kept.extend([batches, plain])
    checked = [next(plain) for _ in range(CHECKED)]
    arrays = {
        name: np.stack([np.asarray(batch[i]).reshape(np.shape(batch[i])[-3:]) for batch in checked])
        for i, name in enumerate(("raw", "mito"))
    }
    for _ in range(warm_up):
        next(batches)
    began, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        next(batches)
        count += 1
    return Timed(PATCHES_OF_A_FIGURE * spent / count, arrays)
