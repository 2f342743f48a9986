"""Variables that are added to a complete store are as if it had been written with them, and nothing else changes."""

import json
import os
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

import liver_dask as ld
from helpers import tiny
from helpers.kills import killed_at
from helpers.places import IN_A_FOLDER, REAL_IN_S3, contents, copied, files_of, flip, in_both, put, read, remove
from liver_dask.cli import main
from liver_dask.core.places import Place
from liver_dask.store import adoption, levels, pyramid
from liver_dask.store.clean import clean
from liver_dask.store.locks import open_locked
from liver_dask.store.record import check_annotated
from liver_dask.store.zarr_store import zarr_store
from liver_dask.viewing.levels import Levels

BLOCKS: dict[str, Any] = {"block": (2, 16, 16), "halo": (1, 3, 3), "skip_empty": False}


@pytest.fixture(autouse=True)
def small_slices_have_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "SMALL_ENOUGH", 15)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_store(tmp_path_factory.mktemp("added"))


@pytest.fixture
def store(plain: Path, place: Place) -> Place:
    """A copy of it, in a folder and in object storage."""
    return copied(plain, place / "a.zarr")


def smooth(voxels: np.ndarray) -> np.ndarray:
    """Stand for a model: each voxel depends on its neighbours."""
    return (voxels + np.roll(voxels, 1, 1) + np.roll(voxels, 3, 2)) / 3 / 65_536


def other(voxels: np.ndarray) -> np.ndarray:
    return voxels / 65_537


def new_of(store: Place, model: Any = smooth) -> dict[str, xr.DataArray]:
    """A probability, a mask and labels, which are computed from the store itself."""
    ds = opened(store)
    return {
        "pred": ld.predict(model, ds.raw, **BLOCKS),
        "mask": ld.predict(model, ds.raw, threshold=0.5, **BLOCKS),
        "bright": (ds.raw > 30_000).assign_attrs(said="by hand"),
    }


def opened(store: Place) -> xr.Dataset:
    with warnings.catch_warnings(action="error"):
        return xr.open_zarr(zarr_store(store) if not isinstance(store, Path) else store)


def add(store: Place, model: Any = smooth, **options: Any) -> str:
    return ld.add_variables(store, new_of(store, model), progress=False, **options)


def check(store: Place, source: Path) -> None:
    """Check that a store has all variables, is verified in full, and that nothing is left beside it."""
    ds = opened(store)
    assert list(ds.data_vars) == ["bright", "er", "mask", "pred", "raw"]
    expected = {name: of.values for name, of in new_of(source).items()}
    for name, values in expected.items():
        np.testing.assert_array_equal(ds[name], values, err_msg=name)
        assert values.std() > 0
    before = xr.open_zarr(source)
    for name in before.data_vars:
        xr.testing.assert_identical(ds[name].load(), before[name].load())
    assert ds.bright.attrs["said"] == "by hand"
    assert ld.verify(store, full=True, progress=False).problems == []
    assert {name.split("/")[0] for name in files_of(store.parent)} <= {"a.zarr", "archive"}
    assert not [name for name in files_of(store) if "adopt" in name or "annotation" in name]


@in_both("has_levels", [False, True], [False], [True])
def test_they_are_as_if_the_store_had_been_written_with_them(plain: Path, store: Place, has_levels: bool) -> None:
    """Voxels, tables, levels, labels and metadata are those of a store that had them from the beginning."""
    if has_levels:
        ld.add_pyramid(store, progress=False)
    add(store)
    check(store, plain)
    whole = store.with_name("whole.zarr")
    ds = opened(plain)
    at_once = xr.Dataset(new_of(plain) | {name: ds[name] for name in ("raw", "er")}, ds.coords, ds.attrs)
    ld.to_zarr(at_once, whole, pyramid=has_levels, progress=False, **tiny.LAYOUT)
    found, expected = ({name for name in files_of(of) if "/c/" not in name} for of in (store, whole))
    assert found == expected
    for of in ("", *(["pyramid/s1", "pyramid/s2"] if has_levels else [])):
        one, two = (opened(store / of) if of else opened(store) for store in (store, whole))
        xr.testing.assert_equal(one, two)
        assert zarr.open_group(zarr_store(store / of), mode="r").attrs.get("ome") == zarr.open_group(
            zarr_store(whole / of), mode="r"
        ).attrs.get("ome")
    if has_levels:
        listed = zarr.open_group(zarr_store(store / "labels"), mode="r").attrs["ome"]["labels"]
        assert sorted(listed) == ["er", "mask"], "a bool array is no label of OME-Zarr"
        assert [len(Levels(opened(store)[[name]])._levels) for name in ("pred", "mask", "raw")] == [3, 3, 3]


@REAL_IN_S3
def test_the_same_call_does_nothing_and_so_does_that_of_the_store(plain: Path, store: Place) -> None:
    """Also from a Dataset that was opened anew; another model, and what is not a variable, are refused."""
    ld.add_pyramid(store, progress=False)
    add(store)
    before = contents(store)
    assert add(store) == str(store)
    tiny.make_tiny_store(store.parent, plain.parent / "archive")
    ld.add_pyramid(store, progress=False)
    assert contents(store) == before
    with pytest.raises(ld.StoreExistsError, match=r"has another pred.* It holds model of pred .*; this call asks for"):
        add(store, other)
    put(store / "notes" / "mine.txt", "mine")
    with pytest.raises(ld.StoreExistsError, match="notes is there already, and not as a variable that liver_dask"):
        ld.add_variables(store, {"notes": new_of(store)["pred"]}, progress=False)
    assert contents(store) == before | {"notes/mine.txt": b"mine"}


@IN_A_FOLDER
def test_more_are_added_later_one_after_the_other(plain: Path, store: Path) -> None:
    """Labels of a mask that was added, and a copy of raw; pyramid, labels and the time of the folder stay right."""
    add(store)
    ds = opened(store)
    time = store.stat().st_mtime_ns
    ld.add_pyramid(store, progress=False)
    ld.add_variables(store, xr.Dataset({"objects": ld.label_objects(ds.mask), "twin": ds.raw}), progress=False)
    assert store.stat().st_mtime_ns == time, "or xarray would give other names to dask's arrays"
    now = opened(store)
    np.testing.assert_array_equal(now.twin, ds.raw)
    np.testing.assert_array_equal(now.objects, ld.label_objects(ds.mask))
    assert (store / "labels" / "objects" / "2").is_dir()
    ld.annotate(store, voxel_size_nm=(30, 8, 8))
    report = ld.verify(store, full=True, progress=False)
    assert report.problems == [] == report.notes
    assert set(report.unchecked) == {"pred", "mask", "bright", "objects", "twin"}


@REAL_IN_S3
def test_verify_says_what_it_can_check(plain: Path, store: Place) -> None:
    """Checksums always; the model is run again if the variable is given, and finds what it finds."""
    add(store)
    report = ld.verify(store, progress=False)
    assert "Not compared, since they were computed: pred, mask, bright (give the Dataset)" in str(report)
    again = ld.verify(store, opened(plain)[[]].assign(pred=new_of(plain)["pred"]), full=True, progress=False)
    assert again.ok
    assert again.voxels == 4 * 40 * 50
    with pytest.raises(ld.InvalidArgumentError, match=r"is not what .* was made of"):
        ld.verify(store, opened(plain)[[]].assign(pred=new_of(plain, other)["pred"]), progress=False)
    shard = next(name for name in files_of(store) if name.startswith("pred/c/"))
    flip(store / shard, 100)
    assert not ld.verify(store, progress=False).ok


def wrong_after(store: Place, done: int) -> list[str]:
    """What is wrong for a reader of a store while variables are added."""
    ds = opened(store)
    problems = [] if {"raw", "er"} <= set(ds.data_vars) else [f"{done}: {list(ds.data_vars)}"]
    return problems + [f"{done}: {name}" for name in ds.data_vars if not np.isfinite(ds[name].values).all()]


def is_added(store: Place) -> bool:
    """Add variables; False if this is refused, because the folder had another time when it was opened."""
    try:
        add(store)
    except ld.StoreExistsError as error:
        if "has another bright" not in str(error) or "open that again" not in str(error):
            raise
        return False
    return True


@IN_A_FOLDER
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("with_levels", [False, True])
def test_killed_at_any_step_the_next_call_finishes(plain: Path, place: Path, with_levels: bool) -> None:
    """Whatever was done, readers see whole variables alone; and then all is as without the kill."""
    begun = copied(plain, place / "begun.zarr")
    if with_levels:
        ld.add_pyramid(begun, progress=False)
    expected = None
    refused = 0
    steps = count(3, 151) if with_levels else count(1, 23)
    for step in steps:
        folder = place / str(step)
        store = copied(begun, folder / "a.zarr")
        is_over = killed_at(step, lambda: add(store)) == 0  # noqa: B023 (it is called at once)
        assert wrong_after(store, step) == []
        then = step % 3
        journal = store / "liver_dask" / "annotation.json"
        if then == 1 and not is_over and journal.exists() and journal.stat().st_size:
            ld.add_pyramid(store, progress=False)
            assert "pred" in opened(store), "another call that changes the store finishes what was begun"
        if not is_added(store):
            refused += 1
            add(store)
        assert {path.name for path in folder.iterdir()} == {"a.zarr"}
        assert ld.verify(store, full=True, progress=False).problems == []
        found = {name: of for name, of in contents(store).items() if "/c/" in name or name.endswith("manifest.json")}
        if then == 1 and not with_levels:
            found = {name: of for name, of in found.items() if not name.startswith(("pyramid/", "labels/"))}
        expected = expected or found
        assert found == expected, step
        if is_over:
            break
    assert step > 40
    assert refused < 3, "only if it was killed before the folder had its time again"


def test_in_object_storage_a_kill_while_they_are_moved_is_finished(
    plain: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where copies of some objects are there, and nothing names them yet."""
    store = copied(plain, s3.folder() / "a.zarr")

    def fail(*_: Any, **_options: Any) -> None:
        raise OSError("the network is gone")

    monkeypatch.setattr(adoption, "write_group", fail)
    with pytest.raises(OSError, match="the network is gone"):
        add(store)
    assert "pred" not in opened(store)
    with pytest.raises(ld.StoreExistsError, match="Variables are being added"):
        check_annotated(store)
    assert "Remove" not in str(ld.verify(store, progress=False))
    monkeypatch.undo()
    ld.annotate(store, voxel_size_nm=(30, 8, 8))
    assert "pred" in opened(store)
    assert ld.verify(store, full=True, progress=False).problems == []


@IN_A_FOLDER
def test_while_another_process_changes_the_store_they_wait_beside_it(plain: Path, store: Path) -> None:
    """The call is refused, and says so; the next one moves what is complete, and computes nothing again."""
    before = contents(store)

    def first(voxels: np.ndarray) -> np.ndarray:
        return smooth(voxels)

    first.__dask_tokenize__ = lambda: "the same"
    with (
        open_file_locked(store / "liver_dask" / "annotation.json"),
        pytest.raises(ld.StoreExistsError, match="or adding levels or variables to it; wait") as told,
    ):
        add(store, first)
    (store / "liver_dask" / "annotation.json").unlink()
    assert "a.zarr.adding-pred-mask-bright; the same call moves it" in told.value.__notes__[0]
    assert contents(store) == before

    def gone(_: np.ndarray) -> np.ndarray:
        raise AssertionError("it was predicted before")

    gone.__dask_tokenize__ = lambda: "the same"
    add(store, gone)
    check(store, plain)


def open_file_locked(path: Path) -> Any:
    return os.fdopen(open_locked(path, busy="busy"), "r+b")


@IN_A_FOLDER
def test_wrong_arguments_are_one_sentence_and_nothing_is_written(store: Path, plain: Path, tmp_path: Path) -> None:
    """Of shape, coordinates, names, kinds and stores."""
    before = contents(store.parent)
    right = new_of(store)["pred"]
    calls: list[tuple[Any, str]] = [
        ({}, "by name"),
        ([right], "by name"),
        (right, "by name"),
        ({"a": right.values}, "is a ndarray; give a DataArray"),
        ({"a": right[0]}, "has dims"),
        ({"a": right[1:]}, r"has the shape \(3, 40, 50\) \(z, y, x\), and .* has \(4, 40, 50\)"),
        ({"a": right.assign_coords(y=right.y + 1)}, r"its y is 1\.\.40, that of the store 0\.\.39"),
        ({"a b": right}, "a word of letters"),
        ({"labels": right}, "rename it"),
        ({"z": right}, "z"),
        ({"a": right.astype(complex)}, "only numbers and bool"),
        ({"a/b": right}, "a word of letters"),
        ({"": right}, "a word of letters"),
        ({3: right}, "a word of letters"),
        ({"a" * 201: right}, "a word of letters"),
    ]
    for variables, said in calls:
        with pytest.raises(ld.LiverDaskError, match=said) as told:
            ld.add_variables(store, variables, progress=False)
        assert "\n" not in str(told.value)
    ld.add_pyramid(store, progress=False)
    with pytest.raises(ld.InvalidArgumentError, match="is a level of the pyramid of another store"):
        ld.add_variables(store / "pyramid" / "s1", {"a": right}, progress=False)
    with pytest.raises(ld.NotDownloadedError, match="no complete store"):
        ld.add_variables(tmp_path / "none.zarr", {"a": right}, progress=False)
    old = copied(plain, tmp_path / "old.zarr")
    tiny.forget_what_was_recorded(old)
    with pytest.raises(ld.InvalidArgumentError, match="of an earlier version"):
        ld.add_variables(old, {"a": right}, progress=False)
    assert {name: of for name, of in contents(store.parent).items() if name in before and "zarr.json" not in name} == {
        name: of for name, of in before.items() if "zarr.json" not in name
    }


@IN_A_FOLDER
def test_a_damaged_store_is_left_as_it_is(store: Path) -> None:
    """If the inventory is not what was written, nothing is added to it, and what is finished stays."""
    tiny.edit(store / "liver_dask" / "inventory.json", lambda document: document["attributes"].update(a=1))
    before = contents(store)
    with pytest.raises(ld.DamagedError, match="no variable was added"):
        add(store)
    assert contents(store) == before


@IN_A_FOLDER
def test_what_the_source_lacked_is_named(plain: Path, store: Path, tmp_path: Path) -> None:
    """A variable that was computed from zeros in place of missing files says so in the store."""
    archive = copied(plain.parent / "archive", tmp_path / "archive")
    sorted(archive.rglob("*er*002*.png"))[0].unlink()
    ds = ld.open_human_liver_em(archive, shape=tiny.SHAPE, labels=["er"], missing="zeros")
    ld.add_variables(store, {"twice": (ds.er > 0).astype("u1") * 2}, progress=False)
    missing = opened(store).attrs["missing_files"]
    assert len(missing) == 1
    assert ld.verify(store, full=True, progress=False).problems == []


@IN_A_FOLDER
def test_from_the_shell(store: Path, tmp_path: Path) -> None:
    """`liver-dask predict` without OUT adds the prediction to the store that it is made from."""
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1), torch.nn.Sigmoid()).eval()
    example = torch.zeros(1, 1, 2, 16, 16)
    torch.export.save(torch.export.export(network, (example,)), tmp_path / "m.pt2")
    options = ["--block", "2", "16", "16", "--halo", "0", "0", "0", "--standardize", "30000", "9000"]

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["predict", str(store), str(tmp_path / "m.pt2"), *options, *arguments])

    done = run("--name", "mito_pred", "--threshold", "0.5")
    assert done.exit_code == 0, done.output
    assert f"mito_pred was added to {store}" in done.output
    assert set(np.unique(opened(store).mito_pred)) <= {0, 255}
    assert run("--name", "mito_pred", "--threshold", "0.5").exit_code == 0
    refused = run("--name", "mito_pred")
    assert refused.exit_code == 1
    assert "has another mito_pred" in refused.output
    box = run("--bbox", "0", "20", "0", "20", "0", "2")
    assert box.exit_code == 2
    assert "Give OUT, a new store" in box.output
    archive = CliRunner().invoke(main, ["predict", str(store.parent / "none"), str(tmp_path / "m.pt2")])
    assert archive.exit_code != 0


def test_the_record_says_by_what_it_was_made(store: Place) -> None:
    """By which model, with which settings, from which voxels."""
    add(store)
    record = json.loads(read(store / "liver_dask" / "zarr.json"))["attributes"]["variables"]
    assert record["pred"]["added"] is True
    said = json.loads(record["pred"]["voxels"].removeprefix("prediction ").rpartition(" [")[0])
    assert said["model"].startswith("function ")
    assert (said["block"], said["halo"]) == ([2, 16, 16], [1, 3, 3])
    assert said["raw"]["box"] == [[0, 4], [0, 40], [0, 50]]
    assert len(said["raw"]["checksums"]) == 32


@IN_A_FOLDER
def test_what_is_not_ours_beside_the_store_is_left(store: Path, plain: Path) -> None:
    """A store that somebody wrote there, a folder and a link are refused, before anything is predicted."""
    beside = store.with_name("a.zarr.adding-pred")
    pred = new_of(store)["pred"]
    ld.to_zarr(xr.Dataset({"pred": pred}), beside, progress=False, **tiny.LAYOUT)
    (beside / "notes.txt").write_text("mine")
    before = contents(store.parent)
    with pytest.raises(ld.StoreExistsError, match="is in the way, and was not made to be added"):
        ld.add_variables(store, {"pred": pred}, progress=False)
    assert contents(store.parent) == before
    beside.rename(store.with_name("other.zarr"))
    for make in (beside.mkdir, lambda: beside.symlink_to(store.with_name("other.zarr"))):
        make()
        with pytest.raises(ld.StoreExistsError, match="is in the way"):
            ld.add_variables(store, {"pred": pred}, progress=False)
        beside.rmdir() if not beside.is_symlink() else beside.unlink()
    assert contents(store.parent) == {
        name.replace("a.zarr.adding-pred/", "other.zarr/"): of for name, of in before.items()
    }


@IN_A_FOLDER
def test_names_in_the_levels_and_labels_are_found_before_anything_is_predicted(store: Path) -> None:
    """What a user has put there stays, and the store gets no variable that its levels cannot have."""
    ld.add_pyramid(store, progress=False)

    def never(_: np.ndarray) -> np.ndarray:
        raise AssertionError("it was predicted")

    for place in ("labels/mask", "pyramid/s1/mask"):
        put(store / place / "mine.txt", "mine")
        before = contents(store)
        with pytest.raises(ld.StoreExistsError, match="is there already"):
            add(store, never)
        assert contents(store) == before
        remove(store / place)


@IN_A_FOLDER
def test_levels_without_a_variable_are_told_and_mended(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill between the levels and the metadata of the root, also of an image, which is no label."""
    ld.add_pyramid(store, progress=False)
    pred = new_of(store)["pred"]

    def die(*_: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    for part in ("write_ome_metadata", "add_missing"):
        name = f"pred_{part}"
        with monkeypatch.context() as patched:
            patched.setattr(pyramid, part, die)
            with pytest.raises(KeyboardInterrupt):
                ld.add_variables(store, {name: pred}, progress=False)
        report = ld.verify(store, progress=False)
        assert part == "write_ome_metadata" or any("adds that" in note for note in report.notes)
        ld.add_variables(store, {name: pred}, progress=False)
        assert ld.verify(store, full=True, progress=False).problems == []
        levels = xr.open_datatree(store, group="pyramid", engine="zarr")
        assert all(name in level for level in levels.children.values())


@IN_A_FOLDER
@pytest.mark.parametrize("at", ["_put", "write_group"])
def test_a_store_that_was_renamed_or_lost_what_was_beside_is_mended(
    store: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """While variables were being moved: they are moved, or it is as if they had never been there."""

    def die(*_: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    before = set(files_of(store))
    for lost in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(adoption, at, die)
            with pytest.raises(KeyboardInterrupt):
                add(store)
        if lost:
            remove(store.with_name("a.zarr.adding-pred-mask-bright"))
            ld.annotate(store, voxel_size_nm=(30, 8, 8))
            moved = at == "write_group"
            assert ("pred" in opened(store)) == moved
            assert (set(files_of(store)) == before) != moved
            assert ld.verify(store, full=True, progress=False).problems == []
            return
        store.rename(store.with_name("b.zarr"))
        ld.annotate(store.with_name("b.zarr"), voxel_size_nm=(30, 8, 8))
        assert "pred" in opened(store.with_name("b.zarr"))
        remove(store.with_name("b.zarr"))
        copied(plain, store)


@IN_A_FOLDER
def test_what_an_interrupted_call_left_is_cleaned(store: Path) -> None:
    """`clean` of the store finds what was to be added, and removes it when asked."""

    def fails(voxels: np.ndarray) -> np.ndarray:
        if fails.count > 20:
            raise RuntimeError("too hot")
        fails.count += 1
        return voxels / 65_536

    fails.count = 0
    fails.__dask_tokenize__ = lambda: "fails"
    with pytest.raises(ld.ExportError, match=r"The model failed at the block from z .*too hot"):
        ld.add_variables(store, {"pred": ld.predict(fails, opened(store).raw, **BLOCKS)}, progress=False)
    partial = store.with_name("a.zarr.adding-pred.partial")
    assert partial.is_dir()
    said = clean(store)
    assert "a.zarr.adding-pred.partial is an unfinished store" in said
    assert "is removed" in clean(store, unfinished=True)
    assert not partial.exists()
    assert ld.verify(store, progress=False).ok


@IN_A_FOLDER
def test_names_may_be_long(store: Path) -> None:
    """Several names, of several bytes a letter, are too long for the name of one folder."""
    pred = new_of(store)["pred"]
    names = ["\u6f22" * 60, "\u5b57" * 60]
    ld.add_variables(store, dict.fromkeys(names, pred), progress=False)
    assert set(names) < set(opened(store))
    assert [path.name for path in store.parent.iterdir()] == ["a.zarr"]
    assert ld.verify(store, full=True, progress=False).problems == []
