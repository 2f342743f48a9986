"""Images in larger voxels are the same voxels with and without a pyramid, and a level of it is read where it exists."""

import logging
import pickle
import shutil
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.means import means_of
from helpers.reads import count_bytes
from helpers.stores import BOX, SMALL
from liver_dask.store import levels, scales
from liver_dask.store.scales import ScaledImage, block_means

STEPS = {
    (1, 1, 1): [(1, 1, 1)],
    (1, 2, 2): [(1, 2, 2)],
    (2, 4, 4): [(1, 2, 2), (2, 2, 2)],  # 16, 8, 8 nm; 16, 16, 16; 32, 32, 32
    (8, 16, 16): [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)],
    (1, 4, 4): [(1, 4, 4)],
    (4, 2, 8): [(4, 2, 8)],
    (1, 3, 5): [(1, 3, 5)],
    (20, 400, 7): [(20, 400, 7)],
}
"""Factors, and the means of means that their voxels are."""


@pytest.fixture(autouse=True)
def small_slices_have_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "SMALL_ENOUGH", 100)  # levels of (1, 2, 2) and (2, 4, 4)


@pytest.fixture(scope="module")
def plain(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without levels, of a box with odd sides."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, voxel_size_nm=(16, 8, 8))
    return Path(ld.to_zarr(ds, tmp_path_factory.mktemp("plain") / "a.zarr", bounding_box=BOX, progress=False, **SMALL))


@pytest.fixture
def store(plain: Path, tmp_path: Path) -> Path:
    """A copy of `plain`, with two levels."""
    assert len(ld.add_pyramid(shutil.copytree(plain, tmp_path / "a.zarr"), progress=False)) == 3
    return tmp_path / "a.zarr"


@pytest.fixture
def raw(voxels) -> np.ndarray:
    x0, x1, y0, y1, z0, z1 = BOX
    return voxels["raw"][z0:z1, y0:y1, x0:x1]


@pytest.mark.parametrize("factors", STEPS)
def test_voxels_are_means_with_and_without_a_pyramid(plain: Path, store: Path, raw: np.ndarray, factors) -> None:
    """All voxels are the rounded means, means of means where pyramids have a level; a pyramid changes none."""
    expected = reduce(means_of, STEPS[factors], raw)
    for path in (plain, store):
        image = pickle.loads(pickle.dumps(ScaledImage(path, "raw", factors)))
        assert image.factors == factors
        assert image.shape == expected.shape
        found = image[:, :, :]
        assert found.dtype == image.dtype == raw.dtype
        np.testing.assert_array_equal(found, expected)


class Noting:
    """An array that notes how many voxels each window has that is read."""

    def __init__(self, array: Any) -> None:
        self.array, self.sizes = array, []

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        voxels = self.array[key]
        self.sizes.append(voxels.size)
        return voxels


@pytest.mark.parametrize("factors", [(2, 4, 4), (1, 3, 5)])
@pytest.mark.parametrize("most", [1, 5000, 1 << 24])
def test_any_window_is_computed_in_parts(
    plain: Path, raw: np.ndarray, factors, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows at any place, also empty ones, are those of the whole image, however little is read at once."""
    monkeypatch.setattr(scales, "MOST_VOXELS", most)
    rng = np.random.default_rng(0)
    image, expected = ScaledImage(plain, "raw", factors), reduce(means_of, STEPS[factors], raw)
    image._image = noting = Noting(image._image)
    for _ in range(20):
        corners = [sorted(rng.integers(0, length + 1, 2)) for length in expected.shape]
        window = tuple(slice(*ends) for ends in corners)
        noting.sizes.clear()
        np.testing.assert_array_equal(image[window], expected[window])
        of_a_row = np.prod([corners[0][1] - corners[0][0], corners[2][1] - corners[2][0], *factors])
        assert max(noting.sizes, default=0) <= max(most, of_a_row)


def elements_of(dtype: str) -> st.SearchStrategy[Any] | None:
    """Floats whose sums are exact; any integers."""
    return st.integers(-100, 100).map(float) if dtype == "float32" else None


@given(
    voxels=st.sampled_from(["uint8", "uint16", "uint32", "float32"]).flatmap(
        lambda dtype: arrays.arrays(
            dtype, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=elements_of(dtype)
        )
    ),
    factors=st.tuples(*[st.integers(1, 9)] * 3),
)
@settings(deadline=None, max_examples=300)
def test_means_are_exact(voxels: np.ndarray, factors: tuple[int, int, int]) -> None:
    """A mean is that of exact fractions; of integers, it is rounded to the nearest, halves to even."""
    found = block_means(voxels, factors)
    assert found.dtype == voxels.dtype
    for place in np.ndindex(found.shape):
        block = voxels[tuple(slice(at * of, (at + 1) * of) for at, of in zip(place, factors, strict=True))]
        mean = Fraction(sum(map(int, block.ravel())), block.size)
        assert found[place] == (round(mean) if voxels.dtype.kind == "u" else np.float32(float(mean)))


def test_a_level_is_read_where_the_pyramid_has_it(
    plain: Path, store: Path, raw: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level is read instead of the full resolution, also the nearest finer one."""
    sizes = count_bytes(monkeypatch)

    def bytes_read(path: Path, factors: tuple[int, int, int]) -> int:
        image = ScaledImage(path, "raw", factors)
        sizes.clear()
        np.testing.assert_array_equal(image[:, :, :], reduce(means_of, STEPS[factors], raw))
        return sum(sizes)

    whole = bytes_read(plain, (1, 1, 1))
    assert bytes_read(plain, (2, 4, 4)) >= whole
    assert bytes_read(store, (1, 2, 2)) < whole / 2
    assert bytes_read(store, (2, 4, 4)) < whole / 16
    assert bytes_read(store, (8, 16, 16)) < whole / 16, "it is computed from (2, 4, 4)"
    assert bytes_read(store, (1, 4, 4)) >= whole, "the pyramid has no such level"


def test_a_level_of_other_voxels_is_not_read(
    store: Path, archive: Path, raw: np.ndarray, voxels, tmp_path: Path
) -> None:
    """If the store's voxels are others than those that its pyramid was made of, the pyramid is not read."""
    x0, x1, y0, y1, z0, z1 = BOX
    moved = (x0 - 5, x1 - 5, y0, y1, z0, z1)
    ds = ld.open_human_liver_em(archive, shape=SHAPE, voxel_size_nm=(16, 8, 8))
    other = Path(ld.to_zarr(ds, tmp_path / "b.zarr", bounding_box=moved, progress=False, **SMALL))
    shutil.copytree(store / "pyramid", other / "pyramid")
    expected = reduce(means_of, STEPS[2, 4, 4], voxels["raw"][z0:z1, y0:y1, x0 - 5 : x1 - 5])
    np.testing.assert_array_equal(ScaledImage(other, "raw", (2, 4, 4))[:, :, :], expected)


def test_what_a_pyramid_would_spare_is_logged(plain: Path, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names add_pyramid and the store if it would make the level, and only then."""
    with caplog.at_level(logging.WARNING, "liver_dask"):
        for factors in ((1, 1, 1), (8, 16, 16), (1, 3, 5)):
            ScaledImage(plain, "raw", factors)
        for factors in STEPS:
            ScaledImage(store, "raw", factors)
        assert not caplog.records
        ScaledImage(plain, "raw", (2, 4, 4))
    (message,) = caplog.messages
    assert message.startswith("Voxels of (2, 4, 4) are computed from 32 times as many")
    assert f"add_pyramid({str(plain)!r})" in message
