"""torch_em's datasets and loaders give the right voxels from stores and from the archive."""

import inspect
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import liver_dask as ld
from helpers.archive import SHAPE, write_raw
from helpers.places import copied
from helpers.transforms import same
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.remote.cache import FolderCache
from liver_dask.core.kinds import RAW
from liver_dask.core.places import Place
from liver_dask.demo import ArchiveServer, make_archive

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
torch_em = pytest.importorskip("torch_em", reason="the extra `train` is not installed")

from torch_em.data import SegmentationDataset  # noqa: E402  # after the skip

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

GRID = ld.SplitGrid(block=(64, 160, 160), margin=(8, 16, 16))

DEPTH, HEIGHT, WIDTH = SHAPE
WHOLE = (0, WIDTH, 0, HEIGHT, 0, DEPTH)
PATCH = (3, 24, 32)


AS_READ = {"raw_transform": same, "transform": same}


@pytest.fixture(scope="module")
def folder(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    ld.get_human_liver_em_data(folder, WHOLE, download=True, source=archive, shape=SHAPE)
    return folder


@pytest.fixture(scope="module", params=["folder", "s3"])
def stores(request: pytest.FixtureRequest, folder: Path) -> Place:
    """The folder of the store, and a copy of it in object storage."""
    return folder if request.param == "folder" else copied(folder, request.getfixturevalue("running_s3").folder())


IN_A_FOLDER = pytest.mark.parametrize("stores", ["folder"], indirect=True)
"""Marks a test of what does not depend on where a store lies: patches from object storage cost requests."""


@pytest.fixture
def asked(stores: Place, archive: Path) -> dict[str, Any]:
    return {"path": stores, "patch_shape": PATCH, "bounding_boxes": [WHOLE], "source": archive, "shape": SHAPE}


def loader(asked: dict[str, Any], **more: Any) -> Any:
    return ld.get_human_liver_em_loader(**{"batch_size": 1, "pin_memory": False, **asked, **more})


def dataset(asked: dict[str, Any], **more: Any) -> Any:
    (one,) = ld.get_human_liver_em_dataset(**{**asked, **more}).datasets
    return one


@cache
def sorted_by_value(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """All voxels of raw in ascending order, and their positions."""
    raw = ld.open_human_liver_em(archive, shape=SHAPE).raw.values.ravel()
    order = np.argsort(raw, kind="stable")
    return raw[order], order


def position_of(patch: np.ndarray, raw: np.ndarray, archive: Path) -> tuple[slice, ...]:
    """The position in the volume of a patch of raw; fails if there is none."""
    values, order = sorted_by_value(archive)
    rare = np.unravel_index(np.argmax(patch), patch.shape)  # bright voxels are rare
    ends = (np.searchsorted(values, patch[rare], side) for side in ("left", "right"))
    for corner in np.stack(np.unravel_index(order[slice(*ends)], raw.shape), 1) - rare:
        if corner.min() < 0:
            continue
        window = tuple(slice(start, start + length) for start, length in zip(corner, patch.shape, strict=True))
        if np.array_equal(raw[window], patch):
            return window
    pytest.fail("a patch is nowhere in the volume")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [(2, "fork"), (1, "spawn")])
@IN_A_FOLDER
def test_a_thousand_patches_are_voxels_of_the_source(asked, archive: Path, voxels, workers: int, method: str) -> None:
    """Forked and spawned workers give patches of raw with the labels of the same voxels."""
    found = set()
    for raw, labels in loader(
        asked, n_samples=1000, batch_size=4, num_workers=workers, multiprocessing_context=method, **AS_READ
    ):
        assert raw.dtype == labels.dtype == torch.float32
        for patch, mask in zip(raw.numpy(), labels.numpy(), strict=True):
            window = position_of(patch[0], voxels["raw"], archive)
            np.testing.assert_array_equal(mask[0], voxels["mito"][window] / 255)
            found.add(tuple(part.start for part in window))
    assert len(found) > 950


@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_any_number_of_workers_will_do(asked, archive: Path, voxels, workers: int) -> None:
    """Without workers and with four of them, all patches are different."""
    patches = [raw.numpy()[0, 0] for raw, _ in loader(asked, n_samples=20, num_workers=workers, **AS_READ)]
    places = {str(position_of(patch, voxels["raw"], archive)) for patch in patches}
    assert len(places) == 20


def drawn(asked: dict[str, Any], **more: Any) -> list[bytes]:
    options = {"n_samples": 12, "num_workers": 2, **AS_READ, **more}
    return [raw.numpy().tobytes() for raw, _ in loader(asked, **options)]


@pytest.mark.slow
@IN_A_FOLDER
def test_a_seed_gives_the_same_patches_and_no_worker_anothers(asked) -> None:
    """A seed, given or torch's global one, gives the same patches again, and no patch comes twice."""
    first = drawn(asked, seed=5)
    assert len(set(first)) == 12
    assert first == drawn(asked, seed=5, multiprocessing_context="fork")
    assert not set(first) & set(drawn(asked, seed=6))
    torch.manual_seed(1)
    unseeded = drawn(asked)
    assert unseeded != drawn(asked)
    torch.manual_seed(1)
    assert unseeded == drawn(asked)


@pytest.mark.parametrize("persistent", [False, True])
@IN_A_FOLDER
def test_another_epoch_has_other_patches(asked, persistent: bool) -> None:
    """A second epoch has no patch of the first one."""
    epochs = loader(asked, n_samples=6, num_workers=2, seed=1, persistent_workers=persistent, **AS_READ)
    first, second = ({raw.numpy().tobytes() for raw, _ in epochs} for _ in range(2))
    assert not first & second


@IN_A_FOLDER
def test_no_global_random_state_is_used(asked) -> None:
    """Drawing a patch leaves numpy's global random state unchanged."""
    before = np.random.get_state()  # noqa: NPY002  # it is numpy's global state that is looked at
    dataset(asked, min_foreground=0.01, **AS_READ)[0]
    np.testing.assert_equal(np.random.get_state(), before)  # noqa: NPY002  # it is numpy's global state that must not have moved


@pytest.mark.parametrize("least", [0.05, 0.2])
@IN_A_FOLDER
def test_every_patch_has_the_foreground_that_was_asked_for(asked, voxels, least: float) -> None:
    """Each patch has at least the foreground `min_foreground`, and raw is read for hardly any other."""
    one = dataset(asked, min_foreground=least, seed=0, **AS_READ)
    reads = []
    one.raw = counting(one.raw, reads)
    shares = [one[i][1].mean().item() for i in range(60)]
    assert min(shares) >= least - 1e-6
    assert len(reads) < 66, "raw was read for patches that were not given"
    blind = dataset(asked, **AS_READ)
    assert np.mean([blind[i][1].mean() < least for i in range(60)]) > 0.2, "it would have been so anyway"


def counting(array: Any, reads: list[Any]) -> Any:
    class Counting:
        shape = array.shape

        def __getitem__(self, key: Any) -> Any:
            reads.append(key)
            return array[key]

    return Counting()


def half_labelled(folder: Path) -> tuple[Path, tuple[int, int, int]]:
    """An archive whose masks are empty in the lower half, and whose raw is empty in the right third."""
    from PIL import Image

    from liver_dask.core.kinds import RAW

    shape = (8, 1024, 1536)
    make_archive(folder, shape)
    for name in (RAW, *EMPIAR_13356.labels):
        for z in range(shape[0]):
            path = folder / EMPIAR_13356.path(name, z)
            pixels = np.array(Image.open(path))
            if name == RAW:
                pixels[:, 1024:] = 0
                write_raw(path, pixels)
            else:
                pixels[512:] = 0
                Image.fromarray(pixels).save(path)
    return folder, shape


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    archive, shape = half_labelled(tmp_path_factory.mktemp("half"))
    folder = tmp_path_factory.mktemp("half_stores")
    box = (0, shape[2], 0, shape[1], 0, shape[0])
    ld.get_human_liver_em_data(folder, box, download=True, source=archive, shape=shape)
    return {"path": folder, "patch_shape": (2, 96, 96), "bounding_boxes": [box], "source": archive, "shape": shape}


class Noting:
    """An array that notes the positions that are read."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.positions = array, array.shape, []

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        self.positions.append([part.start for part in key])
        return self.array[key]


def places(one: Any, count: int) -> np.ndarray:
    """The positions of the first patches of a dataset."""
    raw, one.raw = one.raw, Noting(one.raw)
    found = []
    for number in range(count):
        one[number]
        found.append(one.raw.positions[-1])
    one.raw = raw
    return np.array(found)


def test_patches_are_of_tissue_and_of_what_is_labelled(half) -> None:
    """Half of a patch is tissue; with `labelled_region_only` it has a label, and lies near chunks with labels."""
    anywhere = places(dataset(half, seed=0), 300)
    assert 1024 - 96 + 20 < anywhere[:, 2].max() <= 1024 - 96 // 2
    assert anywhere[:, 1].max() > 900
    only = dataset(half, seed=0, labelled_region_only=True)
    labelled = places(only, 300)
    assert 512 - 96 + 20 < labelled[:, 1].max() < 512, "to the last row with labels"
    assert all(only[number][1].any() for number in range(50))
    assert labelled[:, 1].min() < 30


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_keeps_to_its_blocks_and_says_so(half, split: str) -> None:
    """Patches lie in the blocks of their split, which `split` tells, also after pickling."""
    one = dataset(half, split=split, split_grid=GRID, seed=0)
    assert one.split == {"name": split, "grid": GRID}
    assert pickle.loads(pickle.dumps(one)).split == one.split
    found = places(one, 100)
    assert GRID.allows(split, found, one.patch_shape, half["shape"]).all()
    assert GRID.allows("train", found, one.patch_shape, half["shape"]).all() == (split == "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_of_torch_ems_trainer_keeps_split_seed_and_position(half, tmp_path: Path, workers: int) -> None:
    """A loader from a checkpoint of torch_em's trainer has the split, and goes on with the epoch after the last one."""
    from torch_em.model import UNet2d
    from torch_em.trainer import DefaultTrainer

    options = {"patch_shape": (1, 64, 64), "ndim": 2, "n_samples": 2, "seed": 0, "num_workers": workers}
    train, val = (loader({**half, **options}, split=split, split_grid=GRID) for split in ("train", "val"))
    trainer = torch_em.default_segmentation_trainer(
        name="t",
        model=UNet2d(1, 1, depth=2, initial_features=2, final_activation="Sigmoid"),
        train_loader=train,
        val_loader=val,
        logger=None,
        device="cpu",
        compile_model=False,
        save_root=str(tmp_path),
    )
    trainer.fit(iterations=2, progress=SilentProgress())
    kept = DefaultTrainer.from_checkpoint(tmp_path / "checkpoints" / "t", device="cpu")
    assert kept.train_loader.dataset.split == {"name": "train", "grid": GRID}
    for _ in range(2):
        expected, found = ([raw for raw, _ in one] for one in (train, kept.train_loader))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    fresh = loader({**half, **options}, split="train", split_grid=GRID)
    epochs = [[raw for raw, _ in fresh] for _ in range(3)]
    torch.testing.assert_close(found, epochs[2], rtol=0, atol=0)
    assert not any(torch.equal(raw, other) for raw in epochs[0] for other in [*epochs[1], *epochs[2]])


class SilentProgress:
    """A progress bar with what torch_em calls, and without output."""

    total = 0

    def set_description(self, *_: object, **__: object) -> None:
        pass

    def update(self, *_: object) -> None:
        pass


def test_labels_are_what_a_loss_takes_unless_a_transform_says_otherwise(asked, voxels) -> None:
    """Masks are 0 and 1; a label transform gets 0 and 255."""
    assert set(np.unique(dataset(asked, min_foreground=0.1, **AS_READ)[0][1])) == {0, 1}
    seen = []
    dataset(asked, min_foreground=0.1, label_transform=lambda labels: seen.append(labels) or labels, **AS_READ)[0]
    assert set(np.unique(seen)) == {0, 255}


def test_several_labels_are_channels(asked, archive: Path, voxels) -> None:
    """Several labels are channels in the order in which they were given."""
    raw, labels = dataset(asked, label_choice=["er", "mito"], **AS_READ)[0]
    window = position_of(raw.numpy()[0], voxels["raw"], archive)
    assert labels.shape == (2, *PATCH)
    for channel, name in zip(labels.numpy(), ("er", "mito"), strict=True):
        np.testing.assert_array_equal(channel, voxels[name][window] / 255)


@IN_A_FOLDER
def test_torch_ems_own_options_mean_what_they_mean_there(asked, voxels) -> None:
    """The options rois, ndim, sampler, dtypes and n_samples work as in torch_em."""
    rois = [(slice(2, 8), slice(50, 150), slice(100, 300))]
    raw, _ = dataset(asked, rois=rois, patch_shape=(6, 100, 200), **AS_READ)[0]
    np.testing.assert_array_equal(raw[0], voxels["raw"][2:8, 50:150, 100:300])
    two_d = dataset(asked, patch_shape=(1, 24, 32), ndim=2)
    assert two_d[0][0].shape == two_d[0][1].shape == (1, 24, 32)
    assert two_d.ndim == 2
    calls = []
    kept = dataset(asked, sampler=lambda raw, labels: calls.append(raw.shape) or len(calls) > 2, **AS_READ)
    kept[0]
    assert calls == [PATCH] * 3
    both = dataset(asked, dtype=torch.float64, label_dtype=torch.int64, n_samples=7, **AS_READ)
    assert [tensor.dtype for tensor in both[0]] == [torch.float64, torch.int64]
    assert len(both) == 7
    assert abs(dataset(asked)[0][0].mean()) < 1e-3, "raw is standardized, as torch_em does it"


@IN_A_FOLDER
def test_the_dataset_is_torch_ems_and_has_all_that_it_sets(asked, folder: Path) -> None:
    """The dataset is a torch_em SegmentationDataset with all of its attributes and options."""
    (store,) = folder.glob("*.zarr")
    theirs = SegmentationDataset(str(store), "raw", str(store), "mito", PATCH)
    ours = dataset(asked)
    assert isinstance(ours, SegmentationDataset)
    assert vars(theirs).keys() <= vars(ours).keys()
    assert theirs.shape == ours.shape
    assert len(theirs) == len(ours)
    parameters = set(inspect.signature(SegmentationDataset).parameters)
    of_theirs = set(inspect.signature(torch_em.default_segmentation_dataset).parameters)
    assert parameters - of_theirs == {"raw_path", "label_path", "roi"}


def test_patches_straight_from_the_archive(server: ArchiveServer, archive: Path, voxels, tmp_path: Path) -> None:
    """Streamed patches are right; a second epoch is the same and takes most bytes from the cache."""
    asked = {"path": tmp_path, "patch_shape": PATCH, "bounding_boxes": [WHOLE], "source": server.url, "shape": SHAPE}
    stream = {"stream": True, "n_samples": 12, "min_foreground": 0.02, "seed": 1, **AS_READ}
    patches = []
    for raw, labels in loader(asked, num_workers=2, **stream):
        window = position_of(raw.numpy()[0, 0], voxels["raw"], archive)
        np.testing.assert_array_equal(labels.numpy()[0, 0], voxels["mito"][window] / 255)
        patches.append(raw.numpy().tobytes())
    sent = sum(request.sent for request in server.requests)
    server.requests.clear()
    again = [raw.numpy().tobytes() for raw, _ in loader(asked, num_workers=2, **stream)]
    assert again == patches
    assert sum(request.sent for request in server.requests) < sent / 2, "strips are not kept"
    assert FolderCache(str(tmp_path / "cache")).entries(RAW)
    assert not list(tmp_path.glob("*.zarr*"))


@pytest.mark.slow
@IN_A_FOLDER
def test_two_thousand_batches_leave_no_memory_and_no_file(asked) -> None:
    """Memory and open files do not grow over 1500 batches."""

    def used() -> tuple[int, int]:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(p.memory_info().rss for p in processes), sum(p.num_fds() for p in processes)

    batches = iter(loader(asked, n_samples=2100, num_workers=2, min_foreground=0.01, **AS_READ))
    for _ in range(500):
        next(batches)
    memory, files = used()
    for _ in range(1500):
        next(batches)
    memory_after, files_after = used()
    assert memory_after < memory + (24 << 20)
    assert files_after <= files + 8, "those of batches on their way"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"patch_shape": (3, 400, 32)}, r"patch_shape=\(3, 400, 32\) does not fit into a box"),
        ({"patch_shape": (24, 32)}, "has 2 numbers"),
        ({"rois": [(slice(0, 2),) * 3]}, "does not fit into a roi"),
        ({"rois": [(slice(0, 8, 2), slice(None), slice(None))]}, "does not fit into a roi"),
        ({"rois": [slice(0, 2)]}, "does not fit into a roi"),
        ({"rois": [(slice(0, 2),) * 4]}, "up to three slices"),
        ({"rois": [[slice(0, 2)]]}, "up to three slices"),
        ({"n_samples": 0}, "n_samples=0 must be"),
        ({"weights": [1, 2]}, "one number of at least 0 for each of the 1 boxes"),
        ({"weights": [0]}, "not all 0"),
        ({"weights": [float("nan")]}, "weights="),
        ({"label_choice": "bile_duct"}, "There is no complete store .*bile_duct"),
        ({"label_choice": "mitos"}, "Unknown label 'mitos'"),
        ({"label_choice": []}, "has no label; choose of mito, er, nucleus"),
        ({"bounding_boxes": None}, "Give bounding_boxes"),
        ({"bounding_boxes": WHOLE}, r"must be a list of boxes: write bounding_boxes=\[\(...\)\]"),
        ({"ndim": 2}, "ndim=2 must be 3, or 2 for a patch of one slice"),
        ({"ndim": 4}, "ndim=4 must be"),
        ({"bounding_boxes": [(0, 9999, 0, 10, 0, 10)]}, "leaves the volume"),
        ({"min_foreground": 1.5}, "must be a share"),
        ({"min_foreground": "much"}, "must be a share"),
        ({"min_foreground": 0.97}, "No patch .* was found that is of tissue and has 2235 labelled"),
        ({"min_foreground": 0.97, "patch_shape": (8, 256, 256)}, "No patch .* was found"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"split": "validation"}, "must be one of train, val, test"),
        ({"split": "val"}, r"has no block for val: .*split_grid=SplitGrid\(block=\(z, y, x\), margin=\(z"),
        (
            {"split": "val", "patch_shape": (10, 100, 100), "split_grid": ld.SplitGrid((64, 110, 110), (0, 9, 9))},
            "in blocks of .* for val, margins",
        ),
        ({"stream": True, "labelled_region_only": True}, "needs the table of a store"),
        ({"with_channels": True}, "cannot be given"),
        ({"patchshape": 3}, "has no argument 'patchshape'"),
        ({"bounding_boxes": [(0, 100, 0, 100, 0, 10)]}, "There is no complete store .*download=True"),
    ],
)
@IN_A_FOLDER
def test_what_makes_no_sense_is_refused_at_once(asked, wrong: dict[str, Any], told: str) -> None:
    """A wrong argument is an error when the dataset is made."""
    with pytest.raises(ld.LiverDaskError, match=told):
        ld.get_human_liver_em_dataset(**{**asked, **wrong})


def test_a_forgotten_shape_is_named_and_nothing_is_to_be_removed_first(asked) -> None:
    """Without `shape`, a store of a smaller volume is another one; the error says so before it speaks of removing."""
    with pytest.raises(ld.StoreExistsError, match=r"choose another path, or remove it .*The argument `shape` says"):
        ld.get_human_liver_em_data(asked["path"], WHOLE, source=asked["source"])


@IN_A_FOLDER
def test_a_store_of_another_box_or_unfinished_is_not_trained_on(asked, tmp_path: Path, folder: Path) -> None:
    """A store of another box and an unfinished store are refused."""
    import shutil

    (store,) = folder.glob("*.zarr")
    shutil.copytree(store, tmp_path / "full_volume.zarr")
    elsewhere = {**asked, "path": tmp_path}
    with pytest.raises(ld.StoreExistsError, match="another box, archive or layout"):
        ld.get_human_liver_em_dataset(**{**elsewhere, "shape": (10, 300, 400), "full_volume": True})
    shutil.move(tmp_path / "full_volume.zarr", tmp_path / (store.name + ".partial"))
    with pytest.raises(ld.NotDownloadedError, match="no complete store"):
        ld.get_human_liver_em_dataset(**elsewhere)


@pytest.mark.parametrize("download", [False, True])
@IN_A_FOLDER
def test_what_torch_ems_own_module_left_is_named_and_kept(
    asked, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    """An empty or complete store of torch_em's own module is an error that says what it is; it is not touched."""
    import torch_em.data.datasets.electron_microscopy.human_liver_em as theirs

    box = (0, 64, 0, 64, 0, 2)
    if download:
        monkeypatch.setattr(theirs, "_read_raw_slice", lambda *_: np.ones((64, 64), np.uint16))
        monkeypatch.setattr(theirs, "_read_mask_slice", lambda *_: np.ones((64, 64), np.uint8))
        theirs.get_human_liver_em_data(tmp_path, box, download=True)
    else:
        with pytest.raises(RuntimeError, match="No cached data"):
            theirs.get_human_liver_em_data(tmp_path, box)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = "that liver_dask did not write" if download else "an empty Zarr group, as torch_em's own module leaves one"
    with pytest.raises(ld.StoreExistsError, match=f"{said}.*; choose another path"):
        ld.get_human_liver_em_data(tmp_path, box, download=True, source=archive, shape=SHAPE)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_store_records_its_box_as_torch_em_does(folder: Path) -> None:
    """The root attributes of a store have `bounding_box`, as torch_em's own stores."""
    import zarr

    (store,) = folder.glob("*.zarr")
    assert zarr.open_group(store, mode="r").attrs["bounding_box"] == list(WHOLE)


@IN_A_FOLDER
def test_short_rois_mean_the_first_axes(asked, voxels) -> None:
    """A roi may have fewer than three slices, and may be a single slice, as in torch_em."""
    for rois in ([slice(4, 7)], [(slice(4, 7),)], (slice(4, 7), slice(0, 300))):
        raw, _ = dataset(asked, rois=rois, patch_shape=(3, 300, 420), **AS_READ)[0]
        np.testing.assert_array_equal(raw[0], voxels["raw"][4:7])
