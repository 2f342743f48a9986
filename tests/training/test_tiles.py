"""Tiles cover a box with each voxel in one inner part, and predictions for them become one exact array."""

import math
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.transforms import same
from liver_dask.core.geometry import BoundingBox
from liver_dask.training.sampling import Box
from liver_dask.training.tile_grid import TileGrid

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
torch_em = pytest.importorskip("torch_em", reason="the extra `train` is not installed")

from liver_dask.training.tile_dataset import TileDataset  # noqa: E402  # after the skip

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

BOX = (37, 401, 21, 290, 1, 9)
PATCH, HALO = (5, 100, 128), (1, 20, 14)
GREATER, SMALLER = (12, 32, 128), (3, 4, 14)


@pytest.fixture(scope="module")
def folder(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    ld.get_human_liver_em_data(folder, BOX, download=True, source=archive, shape=SHAPE)
    return folder


@pytest.fixture
def asked(folder: Path, archive: Path) -> dict[str, Any]:
    given = {"path": folder, "patch_shape": PATCH, "bounding_box": BOX, "halo": HALO}
    return given | {"source": archive, "shape": SHAPE}


def in_box(whole: np.ndarray) -> np.ndarray:
    x0, x1, y0, y1, z0, z1 = BOX
    return whole[z0:z1, y0:y1, x0:x1]


def loader(tiles: Any, **options: Any) -> Any:
    return torch.utils.data.DataLoader(tiles, **options)


def dataset_of(raw: np.ndarray, grid: TileGrid, *labels: np.ndarray) -> TileDataset:
    """A dataset of arrays in memory, without transforms; raw stays exact."""
    return TileDataset(
        raw,
        labels,
        grid,
        raw_transform=same,
        label_transform=same,
        bounding_box=BoundingBox(0, 1, 0, 1, 0, 1),
        with_label_channels=False,
        ndim=3,
        dtype=torch.float64,
        label_dtype=torch.float64,
    )


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """The patch, halo, length, start and stop of an axis."""
    halo = draw(st.integers(0, 3))
    patch = draw(st.integers(2 * halo + 1, 2 * halo + 6))
    length = draw(st.integers(1, 18))
    start = draw(st.integers(0, length - 1))
    whole = draw(st.booleans())
    return (
        (patch, halo, length, 0, length)
        if whole
        else (patch, halo, length, start, draw(st.integers(start + 1, length)))
    )


grids = st.tuples(axes(), axes(), axes()).map(lambda of: tuple(zip(*of, strict=True)))


def grid_of(patch: Any, halo: Any, shape: Any, start: Any, stop: Any) -> TileGrid:
    return TileGrid(patch, halo, shape, Box(start, stop))


@given(grids, st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_a_network_that_changes_nothing_gives_the_box(lengths: Any, batch_size: int) -> None:
    """The identity gives each voxel of the box exactly, whatever the box, the patch, the halo and the batches are."""
    grid = grid_of(*lengths)
    raw = np.arange(math.prod(grid.shape), dtype=np.float64).reshape(grid.shape)
    tiles = dataset_of(raw, grid)
    found = tiles.assemble(loader(tiles, batch_size=batch_size))
    assert tiles.shape == grid.box.shape
    np.testing.assert_array_equal(found, raw[tuple(map(slice, grid.box.start, grid.box.stop))][None])


@given(grids)
@settings(max_examples=150, deadline=None)
def test_each_voxel_is_in_one_inner_part_with_its_halo(lengths: Any) -> None:
    """Each voxel is written once; a patch is whole, and shows the halo around its inner part or the array's border."""
    grid = grid_of(*lengths)
    patch, halo, shape, *_ = lengths
    written = np.zeros(grid.box.shape, int)
    for number in range(len(grid)):
        window, inner, target = grid[number]
        written[target] += 1
        for axis in range(3):
            before, after = grid.padding[axis]
            read, inside = window[axis], inner[axis]
            assert read.stop - read.start + before + after == patch[axis]
            assert 0 <= read.start < read.stop <= shape[axis]
            assert bool(before or after) == (shape[axis] < patch[axis])
            assert inside.start >= halo[axis] or read.start == 0
            assert patch[axis] - inside.stop >= halo[axis] or read.stop == shape[axis]
            assert 0 <= inside.start < inside.stop <= patch[axis]
            first = grid.box.start[axis] + target[axis].start
            assert read.start - before + inside.start == first, "the inner part is that of the target"
    assert (written == 1).all()


@given(grids)
@settings(max_examples=100, deadline=None)
def test_there_are_as_few_tiles_as_possible_in_order(lengths: Any) -> None:
    """The number of tiles along an axis is the least that can be, and x is fastest."""
    grid = grid_of(*lengths)
    counts = []
    for patch, halo, length, start, stop in zip(*lengths, strict=True):
        done, count = start, 0
        while done < stop:  # each patch as far to the right as the voxel before it allows
            first = max(done - halo, 0)
            done, count = (length if first + patch >= length else first + patch - halo), count + 1
        counts.append(count)
    assert len(grid) == math.prod(counts)
    corners = [tuple(part.start for part in grid[number].target) for number in range(len(grid))]
    assert corners == sorted(set(corners))


def convolution(radius: tuple[int, int, int], seed: int) -> Any:
    """Two convolutions whose receptive field has this radius; their sums of whole numbers are exact."""
    halves = [tuple(r - r // 2 for r in radius), tuple(r // 2 for r in radius)]
    sizes = [tuple(2 * r + 1 for r in half) for half in halves]
    torch.manual_seed(seed)
    layers = [
        torch.nn.Conv3d(a, b, size, padding="same", bias=False, dtype=torch.float64)
        for a, b, size in zip((1, 2), (2, 3), sizes, strict=True)
    ]
    for layer in layers:
        layer.weight.data = torch.randint(-3, 4, layer.weight.shape).double()
    return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])


@given(grids, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_halo_of_the_receptive_field_gives_the_same_as_the_whole_box(lengths: Any, seed: int) -> None:
    """A network whose receptive field has the halo as its radius gives for tiles exactly what it gives for the whole
    array, borders included; along an axis that is shorter than a patch, for the array with reflections on both sides.
    """
    grid = grid_of(*lengths)
    raw = np.random.default_rng(seed).integers(0, 100, grid.shape).astype(np.float64)
    network = convolution(grid.halo, seed)
    pads = []
    for patch, length in zip(grid.patch, grid.shape, strict=True):
        missing = max(patch - length, 0)
        pads.append((missing // 2, missing - missing // 2))
    tiles = dataset_of(raw, grid)
    with torch.no_grad():
        whole = network(torch.from_numpy(np.pad(raw, pads, mode="reflect"))[None]).numpy()
        found = tiles.assemble(network(batch) for batch in loader(tiles, batch_size=2))
    parts = zip(grid.box.start, grid.box.stop, pads, strict=True)
    np.testing.assert_array_equal(found, whole[(slice(None), *(slice(a + n, b + n) for a, b, (n, _) in parts))])


def test_a_halo_that_is_too_small_does_not() -> None:
    """The comparison with the whole box would notice a halo that is smaller than the receptive field."""
    grid = TileGrid((5, 5, 5), (1, 1, 1), (9, 9, 9), Box((0, 0, 0), (9, 9, 9)))
    raw = np.random.default_rng(0).integers(0, 100, grid.shape).astype(np.float64)
    network, tiles = convolution((2, 2, 2), 0), dataset_of(raw, grid)
    with torch.no_grad():
        whole = network(torch.from_numpy(raw)[None]).numpy()
        assert (tiles.assemble(network(batch) for batch in loader(tiles)) != whole).any()


@pytest.mark.parametrize(
    ("workers", "method", "batch_size"),
    [(0, None, None), (0, None, 5), (2, "fork", 1), pytest.param(1, "spawn", 5, marks=pytest.mark.slow)],
)
def test_tiles_of_a_store_are_its_voxels(asked, voxels, workers: int, method: Any, batch_size: Any) -> None:
    """Raw and labels of all tiles, put together, are those of the store, with any workers and batches."""
    tiles = ld.get_human_liver_em_tiles(**asked, raw_transform=same)
    options = {"batch_size": batch_size, "num_workers": workers, "multiprocessing_context": method}
    assert tiles.shape == in_box(voxels["raw"]).shape
    for found, name, scale in zip(zip(*loader(tiles, **options), strict=True), ("raw", "mito"), (1, 255), strict=True):
        assert {part.dtype for part in found} == {torch.float32}
        assert {part.shape[-4:] for part in found} == {(1, *PATCH)}
        np.testing.assert_array_equal(tiles.assemble(found), in_box(voxels[name])[None] / np.float32(scale))


def test_a_patch_and_its_labels_are_whole_and_as_for_training(asked, voxels) -> None:
    """An item shows the voxels of its window, halo included: raw standardised, and labels 0 and 1."""
    tiles = ld.get_human_liver_em_tiles(**asked)
    assert len(tiles) == 2 * 4 * 4
    last = tuple(slice(-length, None) for length in PATCH)
    first = tuple(slice(0, length) for length in PATCH)
    for number, window in ((0, first), (-1, last)):
        raw, labels = tiles[number]
        voxels_of_raw = in_box(voxels["raw"])[window].astype(np.float64)
        expected = (voxels_of_raw - voxels_of_raw.mean()) / voxels_of_raw.std()
        np.testing.assert_allclose(raw.numpy(), expected[None], atol=1e-4)
        np.testing.assert_array_equal(labels.numpy(), in_box(voxels["mito"])[window][None] / 255)
    for number in (32, -33):
        with pytest.raises(IndexError, match="32 tiles"):
            tiles[number]


def test_a_box_that_is_smaller_than_the_patch_is_reflected(asked, voxels) -> None:
    """Raw and labels are padded on both sides by reflection along the axis that is too short."""
    raw, labels = ld.get_human_liver_em_tiles(**{**asked, "patch_shape": GREATER, "halo": SMALLER}, raw_transform=same)[
        0
    ]
    for found, name, scale in ((raw, "raw", 1), (labels, "mito", 255)):
        expected = np.pad(in_box(voxels[name]), ((2, 2), (0, 0), (0, 0)), mode="reflect")[:, :32, :128]
        np.testing.assert_array_equal(found.numpy(), expected[None] / np.float32(scale))


def test_a_part_of_a_box_has_context_around_it(asked, voxels) -> None:
    """With `roi` the result is that part; patches show the voxels of the store around it."""
    roi = (slice(2, 5), slice(100, -20), slice(50, 150))
    tiles = ld.get_human_liver_em_tiles(**asked, roi=roi, raw_transform=same, with_labels=False)
    part = in_box(voxels["raw"])[roi]
    np.testing.assert_array_equal(tiles.assemble(loader(tiles)), part[None])
    np.testing.assert_array_equal(tiles[0][0], in_box(voxels["raw"])[1:6, 80:180, 36:164])
    x0, x1, y0, y1, z0, z1 = tiles.bounding_box
    np.testing.assert_array_equal(voxels["raw"][z0:z1, y0:y1, x0:x1], part)
    one = ld.get_human_liver_em_tiles(**asked, roi=slice(0, 1))
    assert one.shape == (1, *in_box(voxels["raw"]).shape[1:])


def test_without_labels_none_is_read(asked) -> None:
    """An item of raw alone reads no label."""
    tiles = ld.get_human_liver_em_tiles(**asked, with_labels=False)
    assert not tiles.labels
    assert tiles[0].shape == (1, *PATCH)


def test_options_mean_what_they_mean_for_training(asked, voxels) -> None:
    """Several labels are channels, transforms get what was read, dtypes are those given, and 2D has no axis z."""
    both = ld.get_human_liver_em_tiles(
        **asked, label_choice=["er", "mito"], label_dtype=torch.int64, dtype=torch.float64
    )
    raw, labels = both[0]
    assert (raw.dtype, labels.dtype) == (torch.float64, torch.int64)
    window = tuple(slice(0, length) for length in PATCH)
    for channel, name in zip(labels.numpy(), ("er", "mito"), strict=True):
        np.testing.assert_array_equal(channel, in_box(voxels[name])[window] / 255)
    seen = []
    ld.get_human_liver_em_tiles(**asked, label_transform=lambda labels: seen.append(labels) or labels)[0]
    assert set(np.unique(seen)) == {0, 255}
    flat = {**asked, "patch_shape": (1, 64, 96), "halo": (0, 8, 16), "ndim": 2, "raw_transform": same}
    for choice, channels in (("mito", 1), (["mito", "er"], 2)):
        tiles = ld.get_human_liver_em_tiles(**flat, label_choice=choice)
        raw, labels = tiles[0]
        assert (raw.shape, labels.shape) == ((1, 64, 96), (channels, 64, 96))
        found = tiles.assemble(labels for _, labels in loader(tiles, batch_size=3))
        np.testing.assert_array_equal(found[0], in_box(voxels["mito"]) / np.float32(255))
        np.testing.assert_array_equal(tiles.assemble(raw for raw, _ in tiles)[0], in_box(voxels["raw"]))


def test_the_whole_volume_in_tiles(archive: Path, voxels, tmp_path: Path) -> None:
    """`full_volume` tiles the whole volume, and `download` fetches it."""
    given = {"source": archive, "shape": SHAPE, "full_volume": True, "raw_transform": same, "with_labels": False}
    with pytest.raises(ld.NotDownloadedError):
        ld.get_human_liver_em_tiles(tmp_path, (8, 128, 128), **given)
    tiles = ld.get_human_liver_em_tiles(tmp_path, (8, 128, 128), download=True, **given)
    assert [store.name for store in tmp_path.glob("*.zarr")] == ["full_volume.zarr"]
    np.testing.assert_array_equal(tiles.assemble(loader(tiles, batch_size=4)), voxels["raw"][None])


def test_tiles_are_a_validation_set_of_torch_ems_trainer(asked, tmp_path: Path) -> None:
    """torch_em's trainer validates with tiles, and a checkpoint of it has the same tiles."""
    from torch_em.model import UNet2d
    from torch_em.trainer import DefaultTrainer

    flat = {"patch_shape": (1, 64, 64), "ndim": 2}
    drawn = {name: value for name, value in asked.items() if name not in ("halo", "bounding_box")}
    tiles = ld.get_human_liver_em_tiles(**{**asked, **flat, "halo": (0, 0, 0)}, roi=(slice(1), slice(128)))
    train = ld.get_human_liver_em_loader(
        **{**drawn, **flat}, bounding_boxes=[BOX], batch_size=1, n_samples=2, pin_memory=False
    )
    trainer = torch_em.default_segmentation_trainer(
        name="t",
        model=UNet2d(1, 1, depth=2, initial_features=2, final_activation="Sigmoid"),
        train_loader=train,
        val_loader=torch_em.segmentation.get_data_loader(tiles, batch_size=4, pin_memory=False),
        logger=None,
        device="cpu",
        compile_model=False,
        save_root=str(tmp_path),
    )
    trainer.fit(iterations=2)
    kept = DefaultTrainer.from_checkpoint(tmp_path / "checkpoints" / "t", device="cpu").val_loader
    assert len(kept.dataset) == 2 * 6
    torch.testing.assert_close(list(kept), list(trainer.val_loader), rtol=0, atol=0)


def test_a_pickle_is_small_and_gives_the_same(asked) -> None:
    """A pickled dataset has the same tiles in some kilobytes."""
    tiles = ld.get_human_liver_em_tiles(**asked)
    tiles[3]
    pickled = pickle.dumps(tiles)
    assert len(pickled) < 10_000
    torch.testing.assert_close(pickle.loads(pickled)[3], tiles[3], rtol=0, atol=0)


SMALL = TileGrid((4, 5, 6), (1, 1, 2), (7, 8, 9), Box((0, 0, 0), (7, 8, 9)))
RAW = np.arange(7 * 8 * 9, dtype=np.float64).reshape(7, 8, 9)


def test_predictions_are_written_into_out(tmp_path: Path) -> None:
    """A numpy array, a Zarr array, or anything with `out[window] = part` gets the voxels, each once."""

    class Counting:
        def __init__(self) -> None:
            self.times, self.values = np.zeros((2, *RAW.shape), int), np.zeros((2, *RAW.shape))

        def __setitem__(self, window: tuple[slice, ...], part: np.ndarray) -> None:
            assert isinstance(part, np.ndarray)
            self.times[window] += 1
            self.values[window] = part

    tiles = dataset_of(RAW, SMALL)
    expected = np.stack([RAW, -RAW])

    def predicted() -> Iterator[Any]:
        return (torch.cat([batch, -batch], dim=1) for batch in loader(tiles, batch_size=3))

    stored = zarr.create_array(tmp_path / "a.zarr", shape=expected.shape, chunks=(1, 3, 3, 3), dtype="float32")
    for out in (np.zeros(expected.shape, np.float32), stored):
        assert tiles.assemble(predicted(), out) is out
        np.testing.assert_array_equal(out[:], expected)
    counted = tiles.assemble(predicted(), out=Counting())
    assert (counted.times == 1).all()
    np.testing.assert_array_equal(counted.values, expected)


def test_predictions_may_be_arrays_or_tensors_of_any_dtype() -> None:
    """Arrays or tensors, patches or batches, all at once or with gradients: the dtype is kept."""
    tiles = dataset_of(RAW, SMALL)
    together = np.stack([raw.numpy() for raw in tiles])
    for predictions, dtype in (
        (together, np.float64),
        ([together], np.float64),
        ([patch > 5 for patch in together], np.bool_),
        (torch.tensor(together, dtype=torch.float16), np.float16),
        (torch.tensor(together, dtype=torch.bfloat16), np.float32),
        ([torch.tensor(together, requires_grad=True)], np.float64),
    ):
        found = tiles.assemble(predictions)
        assert found.dtype == dtype
        if dtype == np.float64:
            np.testing.assert_array_equal(found[0], RAW)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("as_batches", [False, True])
def test_one_batch_at_a_time_is_held(make: Any, as_batches: bool) -> None:
    """When the next prediction is computed, the memory of none of those before is held."""
    tiles = dataset_of(RAW, SMALL)
    made: list[Any] = []

    def predicted() -> Iterator[Any]:
        for raw in tiles:
            assert not [one for one in made if one() is not None], "an earlier prediction is still held"
            memory = np.array(raw.numpy()[None] if as_batches else raw.numpy())
            made.append(weakref.ref(memory))
            yield make(memory[:])
            del memory

    np.testing.assert_array_equal(tiles.assemble(predicted(), out=np.empty((1, *RAW.shape)))[0], RAW)
    assert len(made) == len(SMALL)


def test_predictions_that_do_not_fit_are_one_sentence() -> None:
    """Too few, too many, another shape, other channels, no array, and an `out` that does not fit are refused."""
    tiles = dataset_of(RAW, SMALL)
    count, fine = len(SMALL), np.zeros((1, 4, 5, 6))
    for predictions, out, message in (
        ([], None, f"There are predictions for 0 of {count} tiles; give one for each patch, in order."),
        ([fine] * (count - 1), None, f"There are predictions for {count - 1} of {count} tiles"),
        ([np.stack([fine] * (count + 1))], None, f"There are more predictions than the {count} tiles"),
        ([fine, fine[:, 1:-1]], None, r"Prediction 1 has the shape \(1, 2, 5, 6\), but \(1, 4, 5, 6\) is expected"),
        ([fine, np.zeros((2, 4, 5, 6))], None, r"Prediction 1 has the shape \(2, 4, 5, 6\), but \(1, 4, 5, 6\)"),
        ([fine[0]], None, r"an array \(n, channels, z, y, x\) or \(channels, z, y, x\), and not an array of shape"),
        ([(fine, fine)], None, "and not tuple"),
        ([fine], np.zeros((1, 7, 8, 8)), r"out has the shape \(1, 7, 8, 8\), but the predictions need \(1, 7, 8, 9\)"),
    ):
        with pytest.raises(ld.InvalidArgumentError, match=message):
            tiles.assemble(predictions, out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"halo": (1, 50, 0)}, r"halo=\(1, 50, 0\) must be at least 0 and below half of patch_shape=\(5, 100, 128\)"),
        ({"halo": (-1, 0, 0)}, r"halo=\(-1, 0, 0\) must be at least 0"),
        ({"halo": (1, 1)}, r"halo=\(1, 1\) must be three whole numbers \(z, y, x\)"),
        ({"halo": 4}, "halo=4 must be three whole numbers"),
        ({"patch_shape": (5, 100)}, "patch_shape"),
        ({"bounding_box": None}, "Give bounding_box, or full_volume=True"),
        ({"bounding_box": [BOX]}, "must be 6 whole numbers"),
        ({"label_choice": "mitos"}, "Unknown label 'mitos'"),
        ({"label_choice": []}, "has no label"),
        ({"ndim": 2}, "ndim=2 must be 3, or 2 for a patch of one slice"),
        ({"roi": 4}, r"roi=4 must be up to three slices \(z, y, x\)"),
        ({"roi": (slice(4),) * 4}, "must be up to three slices"),
        ({"roi": (slice(3, 3),)}, "must select voxels one by one, at least one on each axis"),
        ({"roi": (slice(None, None, 2),)}, "must select voxels one by one"),
    ],
)
def test_arguments_that_mean_nothing_are_one_sentence(asked, changed: dict[str, Any], message: str) -> None:
    """A wrong argument is one sentence, before anything is downloaded or read."""
    with pytest.raises(ld.InvalidArgumentError, match=message) as error:
        ld.get_human_liver_em_tiles(**{**asked, "path": "/nowhere", **changed})
    assert "\n" not in str(error.value)
