"""The table of the objects of a volume, from the counts of its blocks."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from ..core.errors import InvalidArgumentError, MissingExtraError, how_to_install
from ..core.geometry import DIMS
from .components import Joined
from .counting import CONTACTS, FACES, FIRST, MAX, MIN, NEVER, NUM, SUM

UM = 1e-3
"""Micrometres of a nanometre."""


def table_of(
    joined: Joined,
    labels: xr.DataArray,
    voxel_size: tuple[float, float, float] | None,
    has_raw: bool,
    contacts: Sequence[str],
) -> pd.DataFrame:
    """Put the counts of all blocks together, in the order of the labels; see `measure` for the columns."""
    counts = np.zeros((joined.count, CONTACTS + 3 * len(contacts)), np.int64)
    counts[:, MIN:MAX] = counts[:, FIRST] = NEVER
    sums = np.zeros(joined.count)
    smallest, largest = [*range(MIN, MAX), FIRST], [*range(MAX, FIRST)]
    added = [column for column in range(counts.shape[1]) if column not in (*smallest, *largest)]
    for of, numbers in joined.parts():
        for columns, put in ((added, np.add), (smallest, np.minimum), (largest, np.maximum)):
            for column in columns:
                put.at(counts[:, column], numbers, of.counts[:, column])
        np.add.at(sums, numbers, of.sums)
    names = joined.labels()
    order = np.argsort(names)
    found = {"label": names[order], **_columns(counts[order], labels, voxel_size, contacts)}
    if has_raw:
        found["mean_raw"] = sums[order] / counts[order, NUM]
    return pd.DataFrame(found)


def _columns(
    counts: npt.NDArray[np.int64],
    labels: xr.DataArray,
    voxel_size: tuple[float, float, float] | None,
    contacts: Sequence[str],
) -> dict[str, Any]:
    origin = [_origin(labels, dim) for dim in DIMS]
    areas = None if voxel_size is None else np.array([np.prod(voxel_size) / of for of in voxel_size]) * UM**2
    columns: dict[str, Any] = {"num_voxels": counts[:, NUM]}
    if voxel_size:
        columns["volume_um3"] = counts[:, NUM] * (np.prod(voxel_size) * UM**3)
    for axis, dim in enumerate(DIMS):
        columns[f"{dim}_min"] = counts[:, MIN + axis] + origin[axis]
        columns[f"{dim}_max"] = counts[:, MAX + axis] + origin[axis]
    for axis, dim in enumerate(DIMS):
        columns[f"centroid_{dim}"] = counts[:, SUM + axis] / counts[:, NUM] + origin[axis]
    at_begin = counts[:, MIN:MAX] == 0
    columns["touches_border"] = (at_begin | (counts[:, MAX:FIRST] == np.array(labels.shape))).any(axis=1)
    for begin, faces, area in (
        (FACES, "num_faces", "surface_um2"),
        *((CONTACTS + 3 * i, f"contact_{name}_faces", f"contact_{name}_um2") for i, name in enumerate(contacts)),
    ):
        columns[faces] = counts[:, begin : begin + 3].sum(axis=1)
        if areas is not None:
            columns[area] = counts[:, begin : begin + 3] @ areas
    return columns


def _origin(labels: xr.DataArray, dim: str) -> int:
    """Return the coordinate of the first voxel, if the coordinates run one by one."""
    index = labels.indexes.get(dim)
    if index is None or not len(index) or index.dtype.kind not in "iu":
        return 0
    first = int(index[0])
    return first if np.array_equal(index, np.arange(first, first + len(index))) else 0


def check_table_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a new table.

    Raises:
        InvalidArgumentError: It is no `.parquet` or `.csv`, its folder does not exist, or the file does. (ValueError)
        MissingExtraError: Parquet needs a package that is not installed. (ImportError)
    """
    target = Path(path)
    if target.suffix not in (".parquet", ".csv"):
        raise InvalidArgumentError(f"Cannot write {target}: a table is a new file .parquet or .csv.")
    if target.exists() or target.is_symlink():
        raise InvalidArgumentError(f"{target} exists already; choose another name, or remove it.")
    if not target.parent.is_dir():
        raise InvalidArgumentError(f"Cannot write {target}: there is no folder {target.parent}.")
    if target.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError(f"A Parquet file needs the package pyarrow: {how_to_install('measure')}.")
    return target


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as a new file, which appears only when it is complete.

    Raises:
        InvalidArgumentError: The file exists by now. (ValueError)
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        if path.suffix == ".csv":
            table.to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False)
        os.link(part, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise InvalidArgumentError(f"{path} exists already; choose another name, or remove it.") from None
    finally:
        part.unlink(missing_ok=True)
