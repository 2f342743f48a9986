"""Measuring and predicting: `python analysis.py [SCRATCH]`.

Measuring: a mask of balls of 128, 256, 512 and 1024 slices of 512 x 512, in a store, by `ld.measure` and by what one
does on one machine (read all of it, `skimage.measure.label`, `regionprops_table`); seconds and peak memory of a
process each. Predicting: a U-Net of torch_em over 16 x 512 x 512 of raw on the processor, against the bare network on
the same blocks, which lie in memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

import liver_dask as ld

SIDE, DEPTHS = 512, (128, 256, 512, 1024)
BLOCK, HALO, ROUNDS = (8, 128, 128), (0, 16, 16), 3


def balls(depth: int) -> xr.Dataset:
    """A mask of balls and a random image, lazily."""

    def voxels(block_info: Any = None) -> np.ndarray:
        (z0, z1), *_ = block_info[None]["array-location"]
        z, y, x = np.ogrid[z0:z1, :SIDE, :SIDE]
        radius = 5 + (z // 32 + y // 32 + x // 32) % 9
        return (((z % 32 - 16) ** 2 + (y % 32 - 16) ** 2 + (x % 32 - 16) ** 2) <= radius**2).astype(np.uint8) * 255

    chunks = ((16,) * (depth // 16), (SIDE,), (SIDE,))
    mask = da.map_blocks(voxels, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    raw = da.random.default_rng(0).integers(0, 60_000, mask.shape, chunks=mask.chunks, dtype=np.uint16)
    dims = ["z", "y", "x"]
    return xr.Dataset({"raw": (dims, raw), "mito": (dims, mask, {"kind": "mask"})})


def ours(store: str) -> int:
    ds = xr.open_zarr(store)
    return len(ld.measure(ds.mito, ds.raw, progress=False))


def plain(store: str) -> int:
    import pandas as pd
    from skimage.measure import label, regionprops_table

    ds = xr.open_zarr(store).load()
    labels = label(ds.mito.values > 0)
    return len(pd.DataFrame(regionprops_table(labels, ds.raw.values, properties=("area", "bbox", "mean_intensity"))))


def predicting() -> dict[str, Any]:
    import torch
    from torch_em.model import AnisotropicUNet

    network = AnisotropicUNet(
        1, 1, scale_factors=[[1, 2, 2]] * 2, initial_features=8, final_activation="Sigmoid"
    ).eval()
    voxels = np.random.default_rng(0).integers(1, 60_000, (16, SIDE, SIDE)).astype(np.uint16)
    raw = xr.DataArray(da.from_array(voxels, chunks=(8, 256, 256)), dims=["z", "y", "x"])
    whole = np.pad(voxels, [(halo, halo) for halo in HALO], "reflect").astype(np.float32)
    blocks = [
        torch.from_numpy(whole[z : z + 8, y : y + 160, x : x + 160].copy())[None, None] / 60_000
        for z in (0, 8)
        for y in range(0, SIDE, 128)
        for x in range(0, SIDE, 128)
    ]
    bare, lazily = [], []
    for _ in range(ROUNDS):
        began = time.monotonic()
        with torch.inference_mode():
            for block in blocks:
                network(block)
        bare.append(time.monotonic() - began)
        began = time.monotonic()
        ld.predict(network, raw, block=BLOCK, halo=HALO, preprocess=(0, 60_000)).compute(scheduler="threads")
        lazily.append(time.monotonic() - began)
    return {
        "bare network, s": [round(of, 2) for of in bare],
        "ld.predict, s": [round(of, 2) for of in lazily],
        "share of the bare rate": [round(one / other, 3) for one, other in zip(bare, lazily, strict=True)],
    }


def peak() -> int:
    """The most bytes this process ever had resident."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def timed(way: str, store: str) -> dict[str, Any]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, way, store]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(scratch: Path) -> None:
    report: dict[str, Any] = {}
    for depth in DEPTHS:
        store = ld.to_zarr(balls(depth), scratch / f"{depth}.zarr", progress=False)
        report[f"{depth} slices"] = {way: [timed(way, store) for _ in range(2)] for way in ("ours", "plain")}
    report["predicting"] = json.loads(
        subprocess.run([sys.executable, __file__, "predicting"], check=True, capture_output=True, text=True).stdout
    )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["predicting"]:
        print(json.dumps(predicting()))
    elif sys.argv[1:2] in (["ours"], ["plain"]):
        began = time.monotonic()
        count = {"ours": ours, "plain": plain}[sys.argv[1]](sys.argv[2])
        print(json.dumps({"s": round(time.monotonic() - began, 2), "MB": round(peak() / 1e6), "objects": count}))
    else:
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
            main(Path(folder))
