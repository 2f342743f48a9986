"""Measuring by blocks gives what labels and measures the whole volume in memory: scikit-image and numpy."""

import pickle
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label, regionprops_table

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.forked import forked_workers
from liver_dask.analysis import blocks, components
from liver_dask.analysis import measure as measuring
from liver_dask.analysis.blocks import blocks_of, size_of_blocks
from liver_dask.demo import ArchiveServer

RANK = {6: 1, 18: 2, 26: 3}
"""scikit-image's name for each connectivity."""

lengths = st.tuples(*[st.integers(1, 12)] * 3)
short = st.tuples(*[st.integers(1, 3).map(lambda number: 2 * number + 1)] * 3)
few = settings(max_examples=40, deadline=None)


def volume(voxels: np.ndarray, chunks: Any = None, **attributes: Any) -> xr.DataArray:
    data = voxels if chunks is None else da.from_array(voxels, chunks=chunks)
    return xr.DataArray(data, dims=["z", "y", "x"], attrs=attributes)


def drawn(shape: tuple[int, ...], seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@few
@given(lengths, short, short, st.sampled_from([6, 18, 26]), st.sampled_from([0.05, 0.25, 0.5]), st.integers(0, 99))
def test_it_is_what_is_labelled_in_memory(shape, block, chunks, connectivity, share, seed) -> None:
    """Numbers, sizes, boxes, centroids and means are scikit-image's, for any blocks and chunks."""
    mask = drawn(shape, seed, share)
    raw = np.random.default_rng(seed).integers(0, 60_000, shape).astype(np.uint16)
    expected = label(mask, connectivity=RANK[connectivity])
    options: dict[str, Any] = {"connectivity": connectivity, "block": block, "progress": False}
    table = ld.measure(volume(mask, chunks), volume(raw, chunks), **options)
    labels = ld.label_objects(volume(mask, chunks), **options)
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, expected)
    properties = ("label", "area", "bbox", "centroid", "mean_intensity")
    found = pd.DataFrame(regionprops_table(expected, raw, properties=properties))
    assert table.label.tolist() == found.label.tolist()
    assert table.num_voxels.tolist() == found.area.tolist()
    for axis, dim in enumerate("zyx"):
        assert table[f"{dim}_min"].tolist() == found[f"bbox-{axis}"].tolist()
        assert table[f"{dim}_max"].tolist() == found[f"bbox-{axis + 3}"].tolist()
        np.testing.assert_allclose(table[f"centroid_{dim}"], found[f"centroid-{axis}"], rtol=1e-12)
    np.testing.assert_allclose(table.mean_raw, found.mean_intensity, rtol=1e-12)


def faces_of(labels: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Count for each label and axis the faces to voxels of no or another label, where `other` is if given."""
    faces = np.zeros((labels.max() + 1, 3), int)
    for axis in range(3):
        for one, next_one in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            here, there = ([slice(None)] * axis + [of] for of in (one, next_one))
            differs = labels[tuple(here)] != labels[tuple(there)]
            if other is not None:
                differs &= other[tuple(there)]
            faces[:, axis] += np.bincount(labels[tuple(here)][differs], minlength=len(faces))
    return faces[1:]


@few
@given(lengths, short, st.integers(0, 99))
def test_surfaces_and_contacts(shape, block, seed) -> None:
    """Faces are those that numpy finds, and areas their sum; the border of the volume is no surface."""
    mask, er, nucleus = (drawn(shape, seed + i, 0.3) for i in range(3))
    labels = label(mask, connectivity=3)
    contacts = {"er": volume(er.astype(np.uint8) * 255), "nucleus": volume(nucleus)}
    table = ld.measure(volume(mask), contacts=contacts, voxel_size_nm=(50, 8, 4), block=block, progress=False)
    areas = np.array([8 * 4, 50 * 4, 50 * 8]) * 1e-6
    for other, faces, area in (
        (None, "num_faces", "surface_um2"),
        (er, "contact_er_faces", "contact_er_um2"),
        (nucleus, "contact_nucleus_faces", "contact_nucleus_um2"),
    ):
        expected = faces_of(labels, other)
        assert table[faces].tolist() == expected.sum(1).tolist()
        np.testing.assert_allclose(table[area], expected @ areas)
    np.testing.assert_allclose(table.volume_um3, table.num_voxels * 50 * 8 * 4 * 1e-9)
    edges = np.ones(shape, bool)
    edges[tuple(slice(1, -1) if length > 1 else slice(0) for length in shape)] = False
    assert table.label[table.touches_border].tolist() == sorted(set(labels[edges].tolist()) - {0})


@few
@given(lengths, short, short, st.sampled_from(["u1", "u2", "i4", "u8"]), st.booleans(), st.integers(0, 99))
def test_labels_of_several_values(shape, block, chunks, dtype, connected, seed) -> None:
    """One value is one object, wherever its voxels are; or what is connected and has one value."""
    numbers = np.random.default_rng(seed).choice([0, 0, 0, 1, 2, 100], shape).astype(dtype)
    table = ld.measure(
        volume(numbers, chunks, kind="instances"), connected=connected or None, block=block, progress=False
    )
    if connected:
        found, first = np.unique(label(numbers, connectivity=3), return_index=True)
        labels = label(numbers, connectivity=3)
        in_order = [of for _, of in sorted(zip(first, found, strict=True)) if of]
        assert table.num_voxels.tolist() == np.bincount(labels.ravel())[in_order].tolist()
        return
    values, sizes = np.unique(numbers[numbers > 0], return_counts=True)
    assert (table.label.tolist(), table.num_voxels.tolist()) == (values.tolist(), sizes.tolist())
    assert table.num_faces.tolist() == faces_of(numbers.astype(np.int64)).sum(1)[values.astype(int) - 1].tolist()


@pytest.mark.parametrize("dtype", [">u2", ">i4", "u8", "i8"])
def test_numbers_of_any_kind(dtype: str) -> None:
    """Of either byte order, negative, or too large for a signed number; and an image of the other byte order."""
    largest = np.iinfo(dtype).max
    of = np.array([0, largest, largest - 1, np.iinfo(dtype).min], dtype)
    numbers = of[np.random.default_rng(0).integers(0, 4, (4, 9, 9))]
    raw = np.random.default_rng(1).integers(0, 99, numbers.shape).astype(">u2")
    table = ld.measure(volume(numbers, kind="instances"), volume(raw), block=(2, 4, 4), progress=False)
    values, sizes = np.unique(numbers[numbers != 0], return_counts=True)
    assert (table.label.tolist(), table.num_voxels.tolist()) == (values.tolist(), sizes.tolist())
    np.testing.assert_allclose(table.mean_raw, [raw[numbers == value].mean() for value in values])


def test_a_ring_that_closes_three_blocks_away() -> None:
    """Two arms of a ring that meet far from where they begin are one object."""
    mask = np.zeros((3, 40, 40), bool)
    mask[1, 2:38, [2, 37]] = mask[1, [2, 37], 2:38] = True
    mask[1, 2, 20] = False
    assert ld.measure(volume(mask), block=(2, 9, 9), progress=False).num_voxels.tolist() == [int(mask.sum())]
    mask[1, 37, 20] = False
    assert len(ld.measure(volume(mask), block=(2, 9, 9), progress=False)) == 2


@pytest.mark.parametrize("fill", [0, 1])
def test_nothing_and_everything(fill: int) -> None:
    """A mask without voxels has a table without rows, and one without background has one object."""
    mask = volume(np.full((5, 6, 7), fill, np.uint8), kind="mask")
    table = ld.measure(mask, mask, block=(2, 2, 2), contacts={"er": mask}, voxel_size_nm=(1, 1, 1), progress=False)
    assert table.num_voxels.tolist() == [210] * fill
    assert {"mean_raw", "volume_um3", "contact_er_um2"} <= set(table.columns)
    assert (ld.label_objects(mask, block=(2, 2, 2), progress=False) == fill).all()


def test_five_hundred_slices_of_known_objects() -> None:
    """As many balls as were put there, each with its own size, in blocks that cut most of them."""
    mask, sizes = np.zeros((500, 60, 60), bool), []
    grid = np.indices((500, 60, 60), np.int16)
    for i, z in enumerate(range(12, 490, 24)):
        for y, x in ((15, 15), (15, 45), (45, 15), (45, 45)):
            radius = 3 + (i + y + x) % 8
            near = slice(z - 11, z + 12)
            ball = sum((of[near] - at) ** 2 for of, at in zip(grid, (z, y, x), strict=True)) <= radius**2
            mask[near] |= ball
            sizes.append(int(ball.sum()))
    table = ld.measure(volume(mask, (50, 60, 60)), block=(37, 25, 25), progress=False)
    assert sorted(table.num_voxels) == sorted(sizes)
    assert not table.touches_border.any()


def test_the_mask_of_an_archive_and_of_its_store(archive: Path, voxels: dict[str, np.ndarray], tmp_path: Path) -> None:
    """An archive is measured as its store, in coordinates of the whole volume; a crop keeps them."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, voxel_size_nm=(50, 8, 8)).isel(y=slice(30, None))
    ld.to_zarr(ds, tmp_path / "a.zarr", chunks=(2, 64, 64), shards=(4, 128, 128), progress=False)
    stored = xr.open_zarr(tmp_path / "a.zarr")
    expected = label(voxels["mito"][:, 30:] > 0)
    tables = [
        ld.measure(of.mito, of.raw, contacts={"er": of.er}, voxel_size_nm=(50, 8, 8), progress=False)
        for of in (ds, stored)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0].num_voxels.tolist() == np.bincount(expected.ravel())[1:].tolist()
    assert tables[0].y_min.min() >= 30
    numbers = ld.label_objects(ds.mito, progress=False)
    ld.to_zarr(ds[["mito"]].assign(objects=numbers), tmp_path / "b.zarr", progress=False)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "b.zarr").objects, expected)


def test_a_mask_is_read_from_the_top_once(server: ArchiveServer) -> None:
    """One task measures all rows of some slices of an archive, so that no byte of a slice is fetched twice."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    with ld.trace() as whole:
        ds.mito.compute()
    fresh = ld.open_human_liver_em(server.url, shape=SHAPE)
    with ld.trace() as seen:
        ld.measure(fresh.mito, block=(10, 50, 420), progress=False)
    assert seen.bytes <= whole.bytes


@pytest.mark.slow
def test_workers_give_the_same(archive: Path, tmp_path: Path) -> None:
    """On a cluster, the table is the same, row for row."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    alone = ld.measure(ds.mito, ds.raw, block=(3, 64, 420), progress=False)
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with forked_workers(), LocalCluster(local_directory=tmp_path, **options) as cluster, Client(cluster) as client:
        pd.testing.assert_frame_equal(
            ld.measure(ds.mito, ds.raw, block=(4, 50, 100), client=client, progress=False), alone
        )
        held = ds.mito.persist()
        with pytest.raises(ld.InvalidArgumentError, match="A cluster holds labels"):
            ld.measure(held, client=client, progress=False)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_a_table_is_a_new_file(tmp_path: Path, name: str) -> None:
    """What is written is the table; a file that exists is neither replaced nor worth the work."""
    mask = volume(drawn((5, 20, 20), 1, 0.2))
    table = ld.measure(mask, voxel_size_nm=(50, 8, 8), path=tmp_path / name, progress=False)
    read = pd.read_parquet if name.endswith("parquet") else pd.read_csv
    pd.testing.assert_frame_equal(read(tmp_path / name), table, check_dtype=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ld.InvalidArgumentError, match="exists already"):
        ld.measure(mask, path=tmp_path / name, progress=False)
    for wrong, said in (("t.xls", "parquet or .csv"), ("no/t.csv", "there is no folder")):
        with pytest.raises(ld.InvalidArgumentError, match=said):
            ld.measure(mask, path=tmp_path / wrong, progress=False)


def test_wrong_arguments_are_one_sentence() -> None:
    """Each is found before anything is read."""

    def fail(block: Any) -> Any:
        raise AssertionError("it was read")

    mask = volume(da.zeros((4, 4, 4), bool, chunks=2).map_blocks(fail, dtype=bool))
    other = volume(np.zeros((4, 4, 5), bool))
    moved = mask.assign_coords(z=range(4)), volume(np.zeros((4, 4, 4), np.uint8)).assign_coords(z=range(1, 5))
    calls: list[tuple[Any, dict[str, Any], str]] = [
        (mask, {"connectivity": 8}, "6, 18, 26"),
        (mask[:0], {}, "holds no voxels"),
        (mask, {"raw": mask.astype("c8")}, "real numbers"),
        (mask.astype(float), {}, "need a mask or integer labels"),
        (mask[0], {}, "dims"),
        (mask.data, {}, "DataArray"),
        (mask, {"raw": other}, "other voxels"),
        (moved[0], {"raw": moved[1]}, "other voxels.*z 0..3.*|.*z 1..4"),
        (mask, {"contacts": {"a b": mask}}, "give a word"),
        (mask, {"contacts": {"er": mask.astype("f4")}}, "er is of float32"),
        (mask, {"block": (0, 1, 1)}, "block"),
        (mask, {"voxel_size_nm": (1, 2)}, "voxel_size_nm"),
        (mask, {"client": 5}, "distributed.Client"),
    ]
    for labels, options, said in calls:
        with pytest.raises(ld.InvalidArgumentError, match=said):
            ld.measure(labels, **options, progress=False)


def test_an_error_of_the_archive_is_told(archive: Path) -> None:
    """A slice that does not exist is the error that reading it is."""
    ds = ld.open_human_liver_em(archive, shape=(12, *SHAPE[1:]))
    with pytest.raises(ld.SliceNotFoundError):
        ld.measure(ds.mito, progress=False)


@given(lengths, short)
def test_blocks_fill_the_volume(shape, size) -> None:
    """Cores fill the volume without overlap, and any two neighbours are in one block with its margin."""
    seen = np.zeros(shape, int)
    for block in blocks_of(shape, size):
        seen[tuple(slice(at, at + of) for at, of in zip(block.start, block.core, strict=True))] += 1
        for axis in range(3):
            end = block.start[axis] + block.core[axis]
            assert block.has_margin(axis) == (end < shape[axis])
    assert (seen == 1).all()


@pytest.mark.parametrize("full_width", [False, True])
@given(st.tuples(*[st.integers(1, 3000)] * 3), st.tuples(st.integers(1, 9), st.integers(1, 300), st.integers(1, 300)))
def test_the_size_of_blocks(full_width, shape, chunks) -> None:
    """Blocks are bounded, and are whole chunks unless they are as wide as the volume."""
    size = size_of_blocks(shape, chunks, full_width=full_width)
    assert np.prod(size, dtype=float) <= blocks.MOST_VOXELS
    assert all(1 <= of <= length for of, length in zip(size, shape, strict=True))
    if full_width:
        assert size[2] == shape[2]
    else:
        assert all(of % chunk == 0 or of == length for of, chunk, length in zip(size, chunks, shape, strict=True))


def test_labelling_small_planes_and_blocks() -> None:
    """Every small shape is labelled rightly: for bool, cc3d itself writes past the end of its table."""
    rng = np.random.default_rng(0)
    for _ in range(4000):
        shape = tuple(rng.integers(1, 8, rng.choice([2, 3])).tolist())
        mask = rng.random(shape) < 0.5
        for connectivity in (4, 8) if len(shape) == 2 else (6, 18, 26):
            found, number = components.label(mask, connectivity)
            expected = label(mask, connectivity={4: 1, 8: 2, **RANK}[connectivity])
            assert number == expected.max()
            np.testing.assert_array_equal(found, expected)


def test_the_plan_for_the_whole_liver_is_small() -> None:
    """Each block is sent as its place alone, without a search of the tasks of dask in the whole volume."""
    ds = ld.open_human_liver_em()
    work = measuring._plan(ds.mito, ds.raw, 26, None, {"er": ds.er}, None)
    sizes = [len(pickle.dumps(task)) / len(task.blocks) for _, task in work._tasks()]
    assert len(sizes) > 30
    assert max(sizes) < 5000
    assert sum(len(task.blocks) for _, task in work._tasks()) == len(work.blocks) > 2000


def test_the_voxel_size_of_a_store_is_used(archive: Path, tmp_path: Path) -> None:
    """A variable of a store is measured in um, as the store says."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",), voxel_size_nm=(50, 8, 8))
    ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)
    kept = xr.open_zarr(tmp_path / "a.zarr")
    table = ld.measure(kept.mito[:, 10:200], progress=False)
    np.testing.assert_allclose(table.volume_um3, table.num_voxels * 50 * 8 * 8 * 1e-9)
    assert "volume_um3" not in ld.measure(kept.mito > 0, progress=False)
    with pytest.raises(ld.InvalidArgumentError, match="labels is an image"):
        ld.measure(kept.raw)


@pytest.mark.parametrize("package", ["cc3d", "scipy.sparse"])
def test_a_package_that_is_missing_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ld.MissingExtraError, match=rf"Measuring needs the package {package[:5].strip('.')}.*measure"):
        ld.measure(ld.open_human_liver_em().mito)
