"""The process of one measurement: `python -m tests.bench.side TASK`. It imports a side, runs its work, and tells.

Imports, and a cluster of dask that is started, are not in the time.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np

from .processes import Task
from .timed import Timed

MEMORY_OF_A_WORKER = "4GiB"


@contextmanager
def cluster(workers: int, folder: str, module: str) -> Iterator[None]:
    """Workers of one thread that have imported the side, as the default of dask; or none, which are threads."""
    if not workers:
        yield
        return
    from distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "memory_limit": MEMORY_OF_A_WORKER, "dashboard_address": ":0"}
    with LocalCluster(n_workers=workers, local_directory=folder, **options) as made, Client(made) as client:
        client.run(import_module, module)
        yield


def peak() -> int:
    """The most bytes that this process ever had resident."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def main(task: Task) -> None:
    """Run a task. Arrays are saved in its folder, with a file `result.json`."""
    module = import_module(f".sides.{task.side}", __package__)
    work = getattr(module, f"run_{task.row}")
    workers = task.settings.get("workers", 0) if getattr(module, "USES_DASK", True) else 0
    with cluster(workers, task.out, module.__name__):
        began = time.perf_counter()
        done = work(task)
        seconds, note = time.perf_counter() - began, ""
    if isinstance(done, Timed):
        seconds, done, note = done
    told = {"seconds": seconds, "peak": peak(), "note": note}
    for name, array in done.items() if isinstance(done, Mapping) else ():
        np.save(Path(task.out) / f"{name}.npy", np.asarray(array))
    (Path(task.out) / "result.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Task.from_json(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # workers of loaders are not waited for: whoever started this process ends them
