"""`liver-dask view` as a process, for tests and benchmarks with a browser."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHAPE = (24, 900, 1200)
Z_SLIDER = ".widget-slider:has-text('z') .noUi-handle"


@contextmanager
def viewing(folder: Path, *given: str) -> Iterator[str]:
    """Run `liver-dask view` in a folder until the end of the context, and yield the address that it prints."""
    command = [sys.executable, "-c", "from liver_dask.cli import main; main()", "view", *given, "--no-browser"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stderr=log)
    try:
        yield printed_address(process, folder / "log")
    finally:
        process.terminate()
        process.wait(timeout=30)


def printed_address(process: subprocess.Popen, log: Path) -> str:
    """Return the printed address with its token, as a user copies it from the terminal."""
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\w+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(log.read_text())
