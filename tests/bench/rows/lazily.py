"""Rows in which nothing is kept: opening, a window, a whole slice, and a number of each slice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from liver_dask.archive.archives import EMPIAR_13356

from ..archive import NAMES, BenchArchive
from ..bounds import decoded_mask, least_bytes
from ..row import Case, Row, Truth, arrays_differ

SCREEN = 1000
"""Pixels of a screen, about, along each axis."""

WINDOW_SIDE = 512
MIDDLE = 9744
Z = 2
SLICES_OF_STATISTICS = (0, 4)
WORKERS = (0, 1, 2, 4)


def open_cases(archive: BenchArchive, quick: bool) -> list[Case]:
    return [Case("far away", "far", {}, 20 if quick else 300, 1 if quick else 3)]


def shape_of(archive: BenchArchive, case: Case) -> Truth:
    return {"shape": np.array(archive.shape)}


OPEN = Row(
    "open",
    "have a Dataset of 8 slices of {size} x {size}, four variables",
    ("ours", "plain_dask", "tifffile_zarr", "virtual"),
    open_cases,
    shape_of,
    arrays_differ,
    lambda archive, case, stores: (
        "nothing has to be asked: shape and type are known; tifffile and virtual-tiff read each index"
    ),
    absent={"torch_em_module": "has no lazy Dataset"},
)


def window_cases(archive: BenchArchive, quick: bool) -> list[Case]:
    start = archive.at(MIDDLE)
    inside = [start, start + WINDOW_SIDE]
    settings = {"window": [[Z, Z + 1], inside, inside]}
    if quick:
        return [Case("far away", "far", settings, 60, 1)]
    return [Case("far away", "far", settings, 300, 3), Case("on loopback", "lan", settings, 300, 5)]


def window_truth(archive: BenchArchive, case: Case) -> Truth:
    return {name: archive.voxels(name, *case.settings["window"]) for name in NAMES}


def window_bound(archive: BenchArchive, case: Case, stores: Path) -> str:
    z, y, x = case.settings["window"]
    return least_bytes(archive, range(*z), range(*y), x[1])


WINDOW = Row(
    "window",
    "look at 512 x 512 voxels of four variables in the middle of a slice, cold",
    ("ours", "torch_em_module", "plain_dask", "tifffile_zarr", "virtual"),
    window_cases,
    window_truth,
    arrays_differ,
    window_bound,
)


def overview_cases(archive: BenchArchive, quick: bool) -> list[Case]:
    settings = {"z": Z, "step": archive.size // SCREEN}
    cases = [Case("on loopback", "lan", settings, 30 if quick else 300, 1 if quick else 3)]
    return cases if quick else [*cases, Case("far away", "far", settings, 120, 1)]


def overview_truth(archive: BenchArchive, case: Case) -> Truth:
    z, whole = case.settings["z"], (0, archive.size)
    return {"raw": archive.voxels("raw", (z, z + 1), whole, whole, case.settings["step"])}


def overview_bound(archive: BenchArchive, case: Case, stores: Path) -> str:
    rows: Sequence[int] = range(0, archive.size, case.settings["step"])
    return least_bytes(archive, [case.settings["z"]], rows, archive.size, masks=False)


OVERVIEW = Row(
    "overview",
    "see a whole slice of raw at the resolution of a screen: every n-th row and column",
    ("ours", "plain_dask", "tifffile_zarr", "virtual"),
    overview_cases,
    overview_truth,
    arrays_differ,
    overview_bound,
    absent={"torch_em_module": "keeps boxes at full resolution alone"},
)


def statistics_cases(archive: BenchArchive, quick: bool) -> list[Case]:
    names = {0: "on threads", 1: "on 1 worker"} | {n: f"on {n} workers" for n in WORKERS[2:]}
    limit, rounds = (60, 1) if quick else (300, 3)
    asked = WORKERS[::2] if quick else WORKERS
    return [Case(names[n], "lan", {"z": SLICES_OF_STATISTICS, "workers": n}, limit, rounds) for n in asked]


def statistics_truth(archive: BenchArchive, case: Case) -> Truth:
    whole = (0, archive.size)
    found = {}
    for label in EMPIAR_13356.labels:
        slices = range(*case.settings["z"])
        found[label] = np.array([(archive.voxels(label, (z, z + 1), whole, whole) > 0).mean() for z in slices])
    return found


def statistics_bound(archive: BenchArchive, case: Case, stores: Path) -> str:
    paths = [archive.path(label, z) for label in EMPIAR_13356.labels for z in range(*case.settings["z"])]
    seconds = sum(decoded_mask(path)[1] for path in paths)
    size = sum(path.stat().st_size for path in paths)
    return f"imagecodecs decodes the masks in {seconds:.2f} s on one core; they have {size / 1e6:.3g} MB"


STATISTICS = Row(
    "statistics",
    "the labelled share of four whole slices, of three masks, lazily",
    ("ours", "plain_dask"),
    statistics_cases,
    statistics_truth,
    arrays_differ,
    statistics_bound,
    absent={
        "torch_em_module": "would keep whole slices first",
        "tifffile_zarr": "reads masks as plain dask does",
        "virtual": "reads no PNG",
    },
)
