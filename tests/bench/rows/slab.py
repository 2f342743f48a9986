"""A part of the full volume: full width, by a cluster, into a sharded store."""

from pathlib import Path

from ..archive import NAMES, SERVED, BenchArchive
from ..bounds import slab_codecs
from ..row import Case, Row, Truth, store_differs

FIRST_ROW = 1493
ROWS, QUICK_ROWS = 2048, 1024
WORKERS = 2


def cases(archive: BenchArchive, quick: bool) -> list[Case]:
    start = archive.at(FIRST_ROW)
    settings = {"y": [start, start + (QUICK_ROWS if quick else ROWS)], "workers": WORKERS}
    return [Case("on loopback, 2 workers of one thread", "lan", settings, 120 if quick else 600, 1 if quick else 3)]


def truth(archive: BenchArchive, case: Case) -> Truth:
    return {name: archive.voxels(name, (0, SERVED), case.settings["y"], (0, archive.size)) for name in NAMES}


def bound(archive: BenchArchive, case: Case, stores: Path) -> str:
    spent = slab_codecs(archive, range(*case.settings["y"]), SERVED)
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in spent.items())
    return f"the codecs alone, on two processes, take {sum(spent.values()):.2f} s ({parts})"


SLAB = Row(
    "slab",
    f"keep 8 slices x {ROWS} rows (quick: {QUICK_ROWS}) x full width of four variables, as the full volume is kept",
    ("ours", "plain_dask", "torch_em_module"),
    cases,
    truth,
    store_differs,
    bound,
    absent={"tifffile_zarr": "open files do not go to workers", "virtual": "reads no PNG; box shows how it reads raw"},
)
