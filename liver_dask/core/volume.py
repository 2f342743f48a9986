"""The frozen facts of EMPIAR-13356: shape, dtypes, labels, the file of a slice, boxes, citation.

Nothing here touches a file or the network.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .documents import short
from .errors import InvalidArgumentError

EMPIAR_URL = "https://ftp.ebi.ac.uk/empiar/world_availability/13356/data"
SHAPE = (597, 20000, 20000)
"""Voxels of the whole volume (z, y, x)."""

RAW_FILE_BYTES_PER_PIXEL = 2.2
"""A raw slice of 20000 x 20000 pixels is a file of about 880 MB (reference): LZW makes this data longer."""

DIMS = ("z", "y", "x")
LONGEST_AXIS = 2**31 - 1
RAW = "raw"
RAW_DTYPE = np.dtype("uint16")
MASK_DTYPE = np.dtype("uint8")
FOREGROUND = 255
"""The value of a labelled voxel in a mask; all others are 0."""

LABELS = ("mito", "er", "nucleus")
"""The labels that are opened when none are named: those recommended for training."""

MEANING_OF_LABEL = {
    "mito": "mitochondrion",
    "er": "endoplasmic_reticulum",
    "nucleus": "nucleus",
    "bile_duct": "bile_duct",
    "cell_boundary": "cell_boundary",
    "cholangiocyte": "cholangiocyte",
    "endothelial": "endothelial_cell",
    "hepatocyte": "hepatocyte",
    "sinusoid": "sinusoid",
}
"""All nine classes said to exist. The folders of the last six are assumed to follow the pattern of the first three."""

COLOUR_OF_LABEL = {"mito": "#e64b3c", "er": "#3caaeb", "nucleus": "#fac83c"}
OTHER_COLOUR = "#a05adc"

VOXEL_SIZE_UNKNOWN = (
    "not given: x and y are 8 nm by the abstract of bioRxiv 10.64898/2026.04.22.719970; z is disputed, 55 nm "
    "(33 um over 597 slices, abstract) or 80 nm (the authors' code); pass voxel_size_nm=(z, y, x) to state it"
)


class BoundingBox(NamedTuple):
    """A box of voxels in the order torch_em uses; each `max` is exclusive."""

    x_min: int
    x_max: int
    y_min: int
    y_max: int
    z_min: int
    z_max: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        return self.z_max - self.z_min, self.y_max - self.y_min, self.x_max - self.x_min


TISSUE_BOX = BoundingBox(1195, 18890, 469, 19570, 0, 597)
"""Outside this box the image is empty (torch_em 0.10.9)."""


def full_box(shape: Sequence[int]) -> BoundingBox:
    """What a full volume holds: the tissue of EMPIAR-13356, and of another shape everything."""
    z, y, x = check_shape(shape)
    return TISSUE_BOX if (z, y, x) == SHAPE else BoundingBox(0, x, 0, y, 0, z)


def folder_of(variable: str) -> str:
    """The folder below the archive's root that has the slices of `raw` or of a label's mask."""
    return "humanliver_raw_images" if variable == RAW else f"humanliver_{variable}_mask"


def file_of_slice(variable: str, z: int) -> str:
    """The path below the archive's root of one slice of `raw` or of a label's mask."""
    if variable == RAW:
        return f"{folder_of(variable)}/humanliver_raw_{z:03d}.tif"
    return f"{folder_of(variable)}/humanliver_{variable}_mask_{z:03d}.png"


def dtype_of(variable: str) -> np.dtype[Any]:
    """uint16 for `raw`, uint8 for a label."""
    return RAW_DTYPE if variable == RAW else MASK_DTYPE


def colour_of(label: str) -> str:
    """The colour of a label in all pictures and viewers, as #rrggbb."""
    return COLOUR_OF_LABEL.get(label, OTHER_COLOUR)


def check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return `shape` as three positive integers (z, y, x), or raise InvalidArgumentError."""
    return check_lengths("shape", shape)


def check_lengths(name: str, lengths: Sequence[int]) -> tuple[int, int, int]:
    """Return three positive integers (z, y, x), or raise InvalidArgumentError naming the argument."""
    z, y, x = numbers = _integers(name, lengths, 3, "(z, y, x)")
    if min(numbers) < 1 or max(numbers) > LONGEST_AXIS:
        raise InvalidArgumentError(f"{name}={tuple(numbers)} has an axis without voxels, or one that is too long.")
    return z, y, x


def check_labels(labels: str | Iterable[str]) -> tuple[str, ...]:
    """Return the labels as a tuple without repeats, or raise InvalidArgumentError naming those that exist."""
    try:
        names = (labels,) if isinstance(labels, str) else tuple(dict.fromkeys(labels))
    except TypeError:
        raise InvalidArgumentError(f"labels={labels!r} must be names of {', '.join(MEANING_OF_LABEL)}.") from None
    unknown = [name for name in names if name not in MEANING_OF_LABEL]
    if unknown:
        raise InvalidArgumentError(f"Unknown label {unknown[0]!r}; the classes are {', '.join(MEANING_OF_LABEL)}.")
    return names


def check_bounding_box(box: Sequence[int], within: BoundingBox) -> BoundingBox:
    """Return `box` as a BoundingBox that is not empty and lies in `within`, or raise InvalidArgumentError."""
    order = "(x_min, x_max, y_min, y_max, z_min, z_max)"
    checked = BoundingBox(*_integers("bounding_box", box, 6, order))
    for axis in "xyz":
        start, stop = getattr(checked, f"{axis}_min"), getattr(checked, f"{axis}_max")
        first, last = getattr(within, f"{axis}_min"), getattr(within, f"{axis}_max")
        if stop <= start:
            raise InvalidArgumentError(
                f"bounding_box={tuple(checked)} holds no voxels: {axis}_max={stop} is not above {axis}_min={start}; "
                f"the order is {order}."
            )
        if start < first or stop > last:
            raise InvalidArgumentError(
                f"bounding_box={tuple(checked)} leaves the volume: {axis} is {start}..{stop}, but there is only "
                f"{first}..{last}; the order is {order}."
            )
    return checked


def check_voxel_size(voxel_size_nm: Sequence[float]) -> tuple[float, float, float]:
    """Return the voxel size as three positive numbers (z, y, x) in nm, or raise InvalidArgumentError."""
    try:
        z, y, x = (float(size) for size in voxel_size_nm)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"voxel_size_nm={short(voxel_size_nm)} is not three numbers (z, y, x).") from None
    if not all(0 < size < float("inf") for size in (z, y, x)):
        raise InvalidArgumentError(f"voxel_size_nm={(z, y, x)} must be above 0 on every axis.")
    return z, y, x


def attributes(source: str, voxel_size_nm: Sequence[float] | None) -> dict[str, Any]:
    """Attributes of the Dataset: what it is, where it is from, and who to cite. All are plain JSON."""
    known: dict[str, Any] = {
        "title": "Human liver, periportal volume EM (EMPIAR-13356)",
        "source": source,
        "license": "CC0-1.0",
        "citation": "bioRxiv, doi 10.64898/2026.04.22.719970; data: EMPIAR-13356",
        "references": "https://www.ebi.ac.uk/empiar/EMPIAR-13356/",
    }
    if voxel_size_nm is None:
        return known | {"voxel_size_source": VOXEL_SIZE_UNKNOWN}
    return known | {
        "voxel_size_nm": list(check_voxel_size(voxel_size_nm)),
        "voxel_size_source": "given by the caller as voxel_size_nm=(z, y, x)",
    }


def attributes_of(variable: str) -> dict[str, Any]:
    """CF attributes of one variable: a long name, and for a label the meaning of its two values."""
    if variable == RAW:
        return {"long_name": "electron microscopy, uncalibrated intensity"}
    meaning = MEANING_OF_LABEL[variable]
    return {
        "long_name": f"mask of {meaning.replace('_', ' ')}; may cover only a part of a slice",
        "flag_values": [0, FOREGROUND],
        "flag_meanings": f"background {meaning}",
    }


def _integers(name: str, values: Sequence[int], count: int, order: str) -> list[int]:
    try:
        numbers = [operator.index(value) for value in values]
    except TypeError:
        raise InvalidArgumentError(f"{name}={values!r} must be {count} whole numbers {order}.") from None
    if len(numbers) != count:
        raise InvalidArgumentError(f"{name}={tuple(numbers)} has {len(numbers)} numbers; give {count}: {order}.")
    return numbers
