"""What an export will cost: requests, bytes to fetch, disk, memory, hours. Pure: from known facts, no file or network.

The size of the raw files is known (`volume`); the sizes of the masks, and how far voxels can be compressed, are not
known before they are there, and are guessed from real EM of another tissue.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from ..archive.formats import png, tiff
from ..archive.formats.strip_prefix import WHOLE_FROM
from ..archive.remote.ranges import MOST_OF_A_REQUEST
from ..core import volume
from .layout import Group, Layout, Region, plan_runs, rows_at_once

MASK_FILE_BYTES_PER_PIXEL = 0.006
"""Masks of real EM, 20000 x 20000 pixels, are PNGs of 0.5 to 4.8 MB."""

STORED_BYTES_PER_VOXEL = {"raw": 1.75, "mask": 0.014}
"""As this package compresses them: tissue of real EM, made 16 bit by noise, and masks of it. The archive's own voxels
may well take less, hardly more."""

STORED_SHARE = 0.9
"""Of any other variable."""

PROCESS_BYTES = 600 << 20
"""What a process takes before it does anything, and what it keeps: strip indexes, checkpoints of masks."""

RATES = (1.5e6, 10e6, 100e6)
"""Bytes a second: one connection from far away, all connections together, a good line."""


@dataclass(frozen=True)
class FilesRead:
    """Which part of which files a group of variables is made of.

    Attributes:
        variable: `raw` or a label.
        slices: How many files.
        rows: Rows that are read of each.
        last_row: Rows of a file down to the last that is read.
        last_column: Columns of a file up to the last that is read.
        height: Rows of a file.
        width: Columns of a file.
        connections: How many ranges are asked for side by side.
        times: How often all that is read, because what is computed of it needs it again.
    """

    variable: str
    slices: int
    rows: int
    last_row: int
    last_column: int
    height: int
    width: int
    connections: int
    times: float = 1

    def traffic(self, bands: int) -> tuple[int, int]:
        """Requests and bytes, where the rows are read in so many bands."""
        requests, fetched = self._traffic_of_once(bands)
        return ceil(self.times * requests), int(self.times * fetched)

    def _traffic_of_once(self, bands: int) -> tuple[int, int]:
        if self.variable == volume.RAW:
            is_whole = self.last_column / self.width >= WHOLE_FROM
            strip = volume.RAW_FILE_BYTES_PER_PIXEL * (self.width if is_whole else self.last_column)
            index = tiff.INDEX_BYTES_PER_ROW * self.height
            rows = self.rows / bands
            least = 0 if is_whole else rows / MOST_OF_A_REQUEST
            requests = bands * ceil(max(rows * strip / tiff.request_bytes(int(rows * strip), 1), least))
            return self.slices * (1 + requests), int(self.slices * (self.rows * strip + index))
        prefix = MASK_FILE_BYTES_PER_PIXEL * self.width * self.last_row
        ranges = 1 + min(ceil(prefix / png.SMALLEST_REQUEST), self.connections)
        return self.slices * ranges, int(self.slices * prefix)


@dataclass(frozen=True)
class Estimate:
    """What is still to be done, in all.

    Attributes:
        regions: Regions to write, of each group of variables.
        tasks: Tasks that write them or put shards together.
        requests: Requests to the archive.
        fetched: Bytes of their answers.
        stored: Bytes of the store on disk.
        disk: Bytes of disk needed while it is written: shards and slabs lie side by side for a while.
        memory: Bytes of memory that one thread needs.
        times: How often each variable of the archive is fetched, for what is computed of it.
    """

    regions: int
    tasks: int
    requests: int
    fetched: int
    stored: int
    disk: int
    memory: int
    times: Mapping[str, float]

    @property
    def hours(self) -> dict[float, float]:
        """Hours of fetching, by bytes a second."""
        return {rate: self.fetched / rate / 3600 for rate in RATES}


def estimate(
    layout: Layout,
    groups: Iterable[Group],
    sizes: Mapping[str, tuple[int, float]],
    files: Mapping[Group, Iterable[FilesRead]],
    written: frozenset[tuple[str, Region]] = frozenset(),
) -> Estimate:
    """Estimate an export.

    Args:
        layout: The grids of the store.
        groups: Its variables.
        sizes: By variable, the bytes of a voxel in memory and, about, on disk.
        files: What each group is read from.
        written: Regions that are there already.
    """
    groups = list(groups)
    runs = list(plan_runs(layout, groups, written))
    bands = ceil(layout.shape[1] / layout.band)
    left = {group: sum(len(run.regions) for run in runs if run.group == group) for group in groups}
    total = bands * ceil(layout.shape[0] / layout.chunks[0])
    requests = fetched = stored = disk = 0.0
    for group in groups:
        share = left[group] / total
        for used in files[group]:
            of_files = used.traffic(bands)
            requests, fetched = requests + share * of_files[0], fetched + share * of_files[1]
        voxels = layout.shape[0] * layout.shape[1] * layout.shape[2]
        on_disk = sum(sizes[name][1] for name in group.names)
        stored += voxels * on_disk
        row = min(layout.shards[0], layout.shape[0]) * min(layout.shards[1], layout.shape[1]) * layout.shape[2]
        disk += share * voxels * on_disk + (row * on_disk if share else 0)
    merges = len(layout.shard_rows(name for group in groups for name in group.names)) * layout.shards_along[2]
    return Estimate(
        sum(left.values()),
        len(runs) + merges,
        ceil(requests),
        int(fetched),
        int(stored),
        int(disk),
        max(task_memory(layout, group, sizes) for group in groups),
        {used.variable: used.times for group in groups for used in files[group]},
    )


def task_memory(layout: Layout, group: Group, sizes: Mapping[str, tuple[int, float]]) -> int:
    """Bytes that one thread needs for a group: of a region that is read, one that is encoded, and two's chunks.

    What is held for regions to come is more.
    """
    row = layout.chunks[0] * layout.shape[2] * sum(sizes[name][0] for name in group.names)
    return 4 * row * rows_at_once(layout, group) + group.held
