"""Which patches are drawn follows from the seed alone, and every position that is allowed has the same chance."""

import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.patches import patches_of, table_of
from helpers.transforms import same

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
torch_em = pytest.importorskip("torch_em", reason="the extra `train` is not installed")

from liver_dask.training.sampling import Box, Minimum, PatchSampler  # noqa: E402  # after the skip
from liver_dask.training.transforms import flipped, random_flip, standardized  # noqa: E402  # it stands with the others

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DEPTH, HEIGHT, WIDTH = SHAPE
LEFT, RIGHT = (0, 220, 0, HEIGHT, 0, DEPTH), (180, WIDTH, 0, HEIGHT, 2, DEPTH)
PATCH = (3, 24, 32)
AS_READ = {"raw_transform": same, "transform": same}


@pytest.fixture(scope="module")
def asked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stores")
    for box in (LEFT, RIGHT):
        ld.get_human_liver_em_data(folder, box, download=True, source=archive, shape=SHAPE)
    return {"path": folder, "patch_shape": PATCH, "bounding_boxes": [LEFT, RIGHT], "source": archive, "shape": SHAPE}


def loader(asked: dict[str, Any], **more: Any) -> Any:
    return ld.get_human_liver_em_loader(**{"batch_size": 1, "pin_memory": False, **asked, **more})


def bytes_of(batches: Any) -> list[bytes]:
    return [b"".join(tensor.numpy().tobytes() for tensor in batch) for batch in batches]


def drawn_positions(raw: np.ndarray, labels: np.ndarray, least: int, count: int) -> Counter[tuple[int, ...]]:
    """The positions of patches of (2, 4, 5) voxels of in-memory arrays, as a dataset draws them."""
    patch, positions = (2, 4, 5), []

    class Noting:
        shape = raw.shape

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            positions.append(tuple(part.start for part in key))
            return raw[key]

    minima = (Minimum(table_of(raw), 20), *([Minimum(table_of(labels), least)] if least else []))
    places = PatchSampler(patch, Box((0, 0, 0), raw.shape), minima)
    dataset = patches_of(Noting(), (labels.view(np.uint8),), places, least_labelled=least)
    found: Counter[tuple[int, ...]] = Counter()
    for number in range(count):
        with dataset._drawing(number):
            dataset._get_desired_raw_and_labels()
        found[positions[-1]] += 1
    return found


def qualifying(raw: np.ndarray, labels: np.ndarray, least: int) -> set[tuple[int, ...]]:
    """All positions that meet the demands, by trying each."""
    found = set()
    for z, y, x in np.ndindex(*(length - of + 1 for length, of in zip(raw.shape, (2, 4, 5), strict=True))):
        window = np.s_[z : z + 2, y : y + 4, x : x + 5]
        if np.count_nonzero(raw[window]) >= 20 and labels[window].sum() >= least:
            found.add((z, y, x))
    return found


@pytest.mark.parametrize("least", [0, 1, 4, 7, 9, 11, 13, 15, 18, 22])
def test_every_position_that_qualifies_is_drawn_with_the_same_chance(least: int) -> None:
    """For any minimum of labelled voxels, exactly the positions that have it are drawn, each equally often."""
    rng = np.random.default_rng(5)
    shape = (5, 12, 15)
    raw = np.ones(shape, np.uint16)
    raw[:, :, :6] = 0  # glass
    blobs = np.kron(rng.random((2, 3, 3)) < 0.4, np.ones((3, 4, 5), bool))[:5, :12, :15]
    labels = np.roll(blobs & (rng.random(shape) < 0.8), (1, 2, 2), (0, 1, 2))
    allowed = qualifying(raw, labels, least)
    assert len(allowed) > 5
    expected = 20
    found = drawn_positions(raw, labels, least, expected * len(allowed))
    assert set(found) == allowed
    statistic = sum((count - expected) ** 2 / expected for count in found.values())
    freedom = len(allowed) - 1
    assert statistic < freedom + 3.3 * (2 * freedom) ** 0.5 + 4, "chi-square, p about 0.001"


def test_a_rare_position_is_found_for_every_patch() -> None:
    """Positions that qualify are found for every patch, also if thousands of others have to be left out."""
    raw = np.ones((2, 120, 150), np.uint16)
    labels = np.zeros(raw.shape, bool)
    labels[:, 40:44, 60:65] = True
    assert set(drawn_positions(raw, labels, 36, 40)) == qualifying(raw, labels, 36)


def test_a_box_is_read_alike_from_both_ends_of_the_tissue() -> None:
    """Positions at the beginning of the tissue are drawn as often as those at its end."""
    raw = np.ones((4, 24, 30), np.uint16)
    raw[:, :7] = raw[:, -7:] = 0
    starts = Counter(y for (_, y, _), count in drawn_positions(raw, raw > 0, 0, 3000).items() for _ in range(count))
    assert set(starts) == set(range(5, 16))
    assert min(starts.values()) > 150


def test_a_seed_is_enough_in_any_dataloader(asked) -> None:
    """A plain DataLoader gives the same patches again, with any workers; each epoch has new ones."""
    epochs = {}
    for workers in (0, 2):
        dataset = ld.get_human_liver_em_dataset(**asked, n_samples=8, seed=3)
        plain = torch.utils.data.DataLoader(dataset, num_workers=workers)
        epochs[workers] = [bytes_of(plain) for _ in range(3)]
    assert epochs[0] == epochs[2]
    patches = {patch for epoch in epochs[0] for patch in epoch}
    assert len(patches) == 24, "a patch came twice"
    copied = pickle.loads(pickle.dumps(ld.get_human_liver_em_dataset(**asked, n_samples=8, seed=3)))
    plain = torch.utils.data.DataLoader(copied, num_workers=2)
    assert [bytes_of(plain) for _ in range(2)] == epochs[0][:2], "workers of a copy repeat an epoch"
    assert [bytes_of(loader(asked, n_samples=8, seed=3, num_workers=2))] == epochs[0][:1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_that_is_not_used_counts_as_an_epoch(asked, workers: int) -> None:
    """With any workers, an iterator that was begun but not used takes its epoch along."""
    whole = loader(asked, n_samples=4, seed=1)
    expected = [bytes_of(whole) for _ in range(2)][1]
    begun = loader(asked, n_samples=4, seed=1, num_workers=workers)
    iter(begun)
    assert bytes_of(begun) == expected


def test_the_seed_fixes_what_a_users_transforms_draw(asked) -> None:
    """Transforms that use the global generators of torch, numpy or Python follow from the seed; the generators stay."""

    def noisy(raw: np.ndarray) -> np.ndarray:
        return raw + random.random() + np.random.random() + torch.rand(()).item()  # noqa: NPY002  # as users' transforms do

    dataset = ld.get_human_liver_em_dataset(**asked, n_samples=4, seed=1, raw_transform=noisy)
    before = random.getstate(), torch.get_rng_state()
    dataset[0]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    first, second = (bytes_of(loader(asked, n_samples=4, seed=1, raw_transform=noisy)) for _ in range(2))
    assert first == second
    assert first != bytes_of(loader(asked, n_samples=4, seed=2, raw_transform=noisy))


def test_without_a_seed_boxes_and_loaders_draw_on_their_own(asked) -> None:
    """Without a seed, the same box given twice has other patches, and so has a second loader; torch's seed decides."""
    twice = {**asked, "bounding_boxes": [LEFT, LEFT], "n_samples": 8}
    torch.manual_seed(0)
    first, second = (bytes_of(loader(twice)) for _ in range(2))
    assert len({*first, *second}) == 16
    torch.manual_seed(0)
    assert bytes_of(loader(twice)) == first


def boxes_of(asked: dict[str, Any], count: int, **more: Any) -> list[int]:
    """From which box each patch comes."""
    dataset = ld.get_human_liver_em_dataset(**asked, **more)
    numbers: list[int] = []
    for box, of_box in enumerate(dataset.datasets):
        of_box.__class__ = type("Told", (type(of_box),), {"__getitem__": lambda *_, box=box: numbers.append(box)})
    for number in range(count):
        dataset[number % len(dataset)]
    return numbers


def test_boxes_have_the_share_that_was_asked_for(asked) -> None:
    """Weights hold within 2 % over 5000 patches; without, boxes share `n_samples` evenly, else by their size."""
    shares = [boxes_of(asked, 5000, weights=weights).count(0) / 5000 for weights in ([1, 3], [0, 1], [0.3, 0.1])]
    assert shares == pytest.approx([0.25, 0, 0.75], abs=0.002)
    assert boxes_of(asked, 500, n_samples=10).count(0) == pytest.approx(250, abs=2)
    first, second = (box[1] - box[0] for box in (LEFT, RIGHT))
    by_size = first * DEPTH / (first * DEPTH + second * (DEPTH - 2))
    assert boxes_of(asked, 2000).count(0) / 2000 == pytest.approx(by_size, abs=0.01)
    first_of_all = boxes_of(asked, 40, n_samples=1)
    assert 15 <= first_of_all.count(0) <= 25, "an epoch of one patch is of one box or the other"


@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (2, None), (4, None), (2, "fork"), (4, "fork"), (1, "spawn")]
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_an_interrupted_stream_goes_on_exactly(asked, workers: int, method: str | None) -> None:
    """After any number of batches, a new loader with the state gives the rest of the stream, and later epochs."""
    options = {"n_samples": 11, "batch_size": 2, "seed": 4, "num_workers": workers, "multiprocessing_context": method}
    whole = loader(asked, **{**options, "num_workers": 0, "multiprocessing_context": None})
    stream = [batch for _ in range(4) for batch in bytes_of(whole)]
    assert len(set(stream)) == len(stream) == 24, "6 batches an epoch"
    for stopped in [1, 5, 6, 7, 17] if method != "spawn" else [4]:
        interrupted, given = loader(asked, **options), 0
        while given < stopped:
            for batch in interrupted:
                assert bytes_of([batch]) == [stream[given]]
                given += 1
                if given == stopped:
                    break
        again = loader(asked, **options)
        again.load_state_dict(pickle.loads(pickle.dumps(interrupted.state_dict())))
        end = -(-stopped // 6) * 6
        assert bytes_of(again) == stream[stopped:end]
        if method != "spawn":  # it starts slowly
            assert bytes_of(again) == stream[end : end + 6]


def test_the_state_of_another_loader_is_refused(asked) -> None:
    """A state that belongs to another seed or another number of patches is an InvalidArgumentError."""
    options = {"n_samples": 8, "seed": 1}
    state = loader(asked, **options).state_dict()
    others = ({"seed": 2}, {"n_samples": 9}, {"reuse": 2}, {"patch_shape": (3, 24, 24)}, {"min_foreground": 0.1})
    for other in others:
        with pytest.raises(ld.InvalidArgumentError, match="that of another loader"):
            loader(asked, **{**options, **other}).load_state_dict(state)


def test_a_loader_without_a_seed_takes_that_of_the_state(asked) -> None:
    """A stream without a given seed goes on as well, on another rank with that rank's patches."""
    first = loader(asked, n_samples=8)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    state = first.state_dict()
    rest = bytes_of(batches)
    again = loader(asked, n_samples=8)
    again.load_state_dict(state)
    assert bytes_of(again) == rest
    ranks = [loader(asked, n_samples=16, rank=rank, world_size=2) for rank in range(2)]
    ranks[1].load_state_dict(ranks[0].state_dict())
    assert not set(bytes_of(ranks[0])) & set(bytes_of(ranks[1]))
    start = ranks[0].state_dict() | {"epoch": 0, "given": 0}
    seeded = loader(asked, n_samples=16, rank=1, world_size=2, seed=start["seed"])
    for one in (seeded, ranks[1]):
        one.load_state_dict(start)
    assert bytes_of(seeded) == bytes_of(ranks[1])


@pytest.mark.parametrize(
    "more",
    [{"reuse": 3, "patch_shape": (2, 8, 8)}, {"num_workers": 2, "workers": "processes", "persistent_workers": True}],
)
def test_nothing_of_the_seed_before_is_left(asked, more: dict[str, Any]) -> None:
    """A loader that has drawn patches, and then takes the seed of a state, draws those of this seed."""
    options = {**asked, "n_samples": 30, **more}
    first = loader(options)
    state, stream = first.state_dict(), bytes_of(first)
    again = loader(options)
    bytes_of(again)
    if "reuse" in more:  # as if the first patches of its groups began in another chunk
        for dataset in again.dataset.datasets:
            dataset._anchors = dict.fromkeys(dataset._anchors, (8, 256, 0))
    again.load_state_dict(state)
    assert bytes_of(again) == stream


RANK = """
import sys, torch, pickle
import liver_dask as ld
rank, file, out, asked = int(sys.argv[1]), sys.argv[2], sys.argv[3], eval(sys.argv[4])
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
batches = lambda of: [b"".join(tensor.numpy().tobytes() for tensor in batch) for batch in of]
ours, early = (
    ld.get_human_liver_em_loader(**asked, batch_size=1, n_samples=9, seed=0, pin_memory=False) for _ in range(2)
)
dataset = ld.get_human_liver_em_dataset(**asked, n_samples=9, seed=0)
sampler = torch.utils.data.DistributedSampler(dataset, shuffle=True)
early.ranks = (0, 1)  # as if it was made before
try:
    iter(early)
    raise SystemExit("a loader that does not know its rank must not be used")
except ld.InvalidArgumentError as error:
    assert "make it after torch.distributed is initialised" in str(error)
theirs = torch.utils.data.DataLoader(dataset, sampler=sampler)  # as torch_em's training with several GPUs does
found = batches(ours), [patch for epoch in range(3) for patch in (sampler.set_epoch(epoch), batches(theirs))[1]]
pickle.dump(found, open(out, "wb"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_have_disjoint_streams(asked, tmp_path: Path) -> None:
    """Two processes of torch.distributed draw other patches; `rank` and `world_size` do so, too."""
    given = {**asked, "path": str(asked["path"]), "source": str(asked["source"])}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                RANK,
                str(rank),
                str(tmp_path / "init"),
                str(tmp_path / f"{rank}.pickle"),
                repr(given),
            ]
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    (first, of_first), (second, of_second) = (
        pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)
    )
    assert len(first) == len(second) == 5
    assert len({*first, *second}) == 10
    assert len({*of_first, *of_second}) == len(of_first) + len(of_second) == 30
    assert bytes_of(loader(asked, n_samples=9, seed=0, rank=1, world_size=2)) == second
    with pytest.raises(ld.InvalidArgumentError, match="rank=2 must be"):
        loader(asked, rank=2, world_size=2)


def test_no_voxel_of_validation_is_in_training(asked, archive: Path) -> None:
    """Overlapping boxes, other patch shapes and streams give the same split of the volume."""
    grid = ld.SplitGrid((64, 60, 60), (8, 6, 6))
    seen = {"train": np.zeros(SHAPE, bool), "val": np.zeros(SHAPE, bool)}
    for split, voxels in seen.items():
        for patch in ((3, 24, 32), (1, 40, 40)):
            for stream in (False, True):
                dataset = ld.get_human_liver_em_dataset(
                    **{**asked, "patch_shape": patch}, split=split, split_grid=grid, seed=0, stream=stream
                )
                for of_box, box in zip(dataset.datasets, (LEFT, RIGHT), strict=True):
                    for number in range(60):
                        rng = np.random.default_rng((number, stream))
                        z, y, x = np.add(next(of_box.places.candidates(rng)), (box[4], box[2], box[0]))
                        voxels[z : z + patch[0], y : y + patch[1], x : x + patch[2]] = True
    assert seen["train"].mean() > 0.3
    assert seen["val"].mean() > 0.02
    assert not (seen["train"] & seen["val"]).any()


@pytest.fixture
def instances(tmp_path: Path) -> dict[str, Any]:
    """An archive with a mask and with instances whose numbers float32 cannot hold."""
    rng = np.random.default_rng(0)
    shape = (4, 64, 64)
    numbers = np.kron(rng.integers(0, 9, (4, 8, 8)), np.ones((1, 8, 8), int)) * 3 + (1 << 24) - 1
    voxels = {
        "raw": rng.integers(1, 255, shape).astype("uint8"),
        "mask": np.where(rng.random(shape) < 0.5, 0, 255).astype("uint8"),
        "cell": np.where(numbers < 1 << 24, 0, numbers).astype("uint32"),
    }
    kinds: dict[str, Any] = {"raw": "image", "mask": "mask", "cell": "instances"}
    for name, whole in voxels.items():
        (tmp_path / name).mkdir()
        for z, pixels in enumerate(whole):
            tifffile.imwrite(tmp_path / name / f"{z}.tif", pixels)
    variables = tuple(
        ld.Variable(name=name, files=f"{name}/{{z}}.tif", kind=kinds[name], dtype=str(whole.dtype))
        for name, whole in voxels.items()
    )
    archive = ld.Archive(name="mine", url=str(tmp_path), shape=shape, variables=variables)
    whole = {"bounding_boxes": [(0, 64, 0, 64, 0, 4)], "patch_shape": shape, "archive": archive, "stream": True}
    return {"path": tmp_path / "stores", "label_choice": ["mask", "cell"], "seed": 0, "voxels": voxels, **whole}


def objects(numbers: np.ndarray) -> int:
    """How many objects there are."""
    return len(np.unique(numbers[numbers > 0]))


@pytest.mark.parametrize(
    "transform", [None, same, torch_em.transform.get_augmentations(ndim=3)], ids=["none", "own", "kornia"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_masks_beside_instances_are_0_and_1_and_no_object_becomes_another(instances, transform, dtype) -> None:
    """Channels of masks are 0 and 1, and those of instances keep every object, in float32 with other numbers."""
    voxels = instances.pop("voxels")
    _, labels = ld.get_human_liver_em_dataset(**instances, transform=transform, label_dtype=dtype)[0]
    mask, cell = labels.numpy()
    assert set(np.unique(mask)) == {0, 1}
    assert mask.mean() == (voxels["mask"] > 0).mean()
    assert objects(cell) == objects(voxels["cell"]) == 8
    keeps = transform in (None, same) and dtype == torch.int64
    assert (cell.max() == voxels["cell"].max()) == keeps


def test_the_default_transforms_are_torch_ems_in_distribution() -> None:
    """Raw is standardised as torch_em does it, and each of the eight flips comes equally often."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 60000, (4, 20, 30), np.uint16)
    labels = raw[None] > 30000
    flips: Counter[tuple[int, ...]] = Counter()
    for _ in range(5000):
        turned, of_labels = flipped(raw, labels, random_flip(rng))
        flips[tuple(int(step < 0) for step in turned.strides)] += 1
        np.testing.assert_array_equal(turned > 30000, of_labels[0])
    statistic = sum((count - 625) ** 2 / 625 for count in flips.values())
    assert len(flips) == 8
    assert statistic < 24.3, "chi-square, 7 degrees of freedom, p = 0.001"
    expected = torch_em.transform.raw.standardize(raw[:, ::-1])
    np.testing.assert_allclose(standardized(raw[:, ::-1]), expected, atol=1e-4)
    theirs = torch_em.transform.get_augmentations("anisotropic").augmentations
    assert sorted(type(one).__name__ for one in theirs) == [
        "RandomDepthicalFlip3D",
        "RandomHorizontalFlip3D",
        "RandomVerticalFlip3D",
    ]
    assert {one.p for one in theirs} == {0.5}
