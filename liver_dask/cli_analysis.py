"""The commands that measure objects, and that run a model over a volume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import xarray as xr

from .analysis.components import IN_PLANE
from .analysis.measure import measure
from .archive.reader import Missing
from .cli_options import (
    LocalPath,
    StorePlace,
    archive_option,
    cluster,
    cluster_options,
    missing_option,
    refuse_options_for_store,
    shape_option,
    voxel_size_option,
)
from .cli_texts import size_of
from .core.geometry import crop, voxel_size_in
from .core.kinds import RAW, labels_of
from .core.places import Place
from .prediction.predict import predict
from .prediction.statistics import image_statistics as statistics_of
from .store.add_variables import add_variables
from .store.record import has_record
from .store.targets import open_target, stored_at
from .store.to_zarr import to_zarr

NOT_STANDARDISED = (
    "The model gets voxels as they are. If it was trained on standardised ones, as by the loader's default, add "
    "--image-statistics (of a store) or --standardize MEAN STD."
)

target_argument = click.argument("target")

box_option = click.option(
    "--bbox",
    type=int,
    nargs=6,
    metavar="X0 X1 Y0 Y1 Z0 Z1",
    help="The box in voxels; each second number is exclusive.  [default: all of it]",
)


def volume_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which box of which volume, and where the work is done."""
    for add in (cluster_options, voxel_size_option, missing_option, shape_option, archive_option, box_option):
        command = add(command)
    return command


@click.command("measure")
@target_argument
@click.argument("out", type=LocalPath())
@click.option("--label", required=True, help="The mask or labels to measure.")
@click.option("--contact", "contacts", multiple=True, help="Also the area of contact with this label; may be repeated.")
@click.option(
    "--connectivity",
    type=click.Choice([str(number) for number in IN_PLANE]),
    default="26",
    show_default=True,
    help="Neighbours that belong together: faces, and edges, and corners.",
)
@click.option("--raw/--no-raw", "with_raw", default=False, help="Whether to take the mean of raw, which must be read.")
@volume_options
def measure_command(
    target: str,
    out: Path,
    label: str,
    contacts: tuple[str, ...],
    connectivity: str,
    with_raw: bool,
    bbox: tuple[int, ...] | None,
    archive: str,
    shape: tuple[int, int, int] | None,
    missing: Missing,
    voxel_size_nm: tuple[float, float, float] | None,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Measure the objects of a mask: size, place, surface, contacts; one row each.

    TARGET is a store or an archive, OUT a new file .parquet or .csv.
    """
    ds = _opened(target, archive, shape, missing, voxel_size_nm, bbox)
    for name in (label, *contacts):
        if name not in ds:
            raise click.UsageError(f"{target} has no {name!r}; it has {', '.join(labels_of(ds)) or 'no labels'}.")
    with cluster(scheduler, workers) as client:
        table = measure(
            ds[label],
            ds[RAW] if with_raw else None,
            connectivity=int(connectivity),
            contacts={name: ds[name] for name in contacts},
            voxel_size_nm=voxel_size_in(ds),
            client=client,
            path=out,
        )
    click.echo(f"{out}: {len(table):,} objects of {label}, {table.num_voxels.sum():,} voxels in all.")


@click.command("predict")
@target_argument
@click.argument("model", type=LocalPath())
@click.argument("out", type=StorePlace(), required=False)
@click.option("--block", type=int, nargs=3, metavar="Z Y X", default=(8, 256, 256), show_default=True)
@click.option(
    "--halo", type=int, nargs=3, metavar="Z Y X", default=(0, 32, 32), show_default=True, help="Voxels around a block."
)
@click.option("--ndim", type=click.Choice(["2", "3"]), default="3", show_default=True, help="2: it takes slices.")
@click.option("--channel", type=click.IntRange(0), help="The channel to keep, from 0.  [default: the only one]")
@click.option("--standardize", type=float, nargs=2, metavar="MEAN STD", help="By which voxels are standardised.")
@click.option(
    "--image-statistics",
    is_flag=True,
    help="Standardise by mean and deviation of raw of TARGET, a store: for models of the training loader's default.",
)
@click.option("--threshold", type=float, help="Write a mask of what is at least as probable: 0 to 1.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Blocks at once.")
@click.option("--device", help="Of torch.  [default: a GPU if there is one]")
@click.option("--name", default="prediction", show_default=True, help="Name of the variable that is written.")
@click.option("--with-raw", is_flag=True, help="Keep raw in the store, too.")
@volume_options
def predict_command(
    target: str,
    model: Path,
    out: Place | None,
    block: tuple[int, int, int],
    halo: tuple[int, int, int],
    ndim: str,
    channel: int | None,
    standardize: tuple[float, float] | None,
    image_statistics: bool,
    threshold: float | None,
    batch: int,
    device: str | None,
    name: str,
    with_raw: bool,
    bbox: tuple[int, ...] | None,
    archive: str,
    shape: tuple[int, int, int] | None,
    missing: Missing,
    voxel_size_nm: tuple[float, float, float] | None,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Run a model over a volume, and keep what it predicts as a store.

    TARGET is a store or an archive, MODEL a checkpoint folder of torch_em, a TorchScript file or one of torch.export,
    OUT the store to write. What the model returns is taken as probabilities: cut to 0 to 1, and kept as 0 to 255. A
    model that returns logits needs a Sigmoid first. Without OUT, the prediction is added to TARGET, a store. After an
    interruption, the same command resumes.

    The model gets the grey values as they are, unless --image-statistics or --standardize says otherwise.
    """
    if image_statistics and standardize:
        raise click.UsageError("Give --image-statistics or --standardize, not both.")
    if out is None and (bbox or with_raw):
        raise click.UsageError("Give OUT, a new store, to write a box, or raw with the prediction.")
    place = stored_at(target)
    if out is None and (place is None or not has_record(place)):
        raise click.UsageError(f"{target} is no store of liver_dask, to which a prediction can be added; give OUT.")
    if image_statistics and (place is None or not has_record(place)):
        raise click.UsageError(f"{target} is no store, so has no --image-statistics; give --standardize MEAN STD.")
    if with_raw and name == RAW:
        raise click.UsageError(f"{RAW} is the name of the image; give the prediction another --name.")
    ds = _opened(target, archive, shape, missing, voxel_size_nm, bbox)
    if RAW not in ds:
        raise click.UsageError(f"{target} has no {RAW!r} to predict from.")
    numbers = statistics_of(place) if image_statistics and place is not None else standardize
    with cluster(scheduler, workers) as client:
        predicted = predict(
            model, ds[RAW], block=block, halo=halo, ndim=int(ndim), channel=channel, preprocess=numbers,
            threshold=threshold, device=device, batch=batch,
        )  # fmt: skip
        if numbers is None:
            click.echo(NOT_STANDARDISED, err=True)
        if out is None:
            add_variables(target, {name: predicted}, client=client)
            click.echo(f"{name} was added to {target}.")
            return
        to_zarr(ds[[RAW] if with_raw else []].assign({name: predicted}), out, client=client)
    click.echo(f"{out} is complete: {size_of(out)} on disk.")


def _opened(
    target: str,
    archive: str,
    shape: tuple[int, int, int] | None,
    missing: Missing,
    voxel_size_nm: tuple[float, float, float] | None,
    bbox: tuple[int, ...] | None,
) -> xr.Dataset:
    """Open a box of a store or an archive."""
    refuse_options_for_store(target)
    options: dict[str, Any] = {"shape": shape, "missing": missing, "voxel_size_nm": voxel_size_nm}
    return crop(open_target(target, archive, **options), bbox)
