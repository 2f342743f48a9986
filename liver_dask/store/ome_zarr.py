"""OME-Zarr 0.5 metadata that describe a store with a pyramid as an image with labels, for viewers of microscopy data.

The image's levels stay in place (`raw`, `pyramid/s1/raw`, ...). Viewers expect all levels of a label in one group, see
`label_group`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ..core.contrast import grey_range
from ..core.documents import as_object, is_same, read_document, short
from ..core.errors import DamagedError, StoreExistsError
from ..core.geometry import DIMS
from ..core.kinds import RAW, kind_of
from ..core.places import Place, path_below
from . import label_group
from .array import StoredArray
from .downsampling import Method
from .group_metadata import read_group, read_metadata
from .label_group import LABELS, add_labels, check_labels, labels_are_there
from .levels import Level, method_of, open_variables
from .ome_metadata import VERSION, Scale, grey_channel, image_label, multiscale
from .record import open_record
from .zarr_group import write_group

CONTRAST = (0.5, 99.5)
"""Initial contrast of viewers: the percentiles of the tissue that are black and white."""

SAMPLES, SIZE_OF_SAMPLE = (8, 6, 6), (1, 128, 128)
"""From how many places along z, y and x the contrast follows, and how many voxels are read at each."""


def is_described(levels: Sequence[Level]) -> bool:
    """Return whether a store has complete OME metadata for exactly these levels.

    `write_ome_metadata` writes the metadata of the root last, so the root tells whether they are complete.
    """
    store = levels[0].path
    described = _Describer(levels, None)
    scales = _scales_of((read_group(store) or {}).get("ome"))
    return (
        described.paths in map(_paths_of, scales)
        and _consolidated_in(store) >= described.nodes
        and (len(levels) < 2 or _consolidated_in(levels[1].path.parent) >= described.nodes_of_levels)
        and labels_are_there(store, described.labels)
    )


def _consolidated_in(group: Place) -> set[str]:
    """Return the nodes of a group whose metadata it has a copy of."""
    consolidated = as_object((read_metadata(group) or {}).get("consolidated_metadata"))
    return set(as_object(consolidated.get("metadata")))


def check_names(levels: Sequence[Level]) -> None:
    """Check that nothing else in a store has the names that the OME metadata need. The levels need not exist yet.

    Raises:
        StoreExistsError: `labels` is not a Zarr v3 group, a label was not made by this package, or the attribute `ome`
            is not an OME-Zarr attribute.
    """
    store = levels[0].path
    check_labels(store, _Describer(levels, None).arrays)
    if not isinstance((read_group(store) or {}).get("ome", {}), dict):
        raise StoreExistsError(f"{store} has an attribute 'ome' that is not of OME-Zarr; rename it, and begin again.")


def has_description(store: Place) -> bool:
    """Return whether `write_ome_metadata` finished for a store. Its metadata may have been damaged since."""
    root = as_object(read_document(store / "zarr.json", "says what the store is"))
    return bool({"ome", LABELS} & as_object(root.get("attributes")).keys())


def description_problem(levels: Sequence[Level], voxel_size_nm: Sequence[float] | None) -> str | None:
    """Return how the OME metadata of a store differ from those that `write_ome_metadata` writes; None if they do not.

    Colours and contrast are not compared.

    Args:
        levels: The store itself, then the levels above it.
        voxel_size_nm: Size of a voxel of the store (z, y, x) in nm, if known.
    """
    path = levels[0].path / "zarr.json"
    ome = as_object(as_object(read_document(path, "says what the store is"))["attributes"]).get("ome")
    if not isinstance(ome, dict):
        return f"{path} does not describe the {len(levels)} levels that there are; `liver-dask pyramid` does"
    expected = _Describer(levels, voxel_size_nm).image(ome) | {"version": VERSION}
    for key in ("version", "multiscales"):
        if not is_same(ome.get(key), expected[key]):
            return f"{path} does not describe the levels that there are: {key} of ome is {short(ome.get(key))}"
    return None


def other_labels(levels: Sequence[Level]) -> list[Place]:
    """Return the labels that are not copies of the arrays of these levels; see `label_group.other_labels`."""
    return label_group.other_labels(levels[0].path, _Describer(levels, None).arrays)


def write_ome_metadata(levels: Sequence[Level], voxel_size_nm: Sequence[float] | None) -> None:
    """Write metadata that describe a store and its levels as an OME-Zarr image with labels.

    A user's additions to the store stay unchanged.

    Args:
        levels: The store itself, then the levels above it, all complete.
        voxel_size_nm: Size of a voxel of the store (z, y, x) in nm; None leaves the scales without a unit.

    Raises:
        StoreExistsError: Something else has the names that the metadata need.
    """
    store = levels[0].path
    described = _Describer(levels, voxel_size_nm)
    check_names(levels)
    add_labels(store, described.arrays, {name: described.label(name) for name in described.labels}, VERSION)
    if len(levels) > 1:
        pyramid = levels[1].path.parent
        write_group(pyramid, read_group(pyramid) or {}, consolidate=True)
    attributes = read_group(store) or {}
    known, ome = attributes.get(LABELS, []), attributes.get("ome", {})
    attributes["ome"] = described.image(ome)
    if isinstance(known, list):  # vizarr reads this attribute
        attributes[LABELS] = [*known, *(name for name in described.labels if name not in known)]
    write_group(store, attributes, consolidate=True)


def rescaled(levels: Sequence[Level], voxel_size_nm: Sequence[float], source: str) -> dict[Place, dict[str, Any]]:
    """Return the attributes of the groups that describe the image and the labels, with scales for another voxel size.

    Only scales that this package wrote are changed. Groups that have none are left out.

    Args:
        levels: The store itself, then the levels above it.
        voxel_size_nm: Size of a voxel of the store (z, y, x) in nm.
        source: Where this size is known from.

    Raises:
        DamagedError: The metadata describe other levels than there are.
    """
    store, described = levels[0].path, _Describer(levels, voxel_size_nm, source)
    own = {store: described.multiscale(described.name, described.paths)}
    own |= {store / LABELS / name: described.label(name)["multiscales"][0] for name in described.labels}
    found = {}
    for group, now in own.items():
        attributes = read_group(group) or {}
        scales = _scales_of(attributes.get("ome"))
        written = [i for i, scale in enumerate(scales) if _is_written_for(scale, _paths_of(now)[0])]
        for i in written:
            if _paths_of(scales[i]) != _paths_of(now):
                raise DamagedError(
                    f"{group} describes other levels than there are; `liver-dask pyramid {store}` mends that."
                )
            scales[i] = scales[i] | {key: now[key] for key in ("axes", "datasets", "metadata")}
        if written:
            found[group] = attributes
    return found


def _is_written_for(scale: Any, path: str) -> bool:
    """Return whether this package wrote a description of an image whose finest level has a path."""
    known = scale.get("metadata") if isinstance(scale, dict) else None
    return isinstance(known, dict) and "voxel_size_source" in known and _paths_of(scale)[:1] == [path]


HOW: dict[Method, str] = {
    "mean": "mean, rounded to the nearest, halves to even",
    "kept share": "share of the label kept in cells of 32 x 32 voxels, largest fractions first",
    "majority": "majority, ties to the label",
    "most frequent": "most frequent, ties to the smallest label",
}
"""How a level is computed from the level below; the text is the `type` of a multiscale image."""


class _Describer:
    """Builder of the OME-Zarr metadata of a store's image and labels.

    Args:
        levels: The store itself, then the levels above it.
        voxel_size_nm: Size of a voxel of the store (z, y, x) in nm; None leaves the scales without a unit.
        source: Where this size is known from; what the store says if None.

    Attributes:
        levels: The levels.
        labels: Names of the variables that are labels: all except images and bool arrays.
        arrays: For each label, the folders of the arrays of its levels.
        name: The variable that is the image: raw, otherwise the first variable in alphabetical order.
        paths: Paths of the arrays of the image in the store, one per level.
    """

    def __init__(
        self, levels: Sequence[Level], voxel_size_nm: Sequence[float] | None, source: str | None = None
    ) -> None:
        self.levels = levels
        self._size = voxel_size_nm
        store = levels[0].path
        self._ds = open_variables(store)
        self._source = source or self._ds.attrs.get("voxel_size_source", "not given")
        self._corner = [float(self._ds[dim][0]) for dim in DIMS]
        self._kinds = {name: kind_of(self._ds[name]) for name in open_record(store)["variables"]}
        self.labels = [name for name, kind in self._kinds.items() if kind != "image" and self._ds[name].dtype != bool]
        self.arrays = {name: [level.path / name for level in levels] for name in self.labels}
        self.name = RAW if RAW in self._ds else min(map(str, self._ds))
        self.paths = [path_below(level.path / self.name, store) for level in levels]

    @property
    def nodes(self) -> set[str]:
        """The paths of the arrays of all levels in the store."""
        return {path_below(level.path / name, self.levels[0].path) for level in self.levels for name in self._kinds}

    @property
    def nodes_of_levels(self) -> set[str]:
        """The paths of the arrays of the levels above it in their group."""
        return {f"{level.path.name}/{name}" for level in self.levels[1:] for name in self._kinds}

    def image(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return the OME-Zarr attributes of the root.

        Args:
            known: The existing attributes. Other images and a user's display settings are kept.
        """
        others = [scale for scale in _scales_of(known) if not _is_own(_paths_of(scale), self.paths)]
        described: dict[str, Any] = {"version": VERSION, "multiscales": [self.multiscale(self.name, self.paths)]}
        if self.name not in self.labels and "omero" not in known:
            contrast = _contrast_of(self.levels[0].path, self.name)
            described["omero"] = grey_channel(self.name, self._ds[self.name].dtype, contrast)
        return {**described, **known, "multiscales": described["multiscales"] + others}

    def label(self, name: str) -> dict[str, Any]:
        """Return the OME-Zarr attributes of a label's group."""
        return {
            "version": VERSION,
            "multiscales": [self.multiscale(name, [str(number) for number in range(len(self.levels))])],
            "image-label": image_label(name, self._ds[name]),
        }

    def multiscale(self, name: str, paths: Sequence[str]) -> dict[str, Any]:
        """Return the description of an image of all levels whose arrays have these paths."""
        scales = []
        for path, level in zip(paths, self.levels, strict=True):
            first = [corner + (factor - 1) / 2 for corner, factor in zip(self._corner, level.factors, strict=True)]
            scales.append(Scale(path, level.factors, first))
        how = ", then ".join(HOW[method] for method in dict.fromkeys(self._methods(name)))
        return multiscale(name, scales, self._size, self._source, how)

    def _methods(self, name: str) -> Iterator[Method]:
        """Yield how the levels of a variable were made; an earlier version may have made the first ones."""
        for level in self.levels[1:] or self.levels:
            yield method_of(level.path, name, self._kinds[name])


def _contrast_of(store: Place, name: str) -> tuple[float, float]:
    """Return the values to show as black and white: percentiles of samples of the tissue, see `grey_range`."""
    array = StoredArray(store, name)
    places = [_spread(*of) for of in zip(array.shape, SAMPLES, SIZE_OF_SAMPLE, strict=True)]
    return grey_range(np.concatenate([array[box].ravel() for box in product(*places)]), CONTRAST)


def _spread(length: int, count: int, size: int) -> list[slice]:
    """Return up to `count` ranges of `size` that are spread evenly over an axis."""
    starts = np.linspace(0, max(length - size, 0), min(count, -(-length // size))).astype(int)
    return [slice(start, min(start + size, length)) for start in starts.tolist()]


def _scales_of(ome: Any) -> list[Any]:
    """Return the images that the attribute `ome` of a root describes."""
    scales = ome.get("multiscales") if isinstance(ome, dict) else None
    return scales if isinstance(scales, list) else []


def _paths_of(scale: Any) -> list[Any]:
    """Return the array paths of an image; empty if its metadata are not valid."""
    try:
        return [dataset["path"] for dataset in scale["datasets"]]
    except (TypeError, LookupError):
        return []


def _is_own(paths: Sequence[Any], own: Sequence[str]) -> bool:
    """Return whether an image consists of levels of the same variable, possibly of fewer or more levels."""
    name = re.escape(own[0])
    return bool(paths) and all(re.fullmatch(rf"(pyramid/s\d+/)?{name}", str(path)) for path in paths)
