"""`examine`: ask an archive everything that reading it relies on, and say whether it is as its description says."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...core.errors import InvalidArgumentError
from ...core.metrics import Trace, trace
from ..archives import EMPIAR_13356, find_archive
from ..dataset import prepare
from ..description import Archive
from ..reader import VolumeReader
from ..remote.http_transport import SMALL_FILE
from .asking import Asker
from .headers import SliceFacts, choose, read_headers, read_smallest, read_whole, spread, unlike_others
from .report import ArchiveReport, ranges_text
from .server import Latency, ServerFacts, Speed, ask_server, measure_speed, watch_for_stalls
from .survey import FileTable, look_first, survey

MOST_AT_ONCE = 16
"""Most requests at once, whatever the configuration says: an examination is no reason to burden an archive."""

NEAR = ("file", "local", "memory")
"""Protocols of sources on this machine; their speed is not measured."""


def examine(
    source: str | os.PathLike[str] | None = None,
    archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
    *,
    shape: Sequence[int] | None = None,
    labels: str | Iterable[str] | None = None,
    connections: int | None = None,
    slices: int = 3,
    deep: int = 0,
    stall_minutes: float = 0,
    progress: bool = True,
) -> ArchiveReport:
    """Ask an archive everything that reading it relies on, and compare the answers with its description.

    Each file of each variable is asked for, by its headers alone. Of some slices of each variable, the headers in the
    file are read. Of a web server it is found out what it can do, and how fast it is. There are at most 16 requests at
    once. Of the default archive this takes about 2400 requests and 25 MB.

    Args:
        source: Where the archive is, see `open_archive`; None takes the address in its description.
        archive: The archive, see `open_archive`.
        shape: Voxels (z, y, x) of the whole volume, if the shape differs from the description.
        labels: The labels to examine; the default is those that the description selects.
        connections: The maximum number of concurrent requests, at most 16.
        slices: Slices of each variable whose headers are read, from the first to the last; the smallest and the largest
            file are read in addition.
        deep: Slices of each variable that are read and decoded whole, to look at all their values.
        stall_minutes: Minutes for which small requests are sent, a few at once, to see how many are not answered.
        progress: Whether to show the progress, if standard error is a terminal.

    Returns:
        The report. `print(report)` shows it, `report.ok` says whether all is as described, and `report.as_json()` has
        all facts.

    Raises:
        InvalidArgumentError: There is no such archive, or an argument is not valid. (ValueError)
        SliceNotFoundError: No file of the archive is at this address. (FileNotFoundError)
        FormatError: There are only web pages at this address. (ValueError)
        RemoteError: The source does not answer, or refuses to. (OSError)
    """
    for name, value in {"slices": slices, "deep": deep, "stall_minutes": stall_minutes}.items():
        if not 0 <= value < float("inf"):
            raise InvalidArgumentError(f"{name}={value!r} must be a number of at least 0.")
    opened = prepare(
        find_archive(archive), source, shape=shape, labels=labels, connections=connections,
        chunk_rows=None, cache_dir=None, cache_raw_gb=None, voxel_size_nm=None, missing="raise",
    )  # fmt: skip
    given = [window.read for window in opened.windows.values() if isinstance(window.read, VolumeReader)]
    most = min(given[0].source.connections, MOST_AT_ONCE)
    asked = replace(given[0].source, connections=most, cache_dir=None, cache_raw_bytes=0)
    readers = {reader.name: replace(reader, source=asked) for reader in given}
    return _Examination(opened.archive, readers, progress).run(slices, deep, stall_minutes)


class _Examination:
    """One examination of an archive."""

    def __init__(self, archive: Archive, readers: Mapping[str, VolumeReader], progress: bool) -> None:
        self._archive, self._readers, self._progress = archive, readers, progress
        self._source = next(iter(readers.values())).source
        self._is_near = "://" not in self._source.url or self._source.url.startswith(tuple(f"{p}://" for p in NEAR))

    def run(self, slices: int, deep: int, stall_minutes: float) -> ArchiveReport:
        names, date = list(self._readers), datetime.now(UTC).isoformat(timespec="seconds")
        asker = Asker(self._source)
        with trace() as traced:
            with trace() as small:
                known = look_first(asker, self._archive, names, self._is_near)
                there = [slot.path for slot, answer in known.items() if getattr(answer, "size", 0)]
                server = ask_server(asker, there[0]) if self._source.is_http and there else None
                asker.method = "HEAD" if server and server.head else "GET"
                count = len(names) * self._archive.shape[0] - len(known)
                with self._shown("Asking for each file", count) as advance:
                    tables = survey(asker, self._archive, names, known, advance)
            latency = Latency.of(asker.seconds, small.requests, small.stalls)
            speed = self._speed(asker, tables, server)
            headers = self._headers(tables, server, slices)
            whole = self._whole(tables, server, deep)
            watched = None
            if stall_minutes and not self._is_near:
                paths = [self._readers[table.name].variable.path(z) for table in tables for z in table.with_bytes]
                watched = watch_for_stalls(asker, paths, stall_minutes)
        problems = [*_problems_of_files(tables, self._readers), *_problems_of(server, tables)]
        problems += [one.problem for one in (*headers, *whole) if one.problem]
        notes = [*_notes_of(server), *unlike_others(headers)]
        notes += [one.note for one in (*headers, *whole) if one.note]
        return ArchiveReport(
            self._archive.name, self._source.url, self._archive.shape, date, tuple(tables), tuple(headers),
            tuple(whole), server, latency, watched, speed, _rounded(traced), tuple(problems), tuple(notes),
        )  # fmt: skip

    def _speed(self, asker: Asker, tables: Sequence[FileTable], server: ServerFacts | None) -> Speed:
        sizes = [(table.sizes[z] or 0, table.name, z) for table in tables for z in table.with_bytes]
        if self._is_near or not sizes or (server and not server.ranges):
            return Speed()
        size, name, z = max(sizes)
        return measure_speed(asker, self._readers[name].variable.path(z), size)

    def _headers(self, tables: Sequence[FileTable], server: ServerFacts | None, count: int) -> list[SliceFacts]:
        chosen = {table.name: _readable(table, choose(table, count), server) for table in tables}
        found = []
        with self._shown("Reading headers", sum(map(len, chosen.values()))) as advance:
            for table in tables:
                reader, here = self._readers[table.name], list[SliceFacts]()
                for one in read_headers(reader, table, chosen[table.name]):
                    here.append(one)
                    advance()
                here += read_smallest(reader, table, here) if here else ()
                found += sorted(here, key=lambda one: one.z)
        return found

    def _whole(self, tables: Sequence[FileTable], server: ServerFacts | None, count: int) -> list[SliceFacts]:
        chosen = [(table, z) for table in tables for z in _readable(table, spread(table.with_bytes, count), server)]
        found = []
        size = decimal(sum(table.sizes[z] or 0 for table, z in chosen))
        with self._shown(f"Reading whole slices, {size}", len(chosen)) as advance:
            for table, z in chosen:
                found.append(read_whole(self._readers[table.name], z))
                advance()
        return found

    @contextmanager
    def _shown(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Show the progress of `total` steps on a terminal; yield what is called after each."""
        console = Console(file=sys.stderr)
        if not (self._progress and total and console.is_terminal):
            yield lambda: None
            return
        columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(TextColumn(title), *columns, console=console, transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)


def _readable(table: FileTable, slices: Sequence[int], server: ServerFacts | None) -> list[int]:
    """Return those of some slices that can be read: a server without ranges would send large files whole."""
    is_whole = server is not None and not server.ranges
    return [z for z in slices if not is_whole or (table.sizes[z] or 0) <= SMALL_FILE]


def _problems_of_files(tables: Sequence[FileTable], readers: Mapping[str, VolumeReader]) -> Iterator[str]:
    """Yield what is missing or not answered, one sentence for each variable and reason."""
    for table in tables:
        reader, depth = readers[table.name], len(table.sizes)

        def url(z: int, of: VolumeReader = reader) -> str:
            return f"{of.source.url}/{of.variable.path(z)}"

        missing, empty = table.missing, [z for z in table.present if table.sizes[z] == 0]
        if len(missing) == depth:
            yield f"{table.name}: none of its {depth} files is there, such as {url(0)}."
        elif missing:
            some = f"{table.name}: {len(missing)} of {depth} files {'are' if len(missing) > 1 else 'is'} missing"
            yield f"{some}, of slices {ranges_text(missing)}, such as {url(missing[0])}."
        if table.pages:
            some = f"{table.name}: {len(table.pages)} of {depth} files are web pages (text/html) instead of data"
            yield f"{some}, of slices {ranges_text(table.pages)}, such as {url(table.pages[0])}."
        if empty:
            yield f"{table.name}: {len(empty)} files are empty, of slices {ranges_text(empty)}."
        reasons: dict[str, list[int]] = {}
        for z, reason in table.failed.items():
            reasons.setdefault(reason.replace(url(z), ""), []).append(z)
        for slices in reasons.values():
            reason = table.failed[slices[0]]
            yield f"{table.name}: nothing is known of slices {ranges_text(slices)}: {reason.rstrip('.')}."


def _problems_of(server: ServerFacts | None, tables: Sequence[FileTable]) -> Iterator[str]:
    """Yield what a server cannot do, and reading needs."""
    if server is None:
        return
    large = [table.name for table in tables if any((size or 0) > SMALL_FILE for size in table.sizes)]
    if not server.ranges and large:
        yield f"The server ignores byte ranges: files of {', '.join(large)} would be sent whole, and are not read."
    if server.is_steady is False:
        yield (
            "The server's ETag or date of a file was not the same in two answers: each is taken for a change of the "
            "file, which is an error when it is read."
        )


def _notes_of(server: ServerFacts | None) -> Iterator[str]:
    """Yield what a server cannot do, and what that means."""
    if server is None:
        return
    if not server.ranges:
        yield "The server ignores byte ranges: a file is fetched whole for any part of it."
    elif server.multi_range is False:
        yield "The server sends one range per request: more bytes are fetched for a part of a slice."
    if server.is_steady is None:
        yield "The server sends neither ETag nor Last-Modified: a changed file is noticed by its size only."


def _rounded(traced: Trace) -> dict[str, Any]:
    return {**asdict(traced), "seconds": round(traced.seconds, 2)}
