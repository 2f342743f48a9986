"""The centre voxels of patches have the labels and the shares that were asked for, and no position is preferred."""

import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.patches import patches_of, table_of
from helpers.transforms import same
from liver_dask.training.centres import centres_of
from liver_dask.training.sampling import Box, Minimum, PatchSampler, Split
from liver_dask.training.tables import union

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("torch_em", reason="the extra `train` is not installed")

from liver_dask.training.dataset import PatchDataset, PatchMixture  # noqa: E402  # after the skip
from liver_dask.training.randomness import PatchNumber  # noqa: E402  # it stands with the others

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

PATCH, HALF = (2, 4, 5), (1, 2, 2)
GRID, VOLUME = ld.SplitGrid((4, 9, 11), (0, 1, 1), 3), (40, 60, 80)


class Noting:
    """An array that notes the corners of all boxes that are read of it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.corners = array, array.shape, []

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        self.corners.append(tuple(part.start for part in key))
        return self.array[key]


def in_memory(
    raw: np.ndarray,
    labels: dict[str, np.ndarray],
    *,
    class_balance: bool = False,
    foreground_share: float | None = None,
    least: int = 0,
    split: Split | None = None,
    region: bool = False,
    box: Box | None = None,
    patch: tuple[int, int, int] = PATCH,
    seed: int = 0,
) -> PatchDataset:
    """A dataset of arrays in memory, with tables as a store has them."""
    tables = {name: table_of(label) for name, label in labels.items()}
    of_labels = union(list(tables.values()))
    minima = (Minimum(table_of(raw), 20), *([Minimum(of_labels, least)] if least else []))
    places = PatchSampler(
        patch, box or Box((0, 0, 0), raw.shape), minima, of_labels.nearby() if region else None, split
    )
    arrays = tuple(map(Noting, labels.values()))
    source: Any = SimpleNamespace(names=tuple(labels), labels=arrays, tables=tables)
    centres = centres_of(source, places, class_balance, foreground_share)
    return patches_of(
        Noting(raw), arrays, places, centres=centres, least_labelled=least, seed=(seed,), with_label_channels=True
    )


def some_voxels() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Raw with glass, and a mask and instances that overlap, in blobs that the chunks do not follow."""
    rng = np.random.default_rng(5)
    shape = (5, 22, 27)
    raw = np.ones(shape, np.uint16)
    raw[:, :, :3] = 0

    def blobs(share: float) -> np.ndarray:
        coarse = np.kron(rng.random((2, 5, 4)) < share, np.ones((3, 5, 7), bool))[:5, :22, :27]
        return np.roll(coarse & (rng.random(shape) < 0.6), (1, 2, 3), (0, 1, 2))

    numbers = rng.integers(250, 70000, shape, dtype=np.uint32)
    return raw, {"mask": blobs(0.3).astype(np.uint8) * 255, "cell": np.where(blobs(0.3), numbers, 0)}


def allowed(raw: np.ndarray, labels: dict[str, np.ndarray], wanted: np.ndarray, demands: dict[str, Any]) -> set[Any]:
    """All allowed positions whose centre voxel is wanted, by trying each."""
    labelled = np.any([label != 0 for label in labels.values()], axis=0)
    box = demands.get("box") or Box((0, 0, 0), raw.shape)
    found = set()
    for place in np.ndindex(*(length - of + 1 for length, of in zip(box.shape, PATCH, strict=True))):
        z, y, x = position = tuple(int(start + of) for start, of in zip(box.start, place, strict=True))
        window = np.s_[z : z + 2, y : y + 4, x : x + 5]
        fits = np.count_nonzero(raw[window]) >= 20 and labelled[window].sum() >= demands.get("least", 0)
        if split := demands.get("split"):
            fits &= split.grid.allows(split.name, np.add([position], split.origin), PATCH, split.volume)[0]
        if demands.get("region"):
            for chunk in np.ndindex(*(-(-length // of) for length, of in zip(raw.shape, (2, 4, 5), strict=True))):
                low = np.multiply(chunk, (2, 4, 5))
                if (low < np.add(position, PATCH)).all() and (np.add(low, (2, 4, 5)) > position).all():
                    z0, y0, x0 = low
                    fits &= labelled[z0 : z0 + 2, max(y0 - 4, 0) : y0 + 8, max(x0 - 5, 0) : x0 + 10].any()
        if fits and wanted[z + 1, y + 2, x + 2]:
            found.add(position)
    return found


DEMANDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "roi": {"box": Box((1, 3, 4), (5, 19, 23))},
    "min_foreground": {"least": 9},
    "region": {"least": 1, "region": True},
    "train": {"split": Split("train", GRID, (3, 5, 7), VOLUME)},
    "val": {"split": Split("val", GRID, (0, 18, 21), VOLUME), "least": 2},
}


@pytest.mark.parametrize("demands", DEMANDS.values(), ids=DEMANDS)
@pytest.mark.parametrize("kind", ["mask", "cell", "one of them", "none of them"])
def test_all_allowed_positions_with_such_a_centre_have_the_same_chance(kind: str, demands: dict[str, Any]) -> None:
    """Exactly the allowed positions with a wanted centre voxel are drawn, each equally often."""
    raw, labels = some_voxels()
    if "region" in demands:  # a patch whose centre is in a labelled chunk may touch the first ones, which are not
        labels = {name: np.concatenate([label[:2] * 0, label[2:]]) for name, label in labels.items()}
    there = {name: label != 0 for name, label in labels.items()}
    one = there["mask"] | there["cell"]
    wanted = {**there, "one of them": one, "none of them": ~one}[kind]
    expected = allowed(raw, labels, wanted, demands)
    assert len(expected) > 5
    balanced = kind in labels
    dataset = in_memory(raw, labels, class_balance=balanced, foreground_share=0.5, **demands)
    assert dataset.centres is not None
    sampler = dataset.centres.samplers[["mask", "cell"].index(kind) if balanced else int(kind == "none of them")]
    each = 8
    drawn: Counter[tuple[int, ...]] = Counter()
    for number in range(each * len(expected)):
        with dataset._drawing(number, sampler):
            dataset._get_desired_raw_and_labels()
        drawn[dataset.raw.corners[-1]] += 1
    assert set(drawn) == expected
    statistic = sum((count - each) ** 2 / each for count in drawn.values())
    freedom = len(expected) - 1
    assert statistic < freedom + 3.3 * (2 * freedom) ** 0.5 + 4, "chi-square, p about 0.001"


def centre_of(patch: Any) -> str:
    """What the centre voxel of a patch with channels of labels is; of two labels both are named."""
    _, labels = patch
    at_centre = labels[(slice(None), *(length // 2 for length in labels.shape[1:]))]
    return "+".join(str(number) for number in torch.nonzero(at_centre)[:, 0].tolist()) or "none"


def disjoint_voxels(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Raw, and three labels that no voxel has two of: of 10 %, 1 % and 0.1 % of the voxels."""
    which = np.random.default_rng(seed).choice(4, (10, 40, 50), p=[0.889, 0.1, 0.01, 0.001])
    return np.ones(which.shape, np.uint16), {f"label{n}": (which == n + 1).astype(np.uint8) for n in range(3)}


@pytest.mark.parametrize(
    ("weights", "asked", "shares"),
    [
        ([1], {"class_balance": True}, {"0": 1 / 3, "1": 1 / 3, "2": 1 / 3}),
        ([1, 3], {"class_balance": True, "foreground_share": 0.6}, {"0": 0.2, "1": 0.2, "2": 0.2, "none": 0.4}),
        ([1, 2, 3], {"foreground_share": 0.25}, {"none": 0.75}),
        ([2, 0.3], {"foreground_share": 0}, {"none": 1.0}),
        ([2, 0.3], {"foreground_share": 1}, {"none": 0.0}),
    ],
)
def test_centres_have_their_shares_in_every_box(weights: list[float], asked: Any, shares: dict[str, float]) -> None:
    """Shares of centre voxels hold within 2 % over any 5000 patches, in each box, and within 10 % over any 200."""
    datasets = [in_memory(*disjoint_voxels(n), seed=n, **asked) for n in range(len(weights))]
    for number, dataset in enumerate(datasets):
        dataset.number = number
    boxes: list[int] = []

    class Told(PatchDataset):
        def __getitem__(self, index: int) -> Any:
            boxes.append(self.number)
            return super().__getitem__(index)

    for dataset in datasets:
        dataset.__class__ = Told
    mixture = PatchMixture(*datasets, weights=weights, n_samples=1000)
    first = 123_456
    centres = [centre_of(mixture[PatchNumber(first + n)]) for n in range(5000)]
    for box, weight in enumerate(weights):
        of_box = [centre for centre, other in zip(centres, boxes, strict=True) if other == box]
        assert len(of_box) == pytest.approx(5000 * weight / sum(weights), abs=10)
        for centre, share in shares.items():
            assert of_box.count(centre) / len(of_box) == pytest.approx(share, abs=0.02), (box, centre)
            for part in range(0, len(of_box) - 200, 200):
                assert of_box[part : part + 200].count(centre) / 200 == pytest.approx(share, abs=0.1), (box, centre)


def test_what_was_read_before_changes_no_draw() -> None:
    """A patch follows from its number: it is the same first, after a thousand others, and in a copy, which is small."""
    raw, labels = some_voxels()
    used, fresh = (
        in_memory(raw, labels, class_balance=True, foreground_share=0.7, box=Box((0, 1, 2), (5, 20, 26)))
        for _ in range(2)
    )
    small = len(pickle.dumps(fresh.centres))
    for number in range(1000):
        used[number]
    for label in used.labels:
        label.corners.clear()
    assert len(pickle.dumps(used.centres)) == small
    copied = pickle.loads(pickle.dumps(used))
    for number in range(1000, 1040):
        expected = in_memory(raw, labels, class_balance=True, foreground_share=0.7, box=used.places.box)[number]
        for dataset in (used, fresh, copied):
            assert all(map(torch.equal, dataset[number], expected))


def test_a_rare_label_costs_few_reads() -> None:
    """A label of 0.01 % of the voxels is found with one read of a chunk, and one of each label of the patch."""
    raw = np.ones((8, 240, 500), np.uint16)
    rare, other = np.zeros((2, *raw.shape), np.uint8)
    rare[2:6, 100:106, 200:204] = 1
    other[:, ::2] = 1
    assert rare.mean() == pytest.approx(1e-4)
    dataset = in_memory(raw, {"other": other, "rare": rare}, class_balance=True)
    assert dataset.centres is not None
    for number in range(200):
        with dataset._drawing(number, dataset.centres.samplers[1]):
            _, masks = dataset._get_desired_raw_and_labels()
        assert masks[(1, *HALF)]
    assert len(dataset.labels[1].corners) == 400
    assert len(dataset.labels[0].corners) == 200
    assert len(dataset.raw.corners) == 200


def test_a_label_at_the_border_is_read_once_in_vain() -> None:
    """Where most voxels of a label cannot be centres, a chunk is read again only for a patch that is drawn from it."""
    raw = np.ones((4, 60, 80), np.uint16)
    label = np.zeros(raw.shape, np.uint8)
    label[:, 0] = 1
    label[:, 41:43, 42] = 1
    box = Box((0, 0, 0), raw.shape)
    dataset = in_memory(raw, {"label": label}, foreground_share=1.0, box=box)
    for number in range(300):
        dataset[number]
        assert dataset.raw.corners[-1][1:] in ((39, 40), (40, 40))
    windows = len(dataset.labels[0].corners) - 300
    assert windows <= 300 + 3 * 16, "16 windows at the border, in each of the layers that centres are in"


DEPTH, HEIGHT, WIDTH = SHAPE
LEFT, RIGHT = (0, 220, 0, HEIGHT, 0, DEPTH), (180, WIDTH, 0, HEIGHT, 2, DEPTH)
LABELS = ["mito", "er", "nucleus"]


@pytest.fixture(scope="module")
def asked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stores")
    for box in (LEFT, RIGHT):
        ld.get_human_liver_em_data(folder, box, download=True, source=archive, shape=SHAPE)
    return {
        "path": folder,
        "patch_shape": (3, 24, 32),
        "bounding_boxes": [LEFT, RIGHT],
        "source": archive,
        "shape": SHAPE,
        "label_choice": LABELS,
        "class_balance": True,
        "foreground_share": 0.75,
        "seed": 3,
    }


def loader(asked: dict[str, Any], **more: Any) -> Any:
    return ld.get_human_liver_em_loader(**{"batch_size": 2, "n_samples": 16, "pin_memory": False, **asked, **more})


def bytes_of(batches: Any) -> list[bytes]:
    return [b"".join(tensor.numpy().tobytes() for tensor in batch) for batch in batches]


def test_centres_of_a_store_are_the_voxels_of_the_archive(asked, voxels) -> None:
    """Patches of stores have, at their centre, the label that their number is for, in each box and with a split."""
    as_read = {
        "raw_transform": same,
        "transform": same,
        "split": "train",
        "split_grid": ld.SplitGrid((4, 99, 99), (0, 9, 9)),
    }
    mixture = ld.get_human_liver_em_dataset(**asked, n_samples=80, **as_read)
    for one, (x_min, _, y_min, _, z_min, _) in zip(mixture.datasets, (LEFT, RIGHT), strict=True):
        one.raw, counts = Noting(one.raw), Counter()
        for number in range(80):
            raw, labels = one[number]
            z, y, x = np.add(one.raw.corners[-1], (z_min, y_min, x_min))
            window = np.s_[z : z + 3, y : y + 24, x : x + 32]
            np.testing.assert_array_equal(raw.numpy()[0], voxels["raw"][window])
            of_archive = np.stack([voxels[name][window] > 0 for name in LABELS])
            np.testing.assert_array_equal(labels.numpy(), of_archive)
            counts.update(LABELS[n] for n in np.flatnonzero(of_archive[:, 1, 12, 16]))
            counts["none"] += not of_archive[:, 1, 12, 16].any()
        assert counts["none"] == pytest.approx(20, abs=1)
        assert all(counts[name] >= 19 for name in LABELS)


def test_the_stream_is_the_same_with_workers_and_after_a_resume(asked) -> None:
    """Any workers give the same patches, a resumed loader gives the rest of them, and another rank gives others."""
    whole = loader(asked)
    stream = [*bytes_of(whole), *bytes_of(whole)]
    assert len(set(stream)) == 16
    interrupted = loader(asked, num_workers=2)
    given = []
    for batch in interrupted:
        given += bytes_of([batch])
        if len(given) == 5:
            break
    again = loader(asked, num_workers=2)
    again.load_state_dict(pickle.loads(pickle.dumps(interrupted.state_dict())))
    assert [*given, *bytes_of(again), *bytes_of(again)] == stream
    ranks = [bytes_of(loader(asked, rank=rank, world_size=2, batch_size=1)) for rank in range(2)]
    assert len({*ranks[0], *ranks[1]}) == 16
    assert bytes_of(loader(asked, seed=4)) != stream[:8]
    assert bytes_of(loader(asked, foreground_share=0.5)) != stream[:8]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"class_balance": [0.5, 0.5]}, r"class_balance=\[0.5, 0.5\] must be True or False"),
        ({"label_choice": "mito"}, "class_balance=True needs several labels, and label_choice has only 'mito'"),
        ({"label_choice": ["mito"]}, "class_balance=True needs several labels"),
        ({"foreground_share": 1.5}, "foreground_share=1.5 must be a share, 0 to 1, or None"),
        ({"foreground_share": float("nan")}, "foreground_share=nan must be"),
        ({"foreground_share": "half"}, "foreground_share='half' must be"),
        ({"foreground_share": True}, "foreground_share=True must be"),
        ({"stream": True}, "class_balance needs the table of a store; download one, or do not stream"),
        ({"stream": True, "class_balance": False}, "foreground_share needs the table of a store"),
        ({"min_foreground": 0.97}, r"zarr: No patch \(3, 24, 32\), with a voxel of 'mito' at its centre, was found"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(asked, wrong: dict[str, Any], told: str) -> None:
    """A wrong argument is an InvalidArgumentError of one sentence when the dataset is made."""
    with pytest.raises(ld.InvalidArgumentError, match=told) as error:
        ld.get_human_liver_em_dataset(**{**asked, **wrong})
    assert str(error.value).count(". ") == 0


def only(labels: dict[str, np.ndarray], name: str, where: Any) -> dict[str, np.ndarray]:
    """The same labels, but one of them only in a part of its voxels."""
    kept = np.zeros_like(labels[name])
    kept[where] = labels[name][where]
    return {**labels, name: kept}


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (np.s_[:0], "b: The box does not have a voxel of 'label1'; choose another box"),
        (np.s_[:1], r"b: No patch \(2, 4, 5\), with a voxel of 'label1' at its centre, was found"),
    ],
)
def test_a_box_without_a_label_is_named(where: Any, told: str) -> None:
    """A label without voxels, or without any that can be a centre, is an error, unless its box has no share."""
    raw, labels = disjoint_voxels(0)
    both = [in_memory(raw, of, class_balance=True) for of in (labels, only(labels, "label1", where))]
    with pytest.raises(ld.InvalidArgumentError, match=told + ".* or leave this box out with a weight of 0.$"):
        PatchMixture(*both, weights=[1, 1], n_samples=4).check_that_there_are_patches(["a", "b"])
    PatchMixture(*both, weights=[1, 0], n_samples=4).check_that_there_are_patches(["a", "b"])
    with pytest.raises(ld.InvalidArgumentError, match=told) as error:
        PatchMixture(both[1], weights=[1], n_samples=4).check_that_there_are_patches(["b"])
    assert "weight" not in str(error.value)


def test_a_box_that_is_labelled_everywhere_has_no_unlabelled_centre() -> None:
    """Background is refused where there is none, and is not needed for a share of 1."""
    raw, labels = np.ones((4, 12, 15), np.uint16), {"label": np.ones((4, 12, 15), np.uint8)}
    with pytest.raises(ld.InvalidArgumentError, match=r"The box does not have an unlabelled voxel; .* another share"):
        in_memory(raw, labels, foreground_share=0.9).check_that_there_are_patches()
    in_memory(raw, labels, foreground_share=1).check_that_there_are_patches()
