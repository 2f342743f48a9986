"""Pyramids: each level equals what tensorstore makes of the one below, also after kills, and other readers open it."""

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.kills import killed_at
from helpers.places import (
    IN_A_FOLDER,
    REAL_IN_S3,
    bucket_and_key,
    client_of,
    contents,
    copied,
    files_of,
    flip,
    in_both,
    put,
    remove,
    writable,
)
from helpers.stores import BOX, SMALL, SMALL_BOX, assert_same_files
from liver_dask.core.places import Place
from liver_dask.store import array as stored
from liver_dask.store import downsampling, ome_zarr, pyramid
from liver_dask.store import levels as store_levels
from liver_dask.store.storage import folder as folder_storage
from liver_dask.store.zarr_store import zarr_store

SMALL_ENOUGH = 50
CELL = 32
PLASTIC = 1.2207440846057596
"""The solution of p^4 = p + 1."""
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int64", "uint64")


def downsampled(voxels: np.ndarray, step: tuple[int, ...], method: str) -> np.ndarray:
    """Return the voxels as tensorstore downsamples them."""
    return tensorstore.downsample(tensorstore.array(voxels), list(step), method).read().result()


@given(
    voxels=st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7))
    ),
    step=st.tuples(*[st.sampled_from([1, 2])] * 3),
)
@settings(deadline=None, max_examples=300)
def test_means_are_tensorstores(voxels: np.ndarray, step: tuple[int, int, int]) -> None:
    """Means of blocks equal tensorstore's; those of 64-bit integers are exact, with halves rounded to even."""
    found = downsampling.downsample(voxels, step, "mean")
    assert found.dtype == voxels.dtype
    if voxels.dtype.itemsize < 8:  # tensorstore's sum of 64-bit integers overflows
        np.testing.assert_array_equal(found, downsampled(voxels, step, "mean"))
    else:
        parts = [*map(int, voxels[: step[0], : step[1], : step[2]].ravel())]
        total, count = sum(parts), len(parts)
        assert int(found[0, 0, 0]) == total // count + (
            2 * (total % count) > count or (2 * (total % count) == count and total // count % 2)
        )


@given(
    mask=arrays.arrays(bool, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7)),
    step=st.tuples(*[st.sampled_from([1, 2])] * 3),
)
def test_the_mean_of_bools_is_true_above_a_half(mask: np.ndarray, step: tuple[int, int, int]) -> None:
    """A block of an image of bools is True if more than half of its voxels are."""
    share = downsampled(mask.astype(np.float64), step, "mean")
    np.testing.assert_array_equal(downsampling.downsample(mask, step, "mean"), share > 0.5)


@given(
    mask=arrays.arrays(bool, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7)),
    step=st.tuples(*[st.sampled_from([1, 2])] * 3),
)
@settings(deadline=None, max_examples=300)
def test_majorities_are_tensorstores_mode_and_ties_are_labelled(mask: np.ndarray, step: tuple[int, int, int]) -> None:
    """Each block of a mask gets its most frequent value, as in tensorstore, and a half-labelled block is labelled."""
    labels = mask * np.uint8(255)
    found = downsampling.downsample(labels, step, "majority")
    share = downsampled(mask.astype(np.float64), step, "mean")
    mode = downsampled(labels, step, "mode")
    np.testing.assert_array_equal(found[share != 0.5], mode[share != 0.5])
    assert (found[share == 0.5] == 255).all()


def kept_share(mask: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
    """Return where a mask is labelled after downsampling, cell by cell as the rule says."""
    covered = downsampled((mask > 0).astype(np.float64), step, "mean")
    rows, columns = (-(-length // CELL) for length in covered.shape[1:])
    out = np.zeros(covered.shape, bool)
    for z, row, column in np.ndindex(covered.shape[0], rows, columns):
        cell = (z, slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL))
        shares = covered[cell].ravel()
        fraction = sum(part * PLASTIC**-power for power, part in enumerate((z, row, column), 1)) % 1
        left = int(shares.sum() + fraction)
        labelled = np.zeros(shares.size, bool)
        for share in sorted(set(shares[shares > 0]), reverse=True):
            (places,) = np.nonzero(shares == share)
            given = min(left, len(places))
            steps = np.arange(len(places) + 1) * given // len(places)
            labelled[places[np.diff(steps) > 0]] = True
            left -= given
        out[cell] = labelled.reshape(covered[cell].shape)
    return out


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 150), st.integers(1, 150)),
    share=st.floats(0, 1),
    step=st.tuples(*[st.sampled_from([1, 2])] * 3),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_masks_keep_their_share_in_every_cell(
    shape: tuple[int, int, int], share: float, step: tuple[int, int, int], seed: int
) -> None:
    """Each cell has as many labelled voxels as its share demands, less or more than one, and those that cover most."""
    mask = (np.random.default_rng(seed).random(shape) < share) * np.uint8(255)
    found = downsampling.downsample(mask, step, "kept share")
    if step == (1, 1, 1):
        np.testing.assert_array_equal(found, mask)
        return
    np.testing.assert_array_equal(found, kept_share(mask, step) * np.uint8(255))
    covered = downsampled((mask > 0).astype(np.float64), step, "mean")
    for z, y, x in np.ndindex(*(-(-n // of) for n, of in zip(found.shape, (1, CELL, CELL), strict=True))):
        cell = (z, slice(y * CELL, (y + 1) * CELL), slice(x * CELL, (x + 1) * CELL))
        labelled, shares = found[cell] > 0, covered[cell]
        assert abs(labelled.sum() - shares.sum()) < 1 + 1e-9
        if labelled.any() and not labelled.all():
            assert shares[labelled].min() >= shares[~labelled].max()


@pytest.mark.parametrize("method", ["kept share", "majority"])
def test_labels_below_zero_stay(method: downsampling.Method) -> None:
    """A mask whose label is negative, as of int8 from 255, keeps it."""
    mask = np.array([[[-1, -1, 0, 0], [-1, -1, 0, 0]]], np.int8)
    np.testing.assert_array_equal(downsampling.downsample(mask, (1, 2, 2), method), [[[-1, 0]]])


def ellipses(size: int, share: float) -> np.ndarray:
    """A slice of a mask with smooth objects of many sizes, until they cover a share of it."""
    rng = np.random.default_rng(3)
    rows, columns = np.ogrid[:size, :size]
    mask = np.zeros((size, size), bool)
    while mask.mean() < share:
        y, x = rng.uniform(0, size, 2)
        high, wide = rng.uniform(3, 30, 2)
        mask |= ((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 < 1
    return mask


def network(size: int) -> np.ndarray:
    """A slice of a mask with lines two voxels wide in all directions, as membranes."""
    rows, columns = np.ogrid[:size, :size]
    waves = np.sin(rows / 9) + np.sin(columns / 7) + np.sin((rows + 2 * columns) / 23)
    return np.abs(waves) < 0.12


@pytest.mark.parametrize(
    "mask",
    [ellipses(1024, 0.096), ellipses(1024, 0.01), network(1024), np.random.default_rng(0).random((1024, 1024)) < 0.182],
    ids=["ellipses", "few ellipses", "network", "noise"],
)
def test_shares_of_masks_stay_within_two_percent_at_every_level(mask: np.ndarray) -> None:
    """Level by level, neither objects nor membranes swell or vanish."""
    level = mask[None] * np.uint8(255)
    for _ in range(5):
        level = downsampling.downsample(level, (1, 2, 2), "kept share")
        assert set(np.unique(level)) <= {0, 255}
        one_voxel = 1 / level.size
        assert (level > 0).mean() == pytest.approx(mask.mean(), rel=0.02, abs=one_voxel)


@given(data=st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_window_of_a_level_is_that_of_the_whole(with_levels: Path, data: st.DataObject) -> None:
    """Voxels of a level do not depend on the box in which they are computed."""
    name = data.draw(st.sampled_from(["raw", "mito"]))
    reader = downsampling.DownsamplingReader(
        with_levels, name, (1, 2, 2), downsampling.METHODS["image" if name == "raw" else "mask"]
    )
    places = []
    for length in reader.shape:
        first = data.draw(st.integers(0, length - 1))
        places.append((first, data.draw(st.integers(first + 1, length))))
    box = tuple(slice(*place) for place in places)
    out = np.empty([stop - start for start, stop in places], xr.open_zarr(with_levels)[name].dtype)
    reader(*(np.arange(start, stop) for start, stop in places), out)
    np.testing.assert_array_equal(out, xr.open_zarr(with_levels / "pyramid" / "s1")[name].values[box])


@pytest.fixture(autouse=True)
def small_slices_have_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", SMALL_ENOUGH)


@pytest.fixture(scope="module")
def plain(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without levels, of a box with odd sides. Its slices are thicker than its pixels are wide."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, voxel_size_nm=(30, 8, 8))
    return Path(ld.to_zarr(ds, tmp_path_factory.mktemp("plain") / "a.zarr", bounding_box=BOX, progress=False, **SMALL))


@pytest.fixture(scope="module")
def with_levels(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `plain`, with levels."""
    path = shutil.copytree(plain, tmp_path_factory.mktemp("levels") / "a.zarr")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", SMALL_ENOUGH)
        ld.add_pyramid(path, progress=False)
    return path


@pytest.fixture(scope="module")
def small_plain(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller store, of one mask, whose files are few."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"], voxel_size_nm=(30, 8, 8))
    path = tmp_path_factory.mktemp("small") / "a.zarr"
    return Path(ld.to_zarr(ds, path, bounding_box=SMALL_BOX, progress=False, **SMALL))


@pytest.fixture(scope="module")
def small_with_levels(small_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, with levels."""
    path = shutil.copytree(small_plain, tmp_path_factory.mktemp("small_levels") / "a.zarr")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", SMALL_ENOUGH)
        ld.add_pyramid(path, progress=False)
    return path


@pytest.fixture
def store(request: pytest.FixtureRequest, place: Place) -> Place:
    """A copy of a store with levels, for one test. Its labels are copies and no links."""
    made = "with_levels" if isinstance(place, Path) else "small_with_levels"
    return copied(request.getfixturevalue(made), place / "a.zarr")


def test_levels_are_the_same_wherever_they_are_made(small_plain: Path, small_with_levels: Path, place: Place) -> None:
    """Levels that are added to a store anywhere have the same files and bytes."""
    store = copied(small_plain, place / "a.zarr")
    ld.add_pyramid(store, progress=False)
    assert_same_files(small_with_levels, store)


def changes_of(store: Place) -> dict[str, Any]:
    """Return when each file was written."""
    if isinstance(store, Path):
        return {str(path): path.stat().st_mtime_ns for path in store.rglob("*")}
    return {
        name: client_of(store).head_object(**bucket_and_key(store / name))["LastModified"] for name in files_of(store)
    }


def level_at(store: Place, path: str) -> xr.Dataset:
    """Open the level that an array belongs to."""
    return xr.open_zarr(zarr_store(store / PurePosixPath(path).parent), chunks=None, consolidated=False)


def test_each_level_is_the_one_below_as_tensorstore_halves_it(store: Place) -> None:
    """Each level equals the one below as tensorstore halves it, and its coordinates and voxel size match."""
    steps = [(1, 2, 2), (1, 2, 2), (2, 2, 2)]  # 30, 8, 8 nm; 30, 16, 16; 30, 32, 32; 60, 64, 64
    opened = zarr_store(store)
    levels = [xr.open_zarr(opened), *xr.open_datatree(opened, group="pyramid", engine="zarr").children.values()]
    assert len(levels) == (4 if isinstance(store, Path) else 3)
    for below, level, step in zip(levels, levels[1:], steps, strict=False):
        for name in levels[0].data_vars:
            source, found = below[name].values, level[name].values
            if name == "raw":
                np.testing.assert_array_equal(found, downsampled(source, step, "mean"))
                continue
            np.testing.assert_array_equal(found, np.where(kept_share(source, step), 255, 0))
        assert level.attrs["voxel_size_nm"] == [
            of * n for of, n in zip(below.attrs["voxel_size_nm"], step, strict=True)
        ]
        for dim, of in zip(("z", "y", "x"), step, strict=True):
            whole_cells = slice(0, below.sizes[dim] // of)
            expected = below[dim].coarsen({dim: of}, boundary="trim").mean()
            np.testing.assert_array_equal(level[dim][whole_cells], expected)


@IN_A_FOLDER
def test_what_reads_the_store_reads_it_as_before(plain: Path, store: Path) -> None:
    """A store with levels is read like one without by xarray, StoredArray, verify and to_zarr, without warnings."""
    with warnings.catch_warnings(action="error"):
        before, after = xr.open_zarr(plain), xr.open_zarr(store)
        xr.testing.assert_equal(before.compute(), after.compute())
        assert before.attrs.items() <= after.attrs.items()
    np.testing.assert_array_equal(stored.StoredArray(store, "raw")[0:3, 5:9, 7:20], before.raw[0:3, 5:9, 7:20])
    assert ld.verify(store, full=True, progress=False).ok
    again = ld.open_human_liver_em(before.attrs["source"], shape=SHAPE, voxel_size_nm=(30, 8, 8))
    assert ld.to_zarr(again, store, bounding_box=BOX, progress=False, pyramid=True, **SMALL) == str(store)


def test_once_there_nothing_is_written_again(store: Place) -> None:
    """A second call of add_pyramid changes no file."""
    before = changes_of(store)
    ld.add_pyramid(store, progress=False)
    assert changes_of(store) == before


def test_the_metadata_are_ome_zarr(store: Place) -> None:
    """The metadata are valid OME-Zarr, and levels and labels have the voxels, scales and translations of the store."""
    image = Image.from_zarr(zarr.open_group(zarr_store(store), mode="r"))
    (scale,) = image.ome_attributes.multiscales
    assert [axis.unit for axis in scale.axes] == ["nanometer"] * 3
    assert image.labels.label_paths == (["mito", "er", "nucleus"] if isinstance(store, Path) else ["er"])
    for name in image.labels.label_paths:
        label = ImageLabel.from_zarr(zarr.open_group(zarr_store(store / "labels" / name), mode="r"))
        (of_label,) = label.ome_attributes.multiscales
        for one, other in zip(scale.datasets, of_label.datasets, strict=True):
            assert one.coordinateTransformations == other.coordinateTransformations
            label = zarr.open_array(zarr_store(store / "labels" / name / other.path), mode="r")[:]
            xr.testing.assert_equal(
                level_at(store, one.path)[name].variable,
                xr.Variable(
                    ("z", "y", "x"), zarr.open_array(zarr_store(store / "labels" / name / other.path), mode="r")[:]
                ),
            )
    for dataset in scale.datasets:
        of, at = (transformation for transformation in dataset.coordinateTransformations)
        level = level_at(store, dataset.path)
        for axis, dim in enumerate(("z", "y", "x")):
            size = [30, 8, 8][axis]
            assert at.translation[axis] == level[dim].values[0] * size
            assert of.scale[axis] == (level[dim].values[1] - level[dim].values[0]) * size


def test_an_unknown_voxel_size_is_not_guessed(archive: Path, tmp_path: Path) -> None:
    """Without a voxel size, axes have no unit, scales count voxels, and levels halve only y and x."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, pyramid=True, **SMALL)
    (scale,) = Image.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r")).ome_attributes.multiscales
    assert [axis.unit for axis in scale.axes] == [None] * 3
    assert [dataset.coordinateTransformations[0].scale for dataset in scale.datasets] == [
        [1.0, float(factor), float(factor)] for factor in (1, 2, 4, 8)
    ]
    assert scale.metadata["voxel_size_source"].startswith("not given")


@pytest.mark.parametrize(
    ("dtype", "offset", "scale"), [("u1", 0, 1), ("<u2", 0, 200), ("<f4", 0, 0.01), ("<i2", -300, 1), ("bool", 0, 1)]
)
def test_viewers_get_a_contrast_of_the_tissue(tmp_path: Path, dtype: str, offset: int, scale: float) -> None:
    """The contrast for viewers covers the tissue, whatever the dtype, without the empty glass."""
    rng = np.random.default_rng(0)
    tissue = rng.normal(120, 20, (4, 200, 200)).clip(1, 250) * scale + offset
    tissue[:, :80] = 0  # empty glass
    tissue[2] = np.where(tissue[2] != 0, 3 * scale + offset, 0)  # one dark slice
    voxels = tissue > 100 if dtype == "bool" else tissue.astype(dtype)
    ds = xr.Dataset({"raw": (("z", "y", "x"), voxels, {"kind": "image"})})
    ds = ds.assign_coords({dim: np.arange(n) for dim, n in ds.sizes.items()})
    store = ld.to_zarr(ds.chunk(), tmp_path / "a.zarr", chunks=(1, 64, 64), progress=False, pyramid=True)
    (channel,) = zarr.open_group(store, mode="r").attrs["ome"]["omero"]["channels"]
    window = channel["window"]
    assert window["min"] <= window["start"] < window["end"]
    if dtype != "bool":
        assert window["start"] <= 80 * scale + offset
        assert 150 * scale + offset < window["end"] < 200 * scale + offset


@IN_A_FOLDER
def test_a_voxel_size_that_a_user_corrects_is_described(store: Place) -> None:
    """After it was corrected by hand, `add_pyramid` keeps the levels and describes them with the new size."""
    zarr.open_group(writable(store), use_consolidated=False).attrs["voxel_size_nm"] = [31.0, 8.0, 8.0]
    before = len(store_levels.levels_of(store))
    assert len(ld.add_pyramid(store, progress=False)) == before
    scales = zarr.open_group(zarr_store(store), mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    assert scales[1]["coordinateTransformations"][0]["scale"] == [31.0, 16.0, 16.0]


def test_labels_take_no_room_and_copies_do_where_there_are_no_links(
    plain: Path, with_levels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards in `labels` are hard links to those of the masks, or copies where links cannot be made."""
    shards = [path for path in (with_levels / "labels").rglob("*") if path.is_file() and path.name.isdigit()]
    assert shards
    assert all(path.stat().st_nlink == 2 for path in shards)

    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    other = shutil.copytree(plain, tmp_path / "b.zarr")
    monkeypatch.setattr(folder_storage, "os", SimpleNamespace(**vars(os) | {"link": refused}))
    ld.add_pyramid(other, progress=False)
    assert_same_files(with_levels, other)


def test_levels_of_an_earlier_version_stay_and_are_gone_on_with(plain: Path, tmp_path: Path) -> None:
    """Masks that were made by majority are kept, used and verified as such; a killed call is finished as it began."""
    complete, killed = (shutil.copytree(plain, tmp_path / name / "a.zarr") for name in ("complete", "killed"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(downsampling.METHODS, "mask", "majority")
        ld.add_pyramid(complete, progress=False)
        killed_at(300, partial(ld.add_pyramid, killed, progress=False))
    assert (killed / "pyramid" / "s1.partial" / "store").is_dir()
    before = contents(complete)
    assert zarr.open_group(complete / "labels" / "er").attrs["ome"]["multiscales"][0]["type"].startswith("majority")
    ld.add_pyramid(complete, progress=False)
    assert contents(complete) == before
    assert len(store_levels.current_levels(complete, ["raw", "mito"])) == 4
    ld.add_pyramid(killed, progress=False)
    kinds = zarr.open_group(killed / "labels" / "er").attrs["ome"]["multiscales"][0]["type"].split(", then ")
    assert [kind.split()[0] for kind in kinds] == ["majority,", "share"]
    for store in (complete, killed):
        report = ld.verify(store, full=True, progress=False)
        assert report.ok, report
    raw, mito = (xr.open_zarr(store / "pyramid" / "s1")[name] for store, name in ((killed, "raw"), (killed, "mito")))
    xr.testing.assert_equal(raw, xr.open_zarr(complete / "pyramid" / "s1").raw)
    xr.testing.assert_equal(mito, xr.open_zarr(complete / "pyramid" / "s1").mito)


@pytest.mark.slow
@given(steps=st.lists(st.integers(1, 700), max_size=3))
@settings(deadline=None, max_examples=5)
def test_killed_at_any_step_the_levels_are_the_same(
    steps: list[int], plain: Path, with_levels: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After kills at any steps raw is unchanged, and another call makes the same files as an undisturbed one."""
    folder = tmp_path_factory.mktemp("killed")
    other = shutil.copytree(plain, folder / "a.zarr")
    for step in steps:
        killed_at(step, partial(ld.add_pyramid, other, progress=False))
        xr.testing.assert_identical(xr.open_zarr(other).raw.compute(), xr.open_zarr(plain).raw.compute())
    ld.add_pyramid(other, progress=False)
    assert_same_files(with_levels, other)
    shutil.rmtree(folder)


@pytest.mark.slow
@IN_A_FOLDER
def test_a_changed_byte_of_a_level_is_found(store: Place) -> None:
    """A changed byte in a shard of a level is reported by verify, and only for this level and the one made from it."""
    shard = store / "pyramid" / "s2" / "raw" / "c" / "0" / "0" / "0"
    flip(shard, 100)
    report = ld.verify(store, progress=False)
    assert not report.ok
    assert all(problem.startswith(("pyramid/s2/", "pyramid/s3/")) for problem in report.problems), report.problems


@in_both(
    "where, content",
    product(("", "pyramid/s1"), ('{"attributes"', "[]", None)),
    [("", "[]")],
    [("pyramid/s1", None)],
)
def test_damaged_metadata_are_reported_and_no_traceback(store: Place, where: str, content: str | None) -> None:
    """Damaged or missing metadata of the store or of a level are reported by verify. Those of the store are an error in
    add_pyramid.
    """
    path = store / where / "zarr.json"
    remove(path) if content is None else put(path, content)
    report = ld.verify(store, progress=False)
    assert any(where in problem or "zarr.json" in problem for problem in report.problems), report.problems
    assert not report.ok
    if not where:
        with pytest.raises(ld.DamagedError, match=r"zarr\.json, which says what the store is, cannot be read"):
            ld.add_pyramid(store, progress=False)


@pytest.fixture(scope="module")
def undescribed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with levels but without OME-Zarr metadata, as a killed run leaves it."""
    path = shutil.copytree(plain, tmp_path_factory.mktemp("undescribed") / "a.zarr")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", SMALL_ENOUGH)
        patched.setattr(pyramid, "write_ome_metadata", lambda *_: None)
        ld.add_pyramid(path, progress=False)
    return path


@pytest.fixture
def levels_only(undescribed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undescribed, tmp_path / "a.zarr")


def add_own_things(store: Path, shape: Sequence[int] = (8, 269, 364)) -> None:
    """Add what a user may put into a store: a segmentation in `labels`, as in OME-Zarr, and display settings."""
    voxels = np.arange(np.prod(shape)).reshape(shape).astype("uint16")
    scale = {
        "axes": [{"name": dim, "type": "space"} for dim in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}],
    }
    labels = zarr.create_group(store / "labels", attributes={"ome": {"version": "0.5", "labels": ["mine"]}, "by": "me"})
    ome = {"version": "0.5", "multiscales": [scale], "image-label": {"version": "0.5"}}
    mine = labels.create_group("mine", attributes={"ome": ome})
    mine.create_array("0", data=voxels, chunks=(8, 128, 128), dimension_names=list("zyx"))
    labels.create_group("not_listed")
    again = [{"path": "labels/mine/0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}]
    own = {"omero": {"channels": [{"color": "FF0000"}]}, "multiscales": [{"name": "mine", **scale, "datasets": again}]}
    zarr.open_group(store, mode="r+").attrs.update({"ome": own, "labels": ["mine"], "note": 7})


def own_files(store: Path) -> dict[str, bytes]:
    """Return the user's files, which nothing may change, and their contents."""
    folders = store / "labels" / "mine", store / "labels" / "not_listed"
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def check_own_things(store: Path, before: dict[str, bytes]) -> None:
    """Assert that the store has the user's labels and settings, and those of this package."""
    assert own_files(store) == before
    labels = zarr.open_group(store / "labels", mode="r").attrs
    assert labels["by"] == "me"
    assert labels["ome"]["labels"] == ["mine", "mito", "er", "nucleus"]
    root = zarr.open_group(store, mode="r")
    assert (root.attrs["note"], root.attrs["labels"]) == (7, ["mine", "mito", "er", "nucleus"])
    assert root.attrs["ome"]["omero"] == {"channels": [{"color": "FF0000"}]}
    assert [scale["name"] for scale in root.attrs["ome"]["multiscales"]] == ["raw", "mine"]
    assert Image.from_zarr(root).labels.label_paths == ["mine", "mito", "er", "nucleus"]
    for name in ("mine", "mito", "er", "nucleus"):
        ImageLabel.from_zarr(zarr.open_group(store / "labels" / name, mode="r"))
    assert "mine/0" in zarr.open_group(store / "labels", mode="r")
    with warnings.catch_warnings(action="error"):
        assert set(xr.open_zarr(store)) == {"raw", "mito", "er", "nucleus"}


@pytest.mark.slow
def test_a_users_own_labels_and_settings_stay(levels_only: Path) -> None:
    """A user's own labels and settings are kept by add_pyramid, which adds this package's to them."""
    add_own_things(levels_only)
    before = own_files(levels_only)
    for _ in range(2):
        ld.add_pyramid(levels_only, progress=False)
        check_own_things(levels_only, before)
    assert ld.verify(levels_only, progress=False).ok


@REAL_IN_S3
def test_labels_that_a_user_adds_later_stay(store: Place) -> None:
    """Labels that a user adds after add_pyramid are kept by the next call, which lists the masks again beside them."""
    masks = list(zarr.open_group(zarr_store(store / "labels"), mode="r").attrs["ome"]["labels"])
    labels = zarr.open_group(writable(store / "labels"), mode="r+")
    shape = zarr.open_array(zarr_store(store / "er"), mode="r").shape
    labels.create_group("mine").create_array("0", data=np.ones(shape, "uint8"))
    labels.attrs.update({"ome": {"version": "0.5", "labels": ["mine"]}})  # some tools drop the other names
    ld.add_pyramid(store, progress=False)
    assert zarr.open_array(zarr_store(store / "labels" / "mine" / "0"), mode="r")[:].all()
    names = zarr.open_group(zarr_store(store / "labels"), mode="r").attrs["ome"]["labels"]
    assert names == ["mine", *masks]
    ImageLabel.from_zarr(zarr.open_group(zarr_store(store / "labels" / "er"), mode="r"))


def test_a_label_that_a_user_made_or_changed_is_never_replaced(plain: Path, levels_only: Path, tmp_path: Path) -> None:
    """A label image that a user made or changed is an error, and it is not replaced. No level is computed before the
    error.
    """
    other = shutil.copytree(plain, tmp_path / "b.zarr")
    zarr.create_group(other / "labels").create_group("mito").create_array("0", data=np.ones((8, 269, 364), "uint8"))
    before = {path: path.read_bytes() for path in (other / "labels").rglob("*") if path.is_file()}
    with pytest.raises(ld.StoreExistsError, match=r"labels/mito is not what liver_dask makes of mito.*another name"):
        ld.add_pyramid(other, progress=False)
    assert {path: path.read_bytes() for path in (other / "labels").rglob("*") if path.is_file()} == before
    assert not (other / "pyramid").exists(), "levels were computed first"
    ld.add_pyramid(levels_only, progress=False)
    array = zarr.open_array(levels_only / "labels" / "er" / "0", mode="r+")
    kept = zarr.open_array(levels_only / "er", mode="r")[:]
    array[2, :100, :100] = 255  # a correction
    corrected = array[:]
    ld.add_pyramid(levels_only, progress=False)
    root = zarr.open_group(levels_only, mode="r+", use_consolidated=False)
    root.attrs.put({name: value for name, value in root.attrs.asdict().items() if name != "ome"})
    with pytest.raises(ld.StoreExistsError, match="made or changed it"):
        ld.add_pyramid(levels_only, progress=False)
    np.testing.assert_array_equal(zarr.open_array(levels_only / "labels" / "er" / "0", mode="r")[:], corrected)
    np.testing.assert_array_equal(zarr.open_array(levels_only / "er", mode="r")[:], kept)


def test_labels_of_an_earlier_version_are_made_whole(levels_only: Path) -> None:
    """The package's own labels that lack a level are completed, and a `labels.partial` that a kill left is removed."""
    ld.add_pyramid(levels_only, progress=False)
    expected = shutil.copytree(levels_only, levels_only.with_name("expected"))
    root = zarr.open_group(levels_only, mode="r+", use_consolidated=False)
    root.attrs.put({name: value for name, value in root.attrs.asdict().items() if name != "ome"})
    shutil.rmtree(levels_only / "labels" / "mito" / "3")
    shutil.copytree(levels_only / "labels", levels_only / "labels.partial")
    ld.add_pyramid(levels_only, progress=False)
    assert not (levels_only / "labels.partial").exists()
    for folder in ("labels", "pyramid"):
        assert_same_files(expected / folder, levels_only / folder)


@in_both(
    "what",
    ["labels", "labels as a file", "pyramid", "pyramid as a file", "pyramid/s1", "ome"],
    ["labels", "pyramid as a file", "pyramid", "pyramid/s1"],
)
def test_what_is_not_ours_is_refused_before_anything_is_computed(small_plain: Path, place: Place, what: str) -> None:
    """Foreign files, groups or metadata where the pyramid or labels belong are an error, and no file changes."""
    store = copied(small_plain, place / "a.zarr")
    name = what.split()[0]
    if what.endswith("file"):
        put(store / name, "mine")
    elif what == "ome":
        zarr.open_group(writable(store), mode="r+").attrs["ome"] = "mine"
    elif what == "pyramid":
        zarr.create_group(writable(store / "pyramid")).create_group("mine")
    else:
        zarr.create_array(writable(store / name), data=np.ones((2, 3, 4)))
    before = contents(store)
    with pytest.raises(ld.StoreExistsError, match=name.split("/")[0]) as told:
        ld.add_pyramid(store, progress=False)
    assert "\n" not in str(told.value)
    assert contents(store) == before


CHANGING = ("replace", "mkdir", "unlink", "open", "read_bytes", "iterdir")
CHANGING_OF_OS = ("link", "fsync", "rename", "replace", "mkdir")


def failing_at(step: int, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Call a function, let its file operation number `step` fail, and return whether it got that far."""
    done = 0

    def counted(operation: Callable) -> Callable:
        def counting(*args, **kwargs):
            nonlocal done
            done += 1
            if done == step:
                raise OSError(errno.EIO, "the disk is bad")
            return operation(*args, **kwargs)

        return counting

    with monkeypatch.context() as patched:
        for name in CHANGING:
            patched.setattr(Path, name, counted(getattr(Path, name)))
        for name in CHANGING_OF_OS:
            patched.setattr(os, name, counted(getattr(os, name)))
        try:
            call()
        except Exception:  # any error is allowed: the test checks the files that are left
            assert done >= step
    return done >= step


@pytest.mark.slow
def test_a_fault_at_any_file_operation_harms_nothing_of_a_users(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault at any file operation leaves the user's labels as they are, and the next call completes the metadata."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a hundred calls a run, and this test does not check durability
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"])
    store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=(37, 130, 21, 90, 1, 3), progress=False, **SMALL))
    with monkeypatch.context() as patched:
        patched.setattr(pyramid, "write_ome_metadata", lambda *_: None)
        ld.add_pyramid(store, progress=False)
    add_own_things(store, [1, 69, 93])
    before = own_files(store)
    expected = shutil.copytree(store, tmp_path / "expected")
    ome_zarr.write_ome_metadata(store_levels.levels_of(expected), None)
    step = tried = 0
    failed = True
    while failed:
        step, tried = step + 1 + step // 4, tried + 1
        other = shutil.copytree(store, tmp_path / "other")
        levels = store_levels.levels_of(other)
        failed = failing_at(step, partial(ome_zarr.write_ome_metadata, levels, None), monkeypatch)
        assert [*own_files(other).values()] == [*before.values()]
        with warnings.catch_warnings(action="error"):
            assert set(xr.open_zarr(other)) == {"raw", "mito"}
        if not ome_zarr.is_described(levels):
            ome_zarr.write_ome_metadata(levels, None)
        assert_same_files(expected, other)
        shutil.rmtree(other)
    assert tried > 10


@pytest.mark.parametrize("step", [3, 20, 60, 90, 120])
def test_a_kill_harms_nothing_of_a_users(levels_only: Path, step: int) -> None:
    """A kill leaves the user's labels as they are, and the next call completes the pyramid without leftovers."""
    add_own_things(levels_only)
    before = own_files(levels_only)
    killed_at(step, partial(ld.add_pyramid, levels_only, progress=False))
    assert own_files(levels_only) == before
    ld.add_pyramid(levels_only, progress=False)
    check_own_things(levels_only, before)
    assert not list(levels_only.rglob("*.partial"))


def test_what_viewers_need_is_on_the_disk_when_the_call_is_done(
    levels_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files and folders that add_pyramid makes or changes are synchronised to the disk before it returns."""
    synced: set[int] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    known = {path.stat().st_ino for path in levels_only.rglob("*")}
    monkeypatch.setattr(os, "fsync", noted)
    ld.add_pyramid(levels_only, progress=False)
    new = [path for path in levels_only.rglob("*") if path.stat().st_ino not in known]
    assert len(new) > 40
    changed = [levels_only, levels_only / "zarr.json", levels_only / "pyramid", levels_only / "pyramid" / "zarr.json"]
    assert [str(path) for path in [*new, *changed] if path.stat().st_ino not in synced] == []


def test_bad_input_is_one_sentence(tmp_path: Path, place: Place) -> None:
    """A path without a store, and a variable with a reserved name, are errors that say so."""
    with pytest.raises(ld.NotDownloadedError, match="no complete store"):
        ld.add_pyramid(place / "nothing.zarr")
    ds = ld.open_human_liver_em(tmp_path, shape=SHAPE)
    for name in ("pyramid", "labels"):
        with pytest.raises(ld.InvalidArgumentError, match="rename it"):
            ld.to_zarr(ds.rename(raw=name), place / "a.zarr")
