"""Byte ranges: verified, retried, capped; a wrong answer is never taken for the file."""

import threading
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from conftest import SHAPE
from hostile import scripted

import liver_dask as ld
from liver_dask.demo import RangeRequestHandler, serve


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries are noted, not made."""
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.mark.parametrize("fault", ["reset", "truncate", "shorter", "elsewhere", "untold", "500", "503 7", "429 2"])
def test_a_passing_fault_costs_one_more_request(archive: Path, voxels, no_waiting: list[float], fault: str) -> None:
    """A fault would end the read, or its answer be taken for the file's bytes."""
    with serve(archive, scripted({1: fault, 3: fault})) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        part = ds.isel(z=3, y=slice(20, 60)).compute()
    for name in voxels:
        np.testing.assert_array_equal(part[name], voxels[name][3, 20:60])
    assert no_waiting, "no wait before the next try"
    if fault == "503 7":
        assert set(no_waiting) == {7}, "the server's Retry-After was not honoured"


def test_a_silent_request_is_given_up_and_asked_again_at_once(archive: Path, voxels, no_waiting: list[float]) -> None:
    """One request in thirty would hang for minutes."""
    with serve(archive, scripted({1: "stall 5"})) as server, dask.config.set({"liver-dask.timeout": 0.3}):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.raw[1, :9], voxels["raw"][1, :9])
    assert set(no_waiting) == {0}


def test_tries_are_bounded_and_the_error_tells_the_last_reason(archive: Path, no_waiting: list[float]) -> None:
    """A server that always fails would be asked for ever, or the reason be lost."""
    with serve(archive, scripted(dict.fromkeys(range(1, 100), "503"))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.RemoteError, match=r"slice 0, rows 0-4: .*gave up after 6 tries.*answered 503"):
            ds.raw[0, :5].compute()
        assert len(server.requests) == 6
    assert all(wait <= 10 for wait in no_waiting)


def test_a_file_that_changes_between_two_reads_is_an_error_not_a_mix(archive: Path) -> None:
    """Rows of two versions of a file would be put into one slice."""
    with serve(archive, scripted({3: "changed"})) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.SourceChangedError, match="is not the file it was"):
            ds.raw[0, :5].compute()
        ds.raw[0, :5].compute()  # the next read begins anew


def test_no_more_requests_at_once_than_connections(archive: Path) -> None:
    """The archive would be asked more at once than the user allowed, or one window wait for one connection."""
    under_way, most = 0, 0
    lock, met = threading.Lock(), threading.Event()

    class Counting(RangeRequestHandler):
        def do_GET(self) -> None:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
                if under_way == 3:
                    met.set()
            met.wait(5)
            super().do_GET()
            with lock:
                under_way -= 1

    with serve(archive, Counting) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=3)
        ds.compute(scheduler="threads", num_workers=12)
    assert most == 3


def test_connections_are_kept_alive(archive: Path) -> None:
    """Every request would pay for a new connection."""
    ports = set()

    class Noting(RangeRequestHandler):
        def do_GET(self) -> None:
            ports.add(self.client_address)
            super().do_GET()

    with serve(archive, Noting) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=2)
        ds.compute()
        assert len(server.requests) > 20
    assert len(ports) <= 2


def test_a_failure_does_not_use_up_the_connections(archive: Path, voxels, no_waiting: list[float]) -> None:
    """Each failed request would keep its place in the pool, until the next one waits for ever."""
    with serve(archive, scripted(dict.fromkeys((1, 2, 4, 5), "truncate"))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=1)
        for z in range(4):
            np.testing.assert_array_equal(ds.raw[z], voxels["raw"][z])
