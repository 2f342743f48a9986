"""Settings of the C library's malloc for processes in which many threads allocate large arrays.

A user's own process is not changed unless the configuration allows it (`liver-dask.tune-malloc`). These functions are
for the command line, for workers that dask started, and for worker processes of a data loader.
"""

import ctypes
import functools
import multiprocessing
import os

KEEP = {-3: 32 << 20, -1: 512 << 20}
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Freed blocks up to the first size are reused, and up to the second
size of freed memory is kept for that."""

FEW_ARENAS = {-8: 4}
"""glibc's M_ARENA_MAX. By default there are up to eight arenas per core, and each keeps what the threads of finished
jobs left in it: over hundreds of jobs a process grows to twice the memory that it uses."""


def keep_memory() -> None:
    """Keep freed memory for reuse instead of returning it to the system. Without glibc, this does nothing.

    By default each large array is new memory: the system zeroes it first, and every page causes a page fault.
    """
    _set(KEEP | FEW_ARENAS)


@functools.cache
def keep_memory_of_worker() -> None:
    """Call `keep_memory`, once, in a worker that dask started: such a worker has MALLOC_TRIM_THRESHOLD_=65536.

    With that setting, glibc requests the memory for every array and every compressor context from the system, page by
    page. zstd then runs at a quarter of its rate, and an export at less than half.
    """
    is_child = (
        multiprocessing.parent_process() is not None
    )  # a cluster in a user's process sets the variable there, too
    if is_child and "MALLOC_TRIM_THRESHOLD_" in os.environ:
        keep_memory()


def share_memory() -> None:
    """Let all threads of this process reuse the same freed memory. Without glibc, this does nothing."""
    _set(FEW_ARENAS)


def _set(options: dict[int, int]) -> None:
    try:
        libc = ctypes.CDLL(None)
        for parameter, value in options.items():
            libc.mallopt(parameter, value)
    except (OSError, AttributeError):
        pass
