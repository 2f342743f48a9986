"""Where in a stored array the voxels of an xarray variable are: told by how it was made, since coordinates may change.

Whoever wants to put other voxels in the place of a variable's, as the levels of a pyramid are, has to know for certain
which ones it holds. Xarray says so of what it has not read yet, and dask of what it read and cut out; of whatever else
was done with a variable nothing is said.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import xarray as xr
from dask.core import get
from dask.highlevelgraph import MaterializedLayer
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core import indexing
from zarr.storage import LocalStore

from ..archive.lazy.arrays import Window
from ..core.geometry import Shape

READ, CUT = "open_dataset-", "getitem-"
"""How dask's layers are named that read voxels, and that take some of them."""

PASSED_ON = (indexing.ImplicitToExplicitIndexingAdapter, indexing.CopyOnWriteArray, indexing.MemoryCachedArray)
"""What xarray wraps an array in without changing its voxels."""


class Placement(NamedTuple):
    """A box of a stored array.

    Attributes:
        array: The array's folder.
        corner: Its first voxel (z, y, x); from there they run one by one along each axis.
    """

    array: Path
    corner: Shape


def placement_of(variable: xr.Variable) -> Placement | None:
    """Where the voxels of a variable are; None where they are in no stored array, in another order, or it is not sure.

    Nothing is read.
    """
    data = variable._data
    found = _of_blocks(data) if isinstance(data, da.Array) else _of_lazy(data)
    if found is None:
        return None
    array, window = found
    starts = [int(selection[0]) if len(selection) else 0 for selection in window.selections]
    runs = [np.arange(start, start + length) for start, length in zip(starts, variable.shape, strict=True)]
    if not all(map(np.array_equal, window.selections, runs)):
        return None
    z, y, x = starts
    return Placement(array, (z, y, x))


def _of_lazy(data: Any) -> tuple[Path, Window] | None:
    """Of what xarray has not read yet."""
    while isinstance(data, PASSED_ON):
        data = data.array
    if type(data) is not indexing.LazilyIndexedArray or not isinstance(data.array, ZarrArrayWrapper):
        return None
    stored = data.array._array
    if not isinstance(stored.store, LocalStore) or len(stored.shape) != len(data.shape) or len(data.shape) != 3:
        return None
    try:
        return Path(stored.store.root, stored.path), Window.whole(stored.shape)[data.key.tuple]
    except NotImplementedError:
        return None


def _of_blocks(array: da.Array) -> tuple[Path, Window] | None:
    """Of a dask array: blocks that were read, and parts of those, again and again.

    Its tasks are executed with a window in the place of voxels, for the blocks along the edges: along each axis on its
    own they tell what all others hold, since such tasks take a range or a list of each axis.
    """
    layers: Mapping[str, Any] = array.dask.layers
    others = [layer for name, layer in layers.items() if not name.startswith((CUT, READ))]
    leaves = list(others[0].items()) if len(others) == 1 and len(others[0]) == 1 else []
    if array.ndim != 3 or len(leaves) != 1 or not array.size:
        return None
    (leaf, node), edges = leaves[0], _edges_of(array)
    found = _of_lazy(getattr(node, "value", node))
    tasks = _tasks_of(array.name, layers, {key for axis in edges for key in axis}, leaf)
    if found is None or tasks is None:
        return None
    path, window = found
    blocks = get({**tasks, leaf: _Stand(window)}, edges)
    if not all(isinstance(block, _Stand) and len(block.shape) == 3 for axis in blocks for block in axis):
        return None
    z, y, x = (
        np.concatenate([np.asarray(block.window.selections[axis]) for block in along])
        for axis, along in enumerate(blocks)
    )
    return path, Window((z, y, x))


def _edges_of(array: da.Array) -> list[list[tuple[Any, ...]]]:
    """For each axis the keys of the blocks along it."""
    return [
        [(array.name, *(number if axis == along else 0 for axis in range(array.ndim))) for number in range(count)]
        for along, count in enumerate(array.numblocks)
    ]


def _tasks_of(name: str, layers: Mapping[str, Any], keys: set[Any], leaf: str) -> dict[Any, Any] | None:
    """The tasks of some blocks, and those that they need; None if one does something else than read or cut.

    Dask's own culling lists the keys of all blocks first, which takes seconds for a volume.
    """
    tasks: dict[Any, Any] = {}
    while name.startswith(CUT) and type(layers[name]) is MaterializedLayer:
        found = {key: layers[name][key] for key in keys}
        needed = {key for task in found.values() for key in _needed_by(task)}
        tasks |= found
        names = {key[0] for key in needed}
        if len(names) != 1 or names & {key[0] for key in tasks}:
            return None
        keys, name = needed, names.pop()
    if not name.startswith(READ) or not hasattr(layers[name], "io_deps"):
        return None
    culled, _ = layers[name].cull(keys, {leaf})
    return {**tasks, **dict(culled)}


def _needed_by(task: Any) -> Iterable[Any]:
    """The blocks that a task takes, in dask's two ways to write it."""
    return task[1:2] if isinstance(task, tuple) else task.dependencies


class _Stand:
    """Stands for an array of voxels: indexing it gives what stands for those that the index takes."""

    dtype = np.dtype(np.intp)

    def __init__(self, window: Window) -> None:
        self.window = window

    @property
    def shape(self) -> tuple[int, ...]:
        return self.window.shape

    @property
    def ndim(self) -> int:
        return len(self.window.kept)

    def __getitem__(self, key: Any) -> "_Stand":
        return _Stand(self.window[key if isinstance(key, tuple) else (key,)])

    def __array_function__(self, *_: Any) -> Any:  # which makes it an array to dask
        return NotImplemented
