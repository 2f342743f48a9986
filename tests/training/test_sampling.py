"""Patches are drawn as asked and wherever it is allowed, and splits share no voxels."""

import random
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import liver_dask as ld
from liver_dask.training.sampling import SPLITS, Box, Constraint, Densities, PatchSampler, plan_split

CHUNKS = (2, 4, 5)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 17))


def table_of(voxels: np.ndarray) -> Densities:
    counts = [-(-length // chunk) for length, chunk in zip(voxels.shape, CHUNKS, strict=True)]
    nonzero = np.zeros(counts, np.uint32)
    for z, y, x in np.ndindex(*counts):
        here = voxels[z * 2 : z * 2 + 2, y * 4 : y * 4 + 4, x * 5 : x * 5 + 5]
        nonzero[z, y, x] = np.count_nonzero(here)
    return Densities.of(nonzero, CHUNKS, voxels.shape)


@settings(max_examples=200)
@given(shape=shapes, data=st.data())
def test_the_share_of_a_patch_is_what_its_chunks_hold(shape, data: st.DataObject) -> None:
    """The share of a patch is the mean density of its chunks, and `at_most` is an upper bound of the true share."""
    voxels = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) < 0.3
    patch = tuple(data.draw(st.integers(1, length)) for length in shape)
    position = [data.draw(st.integers(0, length - of)) for length, of in zip(shape, patch, strict=True)]
    spread = np.zeros(shape)  # each chunk's voxels, spread evenly
    for z, y, x in product(*(range(0, length, step) for length, step in zip(shape, CHUNKS, strict=True))):
        here = np.s_[z : z + 2, y : y + 4, x : x + 5]
        spread[here] = voxels[here].mean()
    window = tuple(slice(start, start + length) for start, length in zip(position, patch, strict=True))
    (share,) = table_of(voxels).share(np.array([position]), patch)
    (most,) = table_of(voxels).share(np.array([position]), patch, at_most=True)
    assert share == pytest.approx(spread[window].mean(), abs=1e-6)
    assert most >= voxels[window].mean() - 1e-6
    assert most >= share - 1e-6


def test_every_allowed_position_is_drawn_and_no_other() -> None:
    """Every position that meets the constraint is drawn, and no other."""
    voxels = np.zeros((4, 12, 15), bool)
    voxels[:2, :8, 5:15] = True
    sampler = PatchSampler((2, 4, 5), (Box((0, 0, 0), voxels.shape),), (Constraint(table_of(voxels), 1.0),))
    drawn = {sampler.draw(np.random.default_rng(seed)) for seed in range(600)}
    assert drawn == {(0, y, x) for y in range(5) for x in range(5, 11)}


def test_boxes_are_drawn_by_their_size() -> None:
    """Boxes are drawn in proportion to the number of their positions."""
    boxes = (Box((0, 0, 0), (1, 1, 10)), Box((0, 5, 0), (1, 6, 1)))
    sampler = PatchSampler((1, 1, 1), boxes)
    rng = np.random.default_rng(0)
    share = np.mean([sampler.draw(rng)[1] == 5 for _ in range(2000)])
    assert 0.06 < share < 0.13


def test_a_needle_is_found_and_nothing_is_given_up_on() -> None:
    """A rare structure is found; if no patch meets the constraint, the result is None."""
    voxels = np.zeros((8, 100, 125), bool)
    voxels[4:6, 20:24, 30:35] = True
    everywhere = (Box((0, 0, 0), voxels.shape),)
    sampler = PatchSampler((1, 4, 5), everywhere, (Constraint(table_of(voxels), 0.9),))
    assert sampler.draw(np.random.default_rng(0)) in {(4, 20, 30), (5, 20, 30)}
    assert (
        PatchSampler((1, 4, 5), everywhere, (Constraint(table_of(~voxels * 0), 0.1),)).draw(np.random.default_rng(0))
        is None
    )


def test_nearby_chunks_of_the_same_layer_count_as_labelled() -> None:
    """The chunks around a labelled chunk, in the same layer, count as labelled."""
    voxels = np.zeros((4, 20, 25), bool)
    voxels[0, 8, 10] = True
    near = table_of(voxels).nearby().values
    assert near[0, 1:4, 1:4].all()
    assert near.sum() == 9


@settings(max_examples=200)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(8, 200), st.integers(8, 200)),
    patch=st.tuples(st.integers(1, 8), st.integers(1, 30), st.integers(1, 30)),
    corner=st.tuples(*[st.integers(0, 50)] * 3),
    seed=st.integers(0, 9),
)
def test_no_two_splits_touch(shape, patch, corner, seed: int) -> None:
    """Blocks of the splits lie in the box, hold a patch, and are a patch apart from each other."""
    assume(all(length >= of for length, of in zip(shape, patch, strict=True)))
    box = Box(corner, tuple(c + s for c, s in zip(corner, shape, strict=True)))
    try:
        split = plan_split(box, patch, (), seed)
    except ld.InvalidArgumentError:
        assume(False)
    assert split == plan_split(box, patch, (), seed)
    blocks = [(name, block) for name in SPLITS for block in split[name]]
    assert all(split[name] for name in SPLITS)
    for _, block in blocks:
        assert all(n >= p for n, p in zip(block.shape, patch, strict=True))
        assert all(a >= b for a, b in zip(block.start, box.start, strict=True))
        assert all(a <= b for a, b in zip(block.stop, box.stop, strict=True))
    chosen = random.Random(seed).sample(blocks, min(len(blocks), 60))
    for (one, a), (other, b) in combinations(chosen, 2):
        gaps = [max(a.start[i], b.start[i]) - min(a.stop[i], b.stop[i]) for i in range(3)]
        assert any(gap >= margin for gap, margin in zip(gaps, patch, strict=True)), (one, other)


def test_each_split_gets_of_the_rich_and_of_the_poor() -> None:
    """Each split has blocks with labels, and about a tenth of the blocks are for validation."""
    voxels = np.zeros((2, 240, 300), bool)
    voxels[:, :60] = True
    table = table_of(voxels)
    patch = (2, 8, 10)
    for seed in range(20):
        split = plan_split(Box((0, 0, 0), voxels.shape), patch, [table, Densities(table.values * 0 + 1, CHUNKS)], seed)
        rich = {name: sum(block.start[1] < 52 for block in split[name]) for name in SPLITS}
        assert min(rich.values()) >= 1, rich
        assert 0.06 < len(split["val"]) / sum(map(len, split.values())) < 0.14


def test_validation_is_not_the_richest_part_nor_always_the_same() -> None:
    """Each seed gives another split, and validation has sometimes more and sometimes fewer labels than test."""
    voxels = np.random.default_rng(0).random((2, 240, 300)) < np.linspace(0, 1, 300)
    table = table_of(voxels)
    splits = [plan_split(Box((0, 0, 0), voxels.shape), (2, 8, 10), [table], seed) for seed in range(8)]
    held = [
        {name: np.mean([table.share(np.array([b.start]), b.shape)[0] for b in split[name]]) for name in SPLITS}
        for split in splits
    ]
    assert len({str(split["val"]) for split in splits}) == 8
    assert {of["val"] > of["test"] for of in held} == {True, False}


def test_blocks_of_nothing_belong_to_no_split() -> None:
    """Blocks without tissue are in no split."""
    voxels = np.zeros((2, 240, 300), bool)
    voxels[:, 120:] = True
    split = plan_split(Box((0, 0, 0), voxels.shape), (2, 8, 10), [table_of(voxels)])
    assert min(block.stop[1] for name in SPLITS for block in split[name]) > 120


def test_a_box_without_room_for_three_splits() -> None:
    """A box that is too small for three splits is an InvalidArgumentError."""
    with pytest.raises(ld.InvalidArgumentError, match="holds 1 blocks of twice the patch"):
        plan_split(Box((0, 0, 0), (8, 40, 40)), (8, 24, 24), ())
