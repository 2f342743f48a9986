"""The dask tasks of a window that is read slice by slice: what blocks of a slice share is found out by one task.

Of a mask that is decoding it from the top, of raw its strip index. Were it left to the tasks of the blocks, each worker
of a cluster would do it anew. Within one process it is left to them: they share what is known of a slice anyway, and so
no more is done than the blocks need that are wanted after all.
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
"""The number of a block on each axis that a window has kept."""


class SlicedWindow(Protocol):
    """A window of a volume that is read slice by slice."""

    def prepare(self, z: int) -> Any:
        """What reading parts of a slice takes beside reading them; picklable, and small."""

    def read_prepared(self, key: tuple[slice, ...], prepared: Sequence[Any]) -> npt.NDArray[Any]:
        """The voxels that `key` selects, with what was prepared of each slice of it, or nothing."""


def sliced_graph(name: str, window: SlicedWindow, chunks: Chunks, *, has_z: bool) -> HighLevelGraph:
    """The graph of a dask array `name` of all blocks of a window; with `has_z` its first axis is z, else it has none.

    The window is a value of the graph, as dask's own arrays have what they are cut from.
    """
    of_window = f"window-{name}"
    layers: dict[str, Layer] = {
        of_window: MaterializedLayer({of_window: window}),
        name: SliceLayer(name, of_window, chunks, has_z),
    }
    return HighLevelGraph(layers, {of_window: set(), name: {of_window}})


class SliceLayer(Layer):
    """The tasks of some blocks of a window, and those that prepare their slices; made when they are looked at."""

    def __init__(
        self,
        name: str,
        window: str,
        chunks: Chunks,
        has_z: bool,
        blocks: frozenset[Block] | None = None,
        annotations: Mapping[str, Any] | None = None,
    ) -> None:
        """`window` is the key of the window, a SlicedWindow; without `blocks` it is all of them."""
        super().__init__(annotations)
        self._name, self._window, self._chunks, self._has_z, self._chosen = name, window, chunks, has_z, blocks

    @property
    def _blocks(self) -> frozenset[Block]:
        if self._chosen is None:
            return frozenset(product(*(range(len(lengths)) for lengths in self._chunks)))
        return self._chosen

    def is_materialized(self) -> bool:
        """Whether the tasks are made."""
        return "_tasks" in self.__dict__

    def get_output_keys(self) -> set[Any]:
        """The keys of the blocks."""
        return {(self._name, *block) for block in self._blocks}

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:
        """Only the blocks that are wanted, and their slices."""
        wanted = frozenset(key[1:] for key in keys) & self._blocks
        layer = SliceLayer(self._name, self._window, self._chunks, self._has_z, wanted, self.annotations)
        return layer, {(self._name, *block): {self._window} for block in wanted}

    def clone(self, keys: set[Any], seed: Any, bind_to: Any = None) -> tuple[Layer, bool]:
        """See Layer; dask's own looks for keys in tuples, and not in tasks. What is to be waited for, the window is."""
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
        """The tasks of the blocks alone, for those who compute all of them in one process."""
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
    """What blocks of a slice share, where they may be read in several processes."""
    if not is_in_task():
        return None
    keep_memory_of_worker()
    return window.prepare(z)


def read(window: SlicedWindow, key: tuple[slice, ...], *prepared: Any) -> npt.NDArray[Any]:
    """The voxels of a block, with what was prepared of its slices."""
    keep_memory_of_worker()
    return window.read_prepared(key, [part for part in prepared if part is not None])
