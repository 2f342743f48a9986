"""What makes a store with a pyramid an OME-Zarr 0.5 image with labels, for the viewers of the field.

The image's levels are where they are (`raw`, `pyramid/s1/raw`, ...); viewers want those of a label in one group, so
`labels/NAME/0`, `1`, ... have the metadata of the masks' arrays again, and hard links to their shards.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr

from . import volume
from .documents import as_object, is_same, read_document, short
from .export_plan import Shape
from .slabs import sync_folder
from .store import open_record, read_statistics

VERSION = "0.5"
LABELS = "labels"
CONTRAST = 2.5
"""Standard deviations about the mean of the tissue that viewers show from black to white at first."""


class Level(NamedTuple):
    """One level of a pyramid.

    Attributes:
        path: Its store.
        factors: How many voxels of the lowest level a voxel stands for along (z, y, x).
    """

    path: Path
    factors: Shape


def is_described(levels: Sequence[Level]) -> bool:
    """Whether the metadata of just these levels are there: `write_ome_metadata` writes those of the root last."""
    root = zarr.open_group(levels[0].path, mode="r")  # as its consolidated metadata say, which are written last
    paths = [_path_of(level, levels, _image_of(_open(levels[0].path))) for level in levels]
    return LABELS in root and paths == _described(root.attrs.asdict().get("ome", {}))


def has_description(store: Path) -> bool:
    """Whether `write_ome_metadata` came to its end; what it wrote may be damaged."""
    root = as_object(read_document(store / "zarr.json", "says what the store is"))
    return bool({"ome", LABELS} & as_object(root.get("attributes")).keys())


def description_problem(levels: Sequence[Level], voxel_size_nm: Sequence[float] | None) -> str | None:
    """What of the OME metadata of a store is not as `write_ome_metadata` has it, but for colours and contrast."""
    path = levels[0].path / "zarr.json"
    ome = as_object(as_object(read_document(path, "says what the store is"))["attributes"]).get("ome")
    if not isinstance(ome, dict):
        return f"{path} does not describe the {len(levels)} levels that there are; `liver-dask pyramid` does"
    expected = _Describer(levels, voxel_size_nm).image()
    for key in ("version", "multiscales"):
        if not is_same(ome.get(key), expected[key]):
            return f"{path} does not describe the levels that there are: {key} of ome is {short(ome.get(key))}"
    return None


def write_ome_metadata(levels: Sequence[Level], voxel_size_nm: Sequence[float] | None) -> None:
    """Describe a store and its levels as an OME-Zarr image with labels.

    Args:
        levels: The store itself, then the levels above it, all complete.
        voxel_size_nm: Size of a voxel of the store (z, y, x); None leaves the scales without a unit.
    """
    store = levels[0].path
    described = _Describer(levels, voxel_size_nm)
    _write_labels(store, described)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # not in the Zarr specification as yet
        if len(levels) > 1:
            zarr.consolidate_metadata(levels[1].path.parent)
        root = zarr.open_group(store, mode="r+", use_consolidated=False)
        root.attrs.update({"ome": described.image(), LABELS: described.masks})  # the latter for vizarr
        zarr.consolidate_metadata(store)
    sync_folder(store)


class _Describer:
    """The metadata of a store's image and labels."""

    def __init__(self, levels: Sequence[Level], voxel_size_nm: Sequence[float] | None) -> None:
        self.levels = levels
        self._size = voxel_size_nm
        store = levels[0].path
        self._ds = _open(store)
        self._corner = [float(self._ds[dim][0]) for dim in volume.DIMS]
        self.masks = [name for name in open_record(store)["variables"] if "flag_values" in self._ds[name].attrs]

    def image(self) -> dict[str, Any]:
        """Of the root."""
        name = _image_of(self._ds)
        paths = [_path_of(level, self.levels, name) for level in self.levels]
        described: dict[str, Any] = {"version": VERSION, "multiscales": [self._multiscale(name, paths)]}
        if name not in self.masks:
            described["omero"] = {"channels": [self._channel(name)], "rdefs": {"model": "greyscale"}}
        return described

    def label(self, name: str) -> dict[str, Any]:
        """Of the group of a mask."""
        attrs = self._ds[name].attrs
        value, meaning = int(attrs["flag_values"][-1]), str(attrs.get("flag_meanings", name)).split()[-1]
        colour = [*bytes.fromhex(volume.colour_of(name)[1:]), 255]
        return {
            "version": VERSION,
            "multiscales": [self._multiscale(name, [str(number) for number in range(len(self.levels))])],
            "image-label": {
                "version": VERSION,
                "colors": [{"label-value": value, "rgba": colour}],
                "properties": [{"label-value": value, "name": meaning}],
                "source": {"image": "../../"},
            },
        }

    def _multiscale(self, name: str, paths: Sequence[str]) -> dict[str, Any]:
        unit = {"unit": "nanometer"} if self._size else {}
        how = "majority, ties to the label" if name in self.masks else "mean, rounded to the nearest, halves to even"
        return {
            "name": name,
            "axes": [{"name": dim, "type": "space", **unit} for dim in volume.DIMS],
            "datasets": [
                {"path": path, "coordinateTransformations": self._transformations(level.factors)}
                for path, level in zip(paths, self.levels, strict=True)
            ],
            "type": how,
            "metadata": {"voxel_size_source": self._ds.attrs.get("voxel_size_source", volume.VOXEL_SIZE_UNKNOWN)},
        }

    def _transformations(self, factors: Shape) -> list[dict[str, Any]]:
        """Where the centres of voxels are: in nm, or in voxels of the whole volume if their size is not known."""
        size = self._size or (1.0, 1.0, 1.0)
        scale = [of * factor for of, factor in zip(size, factors, strict=True)]
        first = [corner + (factor - 1) / 2 for corner, factor in zip(self._corner, factors, strict=True)]
        translation = [of * at for of, at in zip(size, first, strict=True)]
        return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]

    def _channel(self, name: str) -> dict[str, Any]:
        low, high = _contrast_of(self.levels[0].path, name)
        dtype = self._ds[name].dtype
        least, most = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (low, high)
        window = {"min": least, "max": most, "start": max(low, least), "end": min(high, most)}
        return {"label": name, "color": "FFFFFF", "active": True, "window": window}


def _contrast_of(store: Path, name: str) -> tuple[float, float]:
    """What to show as black and as white, by what the store knows of its chunks: those without empty glass, if any."""
    nonzero, mean, std = (read_statistics(store, name, kind).astype(float) for kind in ("nonzero", "mean", "std"))
    tissue = nonzero == nonzero.max()
    if not nonzero.any() or not np.isfinite(mean[tissue]).all():
        return 0.0, 1.0
    middle = mean[tissue].mean()
    spread = np.sqrt((np.square(std) + np.square(mean))[tissue].mean() - middle**2)
    return float(round(middle - CONTRAST * spread)), float(round(middle + CONTRAST * spread + 1))


def _write_labels(store: Path, described: _Describer) -> None:
    """Write the group `labels`; it gets its name when it is whole."""
    new, folder = store / f"{LABELS}.partial", store / LABELS
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    group = zarr.open_group(new, mode="w-", attributes={"ome": {"version": VERSION, LABELS: described.masks}})
    for name in described.masks:
        group.create_group(name, attributes={"ome": described.label(name)})
        for number, level in enumerate(described.levels):
            _link_array(level.path / name, new / name / str(number))
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)


def _link_array(array: Path, copy: Path) -> None:
    """The same array elsewhere, without its bytes a second time where the disk has hard links."""
    for folder, _, files in os.walk(array):
        there = copy / Path(folder).relative_to(array)
        there.mkdir()
        for name in files:
            try:
                os.link(Path(folder, name), there / name)
            except OSError:
                shutil.copyfile(Path(folder, name), there / name)


def _open(store: Path) -> xr.Dataset:
    return xr.open_zarr(store, chunks=None, consolidated=False)


def _image_of(ds: xr.Dataset) -> str:
    """The variable that viewers show first."""
    return volume.RAW if volume.RAW in ds else min(map(str, ds))


def _path_of(level: Level, levels: Sequence[Level], name: str) -> str:
    """Of a variable of a level, below the root."""
    return (level.path / name).relative_to(levels[0].path).as_posix()


def _described(ome: Any) -> list[str]:
    return [dataset["path"] for scale in ome.get("multiscales", [])[:1] for dataset in scale["datasets"]]
