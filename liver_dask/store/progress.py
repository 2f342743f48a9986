"""How far a long piece of work is: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int, str], None]
"""Says that so many more bytes are done, and a remark to show."""


@contextmanager
def show_progress(title: str, total: int, shown: bool) -> Iterator[Advance]:
    """Report on `total` bytes of work on standard error, as it is done; on nothing if not `shown`."""
    console = Console(file=sys.stderr)
    if not shown:
        yield lambda count, remark: None
    elif console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):
        columns = (
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        with Progress(TextColumn(title), *columns, console=console) as progress:
            task = progress.add_task(title, total=total, remark="")
            yield lambda count, remark: progress.update(task, advance=count, remark=remark)
    else:
        yield _Lines(title, total).advance


def say(line: str, shown: bool) -> None:
    """Print a line on standard error, if it is to be shown."""
    if shown:
        print(line, file=sys.stderr, flush=True)


class _Lines:
    """A line at the end, and every few seconds until then."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._began = self._printed = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int, remark: str) -> None:
        with self._lock:  # reports come on several threads
            self._done += count
            now = time.monotonic()
            if now - self._printed >= SECONDS_BETWEEN_LINES or (count and self._done == self._total):
                self._printed = now
                self._print(now, remark)

    def _print(self, now: float, remark: str) -> None:
        rate = self._done / max(now - self._began, 1e-9)
        left = f"{timedelta(seconds=round((self._total - self._done) / rate))} left, " if rate else ""
        print(
            f"{self._title}: {decimal(self._done)} of {decimal(self._total)}, {decimal(int(rate))}/s, {left}{remark}",
            file=sys.stderr,
            flush=True,
        )
