"""`verify`: check whether a store is as it was written, and whether its voxels are those of the source."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from rich.filesize import decimal

from ..archive.dataset import open_origin
from ..archive.reader import Missing, readers_of
from ..core.config import setting
from ..core.documents import reason_of
from ..core.errors import DamagedError, InvalidArgumentError, SliceNotFoundError, StoreExistsError
from ..core.places import Named, Place, path_below, place_of
from .identity import described, has_means, identity_of_variable
from .inputs import Source
from .inventory import Metadata
from .jobs import Job, Report, client_in_force, open_runner
from .label_group import LABELS
from .layout import Group, plan_batches
from .levels import FOLDER, Level, levels_of, voxel_size_of
from .ome_zarr import description_problem, has_description, other_labels
from .plan import Export
from .progress import say, show_progress
from .pyramid import downsampled
from .record import CHECKSUMS_SINCE, check_annotated, layout_of, missing_files, open_record
from .shard_checks import ShardCheck, ShardPlan, part_of_shard, read_tables
from .source_checks import SourceCheck, check_recorded_address, plan_source_checks, read_sources
from .worker import picklable_error

if TYPE_CHECKING:
    from distributed import Client
from .comparison import Comparison, Difference, sampled_batches

log = logging.getLogger(__name__)


MOST_SHOWN = 20


@dataclass
class VerifyReport:
    """Result of `verify`.

    Attributes:
        path: The store.
        shards: Number of shards whose bytes were all read and compared with their checksums.
        bytes: Bytes of these shards.
        voxels: Number of voxels that were compared with the source.
        unchecked: Variables that could not be compared, because the store does not record what they were computed from.
        missing: Files that the source did not have. Their voxels are zeros in the store.
        notes: Further information, such as what an older version did not record and thus cannot be checked.
        changed: Files of the source that have changed since the store was written, one sentence each. A changed file is
            not a problem of the store. If voxels differ from the source, that is a problem, which names the change.
        problems: What is wrong, one sentence each.
        is_changing: Whether the store is being changed, or this was interrupted. It is one of the problems, and others
            may follow from it.
    """

    path: str
    shards: int = 0
    bytes: int = 0
    voxels: int = 0
    unchecked: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_changing: bool = False

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        found = "all right" if self.ok else _problems(self.problems)
        lines = [
            f"{self.path}: {found}. {self.shards} shards "
            f"({decimal(self.bytes)}) were compared with their checksums, {self.voxels:,} voxels with the source."
        ]
        if self.unchecked:
            lines.append(f"Not compared, since they were computed: {', '.join(self.unchecked)} (give the Dataset).")
        if self.missing:
            lines.append(f"{len(self.missing)} files did not exist; zeros stand for them: {', '.join(self.missing)}.")
        lines += [f"Note: {note}." for note in self.notes]
        if self.changed:
            lines.append(f"The source has changed since, in {len(self.changed)} of the files that were checked:")
            lines += [*self.changed[:MOST_SHOWN], *(["..."] if len(self.changed) > MOST_SHOWN else [])]
        return "\n".join([*lines, *self.problems, *self._remedy()])

    def _remedy(self) -> list[str]:
        if self.is_changing:  # the voxels are most likely right
            return ["Finish that first, and verify again: the rest may follow from it."] * (len(self.problems) > 1)
        remedy = f"Remove {self.path}, and make it anew with the same `liver-dask download` (or `to_zarr`)."
        return [] if self.ok else [remedy]


def _problems(found: Sequence[str]) -> str:
    return "1 problem" if len(found) == 1 else f"{len(found)} problems"


def verify(
    path: Named,
    ds: xr.Dataset | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    full: bool = False,
    seed: int = 0,
    client: "Client | None" = None,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Compare a store with the data recorded when it was written, and with its source.

    If the store has a pyramid, each level is compared in the same way with the level that it was made from.

    These checks are always done, so that a changed byte is found wherever it is:

    - The metadata of all arrays and their consolidated copy, the coordinates and the tables are compared with the
      recorded ones. Added groups and arrays are accepted, and so are added attributes that do not change values.
    - Every recorded shard must exist, and no other. Each must have the recorded size and CRC-32C, and a valid index.
    - One chunk of each shard (with `full`, every chunk) is decoded and compared with the tables.

    Then voxels, as zarr-python reads them, are compared with the source: by default, rows of some slices of every
    shard, including the first and last slices and rows of the store; with `full`, every voxel. Floats are equal if
    their bits are equal (0 is not -0), or if both are NaN.

    Args:
        path: A complete store.
        ds: The Dataset that the store was made from. If it is None, the source that the store recorded is opened.
            Computed variables are compared only if `ds` is given.
        source: Address of the archive, as for `open_human_liver_em`, if it is not the address that the store names. If
            neither `source` nor `ds` is given, the address in the store is reported before it is used, and it is opened
            only if it is http(s), a local folder or a common object storage.
        full: Whether to decode every chunk and to compare every voxel, which fetches all of the source again.
        seed: Seed of the random selection of slices, rows and chunks.
        client: The cluster to work on. None has the same meaning as in `to_zarr`.
        progress: Whether to report on standard error.
        storage_options: fsspec's options for a store in object storage, as in `to_zarr`.

    Returns:
        A report of what was compared, and of all problems.

    Raises:
        NotDownloadedError: There is no complete store. (RuntimeError)
        InvalidArgumentError: `ds` is not the Dataset that the store was made from; both `ds` and `source` are given; or
            the store names an address that only the user may choose. (ValueError)
        DamagedError: The record of the store has impossible values. (OSError)
        LiverDaskError: The source could not be read.
    """
    if ds is not None and source is not None:
        raise InvalidArgumentError("Give either the Dataset or its source.")
    store = place_of(path, storage_options)
    report = VerifyReport(str(store))
    record = open_record(store)
    with suppress(DamagedError):  # reported with the checksums, which are in the same files
        report.missing = missing_files(store, record["variables"])
    opened = _opened_again(store, record, source, "zeros" if report.missing else "raise") if ds is None else None
    if opened is not None:
        report.unchecked = [name for name in record["variables"] if name not in opened]
        if source is None:
            _show_addresses(opened, progress)
    try:
        check_annotated(store)
    except StoreExistsError as error:
        report.problems.append(str(error))
        report.is_changing = True
    plans = [_Plan(store, "", ds, opened, seed, full, report), *_plans_of_levels(store, seed, full, report)]
    jobs = [Job((plan, check), check.run, (), fetches=False) for plan in plans for check in plan.checks]
    jobs += [Job((plan, check), check.run) for plan in plans for check in plan.source_checks]
    jobs += [Job((plan, comparison), comparison.compare) for plan in plans for comparison in plan.comparisons]
    unread: dict[str, str] = {}  # the first error of each level whose level below cannot be read
    total = sum(check.nbytes for plan in plans for check in plan.checks)
    total += sum(comparison.nbytes for plan in plans for comparison in plan.comparisons)
    with show_progress(f"Verifying {store.name}", total, progress) as advance:

        def on_report(done: Report) -> None:
            advance(done.voxel_bytes, _problems(report.problems))

        def take(what: tuple[_Plan, ShardCheck | SourceCheck | Comparison], future: Future[Any]) -> None:
            plan, check = what
            try:
                result = future.result()
            except DamagedError as error:  # of the level below, which has its own problem
                unread.setdefault(plan.where, str(error))
                return
            except Exception as error:  # any error of a source or a lost worker becomes one of this package
                raise picklable_error(error) from error
            if isinstance(check, SourceCheck):
                plan.changed |= result
                return
            count, found = result
            if isinstance(check, ShardCheck):
                if found:
                    plan.damaged.append(check)
                report.problems += [plan.where + problem for problem in found]
                report.shards += 1
                report.bytes += count
                advance(count, _problems(report.problems))
            else:
                plan.differences += found
                report.voxels += count

        with open_runner(client_in_force() if client is None else client, on_report) as runner:
            left = iter(jobs)
            runner.run_all(setting("connections"), lambda: next(left, None), take)
    for plan in plans:
        report.changed += sorted(plan.changed.values())
        report.problems += [
            plan.where + plan.explain(difference)
            for difference in plan.differences
            if not any(check.explains(difference) for check in plan.damaged)
        ]
    for where, reason in unread.items():
        what = f"{where.rstrip('/')} was not compared with all of the level below, which cannot be read"
        if any(plan.damaged for plan in plans if plan.where != where):
            report.notes.append(what)
        else:
            report.problems.append(f"{what} ({reason})")
    report.problems.sort()
    return report


def _plans_of_levels(store: Place, seed: int, full: bool, report: VerifyReport) -> Iterator["_Plan"]:
    try:
        levels = levels_of(store)
    except DamagedError as error:
        report.problems.append(str(error))
        return
    if (store / FOLDER).is_dir():
        _look_at_description(levels, report)
    if (store / LABELS).is_dir():
        _look_at_labels(levels, report)
    for below, level in pairwise(levels):
        where, ds = f"{path_below(level.path, store)}/", None
        try:
            ds = downsampled(below, level, store)
            lacking = [name for name in ds if name not in open_record(level.path)["variables"]]
            if lacking:
                more = ", ".join(map(str, lacking))
                report.notes.append(f"{level.path} lacks {more}; `liver-dask pyramid {store}` adds that")
                ds = ds.drop_vars(lacking)
        except Exception as error:  # zarr raises arbitrary errors for damaged metadata
            report.problems.append(_cannot_compare(level.path, below.path, error))
        try:
            plan = _Plan(level.path, where, ds, None, seed, full, report)
            for group in (store, store / FOLDER):
                plan.compare_consolidated_in(group)
        except Exception as error:  # zarr raises arbitrary errors for damaged metadata
            report.problems.append(_cannot_compare(level.path, below.path, error))
        else:
            yield plan


def _look_at_description(levels: Sequence[Level], report: VerifyReport) -> None:
    store = levels[0].path
    try:
        if has_description(store):
            problem = description_problem(levels, voxel_size_of(store))
            report.problems += [problem] if problem else []
        else:
            report.notes.append(f"the pyramid of {store} is not finished; `liver-dask pyramid {store}` goes on with it")
    except Exception as error:  # zarr raises arbitrary errors for damaged metadata
        report.problems.append(f"whether {store} describes its levels cannot be determined ({reason_of(error)})")


def _look_at_labels(levels: Sequence[Level], report: VerifyReport) -> None:
    """Add a note for each label that should be a copy of a mask but differs.

    It is not a problem, because a user may have written it.
    """
    store = levels[0].path
    try:
        report.notes += [
            f"{label} is not what this package makes of {label.name}: somebody changed it, or it is damaged; "
            f"remove it, and `liver-dask pyramid {store}` makes it anew"
            for label in other_labels(levels)
        ]
    except Exception as error:  # zarr raises arbitrary errors for damaged metadata
        report.problems.append(f"whether {store / LABELS} holds the masks cannot be determined ({reason_of(error)})")


def _cannot_compare(level: Place, below: Place, error: Exception) -> str:
    return f"{level} cannot be compared with {below}, its level below ({reason_of(error)})"


class _Plan:
    """The checks of a store, or of a level of its pyramid. The constructor checks the metadata.

    Args:
        store: The store.
        where: Prefix of its problems.
        given: The Dataset to compare with, given by the caller.
        opened: The Dataset to compare with, opened from the source that the store records or the caller names. It is
            used instead of `given`.
        seed: Seed of the random selection.
        full: Whether to check every chunk and every voxel.
        report: The report that receives the problems of the metadata.
    """

    def __init__(
        self,
        store: Place,
        where: str,
        given: xr.Dataset | None,
        opened: xr.Dataset | None,
        seed: int,
        full: bool,
        report: VerifyReport,
    ) -> None:
        self.store, self.where, self.report = store, where, report
        self._record = record = open_record(store)
        self._layout = layout = layout_of(record)
        self._metadata = Metadata(store, record, layout)
        self._report(self._metadata.problems)
        report.notes += self._metadata.notes
        shards = {name: ShardPlan(store, name, layout) for name in record["variables"]}
        for of_variable in shards.values():
            self._report(of_variable.problems)
        self.checks = list(self._shard_checks(shards, np.random.default_rng(seed), full))
        readable = [name for name, of in shards.items() if of.is_whole and self._metadata.is_sound(name)]
        self.comparisons: list[Comparison] = []
        self.source_checks: list[SourceCheck] = []
        self.changed: dict[str, str] = {}
        self.differences: list[Difference] = []
        self.damaged: list[ShardCheck] = []
        ds = given if opened is None else opened
        if ds is not None and ds.data_vars:
            self._plan_comparisons(ds, given is not None, readable, np.random.default_rng(seed), full)

    def compare_consolidated_in(self, group: Place) -> None:
        """Check the consolidated copy of the metadata in a group above the store."""
        known = len(self._metadata.problems)
        self._metadata.compare_consolidated_in(group)
        self._report(self._metadata.problems[known:])

    def explain(self, difference: Difference) -> str:
        """Describe a difference as a problem, with the change of the source file if there was one."""
        variable = self._record["variables"][difference.name]
        origin = variable["voxels"]
        if isinstance(origin, dict):
            changed = self.changed.get(described(variable).path(range(*origin["z"])[difference.z]))
        else:
            urls = [url for url, _ in self._sources(difference.name)]
            messages = (
                message for path, message in self.changed.items() if any(url.endswith(f"/{path}") for url in urls)
            )
            changed = next(messages, None)
        return f"{difference.message}; the source has changed since: {changed}" if changed else difference.message

    def _report(self, problems: Sequence[str]) -> None:
        self.report.problems += [self.where + problem for problem in problems]

    def _shard_checks(
        self, shards: Mapping[str, ShardPlan], rng: np.random.Generator, full: bool
    ) -> Iterator[ShardCheck]:
        grid, has_checksums = self._layout.chunks_per_shard, self._record["format"] >= CHECKSUMS_SINCE
        for name, of_variable in shards.items():
            variable = self._record["variables"][name]
            known, problems = read_tables(self.store, name, self._metadata)
            self._report(problems)
            for shard in of_variable.shards:
                chosen = None if full else rng.random()
                expected, part = of_variable.checksums.get(shard), part_of_shard(known, shard, grid)
                yield ShardCheck(
                    self.store,
                    name,
                    shard,
                    variable["dtype"],
                    has_means(variable),
                    self._layout,
                    expected,
                    part,
                    chosen,
                    has_checksums=has_checksums,
                )

    def _plan_comparisons(
        self, ds: xr.Dataset, is_given: bool, readable: Collection[str], rng: np.random.Generator, full: bool
    ) -> None:
        layout, variables = self._layout, self._record["variables"]
        export = Export.plan(ds, self.store, chunks=self._record["chunks"], shards=self._record["shards"])
        wanted = export.store.content["variables"]
        is_same = all(_is_of(variables.get(name), of) for name, of in wanted.items())
        if is_given and (export.store.layout.shape != layout.shape or not is_same):
            others = [name for name, of in wanted.items() if not _is_of(variables.get(name), of)]
            raise InvalidArgumentError(
                f"The Dataset is not what {self.store} was made of: another box, archive or computation"
                f"{f' of {others[0]}' if others else ''}; give what was given to `to_zarr` or `add_variables`."
            )
        groups = export.source.groups
        groups = [group._replace(names=tuple(name for name in group.names if name in readable)) for group in groups]
        groups = [group for group in groups if group.names]
        batches = list(
            plan_batches(layout, groups, ()) if full else sampled_batches(layout, groups, rng) if groups else ()
        )
        self.comparisons = [Comparison(self.store, export.source.part(batch), batch, layout) for batch in batches]
        slices = None if full else {region.z_start for batch in batches for region in batch.regions}
        self.source_checks = list(self._source_checks(export.source, groups, slices, rng))

    def _source_checks(
        self, source: Source, groups: Sequence[Group], slices: set[int] | None, rng: np.random.Generator
    ) -> Iterator[SourceCheck]:
        """Plan the checks of the source files.

        Args:
            source: The variables to compare with.
            groups: Groups of the variables to check.
            slices: Slices (z) of the store whose files are checked; None checks all files. For a computed variable,
                random files are checked, as many as there are slices.
            rng: Selects these files.
        """
        checks: dict[SourceCheck, None] = {}
        for name in [name for group in groups for name in group.names]:
            origin, sources = self._record["variables"][name]["voxels"], self._sources(name)
            readers = source.readers[name]
            found = {reader.variable.slice_of(url) for url, _ in sources for reader in readers}
            wanted = {z for z in found if z is not None}
            if slices is not None and isinstance(origin, dict):
                wanted &= {range(*origin["z"])[z] for z in slices}
            elif slices is not None:
                wanted = set(rng.permutation(sorted(wanted))[: len(slices)].tolist())
            checks |= plan_source_checks(sources, readers, wanted.__contains__)
        return iter(checks)

    def _sources(self, name: str) -> list[Any]:
        try:
            return read_sources(self.store, name)
        except DamagedError as error:
            if str(error) not in self.report.problems:
                self._report([str(error)])
            return []


def _is_of(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Return whether the entry of a variable in a record is that of what a call would write."""
    return found is not None and identity_of_variable(found) == identity_of_variable(wanted)


def _opened_again(
    store: Place, record: Mapping[str, Any], source: str | os.PathLike[str] | None, missing: Missing
) -> xr.Dataset:
    """Open the variables that were not computed, from `source` or, if it is None, from the recorded source."""
    if source is None:
        check_recorded_address(store, record)
    variables = {}
    for name, variable in record["variables"].items():
        origin = variable["voxels"]
        if isinstance(origin, dict):
            address = origin["source"] if source is None else source
            try:
                voxels = open_origin(origin, described(variable), address, missing)
            except SliceNotFoundError as error:
                where = f"{store} was made of it; name where it is: source=..., or --source."
                where = where if source is None else f"It was given as the source that {store} was made of."
                raise SliceNotFoundError(f"{error} {where}") from error
            variables[name] = voxels.variable
    return xr.Dataset(variables)


def _show_addresses(ds: xr.Dataset, shown: bool) -> None:
    """Report and log the addresses that are used because the store names them."""
    for url in sorted(
        {reader.source.url for variable in ds.data_vars.values() for reader in readers_of(variable.data)}
    ):
        line = f"Comparing with {url}, which the store names; give --source (source=...) to name another address."
        log.info("%s", line)
        say(line, shown)
