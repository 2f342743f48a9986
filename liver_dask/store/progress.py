"""Progress reports: a bar with rate and remaining time on a terminal or in Jupyter, plain lines elsewhere."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

SECONDS_BETWEEN_LINES = (60.0, 600.0)
"""Least and most time between two lines. In between, a line comes each time that 5 % more time has passed."""

SHARE_BETWEEN_LINES = 0.05

SECONDS_OF_RATE = 600.0
"""The rate is that of the last ten minutes: workers come and go, and a server is slow at times."""

SECONDS_BETWEEN_MARKS = 5.0

Advance = Callable[[int, str], None]
"""Called with the number of further bytes that are done, and a remark to show."""


class Meter:
    """Counts what is done, and how fast.

    Args:
        total: Bytes of the whole work.
        done: Bytes that were done before.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done = total, done
        self.began = time.monotonic()
        self._marks = deque([(self.began, done)])
        self._lock = threading.Lock()  # several threads report

    def add(self, count: int) -> None:
        """Add bytes that are done."""
        with self._lock:
            self.done = min(self.done + count, self.total)  # of lost workers, some is done and told again
            now = time.monotonic()
            if now - self._marks[-1][0] >= SECONDS_BETWEEN_MARKS:
                self._marks.append((now, self.done))
            while len(self._marks) > 1 and now - self._marks[1][0] >= SECONDS_OF_RATE:
                self._marks.popleft()

    @property
    def share(self) -> float:
        """The share of the work that is done, 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 1.0

    @property
    def rate(self) -> float:
        """Bytes per second, of the last ten minutes."""
        since, done = self._marks[0]
        return (self.done - done) / max(time.monotonic() - since, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """The time that the rest takes at this rate; None if nothing was done lately."""
        return max(self.total - self.done, 0) / self.rate if self.rate else None


@contextmanager
def show_progress(title: str, total: int, shown: bool, done: int = 0) -> Iterator[Advance]:
    """Report the progress of `total` bytes of work on standard error.

    Args:
        title: Text before the progress.
        total: Bytes of the whole work.
        shown: Whether to report at all.
        done: Bytes of it that were done before.

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
            task = progress.add_task(title, total=total, completed=done, remark="")
            yield lambda count, remark: progress.update(task, advance=count, remark=remark)
    else:
        lines = _Lines(title, total, done)
        yield lines.advance
        lines.end()


def say(line: str, shown: bool) -> None:
    """Print a line on standard error if `shown`."""
    if shown:
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


class _Lines:
    """Prints a line with the clock: one a minute at first, then fewer, and one at the end."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._meter, self._before = title, Meter(total, done), done
        self._remark = ""
        self._printed = self._meter.began
        self._lock = threading.Lock()
        self._print(f"{self._meter.share:.0%} of {decimal(total)} is there" if done else f"{decimal(total)} of voxels")

    def advance(self, count: int, remark: str) -> None:
        meter = self._meter
        meter.add(count)
        with self._lock:
            now = time.monotonic()
            least, most = SECONDS_BETWEEN_LINES
            wait = min(max(SHARE_BETWEEN_LINES * (now - meter.began), least), most)
            self._remark = remark or self._remark
            if now - self._printed >= wait and meter.done < meter.total:  # else the last line follows
                self._printed = now
                left = f"{duration(meter.seconds_left)} left, " if meter.seconds_left is not None else ""
                amount = f"{decimal(meter.done)} of {decimal(meter.total)}"
                self._print(f"{meter.share:.0%}, {amount}, {decimal(int(meter.rate))}/s, {left}{remark}")

    def end(self) -> None:
        """Print the last line, when all is done."""
        seconds = time.monotonic() - self._meter.began
        rate = decimal(int((self._meter.total - self._before) / max(seconds, 1e-9)))
        self._print(f"100%, {decimal(self._meter.total)} in {duration(seconds)}, {rate}/s, {self._remark}")

    def _print(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {self._title}: {text}"
        print(line.removesuffix(", "), file=sys.stderr, flush=True)
