"""A box that is kept as a Zarr store."""

from pathlib import Path

from ..archive import NAMES, BenchArchive
from ..bounds import least_bytes
from ..row import Case, Row, Truth, store_differs

FIRST_COLUMN, FIRST_ROW = 2219, 1493
SIDE, DEPTH = 2048, 8
QUICK_SIDE, QUICK_DEPTH = 1024, 4


def cases(archive: BenchArchive, quick: bool) -> list[Case]:
    side, depth = (QUICK_SIDE, QUICK_DEPTH) if quick else (SIDE, DEPTH)
    x, y = archive.at(FIRST_COLUMN), archive.at(FIRST_ROW)
    settings = {"box": [x, x + side, y, y + side, 0, depth]}
    if quick:
        return [Case("on loopback", "lan", settings, 90, 2)]
    return [
        Case("on loopback", "lan", settings, 900, 3),
        Case("far away", "far", settings, 900, 1),
        Case("far away, with stalls", "stalls", settings, 900, 1),
    ]


def truth(archive: BenchArchive, case: Case) -> Truth:
    x0, x1, y0, y1, z0, z1 = case.settings["box"]
    return {name: archive.voxels(name, (z0, z1), (y0, y1), (x0, x1)) for name in NAMES}


def bound(archive: BenchArchive, case: Case, stores: Path) -> str:
    _, x_stop, y0, y1, z0, z1 = case.settings["box"]
    return least_bytes(archive, range(z0, z1), range(y0, y1), x_stop)


BOX = Row(
    "box",
    f"keep a box of {SIDE} x {SIDE} x {DEPTH} voxels (quick: {QUICK_SIDE} x {QUICK_SIDE} x {QUICK_DEPTH}) "
    "of four variables as Zarr",
    ("ours", "torch_em_module", "plain_dask", "tifffile_zarr", "virtual"),
    cases,
    truth,
    store_differs,
    bound,
)
