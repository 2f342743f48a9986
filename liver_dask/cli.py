"""The command `liver-dask`: demo, info, download. Exit code 0, 1 (failed) or 2 (used wrongly); no tracebacks."""

import time
from pathlib import Path
from typing import Any

import click
import xarray as xr
from rich.filesize import decimal

from . import volume
from .dataset import open_human_liver_em
from .demo import run_demo
from .errors import InvalidArgumentError, LiverDaskError
from .remote import traffic
from .store import read_record
from .zarr_export import to_zarr


class OneSentenceGroup(click.Group):
    """Shows this package's errors, and the system's, as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (LiverDaskError, OSError, KeyboardInterrupt) as error:
            said = "Interrupted." if isinstance(error, KeyboardInterrupt) else str(error)
            kind = click.UsageError if isinstance(error, InvalidArgumentError) else click.ClickException
            raise kind(" ".join([said, *getattr(error, "__notes__", [])])) from error


source_option = click.option(
    "--source", default=volume.EMPIAR_URL, show_default=True, help="The archive: any fsspec URL, or a local folder."
)
shape_option = click.option(
    "--shape", type=int, nargs=3, default=volume.SHAPE, show_default=True, metavar="Z Y X", help="Voxels of the volume."
)


@click.group(cls=OneSentenceGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="liver_dask")
def main() -> None:
    """The human-liver EM volume EMPIAR-13356: look at it, and keep what you need of it."""


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("liver_dask_demo"), show_default=True, help="Folder to fill."
)
def demo(out: Path) -> None:
    """Try everything on a made-up archive.

    Opens it over http, looks at a slice, keeps a crop, and checks every voxel of it. Needs no data and no internet.
    """
    run_demo(out)


@main.command()
@click.argument("target", default=volume.EMPIAR_URL)
@shape_option
def info(target: str, shape: tuple[int, int, int]) -> None:
    """Say what a source or a store holds.

    TARGET is EMPIAR-13356 if left out. Nothing is fetched.
    """
    store = Path(target)
    record = read_record(store)
    if record:
        try:
            click.echo(xr.open_zarr(store, chunks=None, consolidated=False))
        except Exception as error:  # whatever zarr makes of a damaged store
            raise click.ClickException(f"{store} is damaged: its metadata cannot be read ({error}).") from error
        click.echo(f"\n{store}: {'complete' if record['complete'] else 'unfinished'}, {_size_of(store)} on disk,")
        click.echo(f"chunks of {tuple(record['chunks'])} in shards of {tuple(record['shards'])}, made of")
        for variable in record["variables"].values():
            click.echo(f"  {variable['voxels']}")
        return
    ds = open_human_liver_em(target, shape=shape)
    click.echo(ds)
    if tuple(shape) == volume.SHAPE:
        x_min, x_max, y_min, y_max, z_min, z_max = volume.TISSUE_BOX
        click.echo(
            f"\nTissue: --bbox {x_min} {x_max} {y_min} {y_max} {z_min} {z_max}; outside it the slices are empty."
        )


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--bbox",
    type=int,
    nargs=6,
    required=True,
    metavar="X0 X1 Y0 Y1 Z0 Z1",
    help="The box in voxels; each second number is exclusive.",
)
@source_option
@shape_option
@click.option(
    "--label",
    "labels",
    multiple=True,
    default=volume.LABELS,
    show_default=True,
    help="A mask to keep; may be repeated.",
)
@click.option("--connections", type=int, help="The most requests at once.  [default: 16]")
@click.option("--cache-dir", type=click.Path(), help="Folder that keeps strip indexes and masks between runs.")
def download(
    out: Path,
    bbox: tuple[int, ...],
    source: str,
    shape: tuple[int, int, int],
    labels: tuple[str, ...],
    connections: int | None,
    cache_dir: str | None,
) -> None:
    """Keep a box of the volume as a Zarr store.

    OUT is the sharded Zarr v3 store to write. After an interruption the same command goes on from what is finished.
    """
    began = time.monotonic()
    ds = open_human_liver_em(source, shape=shape, labels=labels, connections=connections, cache_dir=cache_dir)
    to_zarr(ds, out, bounding_box=bbox)
    click.echo(
        f"{out} is complete: {_size_of(out)} on disk, {decimal(traffic.bytes)} fetched in {traffic.requests} requests, "
        f"{time.monotonic() - began:.1f} s. Open it with xr.open_zarr({str(out)!r})."
    )


def _size_of(store: Path) -> str:
    return decimal(sum(path.stat().st_size for path in store.rglob("*") if path.is_file()))
