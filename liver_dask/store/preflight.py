"""Checks before an export begins: arguments, disk space, memory of the workers, repeated fetches and the cluster."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil
from dask.sizeof import sizeof
from rich.filesize import decimal

from ..core.config import setting
from ..core.errors import ExportError, InvalidArgumentError
from ..core.places import Place
from .estimate import PROCESS_BYTES, Estimate
from .jobs import LOCAL_JOBS
from .storage.access import storage_of
from .writer import Store

if TYPE_CHECKING:
    from distributed import Client

USABLE_SHARE = 0.7
"""Usable share of a worker's memory limit. Dask pauses a worker at 80 %."""

WORTH_TELLING = 1.1
"""Log a warning if a variable is fetched more often than this factor."""

MOST_OF_STATISTICS = 16 << 20
"""Maximum bytes of the statistics that are computed before the regions, and sent to every job."""

log = logging.getLogger(__name__)
WITHOUT_A_CLUSTER = """or work without a cluster: `with dask.config.set(scheduler="threads"):`"""

HOW_TO_SKIP = "liver-dask.check-room: false in dask's configuration skips this."


def check_call(client: Any, on_error: str) -> None:
    """Raise InvalidArgumentError if `client` is not a running, synchronous Client, or `on_error` is unknown."""
    if on_error not in ("raise", "continue"):
        raise InvalidArgumentError(f"on_error={on_error!r} must be 'raise' or 'continue'.")
    if client is None:
        return
    if not all(hasattr(client, name) for name in ("submit", "subscribe_topic", "nthreads")):
        raise InvalidArgumentError(
            f"client={client!r} is not a distributed.Client; of a cluster, give Client(cluster)."
        )
    if client.asynchronous or client.status != "running":
        state = "asynchronous" if client.asynchronous else client.status
        raise InvalidArgumentError(f"The client is {state}; give one that is running, and not asynchronous.")


def check_times(expected: Estimate) -> None:
    """Log which variables are fetched more than once.

    Raises:
        InvalidArgumentError: A variable would be fetched more than `most-refetches` times on average.
    """
    for variable, times in expected.times.items():
        if times > WORTH_TELLING:
            log.warning("%s is fetched about %.1f times over for what is computed of it", variable, times)
    variable, times = max(expected.times.items(), key=lambda item: item[1], default=("", 0.0))
    if times > setting("most-refetches"):
        raise InvalidArgumentError(
            f"What is computed needs {variable} again and again: it would be fetched about {times:.1f} times over. "
            "Write the variables as they are and compute from that store; or take a statistic's value first "
            "(.compute()), or blocks of one slice, some rows and the full width; liver-dask.most-refetches in dask's "
            f"configuration ({setting('most-refetches'):g}) allows more."
        )


def check_small(statistics: Mapping[Any, Any]) -> None:
    """Raise InvalidArgumentError if the statistics, which are sent to every job, are larger than 16 MiB."""
    size = sum(sizeof(value) for value in statistics.values())
    if size > MOST_OF_STATISTICS:
        raise InvalidArgumentError(
            f"All regions need the same {decimal(size)} that are computed first, which is too much to keep; "
            "compute it before (.compute()), and give the result."
        )


def check_disk(store: Store, expected: int) -> None:
    """Raise InvalidArgumentError if the disk has less free space than these bytes."""
    free, where = storage_of(store.partial).free_bytes(store.partial) or (expected, "")
    if free < expected:
        raise InvalidArgumentError(
            f"{store.target} needs about {decimal(expected)} of disk, and {where} has {decimal(free)} free. "
            f"Make room, or choose a smaller box; {HOW_TO_SKIP}"
        )


def check_memory(client: "Client | None", expected: Estimate) -> None:
    """Raise InvalidArgumentError if the estimate exceeds the memory of this process, or of a worker."""
    if client is None:
        available = psutil.virtual_memory().available
        _refuse_memory("this process", LOCAL_JOBS, available, available, expected)
        return
    limits = _ask_workers(client, _memory_limit)
    for address, threads in client.nthreads().items():
        limit = limits.get(address) or 0
        if limit:
            _refuse_memory(f"worker {address}", threads, limit, USABLE_SHARE * limit, expected)


def _refuse_memory(who: str, threads: int, limit: float, usable: float, expected: Estimate) -> None:
    needed = PROCESS_BYTES + threads * expected.memory
    if needed > usable:
        raise InvalidArgumentError(
            f"{who} has {decimal(int(limit))} of memory, of which {decimal(int(usable))} can be used, and needs "
            f"{decimal(needed)}: {decimal(PROCESS_BYTES)}, and {decimal(expected.memory)} for each of its {threads} "
            f"threads. Give it more memory or fewer threads, or choose smaller chunks; {HOW_TO_SKIP}"
        )


def _memory_limit(dask_worker: Any) -> int | None:
    limit: int | None = dask_worker.memory_manager.memory_limit
    return limit


def check_held(futures: Sequence[Any], client: "Client | None") -> None:
    """Raise InvalidArgumentError if persisted blocks are lost, or are on another cluster than the one that works."""
    lost = [future for future in futures if future.status in ("cancelled", "lost")]
    if lost:
        raise InvalidArgumentError(
            f"A cluster held {len(lost)} blocks of the Dataset, and has lost them; make the Dataset anew."
        )
    if client is None:
        return
    others = {future.client.id: future.client for future in futures if future.client is not client}
    for other in others.values():
        if other.scheduler_info()["id"] != client.scheduler_info()["id"]:
            raise InvalidArgumentError(
                f"{other} holds blocks of the Dataset, and {client} is to do the work; give the first as `client`."
            )


def check_workers(client: "Client", store: Store) -> None:
    """Raise InvalidArgumentError if a worker does not see the folder of the store.

    A worker that joins later and does not see the folder fails at its first region, with an error that says why.
    """
    seen = _ask_workers(client, _sees, store.partial)
    blind = [address for address, why in seen.items() if why]
    if blind:
        reason = seen[blind[0]]
        raise InvalidArgumentError(
            f"{len(blind)} workers, {blind[0]} for one, do not see {store.partial}{reason}; "
            f"choose a folder that all machines share, or object storage, {WITHOUT_A_CLUSTER}."
        )


def _sees(partial: Place) -> str:
    """Return why this process does not see the claim on an unfinished store; empty if it does."""
    try:
        return "" if storage_of(partial).is_claimed(partial) else " "
    except (OSError, InvalidArgumentError) as error:
        return f" ({error})"


def _ask_workers(client: "Client", call: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Call a function on each worker, and return the results by worker address.

    Raises:
        ExportError: The call failed on a worker.
    """
    try:
        answers: dict[str, Any] = client.run(call, *arguments)
    except Exception as error:  # workers raise arbitrary errors if they cannot import the call
        raise ExportError(f"The workers cannot begin ({error}); is the same liver_dask installed there?") from error
    return answers
