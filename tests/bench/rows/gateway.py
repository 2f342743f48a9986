"""What a viewer shows of an archive that is not downloaded."""

from pathlib import Path

import numpy as np

from helpers.far import assert_shares
from liver_dask.archive.archives import EMPIAR_13356

from ..archive import NAMES, BenchArchive
from ..bounds import least_bytes
from ..row import Case, Row, Truth, arrays_differ

SCREEN = 1280
WINDOW_SIDE = 1024
MIDDLE = 9744
Z = 1
CELL = 32


def level_of(size: int) -> int:
    """The finest scale whose slices fit on a screen."""
    level = 0
    while size / 2**level > SCREEN:
        level += 1
    return level


def cases(archive: BenchArchive, quick: bool) -> list[Case]:
    level, start = level_of(archive.size), archive.at(MIDDLE)
    coarse = {name: f"pyramid/s{level}/{name}" for name in NAMES}
    whole = [[0, archive.size // 2**level]] * 2
    look = {"z": Z, "window": whole, "arrays": coarse, "factor": 2**level}
    inside = [[start, start + WINDOW_SIDE]] * 2
    near = {"z": Z, "window": inside, "arrays": {name: name for name in NAMES}, "factor": 1}
    if quick:
        return [Case("far away, a whole slice", "far", look, 60, 1)]
    return [
        Case("far away, a whole slice", "far", look, 120, 3),
        Case(f"far away, {WINDOW_SIDE} x {WINDOW_SIDE} voxels", "far", near, 120, 3),
    ]


def truth(archive: BenchArchive, case: Case) -> Truth:
    z, factor = case.settings["z"], case.settings["factor"]
    if factor == 1:
        return {name: archive.voxels(name, (z, z + 1), *case.settings["window"])[0] for name in NAMES}
    found = {}
    for name in NAMES:
        rows = archive.voxels(name, (z, z + 1), (0, archive.size), (0, archive.size))[0, ::factor]
        cells = (rows if name == "raw" else rows > 0).reshape(len(rows), -1, factor)
        means = cells.mean(2)
        found[name] = np.rint(means).astype(np.uint16) if name == "raw" else means
    return found


def check(truth: Truth, out: Path) -> str:
    """Raw must be the truth; masks, too, or have its shares of labelled voxels where a voxel stands for several."""
    exact = {name: expected for name, expected in truth.items() if expected.dtype.kind == "u"}
    told = [arrays_differ(exact, out)]
    for name in EMPIAR_13356.labels:
        if name not in exact:
            labelled, width = np.load(out / f"{name}.npy"), truth[name].shape[1] // CELL * CELL
            try:
                assert_shares(labelled[:, :width], truth[name][:, :width])
            except AssertionError as error:
                told.append(f"{name}: the shares of labelled voxels differ at {error}")
    return "; ".join(part for part in told if part)


def bound(archive: BenchArchive, case: Case, stores: Path) -> str:
    factor = case.settings["factor"]
    y, x = ([at * factor for at in bounds] for bounds in case.settings["window"])
    rows = range(y[0], min(y[1], archive.size), factor)
    return least_bytes(archive, [case.settings["z"]], rows, min(x[1], archive.size))


GATEWAY = Row(
    "gateway",
    "serve an archive that is not downloaded as OME-Zarr, and get the chunks of one screen, four variables, cold",
    ("ours",),
    cases,
    truth,
    check,
    bound,
    absent={"every other side": "has no such gateway"},
)
