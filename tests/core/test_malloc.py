"""Settings of malloc are changed in this project's own processes, and in a user's process only if configured."""

import multiprocessing
from pathlib import Path

import dask
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

import liver_dask as ld
from helpers.archive import SHAPE
from liver_dask.cli import main
from liver_dask.core import malloc


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    found: list[dict[int, int]] = []
    monkeypatch.setattr(malloc, "_set", found.append)
    malloc.keep_memory_of_worker.cache_clear()
    return found


def keep(archive: Path, store: Path) -> None:
    ld.to_zarr(ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"])[["er"]], store, progress=False)


def test_a_users_process_is_left_as_it_is(
    archive: Path, tmp_path: Path, changes: list[dict[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store and a computation in a user's process, also with a cluster in it, do not change malloc's settings."""
    keep(archive, tmp_path / "a.zarr")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as dask does when it starts a cluster
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        keep(archive, tmp_path / "b.zarr")
        ld.open_human_liver_em(archive, shape=SHAPE).er.mean().compute()
    assert not changes


def test_it_is_changed_where_that_is_configured(archive: Path, tmp_path: Path, changes: list[dict[int, int]]) -> None:
    """With `tune-malloc` configured, a store sets malloc to few arenas."""
    with dask.config.set({"liver-dask.tune-malloc": True}):
        keep(archive, tmp_path / "a.zarr")
    assert changes == [malloc.FEW_ARENAS]


def test_the_command_and_dasks_workers_are_our_own(
    changes: list[dict[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command sets malloc to few arenas. A dask worker is also set to keep memory, once."""
    assert CliRunner().invoke(main, ["cache", "info", "--help"]).exit_code == 0
    assert changes == [malloc.FEW_ARENAS]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "a nanny")
    malloc.keep_memory_of_worker()
    malloc.keep_memory_of_worker()
    assert changes == [malloc.FEW_ARENAS, malloc.KEEP | malloc.FEW_ARENAS]
