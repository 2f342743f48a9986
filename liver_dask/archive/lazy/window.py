"""Which voxels of a volume are selected: outer indexing that composes, however many steps it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Selection = range | npt.NDArray[np.intp]
"""Indexes along one axis of the volume: a range if possible (it pickles to a few bytes), otherwise an array."""


@dataclass(frozen=True, eq=False)
class Window:
    """An outer-indexed part of a volume.

    Attributes:
        selections: Selected indexes along z, y and x.
        axes: The axes (0, 1, 2 for z, y, x) that remain; the others were indexed by a number.
    """

    selections: tuple[Selection, Selection, Selection]
    axes: tuple[int, ...] = (0, 1, 2)

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Window":
        """Return the window of a whole volume of (z, y, x) voxels."""
        z, y, x = map(range, shape)
        return cls((z, y, x))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the remaining axes."""
        return tuple(len(self.selections[axis]) for axis in self.axes)

    def __getitem__(self, key: tuple[Any, ...]) -> "Window":
        """Index each remaining axis independently (outer indexing).

        Args:
            key: One entry per remaining axis: an int, a slice, or a 1-d list or array of ints or bools.

        Raises:
            NotImplementedError: An entry is of another kind.
            IndexError: An index is out of bounds.
        """
        selections: list[Selection] = list(self.selections)
        axes = []
        for axis, index in zip(self.axes, key, strict=True):
            if is_number(index):
                number = range(len(selections[axis]))[index]  # IndexError if out of bounds, as in numpy
                selections[axis] = selections[axis][number : number + 1]
                continue
            axes.append(axis)
            if isinstance(index, slice):
                selections[axis] = selections[axis][index]
            else:
                selections[axis] = np.asarray(selections[axis], np.intp)[_as_integers(index)]
        z, y, x = selections
        return Window((z, y, x), tuple(axes))


def is_number(index: Any) -> bool:
    """Return whether an index is one whole number; a bool is none."""
    return isinstance(index, (int, np.integer)) and not isinstance(index, bool)


def is_list(index: Any) -> bool:
    """Return whether an index is a list or an array."""
    return isinstance(index, list | np.ndarray)


def _as_integers(index: Any) -> npt.NDArray[Any]:
    if not isinstance(index, (list, np.ndarray)):
        raise NotImplementedError(f"indexing by {type(index).__name__}")
    array = np.asarray(index, np.intp if len(index) == 0 else None)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise NotImplementedError("indexing by an array that is not a list of integers or booleans")
    return array
