"""What a store says of itself: whatever its small files hold, it is told in one sentence, or it is harmless.

See `spoilt_store` for what an input is. Here the store is read by what reads its files itself, hundreds of times a
second; `fuzz_verify` has zarr and xarray read it, too.
"""

import functools
from pathlib import Path

from spoilt_store import Choices, attempt, check, instead, made, opened, spoilt, tiny

from liver_dask.store import group_metadata
from liver_dask.store import levels as store_levels
from liver_dask.store.array import StoredArray
from liver_dask.store.inventory import Metadata
from liver_dask.store.ome_zarr import has_description
from liver_dask.store.plan import Export
from liver_dask.store.record import layout_of, missing_files, open_record, read_checksums
from liver_dask.store.shard_checks import ShardPlan
from liver_dask.store.source_checks import check_recorded_address, read_sources


def nothing(_: Path) -> None:
    """Only voxels are read."""


def read_levels(store: Path) -> None:
    """As whoever looks from afar."""
    for level in store_levels.levels_of(store)[1:]:
        StoredArray(level.path, "raw")[0:1, 0:2, 0:2]
        read_checksums(level.path, "raw")


def read_sources_of(store: Path) -> None:
    """As whoever wants to know what it was made of."""
    record = open_record(store)
    check_recorded_address(store, record)
    missing_files(store, record["variables"])
    for name in record["variables"]:
        read_sources(store, name)


def read_groups(store: Path) -> None:
    """As what adds a pyramid looks at what there is."""
    has_description(store)
    for group in (store, store / store_levels.FOLDER, store / store_levels.FOLDER / "s1"):
        group_metadata.read_group(group)
        group_metadata.is_consolidated(group)


def is_complete(store: Path) -> None:
    """As a call asks that would write it."""
    export(store).store.is_complete()


@functools.cache
def export(store: Path) -> Export:
    """That call."""
    return Export.plan(opened(store, ()), store, **tiny.LAYOUT)


def verify_store(store: Path) -> bool:
    """As `verify` begins, which has zarr and xarray look at it, too."""
    record = open_record(store)
    layout = layout_of(record)
    problems = Metadata(store, record, layout).problems
    for name in record["variables"]:
        problems += ShardPlan(store, name, layout).problems
    assert all("\n" not in problem for problem in problems), problems
    return not problems


def verify_levels(store: Path) -> None:
    """The same of what is above it."""
    for level in store_levels.levels_of(store)[1:]:
        record = open_record(level.path)
        metadata = Metadata(level.path, record, layout_of(record))
        for group in (store, store / store_levels.FOLDER):
            metadata.compare_consolidated_in(group)
        assert all("\n" not in problem for problem in metadata.problems), metadata.problems


READERS = nothing, read_levels, read_sources_of, read_groups, is_complete, verify_store, verify_levels


def one_input(data: bytes) -> None:
    """Change a store, read it, and change it back."""
    choices = Choices(data)
    read = READERS[choices.next(len(READERS))]
    with spoilt(made(()), choices) as here, instead((Metadata, "_open_all", lambda _: None)):
        check(here, attempt(read, here.store), box_of(choices))


def box_of(choices: Choices) -> tuple[slice, ...]:
    """Some voxels, mostly of one or two chunks; or all."""
    if choices.next(8) == 7:
        return tuple(slice(0, length) for length in tiny.SHAPE)
    return tuple(slice(start, min(start + 3, length)) for length in tiny.SHAPE for start in [choices.next(length)])
