"""Stores of other formats and of other programs are read where possible, else named in an error, and never damaged."""

import io
import json
import logging
import shutil
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner, Result
from PIL import Image

import liver_dask as ld
from helpers.archive import SHAPE as ARCHIVE_SHAPE
from helpers.archive import write_raw
from helpers.paths import DATA
from helpers.places import contents
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.cli import main
from liver_dask.demo import ArchiveServer, serve
from liver_dask.store import downsampling
from liver_dask.store import levels as store_levels
from liver_dask.store.array import StoredArray
from liver_dask.store.record import FORMAT, open_record, read_statistics, what_it_lacks
from liver_dask.store.targets import open_target

STORES = DATA / "format3.tar.xz"
"""Stores of format 3: `complete.zarr`, `grey.zarr` (raw / 65535), `pyramid.zarr` (`complete.zarr` with a level) and
`unfinished.zarr.partial` (raw, without slice 3)."""

SHAPE = (4, 64, 96)
LAYOUT = {"chunks": (2, 32, 32), "shards": (4, 64, 64)}
URL = "memory://archive-of-format-3"


def voxels_of_format_3() -> dict[str, np.ndarray]:
    z, y, x = np.indices(SHAPE)
    raw = ((z * 1009 + y * 37 + x * 11) % 60000 + 1) * (x >= 32)
    mito = (((y // 8 + x // 8 + z) % 3 == 0) & (x >= 32)) * 255
    return {"raw": raw.astype("uint16"), "mito": mito.astype("uint8")}


@pytest.fixture
def archive_of_format_3() -> Iterator[xr.Dataset]:
    """The archive that the stores were made of, at its original address."""
    memory = fsspec.filesystem("memory")
    for name, whole in voxels_of_format_3().items():
        for z, pixels in enumerate(whole):
            file = io.BytesIO()
            if name == "raw":
                write_raw(file, pixels)
            else:
                Image.fromarray(pixels).save(file, format="PNG")
            path = f"/archive-of-format-3/{EMPIAR_13356.path(name, z)}"
            memory.pipe_file(path, file.getvalue())
            memory.store[path].created = datetime(2026, 1, 1, tzinfo=UTC)
    yield ld.open_human_liver_em(URL, shape=SHAPE, labels=["mito"])
    memory.rm("/archive-of-format-3", recursive=True)


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    with tarfile.open(STORES) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def test_stores_of_format_3_open_train_and_verify(
    stores: Path, archive_of_format_3: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    """A store of format 3 is read and verified; `to_zarr` leaves it unchanged, and logs that it has no checksums."""
    before = contents(stores)
    caplog.set_level(logging.INFO, "liver_dask")
    path = stores / "complete.zarr"
    for name, expected in voxels_of_format_3().items():
        np.testing.assert_array_equal(xr.open_zarr(path)[name], expected)
        array = StoredArray(path, name)
        np.testing.assert_array_equal(array[:, :, :], expected)
        np.testing.assert_array_equal(array[1:2, 5:60, 20:90], expected[1:2, 5:60, 20:90])
        assert read_statistics(path, name, "nonzero").sum() == np.count_nonzero(expected)
    grey = (voxels_of_format_3()["raw"] / 65535).astype("float32")
    np.testing.assert_array_equal(StoredArray(stores / "grey.zarr", "grey")[:, :, :], grey)
    for full in (False, True):
        report = ld.verify(path, full=full, progress=False)
        assert report.ok, report
        assert report.voxels
    assert ld.to_zarr(archive_of_format_3, path, progress=False, **LAYOUT) == str(path)
    assert contents(stores) == before
    assert f"{path}: it is of format 3: its chunks have no checksums" in caplog.text


def test_what_format_3_lacks_is_said(stores: Path, archive_of_format_3: xr.Dataset, tmp_path: Path) -> None:
    """`info` and `verify` say that format 3 has no checksums; `info` also says where readers take 0 for NaN."""
    (plain,) = what_it_lacks(open_record(stores / "complete.zarr"))
    assert "no checksums" in plain
    _, of_zeros = what_it_lacks(open_record(stores / "grey.zarr"))
    assert "chunk of grey are 0, xarray and other readers take them for NaN" in of_zeros
    assert np.isnan(xr.open_zarr(stores / "grey.zarr").grey[0, 0, 0]), "else the sentence is false"
    ld.to_zarr(archive_of_format_3, tmp_path / "new.zarr", progress=False, **LAYOUT)
    assert what_it_lacks(open_record(tmp_path / "new.zarr")) == []
    told = run("info", str(stores / "grey.zarr"))
    assert told.exit_code == 0
    assert plain in told.output
    assert of_zeros in told.output
    assert plain not in run("info", str(tmp_path / "new.zarr")).output
    assert plain in run("verify", str(stores / "complete.zarr")).output


def test_a_store_of_format_3_gets_a_pyramid(
    stores: Path, archive_of_format_3: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of format 3 gets levels of the current format, with the right voxels; levels that it has are kept."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 50)
    expected = voxels_of_format_3()["raw"]
    grey = downsampling.downsample((expected / 65535).astype("float32"), (1, 2, 2), "mean")
    for name in ("complete.zarr", "grey.zarr"):
        level = Path(ld.add_pyramid(stores / name, progress=False)[1])
        assert open_record(level)["format"] == FORMAT
    np.testing.assert_array_equal(xr.open_zarr(stores / "grey.zarr" / "pyramid" / "s1").grey, grey)
    report = ld.verify(stores / "complete.zarr", full=True, progress=False)
    assert report.ok, report
    there = contents(stores / "pyramid.zarr")
    assert len(ld.add_pyramid(stores / "pyramid.zarr", progress=False)) == 2
    assert contents(stores / "pyramid.zarr") == there
    far = xr.open_zarr(stores / "pyramid.zarr").liver.show(1, pixels=48).axes[0].images[0].get_array()
    assert far.shape[:2] == (32, 48)


def test_an_unfinished_store_of_format_3_is_recognised(stores: Path, archive_of_format_3: xr.Dataset) -> None:
    """An unfinished store of format 3 is refused with advice on how to finish it, and is not changed."""
    before = contents(stores)
    with pytest.raises(ld.StoreExistsError, match=r"unfinished store of format 3, .* finish it with that version, or"):
        ld.to_zarr(archive_of_format_3[["raw"]], stores / "unfinished.zarr", progress=False, **LAYOUT)
    assert contents(stores) == before
    with pytest.raises(ld.NotDownloadedError, match="finish it first"):
        open_record(stores / "unfinished.zarr")


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def give_format(store: Path, number: object) -> None:
    path = store / "liver_dask" / "zarr.json"
    document = json.loads(path.read_bytes())
    document["attributes"]["format"] = number
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (FORMAT + 1, f"a store of format {FORMAT + 1}, of a newer liver_dask than this one: update liver_dask"),
        (2, r"a store of format 2, of an earlier liver_dask: xr.open_zarr\(.*complete.zarr'\) still opens it"),
        (1, r"a store of format 1, of an earlier liver_dask: xr.open_zarr\(.*complete.zarr'\) still opens it"),
        ("four", r"a store of liver_dask whose record, .*zarr.json, is damaged"),
    ],
)
def test_a_store_of_another_format_is_named(
    stores: Path, archive_of_format_3: xr.Dataset, number: object, told: str
) -> None:
    """A store of a newer, older or unknown format is refused with an error that says so, and is not changed."""
    path = stores / "complete.zarr"
    give_format(path, number)
    give_format(stores / "unfinished.zarr.partial" / "store", number)
    before = contents(stores)
    calls = {
        "to_zarr": lambda: ld.to_zarr(archive_of_format_3, path, progress=False, **LAYOUT),
        "go on": lambda: ld.to_zarr(archive_of_format_3[["raw"]], stores / "unfinished.zarr", progress=False, **LAYOUT),
        "verify": lambda: ld.verify(path, progress=False),
        "pyramid": lambda: ld.add_pyramid(path, progress=False),
        "train": lambda: StoredArray(path, "raw"),
        "open": lambda: open_target(path),
    }
    for name, call in calls.items():
        pattern = told.replace("complete.zarr", "unfinished.*") if name == "go on" else told
        with pytest.raises((ld.StoreExistsError, ld.NotDownloadedError), match=pattern):
            call()
    done = run("info", str(path))
    assert done.exit_code == 1
    assert "is damaged" in done.output or "a store of format" in done.output
    assert contents(stores) == before


def test_a_record_that_is_no_json_is_named(stores: Path, archive_of_format_3: xr.Dataset) -> None:
    """A store whose record is no JSON is refused with an error that says that the record is damaged."""
    (stores / "complete.zarr" / "liver_dask" / "zarr.json").write_text('{"attributes"')
    with pytest.raises(ld.StoreExistsError, match=r"whose record, .* is damaged"):
        ld.to_zarr(archive_of_format_3, stores / "complete.zarr", progress=False, **LAYOUT)
    with pytest.raises(ld.NotDownloadedError, match=r"whose record, .* is damaged"):
        open_target(stores / "complete.zarr")


@pytest.mark.parametrize("suffix", ["crop.zarr", "a/crop.zarr/", "crop.zarr?sig=secret"])
@pytest.mark.parametrize("scheme", ["http://user:word@127.0.0.1:9", "memory:/"])
def test_the_url_of_a_store_is_no_archive(scheme: str, suffix: str) -> None:
    """The URL of a Zarr store is refused as that of an archive; the error hides passwords and signatures."""
    url = f"{scheme}/{suffix}"
    for opened in (ld.open_human_liver_em, open_target, lambda url: xr.open_dataset(url, engine="liver_dask")):
        with pytest.raises(ld.InvalidArgumentError, match=r"crop\.zarr.* is a Zarr store.*xr\.open_zarr\('") as told:
            opened(url)
        assert "word" not in str(told.value)
        assert "secret" not in str(told.value)
    with pytest.raises(ld.InvalidArgumentError, match=r"crop\.zarr\.partial is an unfinished Zarr store"):
        ld.open_human_liver_em(f"{scheme}/crop.zarr.partial")


def test_a_store_in_a_folder_is_no_archive(stores: Path, tmp_path: Path) -> None:
    """A folder with a Zarr store is refused as an archive, and as a target of `to_zarr` if another program wrote it."""
    foreign = tmp_path / "foreign"
    zarr.create_array(foreign / "v3", shape=(2, 5, 5), dtype="u2")
    zarr.create_array(foreign / "v2", shape=(2, 5, 5), dtype="u2", zarr_format=2)
    zarr.open_group(foreign / "group", mode="w", zarr_format=2)
    for path in (foreign / "v3", foreign / "v2", foreign / "group"):
        with pytest.raises(ld.InvalidArgumentError, match=r"is a Zarr store, .*xr\.open_zarr"):
            open_target(path)
        with pytest.raises(ld.InvalidArgumentError, match=r"is a Zarr store, .*xr\.open_zarr"):
            ld.open_human_liver_em(path)
        with pytest.raises(ld.StoreExistsError, match="a Zarr store that liver_dask did not write"):
            ld.to_zarr(ld.open_human_liver_em(tmp_path, shape=SHAPE), path, progress=False)
    with pytest.raises(ld.InvalidArgumentError, match="is a Zarr store"):
        ld.open_human_liver_em(stores / "complete.zarr")
    with pytest.raises(ld.NotDownloadedError, match="is an unfinished store of liver_dask"):
        open_target(stores / "unfinished.zarr.partial")


@pytest.mark.parametrize("command", ["info URL", "view URL --no-browser", "snapshot URL --z 1 -o OUT"])
def test_the_commands_say_so_and_ask_for_nothing(server: ArchiveServer, tmp_path: Path, command: str) -> None:
    """`info`, `view` and `snapshot` refuse the URL of a Zarr store, without any request."""
    words = command.replace("URL", f"{server.url}/crop.zarr").replace("OUT", str(tmp_path / "a.png")).split()
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert f"is a Zarr store, and no archive of slices; open it with xr.open_zarr('{server.url}" in done.output
    assert server.requests == []


def test_a_store_behind_a_url_that_does_not_tell_is_found_out(stores: Path) -> None:
    """If a slice is missing and the URL is that of a Zarr store, the error says so."""
    (stores / "complete.zarr").rename(stores / "crop")
    with serve(stores) as server:
        ds = ld.open_human_liver_em(f"{server.url}/crop", shape=SHAPE)
        assert server.requests == []
        with pytest.raises(ld.SliceNotFoundError, match=r"no such file.*/crop is a Zarr store, .*xr\.open_zarr\("):
            ds.raw[0, 0].compute()


def test_an_archive_that_lacks_a_slice_is_still_one(archive: Path, tmp_path: Path) -> None:
    """The error of a missing slice of an archive does not mention Zarr, and no zarr.json is requested."""
    shutil.copytree(archive, tmp_path / "archive")
    (tmp_path / "archive" / EMPIAR_13356.path("raw", 3)).unlink()
    with serve(tmp_path / "archive") as server:
        ds = ld.open_human_liver_em(server.url, shape=ARCHIVE_SHAPE)
        with pytest.raises(ld.SliceNotFoundError, match="slice 3") as told:
            ds.raw[3, 0].compute()
        assert "Zarr" not in str(told.value)
        assert not any(request.path.endswith("zarr.json") for request in server.requests)
