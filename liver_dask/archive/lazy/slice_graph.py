"""The dask tasks of a window that is read slice by slice: one task prepares what the blocks of a slice share.

For a mask, this is the decoding from the first row. For raw, it is the strip index. If the tasks of the blocks did this
themselves, each worker of a cluster would repeat it. Within one process, the tasks of the blocks do it themselves: they
share what is known about a slice anyway, and nothing is done for blocks that are not needed in the end.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, product
from typing import Any, Protocol

import numpy.typing as npt
from dask._task_spec import Task, TaskRef
from dask.base import clone_key
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer

from ...core.malloc import keep_memory_of_worker
from ...core.threads import is_in_task

Chunks = tuple[tuple[int, ...], ...]

Block = tuple[int, ...]
"""The number of a block along each remaining axis of a window."""


class SlicedWindow(Protocol):
    """A window of a volume that is read slice by slice."""

    def prepare(self, z: int) -> Any:
        """Return what is needed to read parts of a slice; it is picklable and small."""

    def read_prepared(self, key: tuple[slice, ...], prepared: Sequence[Any]) -> npt.NDArray[Any]:
        """Return the voxels that `key` selects; `prepared` holds what was prepared for each slice, or nothing."""


def sliced_graph(name: str, window: SlicedWindow, chunks: Chunks, *, has_z: bool) -> HighLevelGraph:
    """Return the graph of a dask array of all blocks of a window.

    The window is a value of the graph, like the source of dask's own arrays.

    Args:
        name: Name of the dask array.
        window: The window.
        chunks: Chunks of the array.
        has_z: Whether the first axis is z; otherwise the array has no z axis.
    """
    of_window = f"window-{name}"
    layers: dict[str, Layer] = {
        of_window: MaterializedLayer({of_window: window}),
        name: SliceLayer(name, of_window, chunks, has_z),
    }
    return HighLevelGraph(layers, {of_window: set(), name: {of_window}})


class SliceLayer(Layer):
    """The tasks of some blocks of a window, and the tasks that prepare their slices; created at first access."""

    def __init__(
        self,
        name: str,
        window: str,
        chunks: Chunks,
        has_z: bool,
        blocks: frozenset[Block] | None = None,
        annotations: Mapping[str, Any] | None = None,
    ) -> None:
        """Create a layer.

        Args:
            name: Name of the dask array.
            window: Key of the window, which is a SlicedWindow.
            chunks: Chunks of the array.
            has_z: Whether the first axis is z.
            blocks: Numbers of the blocks; None for all blocks.
            annotations: Annotations of the layer, see Layer.
        """
        super().__init__(annotations)
        self._name, self._window, self._chunks, self._has_z, self._chosen = name, window, chunks, has_z, blocks

    @property
    def _blocks(self) -> frozenset[Block]:
        if self._chosen is None:
            return frozenset(product(*(range(len(lengths)) for lengths in self._chunks)))
        return self._chosen

    def is_materialized(self) -> bool:
        """Return whether the tasks were created."""
        return "_tasks" in self.__dict__

    def get_output_keys(self) -> set[Any]:
        """Return the keys of the blocks."""
        return {(self._name, *block) for block in self._blocks}

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:
        """Return a layer of only the wanted blocks and their slices, and the dependencies of the blocks."""
        wanted = frozenset(key[1:] for key in keys) & self._blocks
        layer = SliceLayer(self._name, self._window, self._chunks, self._has_z, wanted, self.annotations)
        return layer, {(self._name, *block): {self._window} for block in wanted}

    def clone(self, keys: set[Any], seed: Any, bind_to: Any = None) -> tuple[Layer, bool]:
        """Clone the layer, see Layer.

        The method of dask looks for keys in tuples, but not in tasks. `bind_to` is not used, because the layer depends
        on the window, which is bound instead.
        """
        if self._window not in keys:
            return self, False
        name, window = clone_key(self._name, seed), clone_key(self._window, seed)
        return SliceLayer(name, window, self._chunks, self._has_z, self._chosen, self.annotations), False

    def __getitem__(self, key: Any) -> Task:
        return self._tasks[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __reduce__(self) -> tuple[Any, ...]:
        return SliceLayer, (self._name, self._window, self._chunks, self._has_z, self._chosen, self.annotations)

    @property
    def reading(self) -> dict[Any, Task]:
        """The tasks of the blocks alone, for callers that compute all of them in one process."""
        return self._made(is_shared=False)

    @cached_property
    def _tasks(self) -> dict[Any, Task]:
        return self._made(is_shared=any(len(lengths) > 1 for lengths in self._chunks[self._has_z :]))

    def _made(self, *, is_shared: bool) -> dict[Any, Task]:
        stops = [list(accumulate(lengths, initial=0)) for lengths in self._chunks]
        tasks: dict[Any, Task] = {}
        for block in self._blocks:
            box = tuple(slice(along[i], along[i + 1]) for along, i in zip(stops, block, strict=True))
            slices = range(box[0].start, box[0].stop) if self._has_z else range(1)
            prepared = [(f"slice-{self._name}", z) for z in slices] if is_shared else []
            for key in prepared:
                tasks.setdefault(key, Task(key, prepare, TaskRef(self._window), key[1]))
            own = (self._name, *block)
            tasks[own] = Task(own, read, TaskRef(self._window), box, *map(TaskRef, prepared))
        return tasks


def prepare(window: SlicedWindow, z: int) -> Any:
    """Return what the blocks of a slice share; None if they are not read in several processes."""
    if not is_in_task():
        return None
    keep_memory_of_worker()
    return window.prepare(z)


def read(window: SlicedWindow, key: tuple[slice, ...], *prepared: Any) -> npt.NDArray[Any]:
    """Return the voxels of a block; `prepared` holds what was prepared for its slices."""
    keep_memory_of_worker()
    return window.read_prepared(key, [part for part in prepared if part is not None])
