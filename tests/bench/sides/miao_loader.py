"""The loader of miao-io on our store, which has a pyramid: no flips, standardised per patch, spawned workers."""

from pathlib import Path
from typing import Any

import zarr
from miao import MiaoConfig, VolumeConfig, VolumeDataset
from torch.utils.data import DataLoader

from ..processes import Task
from ..timed import Timed, timed_patches


def run_patches(task: Task) -> Timed:
    given = task.settings
    store = next(Path(given["store"]).glob("*.zarr"))
    (level, *_) = zarr.open_group(store, mode="r").attrs["ome"]["multiscales"][0]["datasets"]

    def loader(workers: int, normalize: bool) -> Any:
        volume = VolumeConfig(
            name="liver",
            path=str(store),
            image_key=".",
            label_key="labels/mito",
            zarr_version="zarr3",
            normalize=normalize,
            patch_normalize=normalize,
        )
        config = MiaoConfig(
            volumes=[volume],
            patch_size=list(given["patch"]),
            output_axes="lzyx",
            resolutions=[level["coordinateTransformations"][0]["scale"]],
            samples_per_epoch=100_000,
            cache_bytes=int(given["options"].get("cache_gb", 1) * 2**30),  # as ours; of each worker
        )
        context = "spawn" if workers else None
        return DataLoader(VolumeDataset(config), 1, num_workers=workers, multiprocessing_context=context)

    plain = ((batch["img"], batch["label"]) for batch in loader(0, False))
    return timed_patches(iter(loader(given["loaders"], True)), plain, 4 * given["loaders"], given["seconds"])
