"""A prediction by blocks is that of the whole volume at once; what was kept is not predicted again."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.forked import forked_workers
from helpers.waiting import wait_until
from liver_dask.archive import reader
from liver_dask.demo import make_archive
from liver_dask.store.plan import Export

FIELD = (1, 2, 2)
"""How far away voxels matter to `summed`, (z, y, x)."""

TINY: dict[str, Any] = {"chunks": (2, 64, 64), "shards": (4, 128, 128), "progress": False}


TINY_LAYOUT = TINY["chunks"], TINY["shards"]


def summed(voxels: np.ndarray) -> np.ndarray:
    """Sum the neighbours of each voxel, in whole numbers; those of voxels at the ends of a block are others' too."""
    total = np.zeros(voxels.shape, np.float64)
    for axis, far in enumerate(FIELD):
        for shift in range(-far, far + 1):
            total += np.roll(voxels, shift, axis) * (1 + shift % 3)
    return total


def expected_of(voxels: np.ndarray) -> np.ndarray:
    """Predict the whole volume at once, mirrored beyond its ends."""
    whole = np.pad(voxels, [(far, far) for far in FIELD], "reflect").astype(np.float64)
    inner = tuple(slice(far, far + length) for far, length in zip(FIELD, voxels.shape, strict=True))
    return summed(whole)[inner]


lengths = st.tuples(st.integers(2, 9), st.integers(3, 20), st.integers(3, 20))


@settings(max_examples=40, deadline=None)
@given(lengths, st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(0, 3)] * 3), st.integers(1, 4))
def test_blocks_do_not_matter(shape, block, further, batch) -> None:
    """The result is that of the whole volume, bit for bit, whatever the blocks, the batch and a larger halo."""
    voxels = np.random.default_rng(1).integers(1, 60_000, shape).astype(np.uint16)
    raw = xr.DataArray(da.from_array(voxels, chunks=(3, 7, 5)), {"y": np.arange(shape[1]) + 5}, ["z", "y", "x"])
    halo = tuple(far + more for far, more in zip(FIELD, further, strict=True))
    predicted = ld.predict(summed, raw, block=block, halo=halo, batch=batch, dtype="float64")
    assert predicted.chunks is not None
    np.testing.assert_array_equal(predicted, expected_of(voxels))
    np.testing.assert_array_equal(predicted.y, raw.y)


NEEDED: tuple[Any, ...] = (
    (slice(2, 5), slice(None), slice(3, 20)),
    (4, slice(None, None, -3), slice(1, None, 2)),
    ([5, 0, 0], slice(9, 10), slice(None)),
    (slice(None), [8, 2, 19], 7),
)


@pytest.mark.parametrize("key", NEEDED)
def test_any_part_is_that_of_the_whole(key: tuple[Any, ...]) -> None:
    """Whatever is selected of a prediction, forwards or backwards, once or twice."""
    voxels = np.random.default_rng(1).integers(1, 60_000, (7, 21, 33)).astype(np.uint16)
    raw = xr.DataArray(da.from_array(voxels, chunks=(3, 7, 5)), dims=["z", "y", "x"])
    predicted = ld.predict(summed, raw, block=(2, 8, 10), halo=FIELD, dtype="float64").data
    expected = expected_of(voxels)
    for axis, one in reversed(list(enumerate(key))):  # from the last axis on, as numbers remove axes
        index = (*[slice(None)] * axis, one)
        predicted, expected = predicted[index], expected[index]
    np.testing.assert_array_equal(predicted, expected)


def test_only_what_is_needed_is_predicted() -> None:
    """A window needs the blocks that it touches, each once, and a prediction that nobody reads needs none."""
    seen: list[int] = []

    def one(voxels: np.ndarray) -> np.ndarray:
        seen.append(int(voxels[0, 0, 0]))
        return voxels

    numbers = np.arange(1, 4 * 16 * 30 + 1, dtype=np.uint32).reshape(4, 16, 30)
    raw = xr.DataArray(numbers, dims=["z", "y", "x"])
    predicted = ld.predict(one, raw, block=(2, 8, 10), halo=(0, 0, 0), dtype="uint32")
    assert not seen
    np.testing.assert_array_equal(predicted[3, 7:10, 9:11], numbers[3, 7:10, 9:11])
    assert sorted(seen) == sorted(numbers[2, ::8, :20:10].ravel())


def test_a_prediction_of_the_whole_liver_costs_nothing() -> None:
    """Neither itself, nor the plan of a store of it, needs memory, time for each block, or a request."""
    ds = ld.open_human_liver_em()
    tracemalloc.start()
    try:
        predicted = ld.predict(summed, ds.raw, halo=(4, 32, 32), preprocess=(100.0, 20.0))
        both = Export.plan(ds[["raw"]].assign(pred=predicted), "none.zarr").estimate()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16e6
    alone = Export.plan(ds[["raw"]], "none.zarr").estimate()
    assert 1.9 < both.times["raw"] < 2.1, "a job of 8 slices reads 4 more on either side"
    assert both.fetched / alone.fetched == pytest.approx(both.times["raw"], rel=0.01)
    assert both.memory > alone.memory


def test_raw_is_fetched_once_for_itself_and_the_model(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of files that a model gets, and that are written, too, are read once by each job."""
    read = Counter[tuple[int, int]]()
    read_window = reader.VolumeReader._read_window

    def counted(self: Any, z: int, rows: np.ndarray, *others: Any) -> None:
        read.update((z, row) for row in rows.tolist())
        read_window(self, z, rows, *others)

    monkeypatch.setattr(reader.VolumeReader, "_read_window", counted)
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",))
    options: dict[str, Any] = {"dtype": "float64", "skip_empty": False}
    both = ds[["raw"]].assign(
        pred=ld.predict(summed, ds.raw, block=(5, 64, 64), halo=FIELD, **options),
        less=ld.predict(summed, ds.raw, block=(10, 32, 64), halo=(0, 0, 0), **options),
    )
    ld.to_zarr(both, tmp_path / "both.zarr", chunks=(10, 64, 64), shards=(10, 64, 128), progress=False)
    assert set(read.values()) == {1}
    assert len(read) == SHAPE[0] * SHAPE[1]
    monkeypatch.undo()
    kept = xr.open_zarr(tmp_path / "both.zarr")
    np.testing.assert_array_equal(kept.pred, expected_of(ds.raw.values))
    np.testing.assert_array_equal(kept.raw, ds.raw)


def test_what_is_read_again_is_told_before(archive: Path, tmp_path: Path) -> None:
    """Rows that a computed image is made of cannot be shared; if they would be read often, this is refused."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",))
    few = ld.predict(summed, ds.raw * 2, block=(10, 64, 64), halo=(0, 32, 0), dtype="float64")
    estimate = Export.plan(ds[["raw"]].assign(pred=few), tmp_path / "a.zarr", None, *TINY_LAYOUT).estimate()
    assert estimate.times["raw"] == pytest.approx(3, abs=0.1)
    many = ld.predict(summed, ds.raw * 2, block=(2, 16, 64), halo=(2, 16, 0), dtype="float64")
    with pytest.raises(ld.InvalidArgumentError, match="raw"):
        ld.to_zarr(ds[["raw"]].assign(pred=many), tmp_path / "a.zarr", **TINY)


def test_every_block_has_the_same_shape_and_a_model_may_have_channels() -> None:
    """At the volume's ends, too, so that any network takes them; one channel is chosen, or put together."""
    shapes = Counter[tuple[int, ...]]()

    def two(voxels: np.ndarray) -> np.ndarray:
        shapes[voxels.shape] += 1
        return np.stack([voxels / 255, 1 - voxels / 255])

    voxels = np.random.default_rng(1).integers(1, 255, (5, 21, 33)).astype(np.uint8)
    raw = xr.DataArray(voxels, dims=["z", "y", "x"])
    options: dict[str, Any] = {"block": (2, 8, 10), "halo": (1, 2, 3), "batch": 2}
    np.testing.assert_array_equal(ld.predict(two, raw, channel=0, **options), voxels)
    np.testing.assert_array_equal(ld.predict(two, raw, channel=1, **options), 255 - voxels)
    assert set(shapes) == {(4, 12, 16)}
    either = ld.predict(two, raw, postprocess=lambda of: of.argmax(0).astype("i2"), dtype="i2", **options)
    np.testing.assert_array_equal(either, voxels < 128)
    large = ld.predict(two, raw, channel=0, dtype="uint16", **options)
    np.testing.assert_array_equal(large, np.rint(voxels / 255 * 65535))
    with pytest.warns(UserWarning, match="cut to 0 to 1"):
        np.testing.assert_array_equal(ld.predict(lambda of: of * 2.0, raw, block=(5, 21, 33), halo=(0, 0, 0)), 255)


def test_what_is_empty_is_not_predicted() -> None:
    """Blocks with nothing but 0 stay 0 unless asked for, and the model does not see them."""
    seen: list[float] = []

    def one(voxels: np.ndarray) -> np.ndarray:
        seen.append(float(voxels.max()))
        return np.ones(voxels.shape)

    voxels = np.zeros((2, 8, 40), np.uint8)
    voxels[:, :, 15] = 7
    raw = xr.DataArray(voxels, dims=["z", "y", "x"])
    options: dict[str, Any] = {"block": (2, 8, 10), "halo": (0, 0, 2), "batch": 4}
    predicted = ld.predict(one, raw, **options).compute(scheduler="sync")
    assert (predicted.values[0, 0] > 0).tolist() == [False] * 10 + [True] * 10 + [False] * 20
    assert seen == [7.0]
    assert (ld.predict(one, raw, skip_empty=False, **options) == 255).all()


def test_voxels_are_standardised() -> None:
    """By a mean and a deviation, or by a function of a block with its halo."""
    voxels = np.random.default_rng(1).integers(1, 255, (2, 8, 9)).astype(np.uint8)
    raw = xr.DataArray(voxels, dims=["z", "y", "x"])
    options: dict[str, Any] = {"block": (2, 8, 9), "halo": (0, 0, 0), "dtype": "float32"}
    wanted = (voxels.astype(np.float32) - np.float32(100)) / np.float32(40)
    np.testing.assert_array_equal(ld.predict(lambda of: of, raw, preprocess=(100, 40), **options), wanted)
    np.testing.assert_array_equal(ld.predict(lambda of: of, raw, preprocess=lambda of: of / 2, **options), voxels / 2)


def test_logits_are_noticed_once() -> None:
    """What is cut off is told where it is much, and where results are taken as probabilities."""
    voxels = np.random.default_rng(1).integers(1, 255, (2, 8, 40)).astype(np.uint8)
    raw = xr.DataArray(voxels, dims=["z", "y", "x"])

    def times(factor: float, **options: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            predicted = ld.predict(Times(factor), raw, block=(2, 8, 10), halo=(0, 0, 0), **options)
            predicted.compute(scheduler="sync")
        return [str(one.message) for one in told]

    (said,) = times(-0.1)
    assert "cut to 0 to 1, since they are taken as probabilities" in said
    assert "Sigmoid" in said
    assert times(-0.1) == [], "it was told already"
    assert len(times(-0.2, threshold=0.5)) == len(times(0.3, dtype="uint16")) == 1
    assert times(1 / 254.9) == times(1 / 250) == [], "a few are beyond"
    assert times(9, dtype="float32") == times(8, postprocess=lambda of: of[0].astype("u1")) == []


def test_a_block_that_is_much_larger_than_the_volume_is_told() -> None:
    """It is not cut, since a model may take no other shape; blocks that are about as large are in order."""
    shapes: list[tuple[int, ...]] = []

    def one(voxels: np.ndarray) -> np.ndarray:
        shapes.append(voxels.shape)
        return np.ones(voxels.shape)

    raw = xr.DataArray(np.ones((5, 40, 50), np.uint8), dims=["z", "y", "x"])
    with pytest.warns(UserWarning, match=r"block=\(32, 160, 160\) is larger than .*; with block=\(8, 64, 64\) .* 25 "):
        predicted = ld.predict(one, raw, block=(32, 160, 160), halo=(0, 0, 0))
    assert (predicted == 255).all()
    assert shapes == [(32, 160, 160)]
    ld.predict(one, raw)  # the default, without a warning
    ld.predict(one, xr.DataArray(np.ones((16, 300, 300), np.uint8), dims=raw.dims), block=(20, 400, 400))


class Times:
    """A model that multiplies."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, voxels: np.ndarray) -> np.ndarray:
        return voxels * self.factor


def test_a_prediction_is_kept_beside_raw(archive: Path, voxels: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A store of the archive's raw and a prediction has both; that of another model is refused."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",))

    def store(model: Any) -> str:
        predicted = ld.predict(model, ds.raw, block=(2, 64, 64), halo=(1, 2, 2), dtype="float64", skip_empty=False)
        return ld.to_zarr(ds.assign(pred=predicted), tmp_path / "a.zarr", **TINY)

    store(summed)
    kept = xr.open_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(kept.raw, voxels["raw"])
    np.testing.assert_array_equal(kept.pred, expected_of(voxels["raw"]))
    assert kept.pred.attrs["model"].startswith("function ")
    store(summed)
    with pytest.raises(ld.StoreExistsError, match=r"holds model of pred .function .*; this call asks for model of"):
        store(expected_of)
    assert ld.verify(tmp_path / "a.zarr", progress=False).ok


def test_how_a_model_is_run_is_part_of_a_store_but_not_where(archive: Path, tmp_path: Path) -> None:
    """Another batch or device, or the same store of raw elsewhere, gives the same store; another halo is refused."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",)).isel(y=slice(40, 200))
    ld.to_zarr(ds, tmp_path / "raw.zarr", **TINY)
    shutil.copytree(tmp_path / "raw.zarr", tmp_path / "copy.zarr")
    kept = [xr.open_zarr(tmp_path / name).raw for name in ("raw.zarr", "copy.zarr")]

    def store(raw: xr.DataArray, name: str, halo: tuple[int, int, int] = (1, 2, 2), **options: Any) -> str:
        predicted = ld.predict(summed, raw[2:], block=(2, 64, 64), halo=halo, dtype="float64", **options)
        return ld.to_zarr(xr.Dataset({"pred": predicted}), tmp_path / name, **TINY)

    for raws in ([ds.raw], kept):
        name = f"{len(raws)}.zarr"
        store(raws[0], name)
        record = (tmp_path / name / "liver_dask" / "zarr.json").read_text()
        for raw in raws:
            store(raw, name, batch=3, device="cpu")
        assert (tmp_path / name / "liver_dask" / "zarr.json").read_text() == record
        told = r"It holds halo of pred \[1, 2, 2\]; .* asks for halo .*\[1, 2, 3\]"
        with pytest.raises(ld.StoreExistsError, match=told):
            store(raws[0], name, (1, 2, 3))
        with pytest.raises(ld.StoreExistsError, match="It holds"):
            store(raws[0][:, ::-1], name)
    attributes = xr.open_zarr(tmp_path / "1.zarr").pred.attrs
    assert (attributes["model_halo"], attributes["model_dtype"]) == ([1, 2, 2], "<f8")


def test_other_voxels_are_never_taken_for_the_same(tmp_path: Path) -> None:
    """Two archives of one name, and stores of them, have other predictions: computed together, and kept."""
    raws = []
    for seed in (0, 5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        make_archive(folder, (4, 64, 64), seed=seed)
        raws.append(ld.open_human_liver_em(folder, shape=(4, 64, 64), labels=["er"]).raw)
        ld.to_zarr(raws[-1].to_dataset(), tmp_path / f"{seed}.zarr", **TINY)
    for pair in (raws, [xr.open_zarr(tmp_path / f"{seed}.zarr").raw for seed in (0, 5)]):
        one, other = (ld.predict(_share, raw, block=(2, 64, 64), halo=(0, 0, 0)) for raw in pair)
        assert np.abs(one.astype(int) - other).max() > 20
        path = tmp_path / f"{type(pair[0].data).__name__}.zarr"
        ld.to_zarr(one.to_dataset(), path, **TINY)
        with pytest.raises(ld.StoreExistsError):
            ld.to_zarr(other.to_dataset(), path, **TINY)


def test_functions_may_change_what_they_get() -> None:
    """A function that changes its argument in place does not change the halo of the next block."""
    voxels = np.random.default_rng(1).integers(1, 255, (4, 32, 32)).astype(np.uint8)
    raw = xr.DataArray(voxels, dims=["z", "y", "x"])

    def halved(of: np.ndarray) -> np.ndarray:
        of //= 2
        return of

    options: dict[str, Any] = {"block": (2, 8, 8), "halo": (1, 2, 2), "dtype": "float32"}
    np.testing.assert_array_equal(ld.predict(lambda of: of, raw, preprocess=halved, **options), voxels // 2)


@pytest.mark.slow
def test_ctrl_c_ends_after_the_block_that_is_predicted(tmp_path: Path) -> None:
    """Not after the regions that are under way; and the same call goes on."""
    script = f"""
import time, numpy as np, xarray as xr, liver_dask as ld
def slow(voxels):
    time.sleep(0.5)
    print("block", flush=True)
    return voxels / 2
raw = xr.DataArray(np.ones((8, 64, 16 * 60), np.uint8), dims=["z", "y", "x"])
pred = ld.predict(slow, raw, block=(8, 64, 16), halo=(0, 0, 0))
ld.to_zarr(pred.to_dataset(), {str(tmp_path / "a.zarr")!r}, chunks=(8, 64, 16), shards=(8, 64, 160), progress=False)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "block\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "press Ctrl-C again to stop now" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(out.splitlines()) < 10, "of sixty"


def test_a_threshold_makes_a_mask(archive: Path, tmp_path: Path) -> None:
    """Of 0 and 255, which a pyramid and viewers take for a label; it may be computed from a prediction, too."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",))
    options: dict[str, Any] = {"block": (5, 64, 64), "halo": (0, 0, 0)}
    mask = ld.predict(_share, ds.raw, threshold=0.5, **options)
    later = ld.predict(_share, ds.raw, dtype="float64", **options) >= 0.5
    ld.to_zarr(ds.assign(mask=mask, later=later), tmp_path / "a.zarr", pyramid=True, **TINY)
    kept = xr.open_zarr(tmp_path / "a.zarr")
    expected = ds.raw.values >= 32_768
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(kept.mask, np.where(expected, 255, 0))
    np.testing.assert_array_equal(kept.later, expected)
    np.testing.assert_array_equal(kept.raw, ds.raw)
    assert (tmp_path / "a.zarr" / "labels" / "mask").is_dir()
    assert kept.mask.attrs["kind"] == "mask"
    for wrong in ({"threshold": 0.5, "dtype": "f4"}, {"threshold": 0.5, "postprocess": _share}):
        with pytest.raises(ld.InvalidArgumentError, match="threshold makes a mask"):
            ld.predict(_share, ds.raw, **wrong)
    for wrong in ({"kind": "masks"}, {"kind": "instances", "dtype": "f4"}):
        with pytest.raises(ld.InvalidArgumentError, match="must be one of image, mask, instances"):
            ld.predict(_share, ds.raw, **wrong)


def _share(voxels: np.ndarray) -> np.ndarray:
    return voxels / 65_536


class Counted:
    """A model that notes which blocks it gets, by the first voxel within the halo."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __dask_tokenize__(self) -> str:
        return "Counted"

    def __call__(self, voxels: np.ndarray) -> np.ndarray:
        with self.log.open("a") as file:
            file.write(f"{voxels[0, 0, 0]:.0f}\n")
        return voxels / 4e9


def indexed() -> xr.Dataset:
    """Return a volume whose voxels are their own number."""
    shape = (8, 256, 192)
    numbers = da.arange(np.prod(shape), chunks=shape[2] * 64, dtype=np.uint32).reshape(shape)
    return xr.DataArray(numbers, dims=["z", "y", "x"], name="raw").to_dataset()


def write_counted(log: Path, path: Path, client: Client | None = None) -> None:
    ds = indexed()
    predicted = ld.predict(Counted(log), ds.raw, block=(2, 64, 64), halo=(0, 0, 0), dtype="float64", skip_empty=False)
    ld.to_zarr(ds[[]].assign(pred=predicted), path, client=client, **TINY)


def check_kill(tmp_path: Path, after: int) -> bool:
    """Kill a process after so many predicted blocks, and go on: nothing that was finished is predicted again."""
    log, path = tmp_path / "log", tmp_path / "a.zarr"
    log.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads: these are idle
        process = multiprocessing.get_context("fork").Process(target=write_counted, args=(log, path))
        process.start()
    wait_until(lambda: len(log.read_text().split()) >= after or process.exitcode is not None, 60)
    os.kill(process.pid, signal.SIGKILL) if process.exitcode is None else None
    process.join(60)
    slabs = {tuple(map(int, slab.name.split("-"))) for slab in (tmp_path / "a.zarr.partial").rglob("slabs/pred/*")}
    finished = {(z * 256 + y) * 192 + x for z, y in slabs for x in range(0, 192, 64)}
    log.write_text("")
    write_counted(log, path)
    again = set(map(int, log.read_text().split()))
    assert not finished & again
    np.testing.assert_allclose(xr.open_zarr(path).pred, indexed().raw / 4e9)
    return bool(finished)


@pytest.mark.slow
def test_after_a_kill_nothing_finished_is_predicted_again(tmp_path: Path) -> None:
    """The store is the same after some kills, and each block is predicted once, or was under way."""
    had_finished = [check_kill(_new(tmp_path / str(after)), after) for after in (1, 17, 40)]
    assert any(had_finished), "no kill left anything to keep"
    log = _new(tmp_path / "once") / "log"
    write_counted(log, log.with_name("a.zarr"))
    assert set(Counter(log.read_text().split()).values()) == {1}


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_thirty_kills(tmp_path: Path) -> None:
    """The same after thirty kills at any time."""
    assert sum(check_kill(_new(tmp_path / str(after)), after) for after in range(1, 46, 3)[:15]) > 5
    assert sum(check_kill(_new(tmp_path / f"b{after}"), after) for after in range(2, 46, 3)[:15]) > 5


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_wrong_arguments_are_one_sentence() -> None:
    """What can be known is known at once; what depends on the model, when it is computed."""
    raw = xr.DataArray(np.ones((2, 8, 9), np.uint8), dims=["z", "y", "x"])
    calls: list[tuple[Any, Any, dict[str, Any], str]] = [
        (summed, raw[0], {}, "dims"),
        (summed, raw[:0], {}, "holds no voxels"),
        (summed, raw.values, {}, "ndarray"),
        (5, raw, {}, "model is a int"),
        ("no/such/model.pt", raw, {}, "There is no model at"),
        (summed, raw, {"block": (1, 2)}, "block"),
        (summed, raw, {"halo": (1, -2, 1)}, r"halo=\(1, -2, 1\) must be 3 whole numbers"),
        (summed, raw, {"halo": (100, 2000, 2000)}, "at most 1,073,741,824 can be"),
        (summed, raw, {"halo": 4}, "halo=4 must be 3 whole numbers"),
        (summed, raw, {"halo": (0.5, 0, 0)}, "must be 3 whole numbers"),
        (summed, raw, {"block": (2000, 2000, 2000)}, "at most 1,073,741,824 can be"),
        (summed, raw, {"channel": -1}, "channel=-1"),
        (summed, raw, {"channel": "a"}, "channel='a'"),
        (summed, raw, {"threshold": "0.5"}, "must be a number"),
        (summed, raw, {"threshold": float("nan")}, "must be a number"),
        (summed, raw, {"threshold": 2}, "threshold=2 must be a probability, .*: 127 of 255 is 0.5"),
        (summed, raw, {"threshold": 127}, "threshold=127 must be a probability"),
        (summed, raw, {"threshold": 0}, "threshold=0 must be a probability"),
        (summed, raw, {"threshold": -0.5}, "threshold=-0.5 must be a probability, .* logits"),
        (summed, raw, {"dtype": "nonsense"}, "must be a type of real numbers"),
        (summed, raw, {"dtype": complex}, "must be a type of real numbers"),
        (summed, raw, {"postprocess": 5}, "must be a function"),
        (summed, raw, {"preprocess": (float("nan"), 1)}, "above 0"),
        (summed, raw.astype(complex), {}, "real numbers"),
        (Counted, raw, {}, r"the class Counted; give an object of it: Counted\("),
        (summed, raw, {"ndim": 4}, "2 or 3"),
        (summed, raw, {"ndim": 2, "halo": (1, 0, 0)}, "no halo along z"),
        (summed, raw, {"batch": 0}, "batch"),
        (summed, raw, {"preprocess": (1, 0)}, "above 0"),
        (summed, raw, {"preprocess": 5}, "or a function"),
    ]
    for model, given_raw, options, said in calls:
        with pytest.raises(ld.InvalidArgumentError, match=said):
            ld.predict(model, given_raw, **options)
    computed: list[tuple[Any, dict[str, Any], str]] = [
        (lambda of: of[1:], {}, "as many voxels"),
        (lambda of: of * np.nan, {}, "returns NaN"),
        (lambda of: np.stack([of, of]), {}, "2 channels; choose one"),
        (lambda of: of, {"channel": 1}, "1 channels, counted from 0"),
        (lambda of: of, {"postprocess": lambda of: of.astype("f4")}, "must return uint8"),
    ]
    for model, options, said in computed:
        with pytest.raises(ld.InvalidArgumentError, match=said):
            ld.predict(model, raw, block=(2, 4, 4), halo=(0, 0, 0), **options).compute()


def test_statistics_are_those_of_the_voxels(archive: Path, voxels: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Mean and deviation come from the tables of a store, whose last chunks are cut."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",))
    ld.to_zarr(ds, tmp_path / "a.zarr", chunks=(4, 64, 64), shards=(4, 128, 128), progress=False)
    mean, deviation = ld.image_statistics(tmp_path / "a.zarr")
    np.testing.assert_allclose((mean, deviation), (voxels["raw"].mean(), voxels["raw"].std()), rtol=1e-4)
    with pytest.raises(ld.InvalidArgumentError, match="has no image 'mito'; it has raw"):
        ld.image_statistics(tmp_path / "a.zarr", "mito")
    with pytest.raises(ld.InvalidArgumentError, match="store is a DataArray; give the path of a store"):
        ld.image_statistics(ds.raw[:8])


@pytest.mark.slow
def test_workers_load_a_model_once_and_give_the_same(archive: Path, tmp_path: Path) -> None:
    """On a cluster, a network gives what it gives here; its weights are loaded once by each worker."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.Conv3d(3, 1, 1), torch.nn.Sigmoid())
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",))

    def predicted() -> xr.DataArray:
        return ld.predict(network, ds.raw, block=(2, 64, 64), halo=(1, 1, 1), preprocess=(30_000, 9_000))

    here = predicted().compute()
    assert len(np.unique(here)) > 10
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": ":0"}
    with forked_workers(), LocalCluster(local_directory=tmp_path, **options) as cluster, Client(cluster) as client:
        np.testing.assert_array_equal(predicted(), here)
        ld.to_zarr(ds.assign(pred=predicted()), tmp_path / "a.zarr", client=client, **TINY)
        loads = client.run(_loads)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").pred, here)
    assert max(loads.values()) == 1


@pytest.mark.slow
def test_a_worker_that_had_the_model_may_be_lost(tmp_path: Path) -> None:
    """Whoever comes or is left gets the weights, which are kept until the call ends."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 3, padding=1), torch.nn.Sigmoid())
    voxels = np.random.default_rng(0).integers(1, 60_000, (16, 128, 64)).astype(np.uint16)
    ld.to_zarr(xr.DataArray(voxels, dims=["z", "y", "x"], name="raw").to_dataset(), tmp_path / "raw.zarr", **TINY)
    raw = xr.open_zarr(tmp_path / "raw.zarr").raw
    predicted = ld.predict(network, raw, block=(2, 64, 64), halo=(1, 1, 1), preprocess=(30_000, 9_000))
    expected = predicted.values
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        forked_workers(),
        LocalCluster(local_directory=tmp_path, **options) as cluster,
        Client(cluster) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        writing = pool.submit(ld.to_zarr, predicted.to_dataset(), tmp_path / "a.zarr", client=client, **TINY)
        wait_until(lambda: max(client.run(_loads).values()) > 0, 60)
        worker = max(client.run(_loads).items(), key=lambda item: item[1])[0]
        os.kill(client.run(os.getpid)[worker], signal.SIGKILL)
        writing.result(100)
        assert client.run_on_scheduler(_kept) is None, "the model stays on the scheduler"
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").prediction, expected)


def _kept(dask_scheduler: Any) -> Any:
    return next((of for run in dask_scheduler.task_metadata["liver_dask"].values() for of in run.values() if of), None)


def _loads() -> int:
    from liver_dask.prediction.models import _loaded

    return _loaded.loads


def test_rows_wait_for_nothing_while_the_model_runs() -> None:
    """One thread runs the model at a time, and the others go on reading."""
    running, most, reads_meanwhile = [0], [0], [0]

    def slow(voxels: np.ndarray) -> np.ndarray:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return voxels

    def read(block: np.ndarray) -> np.ndarray:
        reads_meanwhile[0] += running[0]
        return block

    raw = xr.DataArray(da.ones((2, 64, 64), np.uint8, chunks=(2, 8, 64)).map_blocks(read), dims=["z", "y", "x"])
    ld.predict(slow, raw, block=(2, 8, 64), halo=(0, 0, 0)).compute(scheduler="threads", num_workers=4)
    assert most[0] == 1
    assert reads_meanwhile[0] > 0
