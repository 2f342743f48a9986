"""What is there of an unfinished store, for whoever asks while it is written or after an interruption."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from rich.filesize import decimal

from ..core.disk import files_in, is_there
from ..core.errors import DamagedError
from ..core.places import Place
from .additions import additions_beside
from .levels import FOLDER
from .progress import duration
from .record import FORMAT, layout_of, missing_of, read_record
from .record_checks import record_problem
from .status import Status, read_status
from .writer import Store


@dataclass(frozen=True)
class Unfinished:
    """An unfinished store.

    Attributes:
        store: The store that it will be.
        regions: Number of finished regions; each variable counts on its own.
        of_regions: Number of all regions.
        nbytes: Bytes of the voxels of the finished regions.
        of_nbytes: Bytes of all voxels.
        status: What the last run said last; None if it said nothing.
        missing: Number of files that did not exist, and for which zeros were taken.
    """

    store: Store
    regions: int
    of_regions: int
    nbytes: int
    of_nbytes: int
    status: Status | None
    missing: int = 0

    def __str__(self) -> str:
        share, voxels = self.nbytes / self.of_nbytes, f"{decimal(self.nbytes)} of {decimal(self.of_nbytes)} of voxels"
        regions = f"{self.regions} of {self.of_regions} regions"
        first = f"{self.store.target}: unfinished, {share:.0%} of it is there ({regions}, {voxels})."
        lines = []
        if self.missing:
            files = "1 file" if self.missing == 1 else f"{self.missing} files"
            lines.append(f"It has zeros for {files} that did not exist; only with --missing zeros can it be finished.")
        return "\n".join([first, *lines, *(self._of_status(self.status) if self.status else [])])

    def _of_status(self, status: Status) -> list[str]:
        began, heard = (f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}" for at in (status.began, status.written))
        if status.may_go_on:
            state = [f"{status.workers} jobs at once" if status.workers else "waiting for workers"]
            if status.rate:
                state.append(f"{decimal(int(status.rate))}/s")
            if status.seconds_left is not None:
                state.append(f"about {duration(status.seconds_left)} left")
            lines = [f"Its run began at {began}, and was heard of a moment ago: {', '.join(state)}."]
        else:
            lines = [f"Its last run began at {began}, and was last heard of at {heard}."]
            lines.append("The same call goes on from there.")
        if status.requests:
            lines.append(f"That run has fetched {decimal(status.fetched)} in {status.requests} requests.")
        elif status.may_go_on:
            lines.append("What that run has fetched is told when it has finished a region.")
        if status.failed:
            lines.append(f"It could not write {status.failed} of the regions:")
            lines += [f"  {text}" for text in status.failures]
            lines += ["  ..."] * (status.failed > len(status.failures))
        return lines


def unfinished_parts(store: Place) -> list[Unfinished]:
    """Return the levels of a complete store, and the variables to be added to it, that are unfinished."""
    levels = files_in(store / FOLDER, ".partial") if is_there(store / FOLDER) else []
    return [of for of in map(unfinished_at, (*levels, *additions_beside(store))) if of]


def unfinished_at(place: Place) -> Unfinished | None:
    """Return what is there of an unfinished store, given its place or that of the folder it is written in; else None.

    Raises:
        DamagedError: Its record has impossible values.
    """
    name = place.name.removesuffix(".partial")
    if not name:
        return None
    target, partial = place.with_name(name), place.with_name(f"{name}.partial")
    record = read_record(partial / "store") if is_there(partial / "store") else None
    if record is None or (place == target and is_there(target) and read_record(target)):
        return None
    if record.get("format") != FORMAT or (problem := record_problem(record)):
        why = f"{problem}" if record.get("format") == FORMAT else f"it is of format {record.get('format')}"
        raise DamagedError(f"{partial} is an unfinished store that cannot be resumed: {why}.")
    store = Store(target, layout_of(record), record)
    written = store.written()
    total = len(store.names) * sum(1 for _ in store.layout.regions())
    sizes = store.finished.nbytes(written), store.finished.nbytes()
    missing = 0
    with suppress(OSError, ValueError, LookupError, TypeError):  # it only informs
        missing = len(missing_of(store.finished.sources.all()))
    return Unfinished(store, len(written), total, *sizes, read_status(store.finished.folder), missing)
