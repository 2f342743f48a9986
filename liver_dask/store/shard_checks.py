"""Check whether the shards of a store are, byte for byte, those that were written."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ..core.disk import files_below
from ..core.errors import DamagedError
from ..core.geometry import Shape
from ..core.places import Place, path_below
from .comparison import Difference
from .inventory import Metadata
from .layout import Layout, Shard
from .record import MANIFEST, RECORD, read_checksums, read_statistics, shard_path
from .shards import CRC_BYTES, EMPTY, STATISTICS, Checksum, decode_chunk, read_shard_index, statistics_of

READ_AT_ONCE = 16 << 20
MOST_NAMED = 20
"""Maximum number of missing or unexpected shards that a problem lists by name."""

MEAN_TOLERANCE, STD_TOLERANCE = 1e-4, 1e-3
"""Relative tolerances, because another processor may add in another order."""


@dataclass(frozen=True)
class ShardCheck:
    """Check whether one shard is as it was written.

    Attributes:
        store: The store.
        name: The variable.
        shard: The shard.
        dtype: Data type of the variable.
        has_means: Whether the tables contain mean and standard deviation of the variable.
        layout: The grids of the store.
        expected: The recorded checksum; None if there is none.
        known: STATISTICS of the chunks of the shard from the store's tables; None if they cannot be read.
        chosen: Number from 0 to 1 that selects which of the chunks that are not empty is decoded. None decodes all of
            them.
        has_checksums: Whether each chunk has its own checksum.
    """

    store: Place
    name: str
    shard: Shard
    dtype: str
    has_means: bool
    layout: Layout
    expected: Checksum | None
    known: npt.NDArray[np.void] | None
    chosen: float | None
    has_checksums: bool

    @property
    def nbytes(self) -> int:
        """Number of bytes to read."""
        return self.expected.size if self.expected else 0

    def run(self) -> tuple[int, list[str]]:
        """Return the number of bytes read and the problems, one sentence each."""
        ranges = [
            f"{number * of}:{min((number + 1) * of, length)}"
            for number, of, length in zip(self.shard, self.layout.shards, self.layout.shape, strict=True)
        ]
        where, voxels = f"shard {_named(self.shard)} of {self.name}", f"it holds {self.name}[{', '.join(ranges)}]"
        path = shard_path(self.store, self.name, self.shard)
        try:
            if not path.is_file():
                return 0, [f"{where} is missing; {voxels}"]
            size = path.stat().st_size
            if self.expected and size != self.expected.size:
                return 0, [
                    f"{where} is not what was written: it has {size} bytes instead of {self.expected.size}; {voxels}"
                ]
            found = _checksum(path)
            if self.expected and found != self.expected:
                return found.size, [f"{where} is not what was written: bytes of it have changed; {voxels}"]
            return found.size, [f"{where}: {problem}" for problem in self._look_inside(path)]
        except FileNotFoundError:
            return 0, [f"{where} is missing; {voxels}"]
        except (DamagedError, OSError) as error:
            return 0, [f"{where} is damaged: {str(error).rstrip('.')}; {voxels}"]

    def explains(self, difference: Difference) -> bool:
        """Return whether a difference follows from this damaged shard: it is unreadable, or the shard is lost."""
        region, (z, y, _) = difference.region, self.shard
        depth, height, _ = self.layout.shards
        touches = region.z_start < (z + 1) * depth and z * depth < region.z_stop
        touches &= region.y_start < (y + 1) * height and y * height < region.y_stop
        is_lost = not shard_path(self.store, self.name, self.shard).is_file()
        return difference.name == self.name and touches and (difference.is_unreadable or is_lost)

    def _look_inside(self, path: Place) -> list[str]:
        """Decode chunks, and return the problems where they do not match the tables."""
        problems = []
        with path.open("rb") as file:
            index = read_shard_index(file, self.layout.chunks_per_shard)
            if self.known is not None:
                there = index[tuple(map(slice, self.known.shape))][..., 1]
                wrong = np.argwhere((there == EMPTY) & (self.known["nonzero"] > 0))
                problems += [self._message(place, self.known[tuple(place)], "is empty") for place in wrong[:MOST_NAMED]]
            filled = np.argwhere(index[..., 1] != EMPTY)
            if self.chosen is not None and len(filled):
                filled = filled[int(self.chosen * len(filled)), None]
            for place in filled:
                offset, length = index[tuple(place)].tolist()
                file.seek(offset)
                data, dtype = file.read(length), np.dtype(self.dtype)
                voxels = decode_chunk(data, dtype, self.layout.chunks, has_checksum=self.has_checksums)
                problems += self._compare(place, voxels)
        return problems

    def _compare(self, place: npt.NDArray[np.intp], voxels: npt.NDArray[Any]) -> list[str]:
        if self.known is None or any(n >= of for n, of in zip(place, self.known.shape, strict=True)):
            return []
        ends = [
            length - (shard * chunks + number) * chunk
            for length, shard, chunks, number, chunk in zip(
                self.layout.shape, self.shard, self.layout.chunks_per_shard, place, self.layout.chunks, strict=True
            )
        ]
        voxels = np.ascontiguousarray(voxels[tuple(map(slice, ends))])
        found = statistics_of(voxels, has_means=self.has_means)
        known = self.known[tuple(place)]
        return [] if _agree(known, found) else [self._message(place, known, f"has {found}")]

    def _message(self, place: Iterable[int], known: Any, found: str) -> str:
        names = ", ".join(STATISTICS.names or ())
        return f"chunk {_named(place)} of it {found}, and the tables in {RECORD}/{self.name} say {known} ({names})"


def _agree(known: Any, found: Any) -> bool:
    """Return whether recorded and computed statistics agree, up to rounding."""
    if known["nonzero"] != found["nonzero"]:
        return False
    with np.errstate(all="ignore"):
        near = MEAN_TOLERANCE * abs(float(found["mean"])) + 1e-30
        mean = np.isclose(known["mean"], found["mean"], rtol=MEAN_TOLERANCE, atol=1e-30, equal_nan=True)
        std = np.isclose(known["std"], found["std"], rtol=STD_TOLERANCE, atol=near, equal_nan=True)
    return bool(mean and std)


class ShardPlan:
    """Compare the shards that a variable should have with those on disk.

    Attributes:
        problems: Missing checksums or shards and unexpected files, one sentence each.
        checksums: The recorded checksum of each shard.
        shards: Shards of the grid that are on disk or in the manifest, sorted.
        is_whole: Whether the manifest lists all shards that the shape requires, and a shard on disk is large enough for
            its index. If not, callers must not iterate over all chunks, whose number may be far too large.
    """

    def __init__(self, store: Place, name: str, layout: Layout) -> None:
        self._grid = layout.shards_along
        self.problems: list[str] = []
        try:
            self.checksums = read_checksums(store, name)
        except DamagedError as error:
            self.problems.append(str(error))
            self.checksums = {}
        found, others = _shards_on_disk(store / name / "c", self._grid)
        self.shards = sorted(found | {shard for shard in self.checksums if self._has(shard)})
        count = math.prod(self._grid)
        missing = self._first(shard for shard in self._all() if shard not in self.checksums) if self.checksums else []
        unknown = [shard for shard in self.checksums if not self._has(shard)]
        self._report(
            f"the checksum of a shard of {name} is missing in {MANIFEST}", missing, count - len(self.checksums)
        )
        self._report(f"{MANIFEST} of {name} names shards that there cannot be", unknown, len(unknown))
        self._report(f"there are files among the shards of {name} that were not written", others, len(others))
        if not self.checksums:
            lost = self._first(shard for shard in self._all() if shard not in found)
            self._report(f"shards of {name} are missing", lost, count - len(found))
        room = math.prod(layout.chunks_per_shard) * 16 + CRC_BYTES
        sizes = (_size(shard_path(store, name, shard)) for shard in self.shards)
        self.is_whole = len(self.checksums) == count and not missing and any(size >= room for size in sizes)

    def _has(self, shard: Shard) -> bool:
        return all(0 <= number < count for number, count in zip(shard, self._grid, strict=True))

    def _all(self) -> Iterator[Shard]:
        return (Shard(*place) for place in product(*map(range, self._grid)))

    def _first(self, shards: Iterator[Shard]) -> list[Shard]:
        return list(islice(shards, MOST_NAMED))

    def _report(self, what: str, places: list[Any], count: int) -> None:
        if places:
            named = ", ".join(place if isinstance(place, str) else _named(place) for place in places[:MOST_NAMED])
            more = f" and others, {count} in all" if count > len(places[:MOST_NAMED]) else ""
            self.problems.append(f"{what}: {named}{more}")


def read_tables(store: Place, name: str, metadata: Metadata) -> tuple[npt.NDArray[np.void] | None, list[str]]:
    """Return the stored STATISTICS of each chunk of a variable, or None if they cannot be read; and the problems."""
    names = STATISTICS.names or ()
    if not all(metadata.is_sound(f"{RECORD}/{name}/{statistic}") for statistic in names):
        return None, []
    try:
        tables = {statistic: read_statistics(store, name, statistic) for statistic in names}
    except DamagedError as error:
        return None, [str(error)]
    known = np.zeros(tables["nonzero"].shape, STATISTICS)
    for statistic, table in tables.items():
        known[statistic] = table
    return known, []


def part_of_shard(known: npt.NDArray[np.void] | None, shard: Shard, grid: Shape) -> npt.NDArray[np.void] | None:
    """Return the STATISTICS of those chunks of one shard that contain voxels."""
    if known is None:
        return None
    return known[tuple(slice(number * of, (number + 1) * of) for number, of in zip(shard, grid, strict=True))]


def _shards_on_disk(folder: Place, grid: Shape) -> tuple[set[Shard], list[str]]:
    """Return the shards of a grid that have a file, and all other files in the folder except hidden ones."""
    found, others = set(), []
    for path in _files_below(folder):
        where = path_below(path, folder)
        shard = _shard_named(where)
        if shard and all(number < count for number, count in zip(shard, grid, strict=True)):
            found.add(shard)
        elif not path.name.startswith("."):
            others.append(where)
    return found, sorted(others)


def _files_below(folder: Place) -> Iterator[Place]:
    """Yield the files in a folder and below; those that the disk does not list count as missing."""
    with suppress(OSError):
        yield from files_below(folder)


def _shard_named(where: str) -> Shard | None:
    parts = where.split("/")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 11 for part in parts):
        return None
    shard = Shard(*map(int, parts))
    return shard if _named(shard) == where else None


def _named(place: Iterable[int]) -> str:
    return "/".join(map(str, place))


def _size(path: Place) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _checksum(path: Place) -> Checksum:
    size, crc = 0, 0
    with path.open("rb") as file:
        while data := file.read(READ_AT_ONCE):
            size, crc = size + len(data), google_crc32c.extend(crc, data)
    return Checksum(size, crc)
