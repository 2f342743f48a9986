"""The input of an export: its variables, in groups that are read together, and what each job needs of them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import xarray as xr

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.derived import DerivedReader, readers_below, reads_of_archive
from ..archive.lazy.lazy_window import LazyWindow, Reader
from ..archive.lazy.leaves import Read, leaves_in
from ..archive.reader import VolumeReader, readers_of
from ..core.geometry import DIMS
from .computed import Work
from .estimate import FilesRead
from .layout import Group, Layout, RegionBatch
from .rows import Part, WindowPart
from .shared_rows import SharedRows
from .tally import Tally


class Source:
    """The variables that are written.

    Attributes:
        ds: All variables, in blocks that let each voxel be read only once.
        layout: The grids of the store.
        readers: For each variable, the readers of the archive variables that it is made from.
    """

    def __init__(self, ds: xr.Dataset, layout: Layout) -> None:
        self.ds = ds
        self.layout = layout
        self._blocks = in_blocks(ds, layout)
        self.readers = {str(name): readers_of(variable.data) for name, variable in self._blocks.data_vars.items()}

    @property
    def arrays(self) -> list[Any]:
        """The arrays of all variables."""
        return [variable.data for variable in self._blocks.data_vars.values()]

    @property
    def groups(self) -> list[Group]:
        """The variables in groups that are read together."""
        return [group for group, _, _ in self._planned]

    @property
    def works(self) -> list[tuple[Group, Work]]:
        """The groups of computed variables, and their tasks."""
        return [(group, work) for group, work, _ in self._planned if work]

    @property
    def windows(self) -> list[LazyWindow]:
        """One window of each archive variable that is read, to check that this variable exists."""
        leaves = [leaf for array in self.arrays for leaf in ([array.lazy] if _is_lazy(array) else leaves_in(array))]
        found = [leaf for leaf in leaves if isinstance(leaf, LazyWindow) and leaf.nbytes]
        return list({lazy.read: lazy for lazy in reversed(found)}.values())

    def part(self, batch: RegionBatch) -> Part:
        """Return what a job needs to read a batch."""
        for group, work, _ in self._planned:
            if work and set(batch.group.names) <= set(group.names):
                return work.part(batch)
        z = slice(batch.regions[0].z_start, batch.regions[0].z_stop), slice(None), slice(None)
        lazies = {name: self._blocks[name].data.lazy for name in batch.group.names}
        return WindowPart(
            _sharing({name: LazyWindow(one.read, one.window[z], one.dtype) for name, one in lazies.items()})
        )

    def files_read(self) -> dict[Group, list[FilesRead]]:
        """Return the files that each group is made from."""
        return {
            group: _tallied(tally, [reader for name in group.names for reader in self.readers[name]])
            if tally
            else [
                self._read_whole(reader, self._times(reader, group))
                for reader in {r for name in group.names for r in self.readers[name]}
            ]
            for group, _, tally in self._planned
        }

    @cached_property
    def _planned(self) -> list[tuple[Group, Work | None, Tally | None]]:
        planned: list[tuple[Group, Work | None, Tally | None]] = []
        for group in _groups_of(self._blocks, self.readers):
            if group.cuts is None:
                planned.append((group._replace(held=self._held(group)), None, None))
                continue
            work = Work({name: self._blocks[name].data for name in group.names})
            group, tally = work.plan(self.layout, group)
            planned.append((group, work, tally))
        return planned

    def _held(self, group: Group) -> int:
        """Return the bytes of rows that a job holds of the files that derived variables are read from."""
        region = slice(self.layout.chunks[0]), slice(self.layout.row_block)
        lazies = [self._blocks[name].data.lazy for name in group.names]
        parts = [Read(of, of.window[*region, :]) for of in lazies if isinstance(of.read, DerivedReader)]
        return sum(2 * of.nbytes for part in parts for of in reads_of_archive(part))  # as kept, and as given to a model

    def _read_whole(self, reader: VolumeReader, times: float) -> FilesRead:
        """Return what is read of the files of a variable that is not computed.

        These are the slices and rows of the store. Integer coordinates say up to which row and column a file is read.
        """
        depth, store_rows, _ = self.layout.shape
        _, height, width = reader.shape
        last_row, last_column = _last(self.ds, "y", height), _last(self.ds, "x", width)
        z = self.ds["z"] if "z" in self.ds.indexes else self.ds["z"][:0]
        numbers = tuple(z.values.tolist()) if z.dtype.kind in "iu" else ()
        return FilesRead(reader, depth, min(store_rows, height), last_row, last_column, times, numbers=numbers)

    def _times(self, reader: VolumeReader, group: Group) -> float:
        """Return how often the files of a variable are read, because what is derived needs slices of other jobs."""
        lazies = [self._blocks[name].data.lazy for name in group.names]
        derived = [lazy for lazy in lazies if isinstance(lazy.read, DerivedReader)]
        if not derived or not lazies[0].nbytes:
            return 1
        alone = [of.read.times for of in derived if reader in readers_below(of.read)]
        sharing = [of for of in lazies if not isinstance(of.read, DerivedReader) or not of.read.times]
        wanted: set[int] = set()
        count, depth = 0, self.layout.chunks[0]
        for z in range(0, self.layout.shape[0], depth):
            parts = [Read(lazy, lazy.window[slice(z, z + depth), :1, :1]) for lazy in sharing]
            found = [of for part in parts for of in reads_of_archive(part) if of.lazy.read == reader]
            slices = {int(number) for of in found for number in of.window.selections[0]}
            wanted |= slices
            count += len(slices)
        return count / max(len(wanted), 1) + sum(alone)


def _sharing(windows: dict[str, LazyWindow]) -> dict[str, LazyWindow]:
    """Let what is derived, which comes first, share the rows that it reads with the other variables of a job."""
    derived = {name: of for name, of in windows.items() if isinstance(of.read, DerivedReader)}
    derived = dict(sorted(derived.items(), key=lambda item: -_rows_of_last(item[1])))
    below = {reader for of in derived.values() for reader in readers_below(of.read)}
    shared: dict[Reader, Reader] = {reader: SharedRows(reader) for reader in below}
    found = {}
    for name, of in derived.items():
        assert isinstance(of.read, DerivedReader)
        found[name] = replace(of, read=of.read.part(of.window.selections[0]).reading(shared))
    for name, of in windows.items():
        found.setdefault(name, replace(of, read=shared.get(of.read, of.read)))
    return found


def _rows_of_last(lazy: LazyWindow) -> int:
    """Return how many rows of files the last row of a window needs."""
    last = Read(lazy, lazy.window[:1, -1:, :1])
    return max((len(of.window.selections[1]) for of in reads_of_archive(last)), default=0)


def _tallied(tally: Tally, readers: list[VolumeReader]) -> list[FilesRead]:
    """Return what the tasks of computed variables read of the files of each archive variable."""
    of_name = {reader.name: reader for reader in readers}
    found = []
    for name, (files, all_rows, last_row, last_column) in tally.extents.items():
        reader, rows = of_name[name], ceil(all_rows / files)
        last_row = rows if reader.is_from_the_top else last_row
        found.append(FilesRead(reader, files, rows, last_row, last_column, tally.times[name]))
    return found


def in_blocks(ds: xr.Dataset, layout: Layout) -> xr.Dataset:
    """Convert variables that are not dask arrays (opened by the engine without `chunks`, or in memory) to blocks."""
    block = dict(zip(DIMS, (1, layout.row_block, layout.shape[2]), strict=True))
    return ds.assign(
        {name: variable.chunk(block) for name, variable in ds.data_vars.items() if variable.chunks is None}
    )


def with_shared_blocks(ds: xr.Dataset) -> xr.Dataset:
    """Return a Dataset with the same voxels, in which computed variables share blocks with their inputs.

    If a computed variable is made from a variable of the Dataset, that variable becomes a plain dask array of the same
    blocks. Otherwise its voxels would be read twice.
    """
    arrays = {name: variable.data for name, variable in ds.data_vars.items() if variable.chunks is not None}
    computed = set()
    for array in arrays.values():
        if not _is_lazy(array):
            computed |= readers_of(array)
    return ds.assign(
        {
            name: ds[name].copy(data=array.plain())
            for name, array in arrays.items()
            if _is_lazy(array) and array.lazy.read in computed
        }
    )


def _is_lazy(array: Any) -> bool:
    return isinstance(array, VolumeArray) and array.lazy is not None


def _groups_of(blocks: xr.Dataset, readers: Mapping[str, set[VolumeReader]]) -> list[Group]:
    """Group the variables that are made from the same files, so that each file is read once."""
    sets: list[tuple[set[str], set[VolumeReader]]] = []
    for name, of_name in readers.items():
        names, files = {name}, set(of_name)
        for known in [known for known in sets if known[1] & files]:
            sets.remove(known)
            names, files = names | known[0], files | known[1]
        sets.append((names, files))
    return [_group(tuple(name for name in readers if name in names), blocks, files) for names, files in sets]


def _group(names: tuple[str, ...], blocks: xr.Dataset, readers: set[VolumeReader]) -> Group:
    arrays = [blocks[name].data for name in names]
    if all(map(_is_lazy, arrays)):
        return Group(names, None, any(reader.is_from_the_top for reader in readers))
    edges = [set(np.cumsum((0, *array.chunks[1])).tolist()) for array in arrays]
    return Group(names, tuple(sorted(set.intersection(*edges))), True)


def _last(ds: xr.Dataset, dim: str, length: int) -> int:
    """Return the number of indexes along `dim` from the start of a file to the last coordinate of the Dataset.

    It is at most `length`, and it is `length` if the coordinates are not integers.
    """
    stop = int(ds[dim].values.max()) + 1 if dim in ds.indexes and ds[dim].dtype.kind in "iu" else length
    return max(min(length, stop), 1)
