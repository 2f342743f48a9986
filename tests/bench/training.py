"""What training costs besides its rate, which `python -m tests.bench patches` tells: `python training.py [EM_FOLDER]`.

EM_FOLDER has `raw`, `mito`, `membrane` and `synapse` with 1024 x 1024 images of sections, as for
tests/helpers/build_archive.py. Both sides download the same archive, 2048 x 1024 x 128 voxels of them, each into its
own store. Told is the time to the first batch of ours, with torch and torch_em imported before, with no worker,
threads, and spawned processes; and, for several patch shapes, what `min_foreground=0.05` costs, next to torch_em's
MinForegroundSampler.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import liver_dask as ld
from liver_dask.demo import serve

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.archive import EM
from bench.training_data import build

SHAPE = (128, 1024, 2048)
BOX = (0, 2048, 0, 1024, 0, 128)
PATCHES = ((8, 256, 256), (8, 512, 512), (32, 256, 256), (1, 1024, 1024))
WORKERS = 2


def loader_of(side: str, folder: str, archive: str, patch: tuple[int, ...], **options: Any) -> Any:
    """A loader of one patch a batch."""
    given = {"patch_shape": patch, "batch_size": 1, "bounding_boxes": [BOX], "pin_memory": False, **options}
    if side != "torch_em":
        return ld.get_human_liver_em_loader(folder, source=archive, shape=SHAPE, **given)
    import torch_em.data.datasets.electron_microscopy.human_liver_em as theirs

    return theirs.get_human_liver_em_loader(folder, **given)


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


def in_process(*arguments: Any) -> Any:
    """Run one of the functions above in a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", json.dumps(arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main(em: Path, scratch: Path) -> None:
    archive, ours, theirs = (scratch / name for name in ("archive", "ours", "theirs"))
    build(em, archive, SHAPE)
    ld.get_human_liver_em_data(ours, BOX, True, source=archive, shape=SHAPE)
    import torch_em.data.datasets.electron_microscopy.human_liver_em as torch_em_module

    with serve(archive) as server:
        torch_em_module.EMPIAR_BASE = server.url
        torch_em_module.get_human_liver_em_data(str(theirs), BOX, download=True)
    told: dict[str, Any] = {"first batch of ours, s": starts(ours, archive)}
    for patch in PATCHES:
        told[str(patch)] = {
            side: in_process("foreground", side, str(folder), str(archive), patch)
            for side, folder in (("torch_em", theirs), ("ours", ours))
        }
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
    parser.add_argument("em", type=Path, nargs="?", default=EM, help="folder of real EM")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, *rest = json.loads(given.one)
        print(json.dumps(globals()[what](*rest)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(given.em, Path(folder))
