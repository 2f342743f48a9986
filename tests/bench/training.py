"""Patches a second, next to torch_em's own module on the store it writes: `python training.py EM_FOLDER`.

EM_FOLDER has `raw`, `mito`, `membrane` and `synapse` with 1024 x 1024 images of sections, as for
tests/helpers/build_archive.py. Both sides download the same archive, 2048 x 1024 x 128 voxels of them, each into its
own store (torch_em's chunks are 64 slices deep, so that this is two of them); each loader runs in a process of its own
with the same patch shapes and two workers. For each patch shape, the medians of `--rounds` runs, in turns:

- torch_em and ours: with the transforms of each side when none is given: flips along each axis, and standardisation;
- ours, no cache: as if the boxes did not fit into memory;
- ours, reuse=8 within 0.3 GB: eight patches from the same chunks, where the boxes do not fit;
- ours, processes: workers as torch's DataLoader makes them;
- miao: the loader of the package miao-io, if it is installed, on our store: no flips, standardised per patch, spawned
  workers with a cache of 1 GB each;
- bound: the chunks that a patch touches, decoded whole by the same codec on the same cores, and nothing else.

And the time to the first batch of ours, with torch and torch_em imported before, with no worker, threads, and spawned
processes; and what `min_foreground=0.05` costs, next to torch_em's MinForegroundSampler.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

import liver_dask as ld
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import RAW
from liver_dask.demo import serve
from liver_dask.store.layout import Shard
from liver_dask.store.record import layout_of, open_record, shard_path
from liver_dask.store.shards import EMPTY, read_shard_index

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.build_archive import LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP, MASK_OF_LABEL

SHAPE = (128, 1024, 2048)
BOX = (0, 2048, 0, 1024, 0, 128)
PATCHES = ((8, 256, 256), (8, 512, 512), (32, 256, 256), (1, 1024, 1024))
WORKERS = 2
SECONDS = 5
"""Each loader is timed for so long, after its first batches."""


def build(em: Path, archive: Path) -> None:
    """Write the archive: section z % 20, mirrored once along x, with noise in the lower bits."""
    for z in range(SHAPE[0]):
        section = f"{z % 20:02d}.png"
        pixels = mirrored(em / "raw" / section).astype(np.uint16) * 128 + 1
        pixels += np.random.default_rng(z).integers(0, 256, pixels.shape, dtype=np.uint16)
        images = {RAW: pixels}
        for label, folder in MASK_OF_LABEL.items():
            images[label] = np.where(mirrored(em / folder / section) > 0, 255, 0).astype(np.uint8)
        for name, image in images.items():
            path = archive / EMPIAR_13356.path(name, z)
            path.parent.mkdir(parents=True, exist_ok=True)
            options = LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP if name == RAW else {}
            Image.fromarray(image).save(path, **options)


def mirrored(path: Path) -> np.ndarray:
    """An image of twice the width."""
    image = np.asarray(Image.open(path))
    return np.block([image, image[:, ::-1]])


def loader_of(side: str, folder: str, archive: str, patch: tuple[int, ...], **options: Any) -> Any:
    """A loader of one patch a batch."""
    given = {"patch_shape": patch, "batch_size": 1, "bounding_boxes": [BOX], "pin_memory": False, **options}
    if side != "torch_em":
        return ld.get_human_liver_em_loader(folder, source=archive, shape=SHAPE, **given)
    import torch_em.data.datasets.electron_microscopy.human_liver_em as theirs

    return theirs.get_human_liver_em_loader(folder, **given)


OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, no cache": {"cache_gb": 0},
    "ours, reuse=8 within 0.3 GB": {"reuse": 8, "cache_gb": 0.3},
    "ours, processes": {"workers": "processes"},
}


def rate(side: str, folder: str, archive: str, patch: list[int]) -> float:
    """Patches a second."""
    options = {"num_workers": WORKERS, "n_samples": 100_000, **OURS.get(side, {})}
    loader = miao_of(folder, patch) if side == "miao" else loader_of(side, folder, archive, tuple(patch), **options)
    batches = iter(loader)
    for _ in range(4 * WORKERS):
        next(batches)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        next(batches)
        count += 1
    return count / (time.monotonic() - began)


def miao_of(folder: str, patch: list[int]) -> Any:
    """The loader of miao-io, which reads stores with a pyramid."""
    import zarr
    from miao import MiaoConfig, VolumeConfig, VolumeDataset
    from torch.utils.data import DataLoader

    (store,) = Path(folder).glob("*.zarr")
    (level, *_) = zarr.open_group(store, mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    volume = VolumeConfig(
        name="liver",
        path=str(store),
        image_key=".",
        label_key="labels/mito",
        zarr_version="zarr3",
        patch_normalize=True,
    )
    config = MiaoConfig(
        volumes=[volume],
        patch_size=list(patch),
        output_axes="lzyx",
        resolutions=[level["coordinateTransformations"][0]["scale"]],
        samples_per_epoch=100_000,
    )
    return DataLoader(VolumeDataset(config), 1, num_workers=WORKERS, multiprocessing_context="spawn")


def first_batch(folder: str, archive: str, options: dict[str, Any]) -> float:
    """Seconds from the call to the first batch, of (8, 256, 256)."""
    import torch_em  # noqa: F401  # it is imported so that the time this takes is not counted

    began = time.monotonic()
    next(iter(loader_of("ours", folder, archive, PATCHES[0], **options)))
    return time.monotonic() - began


def foreground(side: str, folder: str, archive: str, patch: list[int]) -> dict[str, float]:
    """What is read for a patch with 5 % of foreground, of 100."""
    from torch_em.data.sampler import MinForegroundSampler

    class Counting(MinForegroundSampler):
        calls = 0

        def __call__(self, raw: Any, labels: Any = None) -> bool:
            Counting.calls += 1
            return super().__call__(raw, labels)

    asked = {"min_foreground": 0.05, "cache_gb": 0} if side == "ours" else {"sampler": Counting(0.05)}
    loader = loader_of(side, folder, archive, tuple(patch), n_samples=100, **asked)
    (dataset,) = loader.dataset.datasets
    reads = {"raw": 0, "labels": 0}
    if side == "ours":
        dataset.raw = counted(dataset.raw, reads, "raw")
        dataset.labels = tuple(counted(label, reads, "labels") for label in dataset.labels)
    began = time.monotonic()
    for _ in loader:
        pass
    seconds = time.monotonic() - began
    if side == "ours":
        return {"samples a patch": reads["raw"] / 100, "masks a patch": reads["labels"] / 100, "s": round(seconds, 2)}
    return {"samples a patch": Counting.calls / 100, "s": round(seconds, 2)}


def counted(array: Any, reads: dict[str, int], kind: str) -> Any:
    """An array that counts its reads."""

    class Counted:
        shape = array.shape

        def __getitem__(self, key: Any) -> Any:
            reads[kind] += 1
            return array[key]

    return Counted()


def decode_touched(store: Path, patch: tuple[int, ...], seed: int) -> float:
    """Patches a second, where a patch is no more than decoding what it touches."""
    layout = layout_of(open_record(store))
    indexes: dict[Any, Any] = {}
    rng = np.random.default_rng(seed)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        start = rng.integers(0, np.array(SHAPE) - patch + 1)
        touched = [
            range(a // n, -(-(a + p) // n)) for a, p, n in zip(start.tolist(), patch, layout.chunks, strict=True)
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


def bound(store: Path, patch: tuple[int, ...]) -> float:
    """The same on as many processes as there are workers."""
    with ProcessPoolExecutor(WORKERS) as pool:
        return sum(pool.map(decode_touched, [store] * WORKERS, [patch] * WORKERS, range(WORKERS)))


def in_process(*arguments: Any) -> Any:
    """Run one of the functions above in a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", json.dumps(arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main(em: Path, scratch: Path, rounds: int) -> None:
    archive, ours, theirs = (scratch / name for name in ("archive", "ours", "theirs"))
    if not archive.exists():
        build(em, archive)
    store = Path(ld.get_human_liver_em_data(ours, BOX, True, source=archive, shape=SHAPE))
    ld.add_pyramid(store, progress=False)
    import torch_em.data.datasets.electron_microscopy.human_liver_em as torch_em_module

    with serve(archive) as server:
        torch_em_module.EMPIAR_BASE = server.url
        torch_em_module.get_human_liver_em_data(str(theirs), BOX, download=True)
    told: dict[str, Any] = {"first batch of ours, s": starts(ours, archive)}
    print(json.dumps(told), file=sys.stderr, flush=True)
    others = ["miao"] if importlib.util.find_spec("miao") else []
    for patch in PATCHES:
        rates: dict[str, list[float]] = {side: [] for side in ("torch_em", *OURS, *others)}
        for _ in range(rounds):
            for side, found in rates.items():
                found.append(in_process("rate", side, str(theirs if side == "torch_em" else ours), str(archive), patch))
        row: dict[str, Any] = {side: round(statistics.median(found), 1) for side, found in rates.items()}
        row["ours / torch_em"] = round(row["ours"] / row["torch_em"], 2)
        if others:
            row["ours / miao"] = round(row["ours"] / row["miao"], 2)
        row["bound"] = round(bound(store, patch), 1)
        row["min_foreground=0.05"] = {
            side: in_process("foreground", side, str(folder), str(archive), patch)
            for side, folder in (("torch_em", theirs), ("ours", ours))
        }
        told[str(patch)] = row
        print(patch, json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps(told, indent=1))


def starts(ours: Path, archive: Path) -> dict[str, float]:
    """Seconds to the first batch."""
    spawned = {"num_workers": WORKERS, "multiprocessing_context": "spawn"}
    kinds = {"no worker": {}, "threads": {"num_workers": WORKERS}, "spawned processes": spawned}
    return {
        kind: round(in_process("first_batch", str(ours), str(archive), options), 2) for kind, options in kinds.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("em", type=Path, nargs="?", help="folder of real EM")
    parser.add_argument("--scratch", type=Path, help="folder for archive and stores, 2 GB, which are kept")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each loader, of which the medians are told")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, *rest = json.loads(given.one)
        print(json.dumps(globals()[what](*rest)))
    elif given.scratch:
        main(given.em, given.scratch, given.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(given.em, Path(folder), given.rounds)
