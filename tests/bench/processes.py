"""A process of its own for each measurement: with a time limit, and the memory of all processes that it starts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from helpers.paths import ROOT

SECONDS_BETWEEN_LOOKS = 0.2
"""Each look costs milliseconds, which the measured process does not have."""

LONGEST_ERROR = 300
ERROR = re.compile(r"[\w.]*(Error|Exception|Panic|Killed\w*)\b")


@dataclass(frozen=True)
class Task:
    """What a process does.

    Attributes:
        side: Who: a module of `sides`.
        row: What: a function of it.
        url: The archive's address.
        shape: Its shape (z, y, x).
        out: A folder of its own, for what it makes.
        settings: What the work is about; each row has its own.
    """

    side: str
    row: str
    url: str
    shape: tuple[int, int, int]
    out: str
    settings: dict[str, Any]

    def to_json(self) -> str:
        """The task as an argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The task of such an argument."""
        told = json.loads(text)
        return cls(**told | {"shape": tuple(told["shape"])})


@dataclass(frozen=True)
class Outcome:
    """What came of a process.

    Attributes:
        seconds: What it measured; None if it failed.
        peak: Most bytes that the process and those it started had resident at once; shared pages count in each.
        error: What went wrong, in words.
        note: What else it says.
    """

    seconds: float | None
    peak: int
    error: str = ""
    note: str = ""


def run(task: Task, limit: float) -> Outcome:
    """Run a task in a fresh process, for at most so many seconds."""
    out = Path(task.out)
    out.mkdir(parents=True)
    with (out / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.bench.side", task.to_json()],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        peak, late = _watch(process, time.monotonic() + limit)
    if late:
        return Outcome(None, peak, f"stopped after {limit:.0f} s")
    result = out / "result.json"
    if process.returncode or not result.exists():
        return Outcome(None, peak, last_line((out / "log").read_text(errors="replace")))
    told = json.loads(result.read_text())
    return Outcome(told["seconds"], max(peak, told["peak"]), note=told.get("note", ""))


def _watch(process: subprocess.Popen[bytes], until: float) -> tuple[int, bool]:
    """Wait for a process. Returns the most memory of it and its children together, and whether it had to be stopped."""
    peak, late = 0, False
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        if late := time.monotonic() > until:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it, or what it left
    process.wait()
    return peak, late


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and all that it started."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue  # it has ended
    except psutil.Error:
        pass
    return total


def last_line(log: str) -> str:
    """The last line of a log that is the error of a traceback, or else the last that says something."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return ([*lines, *errors] or ["it ended without a word"])[-1][:LONGEST_ERROR]
