"""Voxels at points are those that numpy gives, and are read from the strips that hold them and no others."""

import copy
import pickle
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE, counts_and_index
from helpers.counting import SHAPE as SMALL
from helpers.counting import WHOLE, CountingReader, volume_array
from helpers.forked import forked_workers
from helpers.hostile import SideBySide
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import slices
from liver_dask.archive.formats.png import PngSlice
from liver_dask.archive.lazy.arrays import VolumeArray
from liver_dask.archive.reader import readers_of
from liver_dask.demo import ArchiveServer, serve


class CountingPointReader(CountingReader):
    """A counting reader that can also read at points."""

    def read_points(self, z: int, y: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        self.read += len(y)
        out[:] = WHOLE[z, y, x]


def small_array() -> tuple[VolumeArray, CountingReader]:
    return volume_array(CountingPointReader)


def at_points(array: np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
    """The result that `vindex` must give: the points' axes come first, then the others."""
    pointed = [axis for axis, entry in enumerate(key) if not isinstance(entry, slice)]
    others = [axis for axis, entry in enumerate(key) if isinstance(entry, slice)]
    array = array.transpose(*pointed, *others)
    return array[tuple(key[axis] for axis in pointed)][..., *(key[axis] for axis in others)]


@st.composite
def point_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Keys of one or more arrays that broadcast together, with slices and numbers on the other axes."""
    points = draw(st.sampled_from([(1,), (7,), (40,), (2, 3), (1, 1, 4)]))
    one = draw(st.integers(0, len(shape) - 1))
    key: list[Any] = []
    for axis, length in enumerate(shape):
        number = st.integers(-length, length - 1)
        kind = "array" if axis == one else draw(st.sampled_from(["array", "array", "slice", "number"]))
        if kind == "array":
            part = draw(st.sampled_from([points, points, (*points[:-1], 1), points[-1:]]))
            values = draw(st.lists(number, min_size=int(np.prod(part)), max_size=int(np.prod(part))))
            index = np.array(values, draw(st.sampled_from(["i8", "i4", "i2"]))).reshape(part)
            key.append(index.tolist() if index.ndim == 1 and draw(st.booleans()) else index)
        else:
            key.append(draw(number.map(np.int32) if kind == "number" else st.slices(length)))
    return tuple(key)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_points_of_any_window_are_numpys(data: st.DataObject) -> None:
    """Any points of any window have numpy's voxels, and no voxels between them are read."""
    array, reader = small_array()
    cut = data.draw(st.sampled_from([np.s_[:], np.s_[::-1, 2:20:3], np.s_[1:, [3, 9, 4, 4]], np.s_[3], np.s_[:, :, 5]]))
    window, expected = array[cut], WHOLE[cut]
    key = data.draw(point_keys(expected.shape))
    found, expected = window.vindex[key], at_points(expected, key)
    assert isinstance(found, da.Array)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.compute(scheduler="sync"), expected)
    assert reader.read <= expected.size


def test_what_no_point_can_be_is_an_index_error() -> None:
    """Points that are out of bounds, of shapes that do not broadcast, or not of integers are an IndexError at once."""
    array, _ = small_array()
    for key in ([5, 0], [0, 0], [0, 0]), ([0], [-25], [0]), ([0, 1], [0, 1, 2], [0]), ([0.5], [0], [0]), ([True], [0]):
        with pytest.raises(IndexError):
            array.vindex[key]


def test_points_of_many_blocks_stay_in_order_where_they_are_no_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points whose voxels do not fit into one block come in the order in which they were given."""
    monkeypatch.setattr("liver_dask.archive.lazy.arrays.LARGEST_BLOCK", 200)
    array, _ = small_array()
    random = np.random.default_rng(1)
    key = tuple(random.integers(0, length, 300) for length in SMALL)
    found = array.vindex[key]
    assert found.npartitions > 1
    np.testing.assert_array_equal(found.compute(scheduler="sync"), WHOLE[key])
    rows = array.vindex[key[0], key[1]]
    np.testing.assert_array_equal(rows.compute(scheduler="sync"), WHOLE[key[0], key[1]])


def points(*indexes: Any, dims: tuple[str, ...] = ("point",)) -> dict[str, xr.DataArray]:
    return {dim: xr.DataArray(np.asarray(index), dims=dims) for dim, index in zip("zyx", indexes, strict=True)}


@pytest.mark.parametrize("opened", ["dask", "engine with chunks", "engine without"])
def test_points_fetch_their_strips_and_no_others(server: ArchiveServer, archive: Path, voxels, opened: str) -> None:
    """Points fetch only their strips and the strip indexes of their slices, and nothing until they are computed."""
    ds = opened_as(opened, server.url)
    z, y, x = [7, 0, 3], [10, 150, 290], [400, 3, 200]
    for name in ("raw", "er"):
        found = ds[name].isel(points(z, y, x))
        assert server.requests == [] or name == "er"
        np.testing.assert_array_equal(found, voxels[name][z, y, x])
        if name == "raw":
            sizes = [counts_and_index(archive, number) for number in z]
            needed = sum(int(counts[row]) + index for (counts, index), row in zip(sizes, y, strict=True))
            assert server.bytes_sent <= needed * 1.02
            assert len(server.requests) <= 4 * len(z)


def opened_as(opened: str, url: str | Path) -> xr.Dataset:
    """The archive, opened in one of the ways that users have."""
    if opened == "dask":
        return ld.open_human_liver_em(url, shape=SHAPE, chunk_rows=100)
    options = {"chunks": {}} if opened == "engine with chunks" else {}
    return xr.open_dataset(url, engine="liver_dask", shape=SHAPE, chunk_rows=100, **options)


@pytest.mark.parametrize("opened", ["dask", "engine with chunks", "engine without"])
def test_each_strip_of_many_points_is_fetched_once(server: ArchiveServer, archive: Path, voxels, opened: str) -> None:
    """Ten thousand points fetch each strip once, in at most six requests a slice."""
    random = np.random.default_rng(3)
    z, y, x = (random.integers(0, length, 10_000) for length in SHAPE)
    found = opened_as(opened, server.url).raw.isel(points(z, y, x))
    np.testing.assert_array_equal(found, voxels["raw"][z, y, x])
    strips = sum(sum(map(int, counts)) + index for counts, index in (counts_and_index(archive, i) for i in range(10)))
    assert server.bytes_sent <= 1.05 * strips
    assert len(server.requests) <= 6 * SHAPE[0]


def test_a_row_is_fetched_up_to_its_own_last_point(server: ArchiveServer, archive: Path, monkeypatch) -> None:
    """Of each row, only the part up to its own last point is fetched."""
    monkeypatch.setattr("liver_dask.archive.remote.files.GAP", 0)  # these strips are smaller than the default
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    for z in (1, 2):  # the first read learns which share of a strip is needed
        begun = server.bytes_sent
        y = np.arange(20, 280, 4)
        x = np.where(y == 40, SHAPE[2] - 1, 50)
        ds.raw.isel(points(np.full(len(y), z), y, x)).compute()
    counts, index = counts_and_index(archive, 2)
    assert server.bytes_sent - begun <= index + counts[40] + counts[y].sum() * 51 / SHAPE[2] * 1.2 + 48 * len(y)


def test_points_that_were_looked_at_cost_no_request(server: ArchiveServer, voxels) -> None:
    """Points in parts of rows that were read before, as a window or as points, take no request."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ds.raw[2, 100:120].compute()
    before = len(server.requests)
    some = points([2, 2, 2], [119, 100, 119], [7, 8, 9])
    np.testing.assert_array_equal(ds.raw.isel(some), voxels["raw"][2, [119, 100, 119], [7, 8, 9]])
    assert len(server.requests) == before
    ds.raw.isel(points([3, 3], [50, 60], [200, 300])).compute()
    before = len(server.requests)
    np.testing.assert_array_equal(ds.raw.isel(points([3, 3], [60, 50], [1, 200])), voxels["raw"][3, [60, 50], [1, 200]])
    assert len(server.requests) == before


@pytest.mark.parametrize("opened", ["dask", "engine with chunks", "engine without"])
def test_xarrays_ways_to_points(archive: Path, voxels, opened: str) -> None:
    """Xarray's ways of selecting points (nearest labels, two dims, lines, points of points) give the right voxels."""
    ds = opened_as(opened, archive)
    crop = ds.isel(z=slice(2, 9), y=slice(20, 280, 2), x=slice(400, 10, -1))
    for name, whole in voxels.items():
        near = crop[name].sel(points([2.2, 7.9, 4], [21.4, 98.3, 276.4], [12, 399.6, 45.6]), method="nearest")
        np.testing.assert_array_equal(near, whole[[2, 8, 4], [22, 98, 276], [12, 400, 46]])
        grid = ds[name].isel(points([[1, 9], [0, 1]], [[0, 299], [5, 5]], [[3, 3], [419, 0]], dims=("a", "b")))
        assert grid.dims == ("a", "b")
        np.testing.assert_array_equal(grid, whole[[[1, 9], [0, 1]], [[0, 299], [5, 5]], [[3, 3], [419, 0]]])
        line = {dim: xr.DataArray(np.arange(-9, 200, 20), dims="line") for dim in "yx"}
        through = ds[name].isel(z=slice(8, 2, -2)).isel(line)
        at = np.arange(-9, 200, 20)
        np.testing.assert_array_equal(through.transpose("z", "line"), whole[8:2:-2][:, at, at])
        rows = ds[name].isel(
            {key: index for key, index in points([4, 4, 2], [9, 200, 9], [0, 0, 0]).items() if key != "x"}
        )
        np.testing.assert_array_equal(rows.isel(x=slice(5, 50)), whole[[4, 4, 2], [9, 200, 9], 5:50])
        columns = ds[name].isel(z=points([4, 2], [0, 0], [9, 7])["z"], x=points([4, 2], [0, 0], [9, 7])["x"])
        np.testing.assert_array_equal(columns.transpose("point", "y"), whole[[4, 2], :, [9, 7]])
        again = ds[name].isel(points([1, 2, 3], [4, 5, 6], [7, 8, 9])).isel(point=[2, 0])
        np.testing.assert_array_equal(again, whole[[3, 1], [6, 4], [9, 7]])
        outer = ds[name].isel(z=[5, 0], y=[10, 200, 7], x=[0, 419])
        np.testing.assert_array_equal(outer, whole[np.ix_([5, 0], [10, 200, 7], [0, 419])])


def test_points_near_each_other_are_interpolated_from_what_is_around_them(
    server: ArchiveServer, archive, voxels
) -> None:
    """`interp` at points that are close together gives the right values and fetches only the rows around them."""
    pytest.importorskip("scipy")
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=[])
    z, y, x = [4.5, 4, 5.2], [100.5, 103, 101], [20, 31.5, 29]
    found = ds.interp({dim: xr.DataArray(at, dims="point") for dim, at in zip("zyx", (z, y, x), strict=True)}).raw
    whole = xr.DataArray(voxels["raw"], dims=("z", "y", "x"))
    expected = whole.interp({dim: xr.DataArray(at, dims="point") for dim, at in zip("zyx", (z, y, x), strict=True)})
    np.testing.assert_allclose(found, expected)
    sizes = [counts_and_index(archive, number) for number in range(2, 8)]
    assert server.bytes_sent <= sum(int(counts[95:110].sum()) + index for counts, index in sizes)


@pytest.mark.parametrize(
    "options",
    [
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"tile": (32, 64), "compression": "zstd"},
        {"tile": (32, 64), "planarconfig": "separate"},
    ],
    ids=["deep strips", "tiles", "planes"],
)
def test_points_of_files_of_other_kinds(tmp_path: Path, options: dict[str, Any]) -> None:
    """Points of deep strips, tiles and planes have the right voxels and fetch each strip or tile about once."""
    pixels = np.random.default_rng(5).integers(0, 9000, (150, 203)).astype("u2")
    path = tmp_path / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir()
    stored = np.stack([pixels] * 3) if "planarconfig" in options else pixels
    tifffile.imwrite(path, stored, photometric="minisblack", metadata=None, **options)
    random = np.random.default_rng(6)
    y, x = random.integers(0, 150, 2000), random.integers(0, 203, 2000)
    with serve(tmp_path) as server:
        ds = ld.open_human_liver_em(server.url, shape=(1, 150, 203), labels=[])
        for some in (slice(3), slice(None)):
            found = ds.raw.isel(points(0 * y[some], y[some], x[some]))
            np.testing.assert_array_equal(found, pixels[y[some], x[some]])
        assert server.bytes_sent <= 2.2 * path.stat().st_size
        assert len(server.requests) <= 30


def test_points_of_missing_slices_are_zeros_and_named_where_they_are_not(archive: Path, tmp_path: Path, voxels) -> None:
    """Points of a missing slice are zeros with `missing="zeros"`, else an error that names the slice and the row."""
    for variable in ("raw", "er"):
        for z in (0, 2):
            path = tmp_path / EMPIAR_13356.path(variable, z)
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(archive / EMPIAR_13356.path(variable, z))
    at = points([2, 1, 0], [5, 6, 7], [8, 9, 300])
    for name in ("raw", "er"):
        lenient = ld.open_human_liver_em(tmp_path, shape=SHAPE, labels=["er"], missing="zeros")
        np.testing.assert_array_equal(lenient[name].isel(at), voxels[name][[2, 0, 0], [5, 0, 7], [8, 0, 300]])
        with pytest.raises(ld.SliceNotFoundError, match=f"{name}, slice 1, rows 6-6"):
            ld.open_human_liver_em(tmp_path, shape=SHAPE, labels=["er"])[name].isel(at).compute()


def test_an_array_of_points_knows_its_source(archive: Path) -> None:
    """An array of points knows the reader of its source, and its name is the same only for the same points."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    assert {of.name for of in readers_of(ds.raw.isel(points([1], [2], [3])).data)} == {"raw"}
    first, second = (ds.raw.isel(points([1, 4], [2, 3], [3, x])).data.name for x in (7, 8))
    assert first == ds.raw.isel(points([1, 4], [2, 3], [3, 7])).data.name != second


@pytest.mark.parametrize(
    "indexes",
    [
        {"z": xr.DataArray(range(10), dims="p"), "y": xr.DataArray(range(100, 110), dims="p"), "x": 7},
        {"y": xr.DataArray(range(100, 110), dims="p"), "x": xr.DataArray(range(10), dims="p")},
        {"z": xr.DataArray(np.arange(10).reshape(2, 5), dims=("p", "q")), "y": 7, "x": slice(3)},
    ],
    ids=["points", "a line through all slices", "two dims"],
)
def test_points_of_many_slices_are_read_side_by_side(archive: Path, indexes) -> None:
    """Points of many slices are read in parallel, with more than five requests in progress at once."""

    class Asked(SideBySide):
        pass

    with serve(archive, Asked) as server:
        ld.open_human_liver_em(server.url, shape=SHAPE).raw.isel(indexes).compute()
    assert Asked.most > 5


def same(array: Any) -> Any:
    return array


@pytest.mark.parametrize(
    "through",
    [
        lambda array: pickle.loads(pickle.dumps(array)),
        lambda array: dask.optimize(array)[0],
        lambda array: array.persist(),
        lambda array: array.map_blocks(same),
        lambda array: array.rechunk(7),
        lambda array: array[::-1][::-1],
        copy.deepcopy,
    ],
    ids=["pickle", "optimize", "persist", "map_blocks", "rechunk", "indexed", "deepcopy"],
)
def test_points_are_a_dask_array_like_any_other(archive: Path, voxels, through) -> None:
    """Arrays of points can be pickled, optimized, persisted, mapped, rechunked, indexed and copied like dask arrays."""
    random = np.random.default_rng(3)
    z, y, x = (random.integers(0, length, 60) for length in SHAPE)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    for name in ("raw", "mito"):
        array = ds[name].isel(points(z, y, x)).data
        np.testing.assert_array_equal(through(array).compute(), voxels[name][z, y, x])


@pytest.mark.slow
def test_a_cluster_reads_points(server: ArchiveServer, archive: Path, voxels) -> None:
    """Workers of a cluster read points right, and together fetch each strip about once."""
    from distributed import Client, LocalCluster

    random = np.random.default_rng(3)
    z, y, x = (random.integers(0, length, 500) for length in SHAPE)
    with (
        forked_workers(),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        Client(cluster),
    ):
        found = ld.open_human_liver_em(server.url, shape=SHAPE).isel(points(z, y, x)).compute()
    for name, whole in voxels.items():
        np.testing.assert_array_equal(found[name], whole[z, y, x])
    raw = sum(request.sent for request in server.requests if "raw" in request.path)
    strips = sum(int(counts.sum()) + index for counts, index in (counts_and_index(archive, i) for i in range(10)))
    assert raw <= 1.1 * strips


def test_many_points_of_a_mask_are_picked_some_rows_at_a_time(archive: Path, voxels, monkeypatch) -> None:
    """Points all over a mask are picked out of at most BYTES_OF_ROWS of pixels at a time, and are right."""
    monkeypatch.setattr(slices, "BYTES_OF_ROWS", 5000)
    at_once: list[int] = []
    read = PngSlice.read

    def noted(self: PngSlice, rows: np.ndarray, columns: slice, out: np.ndarray) -> None:
        at_once.append(out.nbytes)
        read(self, rows, columns, out)

    monkeypatch.setattr(PngSlice, "read", noted)
    random = np.random.default_rng(4)
    y, x = random.integers(0, SHAPE[1], 500), random.integers(0, SHAPE[2], 500)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    np.testing.assert_array_equal(ds.er.isel(points(0 * y + 3, y, x)), voxels["er"][3, y, x])
    assert len(at_once) > 10
    assert max(at_once) <= 5000
