"""An archive that is away for a while in the middle of a long run."""

import time
from itertools import count
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
import pytest
import xarray as xr

import liver_dask as ld
from helpers.archive import SHAPE
from liver_dask.demo import RangeRequestHandler, serve
from liver_dask.store import outage, worker
from liver_dask.store.driver import Driver
from liver_dask.store.jobs import Report
from liver_dask.store.outage import LONGEST_GRACE, LONGEST_PAUSE, LONGEST_WAIT, Outage
from liver_dask.store.progress import Meter
from liver_dask.store.status import StatusFile
from liver_dask.store.worker import Task

SMALL = {"chunks": (1, 50, 100), "shards": (2, 100, 300)}


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outage, "monotonic", clock)
    return clock


def test_a_region_that_fails_while_others_are_finished_is_given_up(clock: Clock) -> None:
    """What cannot be read although the archive answers is tried twice, however long the run has gone well."""
    fails = Outage()
    clock.now += 3600
    assert fails.may_pass("broken")
    clock.now += LONGEST_GRACE + 1
    fails.note_finished()
    clock.now += 1
    assert not fails.may_pass("broken")
    assert fails.may_pass("another")


def test_what_was_fetched_before_an_outage_may_be_finished_in_it(clock: Clock) -> None:
    """This is no sign that the archive answers."""
    fails = Outage()
    clock.now += 3600
    for _ in range(4):
        assert fails.may_pass("a")
        clock.now += LONGEST_GRACE / 5
        fails.note_finished()
    clock.now += 300
    assert fails.may_pass("a")


@pytest.mark.parametrize(("well", "borne"), [(0, 0), (5, 5), (100, 100), (36000, LONGEST_WAIT)])
def test_an_outage_is_borne_for_as_long_as_the_run_has_gone_well(clock: Clock, well: float, borne: float) -> None:
    """No try counts in that time, of any number of regions; afterwards each has its two tries."""
    fails = Outage()
    for _ in range(4):
        clock.now += well / 4
        fails.note_finished()
    first = clock.now
    assert fails.may_pass("a")
    for part in (0.1, 0.3, 0.9, 0.99):
        clock.now = first + part * borne
        assert fails.may_pass("a") == bool(borne)
    clock.now = first + borne
    assert not fails.may_pass("a")
    assert fails.may_pass("b")
    assert not fails.may_pass("b")


def test_after_an_outage_all_is_as_before(clock: Clock) -> None:
    """The next outage has its own time, and a region that failed in the first one its own tries."""
    fails = Outage()
    clock.now += 100
    for _ in range(5):
        assert fails.may_pass("a")
        clock.now += 15
    assert fails.is_told
    fails.note_finished()
    assert not fails.is_told
    clock.now += 1000
    for _ in range(5):
        assert fails.may_pass("b")
        clock.now += 15


def test_pauses_are_a_part_of_the_time_of_the_run(clock: Clock) -> None:
    """A run that has just begun hardly waits; none waits longer than the longest pause."""
    fails = Outage()
    clock.now += 2
    assert fails.pause == pytest.approx(0.2)
    clock.now += 3600
    assert fails.pause == LONGEST_PAUSE


class Away(RangeRequestHandler):
    """Answers requests with 503 as long as their number, from 0, is in `away`. Each test needs its subclass."""

    away = range(0)
    asked: "count[int]"

    def __init_subclass__(cls) -> None:
        cls.asked = count()

    def send(self, *args) -> None:
        if next(self.asked) in self.away:
            self.send_error(503)
        else:
            super().send(*args)


@pytest.fixture
def long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run believes that it has gone well for an hour; and it makes no pauses."""
    begun = iter([time.monotonic() - 3600])
    monkeypatch.setattr(outage, "monotonic", lambda: next(begun, None) or time.monotonic())
    monkeypatch.setattr(outage, "LONGEST_PAUSE", 0)


@pytest.mark.usefixtures("long_run")
@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_a_run_goes_on_after_an_outage(
    archive: Path, voxels: dict[str, np.ndarray], tmp_path: Path, on_error: Literal["raise", "continue"]
) -> None:
    """Regions that failed several times while the archive was away are written when it is there again."""

    class Shortly(Away):
        away = range(12, 90)

    with serve(archive, Shortly) as server, dask.config.set({"liver-dask.attempts": 1}):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=["er"], chunk_rows=50)
        ld.to_zarr(ds, tmp_path / "a.zarr", on_error=on_error, progress=False, **SMALL)
    assert next(Shortly.asked) > 90, "the archive was away to the end"
    stored = xr.open_zarr(tmp_path / "a.zarr")
    for name in ("raw", "er"):
        np.testing.assert_array_equal(stored[name], voxels[name])


def test_an_archive_that_stays_away_is_an_error(archive: Path, tmp_path: Path) -> None:
    """A run that went well for a moment waits for a moment."""

    class ForEver(Away):
        away = range(12, 10**9)

    with serve(archive, ForEver) as server, dask.config.set({"liver-dask.attempts": 1}):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=["er"], chunk_rows=50)
        with pytest.raises(ld.RemoteError, match="503"):
            ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **SMALL)
    ld.to_zarr(
        ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"]), tmp_path / "a.zarr", progress=False, **SMALL
    )


def test_waiting_for_the_archive_is_said(tmp_path: Path, clock: Clock) -> None:
    """As long as nothing arrives, if that takes longer than a stall."""
    said: list[str] = []
    reports = StatusFile(tmp_path, Meter(10))
    nothing: Any = None  # a source and a store, which only `write` looks at
    run = Driver(nothing, nothing, "", 1, False, lambda count, remark: said.append(remark), reports)
    for seconds in (100, 21, 1):
        clock.now += seconds
        assert run._outage.may_pass("a")
        run.heartbeat(2)
    run.report(Report(1, 5, 1))
    assert said == ["0 bytes fetched", *["0 bytes fetched, waiting for the archive"] * 2, "5 bytes fetched"]


def test_a_job_waits_before_it_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause of a task comes before its first request."""
    paused: list[float] = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        raise KeyboardInterrupt

    nothing: Any = None  # what the pause comes before
    monkeypatch.setattr(worker, "pause", pause)
    with pytest.raises(KeyboardInterrupt):
        Task(nothing, "", nothing, nothing, 1, False, 7.5).write(lambda report: None)
    assert paused == [7.5]
