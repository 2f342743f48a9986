"""`verify`: a good store passes, and every kind of damage is reported with its position."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers import tiny
from helpers.archive import SHAPE
from helpers.command import run_here
from helpers.places import IN_A_FOLDER, REAL_IN_S3, copied, files_of, flip, in_both, put, read, remove, writable
from helpers.stores import BOX, SMALL, SMALL_BOX, undisturbed
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.places import Place
from liver_dask.store import levels as store_levels
from liver_dask.store import record
from liver_dask.store.comparison import Comparison, Difference, differs
from liver_dask.store.layout import Region, Shard
from liver_dask.store.shards import Checksum
from liver_dask.store.zarr_store import zarr_store


@pytest.fixture(scope="module")
def whole(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(archive, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def kept(whole: Path, place: Place) -> Place:
    return copied(whole, place / "a.zarr")


@in_both("full", [False, True], [False])
def test_a_good_store_passes(kept: Place, full: bool) -> None:
    """A good store passes, and the report has the numbers of its shards, its bytes and the compared voxels."""
    report = ld.verify(kept, full=full, progress=False)
    assert report.ok, report
    assert report.shards == 4 * 2 * 3 * 3
    x0, x1, y0, y1, z0, z1 = BOX
    voxels = 4 * (x1 - x0) * (y1 - y0) * (z1 - z0)
    assert report.voxels == voxels if full else 0 < report.voxels < voxels / 5
    assert report.bytes == sum(len(read(kept / shard)) for shard in every_shard(kept))
    assert "all right" in str(report)


@pytest.fixture(scope="module")
def whole_small(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"])
    path = tmp_path_factory.mktemp("small") / "s.zarr"
    return Path(ld.to_zarr(ds, path, bounding_box=SMALL_BOX, progress=False, **SMALL))


@pytest.fixture
def small(whole_small: Path, place: Place) -> Place:
    return copied(whole_small, place / "s.zarr")


def every_shard(store: Place) -> list[str]:
    return [name for name in files_of(store) if re.fullmatch(r"\w+/c/\d+/\d+/\d+", name)]


def position_of(shard: str) -> str:
    """Return what reports call a shard."""
    name, _, *position = shard.split("/")
    return f"shard {'/'.join(position)} of {name}"


PYRAMID = {"chunks": (2, 64, 64), "shards": (4, 512, 512), "pyramid": True, "progress": False}


@pytest.fixture(scope="module")
def with_levels(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a mask and raw with a pyramid."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", 150)
        return Path(ld.to_zarr(ds, tmp_path_factory.mktemp("levels") / "s.zarr", **PYRAMID))


def damaged(shard: Place, damage: str) -> None:
    """Change one byte of a shard, cut its last one off, or remove the shard."""
    data = read(shard)
    match damage:
        case "flip":
            flip(shard, len(data) // 3)
        case "cut":
            put(shard, data[:-1])
        case "lose":
            remove(shard)


@pytest.mark.slow
@in_both(
    "where, damage",
    product(("", "pyramid/s1"), ("flip", "cut", "lose")),
    [],
    [("pyramid/s1", "flip")],
)
def test_a_flipped_byte_is_one_line_and_what_to_do(
    with_levels: Path, place: Place, monkeypatch: pytest.MonkeyPatch, damage: str, where: str
) -> None:
    """A damaged shard is one line in plain words, and the last line says what to remove and how to make it anew."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 150)
    store = copied(with_levels, place / "s.zarr")
    damaged(store / where / "raw" / "c" / "0" / "0" / "0", damage)
    report = ld.verify(store, progress=False)
    (problem,) = report.problems
    assert problem.startswith(f"{where}/shard 0/0/0 of raw is ".lstrip("/"))
    assert "; it holds raw[0:4, 0:" in problem
    assert {"flip": "bytes of it have changed", "cut": "instead of", "lose": "is missing"}[damage] in problem
    remedy = str(report).splitlines()[-1]
    assert remedy == f"Remove {store}, and make it anew with the same `liver-dask download` (or `to_zarr`)."


@pytest.mark.slow
@IN_A_FOLDER
def test_what_to_do_about_a_damaged_store_helps(
    archive: Path, with_levels: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged store that is removed and made anew, as the report says, is in order."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 150)
    store = copied(with_levels, place / "s.zarr")
    damaged(store / "raw" / "c" / "0" / "0" / "0", "flip")
    assert not ld.verify(store, progress=False).ok
    remove(store)
    ld.to_zarr(ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"]), store, **PYRAMID)
    assert ld.verify(store, progress=False).ok


@pytest.mark.slow
@in_both("examples", [30], [], [10])
def test_any_changed_byte_is_found(small: Place, examples: int) -> None:
    """A changed byte anywhere in a shard is reported with the shard and its variable."""

    @settings(max_examples=examples, deadline=None)
    @given(data=st.data())
    def is_found(data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from(every_shard(small)))
        at, mask = data.draw(st.integers(0, len(read(small / shard)) - 1)), data.draw(st.integers(1, 255))
        flip(small / shard, at, mask)
        try:
            report = ld.verify(small, progress=False)
        finally:
            flip(small / shard, at, mask)
        assert any(position_of(shard) in problem for problem in report.problems)

    is_found()


@in_both("damage", ["missing", "cut", "longer", "empty"], ["missing", "cut"])
def test_a_shard_that_is_not_whole_is_found(small: Place, damage: str) -> None:
    """A shard that is missing, cut, too long or empty is reported with its position."""
    shard = every_shard(small)[0]
    if damage == "missing":
        remove(small / shard)
    else:
        data = read(small / shard)
        put(small / shard, {"cut": data[:-1], "longer": data + b"\0", "empty": b""}[damage])
    report = ld.verify(small, xr.Dataset(), progress=False)
    assert any(f"{position_of(shard)} is" in problem for problem in report.problems)


def test_wrong_voxels_with_right_checksums_are_found_where_they_are_read(small: Place) -> None:
    """A full comparison reports a wrong voxel, with its position, even if the checksum of its shard matches."""
    array = zarr.open_array(writable(small / "raw"), mode="r+")
    array[3, 100, 7] += 1
    checksums = record.read_checksums(small, "raw")
    manifest = json.loads(read(small / "raw" / "manifest.json"))
    shard = Shard(0, 0, 0)
    data = read(record.shard_path(small, "raw", shard))
    assert checksums[shard] != Checksum(len(data), google_crc32c.value(data))
    manifest["shards"]["0/0/0"] = Checksum(len(data), google_crc32c.value(data))
    put(small / "raw" / "manifest.json", json.dumps(manifest))
    report = ld.verify(small, full=True, progress=False)
    assert [problem for problem in report.problems if "manifest.json" not in problem] == [
        "raw[3, 0:128] has 1 voxels that are not the source's; the first is raw[3, 100, 7]"
    ]


def test_lost_records_and_changed_metadata_are_reported(small: Place) -> None:
    """A missing manifest and a changed data type in the metadata of an array are reported."""
    remove(small / "raw" / "manifest.json")
    tiny.edit(small / "er" / "zarr.json", lambda document: document.update(data_type="int8"))
    problems = " ".join(ld.verify(small, progress=False).problems)
    assert "manifest.json, which has the checksums of the shards of raw, cannot be read" in problems
    assert "the metadata of er: its data_type is 'int8', and was written as 'uint8'" in problems


@REAL_IN_S3
def test_computed_variables_are_compared_if_the_dataset_is_given(archive: Path, place: Place) -> None:
    """Computed variables are reported as unchecked, or compared if their Dataset is given; another one is an error."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE).isel(x=slice(128), y=slice(128), z=slice(4))
    ds = ds.assign(small=(ds.raw // 256).astype("uint8"))[["small", "mito"]]
    path = place / "a.zarr"
    ld.to_zarr(ds, path, progress=False, **SMALL)
    report = ld.verify(path, progress=False)
    assert report.ok
    assert report.unchecked == ["small"]
    assert "give the Dataset" in str(report)
    with_it = ld.verify(path, ds, progress=False)
    assert with_it.ok
    assert not with_it.unchecked
    assert with_it.voxels > report.voxels
    for other in (ds.isel(x=slice(1, None)), ds.assign(small=ds.small + 1)):
        with pytest.raises(ld.InvalidArgumentError, match="is not what"):
            ld.verify(path, other, progress=False)


def test_what_is_no_complete_store_is_refused(place: Place) -> None:
    """A path without a store, or with an unfinished one, is an error."""
    with pytest.raises(ld.NotDownloadedError, match="no complete store"):
        ld.verify(place / "nothing", progress=False)
    put(place / "b.zarr.partial" / "lock", "")
    with pytest.raises(ld.NotDownloadedError, match="finish it first"):
        ld.verify(place / "b.zarr", progress=False)


@pytest.mark.slow
def test_sampling_looks_at_the_edges_and_at_every_shard(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default few voxels are compared, which the seed determines: of every shard, and of all edges of the store."""
    depth, height = 8, SHAPE[1]  # two whole layers of shards: chance alone would not always choose the last slice
    ds = ld.open_human_liver_em(archive, shape=SHAPE).isel(z=slice(depth))
    path = ld.to_zarr(ds, tmp_path / "b.zarr", progress=False, **SMALL)
    compared: set[tuple[str, Region]] = set()
    differences = Comparison._differences

    def noted(self: Comparison, name: str, region: Region, expected: np.ndarray) -> Iterator[Difference]:
        assert expected.shape == (region.z_stop - region.z_start, region.y_stop - region.y_start, SHAPE[2])
        compared.add((name, region))
        return differences(self, name, region, expected)

    monkeypatch.setattr(Comparison, "_differences", noted)
    looked = []
    for seed in (0, 0, 1, 2, 3):
        compared.clear()
        assert ld.verify(path, seed=seed, progress=False).ok
        looked.append(frozenset(compared))
    assert looked[0] == looked[1] != looked[2]
    layers, rows = range(2), range(3)
    for name, of_seed in product(("raw", *EMPIAR_13356.labels), looked):
        regions = {region for of, region in of_seed if of == name}
        rows_of_shards = {
            (z // SMALL["shards"][0], y // SMALL["shards"][1])
            for region in regions
            for z in range(region.z_start, region.z_stop)
            for y in range(region.y_start, region.y_stop)
        }
        assert rows_of_shards == set(product(layers, rows)), name
        slices = {region.z_start for region in regions}
        assert {0, depth - 1} <= slices
        for z in slices:
            here = [region for region in regions if region.z_start == z]
            assert {min(region.y_start for region in here), max(region.y_stop for region in here)} == {0, height}


@IN_A_FOLDER
def test_the_command_says_so_and_exits_with_1(kept: Path) -> None:
    """`liver-dask verify` exits with 0 for a good store, and with 1 and a message for a damaged or missing one."""
    good = run_here("verify", kept)
    assert good.returncode == 0, good.stderr
    assert "all right" in good.stdout
    remove(kept / every_shard(kept)[0])
    bad = run_here("verify", kept, "--full")
    assert bad.returncode == 1
    assert "is missing" in bad.stdout
    assert "Traceback" not in bad.stderr
    assert np.all(xr.open_zarr(kept).er[:4, :128, :128] == 0)  # zarr reads a missing shard as zeros
    nothing = run_here("verify", "no.zarr")
    assert nothing.returncode == 1
    assert "no complete store" in nothing.stderr


NOT_A_NUMBER = [0x7FC00000, 0xFFC00000, 0x7F800001]
"""Bit patterns of NaN: quiet ones, as different processors make them, and a signalling one."""


@in_both("dtype, full", product(("float32", "float64"), (False, True)), [("float32", True)])
def test_floats_are_compared_by_their_bits_and_nan_is_nan(archive: Path, place: Place, dtype: str, full: bool) -> None:
    """A store of floats with NaN and negative zeros passes the comparison with its Dataset."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"])
    inside = ds.er > 0
    value = xr.where(inside, np.nan, xr.where(ds.raw % 2 == 0, -0.0, 1.5)).astype(dtype)
    ds = ds.assign(value=value)[["value"]]
    path = place / "a.zarr"
    ld.to_zarr(ds, path, bounding_box=SMALL_BOX, progress=False, **SMALL)
    ds = ds.isel(x=slice(37, 165), y=slice(21, 149), z=slice(1, 5))
    voxels = zarr.open_array(zarr_store(path / "value"), mode="r")[:]
    assert np.isnan(voxels).any()
    assert (np.signbit(voxels) & (voxels == 0)).any()
    report = ld.verify(path, ds, full=full, progress=False)
    assert report.ok, report
    assert report.voxels


@REAL_IN_S3
def test_zeros_that_lost_their_sign_are_found(archive: Path, place: Place) -> None:
    """A zero that lost its sign is reported with its position."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"])
    ds = ds.assign(value=xr.where(ds.raw % 2 == 0, -0.0, 1.5).astype("float32"))[["value"]]
    path = place / "a.zarr"
    ld.to_zarr(ds, path, bounding_box=SMALL_BOX, progress=False, **SMALL)
    ds = ds.isel(x=slice(37, 165), y=slice(21, 149), z=slice(1, 5))
    array = zarr.open_array(writable(path / "value"), mode="r+")
    voxels = array[:]
    at = tuple(np.argwhere((voxels == 0) & np.signbit(voxels))[0])
    array[at] = 0.0
    report = ld.verify(path, ds, full=True, progress=False)
    assert any(f"the first is value[{at[0]}, {at[1]}, {at[2]}]" in problem for problem in report.problems), report


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_voxels_differ_where_their_bits_do_but_for_nan(data: st.DataObject) -> None:
    """Two voxels differ if their bits differ, except for two NaNs."""
    special = st.sampled_from([0x0, 0x80000000, 0x3F800000, 0x7F800000, 0xFF800000, 1, *NOT_A_NUMBER])
    one, other = (
        np.array(data.draw(st.lists(st.one_of(special, st.integers(0, 2**32 - 1)), min_size=6, max_size=6)), "<u4")
        for _ in range(2)
    )
    for dtype in ("<f4", "<u4"):
        found = differs(one.view(dtype).reshape(1, 2, 3), other.view(dtype).reshape(1, 2, 3))
        nan = [
            dtype == "<f4" and a & 0x7FFFFFFF > 0x7F800000 and b & 0x7FFFFFFF > 0x7F800000
            for a, b in zip(one.tolist(), other.tolist(), strict=True)
        ]
        assert found.ravel().tolist() == [
            a != b and not same for a, b, same in zip(one.tolist(), other.tolist(), nan, strict=True)
        ]


def test_big_endian_voxels_are_compared_by_value() -> None:
    """Voxels in different byte orders are compared by value, including the sign of a zero."""
    voxels = np.array([[[1.5, -0.0, np.nan]]], ">f4")
    assert not differs(voxels.astype("<f4"), voxels).any()
    assert differs(voxels.astype("<f4"), -voxels).ravel().tolist() == [True, True, False]


def test_a_source_that_cannot_be_read_is_reported(archive: Path, tmp_path: Path, place: Place) -> None:
    """`verify` raises SliceNotFoundError if a file of the source, or all of it, is missing."""
    shutil.copytree(archive, tmp_path / "archive")
    ds = ld.open_human_liver_em(tmp_path / "archive", shape=SHAPE, labels=["er"])
    path = place / "a.zarr"
    ld.to_zarr(ds, path, bounding_box=SMALL_BOX, progress=False, **SMALL)
    (tmp_path / "archive" / EMPIAR_13356.path("er", 1)).unlink()
    with pytest.raises(ld.SliceNotFoundError, match="er, slice 1"):
        ld.verify(path, progress=False)
    shutil.rmtree(tmp_path / "archive")
    with pytest.raises(ld.SliceNotFoundError, match="--source"):
        ld.verify(path, progress=False)
