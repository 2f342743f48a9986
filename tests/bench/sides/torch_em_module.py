"""torch_em's own module for this archive, with the archive's address replaced."""

from typing import Any

import numpy as np
import torch_em.data.datasets.electron_microscopy.human_liver_em as theirs
import zarr

from ..processes import Task
from ..timed import Timed, timed_patches

USES_DASK = False
"""Workers of a cluster would have nothing to do."""


def fetched(task: Task, box: list[int], folder: str) -> str:
    """The store of a box."""
    theirs.EMPIAR_BASE = task.url
    return theirs.get_human_liver_em_data(folder, tuple(box), download=True)


def run_window(task: Task) -> dict[str, Any]:
    z, y, x = task.settings["window"]
    stored = zarr.open_group(fetched(task, [*x, *y, *z], task.out), mode="r")
    return {name: array[:] for name, array in stored.arrays()}


def run_box(task: Task) -> None:
    fetched(task, task.settings["box"], task.out)


def run_slab(task: Task) -> None:
    theirs.EMPIAR_BASE = task.url
    theirs.HUMAN_LIVER_EM_TISSUE_BBOX = (0, task.shape[2], *task.settings["y"], 0, task.shape[0])
    theirs.get_human_liver_em_full_volume(task.out, download=True)


def run_store(task: Task) -> None:
    fetched(task, task.settings["box"], task.settings["store"])


def run_patches(task: Task) -> Timed:
    given = task.settings

    def loader(**more: Any) -> Any:
        return theirs.get_human_liver_em_loader(
            given["store"],
            patch_shape=tuple(given["patch"]),
            batch_size=1,
            bounding_boxes=[tuple(given["box"])],
            label_choice="mito",
            **{"num_workers": given["loaders"], "n_samples": 100_000, "pin_memory": False, **more},
        )

    plain = loader(num_workers=0, raw_transform=np.asarray, transform=lambda *arrays: arrays)
    return timed_patches(iter(loader()), iter(plain), 4 * given["loaders"], given["seconds"])
