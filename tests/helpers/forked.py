"""Workers of clusters without the seconds that starting Python and importing the package takes."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed.utils import get_mp_context

PRELOADED = ["distributed", "liver_dask", "liver_dask.store.worker", "numba", "xarray", "zarr"]
"""Not torch, with which a worker would seem to have used much of its memory."""


@contextmanager
def forked_workers() -> Iterator[None]:
    """Have workers of a cluster that start within this context be forks of one process that has imported the package.

    They are as good as new processes: they get what they need pickled, nothing that the tests did lasts in that one,
    and importing these modules starts no thread of Python.
    """
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # it sets modules of its own, once
        multiprocessing.set_forkserver_preload(PRELOADED)
        yield
