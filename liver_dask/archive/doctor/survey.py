"""Ask for every file of an archive whether it is there, and how large it is."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import FormatError, LiverDaskError, RemoteError, SliceNotFoundError
from ...core.threads import ContextPool, wait_for_result
from ..description import Archive, Variable
from ..remote.address import zarr_message
from ..remote.files import is_zarr, list_folders
from ..remote.source import Headers
from .asking import Asker

STRIKES = 8
"""After this many equal failures, one after the other, no more files are asked for."""

NOT_ASKED = "not asked, after too many equal failures"


class Slot(NamedTuple):
    """The place of one file in the archive."""

    variable: Variable
    z: int

    @property
    def path(self) -> str:
        """The path of the file, below the archive's root."""
        return self.variable.path(self.z)


Answer = Headers | LiverDaskError


@dataclass(frozen=True)
class FileTable:
    """The files of one variable.

    Attributes:
        name: Name of the variable.
        files: Path of a file, with the number of the slice as `{z...}`.
        first: Number in the name of the first file.
        sizes: Bytes of the file of each slice; None if it is not there, or is no file of data.
        pages: Slices for which the server sends a web page.
        failed: Why there is no answer about a slice.
    """

    name: str
    files: str
    first: int
    sizes: tuple[int | None, ...]
    pages: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)

    @property
    def present(self) -> list[int]:
        """Slices whose files are there."""
        return [z for z, size in enumerate(self.sizes) if size is not None]

    @property
    def with_bytes(self) -> list[int]:
        """Slices whose files are there, and not empty."""
        return [z for z, size in enumerate(self.sizes) if size]

    @property
    def missing(self) -> list[int]:
        """Slices whose files are not there, by two answers of the source."""
        others = {*self.pages, *self.failed}
        return [z for z, size in enumerate(self.sizes) if size is None and z not in others]

    def summary(self) -> dict[str, Any]:
        """Return smallest, median, largest and total size in bytes, as plain JSON; empty without files."""
        there = [size for size in self.sizes if size is not None]
        if not there:
            return {}
        return {"min": min(there), "median": int(np.median(there)), "max": max(there), "total": sum(there)}

    def as_json(self) -> dict[str, Any]:
        """Return the table as plain JSON."""
        return {
            "files": self.files,
            "first": self.first,
            "present": len(self.present),
            "missing": runs(self.missing),
            "web_pages": runs(self.pages),
            "failed": {str(z): reason for z, reason in self.failed.items()},
            "bytes": self.summary(),
            "sizes": list(self.sizes),
        }


def look_first(asker: Asker, archive: Archive, names: Sequence[str], is_near: bool) -> dict[Slot, Answer]:
    """Ask for the first, the middle and the last slice of each variable, before all others are asked for.

    Args:
        asker: Asks.
        archive: The description.
        names: The variables.
        is_near: Whether asking costs nothing, so that there is no reason to stop.

    Raises:
        SliceNotFoundError: No file is there, and the source is not on this machine.
        FormatError: Only web pages are there.
        RemoteError: The source does not answer, or refuses to.
    """
    depth = archive.shape[0]
    slots = [Slot(archive[name], z) for name in names for z in sorted({0, depth // 2, depth - 1})]
    found = _ask_all(asker, slots, lambda: None)
    answers = list(found.values())
    if any(isinstance(answer, Headers) and not answer.is_page for answer in answers):
        return found
    failures = [answer for answer in answers if isinstance(answer, RemoteError)]
    asked = f"{len(slots)} files of {', '.join(names)} were asked for, and none is there"
    if failures:
        raise type(failures[0])(f"{failures[0]} No other file was asked for: none of the first {len(slots)} is there.")
    pages = [slot for slot, answer in found.items() if isinstance(answer, Headers)]
    if pages:
        raise FormatError(
            f"{asker.url(pages[0].path)} is a web page, not a file of data, and so is each other one that was asked "
            "for; give the address of the folder with the archive's files."
        )
    if is_near:
        return found
    raise _nothing_there(asker, slots[0], asked)


def survey(
    asker: Asker, archive: Archive, names: Sequence[str], known: Mapping[Slot, Answer], advance: Callable[[], None]
) -> list[FileTable]:
    """Ask for all files.

    Args:
        asker: Asks.
        archive: The description.
        names: The variables.
        known: Answers that are there already.
        advance: Called once for each file.

    Raises:
        SliceNotFoundError: No file is there.
    """
    slots = [Slot(archive[name], z) for name in names for z in range(archive.shape[0])]
    there = [slot.path for slot, answer in known.items() if isinstance(answer, Headers)]
    left = [slot for slot in slots if slot not in known]
    found = {**known, **_ask_all(asker, left, advance, there[0] if there else "")}
    tables = [_table(archive[name], [found[Slot(archive[name], z)] for z in range(archive.shape[0])]) for name in names]
    if not any(table.present or table.pages or table.failed for table in tables):
        raise _nothing_there(asker, slots[0], f"None of the {len(slots)} files of {archive.name} is there")
    return tables


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Return ascending numbers as runs [first, last]."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _table(variable: Variable, answers: Sequence[Answer]) -> FileTable:
    return FileTable(
        variable.name,
        variable.files,
        variable.first,
        tuple(answer.size if isinstance(answer, Headers) and not answer.is_page else None for answer in answers),
        tuple(z for z, answer in enumerate(answers) if isinstance(answer, Headers) and answer.is_page),
        {
            z: str(answer)
            if isinstance(answer, LiverDaskError)
            else "the server does not say how large it is, neither by HEAD nor for its first byte"
            for z, answer in enumerate(answers)
            if (isinstance(answer, LiverDaskError) and not isinstance(answer, SliceNotFoundError))
            or (isinstance(answer, Headers) and answer.size is None and not answer.is_page)
        },
    )


def _ask_all(asker: Asker, slots: Sequence[Slot], advance: Callable[[], None], witness: str = "") -> dict[Slot, Answer]:
    """Ask for files, until there are too many equal failures, about a file that was there (`witness`), too."""
    strikes = _Strikes(asker, witness)

    def ask(slot: Slot) -> Answer:
        if strikes.are_enough:
            return RemoteError(NOT_ASKED)
        answer = _answer(asker, slot.path)
        strikes.count(answer, slot.path)
        return answer

    found = {}
    with ContextPool(asker.source.connections, "liver_dask-doctor") as pool:
        futures = {slot: pool.submit(ask, slot) for slot in slots}
        for slot, future in futures.items():
            found[slot] = wait_for_result(future)
            advance()
    return found


def _answer(asker: Asker, path: str) -> Answer:
    try:
        return asker.find(path)
    except LiverDaskError as error:
        return error


class _Strikes:
    """Counts equal failures that no other answer interrupts.

    They are enough only if a file that was sent before is not sent any more: some servers refuse what they do not have
    in the way in which others refuse everything.

    Args:
        asker: Asks.
        witness: A file that was there; empty if none is known yet.
    """

    def __init__(self, asker: Asker, witness: str) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._asker, self._witness = asker, witness

    @property
    def are_enough(self) -> bool:
        with self._lock:  # which is held while the witness is asked for
            return self._counts.total() >= STRIKES

    def count(self, answer: Answer, path: str) -> None:
        """Count an answer; one about a file, be it that it is not there, interrupts the failures."""
        with self._lock:
            if isinstance(answer, Headers | SliceNotFoundError):
                self._counts.clear()
                self._witness = path if isinstance(answer, Headers) else self._witness
                return
            reason = str(answer).replace(self._asker.url(path), "").partition(" after ")[0]  # without the seconds
            if reason not in self._counts:
                self._counts.clear()
            self._counts[reason] += 1
            is_due = self._counts.total() == STRIKES and bool(self._witness)
            if is_due and isinstance(_answer(self._asker, self._witness), Headers):
                self._counts.clear()


def _nothing_there(asker: Asker, slot: Slot, asked: str) -> SliceNotFoundError:
    """Return the error for an address without any file of the archive."""
    url = asker.source.url
    folders = list_folders(asker.source)
    if is_zarr(asker.source):
        return SliceNotFoundError(f"{url} {zarr_message(url)}")
    there = f" There are these folders: {', '.join(folders)}." if folders else ""
    return SliceNotFoundError(
        f"{asked}, such as {asker.url(slot.path)}.{there} Correct the address, or the archive (--archive)."
    )
