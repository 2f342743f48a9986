"""Training patches, from the store that each side writes."""

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import RAW
from liver_dask.store.layout import Shard
from liver_dask.store.record import layout_of, open_record, shard_path
from liver_dask.store.shards import EMPTY, read_shard_index

from ..archive import EM, BenchArchive, make_sections
from ..row import Case, Row, Truth
from ..timed import PATCHES_OF_A_FIGURE
from ..training_data import build

SHAPE, QUICK_SHAPE = (128, 1024, 2048), (64, 512, 1024)
PATCH = (8, 256, 256)
LOADERS = 2
SECONDS, QUICK_SECONDS = 5, 3
ROW_COMPARED = 64
"""Voxels by which a patch is found in the archive; their noise is nowhere twice."""


@dataclass(frozen=True)
class Deep:
    """An archive of many small slices."""

    folder: Path
    shape: tuple[int, int, int]


def cases(archive: BenchArchive, quick: bool) -> list[Case]:
    shape = QUICK_SHAPE if quick else SHAPE
    settings: dict[str, Any] = {
        "shape": shape, "box": [0, shape[2], 0, shape[1], 0, shape[0]], "patch": PATCH, "loaders": LOADERS,
        "seconds": QUICK_SECONDS if quick else SECONDS,
    }  # fmt: skip
    limit, rounds = (90, 1) if quick else (180, 3)
    fits = Case("caches of 1 GB hold the box, as by default", "lan", settings | {"options": {}}, limit, rounds)
    not_kept = Case(
        "without caches, as for larger boxes", "lan", settings | {"options": {"cache_gb": 0}}, limit, rounds
    )
    return [not_kept] if quick else [fits, not_kept]


def deep_archive(archive: BenchArchive, case: Case, scratch: Path) -> Deep:
    deep = Deep(scratch / "deep", tuple(case.settings["shape"]))
    if not deep.folder.exists():
        with tempfile.TemporaryDirectory() as sections:
            if not EM.is_dir():
                make_sections(Path(sections))
            build(EM if EM.is_dir() else Path(sections), deep.folder, deep.shape)
    return deep


def truth(archive: Deep, case: Case) -> Truth:
    slices = range(archive.shape[0])
    masks = [np.asarray(Image.open(archive.folder / EMPIAR_13356.path("mito", z))) for z in slices]
    raw = [tifffile.imread(archive.folder / EMPIAR_13356.path(RAW, z)) for z in slices]
    return {RAW: np.stack(raw), "mito": np.stack(masks)}


def check(truth: Truth, out: Path) -> str:
    """Each patch, without flips and standardisation, must be somewhere in the archive, with its labels."""
    raws, labels = (np.load(out / f"{name}.npy") for name in (RAW, "mito"))
    for raw, label in zip(raws.astype(np.int64), labels > 0, strict=True):
        place = place_of(raw, truth[RAW])
        if place is None and place_of(raw, truth[RAW].view(np.int16)):  # torch_em 0.10.9 converts uint16 to int16
            return "values of raw above 32767 are negative"
        if place is None:
            return "a patch of raw is nowhere in the archive"
        if wrong := int((label != (truth["mito"][place] > 0)).sum()):
            return f"{wrong} of {label.size} labels of a patch differ"
    return ""


def place_of(patch: np.ndarray, whole: np.ndarray) -> tuple[slice, ...] | None:
    """Where a patch is in a volume."""
    beginning = patch[0, 0, :ROW_COMPARED]
    for z in range(len(whole)):
        first = np.flatnonzero(whole[z] == beginning[0])
        rows, columns = np.unravel_index(first, whole.shape[1:])
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            if whole[z, y, x + 1 : x + 2] != beginning[1:2] if x + 1 < whole.shape[2] else True:
                continue
            place = tuple(slice(at, at + length) for at, length in zip((z, y, x), patch.shape, strict=True))
            if whole[place].shape == patch.shape and np.array_equal(whole[place], patch):
                return place
    return None


def decode_touched(store: Path, shape: tuple[int, int, int], seconds: float, seed: int) -> float:
    """Patches a second, where a patch is no more than decoding the chunks that it touches."""
    layout = layout_of(open_record(store))
    indexes: dict[Any, Any] = {}
    rng = np.random.default_rng(seed)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        start = rng.integers(0, np.array(shape) - PATCH + 1)
        touched = [
            range(a // n, -(-(a + p) // n)) for a, p, n in zip(start.tolist(), PATCH, layout.chunks, strict=True)
        ]
        for name, place in product((RAW, "mito"), product(*touched)):
            shard = Shard(*(n // grid for n, grid in zip(place, layout.chunks_per_shard, strict=True)))
            with shard_path(store, name, shard).open("rb", buffering=0) as file:
                if (name, shard) not in indexes:
                    indexes[name, shard] = read_shard_index(file, layout.chunks_per_shard)
                inside = tuple(n % grid for n, grid in zip(place, layout.chunks_per_shard, strict=True))
                offset, length = indexes[name, shard][inside].tolist()
                if offset != EMPTY:
                    imagecodecs.blosc_decode(os.pread(file.fileno(), length, offset), numthreads=1)
        count += 1
    return count / (time.monotonic() - began)


def bound(archive: Deep, case: Case, stores: Path) -> str:
    """The same on as many processes as there are workers."""
    store = next((stores / "ours").glob("*.zarr"))
    seconds = case.settings["seconds"]
    with ProcessPoolExecutor(LOADERS) as pool:
        n = LOADERS
        rate = sum(pool.map(decode_touched, [store] * n, [archive.shape] * n, [seconds] * n, range(n)))
    return f"decoding the touched chunks alone, on {n} processes, takes {PATCHES_OF_A_FIGURE / rate:.2f} s"


PATCHES = Row(
    "patches",
    f"draw {PATCHES_OF_A_FIGURE} training patches of 8 x 256 x 256 of raw and mito, two workers, from one's own store",
    ("ours", "torch_em_module", "miao_loader"),
    cases,
    truth,
    check,
    bound,
    absent={"insitubatch": "needs Python 3.12, and was not run"},
    archive=deep_archive,
    stores=("ours", "torch_em_module"),
    unit=f"s for {PATCHES_OF_A_FIGURE} patches",
)
