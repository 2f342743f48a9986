"""Find which box of a stored array an xarray variable holds, from how the variable was built.

Coordinates cannot answer this, because a user may change them. Code that replaces the voxels of a variable by others,
such as those of a pyramid level, must know for certain which voxels the variable holds. There are two sources for this:
xarray's lazy index for voxels that are not read yet, and the dask graph for blocks that were read and sliced. If a
variable was changed in any other way, its placement is unknown.
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
from zarr.storage import FsspecStore, LocalStore

from ..archive.lazy.window import Window
from ..core.geometry import Shape
from ..core.places import ObjectPath, Place

READ, CUT = "open_dataset-", "getitem-"
"""Name prefixes of the dask layers that read voxels (READ) and that slice them (CUT)."""

PASSED_ON = (indexing.ImplicitToExplicitIndexingAdapter, indexing.CopyOnWriteArray, indexing.MemoryCachedArray)
"""Classes that xarray wraps around an array without changing its voxels."""


OF_OPENING = {"asynchronous", "loop", "use_listings_cache", "skip_instance_cache"}
"""Options of a file system that say how it is used, not what it is."""


class Placement(NamedTuple):
    """A box of a stored array.

    Attributes:
        array: Folder of the array.
        corner: Index (z, y, x) of the first voxel of the box. The box is contiguous along each axis.
    """

    array: Place
    corner: Shape


def placement_of(variable: xr.Variable) -> Placement | None:
    """Find which box of a stored array a variable holds. No voxel is read.

    Returns:
        The box; None if the voxels are in no stored array, are not contiguous and in ascending order, or if this is not
        certain.
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


def _of_lazy(data: Any) -> tuple[Place, Window] | None:
    """Return the array folder and the window of a variable that xarray has not read yet."""
    while isinstance(data, PASSED_ON):
        data = data.array
    if type(data) is not indexing.LazilyIndexedArray or not isinstance(data.array, ZarrArrayWrapper):
        return None
    stored = data.array._array
    place = _place_of(stored.store, stored.path)
    if place is None or len(stored.shape) != len(data.shape) or len(data.shape) != 3:
        return None
    try:
        return place, Window.whole(stored.shape)[data.key.tuple]
    except NotImplementedError:
        return None


def _place_of(store: Any, path: str) -> Place | None:
    """Return the place of an array in a store of zarr; None if it is neither in a folder nor in object storage."""
    if isinstance(store, LocalStore):
        return Path(store.root, path)
    if not isinstance(store, FsspecStore):
        return None
    system = getattr(store.fs, "sync_fs", store.fs)
    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    options = {key: value for key, value in system.storage_options.items() if key not in OF_OPENING}
    if protocol in ("file", "local", "http", "https"):
        return None
    return ObjectPath(f"{protocol}://{store.path.strip('/')}", options) / path


def _of_blocks(array: da.Array) -> tuple[Place, Window] | None:
    """Return the array folder and the window of a dask array whose blocks were read, then sliced any number of times.

    The tasks of the blocks along the three edges are executed with a window in place of voxels. These blocks determine
    the indexes of all others, because such tasks index each axis independently, by a range or a list.
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
    """Return, for each axis, the keys of the blocks along it."""
    return [
        [(array.name, *(number if axis == along else 0 for axis in range(array.ndim))) for number in range(count)]
        for along, count in enumerate(array.numblocks)
    ]


def _tasks_of(name: str, layers: Mapping[str, Any], keys: set[Any], leaf: str) -> dict[Any, Any] | None:
    """Return the tasks of some blocks and their dependencies; None if a task does anything but read or slice.

    Dask's own culling first lists the keys of all blocks, which takes seconds for a volume.
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
    """Return the keys of the blocks that a task depends on, for both task formats of dask."""
    return task[1:2] if isinstance(task, tuple) else task.dependencies


class _Stand:
    """Placeholder for an array of voxels. Indexing it returns the placeholder of the selected voxels."""

    dtype = np.dtype(np.intp)

    def __init__(self, window: Window) -> None:
        self.window = window

    @property
    def shape(self) -> tuple[int, ...]:
        return self.window.shape

    @property
    def ndim(self) -> int:
        return len(self.window.axes)

    def __getitem__(self, key: Any) -> "_Stand":
        return _Stand(self.window[key if isinstance(key, tuple) else (key,)])

    def __array_function__(self, *_: Any) -> Any:  # dask treats objects with this method as arrays
        return NotImplemented
