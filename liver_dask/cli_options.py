"""Options and arguments that several commands have, and the cluster that they name."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import dask
from click.core import ParameterSource

from .archive.archives import EMPIAR_13356, archives
from .core.addresses import is_address, without_secrets
from .core.places import place_of
from .store.record import has_record
from .store.targets import stored_at

if TYPE_CHECKING:
    from distributed import Client, LocalCluster


CONNECT_SECONDS = 5
NO_LABEL = "none"
IS_STORED_AS = {"voxel-size": "voxel_size_nm"}
"""Names of parameters whose options are called otherwise."""

LOG_LEVELS = {
    "distributed": "CRITICAL",
    "distributed.nanny.memory": "WARNING",
    "distributed.worker.memory": "WARNING",
    "tornado.application": "CRITICAL",
    "asyncio": "CRITICAL",
}
"""Log levels for a local cluster. Stopped workers log tracebacks of their tasks; this package reports the errors."""

archive_option = click.option(
    "--archive",
    default=EMPIAR_13356.name,
    show_default=True,
    metavar="NAME|FILE.toml",
    help=f"Which archive: {', '.join(archives())}, or a file that describes another.",
)

source_option = click.option(
    "--source", help="Where it is: any fsspec URL, or a local folder.  [default: the address in its description]"
)

shape_option = click.option(
    "--shape",
    type=int,
    nargs=3,
    metavar="Z Y X",
    help="Voxels of the volume, if they are other than described.",
)

voxel_size_option = click.option(
    "--voxel-size",
    "voxel_size_nm",
    type=float,
    nargs=3,
    metavar="Z Y X",
    help="Size of a voxel in nm, if it is not described.",
)

target_argument = click.argument("target", required=False)


def label_option(does: str, default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--label`, which gives the command the chosen `labels`, or None if it is not given.

    Args:
        does: What a chosen label is for.
        default: Which labels are chosen without the option.
    """
    told = f"A label to {does}; may be repeated. none: raw alone.  [default: {default}]"
    return click.option("--label", "labels", multiple=True, callback=_labels, metavar="NAME|none", help=told)


def _labels(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...] | None:
    if NO_LABEL in given and len(set(given)) > 1:
        raise click.BadParameter(f"{NO_LABEL} means no label at all; leave the others out, or {NO_LABEL}.")
    return tuple(name for name in given if name != NO_LABEL) if given else None


missing_option = click.option(
    "--missing",
    type=click.Choice(["raise", "zeros"]),
    default="raise",
    show_default=True,
    help="What becomes of a slice whose file does not exist.",
)


class LocalPath(click.Path):
    """A path on this machine: not empty, which would be the current folder, and no URL, which would create folders."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; an invalid one is wrong usage."""
        if not str(value):
            self.fail("the path is empty; give a folder on this machine.", param, ctx)
        if is_address(str(value)):
            self.fail(f"{without_secrets(str(value))} is an address; give a folder on this machine.", param, ctx)
        return super().convert(value, param, ctx)


class StorePlace(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.2
    """The place of a store: a path on this machine, or an address in object storage."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the place; an invalid one is wrong usage."""
        if not str(value):
            self.fail("the path is empty; give a folder, or an address such as s3://bucket/crop.zarr.", param, ctx)
        if isinstance(value, str) and not is_address(value):
            return Path(value)
        return place_of(value)


def refuse_options_for_store(target: str | None) -> None:
    """Refuse options about an archive if the target is a store, where they would have no effect."""
    context = click.get_current_context()
    given = [
        f"--{name}"
        for name in ("archive", "shape", "missing", "voxel-size")
        if context.get_parameter_source(IS_STORED_AS.get(name, name)) is ParameterSource.COMMANDLINE
    ]
    place = stored_at(target) if target is not None and given else None
    if place is not None and has_record(place):
        other = "; `liver-dask annotate` changes the voxel size of a store" * (given[0] == "--voxel-size")
        raise click.UsageError(f"{target} is a store, for which {given[0]} has no effect; leave {given[0]} out{other}.")


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that define where the tasks run."""
    scheduler = click.option("--scheduler", metavar="ADDRESS", help="Work on the dask cluster of this scheduler.")
    workers = click.option("--workers", type=click.IntRange(1), help="Work in so many processes of this machine.")
    return scheduler(workers(command))


@contextmanager
def cluster(scheduler: str | None, workers: int | None) -> Iterator["Client | None"]:
    """Connect to a scheduler, or start a local cluster.

    Args:
        scheduler: Address of a dask scheduler.
        workers: Number of processes of a local cluster.

    Yields:
        The client, or None if neither argument is given.
    """
    if scheduler is None and workers is None:
        yield None
        return
    if scheduler is not None and workers is not None:
        raise click.UsageError("Give either --scheduler or --workers.")
    from distributed import Client

    with ExitStack() as stack:
        try:
            where = scheduler or stack.enter_context(_local_cluster(workers))
            client = stack.enter_context(Client(where, timeout=CONNECT_SECONDS))
        except (OSError, ValueError) as error:
            where = without_secrets(scheduler or "this machine")
            reason = f" ({error})" if where == (scheduler or where) else ""  # which may quote a part of a password
            raise click.ClickException(f"There is no cluster at {where}{reason}.") from error
        yield client


@contextmanager
def _local_cluster(workers: int | None) -> Iterator["LocalCluster"]:
    """Start worker processes on this machine that ignore Ctrl-C. This process receives it and ends them."""
    from distributed import LocalCluster

    click.echo(f"Starting {workers} processes." if workers != 1 else "Starting 1 process.", err=True)
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    os.environ["DASK_INTERNAL_INHERIT_CONFIG"] = dask.config.serialize({"logging": LOG_LEVELS})  # for the workers
    resource_tracker.ensure_running()  # its start unblocks SIGINT, so it must come first
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the workers inherit the blocked signal
    try:
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    except BaseException:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        raise
    with cluster:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a pending Ctrl-C is delivered now
        yield cluster
