"""Contexts: raw around each patch in larger voxels, as a computation over the whole box gives it."""

import shutil
from functools import cache, reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.means import means_of
from helpers.reads import count_bytes
from helpers.transforms import same
from liver_dask.store import levels
from liver_dask.training.context import context_start, read_context
from liver_dask.training.transforms import NO_FLIP

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
torch_em = pytest.importorskip("torch_em", reason="the extra `train` is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

BOX, OTHER = (37, 401, 21, 290, 1, 9), (0, 211, 30, 251, 2, 10)
PATCH = (3, 24, 33)
SCALES = [(1, 1, 1), (1, 4, 4), (2, 4, 4), (1, 3, 5)]
STEPS = {
    (1, 1, 1): [],
    (1, 4, 4): [(1, 2, 2), (1, 2, 2)],  # as the pyramid has it, since the voxel size is not known
    (2, 4, 4): [(2, 4, 4)],
    (1, 3, 5): [(1, 3, 5)],
    (3, 7, 6): [(3, 7, 6)],
}
AXES = ("z", "y", "x")


@pytest.fixture(scope="module")
def folders(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with the stores of BOX and OTHER, and one with the same stores and their pyramids."""
    plain = tmp_path_factory.mktemp("stores") / "plain"
    stores = ld.get_human_liver_em_paths(plain, [BOX, OTHER], download=True, source=archive, shape=SHAPE)
    layered = Path(shutil.copytree(plain, plain.with_name("layered")))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(levels, "SMALL_ENOUGH", 100)
        for store in stores:
            assert len(ld.add_pyramid(layered / Path(store).relative_to(plain), progress=False)) == 3
    return {"plain": plain, "layered": layered}


@pytest.fixture(autouse=True)
def small_slices_have_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "SMALL_ENOUGH", 100)


def raw_of(box: tuple[int, ...], voxels: dict[str, np.ndarray]) -> np.ndarray:
    x0, x1, y0, y1, z0, z1 = box
    return voxels["raw"][z0:z1, y0:y1, x0:x1]


@pytest.fixture
def asked(folders, archive: Path) -> dict[str, Any]:
    given: dict[str, Any] = {"path": folders["plain"], "patch_shape": PATCH, "bounding_boxes": [BOX], "seed": 3}
    return given | {"source": archive, "shape": SHAPE, "n_samples": 12, "scales": SCALES}


def dataset(asked: dict[str, Any], **more: Any) -> Any:
    return ld.get_human_liver_em_dataset(**{**asked, **more})


def items(asked: dict[str, Any], **more: Any) -> list[list[np.ndarray]]:
    """The items of an epoch."""
    options = {"batch_size": 1, "pin_memory": False, **asked, **more}
    return [[part.numpy()[0] for part in batch] for batch in ld.get_human_liver_em_loader(**options)]


def closest_start(position: int, length: int, factor: int) -> int:
    """The start of a context along an axis whose centre is closest to that of the patch; of two, the second."""
    centre = position + length / 2
    nearest = position // factor
    starts = range(nearest - length - 1, nearest + length + 2)
    return min(starts, key=lambda start: (abs((start + length / 2) * factor - centre), -start))


def around(
    whole: np.ndarray, position: tuple[int, ...], patch: tuple[int, ...], factors: tuple[int, ...]
) -> np.ndarray:
    """The context (z, y, x) of a patch, cut from the whole box in larger voxels; outside of it NaN."""
    padded = np.pad(whole.astype(np.float64), [(length, length) for length in patch], constant_values=np.nan)
    starts = [closest_start(*of) + of[1] for of in zip(position, patch, factors, strict=True)]
    return padded[tuple(slice(start, start + length) for start, length in zip(starts, patch, strict=True))]


class Held:
    """An array in memory, with factors."""

    def __init__(self, voxels: np.ndarray, factors: tuple[int, int, int]) -> None:
        self.voxels, self.factors, self.shape = voxels, factors, voxels.shape

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        assert all(0 <= part.start < part.stop <= n for part, n in zip(key, self.shape, strict=True))
        return self.voxels[key]


@cache
def held(factors: tuple[int, int, int]) -> Held:
    box = np.random.default_rng(0).integers(1, 60000, (8, 37, 50), np.uint16)
    return Held(reduce(means_of, STEPS[factors], box), factors)


@given(data=st.data(), factors=st.sampled_from(list(STEPS)))
@settings(deadline=None, max_examples=400)
def test_a_context_is_cut_from_the_box_in_larger_voxels(data: st.DataObject, factors: tuple[int, int, int]) -> None:
    """For any position and patch, the context is that with the closest centre; voxels outside are the mean."""
    shape = (8, 37, 50)
    patch = tuple(data.draw(st.integers(1, n), name) for n, name in zip(shape, AXES, strict=True))
    ends = [n - of for n, of in zip(shape, patch, strict=True)]
    position = tuple(data.draw(st.sampled_from([0, end]) | st.integers(0, end)) for end in ends)
    flip = tuple(data.draw(st.sampled_from([slice(None), slice(None, None, -1)])) for _ in AXES)
    ndim = data.draw(st.sampled_from([2, 3])) if patch[0] == 1 else 3
    found = read_context(held(factors), position, patch, flip, ndim, None)
    expected = around(held(factors).voxels, position, patch, factors)[flip]
    filled = np.where(np.isnan(expected), np.nanmean(expected), expected)
    np.testing.assert_allclose(found, filled[0] if ndim == 2 else filled, rtol=1e-6)
    starts = context_start(position, patch, factors)
    for first, start, length, factor in zip(position, starts, patch, factors, strict=True):
        assert abs((start + length / 2) * factor - (first + length / 2)) <= factor / 2


def test_the_transform_gets_the_flipped_voxels_within_the_box() -> None:
    """raw_transform gets no voxels from outside of the box; channels that it adds, and tensors, are kept."""
    seen = []

    def with_channels(voxels: np.ndarray) -> Any:
        seen.append(voxels)
        return torch.from_numpy(np.stack([voxels, 2.0 * voxels]))

    raw, flip = held((1, 4, 4)), (slice(None), slice(None, None, -1), slice(None))
    found = read_context(raw, (0, 0, 0), (8, 6, 7), flip, 3, with_channels)
    inside = raw.voxels[:, :4, :4][:, ::-1]
    np.testing.assert_array_equal(seen[0], inside)
    assert found.shape == (2, 8, 6, 7)
    np.testing.assert_array_equal(found[0, :, :4, 3:], inside)
    np.testing.assert_array_equal(found[1, :, :4, 3:], 2.0 * inside)
    np.testing.assert_allclose(found[:, :, 4:], 1.5 * inside.mean())
    np.testing.assert_allclose(found[:, :, :, :3], 1.5 * inside.mean())
    with pytest.raises(ld.InvalidArgumentError, match=r"made \(8, 4, 3\) voxels of \(8, 4, 4\).*must keep the shape"):
        read_context(raw, (0, 0, 0), (8, 6, 7), NO_FLIP, 3, lambda voxels: voxels[..., 1:])


def standardised(expected: np.ndarray) -> np.ndarray:
    """A context standardised over the voxels that are not NaN; the others are 0."""
    return np.nan_to_num((expected - np.nanmean(expected)) / (np.nanstd(expected) + 1e-7))


class Noting:
    """An array that notes the positions that are read."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.positions = array, array.shape, []

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        self.positions.append(tuple(part.start for part in key))
        return self.array[key]


@pytest.mark.parametrize("patch", [(3, 24, 33), (8, 101, 64), (1, 269, 100)])
def test_items_have_contexts_of_the_voxels_of_the_source(asked, folders, voxels, patch: tuple[int, ...]) -> None:
    """In each box, contexts are those of the source's voxels, standardised, whether or not there is a pyramid."""
    boxes = [BOX] if patch[1] > OTHER[3] - OTHER[2] else [BOX, OTHER]
    for folder in folders.values():
        mixture = dataset(asked, path=folder, patch_shape=patch, bounding_boxes=boxes)
        for box, one in zip(boxes, mixture.datasets, strict=True):
            one.flips, one.raw = False, Noting(one.raw)
            for number in range(8):
                raw, labels, *contexts = one[number]
                position = one.raw.positions[-1]
                assert len(contexts) == len(SCALES) - 1
                assert all(of.shape == raw.shape and of.dtype == raw.dtype == torch.float32 for of in contexts)
                assert labels.shape == raw.shape
                whole = raw_of(box, voxels)
                for context, factors in zip(contexts, SCALES[1:], strict=True):
                    expected = around(reduce(means_of, STEPS[factors], whole), position, patch, factors)
                    np.testing.assert_allclose(context[0], standardised(expected), atol=2e-4)


def test_contexts_show_the_whole_box(asked, voxels) -> None:
    """Contexts have the voxels of the box outside of the roi and of the split's blocks, too."""
    grid = ld.SplitGrid((64, 60, 60), (8, 6, 6))
    mixture = dataset(asked, rois=[np.s_[:, 90:200, 120:250]], split="train", split_grid=grid)
    one, whole = mixture.datasets[0], raw_of(BOX, voxels)
    one.flips, one.raw = False, Noting(one.raw)
    for number in range(4):
        context = one[number][2][0]
        expected = around(reduce(means_of, STEPS[1, 4, 4], whole), one.raw.positions[-1], PATCH, (1, 4, 4))
        np.testing.assert_allclose(context, standardised(expected), atol=2e-4)


def test_a_pyramid_changes_no_item_and_scales_change_no_patch(asked, folders) -> None:
    """Items are the same with and without a pyramid; raw and labels are those of a dataset without scales."""
    plain, layered = (items(asked, path=folders[name]) for name in ("plain", "layered"))
    np.testing.assert_equal(plain, layered)
    np.testing.assert_equal([item[:2] for item in plain], items(asked, scales=None))


def test_contexts_are_flipped_like_their_patch(asked) -> None:
    """Along the axes along which raw is flipped, its contexts are, and along no others."""
    turned, straight = dataset(asked), dataset(asked)
    straight.datasets[0].flips = False
    flips = set()
    for number in range(12):
        parts, (raw, _, *contexts) = turned[number], straight[number]
        (axes,) = (
            axes
            for size in range(4)
            for axes in combinations((1, 2, 3), size)
            if torch.allclose(parts[0], raw.flip(axes), atol=1e-3)
        )
        for context, expected in zip(parts[2:], contexts, strict=True):
            torch.testing.assert_close(context, expected.flip(axes), atol=1e-3, rtol=0)
        flips.add(axes)
    assert len(flips) > 4


@pytest.mark.parametrize(("workers", "method"), [(2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_items(asked, folders, workers: int, method: str) -> None:
    """Workers, forked or spawned, give the same contexts, also of a raw_transform that draws random numbers."""
    options = {"path": folders["layered"], "raw_transform": noisy}
    expected = items(asked, **options)
    np.testing.assert_equal(items(asked, **options, num_workers=workers, multiprocessing_context=method), expected)


def noisy(voxels: np.ndarray) -> np.ndarray:
    return voxels + np.random.random(voxels.shape).astype(np.float32)  # noqa: NPY002  # as users' transforms do


def test_an_interrupted_stream_goes_on_with_contexts(asked) -> None:
    """Batches of several items, and those after an interruption, have the same contexts."""
    options = {**asked, "batch_size": 4, "pin_memory": False}
    expected = items(asked)
    interrupted = ld.get_human_liver_em_loader(**options)
    batches = iter(interrupted)
    first = next(batches)
    assert [part.shape for part in first] == [(4, 1, *PATCH)] * (1 + len(SCALES))
    again = ld.get_human_liver_em_loader(**options)
    again.load_state_dict(interrupted.state_dict())
    found = [[part.numpy()[number] for part in batch] for batch in [first, *again] for number in range(4)]
    np.testing.assert_equal(found, expected)


def test_contexts_of_one_slice_have_two_axes(asked) -> None:
    """With ndim=2, contexts have the shape (channel, y, x) like raw; `dtype` is theirs, too."""
    item = dataset(asked, patch_shape=(1, 24, 33), ndim=2, dtype=torch.float64)[0]
    assert [part.shape for part in item] == [(1, 24, 33)] * (1 + len(SCALES))
    assert {part.dtype for part in (item[0], *item[2:])} == {torch.float64}


def test_with_a_pyramid_few_bytes_are_read_for_a_context(asked, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context of 3 x 64 x 64 voxels is read from a few chunks of the level, and not from all rows below it."""
    options = {"patch_shape": (3, 64, 64), "cache_gb": 0}
    two = [(1, 1, 1), (1, 4, 4)]
    datasets = {name: dataset(asked, path=folder, scales=two, **options) for name, folder in folders.items()}
    datasets["alone"] = dataset(asked, path=folders["plain"], scales=None, **options)
    sizes = count_bytes(monkeypatch)
    read = {}
    for name, one in datasets.items():
        sizes.clear()
        assert len(one[5]) == (2 if name == "alone" else 3)
        read[name] = sum(sizes)
    assert read["alone"] < read["layered"] < read["alone"] * 1.3
    assert read["plain"] > read["alone"] * 1.5


def test_without_further_scales_items_are_raw_and_labels(asked) -> None:
    """Without scales and with the patch's own alone, there are no contexts, and transform and stream are allowed."""
    for scales in (None, [(1, 1, 1)], np.ones((1, 3), int)):
        assert len(dataset(asked, scales=scales)[0]) == 2
        assert len(dataset(asked, scales=scales, transform=same, stream=True)[0]) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"scales": []}, r"scales=\[\] must begin with \(1, 1, 1\)"),
        ({"scales": [(1, 4, 4)]}, r"must begin with \(1, 1, 1\)"),
        ({"scales": [(1, 1, 1), (1, 4)]}, r"scales\[1\]=\(1, 4\) has 2 numbers"),
        ({"scales": [(1, 1, 1), (1, 0, 4)]}, r"scales\[1\]=\(1, 0, 4\) has an axis"),
        ({"scales": [(1, 1, 1), (1, 2.5, 4)]}, r"scales\[1\]=\(1, 2.5, 4\) must be 3 whole numbers"),
        ({"scales": (1, 4, 4)}, r"scales=\(1, 4, 4\) must be a list of factors"),
        ({"scales": 4}, "scales=4 must be a list of factors"),
        ({"transform": same}, "transform cannot be combined with scales"),
        ({"stream": True}, "scales cannot be streamed"),
    ],
)
@pytest.mark.parametrize("function", [ld.get_human_liver_em_dataset, ld.get_human_liver_em_loader])
def test_wrong_scales_are_one_sentence_before_anything_is_read(asked, tmp_path: Path, function, more, message) -> None:
    """Scales that are not valid, or that cannot be combined, are an InvalidArgumentError before a download."""
    options = {**asked, "path": tmp_path, "download": True, **more}
    with pytest.raises(ld.InvalidArgumentError, match=message):
        function(**options, **({"batch_size": 1} if function is ld.get_human_liver_em_loader else {}))
    assert not list(tmp_path.iterdir())
