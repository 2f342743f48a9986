"""The command that examines an archive."""

import json
import sys
from pathlib import Path

import click

from .archive.archives import find_archive
from .archive.doctor.examine import examine
from .archive.facts import check_facts_path, save_facts
from .cli_options import LocalPath, archive_option, label_option, shape_option, target_argument
from .core.kinds import RAW
from .store.record import has_record
from .store.targets import stored_at


@click.command("doctor")
@target_argument
@archive_option
@shape_option
@label_option("examine", "as described")
@click.option(
    "--slices", type=click.IntRange(0), default=3, show_default=True, help="Slices whose headers are read, of each."
)
@click.option("--deep", type=click.IntRange(0), default=0, metavar="N", help="Read and decode N whole slices of each.")
@click.option(
    "--stalls",
    "minutes",
    type=click.FloatRange(0, 24 * 60),
    default=0,
    metavar="MINUTES",
    help="Watch so long how many small requests are not answered.",
)
@click.option("--connections", type=click.IntRange(1, 16), help="The most requests at once.  [default: 16]")
@click.option("--json", "as_json", is_flag=True, help="Print all facts as JSON.")
@click.option("--save", type=LocalPath(dir_okay=False), help="Keep all facts in this file, for --facts of `download`.")
def doctor_command(
    target: str | None,
    archive: str,
    shape: tuple[int, int, int] | None,
    labels: tuple[str, ...] | None,
    slices: int,
    deep: int,
    minutes: float,
    connections: int | None,
    as_json: bool,
    save: Path | None,
) -> None:
    """Examine an archive: whether its files are there, and as its description says.

    TARGET is the address of the archive; the default is that in its description. Each file is asked for by its headers,
    and the headers in some files of each variable are read. Of the default archive that is about 2400 small requests
    and 25 MB, 20 MB of them to measure the speed; a few minutes from far away. --deep N adds N times 0.9 GB. There are
    at most 16 requests at once, and after a few equal failures no more.

    The exit code is 0 if all is as described, and 1 if anything differs or is missing.
    """
    place = stored_at(target) if target is not None else None
    if place is not None and has_record(place):
        raise click.UsageError(f"{target} is a store, not an archive; `liver-dask verify {target}` examines it.")
    if labels and RAW in labels:
        raise click.UsageError(f"{RAW} is always examined; leave out --label {RAW} (--label none: {RAW} alone).")
    if save:
        check_facts_path(save)
    report = examine(
        target,
        find_archive(archive),
        shape=shape,
        labels=labels,
        connections=connections,
        slices=slices,
        deep=deep,
        stall_minutes=minutes,
    )
    document = report.as_json()
    click.echo(json.dumps(document, indent=1) if as_json else report)
    if save:
        save_facts(document, save)
    if not report.ok:
        sys.exit(1)
