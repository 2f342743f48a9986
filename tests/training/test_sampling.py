"""Positions are drawn uniformly from all that are allowed."""

from itertools import islice, product

import numpy as np

from helpers.patches import table_of
from liver_dask.training.sampling import Box, Minimum, PatchSampler, Split
from liver_dask.training.splits import SplitGrid

PATCH = (2, 4, 5)


def first(sampler: PatchSampler, seed: int) -> tuple[int, ...] | None:
    return next(sampler.candidates(np.random.default_rng(seed)), None)


def test_every_allowed_position_is_drawn_and_no_other() -> None:
    """Every position whose chunks can hold the minimum is drawn, and no other."""
    voxels = np.zeros((4, 12, 15), bool)
    voxels[:2, :8, 5:15] = True
    sampler = PatchSampler(PATCH, Box((0, 0, 0), voxels.shape), (Minimum(table_of(voxels), 40),))
    drawn = {first(sampler, seed) for seed in range(600)}
    assert drawn == {(0, y, x) for y in range(5) for x in range(5, 11)}


def test_positions_are_uniform_and_stay_in_the_box() -> None:
    """Each position of the box comes equally often."""
    box = Box((1, 2, 3), (4, 7, 9))
    sampler = PatchSampler(PATCH, box)
    drawn = [first(sampler, seed) for seed in range(4000)]
    counts = [drawn.count(position) for position in product(range(1, 3), range(2, 4), range(3, 5))]
    assert sum(counts) == 4000
    assert sum((count - 500) ** 2 / 500 for count in counts) < 24.3, "chi-square, 7 degrees of freedom, p = 0.001"


def test_a_needle_is_found_and_nothing_is_given_up_on() -> None:
    """A rare structure is found; if no patch can have the minimum, there are no candidates."""
    voxels = np.zeros((8, 100, 125), bool)
    voxels[4:6, 20:24, 30:35] = True
    everywhere = Box((0, 0, 0), voxels.shape)
    needle = PatchSampler((1, 4, 5), everywhere, (Minimum(table_of(voxels), 18),))
    assert set(islice(needle.candidates(np.random.default_rng(0)), 3)) <= {(4, 20, 30), (5, 20, 30)}
    assert first(PatchSampler((1, 4, 5), everywhere, (Minimum(table_of(voxels & False), 1),)), 0) is None


def test_only_the_region_is_touched() -> None:
    """A patch touches only chunks that the region has."""
    voxels = np.zeros((4, 20, 25), bool)
    voxels[0, 8:16, 10:20] = True
    sampler = PatchSampler(PATCH, Box((0, 0, 0), voxels.shape), region=table_of(voxels))
    drawn = {first(sampler, seed) for seed in range(400)}
    assert drawn == {(0, y, x) for y in range(8, 13) for x in range(10, 16)}


def test_positions_are_of_the_split_in_the_volume() -> None:
    """A box that begins elsewhere in the volume has the same voxels in a split."""
    grid, volume = SplitGrid((4, 10, 10), (0, 1, 1)), (20, 200, 200)
    found = []
    for origin, shape in (((4, 20, 30), (4, 60, 60)), ((3, 50, 45), (5, 60, 60))):
        sampler = PatchSampler(PATCH, Box((0, 0, 0), shape), split=Split("val", grid, origin, volume))
        drawn = {first(sampler, seed) for seed in range(1500)}
        found.append({tuple(np.add(position, origin)) for position in drawn})
        allowed = np.array(list(product(*(range(n - p + 1) for n, p in zip(shape, PATCH, strict=True))))) + origin
        assert found[-1] <= set(map(tuple, allowed[grid.allows("val", allowed, PATCH, volume)].tolist()))
    assert found[0] & found[1], "the boxes overlap"
