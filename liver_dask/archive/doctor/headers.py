"""Read the headers of some slices, and all values of others, and compare them with the archive's description."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import FormatError, LiverDaskError
from ...core.kinds import Kind
from ...core.threads import ContextPool, wait_for_result
from ..reader import VolumeReader
from ..remote.files import RemoteFile
from .survey import FileTable

SLICES_AT_ONCE = 4
"""Slices whose headers are read at once; each takes one to three requests."""

MOST_SMALL = 16
"""Smallest files of a variable whose headers are read, if they are not as described."""

PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")

MAY_DIFFER = ("shape", "dtype")
"""What is compared with the description. The rest is compared among the slices."""

MOST_VALUES = 4
"""Different values of a mask that are told; two are right."""


@dataclass(frozen=True)
class SliceFacts:
    """What was found in the file of one slice.

    Attributes:
        variable: Name of the variable.
        z: The slice.
        url: The file.
        facts: What its headers say, or statistics of its values.
        problem: How it differs from the description, as one sentence; empty if it does not.
        note: What is unusual about it, and is no problem; or empty.
        is_damaged: Whether the problem is one of the file, and not of the way to it.
    """

    variable: str
    z: int
    url: str
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    note: str = ""
    is_damaged: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON."""
        said = {"problem": self.problem, "note": self.note}
        return {"variable": self.variable, "z": self.z, **self.facts, **{key: of for key, of in said.items() if of}}


def choose(table: FileTable, count: int) -> list[int]:
    """Return some slices that are there, spread from the first to the last; and the smallest and the largest file.

    A file that was cut short or replaced is likely to be one of the last two.
    """
    there = table.with_bytes
    chosen = set(spread(there, count))
    if there and count:
        chosen |= {min(there, key=_size_in(table)), max(there, key=_size_in(table))}
    return sorted(chosen)


def spread(there: Sequence[int], count: int) -> list[int]:
    """Return up to `count` of some slices, from the first to the last; of one, the middle."""
    if count == 1 and there:
        return [there[len(there) // 2]]
    return [there[i] for i in sorted({round(at) for at in np.linspace(0, len(there) - 1, min(count, len(there)))})]


def read_headers(reader: VolumeReader, table: FileTable, slices: Sequence[int]) -> Iterator[SliceFacts]:
    """Yield what the headers of some slices say."""
    with ContextPool(SLICES_AT_ONCE, "liver_dask-doctor") as pool:
        for future in [pool.submit(_describe, reader, table.sizes[z], z) for z in slices]:
            yield wait_for_result(future)


def read_smallest(reader: VolumeReader, table: FileTable, known: Sequence[SliceFacts]) -> Iterator[SliceFacts]:
    """Yield what the headers of the smallest files say, up to the first that is as described.

    Files that were cut short, or replaced by a server's message, are small, and seldom alone.

    Args:
        reader: Reads the variable.
        table: Its files.
        known: Slices whose headers were read.
    """
    found = {one.z: one for one in known}
    for z in sorted(table.with_bytes, key=_size_in(table))[:MOST_SMALL]:
        if z not in found:
            found[z] = _describe(reader, table.sizes[z], z)
            yield found[z]
        if not found[z].is_damaged:
            return


def read_whole(reader: VolumeReader, z: int) -> SliceFacts:
    """Return statistics of all values of a slice, and what is wrong with them."""
    url = f"{reader.source.url}/{reader.variable.path(z)}"
    try:
        found = reader.use_values(z, lambda blocks: _count(blocks, reader.variable.kind))
    except LiverDaskError as error:
        return SliceFacts(reader.name, z, url, problem=str(error))
    problem = note = ""
    if reader.variable.kind == "image" and not found["max"]:
        problem = f"{reader.name}, slice {z}: {url}: all its voxels are 0."
    elif reader.variable.kind == "mask" and len(found["values"]) > 2:
        some = ", ".join(map(str, found["values"]))
        problem = f"{reader.name}, slice {z}: {url}: is described as a mask, and has other values than two: {some}."
    elif reader.variable.kind != "image" and not found["labelled"]:
        note = f"{reader.name}, slice {z} has no labelled voxel."
    return SliceFacts(reader.name, z, url, found, problem, note)


def unlike_others(found: Sequence[SliceFacts]) -> Iterator[str]:
    """Yield what differs among the slices of a variable, although each is as described."""
    for name in dict.fromkeys(one.variable for one in found):
        here = [one.facts for one in found if one.variable == name and one.facts]
        keys = dict.fromkeys(key for facts in here for key in facts)
        unlike = [key.replace("_", " ") for key in keys if len({str(facts.get(key)) for facts in here}) > 1]
        if unlike:
            yield f"{name}: the slices that were examined differ from each other, in {', '.join(unlike)}."


def _size_in(table: FileTable) -> Callable[[int], int]:
    return lambda z: table.sizes[z] or 0


def _describe(reader: VolumeReader, size: int | None, z: int) -> SliceFacts:
    path = reader.variable.path(z)
    url, where = f"{reader.source.url}/{path}", f"{reader.name}, slice {z}"
    try:
        facts = reader.describe_file(z)
    except LiverDaskError as error:
        problem = str(error)
        if isinstance(error, FormatError) and _is_page(RemoteFile(reader.source, path)):
            problem = f"{where}: {url}: is a web page or XML, such as a server sends in place of an error, not data."
        return SliceFacts(reader.name, z, url, problem=problem, is_damaged=isinstance(error, FormatError))
    problem = note = ""
    version = reader.source.versions.get(url)
    if version is not None and version.size != size:
        problem = f"{where}: {url}: was said to have {size} bytes, and has {version.size}."
    stored = facts["dtype"]
    if not reader.is_from_the_top and stored != reader.variable.dtype:
        said = f"{where}: {url}: dtype is {stored}, and described is {reader.variable.dtype}"
        if reader.variable.kind == "image":
            problem = problem or f"{said}."
        else:
            note = f"{said}; each value that does not fit would be an error when it is read."
    return SliceFacts(reader.name, z, url, facts, problem, note, is_damaged=bool(problem))


def _is_page(file: RemoteFile) -> bool:
    try:
        return bytes(file.fetch(0, 512)).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGE_STARTS)
    except LiverDaskError:
        return False


def _count(blocks: Iterator[npt.NDArray[Any]], kind: Kind) -> dict[str, Any]:
    """Return statistics of the values of a slice."""
    least, most, labelled, count = [0], [0], 0, 0
    values: set[int] = set()
    for block in blocks:
        least.append(int(block.min()))
        most.append(int(block.max()))
        labelled += int(np.count_nonzero(block))
        count += block.size
        if kind == "mask" and len(values) < MOST_VALUES:
            values.update(np.unique(block).tolist())
    if kind == "image":
        return {"min": min(least[1:]), "max": max(most)}
    share = {"labelled": round(labelled / max(count, 1), 6)}
    return {**share, "values": sorted(values)[:MOST_VALUES]} if kind == "mask" else {**share, "max": max(most)}
