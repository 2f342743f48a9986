"""The metadata of a Dataset as OME-Zarr: groups, arrays, coordinates, and what viewers need."""

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from ..core.contrast import grey_range
from ..core.documents import reason_of
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape, check_voxel_size, held_box
from ..core.kinds import RAW, RESERVED_NAMES, kind_of
from ..store.label_group import LABELS
from ..store.levels import FOLDER
from ..store.ome_metadata import VERSION, grey_channel, image_label, multiscale
from .scales import HOW, ServedScale, scales_of

ROOT = "zarr.json"
MOST_DIGITS = 10
"""Numbers of chunks with as many digits are of no chunk."""

LARGEST_VOXEL = 8
"""Bytes of a voxel; there is no larger data type in Zarr."""

NAME = r"[^/\\.][^/\\]*"
"""What may be the name of a variable: it is part of the paths of its arrays."""

CONTRAST = (0.5, 99.5)
"""The percentiles of the tissue that are black and white at first."""


class Documents:
    """Everything in a store of a Dataset except its chunks of voxels.

    Args:
        ds: Variables with dims (z, y, x), and coordinates that count voxels.

    Attributes:
        names: Names of the variables.
        image: The variable that is the image: raw, otherwise the first image in alphabetical order; None without one.
        scales: The scales of each variable, from fine to coarse.
        keys: All keys.
        has_contrast: Whether the root has the contrast of the image, or there is no image.

    Raises:
        InvalidArgumentError: The Dataset cannot be served. (ValueError)
    """

    def __init__(self, ds: xr.Dataset) -> None:
        _check(ds)
        self._ds = ds
        self._corner = tuple(float(ds[dim].values[0]) for dim in DIMS)
        self.names = list(map(str, ds.data_vars))
        images = sorted(name for name in self.names if kind_of(ds[name]) == "image")
        self.image = RAW if RAW in images else images[0] if images else None
        self.labels = [name for name in self.names if kind_of(ds[name]) != "image" and ds[name].dtype != bool]
        self.scales = {name: list(scales_of(name, ds[name])) for name in self.names}
        self._arrays = dict(self._paths())
        try:
            self._contents = self._make()
        except (TypeError, ValueError, LookupError) as error:  # what a user's attributes make xarray and zarr raise
            raise InvalidArgumentError(f"The metadata of the Dataset cannot be written: {reason_of(error)}.") from error
        self.keys = sorted(self._contents)
        self.has_contrast = self.image is None

    def has(self, key: str) -> bool:
        """Return whether there is such a document."""
        return key in self._contents

    def read(self, key: str) -> bytes | None:
        """Return a document, or None."""
        return self._contents.get(key)

    def set_contrast(self, pixels: npt.NDArray[Any]) -> None:
        """Add the contrast of the image to the root, from some of its pixels."""
        if self.image:
            document = json.loads(self._contents[ROOT])
            shown = grey_range(pixels, CONTRAST)
            document["attributes"]["ome"]["omero"] = grey_channel(self.image, self._ds[self.image].dtype, shown)
            self._contents[ROOT] = json.dumps(document).encode()
            self.has_contrast = True

    def chunk_of(self, key: str) -> tuple[ServedScale, Shape] | None:
        """Return the array and the place of a chunk of voxels; None if the key is of something else."""
        path, *place = key.rsplit("/", 4)
        scale = self._arrays.get(path)
        if scale is None or len(place) != 4 or place[0] != "c":
            return None
        if not all(part.isascii() and part.isdigit() and len(part) < MOST_DIGITS for part in place[1:]):
            return None
        if any(part != "0" and part.startswith("0") for part in place[1:]):  # another name of a chunk
            return None
        z, y, x = map(int, place[1:])
        return (scale, (z, y, x)) if scale.has((z, y, x)) else None

    def _paths(self) -> Iterator[tuple[str, ServedScale]]:
        """Yield the path of each array with its scale; labels have two."""
        for name, scales in self.scales.items():
            for number, scale in enumerate(scales):
                yield "/".join(filter(None, (_group_of(number), name))), scale
                if name in self.labels:
                    yield f"{LABELS}/{name}/{number}", scale

    def _make(self) -> dict[str, bytes]:
        memory = MemoryStore()
        for number in range(max(map(len, self.scales.values()))):
            scales = {name: of[number] for name, of in self.scales.items() if number < len(of)}
            self._write_level(memory, number, scales)
        root = zarr.open_group(memory, mode="r+", use_consolidated=False)
        if self.image:
            root.attrs["ome"] = {"version": VERSION, "multiscales": [self._multiscale(self.image, _level_paths)]}
        if self.labels:
            root.attrs[LABELS] = self.labels  # vizarr reads this attribute
            self._write_labels(root.create_group(LABELS))
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # not in the specification yet
            zarr.consolidate_metadata(memory)
        prototype = default_buffer_prototype()
        return {key: value.to_bytes() for key in _keys(memory) if (value := sync(memory.get(key, prototype)))}

    def _write_level(self, memory: MemoryStore, number: int, scales: dict[str, ServedScale]) -> None:
        """Write the group of a level with xarray, without voxels."""
        factor, shape = next((scale.factor, scale.shape) for scale in scales.values())
        variables = {
            name: (DIMS, da.zeros(scale.shape, dtype=scale.dtype, chunks=-1), self._ds[name].attrs)
            for name, scale in scales.items()
        }
        encoding = {
            name: {
                "chunks": scale.chunks,
                "compressors": None if scale.kind == "image" else ZstdCodec(level=1),
                "fill_value": scale.dtype.type(0),
                "_FillValue": None,
            }
            for name, scale in scales.items()
        }
        _, y, x = self._corner
        if factor == 1:
            coordinates = {dim: self._ds[dim].values for dim in DIMS}
        else:
            columns = x + (factor - 1) / 2 + factor * np.arange(shape[2])
            coordinates = {"z": self._ds.z.values, "y": y + factor * np.arange(shape[1]), "x": columns}
        template = xr.Dataset(variables, coordinates, self._ds.attrs)
        group = _group_of(number) or None
        template.to_zarr(
            memory, group=group, compute=False, zarr_format=3, consolidated=False, encoding=encoding, mode="a"
        )

    def _write_labels(self, group: zarr.Group) -> None:
        group.attrs["ome"] = {"version": VERSION, "labels": self.labels}
        for name in self.labels:
            label = group.create_group(name)
            label.attrs["ome"] = {
                "version": VERSION,
                "multiscales": [self._multiscale(name, lambda _, number: str(number))],
                "image-label": image_label(name, self._ds[name]),
            }
            for number, scale in enumerate(self.scales[name]):
                label.create_array(
                    str(number),
                    shape=scale.shape,
                    chunks=scale.chunks,
                    dtype=scale.dtype,
                    fill_value=0,
                    compressors=ZstdCodec(level=1),
                    dimension_names=DIMS,
                )

    def _multiscale(self, name: str, path_of: Any) -> dict[str, Any]:
        z, y, x = self._corner
        scales = [scale.scale(path_of(name, number), (z, y, x)) for number, scale in enumerate(self.scales[name])]
        attrs = self._ds.attrs
        return multiscale(name, scales, attrs.get("voxel_size_nm"), attrs.get("voxel_size_source", "not given"), HOW)


def _check(ds: xr.Dataset) -> None:
    """Raise InvalidArgumentError for a Dataset that cannot be served."""
    if not isinstance(ds, xr.Dataset):
        raise InvalidArgumentError(f"A Dataset is served, not a {type(ds).__name__}: give array.to_dataset(name=...).")
    if not ds.data_vars:
        raise InvalidArgumentError("The Dataset has no variables; nothing would be served.")
    for name, variable in ds.data_vars.items():
        if variable.dims != DIMS or 0 in variable.shape:
            raise InvalidArgumentError(
                f"{name!r} has dims {variable.dims} and shape {variable.shape}; what is served is (z, y, x), not empty."
            )
        if variable.dtype.kind not in "uifb" or variable.dtype.itemsize > LARGEST_VOXEL:
            raise InvalidArgumentError(f"{name!r} has dtype {variable.dtype}, which no viewer shows.")
        if not isinstance(name, str) or name in (*RESERVED_NAMES, *DIMS, ROOT) or not re.fullmatch(NAME, name):
            raise InvalidArgumentError(f"A variable cannot be served as {name!r}; rename it.")
    if ds.attrs.get("voxel_size_nm") is not None:
        check_voxel_size(ds.attrs["voxel_size_nm"])
    held_box(ds)


def _group_of(number: int) -> str:
    return f"{FOLDER}/s{number}" if number else ""


def _level_paths(name: str, number: int) -> str:
    return "/".join(filter(None, (_group_of(number), name)))


def _keys(memory: MemoryStore) -> list[str]:
    async def listed() -> list[str]:
        return [key async for key in memory.list()]

    return sync(listed())
