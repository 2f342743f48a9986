"""What a change costs: `python compare.py BEFORE AFTER ARCHIVE [--rounds N]`, two checkouts in turn, in one run.

ARCHIVE is of tests/helpers/build_archive.py. In each round both checkouts do the same, the one that begins alternating:

- crop: a box of 2048 x 2048 x 8 voxels of four variables, from nginx on loopback, in a process of its own;
- cluster: 8 slices of full width and 2048 rows, four variables, by two workers of one thread;
- read: 400 patches of (8, 256, 256) of raw and mito of that store, as the training loader reads them;
- xarray: the whole crop by `xr.open_zarr(...).load()`;
- lazy, lazy2, lazy4: the labelled share of four slices of 20000 x 20000, of three masks, computed by dask: on threads,
  by two workers of one thread, by four.

Single timings mean little: told are the ratios of the rounds, after / before, with their median, and MB fetched.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.archive import SERVED as SLICES
from bench.archive import BenchArchive
from helpers.build_archive import SIZE as WIDTH
from helpers.nginx import Nginx

SHAPE = (SLICES, WIDTH, WIDTH)
BOX = (2219, 4267, 1493, 3541, 0, SLICES)
ROWS = 2048

TIMED = """
import json, time
from pathlib import Path
import numpy as np
import xarray as xr
import liver_dask as ld
{work}
if __name__ == "__main__":
    print("SECONDS", json.dumps(run()))
"""

CROP = """
def run():
    ds = ld.open_human_liver_em({url!r}, shape={shape})
    began = time.perf_counter()
    ld.to_zarr(ds, {out!r} + "/crop.zarr", bounding_box={box}, progress=False)
    return time.perf_counter() - began
"""

CLUSTER = """
from distributed import Client, LocalCluster
def run():
    options = dict(n_workers=2, threads_per_worker=1, memory_limit="4GiB", dashboard_address=":0")
    with LocalCluster(local_directory={out!r}, **options) as cluster, Client(cluster) as client:
        client.run(ld.open_human_liver_em)
        ds = ld.open_human_liver_em({url!r}, shape={shape}).isel(y=slice(1493, 1493 + {rows}))
        began = time.perf_counter()
        ld.to_zarr(ds, {out!r} + "/band.zarr", client=client, progress=False)
        return time.perf_counter() - began
"""

READ = """
try:
    from liver_dask.store.array import StoredArray
except ImportError:  # a checkout from before modules had packages
    from liver_dask.stored import StoredArray
def run():
    arrays = [StoredArray(Path({out!r}, "band.zarr"), name) for name in ("raw", "mito")]
    places = np.random.default_rng(0).integers(1200, 18000, (400, 2)) % [[{rows} - 256, 18000]]
    began = time.perf_counter()
    for y, x in places.tolist():
        for array in arrays:
            array[0:8, y : y + 256, x : x + 256]
    return time.perf_counter() - began
"""

XARRAY = """
def run():
    began = time.perf_counter()
    xr.open_zarr({out!r} + "/crop.zarr").load()
    return time.perf_counter() - began
"""

LAZY = """
from contextlib import nullcontext
from distributed import Client, LocalCluster
def run():
    workers = {workers}
    options = dict(n_workers=workers, threads_per_worker=1, memory_limit="4GiB", dashboard_address=":0")
    ds = ld.open_human_liver_em({url!r}, shape={shape}).isel(z=slice(0, 4))
    with LocalCluster(local_directory={out!r}, **options) if workers else nullcontext() as cluster:
        with Client(cluster) if workers else nullcontext() as client:
            if workers:
                client.run(ld.open_human_liver_em)
            began = time.perf_counter()
            (ds[["mito", "er", "nucleus"]] > 0).mean(("y", "x")).compute()
            return time.perf_counter() - began
"""

LAZY_WORKERS = {"lazy": 0, "lazy2": 2, "lazy4": 4}
WORKS = {"crop": CROP, "cluster": CLUSTER, "read": READ, "xarray": XARRAY} | dict.fromkeys(LAZY_WORKERS, LAZY)


def seconds(checkout: Path, work: str, **given: Any) -> float:
    """Run one piece of work with the package of a checkout."""
    script = Path(given["out"], f"run_{work}.py")
    workers = LAZY_WORKERS.get(work, 0)
    script.write_text(TIMED.format(work=WORKS[work].format(**given, workers=workers)))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd=given["out"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout.split("SECONDS ")[-1]))


def one_round(checkouts: dict[str, Path], nginx: Nginx, scratch: Path, works: list[str]) -> dict[str, dict[str, float]]:
    told: dict[str, dict[str, float]] = {work: {} for work in works}
    folders = {name: Path(tempfile.mkdtemp(dir=scratch)) for name in checkouts}
    for work in works:
        for name, checkout in checkouts.items():
            out = str(folders[name])
            nginx.sent()
            given = {"url": nginx.url, "shape": SHAPE, "box": BOX, "rows": ROWS, "out": out}
            told[work][name] = round(seconds(checkout, work, **given), 3)
            told[work][f"{name}, MB"] = round(nginx.sent().bytes / 1e6, 1)
    for folder in folders.values():
        shutil.rmtree(folder)
    return told


def main(before: Path, after: Path, archive: Path, rounds: int, works: list[str], scratch: Path) -> None:
    links = archive.parent / f"{archive.name}-compare"
    shutil.rmtree(links, ignore_errors=True)
    BenchArchive(archive, links).link()
    nginx = Nginx(links, scratch)
    told: list[dict[str, dict[str, float]]] = []
    try:
        for number in range(rounds + 1):  # the first fills caches, and does not count
            pair = [("before", before), ("after", after)]
            told.append(one_round(dict(pair if number % 2 else pair[::-1]), nginx, scratch, works))
            print(json.dumps(told[-1]), file=sys.stderr, flush=True)
    finally:
        nginx.stop()
        shutil.rmtree(links)
    for work in works:
        ratios = sorted(one[work]["after"] / one[work]["before"] for one in told[1:])
        print(f"{work}: after / before {statistics.median(ratios):.3f}, of {[round(ratio, 3) for ratio in ratios]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("archive", type=Path, help="of tests/helpers/build_archive.py; readable for nginx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(
            given.before.absolute(),
            given.after.absolute(),
            given.archive.absolute(),
            given.rounds,
            given.works,
            Path(folder),
        )
