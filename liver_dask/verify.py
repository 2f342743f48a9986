"""`verify`: whether a store is what was written, and whether that is what the source has."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import xarray as xr
import zarr
from rich.filesize import decimal

from . import volume
from .dataset import Missing, open_human_liver_em, open_origin
from .errors import DamagedError, InvalidArgumentError
from .export import Export
from .export_plan import Group, Layout, Region, Run, Shard, plan_runs
from .export_work import READERS, Rows, as_told, foreseeing, in_blocks, part_of, report_of
from .progress import show_progress
from .pyramid import halved, levels_of
from .remote import limited
from .settings import setting
from .slabs import EMPTY, Checksum, decode_chunk, read_shard_index
from .store import CHECKSUMS_SINCE, layout_of, missing_files, open_record, read_checksums, shard_path
from .team import Job, Report, gather
from .threads import ContextPool

if TYPE_CHECKING:
    from distributed import Client

SLICES_OF_A_LAYER = 2
"""Slices of each layer of shards that are looked at, unless all are."""

ROWS_OF_A_WINDOW = 4
READ_AT_ONCE = 16 << 20


@dataclass
class VerifyReport:
    """What `verify` found.

    Attributes:
        path: The store.
        shards: Shards whose bytes were all read and compared with their checksums.
        bytes: Bytes of those.
        voxels: Voxels that were compared with the source.
        unchecked: Variables that could not be compared, because the store does not tell what they were computed of.
        missing: Files that the source did not have, whose voxels are zeros in the store.
        problems: What is wrong, one sentence each.
    """

    path: str
    shards: int = 0
    bytes: int = 0
    voxels: int = 0
    unchecked: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {'all right' if self.ok else f'{len(self.problems)} problems'}. {self.shards} shards "
            f"({decimal(self.bytes)}) were compared with their checksums, {self.voxels:,} voxels with the source."
        ]
        if self.unchecked:
            lines.append(f"Not compared, since they were computed: {', '.join(self.unchecked)} (give the Dataset).")
        if self.missing:
            lines.append(f"{len(self.missing)} files did not exist; zeros stand for them: {', '.join(self.missing)}.")
        return "\n".join([*lines, *self.problems])


def verify(
    path: str | os.PathLike[str],
    ds: xr.Dataset | None = None,
    *,
    full: bool = False,
    seed: int = 0,
    client: "Client | None" = None,
    progress: bool = True,
) -> VerifyReport:
    """Compare a store with what was recorded when it was written, and with its source.

    The levels of its pyramid, if it has one, are compared with those they were made of in the same way.

    Always: the metadata; that every shard is there, with the size and the CRC-32C that were recorded, an index that is
    sound, and a chunk that can be decoded. So a changed byte is found wherever it is. Then voxels, as zarr-python reads
    them, against the source: by default rows of some slices of every shard, the first and last of the store among them;
    or every voxel.

    Args:
        path: A complete store.
        ds: What the store was made of; if None it is opened anew from the source that the store recorded. Variables
            that were computed are compared only if it is given.
        full: Whether to decode every chunk and compare every voxel, which fetches all of the source again.
        seed: Which slices and rows are looked at; another one looks at others.
        client: The cluster to work on; threads of this process if None.
        progress: Whether to report on standard error.

    Returns:
        What was compared, and what is wrong.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: `ds` is not what the store was made of. (ValueError)
        LiverDaskError: The source could not be read.
    """
    store = Path(path).expanduser().absolute()
    report = VerifyReport(str(store))
    plans = [_Plan(store, "", ds, seed, full, report)]
    try:
        levels = levels_of(store)
    except DamagedError as error:
        report.problems.append(str(error))
        levels = []
    for below, level in pairwise(levels):
        where = f"{level.path.relative_to(store)}/"
        try:
            plans.append(_Plan(level.path, where, halved(below, level.factors, store), seed, full, report))
        except Exception as error:  # whatever zarr makes of damaged metadata
            told = f"{type(error).__name__}: {error}"
            report.problems.append(f"{where} cannot be compared with {below.path}, its level below ({told})")
    jobs = [Job((plan, "shard"), check.run, (), fetches=False) for plan in plans for check in plan.checks]
    jobs += [Job((plan, "voxels"), comparison.compare) for plan in plans for comparison in plan.comparisons]
    total = sum(check.nbytes for plan in plans for check in plan.checks)
    total += sum(comparison.nbytes for plan in plans for comparison in plan.comparisons)
    with show_progress(f"Verifying {store.name}", total, progress) as advance:

        def tell(done: Report) -> None:
            advance(done.voxel_bytes, f"{len(report.problems)} problems")

        def take(what: tuple[_Plan, str], future: Future[Any]) -> None:
            plan, kind = what
            try:
                count, problems = future.result()
            except DamagedError as error:  # of the level below, which has a problem of its own
                report.problems.append(f"{plan.where} cannot be compared with the level below ({error})")
                return
            except Exception as error:  # whatever a source or a lost worker raises: it is told as one of ours
                raise as_told(error) from error
            report.problems += [plan.where + problem for problem in problems]
            if kind == "shard":
                report.shards += 1
                report.bytes += count
                advance(count, f"{len(report.problems)} problems")
            else:
                report.voxels += count

        with gather(client, tell) as team:
            left = iter(jobs)
            team.work_off(setting("connections"), lambda: next(left, None), take)
    report.problems.sort()
    return report


class _Plan:
    """What is to be looked at in a store, or in a level of its pyramid; its metadata are looked at here."""

    def __init__(
        self, store: Path, where: str, ds: xr.Dataset | None, seed: int, full: bool, report: VerifyReport
    ) -> None:
        record = open_record(store)
        layout = layout_of(record)
        self.where = where
        with suppress(DamagedError):  # told with the checksums that the same files hold
            report.missing += missing_files(store, record["variables"])
        report.problems += [where + problem for problem in _metadata_problems(store, record)]
        self.checks = list(_shard_checks(store, record, layout, np.random.default_rng(seed), full, report))
        self.comparisons = list(_comparisons(store, record, ds, layout, np.random.default_rng(seed), full, report))


@dataclass(frozen=True)
class ShardCheck:
    """Whether one shard is as it was written.

    Attributes:
        store: The store.
        name: The variable.
        shard: The shard.
        dtype: Of the variable.
        layout: The grids of the store.
        expected: The recorded checksum; None if there is none.
        chosen: Picks the chunk that is decoded, among those that are not empty; None decodes all.
        has_checksums: Whether chunks have checksums of their own.
    """

    store: Path
    name: str
    shard: Shard
    dtype: str
    layout: Layout
    expected: Checksum | None
    chosen: float | None
    has_checksums: bool

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.expected.size if self.expected else 0

    def run(self) -> tuple[int, list[str]]:
        """Bytes read, and what is wrong."""
        where = f"shard {'/'.join(map(str, self.shard))} of {self.name}"
        try:
            path = shard_path(self.store, self.name, self.shard)
            found = _checksum(path)
            if self.expected and found != self.expected:
                return found.size, [f"{where} is not what was written: {found}, recorded {self.expected}"]
            self._decode_chunks(path)
        except FileNotFoundError:
            return 0, [f"{where} is missing"]
        except (DamagedError, OSError) as error:
            return 0, [f"{where} is damaged: {error}"]
        return found.size, []

    def _decode_chunks(self, path: Path) -> None:
        with path.open("rb") as file:
            index = read_shard_index(file, self.layout.chunks_per_shard).reshape(-1, 2)
            filled = index[index[:, 1] != EMPTY]
            if self.chosen is not None and len(filled):
                filled = filled[int(self.chosen * len(filled)), None]
            for offset, length in filled.tolist():
                file.seek(offset)
                data, dtype = file.read(length), np.dtype(self.dtype)
                decode_chunk(data, dtype, self.layout.chunks, has_checksum=self.has_checksums)


@dataclass(frozen=True)
class Comparison:
    """Windows of a store next to the same of its source.

    Attributes:
        store: The store.
        part: The source: the variables and slices of `run`, all rows.
        run: The windows, of the same slices, from top to bottom.
        layout: The grids of the store.
    """

    store: Path
    part: xr.Dataset
    run: Run
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Bytes of voxels to compare."""
        itemsize = sum(variable.dtype.itemsize for variable in self.part.data_vars.values())
        return itemsize * sum(map(self.layout.voxels_of, self.run.regions))

    def compare(self, connections: int | None, report: Callable[[Report], None]) -> tuple[int, list[str]]:
        """Voxels compared, and what is wrong; see Task.write."""
        voxels, problems = 0, []
        with limited(connections, 1), foreseeing(self.part), ContextPool(READERS) as readers:
            rows = Rows(in_blocks(self.part, self.layout), self.run.group.cuts, readers)
            for region in self.run.regions:
                arrays = rows.read(region)
                for name, expected in arrays.items():
                    voxels += expected.size
                    problems += self._difference(name, region, expected)
                report(report_of(sum(array.nbytes for array in arrays.values())))
        return voxels, problems

    def _difference(self, name: str, region: Region, expected: Any) -> list[str]:
        z, y = slice(region.z_start, region.z_stop), slice(region.y_start, region.y_stop)
        where = f"{name}[{z.start}:{z.stop}, {y.start}:{y.stop}]"
        try:
            found = np.asarray(zarr.open_array(self.store / name, mode="r")[z, y])
        except Exception as error:  # whatever zarr makes of a damaged store
            return [f"{where} cannot be read ({type(error).__name__}: {error})"]
        different = np.argwhere(found != expected)
        if not len(different):
            return []
        at = map(str, different[0] + (z.start, y.start, 0))
        return [f"{where} has {len(different)} voxels that are not the source's; the first is {name}[{', '.join(at)}]"]


def _metadata_problems(store: Path, record: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, variable in record["variables"].items():
        expected = tuple(record["shape"]), tuple(record["chunks"]), variable["dtype"]
        try:
            array = zarr.open_array(store / name, mode="r")
            found = array.shape, array.chunks, array.dtype.str
        except Exception as error:  # whatever zarr makes of damaged metadata
            problems.append(f"{name} cannot be opened ({type(error).__name__}: {error})")
            continue
        if found != expected:
            problems.append(f"{name} is {found} (shape, chunks, dtype) and was written as {expected}")
    return problems


def _shard_checks(
    store: Path,
    record: Mapping[str, Any],
    layout: Layout,
    chance: np.random.Generator,
    full: bool,
    report: VerifyReport,
) -> Iterator[ShardCheck]:
    for name, variable in record["variables"].items():
        try:
            expected = read_checksums(store, name)
        except DamagedError as error:
            report.problems.append(str(error))
            expected = {}
        for row in layout.shard_rows([name]):
            for shard in layout.shards_of(row):
                chosen = None if full else chance.random()
                recorded, has_checksums = expected.get(shard), record["format"] >= CHECKSUMS_SINCE
                yield ShardCheck(store, name, shard, variable["dtype"], layout, recorded, chosen, has_checksums)


def _comparisons(
    store: Path,
    record: Mapping[str, Any],
    ds: xr.Dataset | None,
    layout: Layout,
    chance: np.random.Generator,
    full: bool,
    report: VerifyReport,
) -> Iterator[Comparison]:
    if ds is None:
        ds = _opened_again(record, "zeros" if report.missing else "raise")
        report.unchecked = [name for name in record["variables"] if name not in ds]
    if not ds.data_vars:
        return
    export = Export.plan(ds, store, chunks=record["chunks"], shards=record["shards"])
    known = {name: record["variables"].get(name) for name in export.store.names}
    if export.store.layout.shape != layout.shape or export.store.content["variables"] != known:
        raise InvalidArgumentError(f"The Dataset is not what {store} was made of: another box, source or computation.")
    runs = plan_runs(layout, export.groups, ()) if full else _sampled_runs(layout, export.groups, chance)
    for run in runs:
        yield Comparison(store, part_of(export.shared, run), run, layout)


def _opened_again(record: Mapping[str, Any], missing: Missing) -> xr.Dataset:
    """The variables that were not computed, from the source that the store recorded."""
    variables = {}
    for name, variable in record["variables"].items():
        origin = variable["voxels"]
        if isinstance(origin, dict):
            labels = [origin["variable"]] if origin["variable"] != volume.RAW else []
            whole = open_human_liver_em(origin["source"], shape=origin["shape"], labels=labels, missing=missing)
            variables[name] = open_origin(origin, whole).variable
    return xr.Dataset(variables)


def _sampled_runs(layout: Layout, groups: Sequence[Group], chance: np.random.Generator) -> Iterator[Run]:
    """Rows of some slices of every layer of shards: in each, some of every row of shards; and the store's edges.

    Few slices and many rows of each, since the strip index of a slice and the masks down to a row are fetched for any.
    """
    depth, height, _ = layout.shape
    slices = {0, depth - 1}
    for z in range(0, depth, layout.shards[0]):
        of_layer = range(z, min(z + layout.shards[0], depth))
        slices |= set(chance.choice(of_layer, min(SLICES_OF_A_LAYER, len(of_layer)), replace=False).tolist())
    for z in sorted(slices):
        starts = {0, max(0, height - ROWS_OF_A_WINDOW)}
        starts |= {
            int(chance.integers(y, min(y + layout.shards[1], height))) for y in range(0, height, layout.shards[1])
        }
        regions = [Region(z, z + 1, y, min(y + ROWS_OF_A_WINDOW, height)) for y in sorted(starts)]
        for group in groups:
            yield Run(group, tuple(regions))


def _checksum(path: Path) -> Checksum:
    size, crc = 0, 0
    with path.open("rb") as file:
        while data := file.read(READ_AT_ONCE):
            size, crc = size + len(data), google_crc32c.extend(crc, data)
    return Checksum(size, crc)
