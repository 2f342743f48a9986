"""What dask's scheduler has to bear: `python scheduler.py [--workers N] [--slices N]`, with no archive and no work.

The labelled share of all slices of the real volume, three masks (`ds.liver.fractions()`), by N workers that are threads
of one process; what reads voxels waits for some milliseconds instead. The number of blocks and tasks is the real one,
only their columns are few. Told are tasks, seconds, CPU milliseconds a task (of client, scheduler and all workers
together: the scheduler's own share is less), and how much memory the process took more.
"""

import argparse
import json
import resource
import time
from typing import Any
from unittest import mock

import dask
from distributed import Client, LocalCluster

import liver_dask as ld
from liver_dask.archive.reader import SlicePart, VolumeReader
from liver_dask.archive.remote.versions import MISSING

COLUMNS = 16
SECONDS_OF_A_BLOCK = 0.002


def read_nothing(self: VolumeReader, z: Any, y: Any, x: Any, out: Any, prepared: Any = ()) -> None:
    """Take the time of a block, and give zeros."""
    time.sleep(SECONDS_OF_A_BLOCK)
    out[...] = 0


def prepare_nothing(self: VolumeReader, z: int, start: int, stop: int) -> SlicePart:
    """Take the time of a mask, and give nothing."""
    time.sleep(10 * SECONDS_OF_A_BLOCK)
    return SlicePart(MISSING, None)


def megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main(workers: int, slices: int) -> None:
    options = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": False,
        "memory_limit": 0,  # each worker would hold the memory of all for its own, and pause
        "dashboard_address": None,
    }
    quiet = {"distributed.worker.profile.enabled": False, "distributed.admin.system-monitor.interval": "60s"}
    with (
        dask.config.set(quiet),  # what each worker does all the time would be counted as many times in one process
        mock.patch.object(VolumeReader, "__call__", read_nothing),
        mock.patch.object(VolumeReader, "prepare", prepare_nothing),
        LocalCluster(**options) as cluster,
        Client(cluster) as client,
    ):
        ds = ld.open_human_liver_em(shape=(slices, 20000, COLUMNS))
        before = megabytes()
        began, spent = time.perf_counter(), time.process_time()
        shares = ds.liver.fractions()
        opened = time.perf_counter() - began
        future = client.compute(shares)
        most = 0
        while not future.done():
            most = max(most, len(cluster.scheduler.tasks))
            time.sleep(0.2)
        future.result()
        told = {
            "workers": workers,
            "slices": slices,
            "most tasks in the scheduler": most,
            "seconds to make the graph": round(opened, 2),
            "seconds": round(time.perf_counter() - began, 1),
            "CPU ms a task": round(1000 * (time.process_time() - spent) / most, 2),
            "MB more": megabytes() - before,
            "KB a task": round(1024 * (megabytes() - before) / most, 1),
        }
        print(json.dumps(told), flush=True)  # to close many workers takes a while


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--slices", type=int, default=597)
    given = parser.parse_args()
    main(given.workers, given.slices)
