"""Far views without a pyramid: the row in the middle, of which several columns become one."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.far import assert_shares, far, far_shares
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import ArchiveServer
from liver_dask.store import columns
from liver_dask.store.columns import combined
from liver_dask.viewing.levels import window

DEPTH, HEIGHT, WIDTH = SHAPE
shapes = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=90)


@given(data=st.data(), dtype=st.sampled_from(["u1", "<u2", "<u4", "i1", "<i2", "<i4", "<f4", "<f8"]))
@settings(deadline=None)
def test_columns_of_images_are_averaged(data: st.DataObject, dtype: str) -> None:
    """Each voxel is the mean of its columns; integers are rounded to the nearest, halves to even."""
    elements = {"min_value": -(2.0**20), "max_value": 2.0**20} if dtype[-2] == "f" else None
    image = data.draw(npst.arrays(dtype, shapes, elements=elements))
    step = data.draw(st.integers(1, 100))
    found = combined(image[None], step, "image")[0]
    sums = [image[:, i : i + step].astype(float).mean(1) for i in range(0, image.shape[1], step)]
    means = np.stack(sums, axis=1)
    assert found.dtype == image.dtype
    np.testing.assert_allclose(found, np.rint(means) if image.dtype.kind in "iu" else means, rtol=1e-6, atol=1e-6)


@given(data=st.data(), step=st.integers(2, 300), value=st.sampled_from([1, 255]))
@settings(deadline=None)
def test_masks_keep_their_share(data: st.DataObject, step: int, value: int) -> None:
    """Each cell of 32 x 32 voxels has as many labelled ones as the voxels that it stands for, at any step."""
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70 * step))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = (rng.random((height, width)) < data.draw(st.floats(0, 1))).astype(np.uint8) * np.uint8(value)
    found = combined(mask[None], step, "mask")[0]
    shares = np.stack([(mask[:, i : i + step] > 0).mean(1) for i in range(0, width, step)], axis=1)
    assert set(np.unique(found)) <= {0, value}
    if width % step == 0:  # otherwise the last column counts as if it were whole, in whole voxels
        assert_shares(found, shares)
    assert (found[shares == 1] > 0).all()
    assert not found[shares == 0].any()


@given(image=npst.arrays("<u4", shapes), step=st.integers(1, 100))
@settings(deadline=None)
def test_instances_keep_their_numbers(image: np.ndarray, step: int) -> None:
    """Each voxel is the one in the middle of its columns."""
    found = combined(image[None], step, "instances")[0]
    for i, first in enumerate(range(0, image.shape[1], step)):
        middle = first + min(step, image.shape[1] - first) // 2
        np.testing.assert_array_equal(found[:, i], image[:, middle])


OPENED = {
    "archive": lambda archive, store: ld.open_human_liver_em(archive, shape=SHAPE),
    "store": lambda archive, store: xr.open_zarr(store),
    "store without dask": lambda archive, store: xr.open_zarr(store, chunks=None),
    "in memory": lambda archive, store: ld.open_human_liver_em(archive, shape=SHAPE).compute(),
}


@pytest.fixture(scope="module")
def store(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a pyramid."""
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    layout: dict[str, Any] = {"chunks": (2, 64, 64), "shards": (4, 128, 128)}
    return Path(ld.to_zarr(ld.open_human_liver_em(archive, shape=SHAPE), path, progress=False, **layout))


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize(("y", "x", "pixels"), [((0, HEIGHT), (0, WIDTH), 40), ((31, 207), (53, 399), 100)])
def test_a_far_window_is_what_all_voxels_give(archive: Path, store: Path, voxels, kind: str, y, x, pixels: int) -> None:
    """Far windows of archives, stores and data in memory are averages of the middle rows, at their place."""
    ds = OPENED[kind](archive, store)
    seen = window(ds, 4, y, x, pixels)
    step = -(-max(y[1] - y[0], x[1] - x[0]) // pixels)
    assert (seen.attrs["step"], seen.attrs["factors"], seen.attrs["corner"]) == (
        [1, step, step],
        [1, 1, 1],
        [4, y[0], x[0]],
    )
    assert (seen.raw.chunks is None) == (kind == "in memory"), "it was read"
    np.testing.assert_array_equal(seen.raw, far(voxels["raw"][4], y, x, step))
    for name in EMPIAR_13356.labels:
        labelled, shares = seen[name].values, far_shares(voxels[name][4], y, x, step)
        assert_shares(labelled[:, :32], shares[:, :32])
        assert abs(labelled.astype(bool).mean() - shares.mean()) < 0.01
    np.testing.assert_array_equal(seen.y, y[0] + (step - 1) / 2 + step * np.arange(seen.sizes["y"]))
    np.testing.assert_array_equal(seen.x, x[0] + (step - 1) / 2 + step * np.arange(seen.sizes["x"]))
    assert seen.z == 4


def test_what_is_selected_of_a_far_window_is_the_same_and_costs_less(server: ArchiveServer) -> None:
    """Rows, columns and points of a lazy far window have the same values, and rows fetch only their own strips."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    whole = window(ds, 4, pixels=100).compute()
    lazy = window(ld.open_human_liver_em(server.url, shape=SHAPE), 4, pixels=100)
    before = server.bytes_sent
    np.testing.assert_array_equal(lazy.raw[10:14], whole.raw[10:14])
    some = server.bytes_sent - before
    assert some < 60_000, some
    for name in whole:
        for key in (np.s_[5:40, 7:60], np.s_[::3, ::-2], np.s_[33], np.s_[:, 70], np.s_[[40, 2, 2], 9:]):
            np.testing.assert_array_equal(lazy[name][key], whole[name][key])
        points = xr.DataArray([3, 50, 3], dims="p"), xr.DataArray([80, 1, 80], dims="p")
        np.testing.assert_array_equal(lazy[name][points], whole[name][points])
    again = pickle.loads(pickle.dumps(lazy))
    xr.testing.assert_identical(again.compute(), whole)


def test_memory_does_not_decide_the_voxels(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are read and combined in small parts give the same voxels."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    seen = partial(window, ds, 4, (3, 290), (5, 411), 90)
    whole = seen().compute()
    for bytes_at_once in (1, 5_000, 50_000):
        monkeypatch.setattr(columns, "BYTES_AT_ONCE", bytes_at_once)
        monkeypatch.setattr(columns, "BYTES_IN_CACHE", bytes_at_once)
        xr.testing.assert_identical(seen().compute(), whole)


@pytest.mark.parametrize("dtype", ["bool", "float32", "int64"])
def test_other_dtypes_are_seen_from_afar(dtype: str) -> None:
    """Masks of bools and images of floats or of 64 bits have far views, too."""
    voxels = (np.arange(2 * 50 * 70).reshape(2, 50, 70) % 3 == 0).astype(dtype)
    for ds in (of := xr.Dataset({"raw": (("z", "y", "x"), voxels)}), of.chunk(y=7, x=11)):
        seen = window(ds.assign_coords({d: np.arange(n) for d, n in of.sizes.items()}), 1, pixels=20)
        assert seen.raw.dtype == dtype
        assert seen.raw.shape == (13, 18)
