"""How the C library's malloc keeps memory, for processes in which many threads ask for large arrays.

A user's own process is not changed unless that is configured (`liver-dask.tune-malloc`): what is done here is for the
command line, for workers that dask started, and for those of a loader.
"""

import ctypes
import functools
import multiprocessing
import os

KEEP = {-3: 32 << 20, -1: 512 << 20}
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: blocks up to the first are reused, and so much is kept for that."""

FEW_ARENAS = {-8: 4}
"""glibc's M_ARENA_MAX. Else there are up to eight a core, and each keeps what threads of ended jobs left in it: with
hundreds of jobs a process grows to twice of what it uses."""


def keep_memory() -> None:
    """Do not give back to the system what this process will need again; without glibc, nothing happens.

    Else each large array is fresh memory, of which every page is a fault, and is zeroed first.
    """
    _set(KEEP | FEW_ARENAS)


@functools.cache
def keep_memory_of_worker() -> None:
    """The same, once, in a worker that dask started: that is with MALLOC_TRIM_THRESHOLD_=65536.

    By that glibc asks the system for every array and every context of the compressor, page by page: zstd then runs at a
    quarter of its rate, and an export at less than half.
    """
    is_child = (
        multiprocessing.parent_process() is not None
    )  # a cluster in a user's process sets the variable there, too
    if is_child and "MALLOC_TRIM_THRESHOLD_" in os.environ:
        keep_memory()


def share_memory() -> None:
    """Let all threads of this process reuse the same freed memory; without glibc, nothing happens."""
    _set(FEW_ARENAS)


def _set(options: dict[int, int]) -> None:
    try:
        libc = ctypes.CDLL(None)
        for parameter, value in options.items():
            libc.mallopt(parameter, value)
    except (OSError, AttributeError):
        pass
