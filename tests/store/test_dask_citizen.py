"""What users of dask expect of a package that computes on a cluster."""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster, get_client

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.forked import forked_workers
from helpers.stores import BOX, SMALL
from helpers.waiting import wait_until
from liver_dask.archive.lazy import futures as held
from liver_dask.archive.remote.shares import pickled_plugin
from liver_dask.demo import RangeRequestHandler, serve
from liver_dask.store import jobs as team

QUIET = {"dashboard_address": "127.0.0.1:0", "threads_per_worker": 1}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster of one worker with one thread, where a task that waits for another one waits for ever."""
    with (
        forked_workers(),
        LocalCluster(n_workers=1, local_directory=tmp_path_factory.mktemp("one"), **QUIET) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


class Counts(RangeRequestHandler):
    """Counts the requests under way, and keeps the maximum; `counting` makes a class of its own for each test."""

    lock = threading.Lock()
    now = most = 0
    seconds = 0.03

    def send(self, *args) -> None:
        kind = type(self)
        with self.lock:
            kind.now += 1
            kind.most = max(kind.most, kind.now)
        time.sleep(self.seconds)
        with self.lock:  # before the answer, because the client may ask again as soon as it has it
            kind.now -= 1
        super().send(*args)


def counting(seconds: float) -> type[Counts]:
    return type("Counts", (Counts,), {"now": 0, "most": 0, "seconds": seconds})


def check(path: str | Path, voxels: dict[str, np.ndarray], box: tuple[int, ...] = BOX) -> None:
    x0, x1, y0, y1, z0, z1 = box
    for name, whole in voxels.items():
        np.testing.assert_array_equal(xr.open_zarr(path)[name].values, whole[z0:z1, y0:y1, x0:x1])


@pytest.mark.slow
def test_a_cluster_that_adapts_grows_while_it_writes(
    archive: Path, tmp_path: Path, voxels, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adaptive cluster without workers grows to its maximum in an export, which warns once that it has none."""
    monkeypatch.setattr(team, "SECONDS_WITHOUT_WORKERS", 0.0)
    handler, seen = counting(0.15), [0]
    with (
        serve(archive, handler) as server,
        forked_workers(),
        LocalCluster(n_workers=0, local_directory=tmp_path / "spill", **QUIET) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=0, maximum=4, interval="200ms", target_duration="500ms")
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=6)
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.1):
                seen.append(len(cluster.scheduler.workers))

        looking = threading.Thread(target=look)
        looking.start()
        with caplog.at_level(logging.WARNING, "liver_dask.store.jobs"):
            path = ld.to_zarr(ds, tmp_path / "a.zarr", client=client, progress=False, **SMALL)
        done.set()
        looking.join()
        check(path, voxels, (0, 420, 0, 300, 0, 10))
    assert max(seen) == 4
    assert 2 <= handler.most <= 6
    told = [record.getMessage() for record in caplog.records if "no worker" in record.getMessage()]
    assert len(told) == 1


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["client", "in force", "threads"])
def test_what_a_cluster_holds_can_be_kept(
    client: Client, archive: Path, tmp_path: Path, voxels, scheduler: str
) -> None:
    """`to_zarr` stores persisted variables, and what is computed from them, with every scheduler."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito", "er"])
    kept = ds[["raw"]].persist()
    mixed = kept.assign(twice=kept.raw * 2, er=ds.er, both=kept.raw + ds.mito, scaled=kept.raw / kept.raw.max())
    with dask.config.set(scheduler="threads" if scheduler == "threads" else None):
        path = ld.to_zarr(
            mixed,
            tmp_path / "a.zarr",
            client=client if scheduler == "client" else None,
            bounding_box=BOX,
            progress=False,
            **SMALL,
        )
    raw = voxels["raw"]
    check(
        path,
        {"raw": raw, "twice": raw * 2, "er": voxels["er"], "both": raw + voxels["mito"], "scaled": raw / raw.max()},
    )


def test_what_a_cluster_holds_is_got_once_for_what_all_regions_need(
    client: Client, archive: Path, tmp_path: Path, voxels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a statistic of all regions, persisted blocks are not gathered by every job, but at most three times each."""
    got_of, gather = [], held._gather
    monkeypatch.setattr(held, "_gather", lambda futures: got_of.extend(futures) or gather(futures))
    raw = ld.open_human_liver_em(archive, shape=SHAPE, chunk_rows=64).raw.persist()
    with dask.config.set(scheduler="threads"):
        ld.to_zarr((raw / raw.max()).to_dataset(), tmp_path / "a.zarr", progress=False, **SMALL)
    check(tmp_path / "a.zarr", {"raw": voxels["raw"] / voxels["raw"].max()}, (0, SHAPE[2], 0, SHAPE[1], 0, SHAPE[0]))
    assert len(got_of) <= 3 * raw.data.npartitions


def test_what_another_cluster_holds_or_none_any_more_is_refused(client: Client, archive: Path, tmp_path: Path) -> None:
    """Blocks that another cluster holds, or that were lost, are refused before anything is written."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=[])
    with Client(n_workers=1, processes=False, set_as_default=False, **QUIET) as other:
        kept = other.persist(ds.raw)
        with pytest.raises(ld.InvalidArgumentError, match=r"holds blocks of the Dataset, and .* is to do the work"):
            ld.to_zarr(kept.to_dataset(), tmp_path / "a.zarr", client=client, progress=False)
        other.cancel(kept)
        with pytest.raises(ld.InvalidArgumentError, match="has lost them"):
            ld.to_zarr(kept.to_dataset(), tmp_path / "a.zarr", client=client, progress=False)
    assert not list(tmp_path.iterdir())


def write_inside(archive: Path, path: Path, with_client: bool) -> str:
    """Write a store from within a task, with the client of its worker or with none."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    client = get_client() if with_client else None
    return ld.to_zarr(ds, path, client=client, bounding_box=BOX, progress=False, **SMALL)


def jobs_seen(dask_scheduler) -> int:
    return sum(  # not all states: those before may be released at any time
        prefix.state_counts["processing"] for name, prefix in dask_scheduler.task_prefixes.items() if "liver" in name
    )


@pytest.mark.slow
@pytest.mark.parametrize("with_client", [True, False])
def test_a_task_of_a_cluster_of_one_thread_may_write_a_store(
    client: Client, archive: Path, tmp_path: Path, voxels, with_client: bool
) -> None:
    """A task on the only thread of a cluster can write a store; only if it gives the client, it submits jobs."""
    before = client.run_on_scheduler(jobs_seen)
    path = client.submit(write_inside, archive, tmp_path / "a.zarr", with_client, pure=False).result(timeout=60)
    assert (client.run_on_scheduler(jobs_seen) > before) == with_client
    check(path, voxels)
    assert client.submit(lambda: 1).result(timeout=20) == 1


@pytest.mark.slow
def test_the_client_in_force_is_used_as_by_all_of_dask(
    cluster: LocalCluster, archive: Path, tmp_path: Path, voxels
) -> None:
    """`to_zarr` and `verify` use the default client, unless the scheduler is set to threads or the client is closed."""
    client = Client(cluster)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)

    def jobs(call: Callable[[], object]) -> int:
        before = client.run_on_scheduler(jobs_seen)
        call()
        return client.run_on_scheduler(jobs_seen) - before

    options = {"bounding_box": BOX, "progress": False, **SMALL}
    assert jobs(lambda: ld.to_zarr(ds, tmp_path / "a.zarr", pyramid=True, **options)) > 0
    assert jobs(lambda: ld.verify(tmp_path / "a.zarr", progress=False)) > 0
    with dask.config.set(scheduler="threads"):
        assert jobs(lambda: ld.to_zarr(ds, tmp_path / "b.zarr", **options)) == 0
        assert jobs(lambda: ld.verify(tmp_path / "b.zarr", progress=False)) == 0
        assert jobs(lambda: ld.to_zarr(ds, tmp_path / "c.zarr", client=client, **options)) > 0
    client.close()
    ld.to_zarr(ds, tmp_path / "d.zarr", **options)
    for name in "abcd":
        check(tmp_path / f"{name}.zarr", voxels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda client: client.close(), "The client was closed before the work was done"),
        (lambda client: client.restart(), "The jobs were cancelled, or the cluster was restarted"),
    ],
)
def test_what_ended_the_work_is_reported(
    cluster: LocalCluster, archive: Path, tmp_path: Path, end: Callable[[Client], object], told: str
) -> None:
    """The error of an export whose client was closed or restarted says so."""
    with serve(archive, counting(0.2)) as server, Client(cluster, set_as_default=False) as client:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=2)
        ending = threading.Thread(target=lambda: (wait_until(lambda: server.requests), time.sleep(0.5), end(client)))
        ending.start()
        with pytest.raises(ld.ExportError, match=told):
            ld.to_zarr(ds, tmp_path / "a.zarr", client=client, progress=False, **SMALL)
        ending.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Consolidated metadata")  # filters belong to the process, and two threads set them
@pytest.mark.filterwarnings("ignore:Object at")
def test_two_calls_on_one_cluster_keep_to_one_limit(archive: Path, tmp_path: Path, voxels) -> None:
    """Two exports on one cluster together have at most as many requests under way as `connections` allows."""
    handler = counting(0.03)
    with (
        serve(archive, handler) as server,
        forked_workers(),
        LocalCluster(n_workers=2, local_directory=tmp_path / "spill", **(QUIET | {"threads_per_worker": 2})) as cluster,
        Client(cluster, set_as_default=False) as one,
        Client(cluster, set_as_default=False) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=2)

        def write(name: str, client: Client) -> str:
            return ld.to_zarr(ds, tmp_path / name, client=client, bounding_box=BOX, progress=False, **SMALL)

        for path in pool.map(write, ["a.zarr", "b.zarr"], [one, other]):
            check(path, voxels)
    assert handler.most == 2


def test_a_function_that_changed_its_name_is_reported_as_such(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that differs only in dask's name of a function is refused with that reason, and any other without it."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"])

    def changed(function: Callable) -> xr.Dataset:
        return ds.assign(half=(ds.raw.dims, da.map_blocks(function, ds.raw.data, dtype="uint16")))

    options = {"bounding_box": BOX, "progress": False, **SMALL}
    path = tmp_path / "a.zarr"
    ld.to_zarr(changed(lambda block: block // 2), path, **options)
    sentence = r"Only how half is computed has another name in dask.* a lambda or a function of a notebook"
    with pytest.raises(ld.StoreExistsError, match=sentence):
        ld.to_zarr(changed(lambda block: block // 2), path, **options)
    os.rename(path, tmp_path / "done.zarr")

    monkeypatch.setattr("liver_dask.store.writer.Store.complete", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ld.to_zarr(changed(lambda block: block // 2), path, **options)
    with pytest.raises(ld.StoreExistsError, match=sentence):
        ld.to_zarr(changed(lambda block: block // 2 + 0), path, **options)
    for other in (changed(lambda block: block // 2 + 0).drop_vars("mito"), ds.assign(mito=ds.raw // 2)):
        with pytest.raises(ld.StoreExistsError, match="is the unfinished store of another call") as told:
            ld.to_zarr(other, path, **options)
        assert "Only how" not in str(told.value)


@pytest.mark.skipif(
    importlib.util.find_spec("dask.array._array_expr") is None, reason="this dask has no arrays of expressions"
)
def test_arrays_of_expressions_are_refused_in_one_sentence(archive: Path) -> None:
    """If dask's query planning for arrays is on, opening the archive raises an InvalidArgumentError that says so."""
    script = (
        "import sys, liver_dask as ld, xarray as xr\n"
        "for call in (ld.open_human_liver_em, lambda url: xr.open_dataset(url, engine='liver_dask')):\n"
        "    try: call(sys.argv[1])\n"
        "    except ld.InvalidArgumentError as error: print(error)"
    )
    environ = os.environ | {"DASK_ARRAY__QUERY_PLANNING": "True"}
    done = subprocess.run([sys.executable, "-c", script, archive], capture_output=True, text=True, env=environ)
    printed = done.stdout.splitlines()
    assert len(printed) == 2, done.stdout + done.stderr
    assert all(line.startswith("dask's query planning for arrays is on") for line in printed), printed


def test_the_scheduler_needs_no_liver_dask(tmp_path: Path) -> None:
    """The plugin for the scheduler can be unpickled where liver_dask is not installed."""
    (tmp_path / "pickled").write_bytes(pickled_plugin())
    (tmp_path / "liver_dask.py").write_text("raise ImportError('not installed')")
    script = "import pickle; print(pickle.load(open('pickled', 'rb')).name)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "liver_dask-connections\n", done.stderr
