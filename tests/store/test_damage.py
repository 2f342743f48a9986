"""Damage of a store outside its shards (`test_verify` has that of shards), and changes that are no damage."""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr

import liver_dask as ld
from helpers import tiny
from helpers.places import (
    IN_A_FOLDER,
    REAL_IN_S3,
    consolidate,
    contents,
    copied,
    files_of,
    flip,
    in_both,
    put,
    read,
    remove,
    writable,
)
from helpers.stores import read_by_tensorstore
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.places import Place
from liver_dask.demo import make_archive, serve
from liver_dask.store import levels as store_levels
from liver_dask.store.array import StoredArray
from liver_dask.store.record import open_record, read_checksums, read_statistics
from liver_dask.store.shards import STATISTICS
from liver_dask.store.zarr_store import zarr_store

NO_VOXELS = xr.Dataset()
"""A source without variables: `verify` compares no voxel with it, so that only the files of the store are checked."""


@pytest.fixture
def store(made: Path, place: Place) -> Place:
    """A copy of the store, in a folder and in object storage, which the test may change."""
    return copied(made, place / "a.zarr")


@pytest.fixture(scope="module")
def made_with_levels(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = shutil.copytree(made, tmp_path_factory.mktemp("levels") / "a.zarr")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", 20)
        ld.add_pyramid(store, progress=False)
    return store


@pytest.fixture
def with_levels(made_with_levels: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 20)
    return copied(made_with_levels, place / "levels.zarr")


def set_in(*keys: Any, value: Any) -> Callable[[Any], None]:
    """Return a function that sets a value deep in a document."""

    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def of_array(*keys: Any, value: Any) -> dict[str, Callable[[Place], None]]:
    """Return the same change of an array's own metadata and of the consolidated copy, which xarray reads."""
    named = f"{'.'.join(map(str, keys))} {value!r}"
    copy = "consolidated_metadata", "metadata", "raw"
    return {
        f"own {named}": lambda store: tiny.edit(store / "raw" / "zarr.json", set_in(*keys, value=value)),
        f"copy {named}": lambda store: tiny.edit(store / "zarr.json", set_in(*copy, *keys, value=value)),
    }


def shift(path: str, by: int) -> Callable[[Place], None]:
    """Return a function that adds `by` to an array of integers, and writes it as any Zarr program does."""

    def change(store: Place) -> None:
        array = zarr.open_array(writable(store / path), mode="r+")
        array[:] = array[:] + by

    return change


def removal(path: str) -> Callable[[Place], None]:
    return lambda store: remove(store / path)


def copy_shard(store: Place) -> None:
    put(store / "raw" / "c" / "9" / "0" / "0", read(store / "raw" / "c" / "0" / "0" / "0"))


def double_shard_key(store: Place) -> None:
    path = store / "raw" / "manifest.json"
    put(path, read(path).replace(b'"0/0/1"', b'"0/0/0"'))


DAMAGE: dict[str, Callable[[Place], None]] = {
    **of_array("shape", value=[4, 40, 49]),
    **of_array("data_type", value="int16"),
    **of_array("fill_value", value=7),
    **of_array("dimension_names", value=["z", "x", "y"]),
    **of_array("chunk_grid", "configuration", "chunk_shape", value=[4, 32, 16]),
    **of_array("codecs", 0, "configuration", "chunk_shape", value=[4, 16, 8]),
    **of_array("codecs", 0, "configuration", "codecs", 0, "configuration", "endian", value="big"),
    **of_array("codecs", 0, "configuration", "codecs", 1, "configuration", "typesize", value=4),
    **of_array("chunk_key_encoding", "configuration", "separator", value="."),
    **of_array("attributes", "scale_factor", value=2.0),
    **of_array("attributes", "add_offset", value=1),
    **of_array("attributes", "_FillValue", value=0),
    **of_array("attributes", "missing_value", value=0),
    **of_array("attributes", "_Unsigned", value="false"),
    **of_array("attributes", "units", value="days since 2000-01-01"),
    **of_array("attributes", "long_name", value="light microscopy"),
    "a copy gone": lambda store: tiny.edit(
        store / "zarr.json", lambda document: document["consolidated_metadata"]["metadata"].pop("raw") and None
    ),
    "a coordinate shifted": shift("x", 1),
    "a coordinate gone": removal("y"),
    "a coordinate's chunk gone": removal("z/c/0"),
    "a coordinate of another dtype": lambda store: tiny.edit(
        store / "x" / "zarr.json", set_in("data_type", value="int32")
    ),
    "a coordinate scaled": lambda store: tiny.edit(
        store / "x" / "zarr.json", set_in("attributes", "scale_factor", value=3)
    ),
    "a coordinate's copy scaled": lambda store: tiny.edit(
        store / "zarr.json",
        set_in("consolidated_metadata", "metadata", "x", "attributes", "scale_factor", value=3),
    ),
    "a table shifted": shift("liver_dask/raw/nonzero", 1),
    "a table's chunk gone": removal("liver_dask/raw/mean/c/0/0/0"),
    "a table gone": removal("liver_dask/raw/std"),
    "a table of another dtype": lambda store: tiny.edit(
        store / "liver_dask" / "raw" / "mean" / "zarr.json", set_in("data_type", value="uint32")
    ),
    "an attribute of the root": lambda store: tiny.edit(
        store / "zarr.json", set_in("attributes", "title", value="Mouse liver")
    ),
    "no attribute of the root": lambda store: tiny.edit(
        store / "zarr.json", lambda document: document["attributes"].pop("license") and None
    ),
    "a shard key missing": lambda store: tiny.edit(
        store / "raw" / "manifest.json", lambda document: document["shards"].pop("0/1/0") and None
    ),
    "a shard key unknown": lambda store: tiny.edit(
        store / "raw" / "manifest.json", set_in("shards", "0/7/0", value=[5, 5])
    ),
    "a shard key doubled": double_shard_key,
    "a source's ETag": lambda store: tiny.edit(
        store / "raw" / "manifest.json", set_in("sources", 0, "tag", value="another")
    ),
    "an unknown shard": copy_shard,
    "a file among the shards": lambda store: put(store / "er" / "c" / "0" / "notes.txt", "mine"),
    "the inventory gone": removal("liver_dask/inventory.json"),
    "the inventory changed": lambda store: tiny.edit(
        store / "liver_dask" / "inventory.json", set_in("attributes", "title", value="Mouse liver")
    ),
    "the inventory forgotten": lambda store: tiny.edit_record(store, lambda record: record.pop("inventory") and None),
    "the record changed": lambda store: tiny.edit_record(
        store, lambda record: record["variables"]["raw"].__setitem__("files", ["elsewhere"])
    ),
    "the record's group of another format": lambda store: tiny.edit(
        store / "liver_dask" / "zarr.json", set_in("zarr_format", value=1)
    ),
    "a table's group of another format": lambda store: tiny.edit(
        store / "liver_dask" / "raw" / "zarr.json", set_in("zarr_format", value=1)
    ),
    "the copy of the record changed": lambda store: tiny.edit(
        store / "zarr.json",
        set_in("consolidated_metadata", "metadata", "liver_dask", "attributes", "chunks", value=[2, 16, 8]),
    ),
}


IN_S3 = ("own shape [4, 40, 49]", "a coordinate gone", "a table's chunk gone", "an unknown shard", "the inventory gone")
"""One damage of each kind of file, for object storage: what is made of a document does not depend on where it lies, and
each file costs a request.
"""


@in_both("what", DAMAGE, IN_S3)
def test_damage_is_found(store: Place, what: str) -> None:
    """`verify` reports each of these changes as damage, without comparing voxels."""
    DAMAGE[what](store)
    with warnings.catch_warnings(action="ignore"):
        assert not ld.verify(store, NO_VOXELS, progress=False).ok


NOT_RECORDED = {
    "own attributes.long_name 'light microscopy'", "copy attributes.long_name 'light microscopy'",
    "own codecs.0.configuration.codecs.1.configuration.typesize 4", "a coordinate shifted", "a coordinate gone",
    "a coordinate's chunk gone", "a coordinate of another dtype", "an attribute of the root",
    "no attribute of the root", "a source's ETag", "the inventory gone", "the inventory changed",
    "the inventory forgotten", "the record changed",
}  # fmt: skip
"""Damage that is not found in a store of an earlier version, because it recorded too little."""


@in_both("what", sorted(DAMAGE.keys() - NOT_RECORDED), [], ["a table's chunk gone"])
def test_in_a_store_that_recorded_less_most_is_found(store: Place, what: str) -> None:
    """`verify` accepts a store of an earlier version, says what that did not record, and reports all other damage."""
    tiny.forget_what_was_recorded(store)
    report = ld.verify(store, progress=False)
    assert report.ok, report
    assert "did not record its coordinates" in str(report)
    DAMAGE[what](store)
    assert not ld.verify(store, NO_VOXELS, full=True, progress=False).ok


def added_by_xarray(store: Place, ds: xr.Dataset) -> None:
    ds.to_zarr(writable(store), mode="a")


ADDED: dict[str, Callable[[Place], Any]] = {
    "attributes": lambda store: [
        zarr.open_group(writable(store / path), mode="r+", use_consolidated=False).attrs.update({"mine": 1})
        for path in ("", "liver_dask/raw")
    ],
    "attributes of arrays": lambda store: [
        zarr.open_array(writable(store / path), mode="r+").attrs.update({"units": "nm", "mine": [1, 2]})
        for path in ("raw", "x")
    ],
    "attributes through xarray": lambda store: added_by_xarray(store, xr.Dataset(attrs={"mine": 1})),
    "an array through xarray": lambda store: added_by_xarray(store, xr.Dataset({"mine": ("x", np.arange(50))})),
    "an array on the grid of the store": lambda store: added_by_xarray(
        store, xr.open_zarr(zarr_store(store)).assign(mine=lambda ds: ds.raw[0] * 2)[["mine"]]
    ),
    "an array, not consolidated": lambda store: zarr.create_array(writable(store / "mine"), shape=(3,), dtype="u1"),
    "a group": lambda store: zarr.open_group(writable(store / "labels" / "mine"), mode="w", attributes={"ome": {}}),
    "consolidated anew": consolidate,
    "a hidden file": lambda store: put(store / "raw" / "c" / ".DS_Store", b"x"),
    "written anew with other blanks": lambda store: [
        put(store / name, json.dumps(json.loads(read(store / name)), indent=7))
        for name in files_of(store)
        if name.endswith("zarr.json")
    ],
}  # fmt: skip


@in_both("what", ADDED, [], ["an array through xarray"])
def test_what_was_added_is_no_damage(store: Place, what: str) -> None:
    """`verify` accepts added attributes, arrays, groups and hidden files, and notes attributes that were replaced."""
    with warnings.catch_warnings(action="ignore"):
        for of in (what, "consolidated anew"):
            ADDED[of](store)
            report = ld.verify(store, progress=False)
            assert report.ok, report
    replaced = "through xarray" in what  # it removes the attributes that were there
    assert replaced == ("attributes of" in " ".join(report.notes))


@REAL_IN_S3
def test_a_pyramid_and_what_is_added_to_it_is_no_damage(with_levels: Place) -> None:
    """`verify` accepts a store with a pyramid, also if it was consolidated again and a channel got another colour."""
    assert len(store_levels.levels_of(with_levels)) == 3
    for _ in range(2):
        report = ld.verify(with_levels, progress=False)
        assert report.ok, report
        with warnings.catch_warnings(action="ignore"):
            consolidate(with_levels)
        tiny.edit(
            with_levels / "zarr.json", set_in("attributes", "ome", "omero", "channels", 0, "color", value="00FF00")
        )


@IN_A_FOLDER
def test_a_pyramid_that_is_not_finished_is_no_damage(with_levels: Place) -> None:
    """`verify` accepts a store whose pyramid is not finished, and notes that."""
    tiny.edit(
        with_levels / "zarr.json", lambda root: [root["attributes"].pop(key) for key in ("ome", "labels")] and None
    )
    remove(with_levels / "pyramid" / "s2")
    with warnings.catch_warnings(action="ignore"):
        consolidate(with_levels)
        consolidate(with_levels / "pyramid")
    report = ld.verify(with_levels, progress=False)
    assert report.ok, report
    assert any("is not finished" in note for note in report.notes)


@IN_A_FOLDER
def test_a_level_is_looked_at_even_if_the_one_below_is_damaged(with_levels: Place) -> None:
    """`verify` reports a damaged shard of a pyramid level even if the metadata of the array below are damaged."""
    put(with_levels / "raw" / "zarr.json", "{")
    shard = with_levels / "pyramid" / "s1" / "er" / "c" / "0" / "0" / "0"
    put(shard, read(shard)[:-1])
    problems = " ".join(ld.verify(with_levels, progress=False).problems)
    assert "pyramid/s1/shard 0/0/0 of er is not what was written" in problems


OF_S1 = "attributes", "ome", "multiscales", 0, "datasets", 1


OF_THE_ROOT = (
    set_in(*OF_S1, "path", value="pyramid/s2/raw"),
    set_in(*OF_S1, "coordinateTransformations", 0, "scale", value=[1, 1, 1]),
    set_in("attributes", "ome", value={}),
    lambda document: document["attributes"].pop("ome") and None,
    set_in("attributes", "title", value="Mouse liver"),
    set_in("consolidated_metadata", "metadata", "pyramid/s1/raw", "attributes", "scale_factor", value=2),
    set_in("consolidated_metadata", "metadata", "pyramid/s2/x", "shape", value=[12]),
    set_in("consolidated_metadata", "metadata", "er", "data_type", value="int8"),
)
"""Changes of the metadata of the root, which the pyramid has rewritten."""


@in_both("change", OF_THE_ROOT, [], OF_THE_ROOT[:1])
def test_a_damaged_root_of_a_pyramid_is_found(with_levels: Place, change: Callable[[Any], None]) -> None:
    """`verify` reports changes of the root's metadata, which the pyramid has rewritten."""
    tiny.edit(with_levels / "zarr.json", change)
    assert not ld.verify(with_levels, NO_VOXELS, progress=False).ok


@IN_A_FOLDER
def test_damage_in_the_metadata_of_a_level_is_found(with_levels: Place) -> None:
    """`verify` reports changes of the metadata of pyramid levels, and of their consolidated copies."""
    for path, change in (
        ("pyramid/s1/x/zarr.json", set_in("attributes", "scale_factor", value=2)),
        ("pyramid/zarr.json", set_in("consolidated_metadata", "metadata", "s1/raw", "data_type", value="int16")),
        ("pyramid/s2/zarr.json", set_in("consolidated_metadata", "metadata", "raw", "data_type", value="int16")),
    ):
        whole = read(with_levels / path)
        tiny.edit(with_levels / path, change)
        assert not ld.verify(with_levels, NO_VOXELS, progress=False).ok, path
        put(with_levels / path, whole)


@in_both("statistic", ["nonzero", "mean", "std"], [], ["mean"])
def test_tables_are_compared_with_the_chunks_that_are_decoded(store: Place, statistic: str) -> None:
    """A full `verify` reports a table entry that differs from the decoded chunk, also without a checksum of it."""
    tiny.forget_what_was_recorded(store)
    array = zarr.open_array(writable(store / "liver_dask" / "raw" / statistic), mode="r+")
    value = array[1, 2, 1]
    array[1, 2, 1] = value + max(1, int(value) // 100)
    report = ld.verify(store, full=True, progress=False)
    (problem,) = report.problems
    assert "shard 0/1/0 of raw: chunk 1/0/1 of it has" in problem
    array[1, 2, 1] = value
    assert ld.verify(store, full=True, progress=False).ok


@IN_A_FOLDER
def test_tables_of_empty_chunks_are_compared(archive: Path, place: Place) -> None:
    """`verify` reports a table entry that is not 0 for an empty chunk."""
    ds = ld.open_human_liver_em(archive, shape=(10, 300, 420)).assign(nothing=lambda ds: ds.mito * 0)[["nothing"]]
    path = place / "a.zarr"
    ld.to_zarr(ds, path, bounding_box=(0, 40, 0, 40, 0, 4), progress=False, **tiny.LAYOUT)
    assert ld.verify(path, ds.isel(x=slice(40), y=slice(40), z=slice(4)), full=True, progress=False).ok
    tiny.forget_what_was_recorded(path)
    zarr.open_array(writable(path / "liver_dask" / "nothing" / "nonzero"), mode="r+")[0, 0, 1] = 3
    report = ld.verify(path, progress=False)
    assert any("chunk 0/0/1 of it is empty" in problem for problem in report.problems), report


@in_both("full", [False, True], [], [False])
def test_a_source_that_changed_is_reported_as_such(tmp_path: Path, place: Place, full: bool) -> None:
    """`verify` lists changed files of the source; only voxels that differ from the source's are a problem."""
    archive = tmp_path / "archive"
    archive.mkdir()
    make_archive(archive, tiny.SHAPE)
    with serve(archive) as server:
        path = tiny.make_tiny_store(place, server.url)
        report = ld.verify(path, full=full, progress=False)
        assert (report.ok, report.changed) == (True, [])
        for name in ("raw", "er"):  # another version of the file, with the same pixels
            file = archive / EMPIAR_13356.path(name, 0)
            os.utime(file, (1, 1))
        report = ld.verify(path, full=full, progress=False)
        assert report.ok
        assert len(report.changed) == 2
        assert "The source has changed since" in str(report)
        assert EMPIAR_13356.path("er", 0) in report.changed[0]
        file = archive / EMPIAR_13356.path("raw", 3)
        voxels = tifffile.imread(file)
        voxels[0, :5] += 1
        tifffile.imwrite(file, voxels, rowsperstrip=1)
        ld.open_human_liver_em(server.url, shape=tiny.SHAPE)
        report = ld.verify(path, full=full, progress=False)
        (problem,) = report.problems
        assert "raw[3, 0:" in problem
        assert "has 5 voxels that are not the source's; the first is raw[3, 0, 0]" in problem
        assert f"the source has changed since: {server.url}" in problem
        assert len(report.changed) == 3


def test_all_files_are_asked_for_their_version_only_if_all_are_compared(tmp_path: Path) -> None:
    """A full `verify` asks for the version of every file of the source; one of some rows asks for few of them."""
    shape = (40, 20, 20)
    (tmp_path / "archive").mkdir()
    make_archive(tmp_path / "archive", shape)
    with serve(tmp_path / "archive") as server:
        ds = ld.open_human_liver_em(server.url, shape=shape, labels=["er"])
        path = ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, chunks=(2, 16, 16), shards=(40, 32, 32))
        for full, most in ((False, 10), (True, 80)):
            server.requests.clear()
            assert ld.verify(path, full=full, progress=False).ok
            asked = {request.path for request in server.requests if (request.start, request.stop) == (0, 1)}
            assert len(asked) <= most
            assert len(asked) == 80 or not full


def test_all_that_is_no_shard_is_on_the_disk_before_the_store_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files and folders of a store are synced to the disk before the store gets its name."""
    synced: set[int] = set()
    fsync, replace = os.fsync, Path.replace
    at_the_end: list[set[int]] = []

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def named(path: Path, target: Path) -> Path:
        if path.name == "store" and target.name == "a.zarr":
            at_the_end.append(set(synced))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "replace", named)
    store = tiny.make_tiny_store(tmp_path)
    files = {path.relative_to(store): path.stat().st_ino for path in store.rglob("*")}
    assert [str(path) for path, number in files.items() if number not in at_the_end[0]] == []
    assert Path("x/c/0") in files


class Readings:
    """What each reader returns for a store."""

    def __init__(self, store: Place) -> None:
        opened = zarr_store(store)
        self.of_reader = {
            "xarray": xr.open_zarr(opened).load(),
            "xarray, not consolidated": xr.open_zarr(opened, consolidated=False).load(),
            "record": open_record(store),
        }
        group = zarr.open_group(opened, mode="r")
        for name in self.of_reader["record"]["variables"]:
            self.of_reader |= {
                f"{name} by zarr": xr.DataArray(group[name][:], attrs=group[name].attrs.asdict()),
                f"{name} by tensorstore": xr.DataArray(read_by_tensorstore(store / name)),
                f"{name} by the window": xr.DataArray(StoredArray(store, name)[:, :, :]),
                f"{name} of shards": read_checksums(store, name),
                f"{name} of sources": json.loads(read(store / name / "manifest.json")),
            }
            for statistic in STATISTICS.names or ():
                self.of_reader[f"{statistic} of {name}"] = xr.DataArray(read_statistics(store, name, statistic))

    def check_same(self, other: "Readings") -> None:
        for reader, found in self.of_reader.items():
            expected = other.of_reader[reader]
            if isinstance(found, dict):
                assert found == expected, reader
            else:
                xr.testing.assert_identical(found, expected)
                assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)


def what_becomes_of(store: Place, name: str, at: int, mask: int, expected: Readings) -> str:
    """Flip bits of a byte; return "found" if `verify` reports it, else "harmless" if all readers return the same."""
    flip(store / name, at, mask)
    try:
        try:
            report = ld.verify(store, NO_VOXELS, progress=False)
        except ld.LiverDaskError:
            return "found"
        if not report.ok:
            return "found"
        try:
            Readings(store).check_same(expected)
        except Exception as error:
            raise AssertionError(f"{name}, byte {at} ^ {mask}: not found, and not harmless") from error
        return "harmless"
    finally:
        flip(store / name, at, mask)


def small_files(store: Place) -> dict[str, int]:
    """Return the sizes of all files but shards."""
    found = {name: content for name, content in contents(store).items() if not name.startswith(("raw/c/", "er/c/"))}
    return {name: len(content) for name, content in found.items()}


@pytest.mark.slow
@in_both("flips, every", [(4, 1)], [(1, 5)])
def test_a_flipped_byte_of_any_small_file_is_found_or_harmless(store: Place, flips: int, every: int) -> None:
    """Flipped bits in each small file are each reported by `verify`, or no reader returns anything else."""
    expected = Readings(store)
    rng = random.Random(0)
    files = small_files(store)
    assert {"inventory.json", "manifest.json", "zarr.json", "0"} == {name.rpartition("/")[2] for name in files}
    for name, size in [*files.items()][::every]:
        for _ in range(flips):
            what_becomes_of(store, name, rng.randrange(size), 1 << rng.randrange(8), expected)
    assert ld.verify(store, progress=False).ok


@pytest.mark.real
@pytest.mark.timeout(0)
def test_every_byte_of_every_small_file(tmp_path: Path) -> None:
    """The same holds for every byte of every small file, each with one flipped bit; this takes an hour."""
    archive = tmp_path / "archive"
    archive.mkdir()
    make_archive(archive, tiny.SHAPE)
    ds = ld.open_human_liver_em(archive, shape=tiny.SHAPE, labels=[])
    store = Path(
        ld.to_zarr(ds, Path(os.environ.get("FLIP_FOLDER", tmp_path)) / "a.zarr", progress=False, **tiny.LAYOUT)
    )
    expected = Readings(store)
    rng = random.Random(1)
    became: dict[str, int] = {"found": 0, "harmless": 0}
    for name, size in small_files(store).items():
        for at in range(size):
            became[what_becomes_of(store, name, at, 1 << rng.randrange(8), expected)] += 1
        print(name, size, became, flush=True)


@REAL_IN_S3
def test_a_label_that_is_no_copy_of_its_mask_is_reported(tmp_path: Path, place: Place) -> None:
    """`verify` notes a label that differs from its mask after a copy without hard links, and accepts the store."""
    store = tiny.make_tiny_store(tmp_path)
    ld.add_pyramid(store, progress=False)
    assert ld.verify(store, progress=False).notes == []
    moved = copied(store, place / "moved.zarr")
    assert ld.verify(moved, progress=False).notes == []
    chunks = moved / "labels" / "er" / "0" / "c"
    flip(chunks / files_of(chunks)[0], 20)
    report = ld.verify(moved, progress=False)
    assert report.ok
    assert [note for note in report.notes if "labels/er is not what this package makes of er" in note]
