"""Measure this package next to what one would use instead, each on the same archive in the same run.

`python -m tests.bench` from the root of the project runs all rows; `python -m tests.bench box window` some of them;
`--quick` takes some minutes. It needs `pip install -e ".[train,serve,test]" aiohttp`; nginx is used if it is installed,
and so are virtual-tiff and miao-io. `python -m tests.bench growth` tells how costs grow (see growth.py).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from helpers.build_archive import SIZE

from . import growth
from .archive import QUICK_SIZE, BenchArchive, build, default_folder
from .environment import environment
from .measure import Table, measure
from .report import as_json, markdown, table_of
from .rows import ROWS
from .servers import PROFILES
from .sides import SIDES


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure, by default all; see --list")
    parser.add_argument("--list", action="store_true", help="tell the rows, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="smaller slices and boxes, fewer rounds")
    parser.add_argument("--server", choices=PROFILES, help="only the tables with this server")
    parser.add_argument("--rounds", type=int, help="how often each side runs; by default, each table has its own")
    parser.add_argument("--limit", type=float, help="stop a side after so many seconds, where its table gives it more")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[], help="only these, ours among them")
    parser.add_argument("--archive", type=Path, help="folder of the archive, which is built there if it is not there")
    parser.add_argument("--scratch", type=Path, help="folder for what is written and removed, some GB")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    parser.add_argument("--figures", type=Path, help="folder for the figures of `growth`")
    return parser


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 1 if a row of ours failed or was wrong."""
    parser = arguments()
    given = parser.parse_args(argv)
    if given.list:
        for row in ROWS.values():
            print(f"{row.name:12}{row.title.format(size='n')}")
        print(f"{'growth':12}{growth.TITLE}")
        return 0
    if unknown := [name for name in given.rows if name not in (*ROWS, "growth")]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)} and growth")
    if given.scratch:
        given.scratch.mkdir(parents=True, exist_ok=True)
    if "growth" in given.rows:
        if len(given.rows) > 1:
            parser.error("growth is measured alone")
        return growth.main(given.quick, given.archive, given.scratch, given.json, given.markdown, given.figures)
    size = QUICK_SIZE if given.quick else SIZE
    built = (given.archive or default_folder(size)).absolute()
    say(f"The archive is {built}.")
    told = f"{built}, {build(built, size)}"
    with tempfile.TemporaryDirectory(dir=given.scratch, prefix="liver_dask-bench-") as folder:
        Path(folder).chmod(0o755)  # nginx reads it as another user
        archive = BenchArchive(built, Path(folder, "archive"))
        archive.link()
        archive.warm()
        about = environment(f"{told}; slices of {archive.size} x {archive.size}")
        tables = []
        for table in run_rows(given, archive, Path(folder)):
            tables.append(table)
            say(table_of(table))
            write(tables, about, given)  # an interrupted run leaves what was measured
    if not given.markdown:
        print(markdown(tables, about))
    wrong = [f"{table.row}: {table.case}" for table in tables if not table.ours_is_right]
    if wrong:
        say(f"Ours failed or is wrong: {', '.join(wrong)}.")
    return int(bool(wrong))


def write(tables: list[Table], about: dict[str, str], given: argparse.Namespace) -> None:
    """Write the files that are asked for."""
    if given.markdown:
        given.markdown.write_text(markdown(tables, about))
    if given.json:
        given.json.write_text(json.dumps(as_json(tables, about), indent=1))


def run_rows(given: argparse.Namespace, archive: BenchArchive, scratch: Path) -> Iterator[Table]:
    """Measure the cases of some rows, one after the other; what a row leaves is removed."""
    for name in given.rows or ROWS:
        row = ROWS[name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{name}-") as folder:
            Path(folder).chmod(0o755)
            for case in row.cases(archive, given.quick):
                if given.server in (None, case.server):
                    say(f"{name}, {case.name}:")
                    limit = min(case.limit, given.limit or case.limit)
                    case = replace(case, rounds=given.rounds or case.rounds, limit=limit)
                    yield measure(row, case, archive, Path(folder), say, given.sides)
        say(f"{name} took {time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    raise SystemExit(main())
