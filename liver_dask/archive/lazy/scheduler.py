"""The threaded scheduler of dask, with more threads for what a user looks at."""

import math
import multiprocessing.pool
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import dask
import dask.threaded
from dask.base import is_dask_collection
from dask.local import MultiprocessingPoolExecutor
from dask.utils import ensure_dict

from ...core.threads import BorrowedPool, ContextPool, call_aside
from .lazy_window import LazyWindow, reads_at_once
from .points import LazyPoints


class ViewportScheduler:
    """The threaded scheduler of dask, with more threads for a viewport.

    The blocks of a viewport wait for the archive and not for a core. With one thread per core, raw and masks of a
    window would wait for each other. An explicit num_workers or pool takes precedence. The object is equal to dask's
    own scheduler, because dask otherwise refuses to compute these arrays together with others.
    """

    def __call__(self, dsk: Any, keys: Any, **options: Any) -> Any:
        graph = ensure_dict(dsk.__dask_graph__() if is_dask_collection(dsk) else dsk)
        leaves = [getattr(node, "value", None) for node in graph.values()]
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, LazyWindow | LazyPoints))
        given, count = (options.pop(name, None) or dask.config.get(name, None) for name in ("pool", "num_workers"))
        with _threads_of(given, count or reads_at_once(size)) as pool:
            try:
                # aside, because dask waits without a limit for its threads, and so may not notice Ctrl-C
                get = partial(dask.threaded.get, graph, keys, pool=pool, **options)
                return call_aside(get, math.inf, lambda _: None)
            except BaseException:  # of any type: the other results are not needed
                pool.give_up()
                raise

    def __eq__(self, other: object) -> bool:
        return other is self or other is dask.threaded.get

    def __hash__(self) -> int:
        return hash(dask.threaded.get)


@contextmanager
def _threads_of(given: Any, count: int) -> Iterator[ContextPool | BorrowedPool]:
    """Yield the given threads, or `count` new threads that end with the work.

    The default threads of dask would not survive a fork. In both cases, the reads of the threads can be cancelled.
    """
    if isinstance(given, multiprocessing.pool.ThreadPool):
        given = MultiprocessingPoolExecutor(given)
    if given:
        yield BorrowedPool(given)
        return
    with ContextPool(count) as pool:
        yield pool
