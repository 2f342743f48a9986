"""Patches a second, next to torch_em's own module on the store it writes: `python training.py EM_FOLDER`.

EM_FOLDER has `raw`, `mito`, `membrane` and `synapse` with 1024 x 1024 images of sections, as for
tests/helpers/build_archive.py. Both sides download the same archive, 2048 x 1024 x 128 voxels of them, each into its
own store (torch_em's chunks are 64 slices deep, so that this is two of them); each loader runs in a process of its own
with the same patch shapes and workers. Rows, for each patch shape:

- reading: no transform on either side, so that the store and the way to read it are compared;
- default: with the transforms of each side when none is given: flips along each axis, and standardisation;
- bound: the chunks that a patch touches, decoded whole by the same codec on the same cores, and nothing else.

And what `min_foreground=0.05` costs, next to torch_em's MinForegroundSampler; and the time to the first batch.
"""

import argparse
import json
import os
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
from helpers.transforms import same

SHAPE = (128, 1024, 2048)
BOX = (0, 2048, 0, 1024, 0, 128)
PATCHES = ((8, 256, 256), (8, 512, 512), (32, 256, 256), (1, 1024, 1024))
WORKERS = 2
SECONDS = 12
"""Each loader is timed for so long, after its first four batches."""


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
    if side == "ours":
        return ld.get_human_liver_em_loader(folder, source=archive, shape=SHAPE, **given)
    import torch_em.data.datasets.electron_microscopy.human_liver_em as theirs

    return theirs.get_human_liver_em_loader(folder, **given)


def rate(side: str, folder: str, archive: str, patch: list[int], transforms: str) -> dict[str, float]:
    """Patches a second, and seconds to the first batch."""
    began = time.monotonic()
    none = {"transform": same, "raw_transform": same}
    loader = loader_of(
        side,
        folder,
        archive,
        tuple(patch),
        num_workers=WORKERS,
        n_samples=100_000,
        **(none if transforms == "none" else {}),
    )
    batches = iter(loader)
    next(batches)
    first = time.monotonic() - began
    for _ in range(3):
        next(batches)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        next(batches)
        count += 1
    return {"patches/s": round(count / (time.monotonic() - began), 1), "first batch, s": round(first, 2)}


def foreground(side: str, folder: str, archive: str, patch: list[int]) -> dict[str, float]:
    """What is read for a patch with 5 % of foreground, of 100."""
    from torch_em.data.sampler import MinForegroundSampler

    class Counting(MinForegroundSampler):
        calls = 0

        def __call__(self, raw: Any, labels: Any = None) -> bool:
            Counting.calls += 1
            return super().__call__(raw, labels)

    asked = {"min_foreground": 0.05} if side == "ours" else {"sampler": Counting(0.05)}
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


def main(em: Path, scratch: Path) -> None:
    archive, ours, theirs = (scratch / name for name in ("archive", "ours", "theirs"))
    build(em, archive)
    store = Path(ld.get_human_liver_em_data(ours, BOX, True, source=archive, shape=SHAPE))
    import torch_em.data.datasets.electron_microscopy.human_liver_em as torch_em_module

    with serve(archive) as server:
        torch_em_module.EMPIAR_BASE = server.url
        torch_em_module.get_human_liver_em_data(str(theirs), BOX, download=True)
    told: dict[str, Any] = {}
    for patch in PATCHES:
        row: dict[str, Any] = {}
        for transforms in ("none", "default"):
            rates = {
                side: in_process("rate", side, str(folder), str(archive), patch, transforms)
                for side, folder in (("torch_em", theirs), ("ours", ours))
            }
            ratio = rates["ours"]["patches/s"] / rates["torch_em"]["patches/s"]
            row[f"transforms: {transforms}"] = rates | {"times faster": round(ratio, 2)}
        row["bound, patches/s"] = round(bound(store, patch), 1)
        row["share of the bound"] = round(row["transforms: none"]["ours"]["patches/s"] / row["bound, patches/s"], 2)
        row["min_foreground=0.05"] = {
            side: in_process("foreground", side, str(folder), str(archive), patch)
            for side, folder in (("torch_em", theirs), ("ours", ours))
        }
        told[str(patch)] = row
        print(patch, json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("em", type=Path, nargs="?", help="folder of real EM")
    parser.add_argument("--scratch", type=Path, help="folder for archive and stores, 2 GB")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, *rest = json.loads(given.one)
        print(json.dumps(globals()[what](*rest)))
    else:
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
            main(given.em, Path(folder))
