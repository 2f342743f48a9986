"""Progress reports: a bar with rate and remaining time on a terminal or in Jupyter, plain lines elsewhere."""

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
"""Called with the number of further bytes that are done, and a remark to show."""


@contextmanager
def show_progress(title: str, total: int, shown: bool) -> Iterator[Advance]:
    """Report the progress of `total` bytes of work on standard error.

    Args:
        title: Text before the progress.
        total: Bytes of the whole work.
        shown: Whether to report at all.

    Yields:
        A function that adds to the bytes that are done.
    """
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
    """Print a line on standard error if `shown`."""
    if shown:
        print(line, file=sys.stderr, flush=True)


class _Lines:
    """Prints a line every 10 seconds, and one at the end."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._began = self._printed = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int, remark: str) -> None:
        with self._lock:  # several threads report
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
