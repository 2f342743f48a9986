"""In lazy computations, blocks of a slice share what is prepared to read it, in one process and on a cluster."""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.graph_manipulation import bind, clone
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.forked import forked_workers
from helpers.masks import png_in_chunks
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import png, png_file
from liver_dask.demo import ArchiveServer, make_archive, serve

ROWS = 32
LABELS = ("mito", "er", "nucleus")


SMALL_REQUESTS = [
    (png_file, {"FIRST_REQUEST": 1000, "SMALLEST_REQUEST": 1000}),
    (png, {"MARGIN": 16, "MARGIN_LIMIT": 16, "PRIOR_ROWS": 16}),
]
"""Settings with which even a mask of some kilobytes takes several requests."""


@pytest.fixture(autouse=True)
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, values in SMALL_REQUESTS:
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


def ask_little_on_worker() -> None:
    for module, values in SMALL_REQUESTS:
        vars(module).update(values)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("workers")
    options = {"n_workers": 3, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "local_directory": folder}
    with forked_workers(), LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        client.run(ask_little_on_worker)
        yield client


def sent_of(server: ArchiveServer) -> Counter[str]:
    """Bytes that were requested of each path since the last call."""
    sent: Counter[str] = Counter()
    for request in server.requests:
        sent[request.path] += request.stop - request.start
    server.requests.clear()
    return sent


def opened(server: ArchiveServer) -> xr.Dataset:
    return ld.open_human_liver_em(server.url, shape=SHAPE, chunk_rows=ROWS)


def path_of(name: str, z: int) -> str:
    return f"/{EMPIAR_13356.path(name, z)}"


@pytest.mark.slow
def test_workers_together_fetch_each_mask_once(
    client: Client, server: ArchiveServer, archive: Path, voxels: dict[str, np.ndarray]
) -> None:
    """Three workers together fetch each mask at most once, and the results are right."""
    shares = client.compute((opened(server)[list(LABELS)] > 0).mean(("y", "x"))).result()
    for name in LABELS:
        np.testing.assert_allclose(shares[name], (voxels[name] > 0).mean((1, 2)))
    sent = sent_of(server)
    assert set(sent) == {path_of(name, z) for name in LABELS for z in range(SHAPE[0])}
    assert all(count <= (archive / path[1:]).stat().st_size for path, count in sent.items())


def test_workers_together_fetch_each_strip_index_once(
    client: Client, server: ArchiveServer, archive: Path, voxels: dict[str, np.ndarray]
) -> None:
    """Three workers together fetch the beginning of each file once, and in total little more than the files."""
    found = client.compute(opened(server).raw.astype("float64").sum(("y", "x"))).result()
    np.testing.assert_array_equal(found, voxels["raw"].astype("float64").sum((1, 2)))
    sizes = [(archive / path_of("raw", z)[1:]).stat().st_size for z in range(SHAPE[0])]
    beginnings = [request.path for request in server.requests if request.start == 0]
    assert sorted(beginnings) == sorted({*beginnings})
    assert sent_of(server).total() <= 1.01 * sum(sizes)  # gaps between byte ranges are fetched, too


def test_what_is_left_out_is_not_fetched(client: Client, tmp_path: Path) -> None:
    """A window fetches part of its mask (at most all, if cut after a computation on a cluster), and no other mask."""
    pixels = np.where(np.random.default_rng(0).random((300, 400)) < 0.3, 255, 0).astype(np.uint8)
    path = tmp_path / path_of("er", 3)[1:]
    path.parent.mkdir()
    path.write_bytes(png_in_chunks(pixels, 500))

    def get_from_workers(array: xr.DataArray) -> Any:
        return client.compute(array).result()

    with serve(tmp_path) as server:
        for get, is_windowed_first, share in (
            (xr.DataArray.compute, False, 0.4),
            (xr.DataArray.compute, True, 0.4),
            (get_from_workers, True, 0.4),
            (get_from_workers, False, 1.0),  # a worker does not know how much of the slice the others need
        ):
            mask = ld.open_human_liver_em(server.url, shape=(5, 300, 400), labels="er", chunk_rows=ROWS).er
            window = mask[3, 40:90, 10:] > 0 if is_windowed_first else (mask > 0)[3, 40:90, 10:]
            np.testing.assert_array_equal(get(window), pixels[40:90, 10:] > 0)
            sent = sent_of(server)
            assert set(sent) == {path_of("er", 3)}
            assert sent.total() <= share * path.stat().st_size


WAYS: dict[str, Callable[[da.Array], da.Array]] = {
    "map_blocks": lambda array: array.map_blocks(np.flip, axis=2),
    "rechunk": lambda array: array.rechunk((2, 70, 100)),
    "rechunk and a part": lambda array: array.rechunk((2, 70, 100))[1:3, 30:80, ::-3],
    "reduction": lambda array: array.sum(axis=(0, 2)),
    "block": lambda array: array.blocks[1, 2],
    "two culled parts": lambda array: da.concatenate([(array + 1)[:, :20], (array + 1)[:, 100:110]], axis=1),
    "one number": lambda array: (array * 2)[2],
    "rows backwards": lambda array: array[:, ::-1] + 1,
    "a list": lambda array: array[:, [5, 5, 200, 7]] + 1,
    "a column": lambda array: array[:, :, 7] + 1,
    "a row": lambda array: array[:, 70] + 1,
    "overlap": lambda array: array.map_overlap(lambda part: part + 1, (1, 2, 3), boundary="reflect"),
    "with itself": lambda array: array + array[:, ::-1],
    "clone": lambda array: clone(array) + array,
    "pickled": lambda array: pickle.loads(pickle.dumps(array + 1)),
    "optimized": lambda array: dask.optimize(array + 1)[0],
    "optimized and a part": lambda array: dask.optimize(array + 1)[0][:, 3:40],
    "copy": lambda array: array.copy(),
    "from delayed": lambda array: da.from_delayed(array.to_delayed()[1, 1, 0], (1, ROWS, SHAPE[2]), array.dtype),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raw", "er"])
@pytest.mark.parametrize("way", WAYS)
def test_dask_does_with_them_what_it_does_with_any(
    server: ArchiveServer, voxels: dict[str, np.ndarray], way: str, name: str
) -> None:
    """What dask does with graphs gives the same voxels as for an array in memory, with fusion on or off."""
    expected = WAYS[way](da.from_array(voxels[name], (1, ROWS, SHAPE[2]))).compute(scheduler="sync")
    for fused in (None, False):
        with dask.config.set({"optimization.fuse.active": fused}):
            np.testing.assert_array_equal(WAYS[way](opened(server)[name].data).compute(), expected)


@pytest.mark.parametrize("way", ["rechunk and a part", "two culled parts", "optimized and a part"])
def test_a_cluster_does_so_too(
    client: Client, server: ArchiveServer, voxels: dict[str, np.ndarray], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On a cluster, computed parts and persisted arrays are right, and the scheduler logs no conflict of tasks."""
    expected = WAYS[way](da.from_array(voxels["er"], (1, ROWS, SHAPE[2]))).compute(scheduler="sync")
    array = opened(server).er.data
    np.testing.assert_array_equal(client.compute(WAYS[way](array)).result(), expected)
    with client.as_current():
        kept = array.persist()
    np.testing.assert_array_equal(client.compute(WAYS[way](array)).result(), expected)
    np.testing.assert_array_equal(client.compute(kept).result(), voxels["er"])
    assert "run_spec" not in caplog.text


def test_a_look_takes_no_task_more(server: ArchiveServer) -> None:
    """The graph of one window of a slice has at most two tasks."""
    window = opened(server).er[3, 40:60, 10:300]
    assert len(dict(dask.optimize(window)[0].data.dask)) <= 2


def test_what_is_prepared_knows_its_size(server: ArchiveServer) -> None:
    """The size that a prepared part reports is, within 1000 bytes, that of its pickle."""
    part = opened(server).er.data.lazy.prepare(2)
    assert abs(len(pickle.dumps(part)) - part.__sizeof__()) < 1000


def test_missing_slices_are_zeros_on_every_worker(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a cluster missing slices are zeros with `missing="zeros"`, else an error that names the slice."""
    caplog.set_level(logging.ERROR)
    make_archive(tmp_path, (3, 100, 130))
    (tmp_path / EMPIAR_13356.path("er", 1)).unlink()
    (tmp_path / EMPIAR_13356.path("raw", 2)).unlink()
    with serve(tmp_path) as server:
        ds = ld.open_human_liver_em(server.url, shape=(3, 100, 130), labels="er", chunk_rows=20, missing="zeros")
        lazily = client.compute((ds > 0).any(("y", "x"))).result()
        assert lazily.er.values.tolist() == [True, False, True]
        assert lazily.raw.values.tolist() == [True, True, False]
        strict = ld.open_human_liver_em(server.url, shape=(3, 100, 130), labels="er", chunk_rows=20)
        with pytest.raises(ld.SliceNotFoundError, match="er, slice 1"):
            client.compute((strict.er > 0).sum()).result()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_blocks_of_any_window(small: tuple[Path, np.ndarray], data: st.DataObject) -> None:
    """Any block of any window, computed together with a part of the window, has the right pixels."""
    folder, mask = small
    array = ld.open_human_liver_em(folder, shape=mask.shape, labels="er", chunk_rows=data.draw(st.integers(1, 40)))
    key: list[Any] = []
    for length in mask.shape:
        start, stop = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)))
        step = data.draw(st.sampled_from([1, 1, 2, -1]))
        whole = slice(start, stop) if step > 0 else slice(stop - 1, start - 1 if start else None, -1)
        key.append(data.draw(st.sampled_from([slice(whole.start, whole.stop, step), start])))
    window, expected = array.er.data[tuple(key)], mask[tuple(key)]
    parts = [data.draw(st.integers(0, count - 1)) for count in window.numblocks]
    block = (window ^ 1).blocks[tuple(parts)] if parts else window ^ 1
    cut = tuple(
        slice(sum(lengths[:part]), sum(lengths[: part + 1])) for part, lengths in zip(parts, window.chunks, strict=True)
    )
    both = dask.compute(block, window[..., :1] if window.ndim else window, scheduler="sync")
    np.testing.assert_array_equal(both[0], (expected ^ 1)[cut])
    np.testing.assert_array_equal(both[1], expected[..., :1] if window.ndim else expected)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("small")
    make_archive(folder, (3, 90, 70))
    return folder, ld.open_human_liver_em(folder, shape=(3, 90, 70), labels="er", chunk_rows=90).er.values


MANIPULATED: dict[str, Callable[[da.Array], da.Array]] = {
    "clone": lambda array: clone(array),
    "clone of what is made of it": lambda array: clone(array + 0),
    "bind to a part of itself": lambda array: bind(array, array[:1] + 1),
    "bind to something else": lambda array: bind(array[:, 50:], da.ones(3)),
    "bind without itself": lambda array: bind(array + 0, da.ones(3), omit=array),
}


@pytest.mark.parametrize("name", ["raw", "mito"])
@pytest.mark.parametrize("way", MANIPULATED)
def test_graphs_that_are_cloned_and_bound(
    server: ArchiveServer, voxels: dict[str, np.ndarray], way: str, name: str
) -> None:
    """Arrays that dask has cloned or bound to others compute to the right voxels."""
    expected = voxels[name][:, 50:] if "else" in way else voxels[name]
    np.testing.assert_array_equal(MANIPULATED[way](opened(server)[name].data).compute(), expected)
