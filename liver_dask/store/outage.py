"""Tells the outage of an archive, in which no region is finished any more, from one file that cannot be read."""

from collections.abc import Hashable
from math import inf
from time import monotonic

TRIES = 2
"""How often a region is tried if it fails for a transient reason while others are finished, or if a run has just begun.
Each try already repeats a request up to `attempts` times."""

LONGEST_WAIT = 600.0
"""Seconds for which a run waits for an archive that was there before; but never longer than the run has gone well."""

LONGEST_PAUSE, LONGEST_GRACE, SHARE_OF_RUN = 10.0, 30.0, 0.1
"""Seconds before the next try in an outage; and seconds after a failure in which others may still be finished that were
fetched before the outage. Both are at most this share of the time that the run has taken."""

SECONDS_UNTIL_TOLD = 20.0


class Outage:
    """What fails in one run, and since when nothing else is finished. Times are those of the driver's clock."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._since: float | None = None
        self._last_finished = -inf
        self._tries: dict[Hashable, tuple[int, float]] = {}

    def note_finished(self) -> None:
        """Note that a region was finished; may be called on any thread."""
        self._last_finished = monotonic()
        self._since = None

    def may_pass(self, what: Hashable) -> bool:
        """Note that a region failed for a transient reason. Returns whether it should be tried again.

        A try in an outage does not count, as long as the outage is not longer than the run has gone well before.
        """
        now = monotonic()
        since = self._since = now if self._since is None else self._since
        is_bearable = now - since < min(LONGEST_WAIT, since - self._began)
        tries, counted = self._tries.get(what, (0, now))
        others_go_on = self._last_finished > counted + min(LONGEST_GRACE, SHARE_OF_RUN * (now - self._began))
        if not tries or others_go_on or not is_bearable:
            self._tries[what] = tries, counted = tries + 1, now
        return tries < TRIES

    @property
    def is_told(self) -> bool:
        """Whether it has lasted so long that it is shown."""
        since = self._since
        return since is not None and monotonic() - since > SECONDS_UNTIL_TOLD

    @property
    def pause(self) -> float:
        """Seconds that a job waits before it asks the archive again."""
        return min(LONGEST_PAUSE, SHARE_OF_RUN * (monotonic() - self._began))
