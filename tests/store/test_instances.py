"""Instance labels and 8-bit raw keep their values in a store and its pyramid, and viewers are told their kind."""

from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import tifffile
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ome_zarr_models.v05.image_label import ImageLabel

import liver_dask as ld
from liver_dask.core.kinds import kind_of
from liver_dask.store import downsampling
from liver_dask.store import levels as store_levels
from liver_dask.store.record import read_statistics

SHAPE = (6, 130, 170)


@pytest.fixture
def archive(tmp_path: Path) -> ld.Archive:
    """An archive of 8-bit raw with an empty border, and of instance labels with large numbers."""
    random = np.random.default_rng(0)
    raw = random.normal(120, 30, SHAPE).clip(1, 255).astype("uint8")
    raw[:, :, :40] = 0
    cells = np.kron(random.integers(0, 2**32, (3, 13, 17), "uint32"), np.ones((2, 10, 10), "uint32"))
    cells[random.random(SHAPE) < 0.3] = 0
    for name, whole in {"raw": raw, "mito": cells}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for z, pixels in enumerate(whole):
            tifffile.imwrite(tmp_path / "data" / name / f"{z}.tif", pixels, compression="lzw", rowsperstrip=1)
    variables = (
        ld.Variable(name="raw", files="raw/{z}.tif", kind="image"),
        ld.Variable(name="mito", files="mito/{z}.tif", kind="instances", dtype="uint32", meaning="mitochondrion"),
    )
    return ld.Archive(
        name="mine", url=str(tmp_path / "data"), shape=SHAPE, variables=variables, voxel_size_nm=(50, 8, 8)
    )


def most_frequent(labels: np.ndarray, step: tuple[int, int, int]) -> np.ndarray:
    """Return the most frequent label of each block of voxels, computed one by one with the documented rule for ties."""
    out = np.zeros([-(-length // of) for length, of in zip(labels.shape, step, strict=True)], labels.dtype)
    for at in product(*map(range, out.shape)):
        part = labels[tuple(slice(i * of, (i + 1) * of) for i, of in zip(at, step, strict=True))]
        counts = Counter(part.reshape(-1).tolist())
        most = max(counts.values())
        tied = sorted(value for value, count in counts.items() if count == most)
        out[at] = tied[0] or tied[-1 if len(tied) == 1 else 1]
    return out


@settings(deadline=None)
@given(
    arrays(st.sampled_from(["u1", "u4", "i8"]), st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 4)),
    st.tuples(*[st.integers(1, 2)] * 3),
)
def test_the_most_frequent_number_stays(labels: np.ndarray, step: tuple[int, int, int]) -> None:
    """Downsampling instance labels keeps the most frequent label of each block."""
    np.testing.assert_array_equal(downsampling.downsample(labels, step, "most frequent"), most_frequent(labels, step))


def test_a_store_and_its_pyramid_keep_every_number(
    archive: ld.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store has the archive's values, and each pyramid level has the most frequent labels of the one below."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 40)
    ds = ld.open_archive(archive)
    assert [kind_of(ds[name]) for name in ("raw", "mito")] == ["image", "instances"]
    store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", chunks=(2, 32, 32), shards=(4, 64, 64), progress=False))
    for name in ds:
        read = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{store}/{name}"}).result()
        np.testing.assert_array_equal(read[...].read().result(), ds[name])
    levels = [Path(path) for path in ld.add_pyramid(store, progress=False)]
    assert len(levels) == 4
    expected = ds.mito.values
    for below, level in pairwise(levels):
        step = tuple(-(-a // b) for a, b in zip(*(xr.open_zarr(one).mito.shape for one in (below, level)), strict=True))
        expected = most_frequent(expected, step)  # type: ignore[arg-type]
        found = xr.open_zarr(level).mito
        assert found.dtype == np.uint32
        assert kind_of(found) == "instances"
        np.testing.assert_array_equal(found, expected)
    report = ld.verify(store, full=True, progress=False)
    assert report.ok, report


def test_the_metadata_state_the_kind_for_viewers(
    archive: ld.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The OME-Zarr metadata give the contrast range of 8-bit raw, and list the instances as labels without colours."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 100)
    store = Path(ld.to_zarr(ld.open_archive(archive), tmp_path / "a.zarr", chunks=(2, 32, 32), progress=False))
    ld.add_pyramid(store, progress=False)
    import zarr

    root = zarr.open_group(store, mode="r").attrs["ome"]
    window = root["omero"]["channels"][0]["window"]
    assert (window["min"], window["max"]) == (0, 255)
    assert 20 < window["start"] < 120 < window["end"] < 250
    assert zarr.open_group(store / "labels", mode="r").attrs["ome"]["labels"] == ["mito"]
    label = ImageLabel.from_zarr(zarr.open_group(store / "labels" / "mito", mode="r"))
    assert label.ome_attributes.multiscales[0].type == "most frequent, ties to the smallest label"
    assert not label.ome_attributes.image_label.colors, "there are more numbers than colours"
    assert read_statistics(store, "raw", "mean").any(), "of raw of 8 bits too"


def test_the_attribute_kind_is_a_users_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attribute `kind` makes an integer variable instance labels. It is ignored for floats and if it is invalid."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 16)
    numbers = np.random.default_rng(0).integers(0, 9, (2, 32, 32)).astype("i4")
    places = {"z": range(2), "y": range(32), "x": range(32)}
    ds = xr.Dataset({"seg": (("z", "y", "x"), numbers, {"kind": "instances"})}, places)
    store = ld.to_zarr(ds.chunk(), tmp_path / "a.zarr", chunks=(2, 16, 16), progress=False)
    level = ld.add_pyramid(store, progress=False)[1]
    np.testing.assert_array_equal(xr.open_zarr(level).seg, most_frequent(numbers, (1, 2, 2)))
    assert kind_of(ds.seg.astype("f4").assign_attrs(kind="instances")) == "image", "floats have no numbers"
    assert kind_of(ds.seg.assign_attrs(kind=["mask"])) == "image"
    assert kind_of(ds.seg > 1) == "mask"
