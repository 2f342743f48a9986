"""Where and with what a measurement was made."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from helpers.paths import ROOT

from .sides import SIDES

ALWAYS = ("numpy", "zarr", "dask", "distributed", "xarray", "imagecodecs", "tifffile", "pillow", "numba")


def commit() -> str:
    """The commit of this checkout, and whether files differ from it."""
    try:
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """The model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(archive: str) -> dict[str, str]:
    """What a table needs to be understood, and repeated."""
    told = {
        "command": "python -m tests.bench " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "archive": archive,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "load before": f"{os.getloadavg()[0]:.1f} processes ready to run",
        "system": platform.platform(),
        "Python": platform.python_version(),
    }
    names = dict.fromkeys([*(name for side in SIDES.values() for name in side.packages), *ALWAYS])
    found = {name: _version(name) for name in names}
    told["packages"] = ", ".join(f"{name} {found[name]}" for name in sorted(found, key=str.lower) if found[name])
    return told


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
