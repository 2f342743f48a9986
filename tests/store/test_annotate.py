"""Annotating a finished store: everything that says how large its voxels are changes together, and nothing else."""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import product
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
from helpers.places import IN_A_FOLDER, REAL_IN_S3, contents, copied, files_of, in_both, put, read, remove, writable
from liver_dask.cli import main
from liver_dask.core.places import Place
from liver_dask.store import levels as store_levels
from liver_dask.store import pyramid
from liver_dask.store.annotate import annotate
from liver_dask.store.locks import open_locked
from liver_dask.store.ome_zarr import write_ome_metadata
from liver_dask.store.record import BEGUN
from liver_dask.store.storage import claims
from liver_dask.store.zarr_store import zarr_store
from liver_dask.viewing.levels import Levels

SIZE, OTHER = (30.0, 8.0, 8.0), (4.5, 8.0, 9.0)
EXHAUSTIVE = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def small_slices_have_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 15)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated") / "archive"
    tiny.make_tiny_store(folder.parent)
    return folder


def written(archive: Path, path: Any, size: tuple[float, ...] | None = None, *, pyramid: bool = True) -> Any:
    """Write a store with levels and labels, whose voxel size is known from the beginning, or is not."""
    ds = ld.open_human_liver_em(archive, shape=tiny.SHAPE, labels=["er"], voxel_size_nm=size)
    ld.to_zarr(ds, path, progress=False, pyramid=pyramid, **tiny.LAYOUT)
    return path


@pytest.fixture(scope="module")
def unknown(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with levels and labels without a voxel size."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", 15)
        yield written(archive, tmp_path_factory.mktemp("unknown") / "a.zarr")


@pytest.fixture
def store(unknown: Path, place: Place) -> Place:
    """A copy of it, in a folder and in object storage."""
    return copied(unknown, place / "a.zarr")


def documents(store: Place) -> dict[str, Any]:
    """All metadata of a store, without the checksums of others."""
    found = {}
    for name in files_of(store):
        if not name.endswith(".json"):
            continue
        document = json.loads(read(store / name))
        if f"/{name}".endswith("/liver_dask/zarr.json"):
            document["attributes"].pop("inventory")
            document["attributes"].pop("checksum")
        document.pop("consolidated_metadata", None)
        found[name] = document
    return found


def check(store: Place, size: tuple[float, ...], source: Place) -> None:
    """Check that a store says a size everywhere, is verified in full, and is opened without a warning."""
    assert ld.verify(store, full=True, progress=False).problems == []
    with warnings.catch_warnings(action="error"):
        opened = xr.open_zarr(zarr_store(store))
    assert opened.attrs["voxel_size_nm"] == list(size)
    xr.testing.assert_equal(opened.drop_attrs(), xr.open_zarr(zarr_store(source)).drop_attrs())
    levels = store_levels.levels_of(store)
    for level in levels:
        assert xr.open_zarr(zarr_store(level.path)).attrs["voxel_size_nm"] == [
            a * b for a, b in zip(size, level.factors, strict=True)
        ]
    for group in (store, store / "labels" / "er"):
        scales = zarr.open_group(zarr_store(group), mode="r").attrs["ome"]["multiscales"][0]
        assert {axis["unit"] for axis in scales["axes"]} == {"nanometer"}
        for level, dataset in zip(levels, scales["datasets"], strict=True):
            scale = dataset["coordinateTransformations"][0]["scale"]
            assert scale == [a * b for a, b in zip(size, level.factors, strict=True)]
    assert f"liver_dask/{BEGUN}" not in files_of(store)


@in_both("before, pyramid", product((None, OTHER), (True, False)), [], [(None, False)])
def test_an_annotated_store_is_as_if_the_size_had_been_known(
    archive: Path, tmp_path: Path, place: Place, before: tuple[float, ...] | None, pyramid: bool
) -> None:
    """A store whose size was given later equals, in all files, one that was written with it from the beginning."""
    size = (30.0, 8.0, 8.0) if before is None else (2.5, 4.0, 5.0)  # z is halved at the same levels as before
    one, other = (
        written(archive, tmp_path / "one.zarr", size, pyramid=pyramid),
        written(archive, place / "a.zarr", before, pyramid=pyramid),
    )
    kept = {path: path.stat() for path in other.rglob("c/**/*") if path.is_file()} if isinstance(other, Path) else {}
    assert annotate(other, voxel_size_nm=size) is None
    assert documents(other) == documents(one)
    assert {*contents(other)} == {*contents(one)}
    for path, stat in kept.items():
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (stat.st_mtime_ns, stat.st_ino), "a shard was written"
    if pyramid:
        check(other, size, one)
    else:
        assert ld.verify(other, progress=False).ok
        assert not [name for name in files_of(other) if name.startswith("labels/")]
    files = contents(other)
    annotate(other, voxel_size_nm=size)
    assert contents(other) == files
    ds = ld.open_human_liver_em(archive, shape=tiny.SHAPE, labels=["er"], voxel_size_nm=size)
    ld.to_zarr(ds, other, progress=False, pyramid=pyramid, **tiny.LAYOUT)
    assert contents(other) == files


@IN_A_FOLDER
def test_existing_levels_keep_their_voxels(store: Path, unknown: Path) -> None:
    """Levels that were made without a voxel size are used and described as they are, and later ones follow from it."""
    before = [level.factors for level in store_levels.levels_of(store)]
    assert before == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    annotate(store, voxel_size_nm=OTHER)
    check(store, OTHER, unknown)
    assert [level.factors for level in store_levels.levels_of(store)] == before
    assert len(Levels(xr.open_zarr(store))._levels) == 3
    files = contents(store)
    ld.add_pyramid(store, progress=False)
    assert contents(store) == files
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", 7)
        ld.add_pyramid(store, progress=False)
        assert [level.factors for level in store_levels.levels_of(store)] == [*before, (2, 8, 8)]
        check(store, OTHER, unknown)


@IN_A_FOLDER
@pytest.mark.filterwarnings(
    "ignore:Object at .* is not recognized", "ignore:Consolidated metadata is currently not part"
)
def test_what_users_added_stays(store: Place) -> None:
    """Attributes, variables and labels of users are left as they are."""
    group = zarr.open_group(writable(store), mode="r+")
    group.attrs["mine"] = {"note": 3}
    group["labels"].create_group("cells", attributes={"ome": {"mine": 1}}).create_array("0", data=np.ones((2, 3)))
    group["labels/er"].attrs["seen by"] = "me"
    group.create_array("mine", data=np.arange(4), dimension_names=["z"])
    own = contents(store / "labels" / "cells") | contents(store / "mine")
    annotate(store, voxel_size_nm=SIZE)
    annotate(store, voxel_size_nm=OTHER)
    assert contents(store / "labels" / "cells") | contents(store / "mine") == own
    opened = zarr.open_group(zarr_store(store), mode="r")
    assert opened.attrs["mine"] == {"note": 3}
    assert opened["labels/er"].attrs["seen by"] == "me"
    assert opened.attrs["voxel_size_nm"] == list(OTHER)
    assert ld.verify(store, progress=False).problems == []
    assert xr.open_zarr(zarr_store(store)).mine.values.tolist() == [0, 1, 2, 3]


@IN_A_FOLDER
def test_a_size_that_was_changed_by_hand_is_repaired(store: Path, unknown: Path) -> None:
    """A size that somebody wrote into the attributes makes a problem of verify, which annotating ends."""
    zarr.open_group(store, mode="r+").attrs["voxel_size_nm"] = list(SIZE)
    annotate(store, voxel_size_nm=OTHER)
    check(store, OTHER, unknown)


@pytest.mark.parametrize(
    ("then", "every"),
    [
        pytest.param(OTHER, 29, marks=pytest.mark.slow),
        pytest.param(OTHER, 1, marks=EXHAUSTIVE),
        pytest.param(SIZE, 1, marks=EXHAUSTIVE),
    ],
)
def test_killed_at_any_step_it_is_finished_by_the_next(
    unknown: Path, tmp_path: Path, then: tuple[float, ...], every: int
) -> None:
    """After a kill at any step, readers open the store, and the next call, even with another size, finishes it."""
    said = set()
    for step in range(1, 1000, every):
        store = shutil.copytree(unknown, tmp_path / "a.zarr")
        finished = not killed_at(step, partial(annotate, store, voxel_size_nm=SIZE), ("replace", "unlink"))
        said.add(str(xr.open_zarr(store).attrs.get("voxel_size_nm")))
        begun = store / "liver_dask" / BEGUN
        if begun.exists() and begun.stat().st_size:
            report = ld.verify(store, progress=False)
            assert not report.ok
            assert "Remove" not in str(report), "the voxels are right, so it need not be made anew"
            assert ("Finish that first" in str(report)) == (len(report.problems) > 1)
            with pytest.raises(ld.StoreExistsError, match="liver-dask annotate"):
                ld.add_pyramid(store, progress=False)
        annotate(store, voxel_size_nm=then)
        assert ld.verify(store, progress=False).problems == [], step
        assert {*contents(store)} == {*contents(unknown)}, step
        if finished:
            check(store, then, unknown)
            break
        shutil.rmtree(store)
    assert step > 2 * every
    assert said == {"None", str(list(SIZE))}


def test_what_to_do_about_an_interrupted_call_is_to_finish_it(store: Path, unknown: Path) -> None:
    """`verify` does not advise to remove a store whose voxels are right; it does if a shard is damaged after all."""
    put(store / "liver_dask" / BEGUN, json.dumps({"voxel_size_nm": SIZE}).encode())
    report = ld.verify(store, progress=False)
    assert report.is_changing
    assert str(report).splitlines()[-1] == report.problems[0]
    assert "`liver-dask annotate` finishes it" in report.problems[0]
    remove(next(store / name for name in files_of(store) if name.startswith("raw/c/")))
    report = ld.verify(store, progress=False)
    assert len(report.problems) > 1
    assert str(report).splitlines()[-1] == "Finish that first, and verify again: the rest may follow from it."
    annotate(store, voxel_size_nm=SIZE)
    assert str(ld.verify(store, progress=False)).splitlines()[-1].startswith(f"Remove {store}, and make it anew")


@IN_A_FOLDER
def test_two_at_once(store: Path) -> None:
    """While one process annotates, another is told so, and nothing changes."""
    files = contents(store)
    descriptor = open_locked(store / "liver_dask" / BEGUN, busy="")
    try:
        with pytest.raises(ld.StoreExistsError, match="Another process is annotating"):
            annotate(store, voxel_size_nm=SIZE)
    finally:
        os.close(descriptor)
        (store / "liver_dask" / BEGUN).unlink()
    assert contents(store) == files


@in_both(
    "where, what",
    product(("", "pyramid/s1"), ("inventory.json", "zarr.json", "no inventory", "nonsense")),
    [("", "inventory.json"), ("pyramid/s1", "nonsense")],
)
def test_what_is_not_as_written_is_not_changed(store: Place, where: str, what: str) -> None:
    """Of a damaged store nothing is changed: the record must not vouch for what nobody wrote."""
    folder = store / where / "liver_dask"
    if what == "no inventory":
        remove(folder / "inventory.json")
    elif what == "nonsense":
        put(folder / "inventory.json", "[3]")
    elif what == "inventory.json":
        tiny.edit(folder / what, lambda document: document["attributes"].update(title="another"))
    else:
        tiny.edit(folder / what, lambda document: document["attributes"].update(made_of="something"))
    files = contents(store)
    with pytest.raises(ld.DamagedError):
        annotate(store, voxel_size_nm=SIZE)
    assert contents(store) == files


@REAL_IN_S3
def test_stores_of_earlier_versions(archive: Path, place: Place) -> None:
    """A store without an inventory is annotated in its attributes."""
    store = written(archive, place / "a.zarr", pyramid=False)
    tiny.forget_what_was_recorded(store)
    annotate(store, voxel_size_nm=SIZE)
    assert xr.open_zarr(zarr_store(store)).attrs["voxel_size_nm"] == list(SIZE)
    assert ld.verify(store, progress=False).ok


def test_what_is_unfinished_is_finished_first(store: Place) -> None:
    """An unfinished store, or a store with an unfinished level, is refused with what to do."""
    put(store / "pyramid" / "s2.partial" / "store" / "zarr.json", "{}")
    with pytest.raises(ld.StoreExistsError, match="finish it first with `liver-dask pyramid"):
        annotate(store, voxel_size_nm=SIZE)
    with pytest.raises(ld.NotDownloadedError):
        annotate(store.parent / "none.zarr", voxel_size_nm=SIZE)


@IN_A_FOLDER
def test_on_the_command_line(store: Path, unknown: Path, tmp_path: Path) -> None:
    """`liver-dask annotate` says what it did, and wrong sizes and paths in one sentence."""
    run = CliRunner().invoke
    done = run(main, ["annotate", str(store), "--voxel-size", "30", "8", "8"])
    assert (done.exit_code, done.output) == (0, f"{store}: voxels of 30 x 8 x 8 nm (z, y, x).\n")
    check(store, SIZE, unknown)
    files = contents(store)
    for wrong in (["30", "8", "0"], ["30", "8", "nan"], ["30", "8", "inf"], ["30", "8"], ["a", "8", "8"], []):
        failed = run(main, ["annotate", str(store), *(["--voxel-size", *wrong] if wrong else [])])
        assert failed.exit_code in (1, 2)
        assert "Traceback" not in failed.output
    assert run(main, ["annotate", str(tmp_path / "none.zarr"), "--voxel-size", "1", "1", "1"]).exit_code == 1
    assert contents(store) == files
    refused = run(
        main, ["snapshot", str(store), "--z", "1", "--voxel-size", "1", "1", "1", "-o", str(tmp_path / "a.png")]
    )
    assert "`liver-dask annotate` changes the voxel size of a store" in refused.output


def edit_attributes(path: Place, **changed: Any) -> None:
    tiny.edit(path / "zarr.json", lambda document: document["attributes"].update(changed))


PREVENTING = (
    lambda store: put(store / "raw" / "zarr.json", "{"),
    lambda store: put(store / "pyramid" / "s1" / "raw" / "zarr.json", "{"),
    lambda store: tiny.edit(store / "labels" / "er" / "zarr.json", lambda document: document.update(attributes=[3])),
    lambda store: tiny.edit(store / "pyramid" / "zarr.json", lambda document: document.update(attributes=[3])),
    lambda store: remove(store / "pyramid" / "s2"),
    lambda store: edit_attributes(store / "pyramid" / "s1", voxels_of_the_store=[2, 2, 2]),
    lambda store: tiny.edit(
        store / "pyramid" / "s1" / "zarr.json", lambda document: document["attributes"].pop("voxels_of_the_store")
    ),
    lambda store: (
        zarr.open_group(writable(store)).create_array("mine", data=np.arange(4)),
        tiny.edit(store / "mine" / "zarr.json", lambda document: document.update(data_type="nonsense")),
    ),
)
"""Damage that would be in the way."""


@in_both("damage", PREVENTING, PREVENTING[1:2])
@pytest.mark.filterwarnings("ignore:Object at .* is not recognized")
def test_what_could_prevent_it_is_found_before_anything_changes(store: Place, damage: Any) -> None:
    """Whatever cannot be read or written anew is an error at once; nothing is changed, and nothing is left behind."""
    damage(store)
    files = contents(store)
    with pytest.raises(ld.DamagedError):
        annotate(store, voxel_size_nm=SIZE)
    assert contents(store) == files


@IN_A_FOLDER
@pytest.mark.filterwarnings(
    "ignore:Object at .* is not recognized", "ignore:Consolidated metadata is currently not part"
)
def test_labels_that_users_changed_do_not_prevent_it(store: Place) -> None:
    """Notes in a label, further images of it, and labels that were removed stay as users made them."""
    label = store / "labels" / "er"
    put(label / "notes.txt", "mine")

    def add(document: Any) -> None:
        scales = document["attributes"]["ome"]["multiscales"]
        scales[0]["name"] = "my name"
        scales.append({"name": "mine", "datasets": [{"path": "0"}]})

    tiny.edit(label / "zarr.json", add)
    annotate(store, voxel_size_nm=SIZE)
    assert ld.verify(store, progress=False).problems == []
    scales = zarr.open_group(zarr_store(label), mode="r").attrs["ome"]["multiscales"]
    assert [scale["name"] for scale in scales] == ["my name", "mine"]
    assert scales[0]["datasets"][0]["coordinateTransformations"][0]["scale"] == list(SIZE)
    assert scales[1] == {"name": "mine", "datasets": [{"path": "0"}]}
    assert read(label / "notes.txt") == b"mine"
    remove(store / "labels")
    annotate(store, voxel_size_nm=OTHER)
    assert not [name for name in files_of(store) if name.startswith("labels/")]


OWN = {"labels": "blind-coded"}, {"ome": {"multiscales": [{"datasets": [{"path": "raw"}]}]}}


@in_both("own", OWN, [], OWN[1:])
def test_a_store_that_is_no_image_does_not_become_one(archive: Path, place: Place, own: dict[str, Any]) -> None:
    """A user's own attributes with OME's names are left alone, and no labels are added."""
    store = written(archive, place / "a.zarr", pyramid=False)
    edit_attributes(store, **own)
    files = {*contents(store)}
    annotate(store, voxel_size_nm=SIZE)
    assert {*contents(store)} == files
    assert own.items() <= dict(zarr.open_group(zarr_store(store), mode="r").attrs).items()


@pytest.mark.filterwarnings(
    "ignore:Object at .* is not recognized", "ignore:Consolidated metadata is currently not part"
)
@REAL_IN_S3
def test_a_store_into_which_xarray_wrote(archive: Path, place: Place) -> None:
    """Xarray replaces the root's attributes when it adds a variable; the store is annotated and sound all the same."""
    store = written(archive, place / "a.zarr", pyramid=False)
    xr.Dataset({"mine": ("q", np.arange(3))}).to_zarr(writable(store), mode="a")
    annotate(store, voxel_size_nm=SIZE)
    assert ld.verify(store, progress=False).ok
    assert xr.open_zarr(zarr_store(store)).attrs["voxel_size_nm"] == list(SIZE)
    assert xr.open_zarr(zarr_store(store)).mine.values.tolist() == [0, 1, 2]


@REAL_IN_S3
def test_while_levels_are_added_it_waits(archive: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store to which levels are being added is not annotated, and the other way round."""
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_RENEWALS", 0.4)
    store = written(archive, place / "a.zarr", pyramid=False)
    said = []

    def attempt(*arguments: Any) -> Any:
        with pytest.raises(ld.StoreExistsError, match=r"annotating .* or adding levels or variables to it") as error:
            annotate(store, voxel_size_nm=SIZE)
        said.append(error)
        return write_ome_metadata(*arguments)

    monkeypatch.setattr(pyramid, "write_ome_metadata", attempt)
    ld.add_pyramid(store, progress=False)
    assert said
    assert f"liver_dask/{BEGUN}" not in files_of(store)


@IN_A_FOLDER
def test_somebodys_folder_in_the_place_of_the_journal(store: Path) -> None:
    """A folder with the journal's name is one sentence and stays, and the store is all right."""
    (store / "liver_dask" / BEGUN).mkdir()
    (store / "liver_dask" / BEGUN / "mine").write_text("kept")
    files = contents(store)
    with pytest.raises(ld.InvalidArgumentError, match=r"annotation\.json cannot be written"):
        annotate(store, voxel_size_nm=SIZE)
    assert contents(store) == files
    assert ld.verify(store, progress=False).ok


def test_a_level_is_no_store_of_its_own(store: Place) -> None:
    """The folder of a level is refused: its size follows from that of the store."""
    files = contents(store)
    with pytest.raises(ld.InvalidArgumentError, match="is a level of the pyramid"):
        annotate(store / "pyramid" / "s1", voxel_size_nm=SIZE)
    assert contents(store) == files


WRONG = "123", b"abc", {1.0, 2.0, 3.0}, (1e308,) * 3, (5e-324, 1, 1), (10**400, 1, 1), (1, 2), 5, (0, 1, 1), None


@in_both("wrong", WRONG, WRONG[:1])
def test_what_is_no_size(store: Place, wrong: Any) -> None:
    """Anything but three sizes of voxels is one sentence, and nothing changes."""
    files = contents(store)
    with pytest.raises(ld.InvalidArgumentError, match="voxel_size_nm="):
        annotate(store, voxel_size_nm=wrong)
    assert contents(store) == files


TORN = "", "{", "[" * 10_000, '{"voxel_size_nm": [1' + "0" * 500 + ", 1, 1]}", '{"voxel_size_nm": 3}'


@in_both("torn", TORN, [], TORN[1:2])
def test_a_journal_that_says_nothing_is_ignored(store: Place, unknown: Path, torn: str) -> None:
    """A file of a call that was killed before it changed anything is no obstacle."""
    put(store / "liver_dask" / BEGUN, torn)
    annotate(store, voxel_size_nm=SIZE)
    check(store, SIZE, unknown)
