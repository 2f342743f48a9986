"""Limits on how many threads of this process do something at once; processes share a machine or an archive."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .threads import SECONDS_BETWEEN_CHECKS, check_cancelled


class ConcurrencyLimit:
    """A limit on concurrent threads that running jobs set: `with limit:` waits for a free slot.

    Args:
        otherwise: The limit while no job has set one; 0 means no limit.
    """

    def __init__(self, otherwise: int = 0) -> None:
        self._otherwise = otherwise
        self._forget()
        if hasattr(os, "register_at_fork"):  # slots taken by the parent's threads do not count in the child
            os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def of(self, more: int) -> Iterator[None]:
        """Raise the limit by `more` threads within this context."""
        self._allow(more)
        try:
            yield
        finally:
            self._allow(-more)

    def __enter__(self) -> None:
        with self._changed:
            while not self._changed.wait_for(self._is_free, SECONDS_BETWEEN_CHECKS):
                check_cancelled("What waits for its turn")
            self._taken += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._taken -= 1
            self._changed.notify()

    def _is_free(self) -> bool:
        limit = self._allowed or self._otherwise
        return not limit or self._taken < limit

    def _allow(self, more: int) -> None:
        with self._changed:
            self._allowed += more
            self._changed.notify_all()

    def _forget(self) -> None:
        self._allowed = self._taken = 0
        self._changed = threading.Condition()


cores = ConcurrencyLimit(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Limits decoding and encoding. Waiting requests cost nothing, so there may be many of them. But with more working
threads than cores, the thread that holds Python's lock waits for a core, and all other threads wait for that thread: 16
decoders on two cores take 1.7 times as long."""
