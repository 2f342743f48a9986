"""The command `info`: what an archive or a store contains, and how far an unfinished store is."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import xarray as xr

from .archive.archives import find_archive
from .archive.dataset import open_archive
from .archive.description import Archive
from .archive.probe import probe
from .cli_options import archive_option, refuse_options_for_store, shape_option, target_argument
from .cli_texts import size_of
from .core.documents import reason_of
from .core.errors import DamagedError
from .core.places import Place, path_below
from .store.identity import made_of
from .store.inventory import check_structure
from .store.levels import levels_of
from .store.record import (
    check_finished,
    has_record,
    layout_of,
    missing_files,
    open_record,
    read_record,
    what_it_lacks,
)
from .store.record_checks import record_problem
from .store.targets import stored_at
from .store.unfinished import unfinished_at, unfinished_parts
from .store.zarr_store import zarr_store


@click.command()
@target_argument
@archive_option
@shape_option
@click.option("--offline", is_flag=True, help="Say what the archive's description says, and ask nothing.")
def info(target: str | None, archive: str, shape: tuple[int, int, int] | None, offline: bool) -> None:
    """Show what a source or a store contains.

    TARGET is a store or the address of the archive. The default is the address in the archive's description. Of an
    archive, the headers of one slice of each variable are fetched, to see whether it is there and as described. Of a
    store that is being written, or was interrupted, it says how far it is, how fast it was, and what failed.
    """
    refuse_options_for_store(target)
    described = find_archive(archive).of_shape(shape)
    target = described.url if target is None else target
    store = stored_at(target)
    record = read_record(store) if store is not None else None
    if store is not None and not record and has_record(store):
        open_record(store)  # it raises an error that explains what is wrong
    unfinished = unfinished_at(store) if store is not None and not record else None
    if unfinished:
        _tell_made_of(unfinished.store.content)
        click.echo(f"\n{unfinished}")
    elif store is not None and record:
        _tell_store(store, record)
    else:
        if store is not None:
            check_finished(store)
        _tell_archive(described, target, offline)


def _tell_store(store: Place, record: dict[str, Any]) -> None:
    """Say what a store contains, as its record and its metadata say."""
    problem = record_problem(record)
    if problem:
        raise click.ClickException(f"{store} is damaged: its record says that {problem}.")
    check_structure(store, record, layout_of(record))
    try:
        ds = xr.open_zarr(zarr_store(store), chunks=None, consolidated=False)
        others = [name for name in ds.data_vars if name not in record["variables"]]
        click.echo(ds[[*record["variables"], *others]])
    except Exception as error:  # zarr raises many kinds for a damaged store
        reason = reason_of(error)
        raise click.ClickException(f"{store} is damaged: its metadata cannot be read ({reason}).") from error
    click.echo(f"\n{store}: {'complete' if record.get('complete') else 'unfinished'}, {size_of(store)} on disk,")
    _tell_made_of(record)
    _tell_missing(store, record)
    levels = levels_of(store) if record.get("complete") else []
    for level in levels[1:]:
        click.echo(f"{path_below(level.path, store)}: voxels of {' x '.join(map(str, level.factors))} (z, y, x)")
    for lacking in what_it_lacks(record):
        click.echo(f"{store}: {lacking}")
    for further in unfinished_parts(store):
        click.echo(f"\n{further}")


def _tell_made_of(record: Mapping[str, Any]) -> None:
    click.echo(f"chunks of {tuple(record['chunks'])} in shards of {tuple(record['shards'])}, made of")
    width = max(map(len, record["variables"]))
    for name, variable in record["variables"].items():
        click.echo(f"  {name:{width}}  {made_of(variable)}")


def _tell_missing(store: Place, record: Mapping[str, Any]) -> None:
    """Say what is zeros because the source did not have the files."""
    for name, variable in record["variables"].items():
        missing: list[str] = []
        with suppress(DamagedError):  # of an unfinished or a damaged store, which `verify` tells
            missing = missing_files(store, [name])
        if missing and isinstance(variable["voxels"], dict):
            slices, one = f"{len(missing)} of {record['shape'][0]} slices", len(missing) == 1
            why = "is zeros, because its file" if one else "are zeros, because their files"
            click.echo(f"{name}: {slices} {why} did not exist")
        elif missing:
            click.echo(f"{name}: zeros were taken for {len(missing)} files that did not exist, of what it is made of")


def _tell_archive(described: Archive, address: str, offline: bool) -> None:
    """Say what an archive contains, as its description says and, unless `offline`, as one slice of it shows."""
    ds = open_archive(described, address)
    check_some_file(described, ds.attrs["source"])
    click.echo(ds)
    if not offline:
        _tell_what_is_there(ds)
    size = ds.attrs.get("voxel_size_nm")
    click.echo(f"\nVoxel size (z, y, x): {f'{size} nm, ' if size else ''}{ds.attrs['voxel_size_source']}.")
    if described.tissue_box:
        x_min, x_max, y_min, y_max, z_min, z_max = described.tissue_box
        click.echo(
            f"\nTissue: --bbox {x_min} {x_max} {y_min} {y_max} {z_min} {z_max}; outside it the slices are empty."
        )


def _tell_what_is_there(ds: xr.Dataset) -> None:
    """Ask for the middle slice of each variable; what is not as described ends the command."""
    z = ds.sizes["z"] // 2
    found = probe(ds, z)
    right = [name for name, error in found.items() if error is None]
    if right:
        click.echo(f"\nSlice {z} is there, and as described: {', '.join(right)}.")
    wrong = [str(error) for error in found.values() if error]
    if wrong:
        raise click.ClickException("\n".join(wrong))


def check_some_file(archive: Archive, folder: str) -> None:
    """Raise an error if a folder on this machine has no file of any variable; of other sources, nothing is asked."""
    if "://" in folder:
        return
    for variable in archive.variables:
        with suppress(OSError):
            if any(
                variable.slice_of(f"{variable.folder}/{path.name}") is not None
                for path in Path(folder, variable.folder).iterdir()
            ):
                return
    raise click.ClickException(
        f"{folder} has no file of {archive.name}, such as {archive.variables[0].path(0)}; give another folder, or the "
        "archive that it is (--archive)."
    )
