"""Tables of what was measured, as Markdown and as JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .measure import Measurement, Table
from .sides import SIDES

HEAD = ("who", "voxels", "{unit}, median (min to max)", "times ours", "MB fetched", "requests", "peak memory, MB")


def markdown(tables: Sequence[Table], environment: Mapping[str, str]) -> str:
    """All tables, and where they were measured."""
    parts = ["# Benchmark\n", *(f"- {name}: {value}" for name, value in environment.items()), "", EXPLANATION]
    return "\n".join([*parts, summary_of(tables), *(table_of(table) for table in tables)])


EXPLANATION = """\
Each side runs in a process of its own, in turn with the others, and its imports are not in the time. "Times ours" is
the ratio of the medians. Bytes (of bodies) and requests are counted by the server; memory is that of the process and
of all that it started, shared pages in each. "Right" are voxels that all equal those that tifffile and Pillow read.
"""


def summary_of(tables: Sequence[Table]) -> str:
    """The medians of all tables as one: a line for each, a column for each side."""
    sides = [side for side in SIDES if any(found.side == side for table in tables for found in table.measurements)]
    lines = [
        "## In short\n",
        as_row(["", *(SIDES[side].title for side in sides)]),
        as_row(["---", *["---:"] * len(sides)]),
    ]
    for table in tables:
        found = {of.side: of for of in table.measurements}
        shown = [_in_short(found[side]) if side in found else "" for side in sides]
        lines.append(as_row([f"{table.row}, {table.case} ({table.unit})", *shown]))
    return "\n".join(lines) + "\n"


def _in_short(found: Measurement) -> str:
    if found.median is None:
        return found.wrong
    return f"{found.median:.3g}" + (" (wrong)" if found.wrong else "")


def table_of(table: Table) -> str:
    """One table with its heading, its bound, and who is not in it."""
    ours = next((found.median for found in table.measurements if found.side == "ours" and not found.wrong), None)
    lines = [
        f"## {table.row}: {table.case}\n",
        f"{table.title[0].upper()}{table.title[1:]}. Server: {table.server}.\n",
        as_row([name.format(unit=table.unit) for name in HEAD]),
        as_row(["---", "---", *["---:"] * (len(HEAD) - 2)]),
        *(as_row(cells(found, ours)) for found in table.measurements),
        f"\nBound: {table.bound}.",
    ]
    lines += [f"Not in it: {who} ({why})." for who, why in table.absent.items()]
    return "\n".join(lines) + "\n"


def cells(found: Measurement, ours: float | None) -> list[str]:
    """A side's row of a table."""
    title = SIDES[found.side].title + (f" ({found.note})" if found.note else "")
    voxels = "right" if not found.wrong else f"**{found.wrong}**"
    median = found.median
    if median is None:
        return [title, voxels, "", "", "", "", f"{found.peak:.0f}"]
    ratio = f"{median / ours:.3g}" if ours else ""
    spread = f" ({min(found.seconds):.3g} to {max(found.seconds):.3g})" if len(found.seconds) > 1 else ""
    fetched, requests = statistics.median(found.megabytes), statistics.median(found.requests)
    return [title, voxels, f"{median:.3g}{spread}", ratio, f"{fetched:.4g}", f"{requests:.0f}", f"{found.peak:.0f}"]


def as_row(entries: Sequence[str]) -> str:
    """A line of a table; bars in an entry would end it."""
    return "| " + " | ".join(entry.replace("|", "/").replace("\n", " ") for entry in entries) + " |"


def as_json(tables: Sequence[Table], environment: Mapping[str, str]) -> dict[str, Any]:
    """The same, with the seconds of each round."""
    told = []
    for table in tables:
        sides = [
            {"title": SIDES[found.side].title, "median": found.median, **asdict(found)} for found in table.measurements
        ]
        told.append({**asdict(table), "measurements": sides})
    return {"environment": dict(environment), "tables": told}
