"""What a long run says while it goes on, after an interruption and when it is asked, and how Ctrl-C ends it."""

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.stores import BOX, SMALL
from helpers.waiting import wait_until
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.cli import main
from liver_dask.core.metrics import Traffic
from liver_dask.demo import RangeRequestHandler, serve
from liver_dask.store import additions, progress, status, worker
from liver_dask.store.driver import Driver
from liver_dask.store.jobs import Report
from liver_dask.store.progress import Meter, show_progress
from liver_dask.store.status import StatusFile
from liver_dask.store.unfinished import Unfinished, unfinished_at, unfinished_parts

NOTHING: Any = None
"""A source and a store of a driver, which only `write` looks at."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still; a test moves `now`."""
    clock = SimpleNamespace(now=1000.0)
    for module in (progress, status):
        fake = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now, strftime=time.strftime)
        monkeypatch.setattr(module, "time", fake)
    return clock


def test_lines_come_each_minute_at_first_then_fewer_and_one_at_the_end(clock, capsys) -> None:
    """Each has the clock, the share, the rate and the time left; in ten hours of silence there are not too many."""
    with show_progress("Writing a.zarr", 40_000, True) as advance:
        seen = []
        for _ in range(40_000):
            clock.now += 1
            advance(1, "7 MB fetched")
            if told := capsys.readouterr().err:
                seen += [(clock.now - 1000, line) for line in told.splitlines()]
    seen += [(clock.now - 1000, line) for line in capsys.readouterr().err.splitlines()]
    times = [round(at) for at, _ in seen]
    assert times[:4] == [1, 60, 120, 180]
    gaps = [later - earlier for earlier, later in pairwise(times[1:-1])]
    assert min(gaps) == 60
    assert max(gaps) == 600
    assert gaps == sorted(gaps)
    assert times[-1] == 40_000
    assert re.fullmatch(r"\d\d:\d\d:\d\d Writing a\.zarr: 40\.0 kB of voxels", seen[0][1])
    assert seen[1][1].endswith("Writing a.zarr: 0%, 60 bytes of 40.0 kB, 1 byte/s, 11:05:40 left, 7 MB fetched")
    assert seen[-1][1].endswith("Writing a.zarr: 100%, 40.0 kB in 11:06:40, 1 byte/s, 7 MB fetched")


def test_what_is_there_is_said_and_is_no_part_of_the_rate(clock, capsys) -> None:
    """A resumed run begins with the share that is there; its rate is that of what it does itself."""
    with show_progress("Resuming a.zarr", 1000, True, done=800) as advance:
        assert "Resuming a.zarr: 80% of 1.0 kB is there" in capsys.readouterr().err
        clock.now += 100
        advance(100, "")
    assert re.search(r"90%, 900 bytes of 1\.0 kB, 1 byte/s, 0:01:40 left\n", capsys.readouterr().err)


def test_the_rate_is_that_of_the_last_minutes(clock) -> None:
    """Workers come and go: an hour ago does not count; and before anything was done, no time left is made up."""
    meter = Meter(10**6)
    assert meter.seconds_left is None
    for _ in range(3600):
        clock.now += 1
        meter.add(100)
    assert meter.rate == pytest.approx(100)
    for _ in range(700):
        clock.now += 1
        meter.add(10)
    assert meter.rate == pytest.approx(10, rel=0.1)
    assert meter.seconds_left == pytest.approx((10**6 - 367_000) / 10, rel=0.1)
    clock.now += 700
    meter.add(0)
    assert meter.rate == 0
    assert meter.seconds_left is None
    meter.add(10**7)
    assert (meter.done, meter.share, meter.seconds_left) == (10**6, 1, 0), (
        "what is told again, of workers that were lost"
    )


def test_a_bar_begins_where_the_last_run_ended(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """On a terminal, too."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with show_progress("Resuming a.zarr", 1000, True, done=800) as advance:
        advance(100, "7 MB fetched")
    told = capsys.readouterr().err
    assert [share in told for share in ("0.1/1.0", "0.9/1.0")] == [False, True]


def test_waiting_for_workers_is_said(tmp_path: Path) -> None:
    """As long as there are none, and not after."""
    said: list[str] = []
    reports = StatusFile(tmp_path, Meter(10))
    driver = Driver(NOTHING, NOTHING, "", 1, False, lambda count, remark: said.append(remark), reports)
    driver.heartbeat(2)
    driver.heartbeat(0)
    driver.report(Report(1, 5, 1))
    driver.heartbeat(2)
    assert said == [
        "0 bytes fetched",
        "0 bytes fetched, waiting for workers",
        "5 bytes fetched, waiting for workers",
        "5 bytes fetched",
    ]


@pytest.mark.parametrize("shares", [False, True])
def test_what_this_process_fetches_is_told_before_a_region_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    """Of jobs on threads of this process, with each heartbeat, and nothing twice; of workers, by reports alone."""
    driver = Driver(NOTHING, NOTHING, "", 1, False, lambda count, remark: None, StatusFile(tmp_path, Meter(10)))
    driver._is_here = not shares
    counts = Traffic()
    monkeypatch.setattr(worker, "traffic", counts)
    counts.add(bytes=7, requests=2)
    driver.heartbeat(2)
    told = status.read_status(tmp_path)
    assert told is not None
    assert (told.fetched, told.requests) == ((0, 0) if shares else (7, 2))
    counts.add(bytes=1, requests=1)
    driver.report(worker.report_of(5))
    driver.tell_status(ended=True)
    assert (driver.fetched, driver.requests) == (8, 3)


def test_a_status_is_written_more_often_at_first(tmp_path: Path, clock: SimpleNamespace) -> None:
    """So that `info` tells rightly of a short run; and of a long one, four times a minute."""
    reports, written, began = StatusFile(tmp_path, Meter(10)), [], clock.now
    while clock.now < began + 300:
        if reports.is_due():
            reports.write(0, 0, [])
            written.append(clock.now - began)
        clock.now += 0.5
    assert written[:4] == [0, 1, 2, 3]
    assert len([at for at in written if at <= 20]) < 15
    assert {round(b - a) for a, b in pairwise(written) if a > 100} == {15}


class Stands(RangeRequestHandler):
    """After some requests, each answer waits until it may go on."""

    quick_requests = 10**9
    waiting = 0
    go_on = threading.Event()

    def send(self, *args) -> None:
        if len(self.server.archive.requests) > self.quick_requests:
            type(self).waiting += 1
            self.go_on.wait(60)
        super().send(*args)


@pytest.fixture
def stands(archive: Path) -> Iterator[tuple[str, type[Stands]]]:
    """The address of an archive whose answers wait after thirty requests, and the handler that lets them go on."""
    handler = type("StandsHere", (Stands,), {"quick_requests": 30, "go_on": threading.Event()})
    with serve(archive, handler) as server:
        try:
            yield server.url, handler
        finally:
            handler.go_on.set()


def interrupt(when: Callable[[], object], then: Callable[[], object]) -> threading.Thread:
    """Press Ctrl-C when something holds, then call something, on another thread."""

    def press() -> None:
        wait_until(when, 60)
        os.kill(os.getpid(), signal.SIGINT)
        then()

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_ctrl_c_finishes_the_regions_under_way(stands, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is answered at once, with how to stop now; what is being read is written, nothing new is begun."""
    url, handler = stands
    ds = ld.open_human_liver_em(url, shape=SHAPE)
    said = lambda: "under way; press Ctrl-C again to stop now" in caplog.text  # noqa: E731  # of the test alone

    def let_go() -> None:
        wait_until(said, 60)
        handler.go_on.set()

    with caplog.at_level(logging.WARNING):
        thread = interrupt(lambda: handler.waiting, let_go)
        with pytest.raises(KeyboardInterrupt) as told:
            ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
        thread.join()
    found = unfinished_at(tmp_path / "a.zarr")
    assert found is not None
    assert found.regions > 0
    assert found.regions < found.of_regions
    assert found.status is not None
    assert found.status.ended
    assert "is kept in" in told.value.__notes__[0]
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)


def test_a_second_ctrl_c_stops_now(stands, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though the server does not answer."""
    url, handler = stands
    ds = ld.open_human_liver_em(url, shape=SHAPE)

    def again() -> None:
        wait_until(lambda: "press Ctrl-C again" in caplog.text, 60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = interrupt(lambda: handler.waiting, again)
    with pytest.raises(KeyboardInterrupt):
        ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
    thread.join()
    assert not handler.go_on.is_set()


def test_info_says_how_far_an_unfinished_store_is_and_what_failed(archive: Path, tmp_path: Path) -> None:
    """The share that is there, the rate, what was fetched, each region that failed and why, and how to go on."""
    missing = tmp_path / "archive" / EMPIAR_13356.path("mito", 3)
    for variable in ("raw", "mito"):
        folder = tmp_path / "archive" / Path(EMPIAR_13356.path(variable, 0)).parent
        folder.mkdir(parents=True)
        for path in (archive / Path(EMPIAR_13356.path(variable, 0)).parent).iterdir():
            (folder / path.name).symlink_to(path)
    missing.unlink()
    ds = ld.open_human_liver_em(tmp_path / "archive", shape=SHAPE, labels=["mito"])
    store, options = tmp_path / "a.zarr", {"bounding_box": (0, 100, 0, 100, 0, 8), "progress": False}
    with pytest.raises(ld.ExportError):
        ld.to_zarr(ds, store, on_error="continue", **options, **SMALL)
    for path in (store, tmp_path / "a.zarr.partial"):
        done = CliRunner().invoke(main, ["info", str(path)])
        assert done.exit_code == 0, done.output
        assert re.search(
            r"a\.zarr: unfinished, \d\d% of it is there \(\d+ of \d+ regions, .* of 240\.0 kB of vox", done.output
        )
        assert re.search(
            r"Its last run began at [-\d]+ [:\d]+, and was last heard of at .*\.\nThe same call goes on", done.output
        )
        assert re.search(r"That run has fetched .* in \d+ requests", done.output)
        assert re.search(r"It could not write \d of the regions:\n  mito, slices 2-3 and rows", done.output)
        assert "mito, slice 3" in done.output
    found = unfinished_at(store)
    assert found is not None
    missing.symlink_to(archive / EMPIAR_13356.path("mito", 3))
    ld.to_zarr(ds, store, **options, **SMALL)
    assert unfinished_at(store) is None
    assert "complete, " in CliRunner().invoke(main, ["info", str(store)]).output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "archive"]


def test_info_of_a_store_that_is_written_has_rate_and_time(stands, tmp_path: Path, monkeypatch) -> None:
    """While a run goes on, `info` in any process says how fast it is, how long it will take, and by how many jobs."""
    url, handler = stands
    ds, told = ld.open_human_liver_em(url, shape=SHAPE), []

    def ask() -> None:
        wait_until(lambda: handler.waiting and (tmp_path / "a.zarr.partial" / "progress" / "status.json").exists(), 60)
        told.append(CliRunner().invoke(main, ["info", str(tmp_path / "a.zarr")]).output)
        handler.go_on.set()

    thread = threading.Thread(target=ask)
    thread.start()
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
    thread.join()
    assert re.search(r"Its run began at [-\d]+ [:\d]+, and was heard of a moment ago: 4 jobs at once", *told)
    assert "fetched 0 bytes" not in told[0]
    now = time.time()
    said = status.Status(now - 60, now, 1e6, 90.0, 5, 1, 0, False, (), 0)
    found = Unfinished(SimpleNamespace(target="a.zarr"), 1, 2, 10, 20, said)  # type: ignore[arg-type]
    assert "a.zarr: unfinished, 50% of it is there (1 of 2 regions" in str(found)
    assert "a moment ago: waiting for workers, 1.0 MB/s, about 0:01:30 left." in str(found)
    assert "That run has fetched 5 bytes in 1 requests." in str(found)
    unknown = replace(found, status=replace(said, fetched=0, requests=0))
    assert "fetched 0 bytes" not in str(unknown)
    assert "is told when it has finished a region" in str(unknown)


def test_a_status_that_cannot_be_read_or_written_is_none(tmp_path: Path) -> None:
    """It only informs: a full disk, an older version, or a torn file are no reason to stop."""
    reports = StatusFile(tmp_path / "no such folder", Meter(1))
    reports.write(0, 0, [])
    assert status.read_status(tmp_path) is None
    StatusFile(tmp_path, Meter(1)).write(3, 1, [f"region {n}" for n in range(30)], workers=4)
    found = status.read_status(tmp_path)
    assert found is not None
    assert (found.fetched, found.workers, found.failed, len(found.failures), found.may_go_on) == (3, 4, 30, 20, True)
    content = json.loads((tmp_path / "status.json").read_bytes())
    (tmp_path / "status.json").write_text(json.dumps(content | {"later": 1, "failures": ["a\nb\x1b[2J"]}))
    newer = status.read_status(tmp_path)
    assert newer is not None
    assert newer.failures == ("a?b?[2J",)
    wrong = [
        {name: value}
        for name in ("began", "written", "rate", "seconds_left", "fetched", "requests", "workers", "failed")
        for value in ("x", [], True, float("nan"), float("inf"), 1e300, -1, 10**400)
    ]
    for damaged in (b"", b"{", b"[]", b"7", b'{"failures": 1}', *(json.dumps(content | of).encode() for of in wrong)):
        (tmp_path / "status.json").write_bytes(damaged)
        assert status.read_status(tmp_path) is None, damaged
    (tmp_path / "status.json").unlink()
    (tmp_path / "status.json").mkdir()
    assert status.read_status(tmp_path) is None
    (tmp_path / "status.json").rmdir()
    with (tmp_path / "status.json").open("wb") as file:
        file.truncate(1 << 40)  # would not fit into memory
    assert status.read_status(tmp_path) is None


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_the_status_is_not_waited_for(tmp_path: Path) -> None:
    """`info` would wait for somebody who writes into it."""
    os.mkfifo(tmp_path / "status.json")
    assert status.read_status(tmp_path) is None


def test_only_what_was_to_be_added_is_told_and_cleaned_with_a_store(archive: Path, tmp_path: Path) -> None:
    """An unfinished store of its own whose name looks like an addition is neither told of nor removed."""
    ds, box = ld.open_human_liver_em(archive, shape=SHAPE, labels=[]), {"bounding_box": (0, 9, 0, 9, 0, 2)}
    store, other = tmp_path / "a.zarr", tmp_path / "a.zarr.adding-mine"
    for path in (store, other):
        ld.to_zarr(ds, path, progress=False, **box, **SMALL)
    partial = tmp_path / "a.zarr.adding-mine.partial"
    partial.mkdir()
    other.rename(partial / "store")
    assert not unfinished_parts(store)
    assert "Nothing is left" in CliRunner().invoke(main, ["clean", "--unfinished", str(store)]).output
    assert partial.is_dir()


def test_info_of_odd_names_is_a_sentence(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named `.partial`, and an unfinished store whose record cannot be understood."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".partial").mkdir()
    told = CliRunner().invoke(main, ["info", ".partial"])
    assert (told.exit_code, "ValueError" in told.output) == (1, False)
    record = tmp_path / "a.zarr.partial" / "store" / "liver_dask" / "zarr.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    told = CliRunner().invoke(main, ["info", "a.zarr"])
    assert (told.exit_code, "a.zarr.partial" in told.output, "unfinished" in told.output) == (1, True, True)


def test_who_may_not_list_what_is_beside_a_store_is_told_of_the_store(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bucket where rights cover a prefix alone."""
    store = tmp_path / "a.zarr"
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=[])
    ld.to_zarr(ds, store, bounding_box=(0, 9, 0, 9, 0, 2), progress=False, **SMALL)

    def refuse(folder: Path, suffix: str = "") -> list[Path]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(additions, "files_in", refuse)
    told = CliRunner().invoke(main, ["info", str(store)])
    assert told.exit_code == 0, told.output
