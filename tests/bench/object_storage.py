"""A store in S3 and one in a folder: `python object_storage.py ARCHIVE [SCRATCH]`, of tests/helpers/build_archive.py.

S3 is moto on this machine, in this process: two cores serve it, nginx and the workers, so that times are upper bounds;
or, with LIVER_DASK_S3, another server.
Eight slices (links stand in for those that ARCHIVE lacks) of full width and two bands of 4096 rows, raw and three
masks, by two workers of one thread and 4 GiB, into a folder and into S3; and, on a smaller box that it survives, what
one writes without this package, xarray's `ds.to_zarr` with the same shards, into the same bucket.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import liver_dask as ld
from liver_dask.core.disk import files_below, size_of
from liver_dask.core.places import ObjectPath, Place
from liver_dask.store.array import StoredArray
from liver_dask.store.chunk_cache import ChunkCache
from liver_dask.store.layout import CHUNKS, SHARDS
from liver_dask.store.shards import codecs_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.archive import SERVED as SLICES
from bench.archive import BenchArchive
from bench.side import peak
from helpers.build_archive import SIZE as WIDTH
from helpers.nginx import Nginx
from helpers.object_storage import OTHER, ObjectStorage, object_storage

PROCESSES, ROWS, NAIVE_ROWS = 2, 8192, 1024
PATCHES, PATCH = 200, (8, 256, 256)


def ours(url: str, out: Place, client: Client, rows: int) -> None:
    ds = ld.open_human_liver_em(url, shape=(SLICES, WIDTH, WIDTH)).isel(y=slice(rows))
    ld.to_zarr(ds, out, client=client, progress=False)


def plain(url: str, out: ObjectPath, client: Client, rows: int) -> None:
    """What one writes without this package's `to_zarr`: dask blocks of a shard, so that none is written twice."""
    ds = ld.open_human_liver_em(url, shape=(SLICES, WIDTH, WIDTH)).isel(y=slice(rows)).drop_vars(["x", "y", "z"])
    shards = (CHUNKS[0], min(SHARDS[1], rows), SHARDS[2])
    encoding = {
        name: {"chunks": CHUNKS, "shards": shards, "compressors": codecs_of(variable.dtype)}
        for name, variable in ds.data_vars.items()
    }
    blocks = ds.chunk(z=shards[0], y=shards[1], x=shards[2])
    blocks.to_zarr(str(out), storage_options=out.options, encoding=encoding, zarr_format=3, consolidated=False)


def measured(
    write: Callable[[str, Any, Client, int], None],
    nginx: Nginx,
    s3: ObjectStorage,
    out: Place,
    scratch: Path,
    rows: int,
) -> dict[str, Any]:
    """Run one way on fresh workers."""
    s3.asked.clear()
    nginx.sent()
    options = {"n_workers": PROCESSES, "threads_per_worker": 1, "memory_limit": "4GiB", "dashboard_address": ":0"}
    with LocalCluster(local_directory=scratch, **options) as cluster, Client(cluster) as client:
        client.run(ld.open_human_liver_em)  # imports are not measured
        began = time.monotonic()
        write(nginx.url, out, client, rows)
        seconds = time.monotonic() - began
        peaks = list(client.run(peak).values())
    files = {str(path): size_of(path) or 0 for path in files_below(out)}
    shards = {path: size for path, size in files.items() if "/c/" in path and "/liver_dask/" not in path}
    found = {
        "seconds": round(seconds, 1),
        "MB of voxels a second": round(SLICES * rows * WIDTH * 5 / seconds / 1e6, 1),
        "MB fetched from the archive": round(nginx.sent().bytes / 1e6, 1),
        "peak RSS of a worker, MB": [round(n / 1e6) for n in peaks],
        "MB stored": round(sum(files.values()) / 1e6, 1),
        "shards": len(shards),
    }
    return found | (traffic(s3, out, shards) if isinstance(out, ObjectPath) and not OTHER else {})


def traffic(s3: ObjectStorage, out: ObjectPath, shards: dict[str, int]) -> dict[str, Any]:
    """What was asked of S3, and the share of the bytes of shards that passed through a process a second time."""
    made = [asked for asked in s3.asked if not asked.is_copy and asked.method in ("PUT", "POST")]
    again: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for asked in made:
        if asked.path.startswith(f"/{out.key}/") and "/c/" in asked.path and "/liver_dask/" not in asked.path:
            again[asked.path.removeprefix(f"/{out.key}/").split("/")[0]] += asked.length
    for path, size in shards.items():
        stored[path.removeprefix(f"{out}/").split("/")[0]] += size
    kinds = Counter(asked.method + (" (copy)" if asked.is_copy else "") for asked in s3.asked)
    return {
        "requests": dict(kinds),
        "requests a shard": round(len(s3.asked) / max(len(shards), 1), 1),
        "MB uploaded": round(sum(asked.length for asked in made) / 1e6, 1),
        "share of a variable's bytes uploaded twice": {name: round(again[name] / stored[name], 5) for name in stored},
    }


def patches(place: Place, cache: ChunkCache | None, rows: int) -> float:
    """Random patches of raw and one mask a second, on one thread."""
    arrays = [StoredArray(place, name, cache) for name in ("raw", "mito")]
    rng = np.random.default_rng(0)
    began = time.monotonic()
    for _ in range(PATCHES):
        y, x = (int(rng.integers(0, length - side)) for length, side in zip((rows, WIDTH), PATCH[1:], strict=True))
        for array in arrays:
            array[0 : PATCH[0], y : y + PATCH[1], x : x + PATCH[2]]
    return round(PATCHES / (time.monotonic() - began), 1)


def main(archive: Path, scratch: Path) -> None:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    BenchArchive(archive, scratch / "archive").link()
    nginx = Nginx(scratch / "archive", scratch)
    with ExitStack() as stack:
        stack.callback(nginx.stop)
        s3 = stack.enter_context(object_storage())
        bucket = s3.folder()
        if OTHER:  # asked directly, so that its requests are not counted
            bucket = ObjectPath(str(bucket), {**s3.options, "endpoint_url": OTHER})
        report: dict[str, Any] = {"cores": os.cpu_count(), "slices": SLICES, "rows": ROWS}
        report["ours, folder"] = measured(ours, nginx, s3, scratch / "a.zarr", scratch, ROWS)
        report["ours, S3"] = measured(ours, nginx, s3, bucket / "a.zarr", scratch, ROWS)
        for name in ("raw", "mito"):
            one = StoredArray(scratch / "a.zarr", name)[0:8, 4000:4200, :]
            np.testing.assert_array_equal(StoredArray(bucket / "a.zarr", name)[0:8, 4000:4200, :], one)
        report["ours, S3, small box"] = measured(ours, nginx, s3, bucket / "b.zarr", scratch, NAIVE_ROWS)
        report["xarray, S3, small box"] = measured(plain, nginx, s3, bucket / "c.zarr", scratch, NAIVE_ROWS)
        one = xr.open_zarr(str(bucket / "c.zarr"), storage_options=bucket.options, consolidated=False)
        np.testing.assert_array_equal(one.raw[0, :64].values, StoredArray(bucket / "b.zarr", "raw")[0:1, 0:64, :][0])
        report["patches a second"] = {
            "folder": patches(scratch / "a.zarr", None, ROWS),
            "S3": patches(bucket / "a.zarr", None, ROWS),
            "folder, cache of 2 GB": [
                patches(scratch / "a.zarr", cache := ChunkCache(2 << 30), 600),
                patches(scratch / "a.zarr", cache, 600),
            ],
            "S3, cache of 2 GB": [
                patches(bucket / "a.zarr", cache := ChunkCache(2 << 30), 600),
                patches(bucket / "a.zarr", cache, 600),
            ],
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(dir=sys.argv[2] if len(sys.argv) > 2 else Path(sys.argv[1]).parent))
    folder.chmod(0o755)  # nginx reads it as another user
    try:
        main(Path(sys.argv[1]), folder)
    finally:
        shutil.rmtree(folder)
