"""A slow and faulty archive gives the right voxels without hanging, and nothing that was kept is fetched twice."""

import logging
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.command import run_here
from helpers.hostile import WORST, Profile, hostile
from helpers.processes import NewProcesses
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import tiff_index
from liver_dask.archive.remote import files as remote
from liver_dask.archive.remote.cache import FolderCache, RangeCache
from liver_dask.archive.remote.ranges import ByteRange
from liver_dask.archive.remote.versions import FileVersion
from liver_dask.demo import ArchiveServer, RangeRequestHandler, make_archive, serve


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_worst_archive_gives_the_right_voxels(archive: Path, voxels, tmp_path: Path, seed: int) -> None:
    """An export from an archive with all kinds of faults has the right voxels, after retries."""
    handler = hostile(WORST, seed)
    with serve(archive, handler) as server, dask.config.set({"liver-dask.timeout": 0.5, "liver-dask.attempts": 12}):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with ld.trace() as told:
            ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=(30, 300, 20, 280, 0, 10), progress=False)
    stored = xr.open_zarr(tmp_path / "a.zarr")
    for name, expected in voxels.items():
        np.testing.assert_array_equal(stored[name], expected[:, 20:280, 30:300])
    drawn = [fault for fault in handler.drawn if fault]
    assert len(drawn) > 5, "hardly a fault was tried"
    assert told.retries > 0


def test_a_changed_byte_that_breaks_a_file_is_fetched_again(archive: Path, voxels) -> None:
    """A mask that cannot be decoded because of a changed byte is fetched again, and is right."""
    changed = []

    class Changes(RangeRequestHandler):
        def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
            if self.path.endswith("er_mask_004.png") and not changed:
                changed.append(start)
                body = body[:300] + bytes([body[300] ^ 0xFF]) + body[301:]
            super().answer(body, start, stop, size, etag)

    with serve(archive, Changes) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.er[4], voxels["er"][4])
    assert changed


def test_a_stream_that_breaks_off_is_continued(archive: Path, voxels) -> None:
    """After a truncated answer only the missing bytes are fetched: at most a tenth is fetched in vain."""
    with serve(archive, hostile(Profile(truncate=0.5), seed=4)) as server, ld.trace() as told:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=1)
        np.testing.assert_array_equal(ds.raw[:4], voxels["raw"][:4])
    archive_bytes = sum((archive / EMPIAR_13356.path("raw", z)).stat().st_size for z in range(4))
    assert told.retries > 5
    assert told.bytes <= 1.1 * archive_bytes


def test_a_trickle_is_abandoned(archive: Path, voxels) -> None:
    """A connection that sends single bytes is counted as a stall and given up, and the voxels are right."""
    slow = []

    class Trickles(RangeRequestHandler):
        def send(self, status, headers, body) -> None:
            if slow or len(body) < 5000:
                super().send(status, headers, body)
                return
            slow.append(len(body))
            super().send(status, {**headers, "Content-Length": str(len(body))}, body[:100])
            for i in range(100, len(body)):
                self.wfile.write(body[i : i + 1])
                time.sleep(0.005)

    with serve(archive, Trickles) as server, dask.config.set({"liver-dask.timeout": 0.3}), ld.trace() as told:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.raw[0, :200], voxels["raw"][0, :200])
    assert slow
    assert told.stalls >= 1
    assert told.seconds < 20


def test_a_server_that_takes_its_time_is_waited_for(archive: Path, voxels) -> None:
    """A server whose latency is longer than the timeout is still read from."""
    with serve(archive, hostile(Profile(latency=0.3))) as server, dask.config.set({"liver-dask.timeout": 0.1}):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.er[0, :20], voxels["er"][0, :20])


def test_both_ends_of_a_slice_come_with_one_request(archive: Path, voxels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look at a slice takes two requests: one for both ends of the file, one for the strips."""
    monkeypatch.setattr(tiff_index, "BOTH_ENDS_FROM", 0)
    with serve(archive) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.raw[7, 10:20], voxels["raw"][7, 10:20])
        assert len(server.requests) == 2


def test_the_history_of_a_failure_is_reported(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error after the last try counts the reasons of all tries."""
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", lambda seconds: None)
    answers = iter(["503", "503", "elsewhere", "503", "503", "503"])

    class Fails(RangeRequestHandler):
        def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
            if next(answers) == "503":
                self.refuse(503)
            else:
                super().answer(body[1:], start + 1, stop, size, etag)

    with serve(archive, Fails) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(
            ld.RemoteError, match=r"6 tries in \d+ s: answered 503 .* \(5 x\), asked for bytes .* \(1 x\)"
        ):
            ds.raw[0, 0].compute()


def test_a_trace_counts_what_was_fetched(server: ArchiveServer, caplog: pytest.LogCaptureFixture) -> None:
    """`trace` counts the requests and bytes of its block alone, and logs them."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ds.raw[0, :9].compute()
    before = len(server.requests), server.bytes_sent
    with caplog.at_level(logging.INFO, "liver_dask"), ld.trace() as told:
        ds.raw[1, :9].compute()
    assert (told.requests, told.bytes) == (len(server.requests) - before[0], server.bytes_sent - before[1])
    assert str(told) in caplog.text
    assert (told.retries, told.stalls) == (0, 0)


@pytest.mark.slow
def test_strips_are_kept_for_other_processes(
    server: ArchiveServer, tmp_path: Path, new_processes: NewProcesses
) -> None:
    """A second process takes the strips from the cache, with the same voxels and at most 3 requests."""
    script = f"""
import liver_dask as ld
ds = ld.open_human_liver_em({server.url!r}, shape={SHAPE}, cache_dir={str(tmp_path)!r}, cache_raw_gb=0.1)
with ld.trace() as told:
    sums = [int(ds.raw[z, 20:250, 7:390].sum()) for z in (3, 4)] + [int(ds.raw[3, ::7, :99].sum())]
print(sums, told.requests)
"""
    runs = []
    for _ in range(2):
        server.requests.clear()
        runs.append(new_processes.run(script))
    (first, requests), (again, few) = (printed.rsplit(maxsplit=1) for printed in runs)
    assert first == again
    assert int(requests) > 3
    assert int(few) <= 3
    large = [request for request in server.requests if request.stop - request.start > 1]
    assert len(large) <= 1, "one byte each says that two files are what they were; then the rows that the stride needs"


def test_kept_strips_stay_within_their_limit_and_the_oldest_go(tmp_path: Path, monkeypatch) -> None:
    """Cached strips stay within the limit, the oldest go first, and other versions or lengths are not found."""
    monkeypatch.setattr("liver_dask.archive.remote.cache.BLOCK_BYTES", 1000)
    cache = RangeCache(str(tmp_path), 20_000)
    version = FileVersion(10**6, "v1")
    for number in range(40):
        byte_range = ByteRange(number * 1000, number * 1000 + 900)
        cache.keep("http://a/b.tif", version, [byte_range], [memoryview(bytes([number]) * 900)])
        for age, path in enumerate(sorted(tmp_path.rglob("raw/*/*"), key=lambda path: int(path.name))):
            os.utime(path, (age, age))  # file systems may give neighbours the same time
        if number == 15:
            (kept,) = cache.find("http://a/b.tif", version, [ByteRange(15_100 - 100, 15_500)])
            assert kept == bytes([15]) * 500
        assert sum(path.stat().st_size for path in tmp_path.rglob("raw/*/*")) <= 20_000
    assert cache.find("http://a/b.tif", version, [ByteRange(39_000, 39_900), ByteRange(0, 900)])[1] is None
    assert cache.find("http://a/b.tif", version, [ByteRange(39_000, 39_901)]) == [None], "shorter than asked for"
    assert cache.find("http://a/b.tif", FileVersion(10**6, "v2"), [ByteRange(39_000, 39_900)]) == [None], (
        "another version"
    )
    FolderCache(str(tmp_path)).drop("http://a/b.tif")
    assert cache.find("http://a/b.tif", version, [ByteRange(39_000, 39_900)]) == [None]


def test_the_shell_lists_and_empties_a_cache(server: ArchiveServer, tmp_path: Path) -> None:
    """`cache info` lists what a cache holds, and `cache clear` empties it but leaves foreign files."""
    kept = tmp_path / "kept"
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, cache_dir=kept, cache_raw_gb=1)
    ds.isel(z=2, y=slice(9, 99)).compute()
    (kept / "mine.txt").write_text("")
    listed = run_here("cache", "info", kept)
    assert "strip indexes (1 files)" in listed.stdout, listed.stderr
    assert "masks, as far as they were fetched (3 files)" in listed.stdout
    assert "strips of raw (1 files)" in listed.stdout
    assert run_here("cache", "clear", kept).returncode == 0
    assert [path.name for path in kept.rglob("*")] == ["mine.txt"]
    wrong = run_here("cache", "info", tmp_path / "nothing")
    assert wrong.returncode == 2
    assert "There is no folder" in wrong.stderr
    assert "Give the folder" in run_here("cache", "clear").stderr


@pytest.mark.parametrize("given", [-1, "much", float("nan"), 1])
def test_a_limit_of_the_cache_that_makes_no_sense(archive: Path, tmp_path: Path, given: object) -> None:
    """A senseless `cache_raw_gb`, or one without `cache_dir`, is an InvalidArgumentError."""
    with pytest.raises(ld.InvalidArgumentError, match="cache_raw_gb"):
        ld.open_human_liver_em(archive, shape=SHAPE, cache_raw_gb=given, cache_dir=None if given == 1 else tmp_path)


FAULTS = ["stall", "reset", "truncate", "error_500", "error_503", "too_many", "ignore_range", "shorter", "elsewhere"]
SCHEDULES = int(os.environ.get("LIVER_DASK_FAULT_SCHEDULES", "20"))
"""How many seeds are tried; 500 were tried before a release."""

SMALL = (3, 90, 130)
SECONDS_OF_ONE = 30


def random_profile(seed: int) -> Profile:
    """Up to two thirds of all requests fail, each in a way that headers or formats show."""
    chosen = random.Random(seed)
    shares = {name: chosen.choice([0, 0, 0.02, 0.1, 0.2]) for name in FAULTS}
    total = max(sum(shares.values()) * 1.5, 1)
    return Profile(stall_seconds=2 * SECONDS_OF_ONE, **{name: share / total for name, share in shares.items()})


@pytest.mark.slow
@pytest.mark.timeout(30 + SCHEDULES * 3)
@pytest.mark.filterwarnings("ignore:.* ignores byte ranges")
def test_any_schedule_of_faults_gives_the_voxels_or_a_named_error(tmp_path: Path, monkeypatch) -> None:
    """Any mix of faults gives the right voxels or a LiverDaskError, in time, and leaves no connection open."""
    sleep = time.sleep
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", lambda seconds: sleep(min(seconds, 0.01)))
    make_archive(tmp_path, SMALL)
    with ld_settings(), serve(tmp_path) as honest:
        expected = ld.open_human_liver_em(honest.url, shape=SMALL).compute()
    ends: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        chosen = random.Random(seed)
        handler = hostile(
            random_profile(seed), seed, chosen.choice(["answered", "answered", "whole", "first", "refused"])
        )
        y, x = sorted(chosen.sample(range(91), 2)), sorted(chosen.sample(range(131), 2))
        box = {"y": slice(*y, chosen.choice([1, 1, 5])), "x": slice(*x)}
        began = time.monotonic()
        with ld_settings(), serve(tmp_path, handler) as server:
            ds = ld.open_human_liver_em(server.url, shape=SMALL, connections=chosen.choice([1, 3, 16])).isel(box)
            try:
                xr.testing.assert_equal(ds.compute(), expected.isel(box))
                ends["right"] += 1
            except ld.LiverDaskError as error:
                ends[type(error).__name__] += 1
            assert time.monotonic() - began < SECONDS_OF_ONE, f"schedule {seed} took too long"
            while handler.connections and time.monotonic() - began < 2 * SECONDS_OF_ONE:
                remote._process.close_idle()  # also those of reads beside the one that failed
                sleep(0.01)
            assert handler.connections == 0, f"schedule {seed} left a connection open"
    print(f"\n{SCHEDULES} schedules of faults: {dict(ends)}")
    assert ends["right"] > SCHEDULES / 3


@pytest.mark.parametrize("seed", range(10))
def test_a_changed_byte_costs_no_more_than_its_row(tmp_path: Path, seed: int) -> None:
    """A changed byte makes at most one row of raw wrong, and no mask."""
    make_archive(tmp_path, SMALL)
    handler = hostile(Profile(corrupt=0.15), seed)
    with serve(tmp_path) as honest, serve(tmp_path, handler) as server:
        expected = ld.open_human_liver_em(honest.url, shape=SMALL).compute()
        try:
            told = ld.open_human_liver_em(server.url, shape=SMALL).compute()
        except ld.LiverDaskError:
            return
    for label in EMPIAR_13356.labels:
        xr.testing.assert_equal(told[label], expected[label])
    wrong_rows = int((told.raw != expected.raw).any("x").sum())
    assert wrong_rows <= handler.drawn.count("corrupt")


def test_a_look_asks_for_raw_and_masks_at_once(archive: Path, voxels, monkeypatch) -> None:
    """Raw and three masks are requested at the same time, even if dask has a single thread."""
    monkeypatch.setattr("dask.threaded.default_pool", ThreadPoolExecutor(1))
    waiting = threading.Barrier(4, timeout=20)

    class Together(RangeRequestHandler):
        seen: ClassVar[set[str]] = set()

        def send(self, status, headers, body) -> None:
            if self.path not in self.seen:
                self.seen.add(self.path)
                waiting.wait()
            super().send(status, headers, body)

    with serve(archive, Together) as server, dask.config.set({"liver-dask.timeout": 30}):
        seen = ld.open_human_liver_em(server.url, shape=SHAPE).isel(z=3, y=slice(40, 90), x=slice(60, 99)).compute()
    assert not waiting.broken
    for name, expected in voxels.items():
        np.testing.assert_array_equal(seen[name], expected[3, 40:90, 60:99])


@pytest.mark.parametrize("told", [{"num_workers": 1}, {"pool": ThreadPoolExecutor(1)}])
@pytest.mark.parametrize("how", ["config", "argument"])
def test_the_threads_that_were_asked_for_are_used(archive: Path, told: dict[str, Any], how: str) -> None:
    """If dask is limited to one thread, there is one request at a time."""
    answering: set[str] = set()
    side_by_side = []

    class Counts(RangeRequestHandler):
        def send(self, status, headers, body) -> None:
            answering.add(self.path)
            time.sleep(0.1)
            side_by_side.append(len(answering))
            answering.discard(self.path)
            super().send(status, headers, body)

    with serve(archive, Counts) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)[["mito", "er"]].isel(z=3, y=slice(40, 90))
        with dask.config.set(told if how == "config" else {}):
            ds.compute(**(told if how == "argument" else {}))
    assert max(side_by_side) == 1


def test_a_look_may_be_computed_with_anything_else(archive: Path, voxels) -> None:
    """Arrays of an archive and other dask arrays are computed together, in the order in which they were given."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE).isel(z=2, y=slice(30, 80))
    ones = da.ones(3, chunks=1)
    one, raw, zero, mean = dask.compute(ones, ds.raw.data, ones - 1, ds.mito.data.mean())
    again, first = dask.compute(ds.raw.data, ones)
    for seen in (raw, again):
        np.testing.assert_array_equal(seen, voxels["raw"][2, 30:80])
    assert mean == voxels["mito"][2, 30:80].mean()
    assert one.tolist() == first.tolist() == [1, 1, 1]
    assert not zero.any()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_look_after_a_fork(server: ArchiveServer, voxels) -> None:
    """A process forked after a read can read, too."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ds.isel(z=1, y=slice(9)).compute()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        seen = pool.apply_async(look_at, (ds, 2)).get(timeout=30)
    for name, expected in voxels.items():
        np.testing.assert_array_equal(seen[name], expected[2, :9])


def look_at(ds: xr.Dataset, z: int) -> xr.Dataset:
    return ds.isel(z=z, y=slice(9)).compute()


def ld_settings() -> Any:
    return dask.config.set({"liver-dask.timeout": 0.15, "liver-dask.attempts": 8})
