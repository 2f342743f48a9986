"""Tables of counts bound the number of nonzero voxels of a patch."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.patches import CHUNKS, table_of
from liver_dask.training.tables import SeenCells, union

shapes = st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 17))


def drawn(data: st.DataObject, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...], list[int], tuple]:
    """Voxels, the shape of a patch, its position, and its window."""
    voxels = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) < data.draw(st.sampled_from([0.1, 0.7]))
    patch = tuple(data.draw(st.integers(1, length)) for length in shape)
    position = [data.draw(st.integers(0, length - of)) for length, of in zip(shape, patch, strict=True)]
    return voxels, patch, position, window_of(position, patch)


def window_of(position, patch) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(position, patch, strict=True))


@settings(max_examples=300)
@given(shape=shapes, data=st.data())
def test_the_most_of_a_patch_is_what_its_chunks_can_hold(shape, data: st.DataObject) -> None:
    """The largest possible number is the sum, over the touched chunks, of what fits into the common part."""
    voxels, patch, position, window = drawn(data, shape)
    expected, filled = 0, True
    inside = np.zeros(shape, bool)
    inside[window] = True
    for corner in product(*(range(0, length, step) for length, step in zip(shape, CHUNKS, strict=True))):
        here = window_of(corner, CHUNKS)
        expected += min(int(voxels[here].sum()), int(inside[here].sum()))
        filled &= not inside[here].any() or bool(voxels[here].any())
    (most,) = table_of(voxels).most(np.array([position]), patch)
    assert most == expected >= voxels[window].sum()
    assert table_of(voxels).are_filled(np.array([position]), patch) == [filled]


@settings(max_examples=100)
@given(shape=shapes, data=st.data())
def test_the_union_of_two_tables_is_an_upper_bound(shape, data: st.DataObject) -> None:
    """A union never says fewer voxels than are nonzero in one of the two."""
    voxels, patch, position, window = drawn(data, shape)
    other = np.roll(voxels, 1)
    (most,) = union([table_of(voxels), table_of(other)]).most(np.array([position]), patch)
    assert most >= (voxels | other)[window].sum()


@settings(max_examples=300)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 50)), data=st.data())
def test_what_was_seen_bounds_every_patch_and_gives_one_that_was_seen_exactly(shape, data: st.DataObject) -> None:
    """After any reads, the bound of any patch holds; with cells of one voxel it is exact where was read."""
    voxels, patch, position, window = drawn(data, shape)
    seen = SeenCells(shape, patch)
    assert seen.most(np.array([position]))[0] == voxels[window].size
    seen.learn(position, voxels[window])
    if max(patch) < 16:  # cells are single voxels
        assert seen.most(np.array([position]))[0] == voxels[window].sum()
    for _ in range(3):
        other = [data.draw(st.integers(0, length - of)) for length, of in zip(shape, patch, strict=True)]
        assert voxels[window_of(other, patch)].sum() <= seen.most(np.array([other]))[0] <= voxels[window].size
        seen.learn(other, voxels[window_of(other, patch)])
    assert voxels[window].sum() <= seen.most(np.array([position]))[0]


def test_cells_that_were_seen_are_close_to_the_truth() -> None:
    """After a patch was read, the bound of a patch at the same place is close to its number of labelled voxels."""
    voxels = np.zeros((8, 256, 256), bool)
    voxels[:, 100:150, 100:150] = True
    seen = SeenCells((16, 512, 512), voxels.shape)
    seen.learn((8, 256, 256), voxels)
    assert seen.most(np.array([(8, 256, 256)]))[0] == voxels.sum()
    assert voxels.sum() <= seen.most(np.array([(8, 250, 256)]))[0] < 1.2 * voxels.sum() + 8 * 6 * 256


def test_nearby_chunks_of_the_same_layer_count_as_labelled() -> None:
    """The chunks around a labelled chunk, in the same layer, count as labelled."""
    voxels = np.zeros((4, 20, 25), bool)
    voxels[0, 8, 10] = True
    found = table_of(voxels).nearby().values
    expected = np.zeros((2, 5, 5), int)
    expected[0, 1:4, 1:4] = 1
    np.testing.assert_array_equal(found, expected)
