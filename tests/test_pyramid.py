"""Pyramids: each level is what another library makes of the one below, whatever happens; any reader opens it."""

import os
import shutil
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from conftest import SHAPE
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel
from test_resume import killed_at
from test_zarr_export import BOX, SMALL, assert_same_files

import liver_dask as ld
from liver_dask import ome_zarr, pyramid, stored

SMALL_ENOUGH = 50
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int64", "uint64")


def downsampled(voxels: np.ndarray, step: tuple[int, ...], method: str) -> np.ndarray:
    """What tensorstore makes of it."""
    return tensorstore.downsample(tensorstore.array(voxels), list(step), method).read().result()


@given(
    voxels=st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7))
    ),
    step=st.tuples(*[st.sampled_from([1, 2])] * 3),
)
@settings(deadline=None, max_examples=300)
def test_means_are_tensorstores(voxels: np.ndarray, step: tuple[int, int, int]) -> None:
    """Rounding, an overflow or an odd edge would shift what is seen from afar."""
    found = pyramid.halve(voxels, step, is_mask=False)
    assert found.dtype == voxels.dtype
    if voxels.dtype.itemsize < 8:  # of wider ones tensorstore's sum overflows
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
@settings(deadline=None, max_examples=300)
def test_masks_are_tensorstores_mode_and_ties_are_labelled(mask: np.ndarray, step: tuple[int, int, int]) -> None:
    """Thin membranes would vanish from afar, or a mask hold values that mean nothing."""
    labels = mask * np.uint8(255)
    found = pyramid.halve(labels, step, is_mask=True)
    share = downsampled(mask.astype(np.float64), step, "mean")
    mode = downsampled(labels, step, "mode")
    np.testing.assert_array_equal(found[share != 0.5], mode[share != 0.5])
    assert (found[share == 0.5] == 255).all()


@pytest.fixture(autouse=True)
def small_slices_have_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "SMALL_ENOUGH", SMALL_ENOUGH)


@pytest.fixture(scope="module")
def plain(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a box whose sides are odd, without levels; voxels are thick."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, voxel_size_nm=(30, 8, 8))
    return Path(ld.to_zarr(ds, tmp_path_factory.mktemp("plain") / "a.zarr", bounding_box=BOX, progress=False, **SMALL))


@pytest.fixture
def store(plain: Path, tmp_path: Path) -> Path:
    """A copy of it, with levels."""
    ld.add_pyramid(shutil.copytree(plain, tmp_path / "a.zarr"), progress=False)
    return tmp_path / "a.zarr"


def test_each_level_is_the_one_below_as_tensorstore_halves_it(store: Path) -> None:
    """A level would be of another place, of another level, or lack a band of rows."""
    steps = [(1, 2, 2), (1, 2, 2), (2, 2, 2)]  # 30, 8, 8 nm; 30, 16, 16; 30, 32, 32; 60, 64, 64
    levels = [xr.open_zarr(store), *xr.open_datatree(store, group="pyramid", engine="zarr").children.values()]
    assert len(levels) == 4
    for below, level, step in zip(levels, levels[1:], steps, strict=False):
        for name in ("raw", "mito", "er", "nucleus"):
            source, found = below[name].values, level[name].values
            if name == "raw":
                np.testing.assert_array_equal(found, downsampled(source, step, "mean"))
                continue
            share = downsampled((source > 0).astype(np.float64), step, "mean")
            np.testing.assert_array_equal(found, np.where(share >= 0.5, 255, 0))
        assert level.attrs["voxel_size_nm"] == [
            of * n for of, n in zip(below.attrs["voxel_size_nm"], step, strict=True)
        ]
        for dim, of in zip(("z", "y", "x"), step, strict=True):
            whole_cells = slice(0, below.sizes[dim] // of)
            expected = below[dim].coarsen({dim: of}, boundary="trim").mean()
            np.testing.assert_array_equal(level[dim][whole_cells], expected)


def test_what_reads_the_store_reads_it_as_before(plain: Path, store: Path) -> None:
    """Adding levels would change the variables, warn, or hide them from xarray, from training or from `verify`."""
    with warnings.catch_warnings(action="error"):
        before, after = xr.open_zarr(plain), xr.open_zarr(store)
        xr.testing.assert_equal(before.compute(), after.compute())
        assert before.attrs.items() <= after.attrs.items()
    np.testing.assert_array_equal(stored.StoredArray(store, "raw")[0:3, 5:9, 7:20], before.raw[0:3, 5:9, 7:20])
    assert ld.verify(store, full=True, progress=False).ok
    again = ld.open_human_liver_em(before.attrs["source"], shape=SHAPE, voxel_size_nm=(30, 8, 8))
    assert ld.to_zarr(again, store, bounding_box=BOX, progress=False, pyramid=True, **SMALL) == str(store)


def test_once_there_nothing_is_written_again(store: Path) -> None:
    """Each call would write links and metadata anew, under whoever looks at them."""
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert len(ld.add_pyramid(store, progress=False)) == 4
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_the_metadata_are_ome_zarr(store: Path) -> None:
    """A viewer would refuse the image or its labels, or place them beside each other."""
    image = Image.from_zarr(zarr.open_group(store, mode="r"))
    (scale,) = image.ome_attributes.multiscales
    assert [axis.unit for axis in scale.axes] == ["nanometer"] * 3
    assert image.labels.label_paths == ["mito", "er", "nucleus"]
    for name in image.labels.label_paths:
        label = ImageLabel.from_zarr(zarr.open_group(store / "labels" / name, mode="r"))
        (of_label,) = label.ome_attributes.multiscales
        for one, other in zip(scale.datasets, of_label.datasets, strict=True):
            assert one.coordinateTransformations == other.coordinateTransformations
            xr.testing.assert_equal(
                xr.open_zarr(store / Path(one.path).parent, chunks=None, consolidated=False)[name].variable,
                xr.Variable(("z", "y", "x"), zarr.open_array(store / "labels" / name / other.path)[:]),
            )
    for dataset in scale.datasets:
        of, at = (transformation for transformation in dataset.coordinateTransformations)
        level = xr.open_zarr(store / Path(dataset.path).parent, chunks=None, consolidated=False)
        for axis, dim in enumerate(("z", "y", "x")):
            size = [30, 8, 8][axis]
            assert at.translation[axis] == level[dim].values[0] * size
            assert of.scale[axis] == (level[dim].values[1] - level[dim].values[0]) * size


def test_an_unknown_voxel_size_is_not_guessed(archive: Path, tmp_path: Path) -> None:
    """A figure would carry a scale bar that nobody measured; or slices be merged on a guess."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, pyramid=True, **SMALL)
    (scale,) = Image.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r")).ome_attributes.multiscales
    assert [axis.unit for axis in scale.axes] == [None] * 3
    assert [dataset.coordinateTransformations[0].scale for dataset in scale.datasets] == [
        [1.0, float(factor), float(factor)] for factor in (1, 2, 4, 8)
    ]
    assert scale.metadata["voxel_size_source"].startswith("not given")


def test_labels_take_no_room_and_copies_do_where_there_are_no_links(
    plain: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks would be on the disk twice; or a disk without hard links have a store without labels."""
    shards = [path for path in (store / "labels").rglob("*") if path.is_file() and path.name.isdigit()]
    assert shards
    assert all(path.stat().st_nlink == 2 for path in shards)

    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    other = shutil.copytree(plain, tmp_path / "b.zarr")
    monkeypatch.setattr(ome_zarr, "os", SimpleNamespace(link=refused, walk=os.walk))
    ld.add_pyramid(other, progress=False)
    assert_same_files(store, other)


@given(steps=st.lists(st.integers(1, 700), max_size=3))
@settings(deadline=None, max_examples=5)
def test_killed_at_any_step_the_levels_are_the_same(
    steps: list[int], plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A kill would leave half a level that viewers take for whole, damage the store, or never be made good."""
    folder = tmp_path_factory.mktemp("killed")
    expected, other = (shutil.copytree(plain, folder / name / "a.zarr") for name in ("expected", "other"))
    ld.add_pyramid(expected, progress=False)
    for step in steps:
        killed_at(step, partial(ld.add_pyramid, other, progress=False))
        xr.testing.assert_identical(xr.open_zarr(other).raw.compute(), xr.open_zarr(plain).raw.compute())
    ld.add_pyramid(other, progress=False)
    assert_same_files(expected, other)
    shutil.rmtree(folder)


def test_a_changed_byte_of_a_level_is_found(store: Path) -> None:
    """A far view would be wrong, and nothing say so."""
    shard = store / "pyramid" / "s2" / "raw" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    report = ld.verify(store, progress=False)
    assert not report.ok
    assert all(problem.startswith(("pyramid/s2/", "pyramid/s3/")) for problem in report.problems), report.problems


@pytest.mark.parametrize("content", ['{"attributes"', "[]", None])
@pytest.mark.parametrize("where", ["", "pyramid/s1"])
def test_damaged_metadata_are_told_and_no_traceback(store: Path, where: str, content: str | None) -> None:
    """The very command that is to find damage would end in a traceback over it."""
    path = store / where / "zarr.json"
    path.unlink() if content is None else path.write_text(content)
    report = ld.verify(store, progress=False)
    assert any(where in problem or "zarr.json" in problem for problem in report.problems), report.problems
    assert not report.ok
    if not where:
        with pytest.raises(ld.DamagedError, match=r"zarr\.json, which says what the store is, cannot be read"):
            ld.add_pyramid(store, progress=False)


def test_bad_input_is_one_sentence(plain: Path, tmp_path: Path) -> None:
    """A traceback would be all that somebody is told who mistyped a path."""
    with pytest.raises(ld.NotDownloadedError, match="no complete store"):
        ld.add_pyramid(tmp_path / "nothing.zarr")
    ds = ld.open_human_liver_em(tmp_path, shape=SHAPE)
    for name in ("pyramid", "labels"):
        with pytest.raises(ld.InvalidArgumentError, match="rename it"):
            ld.to_zarr(ds.rename(raw=name), tmp_path / "a.zarr")
