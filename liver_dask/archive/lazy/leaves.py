"""What tasks of dask read of the archive, found in their graphs without computing anything.

A graph may be as it was made (layers), or as dask has optimised it: then what reads may be a task within a task.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    NestedContainer,
    Task,
    TaskRef,
    _execute_subgraph,
    convert_legacy_graph,
)
from dask.blockwise import Blockwise
from xarray.core import indexing

from .arrays import LazyWindow, Window
from .futures import is_held
from .points import LazyPoints
from .slice_graph import SliceLayer, prepare

Tasks = dict[Any, GraphNode]

_OF_XARRAY = indexing.ExplicitlyIndexed, indexing.ImplicitToExplicitIndexingAdapter


@dataclass(frozen=True)
class Read:
    """A part of a window, as a task reads it."""

    lazy: LazyWindow
    window: Window

    @property
    def nbytes(self) -> int:
        """Bytes of its voxels."""
        return math.prod(map(len, self.window.selections)) * self.lazy.dtype.itemsize

    @property
    def ends(self) -> tuple[int, int, int]:
        """The last index along z, y and x, plus one; of one that is not empty."""
        z, y, x = (
            max(int(of[0]), int(of[-1]), 0 if isinstance(of, range) else int(of.max())) for of in self.window.selections
        )
        return z + 1, y + 1, x + 1

    def of(self, index: Any) -> "Read":
        """The part of it that is indexed; all of it, where the index is not understood."""
        try:
            return Read(self.lazy, self.window[index]) if isinstance(index, tuple) else self
        except (NotImplementedError, ValueError, IndexError, TypeError):
            return self


def tasks_of(array: da.Array) -> Tasks:
    """All tasks of an array; of windows those that read, which find out themselves what they share in a process."""
    written_out: dict[Any, Any] = {}
    for layer in array.dask.layers.values():
        written_out |= layer.reading if isinstance(layer, SliceLayer) else layer
    held = {key: DataNode(key, value) for key, value in written_out.items() if is_held(value)}
    return convert_legacy_graph(written_out) | held  # which would leave out what a cluster holds


def leaves_in(array: da.Array) -> list[LazyWindow | LazyPoints]:
    """What a dask array reads of; of voxels that were computed before (`persist`) nothing tells."""
    found: dict[int, LazyWindow | LazyPoints] = {}
    for name, layer in array.dask.layers.items():
        if isinstance(layer, Blockwise):  # not written out yet: it is made of other layers, or literals
            found |= {id(leaf): leaf for leaf in _leaves_among([layer.task, *(of for of, _ in layer.indices)])}
        elif not array.dask.dependencies[name]:
            found |= {id(leaf): leaf for leaf in _leaves_among(layer.values())}
    return list(found.values())


def _leaves_among(nodes: Iterable[Any]) -> Iterator[LazyWindow | LazyPoints]:
    for node in nodes:
        if isinstance(node, Mapping):
            yield from _leaves_among(node.values())
        elif isinstance(node, (tuple, list)):
            yield from _leaves_among(node)
        elif isinstance(node, Task):
            yield from _leaves_among([*node.args, *node.kwargs.values()])
        elif isinstance(leaf := getattr(node, "value", node), LazyPoints):
            yield leaf
        elif read := window_of(leaf):
            yield read.lazy


def window_of(leaf: Any) -> Read | None:
    """The part of a window that an array stands for, however xarray has wrapped it; None of any other array."""
    keys = []
    while leaf is not None and not isinstance(leaf, LazyWindow):
        inner = getattr(leaf, "lazy", None)
        if not isinstance(inner, LazyWindow):
            keys.append(getattr(getattr(leaf, "key", None), "tuple", None))
            inner = getattr(leaf, "array", None) if isinstance(leaf, _OF_XARRAY) else None
        leaf = inner
    if leaf is None:
        return None
    read = Read(leaf, leaf.window)
    for key in reversed(keys):
        read = read.of(key)
    return read


def reads_of(task: Any, known: Mapping[Any, Any]) -> Iterator[Read]:
    """What one task reads itself.

    Args:
        task: The task.
        known: What names stand for that it refers to, as far as that is a Read or an index.
    """
    if not isinstance(task, Task) or task.func is prepare:
        return
    if task.func is _execute_subgraph:
        inner, _, names, *given = task.args
        within = {name: _value(one, {}) for name, one in inner.items() if isinstance(one, DataNode)}
        within |= zip(names, (_value(one, known) for one in given), strict=True)
        for one in inner.values():
            yield from reads_of(one, within)
        return
    values = [_value(one, known) for one in task.args]
    index = values[1] if len(values) > 1 else None
    for value in values:
        if isinstance(value, Read):
            yield value.of(index)


def _value(argument: Any, known: Mapping[Any, Any]) -> Any:
    if isinstance(argument, TaskRef):
        return known.get(argument.key)
    if isinstance(argument, Alias):
        return known.get(argument.target)
    if isinstance(argument, NestedContainer):
        return None if argument.dependencies else argument({})
    value = getattr(argument, "value", argument)
    return window_of(value) or value
