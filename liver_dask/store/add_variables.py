"""`add_variables`: more variables in a complete store, beside those that it has."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS
from ..core.places import Named, Place, place_of
from .additions import add_missing
from .group_metadata import read_group
from .inventory import FILE as INVENTORY
from .levels import FACTORS, FOLDER, open_variables
from .ome_zarr import has_description
from .placement import placement_of
from .plan import check_variables
from .pyramid import add_pyramid
from .record import FORMAT, RECORD, open_record

if TYPE_CHECKING:
    from distributed import Client


def add_variables(
    store: Named,
    variables: Mapping[Hashable, xr.DataArray],
    *,
    storage_options: Mapping[str, Any] | None = None,
    client: "Client | None" = None,
    on_error: Literal["raise", "continue"] = "raise",
    progress: bool = True,
) -> str:
    """Add variables to a complete store, such as what a model predicts from it.

    They are written as `to_zarr` writes a store: in the chunks and shards of the store, on threads or on a cluster,
    with memory that is bounded, and the same call goes on after an interruption. Until they are complete, they are
    beside the store, in `NAME.zarr.adding-VARIABLE.partial`; then they become part of it in a moment, with checksums,
    for `verify`, like all others. Nothing that is in the store changes. If it has a pyramid or labels, those of the new
    variables are added, too. The call by which the store was written accepts it as before. A Dataset that was opened
    before does not show them: open the store again.

    If the store has the same variables already, nothing is done.

    Args:
        store: A complete store of `to_zarr`: a folder that all workers see, or an address in object storage.
        variables: DataArrays (z, y, x) by name, of the shape of the store, and of the same coordinates if they have
            any; or a Dataset, whose variables that are the store's own are left out.
        storage_options: fsspec's options for an address in object storage, as in `to_zarr`.
        client: The cluster to work on. None has the same meaning as in `to_zarr`.
        on_error: As in `to_zarr`.
        progress: Whether to report on standard error.

    Returns:
        The path of the store.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: A variable does not fit the store, or cannot be kept; the store is a level of a pyramid,
            or of an earlier format; there is not enough disk space or memory. (ValueError)
        StoreExistsError: The store has another variable, or something else, of the same name; another model or other
            settings were used for what is unfinished; or another process is writing. (FileExistsError)
        DamagedError: The metadata of the store are not what was written; nothing was changed. (OSError)
        ExportError: Some regions could not be written; `.failures` lists them. (RuntimeError)
        LiverDaskError: The source could not be read. The message names the file, the slice and the rows.
    """
    root = place_of(store, storage_options)
    _check_store(root)
    ds = _dataset_of(root, variables)
    add_missing(root, ds, client, on_error, progress)
    if (root / FOLDER).is_dir() or has_description(root):
        add_pyramid(root, client=client, progress=progress)
    return str(root)


def _check_store(root: Place) -> None:
    record = open_record(root)
    if record["format"] != FORMAT or not (root / RECORD / INVENTORY).exists():
        raise InvalidArgumentError(f"{root} is of an earlier version, to which nothing can be added; write it anew.")
    if FACTORS in (read_group(root) or {}):
        raise InvalidArgumentError(f"{root} is a level of the pyramid of another store; add them to that store.")


def _dataset_of(root: Place, variables: Mapping[Hashable, xr.DataArray]) -> xr.Dataset:
    """Return the variables as a Dataset of the store's shape.

    Raises:
        InvalidArgumentError: They do not fit.
    """
    if not isinstance(variables, Mapping) or not variables:
        raise InvalidArgumentError('Give the variables by name, such as {"mito_pred": ld.predict(model, ds.raw)}.')
    there = open_variables(root)
    shape = tuple(open_record(root)["shape"])
    for name, variable in variables.items():
        if name in DIMS:
            raise InvalidArgumentError(f"A variable cannot be named {name!r}, which is an axis.")
        if not isinstance(variable, xr.DataArray):
            raise InvalidArgumentError(
                f"{name!r} is a {type(variable).__name__}; give a DataArray: xr.DataArray(array, dims={DIMS})."
            )
        if variable.dims != DIMS:
            raise InvalidArgumentError(f"{name!r} has dims {variable.dims}; give a DataArray with dims {DIMS}.")
        if variable.shape != shape:
            raise InvalidArgumentError(
                f"{name!r} has the shape {variable.shape} (z, y, x), and {root} has {shape}; make it of the variables "
                "of the store, or of the same box."
            )
        _check_places(root, str(name), variable, there)
    found = {name: of.variable for name, of in variables.items() if not _is_own(root, str(name), of)}
    ds = xr.Dataset(found, {dim: there[dim] for dim in DIMS if dim in there.indexes})
    if found:
        check_variables(ds)
    return ds


def _is_own(root: Place, name: str, variable: xr.DataArray) -> bool:
    """Return whether a variable is that of the store itself, as in a Dataset that was opened from it."""
    placed = placement_of(variable.variable)
    return placed is not None and placed.array == root / name and name in open_record(root)["variables"]


def _check_places(root: Place, name: str, variable: xr.DataArray, there: xr.Dataset) -> None:
    """Raise InvalidArgumentError if a variable has other coordinates than the store, where both have any."""
    for dim in DIMS:
        if dim not in variable.indexes or dim not in there.indexes:
            continue
        own, of_store = variable.indexes[dim], there.indexes[dim]
        if not own.equals(of_store):
            raise InvalidArgumentError(
                f"{name!r} is of other voxels than {root}: its {dim} is {own[0]}..{own[-1]}, that of the store "
                f"{of_store[0]}..{of_store[-1]}."
            )
