"""What a row of the benchmark is: a work, who does it, and how what came of it is checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from .archive import BenchArchive

Truth = Mapping[str, np.ndarray]
ROWS_COMPARED_AT_ONCE = 256


@dataclass(frozen=True)
class Case:
    """A row under one circumstance; it becomes a table.

    Attributes:
        name: The circumstance, in words.
        server: A name of `servers.PROFILES`.
        settings: What the work is about; `workers` are those of a dask cluster, 0 is threads.
        limit: Seconds after which a process is stopped.
        rounds: How often each side runs.
    """

    name: str
    server: str
    settings: Mapping[str, Any]
    limit: float
    rounds: int


class Served(Protocol):
    """An archive that is served: its folder, and its shape (z, y, x)."""

    @property
    def folder(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...


def same(archive: BenchArchive, case: Case, scratch: Path) -> Served:
    """The archive itself."""
    return archive


@dataclass(frozen=True)
class Row:
    """A work.

    Attributes:
        name: Its name on the command line, and in the names of the functions that do it.
        title: What is done, in words; `{size}` is the side of a slice.
        sides: Who does it, of `sides.SIDES`, ours first.
        cases: Its tables, of an archive and of whether it is to be quick.
        truth: What must come of it, read by independent programs.
        check: Compares a folder of what came of it with the truth: what is wrong, in words, or nothing.
        bound: What cannot be undercut, in words, of archive, case, and the folder of the stores.
        absent: Who does not take part, and why.
        archive: The archive that is served, of that of the benchmark, the case and a folder for another.
        stores: Who makes a store first, by `run_store`; it is not timed.
        unit: What the seconds are of.
    """

    name: str
    title: str
    sides: tuple[str, ...]
    cases: Callable[[BenchArchive, bool], list[Case]]
    truth: Callable[[Any, Case], Truth]
    check: Callable[[Truth, Path], str]
    bound: Callable[[Any, Case, Path], str]
    absent: Mapping[str, str] = field(default_factory=dict)
    archive: Callable[[BenchArchive, Case, Path], Served] = same
    stores: tuple[str, ...] = ()
    unit: str = "s"


def arrays_differ(truth: Truth, out: Path) -> str:
    """Compare saved arrays."""
    return differences(truth, {name: _saved(out, name) for name in truth})


def _saved(out: Path, name: str) -> Any:
    path = out / f"{name}.npy"
    return np.load(path, mmap_mode="r") if path.exists() else None


def store_differs(truth: Truth, out: Path) -> str:
    """Compare the arrays at the root of the only store in a folder, by zarr-python."""
    (path,) = out.glob("*.zarr")
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    return differences(truth, {name: group.get(name) for name in truth})


def differences(truth: Truth, found: Mapping[str, Any]) -> str:
    """What differs, in words; some rows are compared at once."""
    told = []
    for name, expected in truth.items():
        array = found[name]
        if array is None or tuple(array.shape) != expected.shape:
            told.append(f"{name}: {'missing' if array is None else f'shape {tuple(array.shape)}'}")
            continue
        wrong = 0
        for rows in bands(expected.shape):
            wrong += int(np.sum(np.asarray(array[rows]) != expected[rows]))
        if wrong:
            told.append(f"{name}: {wrong} of {expected.size} voxels differ")
    return "; ".join(told)


def bands(shape: tuple[int, ...]) -> list[Any]:
    """Slices of some rows each; all at once of what is not a volume."""
    if len(shape) < 3:
        return [...]
    rows = range(0, shape[-2], ROWS_COMPARED_AT_ONCE)
    return [(..., slice(start, start + ROWS_COMPARED_AT_ONCE), slice(None)) for start in rows]
