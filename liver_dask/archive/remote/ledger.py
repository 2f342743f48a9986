"""The scheduler's part of one limit for a whole cluster: how many connections to an archive each worker may have.

A worker reports when it begins to read and when it ends. The scheduler tells it its share: once at the beginning, and
whenever the share changes. Single requests need no permission. Connections that a worker has to give up go to another
worker only after the first worker has closed them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

OPERATION = "liver_dask-connections"
"""Name of the messages between a worker and the scheduler, in both directions."""

SECONDS_OF_A_TURN = 10.0
"""If there are more workers than connections, workers take turns with one connection each. Each turn costs a new
connection, about half a second."""


class Told(NamedTuple):
    """A message from the scheduler to a worker.

    Attributes:
        visit: The worker's own number for the visit that the message is for.
        number: Number of the message; the worker's answer repeats it.
        allowed: Maximum number of connections of the worker from now on.
    """

    visit: int
    number: int
    allowed: int


@dataclass
class _Reader:
    """A worker that reads.

    Attributes:
        visit: The worker's own number for this visit, that is, this period of reading.
        held: Maximum number of connections that it may still have open, as far as is known.
        since: When its turn began, or when it began to wait for one.
        allowed: Maximum number of connections in the last message to it.
        number: Number of that message.
    """

    visit: int
    held: int
    since: float
    allowed: int = 0
    number: int = 0


class Ledger:
    """The distribution of the connections to one archive: all workers that read get an equal share.

    Args:
        most: Maximum number of connections of all workers together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._readers: dict[str, _Reader] = {}

    @property
    def is_crowded(self) -> bool:
        """Whether there are more workers than connections, so that workers take turns."""
        return len(self._readers) > self.most

    def join(self, worker: str, visit: int, held: int, now: float) -> None:
        """Add a worker that begins to read; it may already have some connections."""
        self._readers[worker] = _Reader(visit, held, now)

    def hold(self, worker: str, visit: int, number: int, held: int) -> None:
        """Record that a worker has at most `held` connections left after it received message `number`."""
        reader = self._readers.get(worker)
        if reader and (reader.visit, reader.number) == (visit, number):  # else a later message may allow more
            reader.held = held

    def leave(self, worker: str) -> None:
        """Remove a worker that has ended or disappeared; its connections are closed."""
        self._readers.pop(worker, None)

    def settle(self, now: float) -> Iterator[tuple[str, Told]]:
        """Redistribute the connections.

        Yields:
            The worker and the message to send to it.
        """
        shares = self._shares(now)
        for worker, share in shares.items():
            if share < self._readers[worker].allowed:
                yield worker, self._allow(worker, share, now)
        free = self.most - sum(reader.held for reader in self._readers.values())
        for worker, share in shares.items():
            reader = self._readers[worker]
            before = reader.held
            if (now_possible := min(share, before + free)) > reader.allowed:
                yield worker, self._allow(worker, now_possible, now)
                free -= reader.held - before

    def _shares(self, now: float) -> dict[str, int]:
        """Return the final share of each worker, in the order in which workers are served."""
        if not self.is_crowded:
            share, rest = divmod(self.most, max(len(self._readers), 1))
            return {worker: share + (i < rest) for i, worker in enumerate(self._readers)}

        def place(worker: str) -> tuple[int, float]:
            reader = self._readers[worker]
            if not reader.allowed:
                return 1, reader.since
            return (0 if now - reader.since < SECONDS_OF_A_TURN else 2), reader.since

        return {worker: int(i < self.most) for i, worker in enumerate(sorted(self._readers, key=place))}

    def _allow(self, worker: str, allowed: int, now: float) -> Told:
        reader = self._readers[worker]
        if bool(allowed) != bool(reader.allowed):
            reader.since = now
        reader.allowed = allowed
        reader.held = max(reader.held, allowed)
        reader.number += 1
        return Told(reader.visit, reader.number, allowed)
