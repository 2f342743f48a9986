"""Gets blocks that a cluster already holds (`ds.persist()` with a client) from its workers, where they are used.

A dask graph contains such blocks as futures. The threaded scheduler of dask cannot compute with futures.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask._task_spec import DataNode, GraphNode
from dask.highlevelgraph import MaterializedLayer

from ...core.errors import ExportError

LONGEST_WAIT = 60.0
"""Seconds that a worker waits for blocks that existed when the work began."""


def held_by_a_cluster(array: Any) -> Iterator[Any]:
    """Return the futures in the graph of a dask array; only materialized layers can contain futures."""
    layers = [layer for layer in array.dask.layers.values() if isinstance(layer, MaterializedLayer)]
    return (value for layer in layers for value in layer.values() if is_held(value))


def wait_for(futures: Sequence[Any]) -> None:
    """Wait until the futures are computed; jobs that wait for them might leave no thread to compute them."""
    for future in futures:
        future.exception()


def got(tasks: Mapping[Any, GraphNode]) -> dict[Any, GraphNode]:
    """Return the tasks in a form that dask's threads can compute: blocks that a cluster holds are fetched now."""
    futures = {key: task.value for key, task in tasks.items() if isinstance(task, DataNode) and is_held(task.value)}
    results = _gather(list(futures.values())) if futures else []
    return dict(tasks) | {key: DataNode(key, result) for key, result in zip(futures, results, strict=True)}


def _gather(futures: Sequence[Any]) -> Any:
    """Return the results of the futures.

    Futures that were sent to a worker have no client there, and no client gets messages about them. A block that was
    lost is computed again, but not while all threads wait for it. Therefore a worker waits for at most LONGEST_WAIT.

    Raises:
        ExportError: The cluster has lost blocks.
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
    """Return whether a value is a future of a cluster."""
    distributed = sys.modules.get("distributed")
    return distributed is not None and isinstance(value, distributed.Future)
