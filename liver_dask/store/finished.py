"""What is finished of an unfinished store: slabs, shards, and the versions of the files that they were made from.

It is in the folder `progress` of the unfinished store:

============================  ===============================================================================
`run`                         name of the current run of the export; tasks of earlier runs see it and stop
`status.json`                 how far the last run came, how fast it was and what failed
`slabs/VARIABLE/Z-Y`          encoded chunks of a region; if the file exists, the region is written
`shards/VARIABLE/Z-Y-X.npy`   statistics of the voxels of a shard's chunks
`shards/VARIABLE/Z-Y-X.json`  size and checksum of a shard; if the file exists, the shard is finished
`sources/...`                 size and ETag of a source file, written before the first slab made from it
============================  ===============================================================================

Each file gets its name only when its bytes are on the disk. If the disk does not tell what exists, nothing is removed.
"""

import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ..archive.remote.versions import FileVersion
from ..core.disk import content_of, files_in, is_file, is_there
from ..core.errors import StoreExistsError
from ..core.places import Place
from .durable import TORN
from .layout import Layout, Region, Shard, ShardRow
from .record import shard_path
from .shards import Chunk, read_row
from .slabs import Slab, merge_slabs, read_first_row, write_slab
from .source_versions import SourceVersions
from .status import STATUS
from .storage.access import storage_of
from .storage.interface import Storage

log = logging.getLogger(__name__)

PARTS = ("slabs", "shards")
"""The folders that contain finished work."""

RUN = "run"


class Finished:
    """The finished parts of one unfinished store; a small object, equal in every process that writes the store.

    Args:
        folder: The folder `progress`.
        shards: Where the shards of the store are written.
        target: Place of the complete store, for messages.
        layout: The grids of the store.
        variables: The variables by name, as in the record of the store.
    """

    def __init__(
        self, folder: Place, shards: Place, target: Place, layout: Layout, variables: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.folder = folder
        self.shards = shards
        self.layout = layout
        self.sources = SourceVersions(folder / "sources", {"variables": variables}, [])
        self._target = target
        self.variables = variables
        self._run = ""

    @property
    def _storage(self) -> Storage[Any]:
        return storage_of(self.folder)

    @property
    def parts(self) -> list[Place]:
        """The folders of finished slabs and shards."""
        return [self.folder / kind / name for kind in PARTS for name in self.variables]

    def make_folders(self) -> None:
        """Make the folders, which may be missing after a kill."""
        self._storage.make_folders([self.sources.folder, *self.parts])

    def begin_run(self) -> str:
        """Make this run the current one; return its name."""
        self._run = secrets.token_hex(8)
        self._storage.write(self.folder / RUN, [self._run.encode()])
        return self._run

    def is_current(self, run: str) -> bool:
        """Return whether `run` is the current run. Tasks of a stopped, killed or superseded run must end."""
        try:
            return (self.folder / RUN).read_text() == run
        except FileNotFoundError:
            return False

    def check_run(self, run: str) -> None:
        """Raise StoreExistsError if another run has begun, so that a late task writes nothing into it."""
        found = content_of(self.folder / RUN)
        if found is not None and found.decode() != run:
            raise StoreExistsError(f"{self._target} is written by another run; this one has ended.")

    def end_run(self) -> None:
        """Mark this run as ended, so that its tasks stop. If the disk does not allow it, they continue."""
        try:
            if self._run and self.is_current(self._run):  # not that of a process which has taken over
                self._storage.remove(self.folder / RUN)
        except OSError as error:
            log.warning("%s: its tasks may not see that the run has ended (%s)", self._target, error)

    def regions(self) -> set[tuple[str, Region]]:
        """Return the written regions by variable: their slabs exist, or the shards that were merged from them."""
        found: set[tuple[str, Region]] = set()
        for name in self.variables:
            slabs = self._names_in("slabs", name)
            found |= {(name, region) for region in self.layout.regions() if _slab_name(region) in slabs}
            records = self._names_in("shards", name)
            for row in self.layout.shard_rows([name]):
                if all(_record_name(shard) in records for shard in self.layout.shards_of(row)):
                    found |= {(name, region) for region in self.layout.regions_of(row)}
        return found

    def nbytes(self, regions: Iterable[tuple[str, Region]] | None = None) -> int:
        """Return the bytes of the voxels of some regions of variables, or of all."""
        chosen = product(self.variables, self.layout.regions()) if regions is None else regions
        sizes = {name: np.dtype(of["dtype"]).itemsize for name, of in self.variables.items()}
        return sum(sizes[name] * self.layout.voxels_of(region) for name, region in chosen)

    def note_versions(self, versions: Mapping[str, FileVersion]) -> None:
        """Record which versions of files were read for the store.

        Args:
            versions: Versions by URL, only of files that the store is made from.

        Raises:
            SourceChangedError: This run or an earlier one has written parts of the store from another version.
        """
        for url, version in list(versions.items()):  # readers may add to it at the same time
            self.sources.note(url, version)

    def first_row(self, name: str, region: Region) -> npt.NDArray[Any]:
        """Return the first row of a region that is written, of its first slice."""
        dtype, chunk = np.dtype(self.variables[name]["dtype"]), self.layout.chunks
        slab = self._slab_path(name, region)
        if is_file(slab):
            row = read_first_row(slab, self.layout.slab_grid(region), dtype, chunk)
        else:
            shards = [
                shard_path(self.shards, name, of) for of in self.layout.shards_of(self.layout.row_of(name, region))
            ]
            grid, first = self.layout.chunks_per_shard, (region.z_start, region.y_start)
            row = np.concatenate([read_row(of, grid, dtype, chunk, *first) for of in shards])
        return row[: self.layout.shape[2]]

    def write_slab(self, name: str, region: Region, chunks: Sequence[Chunk]) -> None:
        """Write the encoded chunks of a region of a variable, row by row."""
        write_slab(
            self._slab_path(name, region), chunks, self.layout.slab_grid(region), self.layout.chunks_per_shard[2]
        )

    def is_merged(self, row: ShardRow) -> bool:
        """Return whether all shards of a row are finished."""
        return all(is_file(self._checksum_path(row.name, shard)) for shard in self.layout.shards_of(row))

    def merge(self, row: ShardRow, shard: Shard) -> None:
        """Merge the slabs of one shard of a row. Remove the slabs when all shards of the row are finished."""
        try:
            self._merge(row, shard)
        except FileNotFoundError:
            # if the checksum exists, a job of an earlier run has just written the shard
            if not is_file(self._checksum_path(row.name, shard)):
                raise
        if self.is_merged(row):
            for region in self.layout.regions_of(row):
                self._storage.remove(self._slab_path(row.name, region))

    def remove(self) -> None:
        """Remove the progress of a completed store, or of a run that was killed at its beginning.

        Do not call this if there is an unfinished store.
        """
        for folder in (self.folder / name for name in ("sources", *PARTS)):
            self._storage.remove_tree(folder)
        if is_there(self.folder):
            for path in files_in(self.folder):
                if path.name in (RUN, STATUS) or TORN.fullmatch(path.name):
                    self._storage.remove(path)
            self._storage.remove_folder(self.folder)  # fails if it contains files of somebody else

    def _merge(self, row: ShardRow, shard: Shard) -> None:
        """Merge the slabs of one shard, unless the shard is finished."""
        record = self._checksum_path(row.name, shard)
        if is_file(record):
            return
        (_, rows, _), grid = self.layout.chunks, self.layout.chunks_per_shard
        slabs = [
            Slab(
                self._slab_path(row.name, region),
                z=region.z_start // self.layout.chunks[0] % grid[0],
                y=region.y_start // rows % grid[1],
                grid=self.layout.slab_grid(region),
            )
            for region in self.layout.regions_of(row)
        ]
        x_chunks = slice(shard.x * grid[2], (shard.x + 1) * grid[2])
        checksum, known = merge_slabs(
            shard_path(self.shards, row.name, shard), record.with_suffix(".shard"), grid, slabs, x_chunks
        )
        table = BytesIO()
        np.save(table, known)
        self._storage.write(record.with_suffix(".npy"), [table.getvalue()])
        content = json.dumps({"/".join(map(str, shard)): checksum}, indent=1)
        self._storage.write(record, [content.encode()])

    def _names_in(self, kind: str, name: str) -> set[str]:
        """Return the names of the files of a kind of progress; after a kill their folder may be missing."""
        folder = self.folder / kind / name
        return {path.name for path in files_in(folder)} if is_there(folder) else set()

    def _slab_path(self, name: str, region: Region) -> Place:
        return self.folder / "slabs" / name / _slab_name(region)

    def _checksum_path(self, name: str, shard: Shard) -> Place:
        return self.folder / "shards" / name / _record_name(shard)


def _slab_name(region: Region) -> str:
    return f"{region.z_start}-{region.y_start}"


def _record_name(shard: Shard) -> str:
    return f"{'-'.join(map(str, shard))}.json"
