"""Exports over a dask cluster: the same store as without one, killed processes, limits, and what is refused."""

import asyncio
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.forked import forked_workers
from helpers.stores import BOX, SMALL, assert_same_files, slabs_of, undisturbed
from helpers.waiting import free_port
from liver_dask.demo import ArchiveServer, RangeRequestHandler, serve
from liver_dask.store import levels as store_levels
from liver_dask.store import preflight as export_checks
from liver_dask.store.jobs import Job, open_runner


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("workers")
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0", "local_directory": folder}
    with forked_workers(), LocalCluster(**options) as cluster:
        client = Client(cluster, set_as_default=False)  # `with` makes it the current client
        yield client
        client.close()


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_and_asks_for_none_twice(
    client: Client, archive: Path, tmp_path: Path, server: ArchiveServer
) -> None:
    """A cluster writes the same files as threads do, and no strip or mask is fetched by two workers."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ld.to_zarr(ds, tmp_path / "here.zarr", progress=False, **SMALL)
    server.requests.clear()
    ld.to_zarr(ds, tmp_path / "there.zarr", client=client, progress=False, **SMALL)
    assert_same_files(tmp_path / "here.zarr", tmp_path / "there.zarr")
    asked: dict[str, list[tuple[int, int]]] = {}
    for request in server.requests:
        asked.setdefault(request.path, []).append((request.start, request.stop))
    sizes = {f"/{path.relative_to(archive)}": path.stat().st_size for path in archive.rglob("human*_*.*")}
    for path, ranges in asked.items():
        allowed = sizes[path]
        if path.endswith("_000.png"):
            allowed *= 2  # its beginning is also read before anything is written, maybe by another worker
        if path.endswith(".tif"):
            allowed += 4 * (512 + 16 * SHAPE[1])  # each of two workers reads the header, directory, offsets and counts
        assert sum(stop - start for start, stop in ranges) <= allowed, path
        strips = sorted(pair for pair in ranges if pair[0] and pair[1] < sizes[path] - 16 * SHAPE[1])
        assert all(a[1] <= b[0] for a, b in pairwise(strips)), path


@pytest.mark.slow
def test_a_cluster_makes_the_same_levels(
    client: Client, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster writes the same files of pyramid levels as threads do."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 100)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    ld.to_zarr(ds, tmp_path / "here.zarr", progress=False, pyramid=True, **SMALL)
    ld.to_zarr(ds, tmp_path / "there.zarr", client=client, progress=False, pyramid=True, **SMALL)
    assert (tmp_path / "there.zarr" / "pyramid" / "s3").is_dir()
    assert_same_files(tmp_path / "here.zarr", tmp_path / "there.zarr")


@pytest.mark.slow
def test_a_cluster_verifies_as_threads_do(client: Client, archive: Path, tmp_path: Path, server: ArchiveServer) -> None:
    """`verify` returns the same report over a cluster as in threads, for an intact and for a damaged store."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=["er"])
    path = Path(ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL))
    assert ld.verify(path, client=client, progress=False) == ld.verify(path, progress=False)
    shard = path / "raw" / "c" / "0" / "1" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    found = ld.verify(path, client=client, progress=False)
    assert found == ld.verify(path, progress=False)
    assert not found.ok


class CountsConnections(RangeRequestHandler):
    """Counts the connections that are open, and keeps the maximum; the test resets both."""

    lock = threading.Lock()
    now = most = 0

    def setup(self) -> None:
        super().setup()
        with self.lock:
            CountsConnections.now += 1
            CountsConnections.most = max(self.most, self.now)

    def finish(self) -> None:
        super().finish()
        with self.lock:
            CountsConnections.now -= 1

    def send(self, *args) -> None:
        time.sleep(0.01)  # so that requests overlap
        super().send(*args)


@pytest.mark.slow
def test_all_workers_together_keep_to_one_limit(client: Client, archive: Path, tmp_path: Path) -> None:
    """All workers together open at most as many connections as `connections` allows."""
    CountsConnections.now = CountsConnections.most = 0
    with serve(archive, CountsConnections) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=3)
        ld.to_zarr(ds, tmp_path / "a.zarr", client=client, progress=False, **SMALL)
    assert 2 <= CountsConnections.most <= 3


@pytest.mark.slow
def test_computed_variables_are_computed_once_wherever_their_blocks_are_cut(
    client: Client, server: ArchiveServer, tmp_path: Path, voxels
) -> None:
    """Strips of raw are fetched once although blocks of computed variables lie in two regions; the voxels are right."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, chunk_rows=70).isel(y=slice(33, None))
    ds = ds.assign(small=(ds.raw // 256).astype("uint8"), both=(ds.raw.where(ds.mito > 0, 0))).drop_vars("nucleus")
    ld.to_zarr(ds, tmp_path / "a.zarr", client=client, progress=False, **SMALL)
    of_raw = [request for request in server.requests if "raw" in request.path and request.stop - request.start > 20_000]
    assert len({(request.path, request.start) for request in of_raw}) == len(of_raw) > 0
    stored = xr.open_zarr(tmp_path / "a.zarr")
    raw, mito = voxels["raw"][:, 33:], voxels["mito"][:, 33:]
    np.testing.assert_array_equal(stored.small, (raw // 256).astype("uint8"))
    np.testing.assert_array_equal(stored.both, np.where(mito > 0, raw, 0))
    np.testing.assert_array_equal(stored.raw, raw)
    np.testing.assert_array_equal(stored.mito, mito)
    np.testing.assert_array_equal(stored.er, voxels["er"][:, 33:])


class Waits(RangeRequestHandler):
    """Waits before each answer, so that there is time to kill a process; from request `quick_requests` on, for 5 s."""

    quick_requests = math.inf

    def send(self, *args) -> None:
        time.sleep(0.03 if len(self.server.archive.requests) < self.quick_requests else 5)
        super().send(*args)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """The address of a scheduler, and the processes of the scheduler and its two workers by name."""
    address = f"tcp://127.0.0.1:{free_port()}"
    options = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    environ = os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s", "PYTHONWARNINGS": "ignore"}
    started = {}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", address.rpartition(":")[2], *options]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", *options]
    try:
        for name, call in (("scheduler", scheduler), ("one", worker), ("two", worker)):
            with (tmp_path / f"{name}.log").open("wb") as log:
                started[name] = subprocess.Popen(call, stdout=log, stderr=log, env=environ, cwd=tmp_path)
        yield address, started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


DRIVER = f"""
import sys
import liver_dask as ld
from distributed import Client
with Client(sys.argv[1], timeout=20) as client:
    client.wait_for_workers(int(sys.argv[4]), timeout=30)
    ds = ld.open_human_liver_em(sys.argv[2], shape={SHAPE})
    ld.to_zarr(ds, sys.argv[3], client=client, bounding_box={BOX}, **{SMALL})
"""


def begin(address: str, url: str, store: Path, workers: int = 2) -> subprocess.Popen[str]:
    """Start the driver in a process of its own, and return the process once it has written a slab."""
    environ = os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, url, str(store), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    deadline = time.monotonic() + 60
    while not slabs_of(store):
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return driver


@pytest.fixture
def expected(archive: Path, tmp_path: Path) -> Path:
    """The store that an undisturbed run without a cluster writes."""
    return undisturbed(archive, tmp_path, "expected.zarr")


def assert_same_chunks(one: Path, other: Path) -> None:
    """Compare the shards only, because the records contain the port of the server."""
    for name in ("raw", "mito", "er", "nucleus"):
        assert_same_files(one / name / "c", other / name / "c")


@pytest.mark.slow
def test_a_killed_worker_costs_what_it_was_at(archive: Path, tmp_path: Path, processes, expected: Path) -> None:
    """An export finishes after one of its workers was killed, with the same shards as an undisturbed run."""
    address, started = processes
    with serve(archive, Waits) as server:
        driver = begin(address, server.url, tmp_path / "a.zarr")
        started["one"].send_signal(signal.SIGKILL)
        _, told = driver.communicate(timeout=90)
        assert driver.returncode == 0, told
    assert_same_chunks(tmp_path / "a.zarr", expected)


@pytest.mark.slow
def test_a_killed_driver_leaves_work_that_the_same_call_goes_on_with(
    archive: Path, tmp_path: Path, processes, expected: Path
) -> None:
    """After the driver was killed, the same call finishes the store, with the same shards as an undisturbed run."""
    address, _ = processes
    with serve(archive, Waits) as server:
        first = begin(address, server.url, tmp_path / "a.zarr")
        first.kill()
        first.communicate()
        driver = begin(address, server.url, tmp_path / "a.zarr")
        _, told = driver.communicate(timeout=90)
        assert driver.returncode == 0, told
    assert_same_chunks(tmp_path / "a.zarr", expected)
    assert not (tmp_path / "a.zarr.partial").exists()


@pytest.mark.slow
def test_a_killed_scheduler_is_reported_and_another_cluster_goes_on(
    archive: Path, tmp_path: Path, processes, expected: Path
) -> None:
    """After the scheduler was killed, the driver's error says so, and a call without a cluster finishes the store."""
    address, started = processes
    with serve(archive, Waits) as server:
        driver = begin(address, server.url, tmp_path / "a.zarr")
        started["scheduler"].send_signal(signal.SIGKILL)
        _, told = driver.communicate(timeout=90)
        assert driver.returncode == 1
        assert "ExportError: The cluster is gone" in told
        assert "the same call goes on from there" in told
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
    assert_same_chunks(tmp_path / "a.zarr", expected)


def test_a_result_whose_worker_is_lost_while_it_is_fetched_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor of distributed takes it for an error, which would end the run."""
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        gather, lost = client._gather, []

        async def gather_late(futures, *arguments, **named):
            futures = futures if isinstance(futures, list) else [futures]
            (found,) = await gather(futures, *arguments, **named)
            if not lost:
                lost.extend(cluster.scheduler.workers)
                await cluster.scheduler.remove_worker(lost[0], stimulus_id="lost")
                while any(future.status == "finished" for future in futures):
                    await asyncio.sleep(0.01)
            return found

        monkeypatch.setattr(client, "_gather", gather_late)
        found: list[object] = []
        jobs = iter([Job("one", dict, (), fetches=False)])
        with open_runner(client, lambda report: None) as runner:
            runner.run_all(1, lambda: next(jobs, None), lambda what, future: found.append(future.result()))
    assert lost
    assert found == [{}]


@pytest.mark.slow
def test_ctrl_c_stops_and_says_how_to_go_on(archive: Path, tmp_path: Path, expected: Path) -> None:
    """A second Ctrl-C ends the command with the folder of what is kept, no traceback; the same command then works."""
    store = tmp_path / "a.zarr"
    box = [str(number) for number in BOX]
    command = [str(Path(sys.executable).with_name("liver-dask")), "download", str(store), "--bbox", *box]
    hesitant = type("Hesitant", (Waits,), {"quick_requests": 40})
    with serve(archive, hesitant) as server:
        command += ["--source", server.url, "--shape", *map(str, SHAPE), "--workers", "2"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while not slabs_of(store):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers, too
        assert process.stderr is not None
        while "under way; press Ctrl-C again to stop now" not in (line := process.stderr.readline()):
            assert line, "it has ended, and said nothing"
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 1, told
        assert "Traceback" not in told
        assert re.search(r"Interrupted\..* is kept in .*a\.zarr\.partial; the same call goes on from there", told)
        hesitant.quick_requests = math.inf
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr


def test_refused_with_numbers_before_anything_is_written(client: Client, archive: Path, tmp_path: Path) -> None:
    """An export with too little memory or disk, or with a wrong `client`, is refused before anything is written."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    wide = ld.open_human_liver_em(archive, shape=(597, 20000, 20000))
    deep = {"chunks": (64, 4096, 4096), "shards": (64, 4096, 4096)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**15))
        with pytest.raises(ld.InvalidArgumentError, match=r"worker tcp://.* GB of memory, of which .* and needs .* GB"):
            ld.to_zarr(wide, tmp_path / "a.zarr", client=client, progress=False, **deep)
        with pytest.raises(ld.InvalidArgumentError, match="this process has"):
            ld.to_zarr(wide, tmp_path / "a.zarr", progress=False, **deep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10_000))
        with pytest.raises(ld.InvalidArgumentError, match=r"needs about .* of disk, and .* has .* free"):
            ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)
    with pytest.raises(ld.InvalidArgumentError, match=r"is not a distributed\.Client"):
        ld.to_zarr(ds, tmp_path / "a.zarr", client="tcp://127.0.0.1:8786", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_workers_do_not_see_is_refused(
    client: Client, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that the workers do not see is refused, and nothing is written."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    monkeypatch.setattr(export_checks, "_sees", lambda partial: " (it does not)")
    with pytest.raises(ld.InvalidArgumentError, match=r"2 workers, tcp://.* for one, do not see"):
        ld.to_zarr(ds, tmp_path / "a.zarr", client=client, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_room_is_not_checked_where_that_is_switched_off(archive: Path, tmp_path: Path) -> None:
    """With `liver-dask.check-room` off, an export runs although no disk space seems to be free."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"liver-dask.check-room": False}):
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
        assert ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False)
