"""Estimate of what an export costs: requests, bytes to fetch, disk, memory and hours.

It is computed from known facts, without access to files or the network. The sizes of files are known if the archive was
examined (`facts=`); those of raw may be known from its description. Otherwise they are guessed from real EM of another
tissue, and so is how well voxels compress; or they were measured before on some slices, see `sample`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from ..archive.formats.registry import FORMATS
from ..archive.formats.slices import Measured, Reading
from ..archive.reader import VolumeReader
from ..core.kinds import Kind
from .layout import Group, Layout, Region, plan_batches, rows_at_once

STORED_BYTES_PER_BYTE: dict[Kind, float] = {"image": 0.875, "mask": 0.014, "instances": 0.05}
"""Measured with this package's compression on tissue of real EM, extended to 16 bits with noise, and on masks of it.
The archive's own voxels may well take less, but hardly more."""

STORED_SHARE = 0.9
"""Stored bytes per byte of a variable of floats."""

METADATA_BYTES, METADATA_BYTES_OF_A_VARIABLE = 9_000, 15_000
"""What is in a store besides its shards: documents, coordinates, and tables of a small box."""

PROCESS_BYTES = 600 << 20
"""Memory of a process before it does any work, and of its caches: strip indexes, checkpoints of masks."""

RATES = (1.5e6, 10e6, 100e6)
"""Bytes per second: one connection from far away, all connections together, a fast line."""


@dataclass(frozen=True)
class FilesRead:
    """The part of the files of one archive variable that is read for a group of variables.

    Attributes:
        reader: The reader of the files.
        slices: Number of files.
        rows: Number of rows that are read from each file.
        last_row: Number of rows of a file from its top to the last row that is read.
        last_column: Number of columns of a file up to the last column that is read.
        times: How often all of this is read, because computed variables need it again.
        measured: What a look at some of the files has shown; None if there was none.
        numbers: The slices; empty if they are not known.
    """

    reader: VolumeReader
    slices: int
    rows: int
    last_row: int
    last_column: int
    times: float = 1
    measured: Measured | None = None
    numbers: tuple[int, ...] = ()

    @property
    def missing(self) -> list[int]:
        """Slices whose files were missing when the archive was examined."""
        known = self.reader.known.missing
        return sorted(known.intersection(self.numbers) if self.numbers else known)

    def traffic(self, row_blocks: int, takes_several_ranges: bool = True) -> tuple[int, int]:
        """Estimate the number of requests and bytes.

        Args:
            row_blocks: Number of row blocks in which the rows are read.
            takes_several_ranges: Whether the source answers several ranges of a file at once, if that is not measured.
        """
        described = self.reader.variable
        reads = FORMATS[described.format]
        _, height, width = self.reader.shape
        known = self.reader.known.mean_bytes(self.numbers)
        per_pixel = described.bytes_per_pixel or reads.BYTES_PER_PIXEL if known is None else known / (height * width)
        reading = Reading(
            rows=self.rows,
            last_row=self.last_row,
            last_column=self.last_column,
            height=height,
            width=width,
            connections=self.reader.source.connections,
            bytes_per_pixel=per_pixel,
            takes_several_ranges=takes_several_ranges,
            measured=self.measured,
        )
        requests, fetched = reads.traffic(reading, row_blocks)
        return ceil(self.times * self.slices * requests), int(self.times * int(self.slices * fetched))


@dataclass(frozen=True)
class Estimate:
    """The cost of all that is still to be done.

    Attributes:
        regions: Number of regions to write; each group of variables counts on its own.
        tasks: Number of tasks that write the regions or merge slabs into shards.
        requests: Number of requests to the archive.
        fetched: Bytes of the responses.
        requests_one_range: Number of requests if the source answers one range of a file at a time.
        fetched_one_range: Bytes of the responses in that case.
        stored: Bytes of the complete store on disk.
        disk: Bytes of disk space needed during the export. A shard and its slabs exist together for a while.
        memory: Bytes of memory that one thread needs.
        times: How often each variable of the archive is fetched, because computed variables need it again.
    """

    regions: int
    tasks: int
    requests: int
    fetched: int
    requests_one_range: int
    fetched_one_range: int
    stored: int
    disk: int
    memory: int
    times: Mapping[str, float]

    @property
    def hours(self) -> dict[float, float]:
        """Hours that fetching takes, for each rate of RATES in bytes per second."""
        return {rate: self.fetched / rate / 3600 for rate in RATES}


def estimate(
    layout: Layout,
    groups: Iterable[Group],
    sizes: Mapping[str, tuple[int, float]],
    files: Mapping[Group, Iterable[FilesRead]],
    written: frozenset[tuple[str, Region]] = frozenset(),
) -> Estimate:
    """Estimate the cost of an export.

    Args:
        layout: The grids of the store.
        groups: The groups of its variables.
        sizes: For each variable, the bytes of a voxel in memory and (approximately) on disk.
        files: The files that each group is read from.
        written: Regions that are written already, with the names of their variables.

    Returns:
        The cost of what is still to be done.
    """
    groups = list(groups)
    batches = list(plan_batches(layout, groups, written))
    row_blocks = ceil(layout.shape[1] / layout.row_block)
    left = {group: sum(len(batch.regions) for batch in batches if batch.group == group) for group in groups}
    total = row_blocks * ceil(layout.shape[0] / layout.chunks[0])
    traffic, one_range, stored, disk = np.zeros(2), np.zeros(2), 0.0, 0.0
    for group in groups:
        share = left[group] / total
        for used in files[group]:
            traffic += share * np.array(used.traffic(row_blocks))
            one_range += share * np.array(used.traffic(row_blocks, takes_several_ranges=False))
        voxels = layout.shape[0] * layout.shape[1] * layout.shape[2]
        on_disk = sum(sizes[name][1] for name in group.names)
        stored += voxels * on_disk
        row = min(layout.shards[0], layout.shape[0]) * min(layout.shards[1], layout.shape[1]) * layout.shape[2]
        disk += share * voxels * on_disk + (row * on_disk if share else 0)
    metadata = METADATA_BYTES + METADATA_BYTES_OF_A_VARIABLE * sum(len(group.names) for group in groups)
    merges = len(layout.shard_rows(name for group in groups for name in group.names)) * layout.shards_along[2]
    return Estimate(
        sum(left.values()),
        len(batches) + merges,
        *(ceil(traffic[0]), int(traffic[1])),
        *(ceil(one_range[0]), int(one_range[1])),
        int(stored) + metadata,
        int(disk) + metadata,
        max(task_memory(layout, group, sizes) for group in groups),
        {used.reader.name: used.times for group in groups for used in files[group]},
    )


def task_memory(layout: Layout, group: Group, sizes: Mapping[str, tuple[int, float]]) -> int:
    """Estimate the bytes of memory that one thread needs to write a group.

    A thread has the voxels of one region that is read, those of one that is encoded, and the chunks of two regions. The
    results that it holds for later regions are added.

    Args:
        layout: The grids of the store.
        group: The group.
        sizes: For each variable, the bytes of a voxel in memory and on disk.
    """
    row = layout.chunks[0] * layout.shape[2] * sum(sizes[name][0] for name in group.names)
    return 4 * row * rows_at_once(layout, group) + group.held
