"""Finds in dask graphs what the tasks read from the archive, without computing anything.

A graph may have its original layers, or dask may have optimised it. In an optimised graph, a task may contain the task
that reads.
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

from .futures import is_held
from .lazy_window import LazyWindow
from .points import LazyPoints
from .slice_graph import SliceLayer, prepare
from .window import Window

Tasks = dict[Any, GraphNode]

_OF_XARRAY = indexing.ExplicitlyIndexed, indexing.ImplicitToExplicitIndexingAdapter


@dataclass(frozen=True)
class Read:
    """A part of a window that a task reads."""

    lazy: LazyWindow
    window: Window

    @property
    def nbytes(self) -> int:
        """Size of the voxels in bytes."""
        return math.prod(map(len, self.window.selections)) * self.lazy.dtype.itemsize

    @property
    def ends(self) -> tuple[int, int, int]:
        """The last index along z, y and x, plus one. The part must not be empty."""
        z, y, x = (
            max(int(of[0]), int(of[-1]), 0 if isinstance(of, range) else int(of.max())) for of in self.window.selections
        )
        return z + 1, y + 1, x + 1

    def of(self, index: Any) -> "Read":
        """Return the indexed part; the whole part if the index is not understood."""
        try:
            return Read(self.lazy, self.window[index]) if isinstance(index, tuple) else self
        except (NotImplementedError, ValueError, IndexError, TypeError):
            return self


def tasks_of(array: da.Array) -> Tasks:
    """Return all tasks of an array.

    For windows, these are only the tasks that read. Within a process, they share what is known about a slice, without
    the tasks that prepare it.
    """
    written_out: dict[Any, Any] = {}
    for layer in array.dask.layers.values():
        written_out |= layer.reading if isinstance(layer, SliceLayer) else layer
    held = {key: DataNode(key, value) for key, value in written_out.items() if is_held(value)}
    return convert_legacy_graph(written_out) | held  # convert_legacy_graph leaves out what a cluster holds


def leaves_in(array: da.Array) -> list[LazyWindow | LazyPoints]:
    """Return the windows and points that a dask array reads.

    The graph does not show the source of voxels that were computed before (`persist`).
    """
    found: dict[int, LazyWindow | LazyPoints] = {}
    for name, layer in array.dask.layers.items():
        if isinstance(layer, Blockwise):  # not materialized yet: it consists of other layers or literals
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
    """Return the part of a window that an array stands for, even if xarray has wrapped it; None for other arrays."""
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
    """Yield what one task itself reads.

    Args:
        task: The task.
        known: The values of the names that the task refers to, as far as they are a Read or an index.
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
