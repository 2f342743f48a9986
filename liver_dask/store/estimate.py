"""What an export will cost: requests, bytes to fetch, disk, memory, hours. Pure: from known facts, no file or network.

The size of raw files may be known (the archive's description); the sizes of masks, and how far voxels can be
compressed, are not known before they are there, and are guessed from real EM of another tissue.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from ..archive.formats.registry import FORMATS
from ..archive.formats.slices import Reading
from ..archive.reader import VolumeReader
from ..core.kinds import Kind
from .layout import Group, Layout, Region, plan_batches, rows_at_once

STORED_BYTES_PER_BYTE: dict[Kind, float] = {"image": 0.875, "mask": 0.014, "instances": 0.05}
"""As this package compresses them: tissue of real EM, made 16 bit by noise, and masks of it. The archive's own voxels
may well take less, hardly more."""

STORED_SHARE = 0.9
"""Of any variable that is no integer."""

PROCESS_BYTES = 600 << 20
"""What a process takes before it does anything, and what it keeps: strip indexes, checkpoints of masks."""

RATES = (1.5e6, 10e6, 100e6)
"""Bytes a second: one connection from far away, all connections together, a good line."""


@dataclass(frozen=True)
class FilesRead:
    """Which part of which files a group of variables is made of.

    Attributes:
        reader: What reads them.
        slices: How many files.
        rows: Rows that are read of each.
        last_row: Rows of a file down to the last that is read.
        last_column: Columns of a file up to the last that is read.
        times: How often all that is read, because what is computed of it needs it again.
    """

    reader: VolumeReader
    slices: int
    rows: int
    last_row: int
    last_column: int
    times: float = 1

    def traffic(self, row_blocks: int) -> tuple[int, int]:
        """Requests and bytes, where the rows are read in so many bands."""
        described = self.reader.variable
        reads = FORMATS[described.format]
        _, height, width = self.reader.shape
        reading = Reading(
            rows=self.rows,
            last_row=self.last_row,
            last_column=self.last_column,
            height=height,
            width=width,
            connections=self.reader.source.connections,
            bytes_per_pixel=described.bytes_per_pixel or reads.BYTES_PER_PIXEL,
        )
        requests, fetched = reads.traffic(reading, row_blocks)
        return ceil(self.times * self.slices * requests), int(self.times * int(self.slices * fetched))


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
    runs = list(plan_batches(layout, groups, written))
    row_blocks = ceil(layout.shape[1] / layout.row_block)
    left = {group: sum(len(run.regions) for run in runs if run.group == group) for group in groups}
    total = row_blocks * ceil(layout.shape[0] / layout.chunks[0])
    requests = fetched = stored = disk = 0.0
    for group in groups:
        share = left[group] / total
        for used in files[group]:
            of_files = used.traffic(row_blocks)
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
        {used.reader.name: used.times for group in groups for used in files[group]},
    )


def task_memory(layout: Layout, group: Group, sizes: Mapping[str, tuple[int, float]]) -> int:
    """Bytes that one thread needs for a group: of a region that is read, one that is encoded, and two's chunks.

    What is held for regions to come is more.
    """
    row = layout.chunks[0] * layout.shape[2] * sum(sizes[name][0] for name in group.names)
    return 4 * row * rows_at_once(layout, group) + group.held
