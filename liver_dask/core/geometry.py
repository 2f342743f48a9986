"""Axes, shapes and boxes of voxels, and checks of their values."""

import operator
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
import xarray as xr

from .documents import short
from .errors import InvalidArgumentError

DIMS = ("z", "y", "x")
LONGEST_AXIS = 2**31 - 1
SMALLEST_NM, LARGEST_NM = 1e-3, 1e9

Shape = tuple[int, int, int]
"""Lengths along (z, y, x)."""


class BoundingBox(NamedTuple):
    """A box of voxels in the order that torch_em uses; each `max` is exclusive."""

    x_min: int
    x_max: int
    y_min: int
    y_max: int
    z_min: int
    z_max: int

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        return self.z_max - self.z_min, self.y_max - self.y_min, self.x_max - self.x_min


def check_shape(shape: Sequence[int]) -> Shape:
    """Return `shape` as three positive integers (z, y, x), or raise InvalidArgumentError."""
    return check_lengths("shape", shape)


def check_lengths(name: str, lengths: Sequence[int]) -> Shape:
    """Return three positive integers (z, y, x), or raise InvalidArgumentError that names the argument."""
    z, y, x = numbers = _integers(name, lengths, 3, "(z, y, x)")
    if min(numbers) < 1 or max(numbers) > LONGEST_AXIS:
        raise InvalidArgumentError(f"{name}={tuple(numbers)} has an axis without voxels, or one that is too long.")
    return z, y, x


def check_bounding_box(box: Sequence[int], within: BoundingBox) -> BoundingBox:
    """Return `box` as a BoundingBox that is not empty and lies in `within`, or raise InvalidArgumentError."""
    order = "(x_min, x_max, y_min, y_max, z_min, z_max)"
    checked = BoundingBox(*_integers("bounding_box", box, 6, order))
    for axis in "xyz":
        start, stop = getattr(checked, f"{axis}_min"), getattr(checked, f"{axis}_max")
        first, last = getattr(within, f"{axis}_min"), getattr(within, f"{axis}_max")
        if stop <= start:
            raise InvalidArgumentError(
                f"bounding_box={tuple(checked)} "
                + ("holds no voxels" if stop == start else f"is reversed along {axis}")
                + f": {axis}_max={stop} is not above {axis}_min={start}; the order is {order}."
            )
        if start < first or stop > last:
            raise InvalidArgumentError(
                f"bounding_box={tuple(checked)} leaves the volume: {axis} is {start}..{stop}, but there is only "
                f"{first}..{last}; the order is {order}."
            )
    return checked


def check_voxel_size(voxel_size_nm: Sequence[float]) -> tuple[float, float, float]:
    """Return the voxel size as three numbers (z, y, x) in nm, or raise InvalidArgumentError."""
    try:
        _check_order(voxel_size_nm)
        z, y, x = (float(size) for size in voxel_size_nm)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"voxel_size_nm={short(voxel_size_nm)} is not three numbers (z, y, x).") from None
    if not all(size > 0 for size in (z, y, x)):
        raise InvalidArgumentError(f"voxel_size_nm={(z, y, x)} must be above 0 on every axis.")
    if not all(SMALLEST_NM <= size <= LARGEST_NM for size in (z, y, x)):
        raise InvalidArgumentError(f"voxel_size_nm={(z, y, x)} is not the size of a voxel in nm.")
    return z, y, x


def voxel_size_in(ds: xr.Dataset) -> tuple[float, float, float] | None:
    """Return the size of a Dataset's voxels (z, y, x) in nm; None if it is not known.

    Raises:
        InvalidArgumentError: The attribute `voxel_size_nm` is not three positive numbers. (ValueError)
    """
    size = ds.attrs.get("voxel_size_nm")
    return None if size is None else check_voxel_size(size)


def crop(ds: xr.Dataset, bounding_box: Sequence[int] | None) -> xr.Dataset:
    """Return the part of a Dataset inside a bounding box of the volume, lazily.

    Args:
        ds: The result of `open_human_liver_em`, a store, or a part of either: dims (z, y, x), with coordinates.
        bounding_box: (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole volume, each max exclusive; None
            selects all of `ds`.

    Raises:
        InvalidArgumentError: The box is empty or extends beyond `ds`, `ds` holds no voxels, or its coordinates are not
            consecutive integers. (ValueError)
    """
    _check_size(ds)
    if bounding_box is None:
        return ds
    held = held_box(ds)
    box = check_bounding_box(bounding_box, held)
    return ds.isel(
        z=slice(box.z_min - held.z_min, box.z_max - held.z_min),
        y=slice(box.y_min - held.y_min, box.y_max - held.y_min),
        x=slice(box.x_min - held.x_min, box.x_max - held.x_min),
    )


def held_box(ds: xr.Dataset) -> BoundingBox:
    """Return the box of the volume that a Dataset covers, from its coordinates.

    Raises:
        InvalidArgumentError: The Dataset holds no voxels, or its coordinates are not consecutive integers. (ValueError)
    """
    _check_size(ds)
    bounds = {}
    for dim in DIMS:
        index = ds.indexes.get(dim)
        if index is None or index.dtype.kind not in "iu" or not np.array_equal(index, index[0] + np.arange(len(index))):
            raise InvalidArgumentError(
                f"The coordinate {dim!r} is not whole numbers that run one by one, so a box of it is not defined."
            )
        bounds[dim] = int(index[0]), int(index[0]) + len(index)
    return BoundingBox(*bounds["x"], *bounds["y"], *bounds["z"])


def _check_size(ds: xr.Dataset) -> None:
    if 0 in ds.sizes.values():
        raise InvalidArgumentError(f"The Dataset holds no voxels: its sizes are {dict(ds.sizes)}.")


def _integers(name: str, values: Sequence[int], count: int, order: str) -> list[int]:
    try:
        _check_order(values)
        numbers = [_index(value) for value in values]
    except TypeError:
        raise InvalidArgumentError(f"{name}={short(values)} must be {count} whole numbers {order}.") from None
    if len(numbers) != count:
        raise InvalidArgumentError(f"{name}={short(tuple(numbers))} has {len(numbers)} numbers; give {count}: {order}.")
    return numbers


def _index(value: object) -> int:
    if isinstance(value, bool):  # which Python takes for 0 and 1
        raise TypeError
    return operator.index(value)  # type: ignore[arg-type]  # what is no number is a TypeError


def _check_order(values: object) -> None:
    """Raise TypeError if numbers of `values` have no order, or another meaning."""
    if isinstance(values, str | bytes | Set | Mapping):
        raise TypeError
