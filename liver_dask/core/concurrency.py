"""How many threads of this process may do something at once, where processes share a machine or an archive."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .threads import SECONDS_BETWEEN_LOOKS, check_cancelled


class ConcurrencyLimit:
    """A limit that jobs bring along: `with allowance:` waits for a turn.

    Args:
        otherwise: The limit while no job has brought one; 0 for none.
    """

    def __init__(self, otherwise: int = 0) -> None:
        self._otherwise = otherwise
        self._forget()
        if hasattr(os, "register_at_fork"):  # the parent's threads have their turns in the parent
            os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def of(self, more: int) -> Iterator[None]:
        """Let so many more threads have a turn, and at the end so many fewer."""
        self._allow(more)
        try:
            yield
        finally:
            self._allow(-more)

    def __enter__(self) -> None:
        with self._changed:
            while not self._changed.wait_for(self._is_free, SECONDS_BETWEEN_LOOKS):
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
"""Decoding and encoding. Requests that wait cost nothing and may be many; but with more threads at work than cores, the
one that has Python's lock waits for a core, and all others for it: 16 decoders on two cores take 1.7 times as long."""
