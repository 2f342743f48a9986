"""The exclusive right to change a complete store."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.places import Place
from .identity import ADDED
from .record import BEGUN, BUSY, RECORD, read_record
from .storage.access import storage_of
from .storage.interface import Journal


@contextmanager
def changing(root: Place) -> Iterator[Journal]:
    """Hold the right to change a complete store, of which no voxel changes.

    Args:
        root: The store.

    Yields:
        The journal of the change.

    Raises:
        StoreExistsError: Another process is changing it.
    """
    with storage_of(root).change(root / RECORD / BEGUN, BUSY.format(root)) as journal:
        try:
            yield journal
        finally:
            set_time(root)


def set_time(store: Place) -> None:
    """Give the folder of a complete store the time of a file that never changes.

    By the folder's time xarray names dask's arrays, and by its name a computed variable is known.
    """
    record = read_record(store)
    if record and isinstance(store, Path):
        name = next(name for name, of in record["variables"].items() if not of.get(ADDED))
        with suppress(OSError):  # the folder may be of somebody else
            time = (store / name / "zarr.json").stat().st_mtime_ns
            os.utime(store, ns=(time, time))
