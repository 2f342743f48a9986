"""The scheduler's part of one limit for a whole cluster: how many connections to an archive each worker may have.

A worker tells when it begins to read and when it has ended, and is told its share: once, and when that changes. Nobody
asks for leave of a request. What a worker is to give up is given to another when it has closed it, and not before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

OPERATION = "liver_dask-connections"
"""The name of the messages between a worker and the scheduler, both ways."""

SECONDS_OF_A_TURN = 10.0
"""With more workers than connections they take turns of one; each costs a new connection, about half a second."""


class Told(NamedTuple):
    """What a worker is told.

    Attributes:
        visit: Which visit of the worker's it is for; the worker has numbered them.
        number: Of the message; the worker's answer brings it.
        allowed: How many connections it may have from now on.
    """

    visit: int
    number: int
    allowed: int


@dataclass
class _Reader:
    """A worker that reads.

    Attributes:
        visit: Its own number for this time of reading.
        held: The most connections it may have, as far as is known.
        since: When its turn began, or since when it waits for one.
        allowed: How many it was told to have at most.
        number: Of the message that told so.
    """

    visit: int
    held: int
    since: float
    allowed: int = 0
    number: int = 0


class Ledger:
    """Who may have how many of the connections to one archive: all who read as many as each other.

    Args:
        most: How many there may be in all.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._readers: dict[str, _Reader] = {}

    @property
    def is_crowded(self) -> bool:
        """Whether there are more workers than connections, so that they take turns."""
        return len(self._readers) > self.most

    def join(self, worker: str, visit: int, held: int, now: float) -> None:
        """A worker begins to read; it may have some connections already."""
        self._readers[worker] = _Reader(visit, held, now)

    def hold(self, worker: str, visit: int, number: int, held: int) -> None:
        """A worker has no more than so many connections left, having heard message `number`."""
        reader = self._readers.get(worker)
        if reader and (reader.visit, reader.number) == (visit, number):  # else it may be told more meanwhile
            reader.held = held

    def leave(self, worker: str) -> None:
        """A worker has ended, or is gone; its connections are closed."""
        self._readers.pop(worker, None)

    def settle(self, now: float) -> Iterator[tuple[str, Told]]:
        """Share out anew what there is; gives who is to be told what."""
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
        """What each is to have in the end, who is served first in front."""
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
