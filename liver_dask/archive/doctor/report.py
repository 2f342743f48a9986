"""The report of an examination: for a person, as text, and for a machine, as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from ...core.geometry import Shape
from ..facts import FORMAT, KEY
from .headers import SliceFacts
from .server import Latency, ServerFacts, Speed
from .survey import FileTable, runs

MOST_RUNS = 6
"""Runs of slices that are told in a text; the JSON has all."""

MOST_PROBLEMS = 40

WORDS = {
    "format": "{}",
    "shape": "{}",
    "dtype": "{}",
    "byte_order": "{}-endian",
    "compression": "{}",
    "layout": "",  # what follows it says the same
    "rows_per_strip": "rows in a strip: {}",
    "tile": "tiles of {}",
    "pages": "pages: {}",
    "chunks": "chunks of {}",
}
"""Texts of the facts about a slice; of others, the name precedes the value."""


@dataclass(frozen=True)
class ArchiveReport:
    """What `examine` found.

    Attributes:
        archive: Name of the archive.
        source: Its address, without credentials.
        shape: Voxels (z, y, x) of the description.
        date: When it was examined, as ISO 8601 in UTC.
        tables: The files of each variable.
        slices: Headers of some slices.
        whole: Values of the slices that were read whole.
        server: What the web server can do; None for other sources.
        latency: How fast small requests were answered, while all files were asked for.
        watched: The same for requests that were sent for some minutes to see how many stall, or None.
        speed: Bytes per second.
        traffic: Requests, bytes, retries and stalls of the whole examination.
        problems: What differs from the description, or is missing, one sentence each.
        notes: What else is worth knowing.
    """

    archive: str
    source: str
    shape: Shape
    date: str
    tables: tuple[FileTable, ...]
    slices: tuple[SliceFacts, ...]
    whole: tuple[SliceFacts, ...]
    server: ServerFacts | None
    latency: Latency
    watched: Latency | None
    speed: Speed
    traffic: dict[str, float]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all files are there, and all that was examined is as described."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return the whole report as plain JSON."""
        return {
            KEY: FORMAT,
            "archive": self.archive,
            "source": self.source,
            "shape": list(self.shape),
            "date": self.date,
            "ok": self.ok,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "variables": {table.name: table.as_json() for table in self.tables},
            "slices": [one.as_json() for one in self.slices],
            "whole_slices": [one.as_json() for one in self.whole],
            "server": self.server.as_json() if self.server else None,
            "latency": _fields(self.latency),
            "watched": _fields(self.watched) if self.watched else None,
            "bytes_per_second": _fields(self.speed),
            "traffic": self.traffic,
        }

    def __str__(self) -> str:
        """Return the report as text."""
        z, y, x = self.shape
        lines = [f"{self.archive} at {self.source}, {z} slices of {y} x {x} pixels, examined {self.date}", ""]
        lines += _rows(("variable", "there", "missing", "smallest", "median", "largest", "in all"), self._table())
        lines += ["", "Headers of slices (from the first to the last, and of the smallest and the largest file):"]
        lines += _headers(self.slices)
        if self.whole:
            lines += ["", "Slices that were read and decoded whole:"]
            lines += [f"  {one.variable}, slice {one.z}: {_facts(one.facts) or 'failed'}" for one in self.whole]
        lines += ["", *self._server(), ""]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"PROBLEM: {problem}" for problem in self.problems[:MOST_PROBLEMS]]
        if len(self.problems) > MOST_PROBLEMS:
            lines.append(f"and {len(self.problems) - MOST_PROBLEMS} more problems; --json has all.")
        count = len(self.problems)
        end = f"{count} problem{'s' * (count > 1)}, see above." if count else "All that was examined is as described."
        return "\n".join([*lines, end])

    def _table(self) -> list[tuple[str, ...]]:
        rows = []
        for table in self.tables:
            sizes = table.summary()
            texts = [decimal(sizes[key]) if sizes else "-" for key in ("min", "median", "max", "total")]
            rows.append((table.name, str(len(table.present)), str(len(table.missing)), *texts))
        return rows

    def _server(self) -> list[str]:
        rows = []
        if self.server is None:
            rows.append(("web server", "not asked: the source is none"))
        else:
            told = {
                "ranges": (self.server.ranges, "yes (206, Content-Range is right)", "NO"),
                "several ranges at once": (self.server.multi_range, "yes", "no"),
                "HEAD": (self.server.head, "yes", "no; the first byte of each file was requested instead"),
                "ETag, Last-Modified": (self.server.is_steady, *_tags(self.server)),
            }
            rows += [(name, "not asked" if of is None else yes if of else no) for name, (of, yes, no) in told.items()]
            rows[-1] = (rows[-1][0], "neither") if self.server.is_steady is None else rows[-1]
        rows.append(("small requests", _latency(self.latency)))
        if self.watched:
            rows.append(("watched for stalls", _latency(self.watched)))
        speed = "not measured"
        if self.speed.of_one or self.speed.of_all:
            one, together = ("-" if rate is None else f"{decimal(int(rate))}/s" for rate in _rates(self.speed))
            speed = f"{one} over one connection, {together} over {self.speed.connections} together"
        rows.append(("speed", speed))
        fetched, seconds = decimal(int(self.traffic["bytes"])), self.traffic["seconds"]
        again = f"{self.traffic['retries']:.0f} repeated, {self.traffic['stalls']:.0f} stalled"
        rows.append(("this examination", f"{self.traffic['requests']:.0f} requests ({again}), {fetched}, {seconds} s"))
        width = max(len(name) for name, _ in rows)
        return [f"{name:{width}}  {text}" for name, text in rows]


def ranges_text(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, such as `0-3, 7`, of limited length."""
    found = [f"{first}-{last}" if last > first else str(first) for first, last in runs(numbers)]
    more = f" and {len(found) - MOST_RUNS} more runs" if len(found) > MOST_RUNS else ""
    return ", ".join(found[:MOST_RUNS]) + more


def _fields(of: Any) -> dict[str, Any]:
    return dict(vars(of))


def _rates(speed: Speed) -> tuple[float | None, float | None]:
    return speed.of_one, speed.of_all


def _tags(server: ServerFacts) -> tuple[str, str]:
    names = " and ".join(name for name, of in (("ETag", server.etag), ("date", server.last_modified)) if of)
    return f"{names}, the same in two answers", f"{names}, NOT the same in two answers about one file"


def _latency(latency: Latency) -> str:
    stalled = f"; {latency.stalls} of {latency.requests} requests stalled"
    return f"answered in {1e3 * latency.median:.0f} ms (median), {1e3 * latency.p90:.0f} ms (90 %){stalled}"


def _facts(facts: dict[str, Any]) -> str:
    """Return facts in words."""
    texts = []
    for key, value in facts.items():
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        if isinstance(value, list):
            text = (" x " if key in ("shape", "tile", "chunks") else " ").join(map(str, value)) or "none"
        texts.append(WORDS.get(key, f"{key} {{}}").format(f"{100 * value:.2f} %" if key == "labelled" else text))
    return ", ".join(text for text in texts if text)


def _headers(found: Sequence[SliceFacts]) -> list[str]:
    """Describe slices; those of a variable that have the same headers share a line."""
    lines: dict[tuple[str, str], list[int]] = {}
    for one in found:
        text = _facts({key: value for key, value in one.facts.items() if value is not None}) or "cannot be read"
        lines.setdefault((one.variable, text), []).append(one.z)
    return [f"  {name} {', '.join(map(str, z))}: {text}" for (name, text), z in lines.items()] or ["  none"]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(f"{text:{width}}" if i == 0 else f"{text:>{width}}" for i, (text, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in (head, *rows))
    ]
