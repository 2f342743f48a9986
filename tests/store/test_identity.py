"""What identifies a store: its archive, variables and voxels do, and the address of the archive does not."""

import io
import json
import logging
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
import xarray as xr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import liver_dask as ld
from helpers.kills import killed_at
from helpers.paths import DATA
from helpers.stores import assert_same_files
from helpers.tiny import LAYOUT, SHAPE, edit
from liver_dask.cli import main
from liver_dask.demo import ArchiveServer, make_archive, serve
from liver_dask.store import levels as store_levels
from liver_dask.store.identity import (
    ADDED,
    digest_of,
    identity_of,
    identity_of_variable,
    is_file_of,
    prediction_in,
    prediction_text,
)
from liver_dask.store.record import MANIFEST, open_record


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    make_archive(tmp_path / "archive", SHAPE)
    return tmp_path / "archive"


@pytest.fixture
def server(archive: Path) -> Iterator[ArchiveServer]:
    with serve(archive) as running:
        yield running


def opened(source: Any, **options: Any) -> xr.Dataset:
    return ld.open_human_liver_em(source, shape=SHAPE, labels=["er"], **options)


def keep(ds: xr.Dataset, path: Path) -> Path:
    return Path(ld.to_zarr(ds, path, progress=False, **LAYOUT))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lose(archive: Path, name: str, z: int) -> Path:
    path = archive / ld.EMPIAR_13356.path(name, z)
    return path.rename(path.with_suffix(".lost"))


def test_another_voxel_size_is_not_silently_ignored(archive: Path, tmp_path: Path) -> None:
    """A store, complete or not, is refused if the caller says another voxel size than it has; none accepts any,
    and so does the size of a description.
    """
    sized, unsized = (opened(archive, voxel_size_nm=size) for size in ((30, 8, 8), None))
    complete, unfinished, bare = (tmp_path / name for name in ("a.zarr", "b.zarr", "c.zarr"))
    keep(sized, complete)
    keep(unsized, bare)
    killed_at(150, lambda: keep(sized, unfinished))
    said = r"voxels of \(30.0, 8.0, 8.0\) nm .*this call says \(80.0, 8.0, 8.0\)"
    for path, files in ((complete, complete), (unfinished, tmp_path / "b.zarr.partial" / "store")):
        before = contents(files)
        assert before
        with pytest.raises(ld.StoreExistsError, match=said):
            keep(opened(archive, voxel_size_nm=(80, 8, 8)), path)
        assert contents(files) == before
        assert keep(unsized, path) == path
        assert keep(sized, path) == path
    with pytest.raises(ld.StoreExistsError, match="with no voxel size, and this call says"):
        keep(sized, bare)
    described = replace(ld.EMPIAR_13356, voxel_size_nm=(50, 8, 8))
    assert keep(ld.open_archive(described.of_shape(SHAPE), archive, labels=["er"]), complete) == complete


@pytest.mark.parametrize("size", [5, "x", [1, 2], [30, 8, float("nan")], [30, 0, 8]])
def test_a_voxel_size_that_is_none_is_refused_first(archive: Path, tmp_path: Path, size: object) -> None:
    """An attribute that is no voxel size is one sentence before anything is written; None is none."""
    with pytest.raises(ld.InvalidArgumentError, match="voxel_size_nm="):
        keep(opened(archive).assign_attrs(voxel_size_nm=size), tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir() if "a.zarr" in path.name] == []
    keep(opened(archive).assign_attrs(voxel_size_nm=None), tmp_path / "a.zarr")


def test_a_plan_refuses_what_the_call_would_refuse(archive: Path, tmp_path: Path) -> None:
    """`--dry-run` of an unfinished store refuses what the call would: another voxel size or box. It says the rest."""
    sized = opened(archive, voxel_size_nm=(30, 8, 8))
    lose(archive, "er", 2)
    with pytest.raises(ld.SliceNotFoundError):
        ld.to_zarr(sized, tmp_path / "a.zarr", progress=False)
    before = contents(tmp_path / "a.zarr.partial")
    asked = ["download", str(tmp_path / "a.zarr"), "--source", str(archive), "--shape", *map(str, SHAPE)]
    depth, height, width = SHAPE
    whole = ["--label", "er", "--bbox", "0", str(width), "0", str(height), "0", str(depth)]
    part = [*whole[:-1], str(depth - 1)]
    for more, said in (
        ([*whole, "--voxel-size", "80", "8", "8"], "this call says (80.0, 8.0, 8.0)"),
        (part, "is the unfinished store of another call"),
    ):
        for dry in (["--dry-run"], []):
            refused = CliRunner().invoke(main, [*asked, *more, *dry])
            assert refused.exit_code, refused.output
            assert said in " ".join(refused.output.split())
    left, in_all = (
        int(re.findall(r"to write +(\d+) regions", CliRunner().invoke(main, [*words, *whole, "--dry-run"]).output)[0])
        for words in (asked, ["download", str(tmp_path / "b.zarr"), *asked[2:]])
    )
    assert 0 < left < in_all
    assert contents(tmp_path / "a.zarr.partial") == before


def test_a_store_is_returned_wherever_its_archive_is_now(archive: Path, server: ArchiveServer, tmp_path: Path) -> None:
    """A complete store is returned as it is when its archive is at another address, and verify reports no change."""
    store = keep(opened(server.url), tmp_path / "a.zarr")
    before = contents(store)
    moved = archive.rename(tmp_path / "moved")
    assert keep(opened(moved), store) == store
    assert contents(store) == before
    report = ld.verify(store, opened(moved), full=True, progress=False)
    assert (report.ok, report.voxels, report.changed) == (True, 2 * int(np.prod(SHAPE)), []), report
    report = ld.verify(store, source=moved, full=True, progress=False)
    assert report.ok, report
    assert not report.changed, "dates and ETags of another server are no change"


@pytest.mark.parametrize("others", [("raw", 3), ("er", 3)])
def test_a_store_goes_on_at_another_address(
    archive: Path, server: ArchiveServer, tmp_path: Path, others: tuple[str, int]
) -> None:
    """An unfinished store is resumed from another address without a request to the first, and lists each file once."""
    whole = keep(opened(server.url), tmp_path / "whole.zarr")
    lost = lose(archive, *others)
    with pytest.raises(ld.SliceNotFoundError):
        keep(opened(server.url), tmp_path / "a.zarr")
    lost.rename(lost.with_suffix(Path(ld.EMPIAR_13356.path(*others)).suffix))
    begun = {path.name for path in (tmp_path / "a.zarr.partial").rglob("*.json")}
    assert begun
    requests = len(server.requests)
    store = keep(opened(archive), tmp_path / "a.zarr")
    assert len(server.requests) == requests, "the address of that time was asked"
    for name in ("raw", "er"):
        assert_same_files(whole / name / "c", store / name / "c")
        urls = [source["url"] for source in json.loads((store / name / MANIFEST).read_bytes())["sources"]]
        assert len(urls) == len({Path(url).name for url in urls}) == SHAPE[0], "each file once, wherever it was read"
    assert open_record(store)["variables"]["raw"]["voxels"]["source"] == server.url, "where it was begun"
    for source in (None, archive):
        report = ld.verify(store, source=source, full=True, progress=False)
        assert report.ok, report
        assert not report.changed


def test_it_goes_on_at_a_third_address_too(archive: Path, server: ArchiveServer, tmp_path: Path) -> None:
    """An unfinished store is resumed from a third address, and each file is listed once in its manifest."""
    lost = lose(archive, "raw", 3)
    for source in (server.url, archive):
        with pytest.raises(ld.SliceNotFoundError):
            keep(opened(source), tmp_path / "a.zarr")
    lost.rename(archive / ld.EMPIAR_13356.path("raw", 3))
    shutil.copytree(archive, tmp_path / "third")
    store = keep(opened(tmp_path / "third"), tmp_path / "a.zarr")
    for name in ("raw", "er"):
        assert len(json.loads((store / name / MANIFEST).read_bytes())["sources"]) == SHAPE[0]
    report = ld.verify(store, source=archive, full=True, progress=False)
    assert report.ok, report


@pytest.mark.parametrize("complete", [True, False])
def test_an_archive_of_the_same_name_and_other_files_is_refused(
    archive: Path, server: ArchiveServer, tmp_path: Path, complete: bool
) -> None:
    """An archive of the same name with other files is refused, and its own archive can still be used with the store."""
    other = tmp_path / "other"
    make_archive(other, SHAPE, seed=1)
    if complete:
        keep(opened(server.url), tmp_path / "a.zarr")
    else:
        lost = lose(archive, "raw", 3)
        with pytest.raises(ld.SliceNotFoundError):
            keep(opened(server.url), tmp_path / "a.zarr")
        lost.rename(archive / ld.EMPIAR_13356.path("raw", 3))
    before = contents(tmp_path)
    with pytest.raises(ld.StoreExistsError, match=r"a.zarr was made of files at another address, which are not these"):
        keep(opened(other), tmp_path / "a.zarr")
    after = contents(tmp_path)
    assert {path for path in before if path not in after} <= {"a.zarr.partial/progress/run"}
    assert all(after[path] == before[path] for path in before if path in after)
    keep(opened(archive), tmp_path / "a.zarr")
    assert ld.verify(tmp_path / "a.zarr", source=archive, full=True, progress=False).ok


def test_without_a_connection_a_complete_store_is_returned(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete store is returned with a warning if the server of the archive cannot be reached."""
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", lambda seconds: None)
    store = keep(opened(archive), tmp_path / "a.zarr")
    with caplog.at_level(logging.WARNING, "liver_dask"):
        assert keep(opened("http://127.0.0.1:9"), store) == store
    assert "is taken for a store of the same archive, which cannot be asked now" in caplog.text


def test_another_archive_variable_or_box_is_another_store(archive: Path, tmp_path: Path) -> None:
    """A store is refused for another archive, for its voxels in reverse order, and for another variable."""
    store = keep(opened(archive), tmp_path / "a.zarr")
    named = replace(ld.EMPIAR_13356, name="EMPIAR-2")
    depth, height, _ = SHAPE
    for ds, said in (
        (
            ld.open_archive(named, archive, shape=SHAPE, labels=["er"]),
            "It holds archive EMPIAR-13356; this call asks for archive EMPIAR-2.",
        ),
        (
            opened(archive).isel(z=slice(None, None, -1)),
            f"z 0-{depth}; this call asks for z {depth - 1} to 0 in steps of -1.",
        ),
        (opened(archive).isel(y=slice(1, None)), f"It holds y 0-{height}; this call asks for y 1-{height}."),
        (
            ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"]).rename(mito="er"),
            "It holds source of er er; this call asks for source of er mito.",
        ),
    ):
        with pytest.raises(ld.StoreExistsError, match="a store of another box, archive or layout") as told:
            keep(ds, store)
        assert said in str(told.value)


def test_two_archives_in_one_store_keep_their_files_apart(tmp_path: Path) -> None:
    """Two archives whose files have the same paths keep their voxels and lists of files apart in one store."""
    parts = []
    for number in (0, 1):
        make_archive(tmp_path / str(number), SHAPE, seed=number)
        archive = replace(ld.EMPIAR_13356, name=f"mine/{number}")
        parts.append(ld.open_archive(archive, tmp_path / str(number), shape=SHAPE, labels=[]))
    ds = parts[0].assign(other=parts[1].raw)
    store = keep(ds, tmp_path / "a.zarr")
    for number, name in enumerate(("raw", "other")):
        np.testing.assert_array_equal(xr.open_zarr(store)[name], parts[number].raw)
        sources = json.loads((store / name / MANIFEST).read_bytes())["sources"]
        assert {source["url"].split("/")[-3] for source in sources} == {str(number)}
        assert len(sources) == SHAPE[0]
    assert ld.verify(store, full=True, progress=False).ok


@given(st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=9), st.integers(0, 10**6))
def test_a_file_is_known_by_the_pattern_of_its_variable(root: str, z: int) -> None:
    """A URL belongs to a variable if it matches its whole file pattern or, in older stores, lies in its folder."""
    assert is_file_of(f"{root}/a_{{z:03d}}.tif", f"{root}/a_{z:03d}.tif")
    assert not is_file_of(f"{root}/a_{{z:03d}}.tif", f"{root}/a_b_{z:03d}.tif")
    assert not is_file_of(f"{root}/a_{{z:03d}}.tif", f"{root}/a_{z:03d}.tif.part")
    assert is_file_of(f"{root}/a/", f"{root}/a/{z}.tif"), "as older stores have it"
    assert not is_file_of(f"{root}/a/", f"{root}/ab/{z}.tif")


def test_the_identity_of_a_damaged_record_is_no_crash() -> None:
    """The identity of a damaged record is determined without an error, and differs from that of another record."""
    for record in ({}, {"variables": 3}, {"variables": {"raw": []}}, {"variables": {"raw": {"voxels": {"z": 1}}}}):
        assert identity_of(record) != identity_of({"shape": [1, 2, 3]} | {"variables": {"raw": {}}})


def test_the_identity_is_of_archive_variable_and_voxels_alone() -> None:
    """Addresses, files, the order of keys and variables that were added make no other store; all else does."""
    voxels = {"archive": "A", "source": "http://one", "variable": "raw", "shape": [9, 8, 8], "z": [0, 4, 1]}
    raw = {"dtype": "<u2", "files": ["http://one/a"], "description": {"kind": "image"}, "voxels": voxels}
    record = {"shape": [4, 8, 8], "chunks": [2, 4, 4], "shards": [4, 8, 8], "variables": {"raw": raw}}

    def variables(**changed: Any) -> dict[str, Any]:
        return record | {"variables": {"raw": raw | changed}}

    same = [
        dict(reversed(record.items())) | {"created": "today"},
        variables(files=[]),
        variables(voxels=dict(reversed(voxels.items())) | {"source": "s3://two"}),
        record | {"variables": {"raw": raw, "er": raw | {ADDED: "today"}}},
    ]
    assert {digest_of(of) for of in same} == {digest_of(record)}
    others = [
        *(record | {key: [8, 8, 8]} for key in ("shape", "chunks", "shards")),
        record | {"variables": {"raw": raw, "er": raw}},
        record | {"variables": {"er": raw}},
        variables(dtype="<u4"),
        variables(description={"kind": "instances"}),
        *(variables(voxels=voxels | {key: "B"}) for key in ("archive", "variable", "shape", "z")),
        variables(voxels="computed x"),
    ]
    assert len({digest_of(of) for of in [record, *others]}) == 1 + len(others)
    for name, kind in (("raw", "image"), ("mito", "mask")):
        old = identity_of_variable({"dtype": "|u1", "voxels": {"source": "s", "variable": name}})
        assert old["voxels"] == {"archive": ld.EMPIAR_13356.name, "kind": kind, "variable": name}
    described = identity_of_variable({"voxels": {"variable": "raw"}, "description": {}})
    assert described["voxels"]["kind"] == "mask", "what is described is what its description says"


def test_what_a_record_says_of_a_prediction() -> None:
    """The text that identifies a prediction is read; any other is none, and a damaged one no crash."""
    told = prediction_in('prediction {"model": "m", "threshold": 0.5} z 0-4')
    assert told == {"model": "m", "threshold": 0.5, "box": "z 0-4"}
    assert prediction_text(told | {"raw": {}}) == "prediction by m of voxels of a store (block , halo , threshold 0.5)"
    assert "threshold" not in prediction_text({"raw": "x"})
    for other in (
        'computed x {"model": "m"}',
        "prediction {",
        "prediction ",
        "prediction " + "[" * 100_000,
        3,
        None,
        {},
    ):
        assert prediction_in(other) is None
    assert is_file_of("http://one/a", "http://one/a/3.tif"), "a pattern without a number is where the names begin"


SHAPE_4 = (4, 64, 96)
LAYOUT_4 = {"chunks": (2, 32, 32), "shards": (4, 64, 64)}


@pytest.fixture
def archive_4() -> Iterator[xr.Dataset]:
    """The archive from which the stores of format 4 were made, at the same address."""
    memory, root = fsspec.filesystem("memory"), "archive-of-format-4"
    z, y, x = np.indices(SHAPE_4)
    raw = ((z * 1009 + y * 37 + x * 11) % 60000 + 1) * (x >= 32)
    mito = (((y // 8 + x // 8 + z) % 3 == 0) & (x >= 32)) * 255
    lzw = {"format": "TIFF", "compression": "tiff_lzw", "tiffinfo": {317: 2, 278: 1}}
    for name, whole in {"raw": raw.astype("uint16"), "mito": mito.astype("uint8")}.items():
        for number, pixels in enumerate(whole):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, **(lzw if name == "raw" else {"format": "PNG"}))
            path = f"/{root}/{ld.EMPIAR_13356.path(name, number)}"
            memory.pipe_file(path, file.getvalue())
            memory.store[path].created = datetime(2026, 1, 1, tzinfo=UTC)
    yield ld.open_human_liver_em(f"memory://{root}", shape=SHAPE_4, labels=["mito"])
    memory.rm(f"/{root}", recursive=True)


@pytest.fixture
def stores_4(tmp_path: Path) -> Path:
    """Stores of format 4, which has no archive names: `complete`, `pyramid`, `bytes` (raw // 256) and `unfinished`."""
    with tarfile.open(DATA / "format4.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def test_stores_that_name_no_archive_are_of_the_first_one(
    stores_4: Path, archive_4: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores of an earlier version, which name no archive, are returned and verified as stores of EMPIAR-13356. The
    pyramid of such a store is left as it is.
    """
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 50)
    before = contents(stores_4)
    for name in ("complete", "pyramid"):
        store = stores_4 / f"{name}.zarr"
        assert ld.to_zarr(archive_4, store, progress=False, **LAYOUT_4) == str(store)
        report = ld.verify(store, full=True, progress=False)
        assert report.ok, report
        assert report.voxels >= 2 * np.prod(SHAPE_4)
    assert len(ld.add_pyramid(stores_4 / "pyramid.zarr", progress=False)) == 2
    report = ld.verify(stores_4 / "bytes.zarr", full=True, progress=False)
    assert report.ok, f"of bytes no mean was recorded: {report}"
    assert contents(stores_4 / "pyramid.zarr") == {
        path.removeprefix("pyramid.zarr/"): data for path, data in before.items() if path.startswith("pyramid.zarr/")
    }


def test_an_unfinished_store_of_an_earlier_version_is_finished(stores_4: Path, archive_4: xr.Dataset) -> None:
    """An unfinished store of an earlier version is resumed, and gets the shards and manifests of a complete one."""
    store = stores_4 / "unfinished.zarr"
    slabs = {path.name for path in (stores_4 / "unfinished.zarr.partial" / "progress" / "slabs").rglob("*")}
    assert slabs, "else there is nothing to go on with"
    ld.to_zarr(archive_4, store, progress=False, **LAYOUT_4)
    for name in ("raw", "mito"):
        assert_same_files(stores_4 / "complete.zarr" / name / "c", store / name / "c")
        one, other = (json.loads((path / name / MANIFEST).read_bytes()) for path in (stores_4 / "complete.zarr", store))
        assert one == other
    report = ld.verify(store, full=True, progress=False)
    assert report.ok, report


def test_a_record_may_not_lead_out_of_the_archive(archive: Path, tmp_path: Path) -> None:
    """A file pattern in a record that leads out of the archive, or has an absurd width, is an error."""
    described = replace(ld.EMPIAR_13356, name="mine")
    store = keep(ld.open_archive(described, archive, shape=SHAPE, labels=[]), tmp_path / "a.zarr")
    for files in ("../../secret_{z}.tif", "/etc/{z}.tif", "file:///etc/{z}.tif", "{z:9999999999d}.tif"):

        def change(document: Any, files: str = files) -> None:
            document["attributes"]["variables"]["raw"]["description"]["files"] = files

        edit(store / "liver_dask" / "zarr.json", change)
        with pytest.raises(ld.DamagedError, match="files"):
            ld.verify(store, progress=False)


def plain_archive(folder: Path, seed: int, where: str = "raw") -> ld.Archive:
    """Write uncompressed slices and return their archive. The files of any two such archives have the same size."""
    voxels = np.random.default_rng(seed).integers(1, 2**16, SHAPE, "uint16")
    (folder / where).mkdir(parents=True, exist_ok=True)
    for z, pixels in enumerate(voxels):
        tifffile.imwrite(folder / where / f"{z}.tif", pixels)
    raw = ld.Variable(name="raw", files=f"{where}/{{z}}.tif", kind="image", dtype="uint16")
    return ld.Archive(name="mine", url=str(folder), shape=SHAPE, variables=(raw,))


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("how", ["address", "files", "first"])
def test_other_voxels_of_files_of_the_same_size_are_refused(tmp_path: Path, complete: bool, how: str) -> None:
    """Other voxels in files of the same size are refused, and the store can still be used with its own archive."""
    archive = plain_archive(tmp_path / "a", 0)
    if complete:
        keep(ld.open_archive(archive), tmp_path / "a.zarr")
    else:
        lost = (tmp_path / "a" / "raw" / "3.tif").rename(tmp_path / "lost")
        with pytest.raises(ld.SliceNotFoundError):
            keep(ld.open_archive(archive), tmp_path / "a.zarr")
        assert list((tmp_path / "a.zarr.partial" / "progress").rglob("sources/*.json"))
        lost.rename(tmp_path / "a" / "raw" / "3.tif")
    if how == "address":
        other = plain_archive(tmp_path / "b", 1)
    elif how == "files":
        other = plain_archive(tmp_path / "a", 1, "other")
    else:
        shutil.copy(tmp_path / "a" / "raw" / "0.tif", tmp_path / "a" / "raw" / "4.tif")
        other = replace(archive, variables=(replace(archive["raw"], first=1),))
    before = contents(tmp_path)
    with pytest.raises(ld.StoreExistsError, match="from another archive of the same name, or one that was"):
        keep(ld.open_archive(other), tmp_path / "a.zarr")
    after = contents(tmp_path)
    assert {path for path in before if path not in after} <= {"a.zarr.partial/progress/run"}
    keep(ld.open_archive(archive), tmp_path / "a.zarr")
    assert ld.verify(tmp_path / "a.zarr", full=True, progress=False).ok


def test_files_that_were_renamed_are_the_same_archive(tmp_path: Path) -> None:
    """A store is resumed, and returned when complete, after the folder of the archive's files was renamed."""
    archive = plain_archive(tmp_path / "a", 0)
    lost = (tmp_path / "a" / "raw" / "3.tif").rename(tmp_path / "lost")
    with pytest.raises(ld.SliceNotFoundError):
        keep(ld.open_archive(archive), tmp_path / "a.zarr")
    lost.rename(tmp_path / "a" / "raw" / "3.tif")
    (tmp_path / "a" / "raw").rename(tmp_path / "a" / "em")
    renamed = replace(archive, variables=(replace(archive["raw"], files="em/{z}.tif"),))
    store = keep(ld.open_archive(renamed), tmp_path / "a.zarr")
    np.testing.assert_array_equal(xr.open_zarr(store).raw, ld.open_archive(renamed).raw)
    assert len(json.loads((store / "raw" / MANIFEST).read_bytes())["sources"]) == SHAPE[0]
    assert keep(ld.open_archive(renamed), store) == store


def test_instances_are_no_image(tmp_path: Path) -> None:
    """A store with a variable of the kind `image` is refused for the same variable of the kind `instances`."""
    archive = plain_archive(tmp_path / "a", 0)
    other = ld.Variable(name="other", files="raw/{z}.tif", kind="image", dtype="uint16")
    image, instances = (
        replace(archive, variables=(archive["raw"], replace(other, kind=kind))) for kind in ("image", "instances")
    )
    store = keep(ld.open_archive(image), tmp_path / "a.zarr")
    with pytest.raises(ld.StoreExistsError, match="another box, archive or layout"):
        keep(ld.open_archive(instances), store)


def test_the_name_of_a_built_in_archive_is_its_own(tmp_path: Path) -> None:
    """A user's archive with the name of a built-in archive is refused."""
    mine = replace(plain_archive(tmp_path, 0), name="EMPIAR-13356")
    with pytest.raises(ld.InvalidArgumentError, match="EMPIAR-13356 is the name of another archive"):
        ld.open_archive(mine)


@pytest.mark.parametrize(
    "change", [lambda record: record["variables"]["raw"].pop("files"), lambda record: record.pop("shape")]
)
def test_an_unfinished_store_with_a_damaged_record_is_refused(archive: Path, tmp_path: Path, change: Any) -> None:
    """An unfinished store whose record lacks an entry is refused as damaged."""
    lost = lose(archive, "raw", 3)
    with pytest.raises(ld.SliceNotFoundError):
        keep(opened(archive), tmp_path / "a.zarr")
    lost.rename(archive / ld.EMPIAR_13356.path("raw", 3))
    edit(
        tmp_path / "a.zarr.partial" / "store" / "liver_dask" / "zarr.json", lambda of: change(of["attributes"]) and None
    )
    with pytest.raises(ld.StoreExistsError, match="an unfinished store whose record is damaged"):
        keep(opened(archive), tmp_path / "a.zarr")
