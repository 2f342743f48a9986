"""Windows of a written store, for those who read thousands of them: no thread, no lock, no open file is kept.

Training reads patches at random, in processes that were forked or spawned. Reading the shards' index once and then the
bytes of each chunk takes a third of the time that zarr-python takes (tests/bench/training.py), and what is kept between
two reads survives a fork: zarr's pipelines have threads, which do not.
"""

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DamagedError, InvalidArgumentError
from .export_plan import Shape, Shard
from .slabs import EMPTY, Index, decode_planes, read_shard_index
from .store import layout_of, open_record, shard_path

Place = npt.NDArray[np.intp]


class StoredArray:
    """One variable of a complete store.

    Args:
        store: The store.
        name: The variable.

    Attributes:
        shape: Voxels (z, y, x).
        dtype: Of a voxel.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: It does not hold the variable. (ValueError)
    """

    def __init__(self, store: Path, name: str) -> None:
        record = open_record(store)
        if name not in record["variables"]:
            raise InvalidArgumentError(f"{store} does not hold {name!r}; it holds {', '.join(record['variables'])}.")
        self._store, self._name = store, name
        self._layout = layout_of(record)
        self.shape: Shape = self._layout.shape
        self.dtype: np.dtype[Any] = np.dtype(record["variables"][name]["dtype"])
        self._indexes: dict[Shard, Index] = {}

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indexes": {}}

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read voxels: a slice without a step for each of z, y and x.

        Raises:
            DamagedError: A shard is not as it was written, or gone. (OSError)
        """
        bounds = [of.indices(length) for of, length in zip(key, self.shape, strict=True)]
        starts, stops = (np.array([bound[end] for bound in bounds]) for end in (0, 1))
        out = np.zeros(np.maximum(stops - starts, 0), self.dtype)
        for place, begin, end in _cells(starts, stops, self._layout.shards) if out.size else ():
            self._read_shard(Shard(*place), begin, end, out, starts)
        return out

    def _read_shard(self, shard: Shard, begin: Place, end: Place, out: npt.NDArray[Any], origin: Place) -> None:
        """Fill in voxels `begin` to `end`, all in one shard, of an array whose first voxel is `origin`."""
        path = shard_path(self._store, self._name, shard)
        chunks, grid = self._layout.chunks, self._layout.chunks_per_shard
        try:
            with path.open("rb", buffering=0) as file:
                if shard not in self._indexes:
                    self._indexes[shard] = read_shard_index(file, grid)
                for place, low, high in _cells(begin, end, chunks):
                    offset, length = self._indexes[shard][tuple(place % grid)].tolist()
                    if offset == EMPTY:
                        continue
                    planes, rows, columns = map(
                        slice, (low - place * chunks).tolist(), (high - place * chunks).tolist()
                    )
                    voxels = decode_planes(os.pread(file.fileno(), length, offset), self.dtype, chunks, planes)
                    out[tuple(map(slice, low - origin, high - origin))] = voxels[:, rows, columns]
        except (DamagedError, OSError) as error:
            raise DamagedError(
                f"{path} cannot be read ({error}); `liver-dask verify {self._store}` tells what is damaged."
            ) from error


def _cells(starts: Place, stops: Place, step: Shape) -> Iterator[tuple[Place, Place, Place]]:
    """The cells of a grid that a window touches: the place of each, and which voxels of it the window has."""
    for numbers in product(*map(range, starts // step, -(-stops // step))):
        place = np.array(numbers)
        yield place, np.maximum(starts, place * step), np.minimum(stops, (place + 1) * step)
