"""Blocks that a cluster holds already (`ds.persist()` with a client), got from its workers where they are used.

A dask graph has such blocks as futures, of which dask's threads can make nothing.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask._task_spec import DataNode, GraphNode
from dask.highlevelgraph import MaterializedLayer

from ...core.errors import ExportError

LONGEST_WAIT = 60.0
"""Seconds in a worker for blocks that were there when the work began."""


def held_by_a_cluster(array: Any) -> Iterator[Any]:
    """The futures that a dask array is made of; only layers that are written out can have any."""
    layers = [layer for layer in array.dask.layers.values() if isinstance(layer, MaterializedLayer)]
    return (value for layer in layers for value in layer.values() if is_held(value))


def wait_for(futures: Sequence[Any]) -> None:
    """Wait until they are computed: jobs that wait for them might leave no thread to compute them on."""
    for future in futures:
        future.exception()


def got(tasks: Mapping[Any, GraphNode]) -> dict[Any, GraphNode]:
    """The same tasks, which dask's threads can compute: what a cluster holds of them is got from there now."""
    futures = {key: task.value for key, task in tasks.items() if isinstance(task, DataNode) and is_held(task.value)}
    results = _gather(list(futures.values())) if futures else []
    return dict(tasks) | {key: DataNode(key, result) for key, result in zip(futures, results, strict=True)}


def _gather(futures: Sequence[Any]) -> Any:
    """Their results; in a worker, where they were sent to, they have no client yet, and no client hears of them.

    What was lost meanwhile is computed anew, but not while all threads wait for it.
    """
    from distributed import Future, get_client

    if futures[0].client:
        return futures[0].client.gather(futures)
    client, keys = get_client(), [future.key for future in futures]
    owned: list[Any] = [Future(key, client) for key in keys]
    client._send_to_scheduler({"op": "client-desires-keys", "keys": keys, "client": client.id})
    try:
        for future in owned:
            future.exception(timeout=LONGEST_WAIT)
    except TimeoutError as error:
        raise ExportError(
            f"The cluster has lost blocks that it held ({keys[0]} for one). Wait until it has computed them again, or "
            "make the Dataset anew, and give the same call again."
        ) from error
    return client.gather(owned)


def is_held(value: Any) -> bool:
    """Whether it is a future of a cluster."""
    distributed = sys.modules.get("distributed")
    return distributed is not None and isinstance(value, distributed.Future)
