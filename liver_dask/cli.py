"""The command line tool `liver-dask`.

The exit code is 0 (success), 1 (failure) or 2 (wrong usage). Errors are printed without a traceback.
"""

import sys
import time
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from .archive.archives import find_archive
from .archive.dataset import open_archive
from .archive.reader import Missing
from .cli_analysis import measure_command, predict_command
from .cli_cache import cache
from .cli_doctor import doctor_command
from .cli_errors import OneSentenceGroup
from .cli_info import info
from .cli_options import (
    LocalPath,
    StorePlace,
    archive_option,
    cluster,
    cluster_options,
    label_option,
    missing_option,
    refuse_options_for_store,
    shape_option,
    source_option,
    target_argument,
    voxel_size_option,
)
from .cli_texts import plan_text, size_of
from .core.interrupts import forget_interrupt
from .core.malloc import share_memory
from .core.places import Place
from .demo import run_demo
from .serving.neuroglancer import HOSTED
from .serving.server import Server, serve
from .store.annotate import annotate
from .store.clean import clean
from .store.plan import Export
from .store.pyramid import add_pyramid
from .store.record import open_record, what_it_lacks
from .store.sample import sample
from .store.targets import open_target
from .store.verify import verify as verify_store
from .viewing.figures import INCHES, show
from .viewing.levels import PIXELS
from .viewing.view import serve_slicer, view

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff")


@click.group(cls=OneSentenceGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="liver_dask")
def main() -> None:
    """View the human-liver EM volume EMPIAR-13356, or another archive, and download the parts that you need.

    A store is a folder, or lies in object storage: s3://bucket/crop.zarr, with the credentials and the address of
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or of the files that s3fs reads.
    """
    share_memory()


main.add_command(measure_command)
main.add_command(predict_command)
main.add_command(doctor_command)
main.add_command(cache)
main.add_command(info)


@main.command()
@click.option(
    "--out", type=LocalPath(file_okay=False), default=Path("liver_dask_demo"), show_default=True, help="Folder to fill."
)
def demo(out: Path) -> None:
    """Try everything on a synthetic archive.

    The demo opens the archive over HTTP, draws a slice, writes a crop, and checks every voxel of the crop. It needs no
    data and no internet.
    """
    run_demo(out)


@main.command()
@target_argument
@archive_option
@shape_option
@click.option("--z", type=int, required=True, help="The slice, counted in the whole volume.")
@click.option("--y", type=int, nargs=2, metavar="Y0 Y1", help="Rows, the second exclusive.  [default: all]")
@click.option("--x", type=int, nargs=2, metavar="X0 X1", help="Columns, the second exclusive.  [default: all]")
@label_option("show", "all")
@missing_option
@voxel_size_option
@click.option(
    "--pixels", type=click.IntRange(64, 20000), default=PIXELS, show_default=True, help="Size of the picture."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The picture (.png, .jpg, .pdf, ...).",
)
def snapshot(
    target: str | None,
    archive: str,
    shape: tuple[int, int, int] | None,
    z: int,
    y: tuple[int, int] | None,
    x: tuple[int, int] | None,
    labels: tuple[str, ...] | None,
    missing: Missing,
    voxel_size_nm: tuple[float, float, float] | None,
    pixels: int,
    out: Path,
) -> None:
    """Save an image of a window of a slice: raw, with masks over it in colour.

    TARGET is a store or the address of the archive. The default is the address in the archive's description. A window
    with more rows or columns than --pixels is read at a reduced resolution.
    """
    refuse_options_for_store(target)
    if out.suffix.lower() not in PICTURES:
        raise click.BadParameter(f"{out} must end with one of {', '.join(PICTURES)}.", param_hint="--out")
    if not out.parent.is_dir():
        raise click.BadParameter(f"There is no folder {out.parent}.", param_hint="--out")
    ds = open_target(
        find_archive(archive).url if target is None else target,
        archive,
        shape=shape,
        missing=missing,
        voxel_size_nm=voxel_size_nm,
    )
    figure = show(ds, z, y, x, labels=labels, pixels=pixels)
    figure.savefig(out, dpi=pixels / INCHES, bbox_inches="tight")
    click.echo(out)


@main.command("view")
@target_argument
@archive_option
@shape_option
@missing_option
@voxel_size_option
@click.option("--z", type=int, help="The slice to begin with.  [default: the middle one]")
@label_option("show at first", "all")
@click.option("--port", type=click.IntRange(0, 65535), default=8866, show_default=True, help="Of this machine; 0: any.")
@click.option("--neuroglancer", is_flag=True, help="Use neuroglancer; see `liver-dask serve`, which has more options.")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Whether to open one.")
def view_command(
    target: str | None,
    archive: str,
    shape: tuple[int, int, int] | None,
    missing: Missing,
    voxel_size_nm: tuple[float, float, float] | None,
    z: int | None,
    labels: tuple[str, ...] | None,
    port: int,
    neuroglancer: bool,
    browser: bool,
) -> None:
    """Slide through a volume in a browser, without a notebook.

    TARGET is a store or the address of the archive. The default is the address in the archive's description. The page
    is available on this machine only, at the printed address, which contains the required token, as with Jupyter. Press
    Ctrl-C to stop.
    """
    refuse_options_for_store(target)
    click.echo("Starting; the address of the page follows.", err=True)  # importing and opening take some seconds
    target = find_archive(archive).url if target is None else target
    options: dict[str, Any] = {"archive": archive, "shape": shape, "missing": missing, "voxel_size_nm": voxel_size_nm}
    if neuroglancer:
        _serve(serve(target, port, **options), HOSTED, z, browser)
        return
    view(open_target(target, **options), z=z, labels=labels).close()  # raises errors here, not in the browser
    with suppress(KeyboardInterrupt):  # the normal way to stop it
        serve_slicer(target, options, z, labels, port, browser)
    forget_interrupt()


@main.command("serve")
@target_argument
@archive_option
@shape_option
@missing_option
@voxel_size_option
@click.option("--z", type=int, help="The slice that the link shows.  [default: the middle one]")
@click.option("--port", type=click.IntRange(0, 65535), default=8867, show_default=True, help="Of this machine; 0: any.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of this machine on which to listen.")
@click.option("--token", help="First part of the path; on other than local addresses it is random by default.")
@click.option("--neuroglancer", "client", default=HOSTED, show_default=True, help="Where neuroglancer is.")
@click.option("--browser/--no-browser", default=False, show_default=True, help="Whether to open the link.")
def serve_command(
    target: str | None,
    archive: str,
    shape: tuple[int, int, int] | None,
    missing: Missing,
    voxel_size_nm: tuple[float, float, float] | None,
    z: int | None,
    port: int,
    host: str,
    token: str | None,
    client: str,
    browser: bool,
) -> None:
    """Serve a volume to neuroglancer, napari and other Zarr readers, without downloading it.

    TARGET is a store or the address of the archive. The default is the address in the archive's description. Chunks are
    made when a viewer asks for them, and nothing is written. Press Ctrl-C to stop.
    """
    refuse_options_for_store(target)
    target = find_archive(archive).url if target is None else target
    options: dict[str, Any] = {"archive": archive, "shape": shape, "missing": missing, "voxel_size_nm": voxel_size_nm}
    _serve(serve(target, port, host=host, token=token, **options), client, z, browser)


def _serve(server: Server, client: str, z: int | None, browser: bool) -> None:
    """Say where a server is, and wait for Ctrl-C."""
    with server:
        link = server.link(client, z=z)  # the first read: an address without an archive is an error here
        click.echo(f"Zarr readers: {server.url}\nneuroglancer: {link}\nPress Ctrl-C to stop.")
        if browser:
            webbrowser.open(link)
        with suppress(KeyboardInterrupt):  # the normal way to stop it
            server.wait()
        forget_interrupt()


@main.command()
@click.argument("out", type=StorePlace())
@click.option(
    "--bbox",
    type=int,
    nargs=6,
    metavar="X0 X1 Y0 Y1 Z0 Z1",
    help="The box in voxels; each second number is exclusive.",
)
@click.option("--full", is_flag=True, help="The whole volume; the box that holds tissue, where that is known.")
@archive_option
@source_option
@shape_option
@label_option("keep", "as the archive's description says")
@missing_option
@voxel_size_option
@click.option("--connections", type=int, help="The most requests at once, of all workers.  [default: 16]")
@click.option("--cache-dir", type=LocalPath(), help="Folder that keeps strip indexes and masks between runs.")
@cluster_options
@click.option(
    "--on-error",
    type=click.Choice(["raise", "continue"]),
    default="raise",
    show_default=True,
    help="Stop at the first region that cannot be written, or write all others first.",
)
@click.option("--pyramid", "with_pyramid", is_flag=True, help="Add smaller copies, see `liver-dask pyramid`.")
@click.option(
    "--facts", type=LocalPath(), help="Facts of `liver-dask doctor --save`: sizes of files, and missing ones."
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and fetch nothing.")
@click.option("--ask", is_flag=True, help="With --dry-run: look at three slices first, so that less is guessed.")
def download(
    out: Place,
    bbox: tuple[int, ...] | None,
    full: bool,
    archive: str,
    source: str | None,
    shape: tuple[int, int, int] | None,
    labels: tuple[str, ...] | None,
    missing: Missing,
    voxel_size_nm: tuple[float, float, float] | None,
    connections: int | None,
    cache_dir: Path | None,
    scheduler: str | None,
    workers: int | None,
    on_error: str,
    with_pyramid: bool,
    facts: Path | None,
    dry_run: bool,
    ask: bool,
) -> None:
    """Download a box of the volume, or all of it, to a Zarr store.

    OUT is the sharded Zarr v3 store to write. After an interruption, the same command resumes the download.
    """
    if (bbox is None) != full:
        raise click.UsageError("Give either --bbox X0 X1 Y0 Y1 Z0 Z1 or --full.")
    began = time.monotonic()
    described = find_archive(archive).of_shape(shape)
    ds = open_archive(
        described,
        source,
        labels=labels,
        connections=connections,
        cache_dir=cache_dir and str(cache_dir),
        missing=missing,
        voxel_size_nm=voxel_size_nm,
        facts=facts,
    )
    export = Export.plan(ds, out, bounding_box=described.full_box if full else bbox)
    if dry_run:
        is_there = export.store.check(voxel_size_nm)  # raises the same errors as without --dry-run
        done = f"{out} is complete already: nothing would be fetched."
        click.echo(done if is_there else plan_text(export, with_pyramid, sample(export.source) if ask else None))
        return
    if ask:
        raise click.UsageError("--ask is for --dry-run: give both, or neither.")
    with cluster(scheduler, workers) as client:
        export.run(client, on_error, voxel_size_nm=voxel_size_nm, pyramid=with_pyramid)
        if with_pyramid:
            add_pyramid(out, client=client)
    click.echo(
        f"{out} is complete: {size_of(out)} on disk, {decimal(export.fetched)} fetched in {export.requests} requests, "
        f"{time.monotonic() - began:.1f} s. Open it with xr.open_zarr({str(out)!r})."
    )


@main.command()
@click.argument("store", type=StorePlace())
@cluster_options
def pyramid(store: Place, scheduler: str | None, workers: int | None) -> None:
    """Add downsampled levels of all variables to a store, and make it an OME-Zarr image.

    Then napari, neuroglancer and other viewers can open the store, and zoomed-out views read only a small part of it.
    After an interruption, the same command resumes.
    """
    with cluster(scheduler, workers) as client:
        levels = add_pyramid(store, client=client)
    more = f"{len(levels)} levels" if len(levels) > 1 else "1 level, because its slices are small enough"
    click.echo(f"{store} has {more}, {size_of(store)} in all.")


@main.command("clean")
@click.argument("store", type=StorePlace())
@click.option("--unfinished", is_flag=True, help="Remove an unfinished store, too, with all that is finished of it.")
def clean_command(store: Place, unfinished: bool) -> None:
    """Remove what interrupted downloads left beside a store.

    STORE is the store that they wrote. Uploads to object storage that were never completed are given up. A complete
    store is never touched, nor one that another process is writing.
    """
    click.echo(clean(store, unfinished=unfinished))


@main.command("annotate")
@click.argument("store", type=StorePlace())
@click.option(
    "--voxel-size", "voxel_size_nm", type=float, nargs=3, metavar="Z Y X", required=True, help="Size of a voxel in nm."
)
def annotate_command(store: Place, voxel_size_nm: tuple[float, float, float]) -> None:
    """Say how large the voxels of a finished store are, or correct it.

    Attributes, the scales that viewers use, and what `verify` expects change together; no voxel is touched. After an
    interruption, the same command finishes.
    """
    annotate(store, voxel_size_nm=voxel_size_nm)
    click.echo(f"{store}: voxels of {' x '.join(f'{size:.15g}' for size in voxel_size_nm)} nm (z, y, x).")


@main.command()
@click.argument("store", type=StorePlace())
@click.option("--full", is_flag=True, help="Compare every voxel, not only some of every shard.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another one looks at other voxels.")
@click.option("--source", help="Where the archive is.  [default: the address that the store names]")
@cluster_options
def verify(store: Place, full: bool, seed: int, source: str | None, scheduler: str | None, workers: int | None) -> None:
    """Compare a store with its recorded checksums and with its source.

    The exit code is 1 if anything is wrong.
    """
    with cluster(scheduler, workers) as client:
        report = verify_store(store, source=source, full=full, seed=seed, client=client)
    click.echo(report)
    for lacking in what_it_lacks(open_record(store)):
        click.echo(f"{store}: {lacking}")
    if not report.ok:
        sys.exit(1)
