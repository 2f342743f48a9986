"""The tries of one request: it is sent again after faults that may pass, and counted."""

from collections import Counter
from collections.abc import Callable
from time import monotonic

from ...core.errors import RemoteError
from ...core.metrics import traffic
from ...core.threads import check_cancelled
from .retry import retrying
from .source import Source, TransientError

MOST_OF_A_TIMEOUT = 4
"""The read timeout doubles with each retry, up to 4 x, so that a slow server can answer. A longer timeout does not help
where requests hang."""


class Tries:
    """The tries of one request.

    Args:
        source: The archive, which says how often and how long.
        url: The file.
    """

    def __init__(self, source: Source, url: str) -> None:
        self.url = url
        self._source = source
        self._faults: Counter[str] = Counter()

    def run(self, ask: Callable[[float], None]) -> None:
        """Call `ask(read_timeout)`, again after each TransientError.

        Raises:
            RemoteError: It was in vain; the message has all reasons.
        """
        began = monotonic()
        try:
            retrying(self._source.attempts)(Tries._ask, self, ask)
        except TransientError as fault:
            reasons = ", ".join(f"{reason} ({count} x)" for reason, count in self._faults.items())
            raise RemoteError(
                f"{self.url}: gave up after {self._faults.total()} tries in {monotonic() - began:.0f} s: {reasons}. "
                "Check the address and the connection, or try again later."
            ) from fault

    def _ask(self, ask: Callable[[float], None]) -> None:
        tries = self._faults.total()
        check_cancelled(self.url)
        traffic.add(requests=1, retries=int(tries > 0))
        try:
            ask(self._source.timeout * min(2**tries, MOST_OF_A_TIMEOUT))
        except TransientError as fault:
            self._faults[str(fault)] += 1
            traffic.add(stalls=int(fault.is_stall))
            raise
