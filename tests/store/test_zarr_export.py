"""Writing stores: every reader gets the same voxels, a store is complete or absent, and the next call resumes a run."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.places import REAL_IN_S3, contents, files_of, flip, in_both, read, remove, writable
from helpers.processes import NewProcesses
from helpers.stores import BOX, SMALL, SMALL_BOX, assert_same_files, check_store
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.lazy.window import Selection
from liver_dask.archive.reader import VolumeReader
from liver_dask.core.places import Place
from liver_dask.demo import ArchiveServer, serve
from liver_dask.store import finished as store
from liver_dask.store.estimate import METADATA_BYTES, METADATA_BYTES_OF_A_VARIABLE, Estimate, estimate, task_memory
from liver_dask.store.layout import Group, Region, plan_batches, plan_layout, rows_at_once
from liver_dask.store.plan import Export
from liver_dask.store.storage import claims
from liver_dask.store.zarr_store import zarr_store

LAYOUTS = {}, SMALL, {"chunks": (3, 50, 70), "shards": (3, 100, 70)}
WHOLE, LAST = (0, 420, 0, 300, 0, 10), (419, 420, 299, 300, 9, 10)


@in_both(
    "layout, box",
    product(LAYOUTS, (BOX, WHOLE, LAST)),
    [({}, WHOLE), (SMALL, SMALL_BOX), (LAYOUTS[2], LAST)],
)
def test_every_reader_gets_the_voxels_of_the_box(server: ArchiveServer, place: Place, voxels, layout, box) -> None:
    """zarr-python, tensorstore and xarray read the voxels of the box, in several boxes and layouts."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    assert ld.to_zarr(ds, place / "crop.zarr", bounding_box=box, progress=False, **layout) == str(place / "crop.zarr")
    check_store(place / "crop.zarr", voxels, box)


def test_open_zarr_gives_the_dataset_back(server: ArchiveServer, place: Place) -> None:
    """xr.open_zarr returns the Dataset with its global coordinates and attributes, and with the default layout."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, voxel_size_nm=(80, 8, 8))
    ld.to_zarr(ds, place / "crop.zarr", bounding_box=BOX, progress=False)
    path = zarr_store(place / "crop.zarr")
    crop = ds.isel(z=slice(1, 9), y=slice(21, 290), x=slice(37, 401))
    stored = xr.open_zarr(path)
    xr.testing.assert_identical(stored.compute(), crop.compute())
    assert stored.y.dtype == "int64"
    assert stored.raw.encoding["chunks"] == (8, 256, 256)
    assert stored.raw.encoding["shards"] == (8, 512, 512)
    assert json.loads(read(place / "crop.zarr" / "raw" / "zarr.json"))["dimension_names"] == ["z", "y", "x"]
    xr.testing.assert_identical(xr.open_zarr(path, consolidated=False).compute(), crop.compute())


def test_a_second_call_makes_no_request(server: ArchiveServer, place: Place) -> None:
    """A second call returns the same path without a request, and so does get_human_liver_em_paths."""
    paths = []
    for _ in range(2):
        paths.append(ld.get_human_liver_em_data(place, BOX, download=True, source=server.url, shape=SHAPE))
        requests, server.requests[:] = len(server.requests), []
    assert requests == 0
    assert paths[0] == paths[1] == str(place / "2e7a240f6ee7.zarr")  # MD5 of "37_401_21_290_1_9"
    found = ld.get_human_liver_em_paths(place, [BOX], source=server.url, shape=SHAPE)
    assert found == paths[:1]
    assert server.requests == []


@REAL_IN_S3
def test_nothing_there_and_no_download_is_torch_ems_error(server: ArchiveServer, place: Place, voxels) -> None:
    """A missing store without `download=True` is a RuntimeError, as in torch_em, and no folder is made."""
    with pytest.raises(RuntimeError, match="download=True"):
        ld.get_human_liver_em_data(place / "new", BOX, source=server.url, shape=SHAPE)
    with pytest.raises(ld.NotDownloadedError):
        ld.get_human_liver_em_paths(place / "new", full_volume=True, source=server.url, shape=SHAPE)
    with pytest.raises(ValueError, match="bounding_boxes"):
        ld.get_human_liver_em_paths(place / "new")
    assert files_of(place) == []
    (path,) = ld.get_human_liver_em_paths(place, full_volume=True, download=True, source=server.url, shape=SHAPE)
    assert path == str(place / "full_volume.zarr")
    check_store(place / "full_volume.zarr", voxels, (0, 420, 0, 300, 0, 10))


def test_empty_arrays_of_somebody_else_are_not_a_finished_store(server: ArchiveServer, place: Place) -> None:
    """A folder with Zarr arrays that this package did not write is refused."""
    for name in ("raw", *EMPIAR_13356.labels):
        zarr.create_array(writable(place / "full_volume.zarr" / name), shape=(1, 10, 10), dtype="u1")
    with pytest.raises(ld.StoreExistsError):
        ld.get_human_liver_em_full_volume(place, source=server.url, shape=SHAPE)


def test_changed_and_cropped_datasets_can_be_kept(server: ArchiveServer, place: Place, voxels) -> None:
    """Computed variables and cropped Datasets are written, and the box is in global coordinates. The store is refused
    for another box or data type.
    """
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=["mito"]).isel(z=slice(2, 8), x=slice(100, None))
    ds = (ds.assign(small=(ds.raw // 256).astype("float32"))).drop_vars("raw")
    path = place / "a.zarr"
    ld.to_zarr(ds, path, bounding_box=(120, 300, 10, 90, 3, 5), progress=False)
    stored = xr.open_zarr(zarr_store(path))
    assert list(stored.x.to_numpy()[[0, -1]]) == [120, 299]
    np.testing.assert_array_equal(stored.small, (voxels["raw"][3:5, 10:90, 120:300] // 256).astype("float32"))
    np.testing.assert_array_equal(stored.mito, voxels["mito"][3:5, 10:90, 120:300])
    assert ld.to_zarr(ds, path, bounding_box=(120, 300, 10, 90, 3, 5), progress=False) == str(path)
    for other in ((120, 300, 10, 90, 3, 6), (121, 300, 10, 90, 3, 5)):
        with pytest.raises(ld.StoreExistsError):
            ld.to_zarr(ds, path, bounding_box=other, progress=False)
    with pytest.raises(ld.StoreExistsError):
        ld.to_zarr(ds.astype("uint8"), path, bounding_box=(120, 300, 10, 90, 3, 5), progress=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda ds: ds.isel(z=3), "needs"),
        (lambda ds: ds.isel(z=slice(0, 0)), "no voxels"),
        (lambda ds: ds.transpose("x", "y", "z"), "needs"),
        (lambda ds: ds[[]], "no variables"),
    ],
)
def test_datasets_that_cannot_be_kept(archive: Path, place: Place, change, told: str) -> None:
    """A Dataset of another form or without voxels, and shards that are no whole number of chunks, are errors."""
    with pytest.raises(ld.InvalidArgumentError, match=told):
        ld.to_zarr(change(ld.open_human_liver_em(archive, shape=SHAPE)), place / "a.zarr", progress=False)
    with pytest.raises(ld.InvalidArgumentError, match="whole number of chunks"):
        ld.to_zarr(ld.open_human_liver_em(archive, shape=SHAPE), place / "a.zarr", shards=(8, 300, 256))
    assert files_of(place) == []


def test_a_failure_keeps_what_is_finished_and_the_next_call_fetches_the_rest(
    archive: Path, tmp_path: Path, place: Place
) -> None:
    """An error keeps what is finished, and the next call fetches the rest and completes the store."""
    box = (*SMALL_BOX[:5], 9)
    with serve(archive) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=["er"])
        ld.to_zarr(ds, place / "all.zarr", bounding_box=box, progress=False, **SMALL)
        all_bytes = server.bytes_sent
    broken = tmp_path / "archive"
    for folder in archive.iterdir():
        (broken / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            (broken / folder.name / file.name).symlink_to(file)
    missing = broken / EMPIAR_13356.path("raw", 8)
    missing.unlink()
    with serve(broken) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=["er"])
        with pytest.raises(ld.SliceNotFoundError, match="raw, slice 8") as told:
            ld.to_zarr(ds, place / "crop.zarr", bounding_box=box, progress=False, **SMALL)
        assert "is kept in" in told.value.__notes__[0]
        assert "crop.zarr/zarr.json" not in files_of(place)
        missing.symlink_to(archive / EMPIAR_13356.path("raw", 8))
        before = server.bytes_sent
        ld.to_zarr(ds, place / "crop.zarr", bounding_box=box, progress=False, **SMALL)
        assert server.bytes_sent - before < 0.5 * all_bytes
    for name in ("raw", "er"):
        assert_same_files(place / "crop.zarr" / name / "c", place / "all.zarr" / name / "c")


MEASURED = """
import json, sys, tracemalloc
import numpy as np, xarray as xr, liver_dask as ld
from liver_dask.store import computed, layout
from liver_dask.store.jobs import LOCAL_JOBS
from liver_dask.store.plan import Export

archive, (depth, height, width), held = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
layout.REGION_BYTES, computed.HELD_BYTES = 1, held
ds = ld.open_human_liver_em(archive, shape=(depth, height, width), chunk_rows=64)
ds = ds.assign(wide=ds.raw.astype("float64").pipe(np.sqrt))[["wide"]]
ds = xr.concat([ds] * 4, dim="z").assign_coords(z=np.arange(4 * depth))
grid = {"chunks": (2, 64, 64), "shards": (40, 320, 448)}
ld.to_zarr(ds, "warm.zarr", bounding_box=(0, 9, 0, 9, 0, 1), progress=False)
projected = LOCAL_JOBS * Export.plan(ds, "crop.zarr", **grid).estimate().memory
tracemalloc.start()
ld.to_zarr(ds, "crop.zarr", progress=False, **grid)
print(tracemalloc.get_traced_memory()[1], projected, ds.nbytes // 2 + LOCAL_JOBS * held)
"""
"""Prints the peak memory of an export, the plan's estimate, and half of the Dataset plus what jobs may hold."""


@pytest.mark.slow
@pytest.mark.parametrize("held", [0, 4 << 20])
def test_memory_is_bounded_by_what_is_projected_not_by_the_box(
    archive: Path, tmp_path: Path, new_processes: NewProcesses, held: int
) -> None:
    """The peak memory of an export stays below the plan's estimate, which is smaller than half of the Dataset plus what
    jobs may hold.
    """
    peak, projected, most = map(int, new_processes.run(MEASURED, archive, [*SHAPE], held, cwd=tmp_path).split())
    assert peak < projected < most


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 90)] * 3),
    chunks=st.tuples(*[st.integers(1, 9)] * 3),
    times=st.tuples(*[st.integers(1, 5)] * 3),
    itemsize=st.integers(1, 8),
)
def test_regions_and_shards_hold_every_voxel_once(shape, chunks, times, itemsize: int) -> None:
    """Each voxel is in one region, regions begin where chunks do, and each region is in one row of shards."""
    shards = tuple(chunk * n for chunk, n in zip(chunks, times, strict=True))
    layout = plan_layout(shape, {"raw": itemsize}, chunks, shards)
    covered = np.zeros(shape[:2], int)
    regions = list(layout.regions())
    for region in regions:
        covered[region.z_start : region.z_stop, region.y_start : region.y_stop] += 1
        assert region.z_start % chunks[0] == region.y_start % chunks[1] == 0
        assert region.z_stop - region.z_start <= chunks[0]
        assert region in layout.regions_of(layout.row_of("raw", region))
    assert (covered == 1).all()
    of_rows = [region for row in layout.shard_rows(["raw"]) for region in layout.regions_of(row)]
    assert sorted(of_rows) == sorted(regions)


@given(
    shape=st.tuples(*[st.integers(1, 90)] * 3),
    chunks=st.tuples(*[st.integers(1, 9)] * 3),
    times=st.tuples(*[st.integers(1, 12)] * 3),
    itemsizes=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    most=st.integers(1, 200_000),
)
def test_a_region_is_as_high_as_its_bytes_allow(shape, chunks, times, itemsizes: list[int], most: int) -> None:
    """A region has the most rows that divide a shard and fit into the bytes of a region, and no fewer than a chunk."""
    shards = tuple(chunk * n for chunk, n in zip(chunks, times, strict=True))
    with mock.patch("liver_dask.store.layout.REGION_BYTES", most):
        layout = plan_layout(shape, {str(i): size for i, size in enumerate(itemsizes)}, chunks, shards)
    for whole, length, chunk, shard in zip(layout.shards, shape, chunks, shards, strict=True):
        assert whole == min(shard, -(-length // chunk) * chunk), "shards are longer than the array, or too short"
    heights = [rows for rows in range(chunks[1], layout.shards[1] + 1, chunks[1]) if layout.shards[1] % rows == 0]
    fitting = [rows for rows in heights if rows * chunks[0] * shape[2] * sum(itemsizes) <= most]
    assert layout.row_block == max(fitting, default=chunks[1])
    group = Group(("0",), cuts=(0, 10, 40, 50))
    assert rows_at_once(layout, group) == layout.row_block + 30, "what is between two cuts is held, too"


def test_an_estimate_is_of_what_is_left() -> None:
    """What is written needs no requests, bytes and space any more; each group of variables counts for itself."""
    shape = (10, 300, 420)
    layout = plan_layout(shape, {"raw": 2, "er": 1, "mito": 1}, **SMALL)
    raw, masks = groups = [Group(("raw",)), Group(("er", "mito"), from_the_top=True, held=10**9)]
    sizes = {"raw": (2, 1.5), "er": (1, 0.5), "mito": (1, 0.25)}
    regions, shards = [*layout.regions()], int(np.prod(layout.shards_along))
    voxels, row = np.prod(shape), 4 * 128 * 420

    def left(*names: str, of: list[Region]) -> Estimate:
        written = frozenset((name, region) for name in names for region in of)
        return estimate(layout, groups, sizes, dict.fromkeys(groups, ()), written)

    nothing, some, all_masks, everything = (
        left(of=[]), left("raw", of=regions[:4]), left("er", "mito", of=regions), left("raw", "er", "mito", of=regions),
    )  # fmt: skip
    assert [of.regions for of in (nothing, some, all_masks)] == [2 * len(regions), 2 * len(regions) - 4, len(regions)]
    metadata = METADATA_BYTES + 3 * METADATA_BYTES_OF_A_VARIABLE
    assert nothing.disk == nothing.stored + 2.25 * row, "a row of shards is there twice"
    assert nothing.stored == 2.25 * voxels + metadata
    assert some.disk == pytest.approx(nothing.disk - 1.5 * voxels * 4 / len(regions), abs=1)
    assert all_masks.disk == 1.5 * (voxels + row) + metadata
    assert all_masks.stored == everything.stored == nothing.stored
    assert all_masks.tasks == len([*plan_batches(layout, [raw], ())]) + 3 * shards
    assert (everything.regions, everything.disk, everything.tasks) == (0, metadata, 3 * shards)
    assert nothing.memory == task_memory(layout, masks, sizes) == 10**9 + 4 * 2 * 420 * 2 * layout.row_block
    assert Estimate(0, 0, 0, 36 * 10**9, 0, 0, 0, 0, 0, {}).hours == pytest.approx({1.5e6: 20 / 3, 10e6: 1, 100e6: 0.1})


def test_an_estimate_is_what_an_export_does(server: ArchiveServer, tmp_path: Path) -> None:
    """An estimate is within some per cent of what is fetched and stored, and somewhat above the number of requests."""
    ds, path = ld.open_human_liver_em(server.url, shape=SHAPE)[["raw", "mito"]], tmp_path / "a.zarr"
    told = Export.plan(ds, path).estimate()
    assert server.requests == []
    ld.to_zarr(ds, path, progress=False)
    assert len(server.requests) <= told.requests <= 1.5 * len(server.requests)
    assert told.fetched == pytest.approx(server.bytes_sent, rel=0.1)
    assert told.stored == pytest.approx(sum(map(len, contents(path).values())), rel=0.2)
    metadata = METADATA_BYTES + 2 * METADATA_BYTES_OF_A_VARIABLE
    assert told.disk == 2 * told.stored - metadata, "the slabs, and the only row of shards"


def test_chunks_of_zeros_take_no_space_and_are_still_there(archive: Path, place: Place) -> None:
    """A shard of zeros is a file that has only its index, and it is read as zeros."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE).isel(z=slice(6), y=slice(150))
    ds = ds.assign(nothing=ds.mito * 0)[["nothing"]]
    path = place / "a.zarr"
    ld.to_zarr(ds, path, progress=False, **SMALL)
    layout = plan_layout((6, 150, 420), {"nothing": 1}, SMALL["chunks"], SMALL["shards"])
    shards = contents(path / "nothing" / "c").values()
    assert len(shards) == np.prod(layout.shards_along) == 16
    assert {len(shard) for shard in shards} == {16 * 2 * 2 * 2 + 4}
    assert not xr.open_zarr(zarr_store(path)).nothing.any()


def test_a_damaged_slab_is_not_merged(archive: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab whose index has a wrong checksum is an error when it is merged into a shard."""
    write_slab = store.write_slab

    def write_badly(path: Place, *slab) -> None:
        write_slab(path, *slab)
        flip(path, -9)

    monkeypatch.setattr(store, "write_slab", write_badly)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with pytest.raises(OSError, match="checksum of its index"):
        ld.to_zarr(ds, place / "a.zarr", bounding_box=SMALL_BOX, progress=False)


def test_the_engine_without_chunks_is_written_block_by_block(
    server: ArchiveServer, tmp_path: Path, voxels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Dataset of the xarray engine without dask chunks is written from blocks of `chunk_rows` rows of a slice, which
    are read once each; a second call makes no request.
    """
    reads: list[tuple[int, int]] = []
    read = VolumeReader.__call__

    def noted(self: VolumeReader, z: Selection, y: Selection, x: Selection, out: np.ndarray) -> None:
        reads.append((len(z), len(y)))
        read(self, z, y, x, out)

    monkeypatch.setattr(VolumeReader, "__call__", noted)
    ds = xr.open_dataset(server.url, engine="liver_dask", shape=SHAPE, chunk_rows=64)
    path = ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
    assert {slices for slices, _ in reads} == {1}
    assert max(rows for _, rows in reads) == 64
    assert sum(rows for _, rows in reads) == len(voxels) * (BOX[5] - BOX[4]) * (BOX[3] - BOX[2])
    check_store(Path(path), voxels, BOX)
    server.requests.clear()
    ds = xr.open_dataset(server.url, engine="liver_dask", shape=SHAPE, chunk_rows=64)
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
    assert server.requests == []


def test_a_failure_while_the_region_before_is_written_leaves_no_torn_store(
    archive: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while another region is being written keeps what is finished, and does not block the next call."""
    broken = tmp_path / "archive"
    for folder in archive.iterdir():
        (broken / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            if not file.name.endswith("raw_003.tif"):
                (broken / folder.name / file.name).symlink_to(file)
    write_slab = store.write_slab
    monkeypatch.setattr(store, "write_slab", lambda *args: (time.sleep(0.05), write_slab(*args)))
    ds = ld.open_human_liver_em(broken, shape=SHAPE)
    for _ in range(2):
        with pytest.raises(ld.SliceNotFoundError, match="slice 3") as told:
            ld.to_zarr(ds, place / "a.zarr", bounding_box=SMALL_BOX, progress=False, **SMALL)
        assert "is kept in" in told.value.__notes__[0]


def test_of_two_writers_at_once_the_second_is_refused(
    server: ArchiveServer, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second writer of the same store gets an error, and the first one completes the store."""
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_RENEWALS", 0.4)
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    begun, go_on = threading.Event(), threading.Event()

    def slow(block: np.ndarray) -> np.ndarray:
        begun.set()
        go_on.wait(20)
        return block

    slowly = ds.assign(raw=ds.raw.copy(data=ds.raw.data.map_blocks(slow, dtype="u2", meta=np.empty((0, 0, 0), "u2"))))
    with ThreadPoolExecutor(1) as other:
        first = other.submit(ld.to_zarr, slowly, place / "a.zarr", bounding_box=BOX, progress=False)
        assert begun.wait(20)
        with pytest.raises(ld.StoreExistsError, match="is being written by another process"):
            ld.to_zarr(slowly, place / "a.zarr", bounding_box=BOX, progress=False)
        go_on.set()
        first.result()
    ld.to_zarr(slowly, place / "a.zarr", bounding_box=BOX, progress=False)


def test_a_store_that_lost_a_shard_is_not_complete(server: ArchiveServer, place: Place) -> None:
    """A store that lost a shard is refused, with the position of the shard."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    path = place / "a.zarr"
    ld.to_zarr(ds, path, bounding_box=BOX, progress=False)
    remove(path / "mito" / "c" / "0" / "0" / "0")
    with pytest.raises(ld.StoreExistsError, match=r"lost shard \(0, 0, 0\) of mito"):
        ld.to_zarr(ds, path, bounding_box=BOX, progress=False)


def with_z(ds: xr.Dataset, **attributes: Any) -> xr.Dataset:
    return ds.assign_coords(z=("z", ds.z.values, attributes))


@REAL_IN_S3
def test_coordinates_come_back_as_they_are(archive: Path, place: Place) -> None:
    """A coordinate keeps its values, data type and units, whatever its encoding in another file was."""
    ds = with_z(ld.open_human_liver_em(archive, shape=SHAPE), units="nm")
    ds.z.encoding = {"scale_factor": 0.5, "dtype": "int8", "chunks": (1,)}
    ld.to_zarr(ds, place / "a.zarr", bounding_box=BOX, progress=False)
    found = xr.open_zarr(zarr_store(place / "a.zarr")).z
    assert (found.dtype, found.attrs["units"]) == (ds.z.dtype, "nm")
    np.testing.assert_array_equal(found, ds.z[BOX[4] : BOX[5]])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda ds: ds.raw, r"give ds\[\['raw'\]\]"),
        (lambda ds: ds.transpose("x", "y", "z"), r"ds.transpose\('z', 'y', 'x'\)"),
        (lambda ds: ds.rename(raw="liver_dask"), "cannot be kept"),
        (lambda ds: ds.rename(raw="a/b"), "cannot be kept"),
        (lambda ds: ds.rename(raw=5), "cannot be kept"),
        (lambda ds: ds.assign(raw=ds.raw.astype("M8[ns]")), "only numbers"),
        (lambda ds: ds.assign(raw=ds.raw.assign_attrs(scale_factor=2)), "readers would change"),
        (lambda ds: ds.assign(raw=ds.raw.assign_attrs(dtype="bool")), "Variable 'raw' has the attribute 'dtype'"),
        (lambda ds: ds.assign(raw=ds.raw.assign_attrs(units="days since 2000-01-01")), "the attribute 'units'"),
        (lambda ds: with_z(ds, scale_factor=2.0), "Coordinate 'z' has the attribute 'scale_factor'"),
        (lambda ds: with_z(ds, missing_value=2), "Coordinate 'z' has the attribute 'missing_value'"),
        (lambda ds: ds.assign_coords(liver_dask=("z", np.arange(10))), "Coordinate 'liver_dask' cannot be kept"),
        (lambda ds: ds.assign_coords(a=ds.z, b=ds.z).set_index(z=["a", "b"]), "'z' is a MultiIndex"),
    ],
)
def test_variables_that_would_be_read_back_as_something_else(archive: Path, place: Place, change, told: str) -> None:
    """A variable or coordinate that readers would change or not find is an error, and nothing is written."""
    with pytest.raises(ld.InvalidArgumentError, match=told):
        ld.to_zarr(change(ld.open_human_liver_em(archive, shape=SHAPE)), place / "a.zarr", progress=False)
    assert files_of(place) == []
