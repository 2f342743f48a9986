"""Measure a case: all sides in turn, round by round, each in a process of its own, and compare what came of it."""

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from .archive import BenchArchive
from .processes import Outcome, Task, run
from .row import Case, Row, Served, Truth
from .servers import Counting, describe, serving
from .sides import SIDES

STORE_OF = {"miao_loader": "ours"}
"""Whose store a side reads, if it makes none."""

NUMBERS = count()


@dataclass
class Measurement:
    """What was measured of a side.

    Attributes:
        side: Its name in `SIDES`.
        seconds: Of each round.
        megabytes: What the server sent, of each round.
        requests: What it answered, of each round.
        peak: Most megabytes of memory of any round.
        wrong: Why what came of it is not the truth, or why nothing came of it; empty if all is right.
        note: What else is told.
    """

    side: str
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    peak: float = 0
    wrong: str = ""
    note: str = ""

    @property
    def median(self) -> float | None:
        """Median seconds, or None if nothing was measured."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class Table:
    """The measurements of a case.

    Attributes:
        row: Name of the row.
        title: What is done.
        case: The circumstance.
        server: The server, in words.
        unit: What the seconds are of.
        measurements: Of each side, ours first.
        bound: What cannot be undercut.
        absent: Who did not take part, and why.
    """

    row: str
    title: str
    case: str
    server: str
    unit: str
    measurements: list[Measurement]
    bound: str
    absent: dict[str, str]

    @property
    def ours_is_right(self) -> bool:
        """Whether ours was measured, with the right result."""
        ours = next((found for found in self.measurements if found.side == "ours"), None)
        return ours is not None and bool(ours.seconds) and not ours.wrong


def is_installed(side: str) -> bool:
    """Whether what a side needs can be imported."""
    return all(find_spec(module) for module in SIDES[side].modules)


def measure(
    row: Row, case: Case, archive: BenchArchive, scratch: Path, say: Callable[[str], None], only: Sequence[str] = ()
) -> Table:
    """Run all rounds of a case; of some sides, if they are given."""
    served = row.archive(archive, case, scratch)
    asked = [side for side in row.sides if side in (only or row.sides)]
    there = [side for side in asked if is_installed(side)]
    absent = {SIDES[side].title: "not installed" for side in asked if side not in there}
    absent |= {SIDES[side].title if side in SIDES else side: why for side, why in row.absent.items()}
    truth = row.truth(served, case)
    found = {side: Measurement(side) for side in there}
    with serving(case.server, served.folder) as server:
        for side in row.stores:
            if side in found and not (scratch / "stores" / side).exists():
                outcome = run(_task(side, "store", case, served, server, scratch), case.limit)
                found[side].wrong = outcome.error
        for number in range(case.rounds):
            for side in there if number % 2 == 0 else reversed(there):
                if not found[side].wrong:
                    _once(row, case, served, server, scratch, truth, found[side])
                    say(f"  {SIDES[side].title}: {_in_short(found[side])}")
    try:
        bound = row.bound(served, case, scratch / "stores")
    except Exception as error:  # the figures are worth more than their bound
        bound = f"not found out: {type(error).__name__}: {error}"
    title = row.title.format(size=served.shape[-1])
    return Table(row.name, title, case.name, describe(case.server), row.unit, list(found.values()), bound, absent)


def _task(side: str, work: str, case: Case, served: Served, server: Counting, scratch: Path) -> Task:
    store = scratch / "stores" / STORE_OF.get(side, side)
    settings = {**case.settings, "store": str(store)}
    return Task(side, work, server.url, served.shape, str(scratch / f"{side}-{next(NUMBERS)}"), settings)


def _once(
    row: Row, case: Case, served: Served, server: Counting, scratch: Path, truth: Truth, found: Measurement
) -> None:
    """Run a side once, and compare what came of it; what it made is removed."""
    task = _task(found.side, row.name, case, served, server, scratch)
    server.sent()
    outcome: Outcome = run(task, case.limit)
    sent = server.sent()
    found.peak = max(found.peak, outcome.peak / 1e6)
    found.note = outcome.note
    if outcome.seconds is None:
        found.wrong = outcome.error
    else:
        found.seconds.append(outcome.seconds)
        found.megabytes.append(sent.bytes / 1e6)
        found.requests.append(sent.requests)
        try:
            found.wrong = row.check(truth, Path(task.out))
        except Exception as error:  # what came of it cannot be read
            found.wrong = f"unreadable: {type(error).__name__}: {error}"
    shutil.rmtree(task.out)


def _in_short(found: Measurement) -> str:
    last = f"{found.seconds[-1]:.2f} s" if found.seconds else "failed"
    return f"{last}{f' ({found.wrong})' if found.wrong else ''}"
