"""Orientations of pictures, and checks of what part of a volume a picture is to show."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..core.errors import InvalidArgumentError
from ..core.geometry import BoundingBox

Bounds = Sequence[int] | slice | None
"""A range along an axis: first and end (exclusive), as a pair or a slice. None is the full range of the Dataset.

In a slice, start or stop may be None, too, and then mean the first or last voxel of the Dataset.
"""

Span = tuple[int, int]
"""A checked range along an axis: first and end (exclusive)."""


class Plane(NamedTuple):
    """An orientation of pictures.

    Attributes:
        across: The axis along which pictures follow one another.
        rows: The axis that runs down a picture.
        columns: The axis that runs to the right.
    """

    across: str
    rows: str
    columns: str

    def aspect(self, voxel_size_nm: Sequence[float] | None) -> float:
        """Return the height of a voxel in a picture, in widths of it; 1 if the voxel size is not known."""
        if voxel_size_nm is None:
            return 1.0
        sizes = dict(zip("zyx", voxel_size_nm, strict=True))
        return sizes[self.rows] / sizes[self.columns]


XY, XZ, YZ = Plane("z", "y", "x"), Plane("y", "z", "x"), Plane("x", "y", "z")
PLANES = {"xy": XY, "xz": XZ, "yz": YZ}
"""The planes by name."""


def held_along(held: BoundingBox, dim: str) -> Span:
    """Return the range of a box along an axis."""
    return getattr(held, f"{dim}_min"), getattr(held, f"{dim}_max")


def check_slice(dim: str, at: Any, held: BoundingBox) -> int:
    """Return a position along an axis as an int, after checking that a box of the volume contains it.

    Raises:
        InvalidArgumentError: `at` is not a whole number, or outside the box.
    """
    try:
        number = operator.index(at)
    except TypeError:
        raise InvalidArgumentError(f"{dim}={at!r} must be a whole number: one slice.") from None
    check_bounds(dim, (number, number + 1), held)
    return number


def check_bounds(dim: str, given: Bounds, held: BoundingBox) -> Span:
    """Return a range along an axis as a pair (first, exclusive end); None becomes the range of the box.

    Raises:
        InvalidArgumentError: It is not inside the box, is empty, or is neither a pair nor a slice.
    """
    low, high = held_along(held, dim)
    if given is None:
        return low, high
    try:
        if isinstance(given, slice):
            if given.step not in (None, 1):
                raise ValueError
            given = low if given.start is None else given.start, high if given.stop is None else given.stop
        start, stop = map(operator.index, given)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"{dim}={given!r} must be two whole numbers, first and after the last, or a slice of them without a step."
        ) from None
    if start > stop:
        raise InvalidArgumentError(f"{dim} {start}..{stop} is reversed: first the lower number, then the higher one.")
    if start == stop:
        raise InvalidArgumentError(f"{dim} {start}..{stop} holds nothing: the second is not part of the range.")
    if not low <= start < stop <= high:
        raise InvalidArgumentError(f"{dim} {start}..{stop} is not within the {low}..{high} that the Dataset holds.")
    return start, stop
