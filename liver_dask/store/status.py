"""How far the last run of an export came, how fast it was and what failed: a file beside what is finished.

Runs write it, `liver-dask info` reads it. Whether a region is finished does not depend on it.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.documents import as_list, as_object, printable, read_document
from ..core.places import Place
from .progress import Meter
from .storage.access import storage_of

STATUS = "status.json"

SECONDS_BETWEEN_STATUS = (1.0, 15.0)
"""Least and most time between two statuses. In between, one comes each time that a quarter more time has passed."""

SHARE_BETWEEN_STATUS = 0.25

SILENT_SECONDS = 60.0
"""A run that has reported nothing for so long has most likely ended."""

MOST_FAILURES = 20

LATEST, LONGEST, MOST = 1e11, 1e9, 1e18
"""Largest time in seconds since 1970, number of seconds, and count that are not taken for damage."""

LONGEST_TEXT = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """What a run said last.

    Attributes:
        began: When the run began, in seconds since 1970.
        written: When this was written.
        rate: Bytes of voxels per second, lately.
        seconds_left: Time that the rest takes at this rate; None if nothing was done lately.
        fetched: Bytes that the run has fetched.
        requests: Number of requests for them.
        workers: Number of jobs that could run at once: on a cluster, the threads of all workers.
        ended: Whether the run has ended, with or without an error.
        failures: Texts of up to 20 regions that could not be written.
        failed: Number of all such regions.
    """

    began: float
    written: float
    rate: float
    seconds_left: float | None
    fetched: int
    requests: int
    workers: int
    ended: bool
    failures: tuple[str, ...]
    failed: int

    @property
    def may_go_on(self) -> bool:
        """Whether the run may be going on: it was heard of a moment ago, on clocks that differ by a little."""
        return not self.ended and abs(time.time() - self.written) < SILENT_SECONDS


class StatusFile:
    """Writes the status of a run, a few times a minute.

    Args:
        folder: Folder of what is finished.
        meter: Counts the bytes of voxels that are done.
    """

    def __init__(self, folder: Place, meter: Meter) -> None:
        self._place = folder / STATUS
        self.meter = meter
        self._began = time.time()
        self._written = 0.0
        self._workers = 0

    def is_due(self) -> bool:
        """Return whether the last status is some seconds old, fewer at the beginning, or there is none yet."""
        now, (least, most) = time.monotonic(), SECONDS_BETWEEN_STATUS
        wait = min(max(SHARE_BETWEEN_STATUS * (now - self.meter.began), least), most)
        return not self._written or now - self._written >= wait

    def write(
        self, fetched: int, requests: int, failures: Sequence[str], *, workers: int | None = None, ended: bool = False
    ) -> None:
        """Write the status. It only informs, so a disk that cannot take it is no error."""
        self._workers = self._workers if workers is None else workers
        meter, left = self.meter, self.meter.seconds_left
        shown = tuple(failures[:MOST_FAILURES])
        now = time.time()
        status = Status(
            self._began, now, meter.rate, left, fetched, requests, self._workers, ended, shown, len(failures)
        )
        self._written = time.monotonic()
        try:
            storage_of(self._place).write(self._place, [json.dumps(asdict(status), indent=1).encode()])
        except OSError as error:
            log.info("%s could not be written (%s)", self._place, error)

    def remove(self) -> None:
        """Remove the status of a run that has written all; what is left to do takes a moment."""
        try:
            storage_of(self._place).remove(self._place)
        except OSError as error:
            log.info("%s could not be removed (%s)", self._place, error)


def read_status(folder: Place) -> Status | None:
    """Return what the last run said; None if it said nothing, or the file cannot be understood."""
    try:
        found = as_object(read_document(folder / STATUS, "says how far the export came"))
        left = found["seconds_left"]
        return Status(
            began=_checked(found["began"], LATEST),
            written=_checked(found["written"], LATEST),
            rate=_checked(found["rate"], MOST),
            seconds_left=None if left is None else _checked(left, LONGEST),
            fetched=int(_checked(found["fetched"], MOST)),
            requests=int(_checked(found["requests"], MOST)),
            workers=int(_checked(found["workers"], MOST)),
            ended=found["ended"] is True,
            failures=tuple(printable(text, LONGEST_TEXT) for text in as_list(found["failures"])[:MOST_FAILURES]),
            failed=int(_checked(found["failed"], MOST)),
        )
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


def _checked(value: Any, most: float) -> float:
    """Return a number that can be shown.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a number from 0 to {most}")
    return float(value)
