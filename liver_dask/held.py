"""Blocks that a cluster holds already (`ds.persist()` with a client), got from its workers where they are used.

A dask graph has such blocks as futures, of which dask's threads can make nothing.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dask.array as da
from dask.core import flatten
from dask.highlevelgraph import MaterializedLayer

from .errors import ExportError

LONGEST_WAIT = 60.0
"""Seconds in a worker for blocks that were there when the work began."""


def held_by_a_cluster(array: Any) -> Iterator[Any]:
    """The futures that a dask array is made of; only layers that are written out can have any."""
    layers = [layer for layer in array.dask.layers.values() if isinstance(layer, MaterializedLayer)]
    return (future for layer in layers for future in _futures_in(layer.values()))


def wait_for(futures: Sequence[Any]) -> None:
    """Wait until they are computed: jobs that wait for them might leave no thread to compute them on."""
    for future in futures:
        future.exception()


def got(arrays: Mapping[str, da.Array]) -> dict[str, da.Array]:
    """The same arrays, of which dask's threads compute what no cluster holds; the rest is got from there now."""
    graphs = {name: dict(array.dask.cull(set(flatten(array.__dask_keys__())))) for name, array in arrays.items()}
    futures = {future.key: future for graph in graphs.values() for future in _futures_in(graph.values())}
    if not futures:
        return dict(arrays)
    results = dict(zip(futures, _gather(list(futures.values())), strict=True))
    for graph in graphs.values():
        graph |= {key: results[key] for key in graph.keys() & results.keys()}
    return {name: da.Array(graphs[name], array.name, array.chunks, meta=array._meta) for name, array in arrays.items()}


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


def _futures_in(values: Iterable[Any]) -> Iterator[Any]:
    distributed = sys.modules.get("distributed")
    return (value for value in values if isinstance(value, distributed.Future)) if distributed else iter(())
