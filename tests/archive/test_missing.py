"""A slice that the archive lacks is an error, or zeros if that is asked for, which are always reported."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import tifffile
import xarray as xr
from click.testing import CliRunner

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.command import run_here
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.cli import main
from liver_dask.demo import RangeRequestHandler, serve

GONE = {"er": (0, 3), "raw": (5,), "nucleus": (9,)}


@pytest.fixture
def own(archive: Path, tmp_path: Path) -> Path:
    """An archive that lacks some slices."""
    folder = tmp_path / "own"
    shutil.copytree(archive, folder)
    for name, slices in GONE.items():
        for z in slices:
            (folder / EMPIAR_13356.path(name, z)).unlink()
    return folder


@pytest.fixture
def expected(voxels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The voxels of the archive, with zeros for the missing slices."""
    filled = {name: array.copy() for name, array in voxels.items()}
    for name, slices in GONE.items():
        filled[name][list(slices)] = 0
    return filled


class WithoutListings(RangeRequestHandler):
    """Refuses to list its folders, as many servers do."""

    def list_directory(self, path: str) -> None:
        self.send_error(403)


class Forbids(RangeRequestHandler):
    """Answers 403 for a missing file, as S3 does."""

    def send_error(self, code: int, *args: object, **options: object) -> None:
        super().send_error(403 if code == 404 else code)


@pytest.mark.parametrize("handler", [RangeRequestHandler, WithoutListings, None])
def test_missing_slices_are_zeros_where_that_is_asked_for(own: Path, handler, expected, caplog) -> None:
    """With `missing="zeros"` a missing slice is read as zeros, with a warning; other slices are unchanged."""
    with serve(own, handler or RangeRequestHandler) as server:
        source = server.url if handler else own
        ds = ld.open_human_liver_em(source, shape=SHAPE, missing="zeros")
        for name in expected:
            np.testing.assert_array_equal(ds[name], expected[name])
        np.testing.assert_array_equal(ds.er[::-1, 7:200:9, 3:99], expected["er"][::-1, 7:200:9, 3:99])
        lazy = xr.open_dataset(source, engine="liver_dask", shape=SHAPE, missing="zeros")
        np.testing.assert_array_equal(lazy.er[3], expected["er"][3])
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    for name, slices in GONE.items():
        for z in slices:
            assert sum(f"slice {z} of {name} is taken for zeros" in text for text in warned) in (1, 2)  # two Datasets


def test_a_missing_slice_is_asked_for_no_more_than_twice(own: Path) -> None:
    """A missing slice costs two requests, however many blocks it has."""
    with serve(own) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, chunk_rows=16, missing="zeros")
        ds.er[1].compute()
        server.requests.clear()
        with dask.config.set(scheduler="sync"):
            ds.er[3].compute()
        assert len(server.requests) == 2
        assert {request.status for request in server.requests} == {404}


def test_without_it_a_missing_slice_is_an_error_that_says_so(own: Path) -> None:
    """By default a missing slice is an error that mentions `missing="zeros"` if slices around it were found."""
    with serve(own) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(
            ld.SliceNotFoundError, match=r"No slice of er has been found yet\. Correct shape \(--shape\), files or"
        ):
            ds.er[3].compute()
        ds.er[[1, 5]].compute()
        with pytest.raises(ld.SliceNotFoundError, match=r'er, slice 3, .*missing="zeros"'):
            ds.er[3].compute()


ZEROS = 'missing="zeros" (--missing zeros)'
CORRECT = "Correct shape (--shape), files or first of the archive"


@pytest.mark.parametrize(
    ("changed", "slices", "z", "said"),
    [
        ({}, 5, 2, f"Open the source with {ZEROS} if such slices are to be empty."),
        (
            {},
            6,
            5,
            f"such as slice_0000.tif. {CORRECT} if they are wrong, or open the source with {ZEROS}",
        ),
        ({"first": 1}, 5, 4, f"Its folder holds 4 files, such as slice_0000.tif. {CORRECT}, or the source."),
        ({"files": "em/slice_{z:03d}.tif"}, 5, 0, f"Its folder holds 4 files, such as slice_0000.tif. {CORRECT}"),
        ({"files": "em/slice_{z:04d}.tiff"}, 5, 0, f"Its folder holds 4 files, such as slice_0000.tif. {CORRECT}"),
        ({"files": "er/slice_{z:04d}.tif"}, 5, 0, "has these folders: em. Correct the address, the label, or the arch"),
        ({"files": "slice_{z:04d}.tif"}, 5, 0, "holds no files. Correct"),
    ],
    ids=["between others", "after the last", "first", "digits", "suffix", "folder", "root"],
)
def test_zeros_are_advised_only_where_other_slices_are(tmp_path: Path, changed, slices: int, z: int, said: str) -> None:
    """A mistake in the description is told as such, because with `missing="zeros"` all of its slices would be zeros."""
    (tmp_path / "em").mkdir()
    for number in (0, 1, 3, 4):
        tifffile.imwrite(tmp_path / "em" / f"slice_{number:04d}.tif", np.ones((20, 30), np.uint8))
    options = {"name": "raw", "files": "em/slice_{z:04d}.tif", "kind": "image"} | changed
    raw = ld.Variable(**options)
    archive = ld.Archive(name="mine", url=str(tmp_path), shape=(slices, 20, 30), variables=(raw,))
    with pytest.raises(ld.SliceNotFoundError) as told:
        ld.open_archive(archive).raw[z].compute()
    assert said in str(told.value)
    assert ("missing=" in str(told.value)) == (ZEROS in said)


def test_verify_never_advises_zeros(own: Path, tmp_path: Path) -> None:
    """A file that is gone when a store is verified is an error that names the way to give another address."""
    ds = ld.open_human_liver_em(own, shape=SHAPE, labels=[])
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=(0, 64, 0, 64, 0, 4), progress=False)
    (own / EMPIAR_13356.path("raw", 2)).unlink()
    with pytest.raises(ld.SliceNotFoundError, match=r"raw, slice 2.* Give the address .*--source\.$"):
        ld.verify(tmp_path / "a.zarr", full=True, progress=False)


@pytest.mark.parametrize("fault", ["folder", "host", "500", "403", "410", "once"])
def test_what_is_not_surely_missing_is_an_error(own: Path, fault: str, monkeypatch, voxels) -> None:
    """A missing folder, no connection, or a status other than 404 is an error, not zeros; a single 404 is retried."""

    class Trouble(Forbids if fault == "403" else RangeRequestHandler):
        times = 0

        def do_GET(self) -> None:
            if self.path.endswith("er_mask_003.png"):
                type(self).times += 1
                if fault in ("500", "410") or (fault == "once" and self.times == 1):
                    self.refuse({"500": 500, "410": 410, "once": 404}[fault])
                    return
            super().do_GET()

    if fault == "once":
        whole = voxels["er"][3]
        from PIL import Image

        Image.fromarray(whole).save(own / EMPIAR_13356.path("er", 3))
    if fault == "folder":
        (own / EMPIAR_13356["er"].folder).rename(own / "elsewhere")
    monkeypatch.setattr("tenacity.nap.time", type("Now", (), {"sleep": staticmethod(lambda seconds: None)}))
    with serve(own, Trouble) as server:
        source = "http://127.0.0.1:9" if fault == "host" else server.url
        with dask.config.set({"liver-dask.attempts": 2}):
            ds = ld.open_human_liver_em(source, shape=SHAPE, missing="zeros")
        if fault == "once":
            np.testing.assert_array_equal(ds.er[3], voxels["er"][3])
            return
        with pytest.raises(OSError, match="er, slice 3") as told:  # two of the package's errors are OSErrors
            ds.er[3].compute()
        assert isinstance(told.value, ld.LiverDaskError)
        if fault == "folder":
            assert "not taken for zeros" in str(told.value)


SMALL = {"chunks": (2, 64, 64), "shards": (4, 128, 128), "progress": False}


@pytest.mark.slow
def test_a_store_lists_what_is_missing_and_is_finished(own: Path, tmp_path: Path, expected) -> None:
    """A store with missing slices is completed and verified, and lists the missing files in its attributes."""
    with serve(own) as server:
        strict = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.SliceNotFoundError, match="er, slice 0"):
            ld.to_zarr(strict, tmp_path / "a.zarr", **SMALL)
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, missing="zeros")
        ld.to_zarr(ds, tmp_path / "a.zarr", **SMALL)
        stored = xr.open_zarr(tmp_path / "a.zarr")
        for name in expected:
            np.testing.assert_array_equal(stored[name], expected[name])
        urls = sorted(f"{server.url}/{EMPIAR_13356.path(name, z)}" for name, slices in GONE.items() for z in slices)
        assert stored.attrs["missing_files"] == urls
        told = CliRunner().invoke(main, ["info", str(tmp_path / "a.zarr")]).output
        assert "\ner: 2 of 10 slices are zeros, because their files did not exist\n" in told
        assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_bytes())["attributes"]["missing_files"] == urls
        report = ld.verify(tmp_path / "a.zarr", full=True, progress=False)
        assert report.ok, report
        assert report.missing == urls
        assert "4 files did not exist" in str(report)
        assert urls[0] in str(report)
        with pytest.raises(ld.StoreExistsError, match=r'has zeros where 4 files did not exist.* missing="zeros"'):
            ld.to_zarr(strict, tmp_path / "a.zarr", **SMALL)
        assert ld.to_zarr(ds, tmp_path / "a.zarr", pyramid=True, **SMALL)
        assert ld.add_pyramid(tmp_path / "a.zarr", progress=False)


def test_a_store_that_was_begun_without_is_finished_with_it(own: Path, tmp_path: Path, expected) -> None:
    """An export that failed on a missing slice resumes with `missing="zeros"` and keeps what it fetched."""
    (own / EMPIAR_13356.path("er", 0)).write_bytes((own / EMPIAR_13356.path("er", 1)).read_bytes())
    with serve(own) as server:
        strict = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.ExportError, match=r"(?s)(^\d+ regions|^1 region) could not be.*--missing zeros") as told:
            ld.to_zarr(strict, tmp_path / "a.zarr", on_error="continue", **SMALL)
        assert all(
            re.match(r"er, slices 2-3 and rows \d+-\d+ of the store: er, slice 3, ", of)
            for of in told.value.failures
            if of.startswith("er")
        )
        fetched = server.bytes_sent
        server.requests.clear()
        lenient = ld.open_human_liver_em(server.url, shape=SHAPE, missing="zeros")
        ld.to_zarr(lenient, tmp_path / "a.zarr", on_error="continue", **SMALL)
        assert server.bytes_sent < 0.7 * fetched
    stored = xr.open_zarr(tmp_path / "a.zarr")
    for name in ("raw", "mito", "nucleus"):
        np.testing.assert_array_equal(stored[name], expected[name])
    np.testing.assert_array_equal(stored.er[1:], expected["er"][1:])


def test_what_was_begun_with_zeros_is_not_finished_without(own: Path, tmp_path: Path, monkeypatch) -> None:
    """A store begun with `missing="zeros"` is not resumed without it."""
    with serve(own) as server:
        lenient = ld.open_human_liver_em(server.url, shape=SHAPE, missing="zeros")
        with monkeypatch.context() as patch:
            patch.setattr("liver_dask.store.writer.Store.complete", lambda store: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ld.to_zarr(lenient, tmp_path / "a.zarr", **SMALL)
        strict = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.StoreExistsError, match="has zeros where 4 files did not exist") as told:
            ld.to_zarr(strict, tmp_path / "a.zarr", **SMALL)
        assert "is kept in" in told.value.__notes__[0]
        assert "the same call goes on" not in told.value.__notes__[0], "it would meet the same error"
        said = CliRunner().invoke(main, ["info", str(tmp_path / "a.zarr")]).output
        assert "zeros for 4 files that did not exist; only with --missing zeros can it be finished." in said
        ld.to_zarr(lenient, tmp_path / "a.zarr", **SMALL)


def test_a_file_that_comes_later_is_not_mixed_in(own: Path, archive: Path, tmp_path: Path) -> None:
    """A slice read as zeros stays zeros in its Dataset when the file appears; a new Dataset reads the file."""
    with serve(own) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, missing="zeros", chunk_rows=16)
        assert not ds.er[3, :40].values.any()
        shutil.copy2(archive / EMPIAR_13356.path("er", 3), own / EMPIAR_13356.path("er", 3))
        assert not ds.er[3].values.any()
        assert ld.open_human_liver_em(server.url, shape=SHAPE, missing="zeros").er[3].values.any()


def test_the_shell_takes_it(own: Path, tmp_path: Path) -> None:
    """`download` fails on a missing slice, and with `--missing zeros` succeeds and names the file."""
    command = ["download", tmp_path / "a.zarr", "--bbox", 0, 64, 0, 64, 2, 5, "--source", own, "--shape", *SHAPE]
    strict = run_here(*command)
    assert strict.returncode == 1
    assert "--missing zeros" in strict.stderr or 'missing="zeros"' in strict.stderr
    own_process = [Path(sys.executable).with_name("liver-dask"), *map(str, command), "--missing", "zeros"]
    done = subprocess.run(own_process, capture_output=True, text=True)  # without the log handlers of pytest
    assert done.returncode == 0, done.stderr
    assert "er_mask_003.png" in done.stderr + done.stdout
    told = CliRunner().invoke(main, ["info", str(tmp_path / "a.zarr")])
    assert told.exit_code == 0, told.output
    assert [line for line in told.output.splitlines() if "did not exist" in line] == [
        "er: 1 of 3 slices is zeros, because its file did not exist"
    ]


def test_any_other_word_is_refused() -> None:
    """A value of `missing` other than "raise" and "zeros" is an InvalidArgumentError."""
    with pytest.raises(ld.InvalidArgumentError, match="missing='zero' must be 'raise' or 'zeros'"):
        ld.open_human_liver_em(missing="zero")
