"""What this process asked the archive for, and what came: counted, and told of a part of a program."""

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
        """What was counted since the last call, whoever made it."""
        with self._lock:
            new = self._counts - self._taken
            self._taken = self._counts.copy()
            return dict(new)

    def add(self, **counts: int) -> None:
        """Count requests, or what they brought."""
        with self._lock:
            self._counts.update(counts)

    def so_far(self) -> Counter[str]:
        """All counts since the process started."""
        with self._lock:
            return self._counts.copy()

    def forget(self) -> None:
        """Start anew, in a fork: the lock may be held by a thread of the parent's."""
        self.__init__()  # type: ignore[misc]  # as new, and the same object: others hold it

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
    """What was asked of archives while it was traced.

    Attributes:
        requests: Requests made.
        bytes: Bytes of files received, those that were thrown away included.
        retries: Requests of these that asked again for what another had not brought.
        stalls: Requests that were given up because the server was silent, or nearly so.
        seconds: How long it took.
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
    """Trace what this process asks of archives: `with ld.trace() as told: ds.raw[0, :9].compute()`, `print(told)`.

    Whatever threads read meanwhile is counted, what other processes read (workers of a cluster) is not. The same is
    logged at INFO when it ends.

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
