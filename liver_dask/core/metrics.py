"""Counters of the requests of this process and the bytes received, and a trace of one part of a program."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from rich.filesize import decimal

log = logging.getLogger(__name__)


class Traffic:
    """Requests made and bytes received by this process since it started."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self) -> dict[str, int]:
        """Return the counts added since the last call of this method by any caller."""
        with self._lock:
            new = self._counts - self._taken
            self._taken = self._counts.copy()
            return dict(new)

    def add(self, **counts: int) -> None:
        """Add to the counts of requests and of their results."""
        with self._lock:
            self._counts.update(counts)

    def so_far(self) -> Counter[str]:
        """Return all counts since the process started."""
        with self._lock:
            return self._counts.copy()

    def forget(self) -> None:
        """Reset the counts and the lock in a fork: a thread of the parent may hold the lock."""
        self.__init__()  # type: ignore[misc]  # reset in place: other modules hold this object

    @property
    def requests(self) -> int:
        """Requests made."""
        return self.so_far()["requests"]

    @property
    def bytes(self) -> int:
        """Bytes of files received."""
        return self.so_far()["bytes"]


traffic = Traffic()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=traffic.forget)


@dataclass
class Trace:
    """Requests to archives during a trace.

    Attributes:
        requests: Requests made.
        bytes: Bytes of files received, including those that were discarded.
        retries: How many of these requests repeated a request that had failed or was incomplete.
        stalls: Requests that were cancelled because the server sent nothing, or almost nothing.
        seconds: Duration of the trace.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    stalls: int = 0
    seconds: float = 0

    def __str__(self) -> str:
        again = f" ({self.retries} asked again, {self.stalls} had stalled)" if self.retries or self.stalls else ""
        return f"{decimal(self.bytes)} in {self.requests} requests{again} within {self.seconds:.1f} s"


@contextmanager
def trace() -> Iterator[Trace]:
    """Trace this process's requests to archives: `with ld.trace() as t: ds.raw[0, :9].compute()`, then `print(t)`.

    Reads of all threads of this process are counted during the trace; reads of other processes (workers of a cluster)
    are not. The counts are also logged at INFO level when the trace ends.

    Yields:
        The counts, complete when the context ends.
    """
    counts, before, began = Trace(), traffic.so_far(), monotonic()
    try:
        yield counts
    finally:
        for name, count in (traffic.so_far() - before).items():
            setattr(counts, name, count)
        counts.seconds = monotonic() - began
        log.info("%s", counts)
