"""EMPIAR-12535 end to end, next to torch_em's module for it: `python mito_segem.py EM_FOLDER WORK [SLICES]`.

Lays out slices of the intestine (5024 x 6808 pixels) as the archive has them, from real EM: 8-bit raw, and instances of
mitochondria as HDF5, both in several codings, since those of the real files are not known. Both packages fetch the same
box from the same server, which counts bytes, one after the other, each in a process of its own; then ours makes a
pyramid, verifies, and both train on boundaries of instances.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import xarray as xr
import zarr
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))

import liver_dask as ld
from helpers.measured import measured
from liver_dask.demo import serve

ARCHIVE = ld.archives()["EMPIAR-12535/intestine"]
SHAPE = ARCHIVE.shape[1:]
CODINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "compressed": (
        {"compression": "lzw", "predictor": 2, "rowsperstrip": 1},
        {"chunks": (256, 256), "compression": "gzip", "shuffle": True},
    ),
    "tiles": ({"compression": "deflate", "tile": (256, 256)}, {"chunks": True, "compression": "gzip"}),
}
Y, X = (1024, 3072), (2048, 4096)

OURS = """
import liver_dask as ld
ds = ld.open_archive("EMPIAR-12535/intestine", {url!r})
ld.to_zarr(ds, {out!r}, bounding_box={box}, progress=False)
"""
THEIRS = """
import torch_em.data.datasets.electron_microscopy.mito_segem as theirs
theirs.BASE_URL = {url!r}
theirs.get_mito_segem_data({out!r}, {box}, download=True)
"""
TRAIN = """
import time, torch, torch_em
options = dict(patch_shape=(8, 256, 256), batch_size=2, num_workers=0, n_samples=40,
               label_transform=torch_em.transform.label.BoundaryTransform(add_binary_target=True))
{get}
list(loader)
began = time.perf_counter()
batches = list(loader)
print(len(batches), tuple(batches[0][1].shape), len(batches) / (time.perf_counter() - began), "batches/s")
"""


def tiled(image: np.ndarray) -> np.ndarray:
    """The image, mirrored at its edges until it covers a slice."""
    block = np.block([[image, image[:, ::-1]], [image[::-1], image[::-1, ::-1]]])
    repeats = [-(-length // of) for length, of in zip(SHAPE, block.shape, strict=True)]
    return np.tile(block, repeats)[: SHAPE[0], : SHAPE[1]]


def lay_out(em: Path, folder: Path, slices: int, coding: str) -> None:
    """Write the slices, unless they are there."""
    of_raw, of_labels = CODINGS[coding]
    for z in range(slices):
        raw, labels = (folder / ARCHIVE.path(name, z) for name in ("raw", "mito"))
        if labels.exists():
            continue
        for path in (raw, labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(raw, tiled(np.asarray(Image.open(em / "raw" / f"{z % 20:02d}.png"))), **of_raw)
        instances, _ = ndimage.label(tiled(np.asarray(Image.open(em / "mito" / f"{z % 20:02d}.png"))) > 0)
        with h5py.File(labels.with_suffix(".part"), "w") as h5:
            h5.create_dataset("data", data=instances.astype(np.uint32), **of_labels)
        labels.with_suffix(".part").rename(labels)


def compare(folder: Path, work: Path, slices: int) -> dict[str, Any]:
    """Seconds, requests and bytes of both, for the same box; and whether the voxels are the same."""
    figures: dict[str, Any] = {"files": sum(path.stat().st_size for path in folder.rglob("*.*"))}
    box, their_box = (*X, *Y, 0, slices), (0, slices, *Y, *X)
    with serve(folder) as server:
        for who, script, out, asked in (("ours", OURS, work / "ours.zarr", box), ("theirs", THEIRS, work, their_box)):
            server.requests.clear()
            seconds, peak = measured(script.format(url=server.url, out=str(out), box=asked))
            sent = sum(request.sent for request in server.requests)
            figures[who] = {
                "seconds": round(seconds, 1), "MB": round(sent / 1e6, 1), "requests": len(server.requests),
                "peak MB": peak >> 20,
            }  # fmt: skip
        ours, theirs = xr.open_zarr(work / "ours.zarr"), zarr.open_group(next(work.glob("intestine_*.zarr")), mode="r")
        for name, their_name in (("raw", "raw"), ("mito", "labels")):
            np.testing.assert_array_equal(ours[name], theirs[their_name][:])
        window = ld.open_archive(ARCHIVE, server.url)
        server.requests.clear()
        began = time.perf_counter()
        window[["raw", "mito"]].isel(z=1, y=slice(2000, 2512), x=slice(3000, 3512)).compute()
        figures["a window of 512 x 512"] = {
            "seconds": round(time.perf_counter() - began, 2),
            "MB": round(sum(request.sent for request in server.requests) / 1e6, 2),
            "MB of both files": round(sum((folder / ARCHIVE.path(of, 1)).stat().st_size for of in window) / 1e6, 1),
        }
        ld.add_pyramid(work / "ours.zarr", progress=False)
        report = ld.verify(work / "ours.zarr", full=True, progress=False)
        assert report.ok, report
        figures["verified"] = report.voxels
    return figures


def train(folder: Path, work: Path, slices: int) -> dict[str, str]:
    """Both loaders on the same box, with the transform that users of torch_em take for instances."""
    box, their_box = (*X, *Y, 0, slices), (0, slices, *Y, *X)
    ours = (
        "import liver_dask as ld\n"
        f"loader = ld.get_human_liver_em_loader({str(work / 'train')!r}, bounding_boxes=[{box}], label_choice='mito',\n"
        f"    archive='EMPIAR-12535/intestine', source={str(folder)!r}, download=True, **options)"
    )
    theirs = (
        "from torch_em.data.datasets.electron_microscopy.mito_segem import get_mito_segem_loader\n"
        f"loader = get_mito_segem_loader({str(work)!r}, bounding_boxes=[{their_box}], **options)"
    )
    found = {}
    for who, get in (("ours", ours), ("theirs", theirs)):
        script = work / f"{who}.py"
        script.write_text(TRAIN.format(get=get))
        found[who] = os.popen(f"{sys.executable} -W ignore {script}").read().strip().splitlines()[-1]
    return found


def main(em: Path, work: Path, slices: int) -> None:
    """Print the figures of each coding."""
    for coding in CODINGS:
        folder, out = work / f"archive-{coding}", work / "stores"
        lay_out(em, folder, slices, coding)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        figures = compare(folder, out, slices)
        figures["training"] = train(folder, out, slices)
        print(coding, json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 8)
