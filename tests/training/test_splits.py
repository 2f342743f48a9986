"""Splits share no voxel, whatever boxes and patches are used, and depend on the volume alone."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from liver_dask.training.sampling import Box, PatchSampler, Split
from liver_dask.training.splits import SPLITS, SplitGrid

lengths = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))


def marked(grid: SplitGrid, split: str, volume, patch) -> np.ndarray:
    """Which voxels of a volume are in a patch of a split, by trying all positions."""
    free = [range(length - of + 1) for length, of in zip(volume, patch, strict=True)]
    positions = np.array(list(product(*free)))
    found = np.zeros(volume, bool)
    for z, y, x in positions[grid.allows(split, positions, patch, volume)]:
        found[z : z + patch[0], y : y + patch[1], x : x + patch[2]] = True
    return found


@settings(max_examples=100)
@given(block=lengths, patches=st.tuples(lengths, lengths), seed=st.integers(0, 9), data=st.data())
def test_no_voxel_is_in_two_splits(block, patches, seed: int, data: st.DataObject) -> None:
    """Patches of two splits share no voxel, also if they have different shapes, and keep the margins."""
    margin = tuple(data.draw(st.integers(0, (side - 1) // 2)) for side in block)
    grid, volume = SplitGrid(block, margin, seed), (12, 20, 20)
    patches = [tuple(min(n, length) for n, length in zip(patch, volume, strict=True)) for patch in patches]
    found = [marked(grid, split, volume, patches[number % 2]) for number, split in enumerate(SPLITS)]
    assert not (found[0] & (found[1] | found[2])).any()
    assert not (found[1] & found[2]).any()
    for of_split in found[1:]:  # what is left of a margin around validation and test belongs to no other split
        grown = of_split
        for axis, length in enumerate(margin):
            shifted = [np.roll(grown, n, axis) for n in range(-length, length + 1)]
            around = np.logical_or.reduce(shifted)
            edge = np.zeros(volume, bool)  # np.roll joins the ends of the volume
            edge[(slice(None),) * axis + (np.r_[:length, volume[axis] - length : volume[axis]],)] = True
            grown = np.where(edge, grown, around)
        others = np.logical_or.reduce([other for other in found if other is not of_split])
        assert not (grown & others).any()


@settings(max_examples=200)
@given(block=lengths, patch=lengths, seed=st.integers(0, 9), data=st.data())
def test_the_positions_of_validation_and_test_are_found_block_by_block(block, patch, seed: int, data) -> None:
    """The boxes of positions are disjoint, and hold exactly the positions that a patch may have."""
    margin = tuple(data.draw(st.integers(0, (side - 1) // 2)) for side in block)
    grid, volume = SplitGrid(block, margin, seed), (12, 20, 20)
    start = tuple(data.draw(st.integers(0, length - of)) for length, of in zip(volume, patch, strict=True))
    axes = zip(start, patch, volume, strict=True)
    stop = tuple(data.draw(st.integers(low + of, end)) for low, of, end in axes)
    positions = np.array(list(product(*map(range, start, np.array(stop) - patch + 1))))
    for split in ("val", "test"):
        found = [
            position
            for first, end in grid.places(split, start, stop, patch, volume).tolist()
            for position in product(*map(range, first, end))
        ]
        expected = positions[grid.allows(split, positions, patch, volume)].tolist()
        assert sorted(found) == sorted(map(tuple, expected))


def test_a_patch_as_large_as_a_block_without_margins_is_found() -> None:
    """The few positions of a patch that just fits into a block are drawn without many tries."""
    grid, volume = SplitGrid(), (128, 4096, 4096)
    sampler = PatchSampler((48, 896, 896), Box((0, 0, 0), volume), split=Split("test", grid, (0, 0, 0), volume))
    drawn = [next(sampler.candidates(np.random.default_rng(seed))) for seed in range(50)]
    assert grid.allows("test", np.array(drawn), sampler.patch, volume).all()


def test_a_tenth_of_any_ten_blocks_is_for_validation_and_a_tenth_for_test() -> None:
    """Ten blocks in a row, or an area of 3 x 4 blocks, have all splits; another seed chooses other blocks."""
    grids = [SplitGrid(seed=seed) for seed in range(20)]
    for grid in grids:
        row = grid.split_of(np.array([[3, 7, x] for x in range(5, 15)]))
        assert sorted(row) == [0] * 8 + [1, 2]
        area = grid.split_of(np.array([[2, y, x] for y in range(4, 7) for x in range(11, 15)]))
        assert set(area) == {0, 1, 2}
    assert len({tuple(grid.split_of(np.array([[0, 0, x] for x in range(10)]))) for grid in grids}) > 10


def test_the_voxels_of_a_split_are_counted() -> None:
    """The numbers of voxels of the splits are those of the blocks, and add up to the box."""
    grid = SplitGrid((2, 3, 4), (0, 0, 0))
    start, stop = (1, 2, 3), (8, 20, 30)
    counts = [grid.voxels(split, start, stop) for split in SPLITS]
    assert sum(counts) == 7 * 18 * 27
    voxels = np.stack(np.meshgrid(*map(np.arange, start, stop), indexing="ij"), -1)
    assert counts == np.bincount(grid.split_of(voxels // grid.block).ravel(), minlength=3).tolist()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"block": (0, 8, 8)}, "block="),
        ({"block": (8, 8)}, "block="),
        ({"block": (8, 8, 8), "margin": (4, 0, 0)}, "margin="),
        ({"block": (8, 8, 8), "margin": (-1, 0, 0)}, "margin="),
        ({"seed": -1}, "seed="),
    ],
)
def test_a_wrong_grid_is_refused(wrong, said: str) -> None:
    """A grid without voxels, or with margins that leave nothing, is an InvalidArgumentError."""
    with pytest.raises(ld.InvalidArgumentError, match=said):
        SplitGrid(**wrong)


@settings(max_examples=200)
@given(block=lengths, patch=lengths, split=st.sampled_from(SPLITS), seed=st.integers(0, 9), data=st.data())
def test_a_split_changes_only_where_it_says_so(block, patch, split, seed: int, data) -> None:
    """Cut at `changes`, a box of positions falls into parts in which all positions are of the split, or none is."""
    margin = tuple(data.draw(st.integers(0, (side - 1) // 2)) for side in block)
    grid, volume = SplitGrid(block, margin, seed), (12, 20, 20)
    start = tuple(data.draw(st.integers(0, length - of)) for length, of in zip(volume, patch, strict=True))
    axes = zip(start, patch, volume, strict=True)
    stop = np.array([data.draw(st.integers(low + 1, end - of + 1)) for low, of, end in axes])
    positions = np.array(list(product(*map(range, start, stop))))
    parts = [
        np.searchsorted(np.unique(at), of_axis, side="right")
        for at, of_axis in zip(grid.changes(split, np.array(start), stop, patch), positions.T, strict=True)
    ]
    answers: dict[tuple[int, ...], set[bool]] = {}
    for part, answer in zip(zip(*parts, strict=True), grid.allows(split, positions, patch, volume), strict=True):
        answers.setdefault(part, set()).add(bool(answer))
    assert all(len(of_part) == 1 for of_part in answers.values())
