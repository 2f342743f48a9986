"""Opening, indexing and reading give the right voxels, and fetch no more bytes than they need."""

import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import liver_dask as ld
from helpers.archive import SHAPE, index_bytes, strip_bytes
from helpers.hostile import SideBySide
from helpers.processes import NewProcesses
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.lazy.arrays import VolumeArray
from liver_dask.demo import ArchiveServer, serve


def test_the_default_archive_opens_at_once_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the default archive makes no connection and gives the whole volume in blocks of full width."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was made"))
    ds = ld.open_human_liver_em()
    assert dict(ds.sizes) == {"z": 597, "y": 20000, "x": 20000}
    assert {name: str(variable.dtype) for name, variable in ds.data_vars.items()} == {
        "raw": "uint16", "mito": "uint8", "er": "uint8", "nucleus": "uint8"
    }  # fmt: skip
    assert ds.raw.data.chunksize == (1, 1024, 20000)
    assert ds.attrs["source"] == EMPIAR_13356.url
    assert ds.mito.attrs["flag_values"] == [0, 255]


def test_opening_asks_the_server_nothing(server: ArchiveServer) -> None:
    """Opening, slicing and printing send no request."""
    repr(ld.open_human_liver_em(server.url, shape=SHAPE).isel(z=slice(2, 5)))
    assert server.requests == []


def test_every_lazy_object_pickles_small() -> None:
    """Datasets, windows of them and lazy arrays pickle to less than 10 kB."""
    ds = ld.open_human_liver_em()
    window = ds.isel(z=slice(3, 400), y=slice(1493, 12000), x=slice(2219, 4267))
    for lazy in (ds, ds.raw, ds.raw.data, window, window.er, ds.raw[290, ::20, ::20], ds.raw.astype("uint8")):
        assert len(pickle.dumps(lazy)) < 10_000


def test_a_window_fetches_its_strips_and_the_index_and_nothing_else(server: ArchiveServer, archive: Path) -> None:
    """A window fetches its strips and the index; a second one fetches only the rows that are new."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ds.raw.isel(z=4, y=slice(100, 228), x=slice(20, 90)).compute()
    needed = strip_bytes(archive, 4, range(100, 228)) + index_bytes(archive, 4)
    assert server.bytes_sent <= needed * 1.05
    assert len(server.requests) <= 4
    before = len(server.requests)
    ds.raw.isel(z=4, y=slice(90, 220), x=slice(30, 60)).compute()
    assert len(server.requests) - before == 1, "the index was fetched again"
    assert server.requests[-1].sent <= strip_bytes(archive, 4, range(90, 100)), "or rows that were looked at"
    ds.raw.isel(z=4, y=slice(90, 228), x=slice(30, 60)).compute()
    assert len(server.requests) - before == 1, "a place that was looked at was fetched again"


def test_a_stride_fetches_only_the_strips_it_needs(server: ArchiveServer, archive: Path) -> None:
    """Every 60th row of a slice costs the strips of those rows and the index."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ds.raw[2, ::60, ::60].compute()
    needed = strip_bytes(archive, 2, range(0, SHAPE[1], 60)) + index_bytes(archive, 2)
    assert server.bytes_sent <= needed * 1.05


def opened_by_the_engine(url: str, **options) -> xr.Dataset:
    return xr.open_dataset(url, engine="liver_dask", shape=SHAPE, **options)


@pytest.mark.parametrize(
    "opened",
    [
        lambda url: ld.open_human_liver_em(url, shape=SHAPE),
        lambda url: opened_by_the_engine(url, chunks={}),
        lambda url: opened_by_the_engine(url),
        lambda url: opened_by_the_engine(url).isel(z=slice(2, None)).chunk().isel(z=slice(-2, None, -1)),
    ],
    ids=["open", "engine with chunks", "engine without", "chunked later"],
)
@pytest.mark.parametrize(
    "index",
    [
        lambda a: a[4][100:228][:, 20:90],
        lambda a: a.isel(z=4).isel(y=slice(100, 228)).isel(x=slice(20, 90)),
        lambda a: a[4][:240][100:228, 20:90],
        lambda a: a[4, 227:99:-1, 89:19:-1],
        lambda a: a.sel(z=4).isel(y=list(range(100, 228))).isel(x=slice(20, 90)),
        lambda a: a[np.int64(4)].sel(y=slice(100, 227)),
    ],
    ids=["two steps", "isel thrice", "slice of a slice", "backwards", "a list", "numpy int"],
)
def test_any_chain_of_indexes_fetches_only_what_is_left(
    server: ArchiveServer, archive: Path, voxels, index, opened
) -> None:
    """A chain of indexes gives the right voxels and fetches only the strips of the final selection."""
    whole = xr.DataArray(voxels["raw"], dims=("z", "y", "x"), coords={"z": range(10), "y": range(300)})
    raw = opened(server.url).raw
    if raw.z[0] != 0:
        whole = whole[8:1:-1]
    np.testing.assert_array_equal(index(raw), index(whole))
    assert server.bytes_sent <= (strip_bytes(archive, 4, range(100, 228)) + index_bytes(archive, 4)) * 1.05


@pytest.mark.parametrize("name", ["raw", "mito", "er", "nucleus"])
def test_the_whole_volume_equals_an_independent_reading(server: ArchiveServer, voxels, name: str) -> None:
    """Every voxel of each variable equals that of an independent reader."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, chunk_rows=64)
    np.testing.assert_array_equal(ds[name].to_numpy(), voxels[name])


def test_a_mask_is_fetched_no_further_than_its_last_row(server: ArchiveServer, archive: Path, voxels) -> None:
    """The top rows of a mask are read by one request of at most 64 KiB."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    np.testing.assert_array_equal(ds.er[3, :10].to_numpy(), voxels["er"][3, :10])
    size = (archive / EMPIAR_13356.path("er", 3)).stat().st_size
    assert server.bytes_sent <= min(size, 64 << 10), "more than the first request"
    assert len(server.requests) == 1


@pytest.mark.parametrize("scheme", ["folder", "file", "memory", "path with spaces"])
def test_the_same_voxels_from_any_file_system(archive: Path, tmp_path: Path, voxels, scheme: str) -> None:
    """A folder, a file URL, an fsspec URL and a path with spaces give the same voxels."""
    import fsspec

    url: object = archive
    if scheme == "file":
        url = archive.as_uri()
    elif scheme == "memory":
        fsspec.filesystem("memory").put(str(archive), "/liver", recursive=True)
        url = "memory://liver"
    elif scheme == "path with spaces":
        url = tmp_path / "an archive"
        url.symlink_to(archive)
    ds = ld.open_human_liver_em(url, shape=SHAPE)
    part = ds.isel(z=slice(3, 5), y=slice(50, 90), x=slice(11, 77)).compute()
    for name in voxels:
        np.testing.assert_array_equal(part[name], voxels[name][3:5, 50:90, 11:77])


def sum_of(array: xr.DataArray) -> int:
    return int(array.sum())


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_lazy_array_works_on_another_process(server: ArchiveServer, voxels, method: str) -> None:
    """A lazy array is read in a spawned or forked process, even after the parent has used threads."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    window = ds.raw.isel(z=3, y=slice(10, 200))
    window.compute()  # threads, connections and locks are in use before the fork
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool, dask.config.set(scheduler="sync"):
        assert pool.submit(sum_of, window).result(timeout=60) == voxels["raw"][3, 10:200].sum(dtype=int)


def test_a_dask_cluster_reads_it(server: ArchiveServer, voxels) -> None:
    """A worker of `distributed` computes on the lazy arrays."""
    from distributed import Client

    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    with Client(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0", processes=False) as client:
        total = client.compute(ds.raw.sum(dtype="int64")).result(timeout=60)
    assert int(total) == voxels["raw"].sum(dtype=int)


def test_other_chunks_are_whole_rows_all_the_same(server: ArchiveServer, archive: Path, voxels) -> None:
    """Chunking before cropping gives the same voxels, but fetches all rows of each block."""
    few = {"y": slice(100, 110), "x": slice(5, 9)}
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=[])
    sent = [0]
    for part in (ds.isel(few).chunk(y=50), ds.chunk(y=50, x=60).isel(few)):
        np.testing.assert_array_equal(part.raw[5], voxels["raw"][5, 100:110, 5:9])
        sent.append(server.bytes_sent)
    assert sent[2] - sent[1] > 3 * (sent[1] - index_bytes(archive, 5))


def test_the_engine_gives_the_same_dataset(server: ArchiveServer, archive: Path, voxels) -> None:
    """`xr.open_dataset(engine="liver_dask")` gives the same coordinates and voxels, and fetches only the window."""
    ds = xr.open_dataset(server.url, engine="liver_dask", chunks={}, shape=SHAPE, chunk_rows=100)
    xr.testing.assert_identical(
        ds.coords.to_dataset(), ld.open_human_liver_em(server.url, shape=SHAPE).coords.to_dataset()
    )
    assert ds.raw.chunks[1] == (100, 100, 100)
    np.testing.assert_array_equal(ds.raw[5, 100:120, 5:9], voxels["raw"][5, 100:120, 5:9])
    assert server.bytes_sent <= (strip_bytes(archive, 5, range(100, 120)) + index_bytes(archive, 5)) * 1.05
    plain = xr.open_dataset(server.url, engine="liver_dask", shape=SHAPE, labels="mito", drop_variables="raw")
    assert list(plain.data_vars) == ["mito"]
    np.testing.assert_array_equal(plain.mito[5][100:120][:, [5, 1, 8]], voxels["mito"][5, 100:120][:, [5, 1, 8]])


def test_the_engines_dask_arrays_are_those_of_open(archive: Path) -> None:
    """The dask arrays of the engine have the names and chunks of those of `open_human_liver_em`."""
    ours = ld.open_human_liver_em(archive, shape=SHAPE, chunk_rows=100)
    engine = opened_by_the_engine(archive, chunks={}, chunk_rows=100)
    later = opened_by_the_engine(archive, chunk_rows=100)
    for ds in (engine, later.chunk()):
        for name, variable in ours.data_vars.items():
            assert type(ds[name].data) is VolumeArray
            assert (ds[name].data.name, ds[name].chunks) == (variable.data.name, variable.chunks)
    window = {"z": 3, "y": slice(50, 200)}
    assert later.isel(window).chunk().raw.data.name == ours.isel(window).raw.data.name
    assert later.isel(window).chunk(x=200).raw.chunks == ours.isel(window).chunk(x=200).raw.chunks
    assert isinstance(pickle.loads(pickle.dumps(later)).chunk().raw.data, VolumeArray)
    loaded = later.isel(window).load()
    assert not isinstance(loaded.chunk().raw.data, VolumeArray)
    np.testing.assert_array_equal(loaded.chunk().raw, ours.isel(window).raw)


def test_without_dask_slices_are_read_side_by_side(archive: Path, voxels) -> None:
    """A line through all slices is read with several requests at a time, without dask, too."""

    class Asked(SideBySide):
        pass

    with serve(archive, Asked) as server:
        raw = opened_by_the_engine(server.url).raw
        np.testing.assert_array_equal(raw[::-1, 40, 5:9], voxels["raw"][::-1, 40, 5:9])
    assert Asked.most > 3


def test_options_may_come_from_dask_config(server: ArchiveServer) -> None:
    """Options are read from `liver-dask` in dask's configuration, and an argument takes precedence."""
    with dask.config.set({"liver-dask.chunk-rows": 77}):
        assert ld.open_human_liver_em(server.url, shape=SHAPE).raw.data.chunksize[1] == 77
        assert ld.open_human_liver_em(server.url, shape=SHAPE, chunk_rows=50).raw.data.chunksize[1] == 50


def test_the_voxel_size_is_what_was_given_or_said_to_be_unknown() -> None:
    """Without an argument there is no voxel size, and an attribute says that it is disputed."""
    attrs = ld.open_human_liver_em().attrs
    assert "voxel_size_nm" not in attrs
    assert "disputed" in attrs["voxel_size_source"]
    attrs = ld.open_human_liver_em(voxel_size_nm=(80, 8, 8)).attrs
    assert attrs["voxel_size_nm"] == [80, 8, 8]


def test_a_cache_dir_saves_index_and_masks_for_the_next_process(
    server: ArchiveServer, tmp_path: Path, new_processes: NewProcesses
) -> None:
    """A second process takes indexes and masks from `cache_dir`; truncated entries are fetched again."""
    script = (
        "import liver_dask as ld, sys; from liver_dask.core.metrics import traffic\n"
        f"ds = ld.open_human_liver_em({server.url!r}, shape={SHAPE}, cache_dir={str(tmp_path / 'kept')!r})\n"
        "print(int(ds.isel(z=1, y=slice(0, 9)).er.sum()), int(ds.raw[1, :9].sum()), traffic.requests)"
    )
    runs = [new_processes.run(script) for _ in range(2)]
    (mask, raw, requests), (mask_again, raw_again, requests_again) = map(str.split, runs)
    assert (mask, raw) == (mask_again, raw_again)
    assert (requests, requests_again) == ("4", "3")
    assert sorted(request.stop - request.start for request in server.requests[4:])[:2] == [1, 1], (
        "whether it is current"
    )
    for entry in (tmp_path / "kept").rglob("*"):
        if entry.is_file():
            entry.write_bytes(entry.read_bytes()[:-3])  # truncated, as by a full disk
    assert new_processes.run(script).split() == [mask, raw, requests]


def test_opening_is_quick() -> None:
    """The default archive opens in less than a second (0.2 s is the promise)."""
    began = time.perf_counter()
    ld.open_human_liver_em()
    assert time.perf_counter() - began < 1
