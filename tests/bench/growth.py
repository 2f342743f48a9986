"""How costs grow with the volume, with workers, and with the number of tasks: `python -m tests.bench growth`.

`to_zarr`, `ds.liver.fractions()`, `add_pyramid` and `measure` of a box of 1, 2, 4 and 8 times the slices, by 1 and 2
workers of a dask cluster, each in a process of its own: seconds, most memory of all processes, and bytes (fetched from
the archive, or on disk). And what dask's scheduler bears at the number of tasks of the full volume, with 1, 10 and 100
workers that only wait (see scheduler.py).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.build_archive import SIZE
from helpers.paths import ROOT

from .archive import QUICK_SIZE, BenchArchive, build, default_folder
from .environment import environment
from .processes import Task, run
from .report import as_row
from .servers import Counting, serving

TITLE = "how to_zarr, fractions, add_pyramid, measure and dask's scheduler grow"
TIMES = (1, 2, 4, 8)
WORKERS = (1, 2)
SIMULATED = (1, 10, 100)
WORKS = ("fractions", "to_zarr", "add_pyramid", "measure")
FIRST_ROW, FIRST_COLUMN = 1493, 2219
ROWS, COLUMNS, SLICES = 1024, 2048, 8
QUICK_ROWS, QUICK_COLUMNS = 512, 1024
BYTES_OF_A_VOXEL = 5
LIMIT, LIMIT_OF_SCHEDULER = 900, 1800
ALL_SLICES, QUICK_SLICES = 597, 60


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        work: What was done.
        workers: By how many workers of one thread.
        slices: Of how many slices.
        gigabytes: Voxels of all variables that it was about.
        seconds: How long it took; None if it failed.
        peak: Most megabytes of all processes together.
        megabytes: Fetched from the archive by `to_zarr` and `fractions`; on disk afterwards, of the others.
        error: Why it failed.
    """

    work: str
    workers: int
    slices: int
    gigabytes: float
    seconds: float | None
    peak: float
    megabytes: float
    error: str = ""


def points(archive: BenchArchive, server: Counting, quick: bool, scratch: Path) -> Iterator[Point]:
    """Measure all works; one process after the other."""
    rows, columns = (QUICK_ROWS, QUICK_COLUMNS) if quick else (ROWS, COLUMNS)
    y, x = archive.at(FIRST_ROW), archive.at(FIRST_COLUMN)
    for workers in WORKERS:
        for times in TIMES:
            slices = times * SLICES
            store = scratch / f"{workers}-{times}.zarr"
            box = [x, x + columns, y, y + rows, 0, slices]
            settings = {"box": box, "store": str(store), "workers": workers}
            for work in WORKS:
                server.sent()
                out = scratch / f"{work}-{workers}-{times}"
                found = run(Task("growing", work, server.url, archive.shape, str(out), settings), LIMIT)
                shutil.rmtree(out)
                of_slice = 3 * archive.size**2 if work == "fractions" else BYTES_OF_A_VOXEL * rows * columns
                fetched = server.sent().bytes if work in ("fractions", "to_zarr") else size_of(store)
                of = (slices, slices * of_slice / 1e9)
                yield Point(work, workers, *of, found.seconds, found.peak / 1e6, fetched / 1e6, found.error)
            shutil.rmtree(store, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files below; what is linked twice counts once."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({file.st_ino: file.st_size for file in files}.values())


def scheduler(quick: bool) -> Iterator[dict[str, Any]]:
    """What dask's scheduler bears, for each number of workers."""
    for workers in SIMULATED:
        slices = QUICK_SLICES if quick else ALL_SLICES
        options = ["--workers", str(workers), "--slices", str(slices)]
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.scheduler", *options]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_OF_SCHEDULER, check=True
            )
            yield json.loads(done.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, IndexError, ValueError) as error:
            yield {"workers": workers, "slices": slices, "error": f"{type(error).__name__}: {error}"}


def markdown(found: Sequence[Point], tasks: Sequence[dict[str, Any]], about: dict[str, str]) -> str:
    """Two tables."""
    lines = [
        "# Growth\n",
        *(f"- {name}: {value}" for name, value in about.items()),
        "\n## With the volume and workers\n",
    ]
    head = (
        "work",
        "workers",
        "slices",
        "GB of voxels",
        "s",
        "MB/s of voxels",
        "peak memory, MB",
        "MB fetched or on disk",
    )
    lines += [as_row(head), as_row(["---", *["---:"] * (len(head) - 1)])]
    for point in found:
        seconds = point.error or f"{point.seconds:.1f}"
        rate = f"{1000 * point.gigabytes / point.seconds:.0f}" if point.seconds else ""
        numbers = [str(point.workers), str(point.slices), f"{point.gigabytes:.2f}", seconds, rate]
        lines.append(as_row([point.work, *numbers, f"{point.peak:.0f}", f"{point.megabytes:.1f}"]))
    names = list(dict.fromkeys(name for row in tasks for name in row))
    lines += ["\n## Dask's scheduler, with workers that only wait\n", as_row(names), as_row(["---:"] * len(names))]
    lines += [as_row([str(row.get(name, "")) for name in names]) for row in tasks]
    return "\n".join(lines) + "\n"


def main(
    quick: bool,
    folder: Path | None,
    scratch: Path | None,
    json_file: Path | None,
    markdown_file: Path | None,
    figures: Path | None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> int:
    """Measure, and write tables and figures. Returns 1 if something failed."""
    size = QUICK_SIZE if quick else SIZE
    built = (folder or default_folder(size)).absolute()
    told = f"{built}, {build(built, size)}"
    found: list[Point] = []
    tasks: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=scratch, prefix="liver_dask-growth-") as temporary:
        Path(temporary).chmod(0o755)  # nginx reads it as another user
        archive = BenchArchive(built, Path(temporary, "archive"), max(TIMES) * SLICES)
        archive.link()
        archive.warm()
        about = environment(f"{told}; slices of {archive.size} x {archive.size}")
        with serving("lan", archive.folder) as server:
            for point in points(archive, server, quick, Path(temporary)):
                found.append(point)
                say(json.dumps(asdict(point)))
                write(found, tasks, about, json_file, markdown_file)  # an interrupted run leaves what was measured
    for row in scheduler(quick):
        tasks.append(row)
        say(json.dumps(row))
        write(found, tasks, about, json_file, markdown_file)
    if not markdown_file:
        print(markdown(found, tasks, about))
    if figures:
        from .figures import draw

        figures.mkdir(parents=True, exist_ok=True)
        draw(found, tasks, figures)
    return int(any(point.error for point in found) or any("error" in row for row in tasks))


def write(
    found: Sequence[Point],
    tasks: Sequence[dict[str, Any]],
    about: dict[str, str],
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Write the files that are asked for."""
    if markdown_file:
        markdown_file.write_text(markdown(found, tasks, about))
    if json_file:
        told = {"environment": about, "points": [asdict(point) for point in found], "scheduler": list(tasks)}
        json_file.write_text(json.dumps(told, indent=1))
