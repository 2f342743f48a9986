"""Patches that are drawn from the same chunks: each position has the same chance, and chunks are decoded rarely."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.patches import table_of
from helpers.reads import note_decoded
from liver_dask.training.reuse import MOST_GROUPS, Reuse
from liver_dask.training.sampling import Box, Minimum, PatchSampler, Split

DEPTH, HEIGHT, WIDTH = SHAPE
WHOLE = (0, WIDTH, 0, HEIGHT, 0, DEPTH)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10_000))
def test_every_group_has_its_patches_and_groups_take_turns(times: int, groups: int, pool: int) -> None:
    """In a pool each group has one patch a turn, and no group is of two pools."""
    reuse = Reuse(times, groups, (2, 3, 4))
    first = pool * times * groups
    turns = [reuse.turn_of(first + i) for i in range(times * groups)]
    assert {turn.group for turn in turns} == set(range(pool * groups, (pool + 1) * groups))
    for number in range(times):
        part = turns[number * groups : (number + 1) * groups]
        assert {turn.turn for turn in part} == {number}
        assert len({turn.group for turn in part}) == groups


def test_the_chunks_of_all_groups_fit_into_the_cache() -> None:
    """There are as many groups as fit, at least one and not too many."""
    patch, chunk = (8, 256, 256), (8, 256, 256)
    of_group = 2 * 2 * 2 * 8 * 256 * 256 * 3
    assert Reuse.within(4, patch, chunk, 3, 10 * of_group + 1).groups == 10
    assert Reuse.within(4, patch, chunk, 3, 1).groups == 1
    assert Reuse.within(4, patch, chunk, 3, 10**12).groups == MOST_GROUPS
    assert Reuse.within(4, (1, 1, 257), (8, 256, 256), 3, 4 * 3 * 2 * 8 * 256 * 256).groups == 4


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_positions_beside_uniform_ones_are_uniform(split: str | None) -> None:
    """If the first position is uniform over all allowed ones, then so is an allowed one that begins in its chunk."""
    rng = np.random.default_rng(0)
    voxels = rng.random((4, 24, 30)) < 0.5
    voxels[:, 10:16] = False
    patch, chunk, least = (2, 4, 5), (2, 8, 10), 16
    grid = ld.SplitGrid(block=(4, 12, 15), margin=(0, 1, 1))
    of_split = Split(split, grid, (0, 0, 0), voxels.shape) if split else None
    sampler = PatchSampler(patch, Box((0, 1, 2), (4, 24, 29)), (Minimum(table_of(voxels), least),), split=of_split)

    def is_allowed(position: tuple[int, ...]) -> bool:
        window = tuple(slice(start, start + n) for start, n in zip(position, patch, strict=True))
        return bool(voxels[window].sum() >= least)

    counts: Counter[tuple[int, ...]] = Counter()
    draws = 6000
    for _ in range(draws):
        anchor = next(filter(is_allowed, sampler.candidates(rng)))
        found = next(filter(is_allowed, sampler.beside(anchor, chunk, rng)))
        assert (np.array(found) // chunk == np.array(anchor) // chunk).all()
        counts[found] += 1
    everywhere = np.argwhere(np.ones([n - p + 1 for n, p in zip(voxels.shape, patch, strict=True)]))
    inside = everywhere[(everywhere >= (0, 1, 2)).all(1) & (everywhere + patch <= (4, 24, 29)).all(1)]
    if split:
        inside = inside[grid.allows(split, inside, patch, voxels.shape)]
    allowed = [place for place in map(tuple, inside.tolist()) if is_allowed(place)]
    assert set(counts) <= set(allowed)
    expected = draws / len(allowed)
    statistic = sum((counts[place] - expected) ** 2 / expected for place in allowed)
    freedom = len(allowed) - 1
    assert statistic < freedom + 3.3 * (2 * freedom) ** 0.5, f"chi-square over {len(allowed)} positions"


torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("torch_em", reason="the extra `train` is not installed")


@pytest.fixture(scope="module")
def asked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stores")
    ld.get_human_liver_em_data(folder, WHOLE, download=True, source=archive, shape=SHAPE)
    options = {"patch_shape": (2, 32, 32), "bounding_boxes": [WHOLE], "source": archive, "shape": SHAPE, "seed": 1}
    return {**options, "path": folder, "batch_size": 2, "pin_memory": False}


def loader(asked: dict[str, Any], **more: Any) -> Any:
    return ld.get_human_liver_em_loader(**{**asked, **more})


def bytes_of(batches: Any) -> list[bytes]:
    return [b"".join(tensor.numpy().tobytes() for tensor in batch) for batch in batches]


def test_chunks_are_decoded_rarely_and_no_patch_comes_twice(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """With eight patches from the same chunks, a third is decoded of what patches on their own decode."""
    decoded = note_decoded(monkeypatch)
    counts = {}
    for reuse in (1, 8):
        decoded.clear()
        stream = bytes_of(loader(asked, n_samples=400, batch_size=1, reuse=reuse, cache_gb=0.004))
        assert len(set(stream)) >= 398
        counts[reuse] = len(decoded)
    assert counts[8] < counts[1] / 3


def test_a_stream_with_reuse_follows_from_the_seed_and_goes_on(asked) -> None:
    """Any workers give the same stream, which goes on after an interruption."""
    options = {**asked, "n_samples": 40, "reuse": 4, "cache_gb": 0.04, "min_foreground": 0.02}
    assert loader(options).dataset.datasets[0].reuse.groups == 3
    whole = bytes_of(loader(options))
    assert bytes_of(loader(options, num_workers=3)) == whole
    assert bytes_of(loader(options, num_workers=2, workers="processes")) == whole
    assert bytes_of(loader(options, seed=2)) != whole
    interrupted = loader(options, num_workers=2)
    for number, _ in enumerate(interrupted, 1):
        if number == 7:
            break
    again = loader(options, num_workers=3)
    again.load_state_dict(interrupted.state_dict())
    assert bytes_of(again) == whole[7:]


def test_another_thread_may_remove_a_group_at_any_time(asked) -> None:
    """Old groups are forgotten; a group that is drawn while another thread forgets it gives the same patch."""

    class Forgetting(dict[int, Any]):
        def __setitem__(self, key: int, value: Any) -> None:
            """Store nothing, as if another thread had removed it at once."""

    options = {**asked, "n_samples": 12, "reuse": 3, "cache_gb": 0.004}
    ours = loader(options)
    ours.dataset.datasets[0]._anchors = Forgetting()
    assert bytes_of(ours) == bytes_of(loader(options))


def test_boxes_keep_their_share(asked, archive: Path) -> None:
    """The boxes have the share that was asked for, though all patches of a group are of one box."""
    boxes = [(0, 200, 0, HEIGHT, 0, DEPTH), (200, WIDTH, 0, HEIGHT, 0, DEPTH)]
    mixture = ld.get_human_liver_em_dataset(
        **{key: value for key, value in asked.items() if key not in ("batch_size", "pin_memory")}
        | {"bounding_boxes": boxes, "download": True, "weights": [1, 3], "n_samples": 5000, "reuse": 5}
    )
    taken: Counter[int] = Counter()
    for number, one in enumerate(mixture.datasets):
        one.__class__ = type("Counting", (type(one),), {"__getitem__": lambda _, __, n=number: taken.update([n])})
    for index in range(5000):
        mixture[index]
    assert taken[0] / 5000 == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"reuse": 0}, "reuse=0 must be a whole number above 0"),
        ({"reuse": 2.5}, "reuse=2.5 must be a whole number"),
        ({"reuse": 2, "stream": True}, "reuse=2 needs the chunks of a store"),
        ({"reuse": 2, "cache_gb": 0}, "reuse=2 needs a cache"),
        ({"reuse": 2, "sampler": len}, "sampler cannot be combined with reuse=2"),
        ({"reuse": 2, "foreground_share": 0.5}, "foreground_share cannot be combined with reuse=2"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, wrong: dict[str, Any], told: str) -> None:
    """Wrong numbers, streams and no cache are refused in one sentence."""
    with pytest.raises(ld.InvalidArgumentError, match=told):
        loader(asked, **wrong)
