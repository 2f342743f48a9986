"""Computed variables: how much the plan says an export fetches for them, what it fetches, and what jobs are sent."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from unittest.mock import patch

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray as xr
from dask.array.core import normalize_chunks
from dask.local import get_sync
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from liver_dask.archive import reader
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import tiff
from liver_dask.archive.lazy.arrays import VolumeArray
from liver_dask.archive.lazy.lazy_window import LazyWindow
from liver_dask.archive.lazy.leaves import leaves_in
from liver_dask.archive.lazy.window import Window
from liver_dask.archive.remote.cache import MemoryCache
from liver_dask.archive.remote.http_transport import HttpTransport
from liver_dask.core import geometry
from liver_dask.core.threads import ContextPool
from liver_dask.demo import ArchiveServer, make_archive, serve
from liver_dask.store import computed
from liver_dask.store import finished as store
from liver_dask.store import layout as export_plan
from liver_dask.store.jobs import Report
from liver_dask.store.layout import Group, Layout, plan_batches, plan_layout
from liver_dask.store.plan import Export
from liver_dask.store.worker import Share, Task

SHAPE = (16, 256, 300)
ROWS = 64
LAYOUT = {"chunks": (4, 32, 64), "shards": (8, 128, 128)}
BLOCK_BYTES = ROWS * SHAPE[2] * 2
INDEX_BYTES = 2 * 512 + 16 * SHAPE[1]
"""Bytes that are fetched of a slice of raw besides its strips: header, directory, offsets and lengths."""

Change = Callable[[xr.Dataset], xr.DataArray]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    make_archive(folder, SHAPE)
    return folder


@pytest.fixture
def server(archive: Path) -> Iterator[ArchiveServer]:
    with serve(archive) as running:
        yield running


@pytest.fixture(autouse=True)
def larger_than_all_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches keep only strip indexes, and a job holds 12 blocks, because the real archive is larger than all caches."""
    monkeypatch.setattr(reader, "_memory", MemoryCache(16 * SHAPE[1] * SHAPE[0]))
    monkeypatch.setattr(tiff, "cached_rows", MemoryCache(0))
    monkeypatch.setattr(export_plan, "REGION_BYTES", 1)
    monkeypatch.setattr(computed, "HELD_BYTES", 12 * BLOCK_BYTES)


def opened(server: ArchiveServer, **options) -> xr.Dataset:
    return ld.open_human_liver_em(server.url, shape=SHAPE, labels=["mito"], chunk_rows=ROWS, **options)


def overlapping(raw: xr.DataArray, depth: tuple[int, int, int]) -> xr.DataArray:
    """Return the maximum of each voxel and its neighbours along z and y."""

    def greatest(block: np.ndarray) -> np.ndarray:
        found = block.copy()
        for ahead, behind in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            found[ahead] = np.maximum(found[ahead], block[behind])
            found[behind] = np.maximum(found[behind], block[ahead])
        return found

    return raw.copy(data=raw.data.map_overlap(greatest, depth=depth, boundary="none"))


COMPUTED: dict[str, tuple[Change, Mapping[str, float]]] = {
    "by the maximum": (lambda ds: ds.raw / ds.raw.max(), {"raw": 2}),
    "less the means of slices": (lambda ds: ds.raw - ds.raw.mean(("y", "x")), {"raw": 2}),
    "less the mean along z": (lambda ds: ds.raw - ds.raw.mean("z"), {"raw": 2}),
    "standardised": (lambda ds: (ds.raw - ds.raw.mean()) / ds.raw.std(), {"raw": 2}),
    "by a mean of what has another": (lambda ds: ds.raw / ((ds.raw - ds.raw.mean()) ** 2).mean(), {"raw": 3}),
    "overlap in z and y": (lambda ds: overlapping(ds.raw, (1, 1, 0)), {"raw": 1.1}),
    "sums along z": (lambda ds: ds.raw.cumsum("z"), {"raw": 1}),
    "where there is a label": (lambda ds: xr.where(ds.mito > 0, ds.raw, 0), {"raw": 1, "mito": 1}),
    "raw in other blocks": (lambda ds: ds.raw.chunk(z=4, y=50, x=100), {"raw": 1}),
    "a mask in other blocks": (lambda ds: ds.mito.chunk(z=4, y=50, x=100), {"mito": 1}),
    "two parts of a mask": (lambda ds: xr.concat([ds.mito[:8], ds.mito[8:]], "z"), {"mito": 1}),
    "twice": (lambda ds: ds.raw * 2, {"raw": 1}),
}


@pytest.fixture(scope="module")
def whole(archive: Path) -> xr.Dataset:
    """The Dataset with all its voxels in memory."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"])
    return ds.compute().chunk()


def fetched(server: ArchiveServer, variable: str) -> int:
    return sum(request.sent for request in server.requests if f"_{variable}_" in request.path)


def fetched_once(archive: Path, variable: str, folder: Path) -> int:
    with serve(archive) as server:
        ld.to_zarr(opened(server)[[variable]], folder / f"{variable}.zarr", progress=False, **LAYOUT)
        return fetched(server, variable)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_fetched_is_what_the_plan_says(
    archive: Path, server: ArchiveServer, tmp_path: Path, whole: xr.Dataset, name: str
) -> None:
    """An export fetches what its plan says, within 5 percent, and stores the right voxels; the plan fetches nothing."""
    change, most = COMPUTED[name]
    ds = change(opened(server)).transpose(*geometry.DIMS).to_dataset(name="changed")
    told = Export.plan(ds, tmp_path / "a.zarr", **LAYOUT).estimate().times
    assert server.requests == []
    path = ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)
    for variable, times in most.items():
        assert told[variable] <= times + 0.05
        really = fetched(server, variable) / fetched_once(archive, variable, tmp_path)
        assert 0.95 * told[variable] <= really <= 1.05 * told[variable]
    expected = change(whole).transpose(*geometry.DIMS)
    np.testing.assert_allclose(xr.open_zarr(path).changed, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "times"),
    [
        (lambda ds: ds.mito.cumsum("z"), "mito .* about 2.5"),
        (lambda ds: overlapping(ds.raw, (4, 60, 0)), "raw .* about"),
    ],
)
def test_what_would_be_fetched_too_often_is_refused_unless_allowed(
    server: ArchiveServer, tmp_path: Path, change: Change, times: str
) -> None:
    """An export that fetches a variable more often than `most-refetches` is refused before it sends any request."""
    ds = change(opened(server)).to_dataset(name="changed")
    with (
        dask.config.set({"liver-dask.most-refetches": 1.5}),
        pytest.raises(ld.InvalidArgumentError, match=rf"{times}.*most-refetches"),
    ):
        ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []
    with dask.config.set({"liver-dask.most-refetches": 99}):
        ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)


def test_what_all_regions_need_is_refused_where_it_is_large(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statistic for all regions that is larger than the limit is refused, with the advice to compute it before."""
    monkeypatch.setattr("liver_dask.store.preflight.MOST_OF_STATISTICS", 3)
    ds = opened(server)
    ds = (ds.raw / ds.raw.max()).to_dataset(name="changed")
    with pytest.raises(ld.InvalidArgumentError, match=r"\.compute\(\)"):
        ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)
    assert not (tmp_path / "a.zarr").exists()


def test_what_is_as_large_as_what_is_read_is_no_statistic(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An intermediate array as large as what is read is no statistic; its bytes count as held by a deep group."""
    monkeypatch.setattr(computed, "HELD_BYTES", 1 << 30)
    raw = ld.open_human_liver_em(archive, shape=SHAPE, chunk_rows=ROWS).raw.data
    work = computed.Work({"v": da.concatenate([np.sqrt(raw)] * 4)})
    layout = plan_layout((4 * SHAPE[0], *SHAPE[1:]), {"v": 8}, LAYOUT["chunks"], LAYOUT["shards"])
    group, _ = work.plan(layout, Group(("v",), (0, SHAPE[1]), True))
    assert work.statistics == []
    assert group.deep
    assert group.held >= SHAPE[0] * ROWS * SHAPE[2] * 8


@pytest.mark.slow
def test_a_statistic_is_computed_over_the_cluster(
    server: ArchiveServer, tmp_path: Path, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers compute a statistic: the driver fetches nothing of the archive, and the stored voxels are right."""
    ds = opened(server)
    ds = (ds.raw / ds.raw.max()).to_dataset(name="changed")
    fetched_here: list[object] = []  # a counter of this process would not do: whoever runs a job takes what it counted
    get = HttpTransport.get
    monkeypatch.setattr(HttpTransport, "get", lambda self, *args: fetched_here.append(args) or get(self, *args))
    shares, compute = [], Share.compute

    @wraps(compute)  # it is pickled by its name
    def computed_here(self: Share, report: Callable[[Report], None]) -> object:
        shares.append(self)
        return compute(self, report)

    monkeypatch.setattr(Share, "compute", computed_here)
    with LocalCluster(2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
        ld.to_zarr(ds, tmp_path / "a.zarr", client=client, progress=False, **LAYOUT)
        jobs = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert any("liver_dask" in name for name in jobs), jobs
    assert server.requests
    assert not fetched_here
    assert not shares
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").changed, whole.raw / whole.raw.max())


def test_a_run_that_goes_on_computes_the_statistic_anew(
    archive: Path, tmp_path: Path, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that resumes an export with a statistic finishes the store, with the right voxels."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, chunk_rows=ROWS)
    ds = (ds.raw / ds.raw.max()).to_dataset(name="changed")
    write_slab, written = store.write_slab, []

    def full(*args: object) -> None:
        written.append(args)
        if len(written) > 9:
            raise OSError("No space left on device")
        write_slab(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_slab", full)
        with pytest.raises(OSError, match="No space"):
            ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)
    ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").changed, whole.raw / whole.raw.max())


def test_a_graph_is_optimised_once_and_a_job_is_sent_its_part(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is optimised once per export, and each job is sent only its part of it."""
    optimised, sent = [], []
    optimize, write = computed.optimize, Task.write
    monkeypatch.setattr(computed, "optimize", lambda *arrays: optimised.append(arrays) or optimize(*arrays))
    monkeypatch.setattr(Task, "write", lambda task, report: sent.append(task) or write(task, report))
    ds = ld.open_human_liver_em(archive, shape=SHAPE, chunk_rows=16)
    ds = (ds.raw * 2).to_dataset(name="changed")
    ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)
    assert len(optimised) == 1
    whole = len(pickle.dumps(computed.Work({"changed": ds.changed.data}).tasks))
    assert len(sent) == 4
    assert max(len(pickle.dumps(task)) for task in sent) < whole / 2
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").changed, ds.changed)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize(
    ("dim", "wanted"), [("y", slice(5, None, -1)), ("x", slice(3, None, -1)), ("z", slice(None, None, -1))]
)
def test_blocks_that_are_cut_backwards(archive: Path, tmp_path: Path, dim: str, wanted: slice, is_fused: bool) -> None:
    """Blocks that are cut with a negative step are stored with the right voxels, on each axis and down to index 0."""
    slices = [tifffile.imread(archive / EMPIAR_13356.path("raw", z)) for z in range(6)]
    whole = xr.DataArray(np.stack(slices), dims=geometry.DIMS)

    def changed(raw: xr.DataArray) -> xr.DataArray:
        backwards, top = raw.isel({dim: wanted}), raw.isel({dim: slice(0, 6)})
        found = (backwards > 20000).sum(dim) + backwards.astype("int64").sum(dim)
        return (top + found).transpose(*geometry.DIMS)

    with dask.config.set({"optimization.fuse.active": is_fused}):
        ds = ld.open_human_liver_em(archive, shape=SHAPE, chunk_rows=256).isel(z=slice(6)).drop_vars(geometry.DIMS)
        raw = dask.optimize(ds)[0].raw
        for number, change in enumerate([changed, lambda array: array.isel({dim: wanted})]):
            path = ld.to_zarr(change(raw).to_dataset(name="v"), tmp_path / f"{number}.zarr", progress=False, **LAYOUT)
            np.testing.assert_array_equal(xr.open_zarr(path).v, change(whole))


@pytest.mark.parametrize(
    "change", [lambda ds: ds, lambda ds: ds * 2, lambda ds: ds.chunk(y=50), lambda ds: ds.mean("z")]
)
def test_the_windows_of_an_optimised_graph_are_found(archive: Path, change: Callable[[xr.Dataset], xr.Dataset]) -> None:
    """The reads of the archive are found in the graph of an optimised Dataset, for each variable."""
    options = {"shape": SHAPE, "labels": ["mito"]}
    engine = xr.open_dataset(archive, engine="liver_dask", chunks={}, **options)
    for ds in (ld.open_human_liver_em(archive, **options), engine, engine.isel(z=slice(1), y=slice(9))):
        (optimised,) = dask.optimize(change(ds))
        for name in ds.data_vars:
            windows = leaves_in(optimised[name].data)
            assert {window.read.name for window in windows} >= {name}
            assert {of.name for of in reader.readers_of(optimised[name].data)} >= {name}


def test_a_store_of_an_optimised_dataset_knows_its_files(server: ArchiveServer, tmp_path: Path) -> None:
    """The manifest of a store of an optimised Dataset lists the files that were read."""
    (ds,) = dask.optimize(opened(server).isel(z=slice(2)))
    ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, **LAYOUT)
    for name in ("raw", "mito"):
        manifest = json.loads((tmp_path / "a.zarr" / name / "manifest.json").read_bytes())
        expected = {f"{server.url}/{EMPIAR_13356.path(name, z)}" for z in (0, 1)}
        assert {source["url"] for source in manifest["sources"]} == expected


def test_what_a_cluster_keeps_outlives_a_change_of_the_source(archive: Path, tmp_path: Path) -> None:
    """A cluster returns the old voxels of a changed file while it holds them, and the new ones afterwards."""
    own = tmp_path / "archive"
    shutil.copytree(archive, own)

    def read(client: Client) -> np.ndarray:
        return client.compute(ld.open_human_liver_em(own, shape=SHAPE, chunk_rows=ROWS).raw[0].data).result()

    with LocalCluster(1, processes=False, dashboard_address=":0") as cluster, Client(cluster) as client:
        held = client.persist(ld.open_human_liver_em(own, shape=SHAPE, chunk_rows=ROWS).raw[0].data)
        before = held.compute()
        shutil.copyfile(own / EMPIAR_13356.path("raw", 1), own / EMPIAR_13356.path("raw", 0))
        os.utime(own / EMPIAR_13356.path("raw", 0), (1e9, 1e9))
        np.testing.assert_array_equal(read(client), before)
        del held
        while client.cluster.scheduler.tasks:
            time.sleep(0.01)
        np.testing.assert_array_equal(read(client), ld.open_human_liver_em(own, shape=SHAPE).raw[1])


class Counting:
    """A reader of random voxels that counts the rows it reads; its unpickled copies add to the same count."""

    slices_at_once = 1
    variant = files = ""

    def __init__(self, variable: str, shape: tuple[int, int, int]) -> None:
        self.name, self.shape = variable, shape
        self.is_from_the_top = variable != "raw"
        self.voxels = np.random.default_rng(0).integers(0, 9, shape, dtype="u2")

    def __call__(self, z, y, x, out: np.ndarray) -> None:
        rows_read.append(len(z) * len(y))
        out[...] = self.voxels[np.ix_(z, y, x)]

    def describe(self) -> str:
        return self.name

    def read_ahead(self, z, y) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


rows_read: list[int] = []

OPERATIONS: list[Callable[[da.Array], da.Array]] = [
    lambda a: a + 1,
    lambda a: a - a.max(),
    lambda a: a - a.mean(axis=0),
    lambda a: a - a.mean(axis=(1, 2))[:, None, None],
    lambda a: (a - a.mean()) / (a.std() + 1),
    lambda a: a - a[:1],
    lambda a: a.cumsum(axis=0),
    lambda a: a.cumsum(axis=1),
    lambda a: a[::-1, ::-1],
    lambda a: da.concatenate([a[:, 1::-1], a[:, :2], a[:, 4:]], axis=1),  # cuts a block twice, once backwards
    lambda a: da.concatenate([a[:1], a[1:] - a[:-1]]),
    lambda a: a.map_overlap(lambda b: b * 2, depth=(1, 1, 0), boundary="none"),
    lambda a: a.map_overlap(lambda b: b + 1, depth=(1, 2, 1), boundary="periodic"),
]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_regions_of_any_graph_are_right_and_read_as_often_as_planned(data: st.DataObject) -> None:
    """Random graphs give the right voxels in random regions, and read as many rows as the plan says."""
    shape = data.draw(st.tuples(st.integers(2, 9), st.integers(4, 40), st.integers(1, 8)))

    def chunks() -> tuple[int, ...]:
        return tuple(data.draw(st.integers(1, n)) for n in shape)

    array = counted(shape, data.draw(st.integers(2, shape[1])))
    if data.draw(st.booleans()):
        (array,) = dask.optimize(array)  # slicing cuts its blocks, while slicing a window makes another window
    for operation in data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=2)):
        array = operation(array)
    if data.draw(st.booleans()):
        array = array.rechunk(chunks())
    layout = in_rows_of_chunks(shape, chunks())
    with patch.object(computed, "HELD_BYTES", data.draw(st.sampled_from([0, 200, 2000, 1 << 20]))):
        work = computed.Work({"v": array})
        group, tally = work.plan(layout, Group(("v",), (0, shape[1]), True))
        assert tally.times["raw"] > 0
        told = rows_told(work, layout, group)
        found, rows = computed_by_regions(work, layout, group)
    np.testing.assert_allclose(found, array.compute(scheduler="sync"), rtol=1e-12)
    assert rows == told


@pytest.mark.slow
def test_an_export_is_planned_and_read_the_same_whatever_the_order_of_sets() -> None:
    """Processes with different seeds of hashes, and so orders of sets, plan the same reads, and read what they plan."""
    found = set()
    for seed in range(3):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", f"import {Path(__file__).stem} as test; test.print_rows_of_an_overlap()"]
        found.add(subprocess.check_output(command, cwd=Path(__file__).parent, env=environment, text=True))
    ((told, read),) = map(str.split, found)
    assert told == read


def print_rows_of_an_overlap() -> None:
    """Print the rows told and read for an array whose statistics are made from the same results of shares."""
    shape = (9, 14, 8)
    array = counted(shape, 6)
    array = (array - array[:1]).map_overlap(lambda b: b + 1, depth=(1, 2, 1), boundary="periodic").rechunk((9, 4, 1))
    layout = in_rows_of_chunks(shape, (8, 4, 2))
    with patch.object(computed, "HELD_BYTES", 2000):
        work = computed.Work({"v": array})
        group, _ = work.plan(layout, Group(("v",), (0, shape[1]), True))
        told = rows_told(work, layout, group)
        print(told, computed_by_regions(work, layout, group)[1])


def test_what_a_known_statistic_was_made_from_is_not_counted_for_a_job() -> None:
    """A job that needs the edge of a block reads only that, as told, even if a statistic was made from all of it."""
    shape = (9, 40, 4)
    (array,) = dask.optimize(counted(shape, 20))  # slicing cuts its blocks
    array = array.map_overlap(lambda b: b + 1, depth=(0, 1, 0), boundary="none") - array[:1, ::-1, :1]
    layout, group = in_rows_of_chunks(shape, (1, 2, 4)), Group(("v",), (0, shape[1]))
    work = computed.Work({"v": array})
    work.statistics = work._statistics(list(plan_batches(layout, [group], ())))
    assert work.statistics
    told = rows_told(work, layout, group)
    found, rows = computed_by_regions(work, layout, group)
    np.testing.assert_array_equal(found, array.compute(scheduler="sync"))
    assert rows == told


def counted(shape: tuple[int, int, int], rows: int) -> VolumeArray:
    """Return random voxels that count the rows read, in blocks of one slice and at most this number of rows."""
    lazy = LazyWindow(Counting("raw", shape), Window.whole(shape), np.dtype("u2"))
    return VolumeArray.of(lazy, normalize_chunks((1, rows, shape[2]), shape))


def in_rows_of_chunks(shape: tuple[int, int, int], chunks: tuple[int, ...]) -> Layout:
    """Return a layout in which each region is one row of chunks."""
    layout = plan_layout(shape, {"v": 8}, chunks, tuple(64 * length for length in chunks))
    return replace(layout, row_block=layout.chunks[1])


def rows_told(work: computed.Work, layout: Layout, group: Group) -> int:
    """Return the number of rows that are read for all regions, as planned for each job."""
    tally, _ = work._tally(list(plan_batches(layout, [group], ())), work.statistics, 10**6)
    return round(tally.times["raw"] * tally.extents["raw"].rows)


def computed_by_regions(work: computed.Work, layout: Layout, group: Group) -> tuple[np.ndarray, int]:
    """Return all voxels, computed as jobs do, and the number of rows that were read for that."""
    found = np.zeros(layout.shape)
    rows_read.clear()
    with ContextPool(2) as pool:
        for keys in work.statistics:
            ends = {}
            for tasks, wanted in work.partials(keys):
                ends |= zip(wanted, get_sync(tasks, wanted), strict=True)
            work.settle(keys, ends)
        for run in plan_batches(layout, [group], ()):
            rows = pickle.loads(cloudpickle.dumps(work.part(run))).rows(run, pool)
            for region in run.regions:
                z, y = slice(region.z_start, region.z_stop), slice(region.y_start, region.y_stop)
                found[z, y] = rows.read(region)["v"]
    return found, sum(rows_read)
