"""All workers of a cluster that read lazily share one limit of connections, whichever start, end or are killed."""

import asyncio
import importlib
import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from hypothesis import example, given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.forked import forked_workers
from helpers.waiting import wait_until
from liver_dask.archive.remote import ledger, shares
from liver_dask.archive.remote.ledger import Ledger, Told
from liver_dask.core.threads import cancel_unless
from liver_dask.demo import ArchiveServer, RangeRequestHandler, serve

MOST = 4


class Counts(RangeRequestHandler):
    """Counts open connections and requests under way, and answers slowly. A new class is made for each test."""

    lock: threading.Lock
    open: set[socket.socket]
    most: int
    busy: int
    busy_since: list[tuple[float, int]]
    seconds = 0.03

    def setup(self) -> None:
        super().setup()
        with self.lock:
            self.open.add(self.connection)
            self.open.difference_update([connection for connection in self.open if has_hung_up(connection)])
            type(self).most = max(self.most, len(self.open))

    def finish(self) -> None:
        super().finish()
        with self.lock:
            self.open.discard(self.connection)

    def send(self, *args: Any) -> None:
        with self.lock:
            type(self).busy += 1
            self.busy_since.append((time.monotonic(), self.busy))
        try:
            if not select.select([self.connection], [], [], self.seconds)[0]:  # otherwise the client has closed
                super().send(*args)
        finally:
            with self.lock:
                type(self).busy -= 1

    @classmethod
    def most_busy_after(cls, since: float) -> int:
        """The largest number of requests under way at once after a time."""
        return max([busy for began, busy in cls.busy_since if began > since], default=0)


def has_hung_up(connection: socket.socket) -> bool:
    """Whether the client has closed the connection, even if its thread here has not noticed."""
    established = 1  # the number of this state in Linux
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != established
    except OSError:
        return True


def counts() -> type[Counts]:
    """A handler class whose counts start at zero."""
    state = {"lock": threading.Lock(), "open": set(), "most": 0, "busy": 0, "busy_since": []}
    return type("CountsHere", (Counts,), state)


@contextmanager
def workers(count: int, folder: Path, **options: Any) -> Iterator[Client]:
    options = {"threads_per_worker": 6, "dashboard_address": "127.0.0.1:0", "local_directory": folder} | options
    with forked_workers(), LocalCluster(n_workers=count, **options) as cluster, Client(cluster) as client:
        client.run(take_short_turns)  # this imports the package, so that they start together
        yield client


def take_short_turns() -> None:
    """Shorten the turns in a worker, from which the scheduler gets its plugin."""
    vars(importlib.import_module("liver_dask.archive.remote.ledger"))["SECONDS_OF_A_TURN"] = 1.0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with workers(6, tmp_path_factory.mktemp("workers")) as client:
        yield client


def opened(url: str, connections: int = MOST) -> xr.Dataset:
    return ld.open_human_liver_em(url, shape=SHAPE, connections=connections, chunk_rows=16, labels=["mito"])


@pytest.mark.slow
@pytest.mark.parametrize("most", [MOST, 16], ids=["fewer than workers", "more than workers"])
def test_workers_that_read_lazily_keep_to_one_limit(client: Client, archive: Path, voxels, most: int) -> None:
    """Six workers that read lazily together open at most the allowed connections, and more than half of them."""
    handler = counts()
    with serve(archive, handler) as server:
        ds = opened(server.url, most)
        found = client.compute(ds).result()
    np.testing.assert_array_equal(found.raw, voxels["raw"])
    np.testing.assert_array_equal(found.mito, voxels["mito"])
    assert most / 2 < handler.most <= most


@pytest.mark.slow
def test_workers_take_turns(client: Client, archive: Path) -> None:
    """With more workers than connections each worker reads before four of them have finished, and the limit holds."""
    handler = counts()
    handler.seconds = 0.2
    with serve(archive, handler) as server:
        ds = opened(server.url)
        slices = [
            client.compute(ds.raw.isel(z=z, x=slice(0, 50)), workers=[worker], allow_other_workers=False)
            for z, worker in enumerate(client.scheduler_info()["workers"])
        ]
        assert len(slices) == 6
        wait_until(lambda: len({request.path for request in list(server.requests) if request.start}) == 6)
        unfinished = [future for future in slices if not future.done()]
        for future in slices:
            future.result()
    assert len(unfinished) > 2, "only two could read as soon as two others had ended"
    assert handler.most <= MOST


@pytest.mark.slow
def test_event_loops_that_stand_still_keep_to_the_limit(client: Client, archive: Path) -> None:
    """If the event loops of the workers are blocked, the limit of connections still holds."""
    handler = counts()
    handler.seconds = 0.2
    with serve(archive, handler) as server:
        future = client.compute(opened(server.url).raw[:7])
        time.sleep(3)  # until each worker has had its turn
        client.run(time.sleep, shares.SECONDS_FOR_A_LOOP + 3)  # blocks the event loops
        assert not future.done()
        future.result()
    assert handler.most <= MOST


@pytest.mark.slow
def test_a_worker_alone_has_all_of_them(client: Client, archive: Path) -> None:
    """A worker that reads alone gets more connections than its share of the limit."""
    handler = counts()
    with serve(archive, handler) as server:
        ds = opened(server.url, 6)
        worker = next(iter(client.scheduler_info()["workers"]))
        client.compute(ds.raw, workers=[worker], allow_other_workers=False).result()
        other = list(client.scheduler_info()["workers"])[1]
        client.compute(ds.raw, workers=[other], allow_other_workers=False).result()
        wait_until(lambda: not handler.open)
    assert handler.most_busy_after(0) > 3
    assert handler.most <= 6


@pytest.mark.slow
def test_an_export_and_lazy_reads_share_them(client: Client, archive: Path, tmp_path: Path) -> None:
    """An export and lazy reads on one cluster together keep to the limit."""
    handler = counts()
    with serve(archive, handler) as server:
        ds = opened(server.url)
        lazily = client.compute(ds.raw)
        ld.to_zarr(opened(server.url), tmp_path / "a.zarr", client=client, progress=False)
        lazily.result()
    assert handler.most <= MOST


@pytest.mark.slow
def test_a_killed_worker_gives_its_share_back_and_new_ones_get_theirs(archive: Path, tmp_path: Path, voxels) -> None:
    """The connections of a killed worker are used by others, new workers get a share, and the limit holds."""
    handler = counts()
    handler.seconds = 0.2
    with workers(2, tmp_path, threads_per_worker=4) as client, serve(archive, handler) as server:
        ds = opened(server.url).isel(z=slice(5))
        pids = client.run(os.getpid)
        future = client.compute(ds)
        wait_until(lambda: handler.most_busy_after(0) == MOST)
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        time.sleep(0.5)
        client.cluster.scale(4)  # and the nanny restarts the killed one
        killed = time.monotonic()
        wait_until(lambda: handler.most_busy_after(killed) == MOST)
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 4)
        found = future.result()
    np.testing.assert_array_equal(found.raw, voxels["raw"][:5])
    np.testing.assert_array_equal(found.mito, voxels["mito"][:5])
    assert handler.most <= MOST


@pytest.mark.slow
def test_workers_that_are_scaled_away_read_no_more(archive: Path, tmp_path: Path) -> None:
    """While a cluster shrinks from four workers to one, the limit holds."""
    handler = counts()
    handler.seconds = 0.3
    with workers(4, tmp_path, threads_per_worker=2) as client, serve(archive, handler) as server:
        futures = [client.compute(opened(server.url).raw.isel(z=z)) for z in range(10)]
        wait_until(lambda: len(readers(client)) == 4)
        client.cluster.scale(1)
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        time.sleep(3)
        assert handler.most <= MOST
        for future in futures:
            future.cancel()


def readers(client: Client) -> list[str]:
    """The workers that have joined to read."""

    def reads() -> bool:
        return any(share._visit and share._visit.has_joined for share in shares._shares.values())

    return [worker for worker, does in client.run(reads).items() if does]


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError("broken"), RuntimeError("refused")])
def test_a_message_to_the_scheduler_that_fails_is_sent_again(archive: Path, tmp_path: Path, error: Exception) -> None:
    """If registering with the scheduler fails once, it is repeated and the limit holds."""

    def fail_once(dask_worker: Any) -> None:
        remote = type(dask_worker.scheduler)
        found, failed = remote.__getattr__, []

        async def fail(**_: Any) -> None:
            failed.append(1)
            raise error

        def get(self: Any, name: str) -> Any:
            return fail if name == "register_scheduler_plugin" and not failed else found(self, name)

        remote.__getattr__ = get

    handler = counts()
    with workers(2, tmp_path, threads_per_worker=2) as client, serve(archive, handler) as server:
        client.run(fail_once)
        if isinstance(error, RuntimeError):  # as if there were no plugins: each worker has the whole limit
            client.compute(opened(server.url, 2).raw[:3]).result()
            wait_until(lambda: not handler.open)
            handler.most = 0
        client.compute(opened(server.url, 2).raw).result()
        assert 0 < handler.most <= 2


@pytest.mark.slow
def test_workers_that_are_threads_share_as_one_process(archive: Path, tmp_path: Path, voxels) -> None:
    """Workers that are threads of one process share the limit, and the process reads on after the cluster."""
    handler = counts()
    with workers(3, tmp_path, processes=False) as client, serve(archive, handler) as server:
        np.testing.assert_array_equal(client.compute(opened(server.url).raw).result(), voxels["raw"])
    with serve(archive, handler) as server:  # after the cluster has ended
        np.testing.assert_array_equal(opened(server.url).raw, voxels["raw"])
    assert 1 < handler.most <= MOST


def test_reading_that_blocks_the_event_loop_goes_on(archive: Path, voxels, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compute` in a coroutine reads, though it blocks the event loop of its cluster."""
    monkeypatch.setattr(shares, "SECONDS_FOR_A_LOOP", 0.5)

    async def read(url: str) -> xr.DataArray:
        async with LocalCluster(n_workers=1, processes=False, asynchronous=True, dashboard_address="127.0.0.1:0"):
            return opened(url).raw[0].compute(scheduler="threads")

    with serve(archive) as server:
        np.testing.assert_array_equal(asyncio.run(read(server.url)), voxels["raw"][0])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_of_a_worker_waits_for_nobody(
    archive: Path, tmp_path: Path, voxels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process forked from a worker reads without waiting for the worker's event loop."""
    monkeypatch.setattr(shares, "SECONDS_FOR_A_LOOP", 1000)
    with workers(1, tmp_path, processes=False), serve(archive) as server:
        ds = opened(server.url)
        ds.raw[0].compute(scheduler="threads")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply_async(ds.raw[1].compute, kwds={"scheduler": "single-threaded"}).get(20)
    np.testing.assert_array_equal(found, voxels["raw"][1])


def test_a_scheduler_that_cannot_share_out_is_reported(
    archive: Path, tmp_path: Path, voxels, caplog: pytest.LogCaptureFixture
) -> None:
    """If the scheduler lacks this package, reads succeed and a log message gives the limit of each worker."""

    def refuse(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'liver_dask'")

    with workers(1, tmp_path, processes=False) as client, serve(archive) as server:
        client.cluster.scheduler.handlers["register_scheduler_plugin"] = refuse
        np.testing.assert_array_equal(client.compute(opened(server.url).raw[0]).result(), voxels["raw"][0])
    assert "each worker may have 4 connections, since ModuleNotFoundError" in caplog.text


class Worker:
    """A worker as the ledger sees it, with messages under way in both directions."""

    def __init__(self) -> None:
        self.visit = self.allowed = self.number = self.taken = 0
        self.reads = False
        self.told: deque[Told] = deque()
        self.tells: deque[tuple[str, int, int, int]] = deque()

    def tell(self, what: str) -> None:
        self.tells.append((what, self.visit, self.number, max(self.taken, self.allowed)))

    def act(self, what: str) -> None:
        if what == "join" and not self.reads:
            self.reads, self.allowed, self.number = True, 0, 0
            self.visit += 1
            self.tell("join")
        elif what == "leave" and self.reads and not self.taken:
            self.reads, self.allowed = False, 0
            self.tell("leave")
        elif what == "take" and self.reads and self.taken < self.allowed:
            self.taken += 1
        elif what == "end" and self.taken:
            self.taken -= 1
            if self.taken >= self.allowed:
                self.tell("hold")
        elif what == "hear" and self.told:
            told = self.told.popleft()
            if self.reads and told.visit == self.visit:
                self.allowed, self.number = told.allowed, told.number
                self.tell("hold")


ACTS = st.sampled_from(["join", "leave", "take", "take", "end", "hear", "hear", "deliver", "deliver", "die", "wait"])


CROSSING = "0 join, 0 deliver, 0 hear, 0 deliver, 1 join, 1 deliver, 0 hear, 1 leave, 1 deliver, 0 deliver, "
"""The first worker's message that it holds one crosses the scheduler's message that it may have two again."""


@settings(max_examples=300, deadline=None)
@example(
    2,
    [
        (int(act[0]), act[2:])
        for act in (CROSSING + "1 join, 1 deliver, 0 hear, 0 take, 0 take, 1 hear, 1 take").split(", ")
    ],
)
@given(most=st.integers(1, 5), acts=st.lists(st.tuples(st.integers(0, 6), ACTS), max_size=150))
def test_whatever_crosses_on_the_way_there_are_never_more(most: int, acts: list[tuple[int, str]]) -> None:
    """Whatever messages cross, workers never hold more connections than the limit, and all are shared out."""
    book, names, now = Ledger(most), [str(i) for i in range(7)], 0.0
    members = {name: Worker() for name in names}

    def settle() -> None:
        for name, told in book.settle(now):
            members[name].told.append(told)

    def act(name: str, what: str) -> None:
        worker = members[name]
        if what == "die":
            members[name] = Worker()
            members[name].visit = worker.visit + 100
            book.leave(name)
        elif what == "deliver" and worker.tells:
            kind, visit, number, held = worker.tells.popleft()
            if kind == "join":
                book.join(name, visit, held, now)
            elif kind == "hold":
                book.hold(name, visit, number, held)
            else:
                book.leave(name)
        else:
            worker.act(what)
        settle()
        assert sum(worker.taken for worker in members.values()) <= most
        assert sum(worker.allowed for worker in members.values() if not worker.taken) <= most

    for number, what in acts:
        now += what == "wait"
        act(names[number], what)
    readers = [name for name in names if members[name].reads]
    had = set()
    for _ in range(3 * len(names)):
        now += ledger.SECONDS_OF_A_TURN
        settle()
        for name in names:
            while members[name].taken:
                act(name, "end")
        while any(worker.told or worker.tells for worker in members.values()):
            for name in names:
                act(name, "hear")
                act(name, "deliver")
        had |= {name for name in readers if members[name].allowed}
        allowed = [members[name].allowed for name in readers]
        assert sum(allowed) == (most if readers else 0)
        assert not allowed or max(allowed) - min(allowed) <= 1
    assert had == set(readers)


def test_a_share_of_no_cluster_waits_for_nobody() -> None:
    """Without a cluster a share never waits, and gives the whole limit."""
    share = shares.share_of("http://nowhere", 3)
    with share, share, share, share:
        assert share.now == 3


@pytest.mark.slow
def test_reads_that_block_an_event_loop_again_and_again(server: ArchiveServer, voxels: dict[str, np.ndarray]) -> None:
    """Repeated reads that block the event loop of an asynchronous cluster all finish.

    The scheduler's message that gives leave arrives on the event loop, which waits for the read.
    """

    async def look() -> list[np.ndarray]:
        found = []
        options: dict[str, Any] = {"processes": False, "dashboard_address": "127.0.0.1:0"}
        async with (
            LocalCluster(n_workers=1, asynchronous=True, **options) as cluster,
            Client(cluster, asynchronous=True),
        ):
            ds = opened(server.url)
            until = time.monotonic() + 60
            for z in range(4):
                with cancel_unless(lambda: time.monotonic() < until):
                    found.append(ds.raw[z].compute(scheduler="threads").values)
                await asyncio.sleep(0)
        return found

    np.testing.assert_array_equal(asyncio.run(look()), voxels["raw"][:4])


def sum_of(array: xr.DataArray) -> int:
    return int(array.compute(scheduler="sync").sum())


@pytest.mark.slow
def test_a_worker_whose_event_loop_read_goes_on(server: ArchiveServer, voxels: dict[str, np.ndarray], tmp_path) -> None:
    """After reads on the workers' event loops by `client.run`, the workers stay and go on reading.

    Workers report no connections before the scheduler has the plugin that understands them.
    """
    options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "local_directory": tmp_path}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        ids = client.run(int)
        found = client.run(sum_of, opened(server.url).raw[0])
        assert set(found.values()) == {int(voxels["raw"][0].sum())}
        time.sleep(2)
        assert client.run(int).keys() == ids.keys()
        assert client.submit(sum_of, opened(server.url).raw[1]).result(timeout=60) == int(voxels["raw"][1].sum())
