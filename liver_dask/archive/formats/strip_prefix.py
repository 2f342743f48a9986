"""Estimates how many bytes of a strip hold its first columns, from strips that were decoded before.

LZW and deflate decode from left to right, so a window needs only the first bytes of each strip. No index gives their
number. The rows of one archive are similar (an empty margin, then tissue), so the number is known within a few per cent
after the first strips. If too few bytes were fetched, the rest is fetched later.
"""

import bisect
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ...core.threads import SECONDS_BETWEEN_CHECKS, check_cancelled

MARGIN_BYTES = 48
MARGIN_SHARE = 1.015
"""Margins that are fetched beyond the largest share of the strips so far.

Without them, every request would contain a strip that lacks some bytes.
"""

WHOLE_FROM = 0.85
"""Share of a strip from which the strip is fetched whole: neighbouring strips then form one byte range."""

REMEMBERED = 64
PLACES = 256
"""Number of shares remembered for a column, and number of columns remembered for an archive."""

MEASURED_ROWS = 16
"""Rows of a slice that are read to learn which share of a strip holds the columns up to the last one."""

MANY_ROWS, LEARN_OF = 128, 16
"""Rows of a read from which on it is worth a request to learn that share before, from one of LEARN_OF rows."""

NEAR_SHARE = 1 / 16
"""Largest distance of two remembered columns, as a share of the width, between which a column counts as known."""


class PrefixShares:
    """Shares of strips' bytes, per archive and column.

    Nothing is locked when shares are read or recorded. If one thread overwrites the entries of another, the shares are
    learned again.
    """

    def __init__(self) -> None:
        self._clear()
        if hasattr(os, "register_at_fork"):  # a thread of the parent that learns does not exist in the child
            os.register_at_fork(after_in_child=self._forget_turns)

    def bytes_wanted(
        self, archive: str, width: int, x_stops: npt.NDArray[np.intp], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return how many bytes of each strip to fetch.

        Args:
            archive: Address of the archive.
            width: Columns of a slice.
            x_stops: Column up to which (exclusive) each strip is needed, (strips,).
            counts: Bytes of each strip, (strips,).
        """
        shares = self._shares(archive, width, x_stops)
        some = np.minimum(counts, np.ceil(counts * shares * MARGIN_SHARE).astype(np.int64) + MARGIN_BYTES)
        return np.where(shares >= WHOLE_FROM, counts, some)

    def learn(self, archive: str, width: int, x_stop: int, share: float) -> None:
        """Record the share of a strip's bytes that its columns up to `x_stop` took."""
        places = self._seen.setdefault((archive, width), {})
        places[x_stop] = (*places.get(x_stop, ()), share)[-REMEMBERED:]
        if len(places) > PLACES:
            places.pop(next(iter(places)), None)

    def knows(self, archive: str, width: int, x_stop: int) -> bool:
        """Return whether the share of a strip up to a column was learned, or can be told from columns near it."""
        columns = [0, *sorted(dict(self._seen.get((archive, width), {}))), width]
        i = bisect.bisect_left(columns, x_stop)
        return columns[i] == x_stop or columns[i] - columns[i - 1] <= NEAR_SHARE * width

    @contextmanager
    def learning(self, archive: str, width: int, x_stop: int) -> Iterator[bool]:
        """Let one thread learn a share within this context, while others that want to learn it wait.

        Yields:
            Whether this thread shall learn it: it is not known, and no other thread is about to learn one of this
            archive. If that thread fails, the next one has its turn.

        Raises:
            ReadCancelledError: The reads of this thread are no longer wanted.
        """
        if self.knows(archive, width, x_stop):
            yield False
            return
        turn = self._turns.setdefault((archive, width), threading.Lock())
        while not turn.acquire(timeout=SECONDS_BETWEEN_CHECKS):
            check_cancelled("What waits for the shares of strips")
        try:
            yield not self.knows(archive, width, x_stop)
        finally:
            turn.release()

    def _shares(self, archive: str, width: int, x_stops: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        places = dict(self._seen.get((archive, width), {}))
        columns = sorted(places)
        return np.interp(x_stops, [0, *columns, width], [0, *(max(places[x]) for x in columns), 1])

    def _clear(self) -> None:
        self._seen: dict[tuple[str, int], dict[int, tuple[float, ...]]] = {}
        self._forget_turns()

    def _forget_turns(self) -> None:
        self._turns: dict[tuple[str, int], threading.Lock] = {}


def some_to_learn_from(strips: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return a few of many strips, from the first to the last: the tissue may be wider in the middle."""
    count = min(len(strips) // LEARN_OF, MEASURED_ROWS)
    return strips[np.linspace(0, len(strips) - 1, count).astype(np.intp)]


def bytes_for(count: int, part: int, decoded: int, wanted: int) -> int:
    """Return how many bytes of a strip are needed in total, with a margin.

    Args:
        count: Bytes of the whole strip.
        part: Bytes of the strip that were decoded.
        decoded: Decoded bytes that they gave.
        wanted: Decoded bytes that are needed.
    """
    return min(count, math.ceil(part * wanted / max(decoded, 1) * MARGIN_SHARE) + MARGIN_BYTES)
