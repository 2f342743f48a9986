"""The command line, used correctly and incorrectly."""

import errno
import io
import logging
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.command import run_here
from helpers.paths import ROOT
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.remote import retry
from liver_dask.cli import main
from liver_dask.demo import ArchiveServer
from liver_dask.store.durable import DurableFile

COMMAND = [str(Path(sys.executable).with_name("liver-dask"))]
SHAPE_OPTION = ["--shape", *map(str, SHAPE)]


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, cwd=cwd)


def test_it_is_run_as_a_module() -> None:
    """`python -m liver_dask` is the command, too."""
    done = subprocess.run([sys.executable, "-m", "liver_dask", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == ld.__version__


def test_the_voxel_size_can_be_given(archive: Path, tmp_path: Path) -> None:
    """`--voxel-size` is that of the store and of a picture; for a store it is refused, and so is another one."""
    store, box = str(tmp_path / "crop.zarr"), ["--bbox", "20", "90", "30", "80", "2", "5"]
    asked = ["download", store, *box, "--source", str(archive), *SHAPE_OPTION, "--label", "mito", "--voxel-size"]
    assert run_here(*asked, "30", "8", "8").returncode == 0
    assert xr.open_zarr(store).attrs["voxel_size_nm"] == [30, 8, 8]
    for more in ([], ["--dry-run"]):
        assert "this call says (80.0, 8.0, 8.0)" in run_here(*asked, "80", "8", "8", *more).stderr
    assert "must be above 0" in run_here(*asked, "0", "8", "8").stderr
    picture = ["--z", "3", "-o", str(tmp_path / "a.png"), "--voxel-size", "30", "8", "8"]
    refused = run_here("snapshot", store, *picture)
    assert "is a store, for which --voxel-size has no effect" in " ".join(refused.stderr.split())
    assert run_here("snapshot", str(archive), *SHAPE_OPTION, *picture).returncode == 0


@pytest.mark.slow
def test_download_and_info(server: ArchiveServer, tmp_path: Path) -> None:
    """`download` exports a crop, `--dry-run` reports its state, and `info` describes a store or an archive."""
    store = str(tmp_path / "crop.zarr")
    box = ["--bbox", "20", "90", "30", "80", "2", "5"]
    for call in (run, run_here):
        done = call("download", store, *box, "--source", server.url, *SHAPE_OPTION, "--label", "mito")
        assert done.returncode == 0, done.stderr
        assert "is complete" in done.stdout
    assert dict(xr.open_zarr(store).sizes) == {"z": 3, "y": 50, "x": 70}
    planned = run_here("download", store, *box, "--source", server.url, *SHAPE_OPTION, "--label", "mito", "--dry-run")
    assert "is complete already: nothing would be fetched" in planned.stdout
    other = [*box[:-1], "6", "--source", server.url, *SHAPE_OPTION, "--label", "mito", "--dry-run"]
    refused = " ".join(run_here("download", store, *other).stderr.split())
    assert "a store of another box" in refused
    assert "It holds z 2-5; this call asks for z 2-6." in refused
    described = run_here("info", store)
    assert described.returncode == 0
    assert "complete, " in described.stdout
    lines = described.stdout.splitlines()
    assert f"  mito  mito of EMPIAR-13356 (z 2-5, y 30-80, x 20-90), read from {server.url}" in lines
    assert [line.split()[0] for line in lines if "(z, y, x)" in line] == ["raw", "mito"], "not in the order of ds"
    default = run_here("info", "--offline")
    assert "z: 597, y: 20000, x: 20000" in default.stdout
    assert "--bbox 1195 18890 469 19570 0 597" in default.stdout


def test_labels_are_chosen_in_one_way_and_kept_in_one_order(archive: Path, tmp_path: Path) -> None:
    """`--label none` is raw alone; variables are in the order of the description, whatever that of the options."""
    options = ["--bbox", "0", "9", "0", "9", "0", "1", "--source", str(archive), *SHAPE_OPTION, "--dry-run"]
    for given, there in (
        ([], "raw, mito, er, nucleus"),
        (["none"], "raw"),
        (["nucleus", "mito"], "raw, mito, nucleus"),
        (["mito", "mito"], "raw, mito"),
    ):
        chosen = [part for name in given for part in ("--label", name)]
        done = CliRunner().invoke(main, ["download", str(tmp_path / "a.zarr"), *options, *chosen])
        assert done.output.startswith(f"{tmp_path}/a.zarr: {there} of 1 x 9 x 9"), done.output
    both = CliRunner().invoke(main, ["download", "a.zarr", *options, "--label", "none", "--label", "mito"])
    assert both.exit_code == 2
    assert "none means no label at all" in both.output
    assert list(ld.open_human_liver_em(archive, shape=SHAPE, labels=("er", "mito"))) == ["raw", "mito", "er"]


def test_info_asks_the_source_for_one_slice(server: ArchiveServer, archive: Path, tmp_path: Path) -> None:
    """`info` fetches the headers of the middle slice of each variable, and says what is not as described."""
    there = run_here("info", server.url, *SHAPE_OPTION)
    assert there.returncode == 0, there.stderr
    assert "Slice 5 is there, and as described: raw, mito, er, nucleus." in there.stdout
    assert {request.path for request in server.requests} == {
        f"/{EMPIAR_13356.path(name, 5)}" for name in ("raw", *EMPIAR_13356.labels)
    }
    assert server.bytes_sent < 200_000
    server.requests.clear()
    assert run_here("info", server.url, *SHAPE_OPTION, "--offline").returncode == 0
    assert not server.requests
    wrong = run_here("info", server.url, "--shape", "10", "300", "421")
    assert wrong.returncode == 1
    assert "found 300 x 420 pixels (rows x columns), expected 300 x 421" in " ".join(wrong.stderr.split())
    copy = shutil.copytree(archive, tmp_path / "archive")
    (copy / EMPIAR_13356.path("er", 5)).unlink()
    lost = run_here("info", str(copy), *SHAPE_OPTION)
    assert (lost.returncode, "as described: raw, mito, nucleus." in lost.stdout) == (1, True)
    assert "er, slice 5" in lost.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ("download OUT --bbox 0 9 0 9 0 99", 2, "z is 0..99, but there is only 0..10"),
        ("download OUT --bbox 9 0 0 9 0 1", 2, "is reversed along x"),
        ("download OUT --bbox -5 9 0 9 0 1", 2, "x is -5..9"),
        ("download OUT --bbox 0 9 0 9 0", 2, "'--bbox'"),
        ("download OUT --bbox 0 9 0 9 0 a", 2, "not a valid integer"),
        ("download OUT", 2, "--bbox"),
        ("download OUT --full --bbox 0 9 0 9 0 1", 2, "either --bbox"),
        ("download OUT --full --scheduler tcp://127.0.0.1:9", 1, "There is no cluster at tcp://127.0.0.1:9"),
        ("download OUT --full --scheduler nonsense:x", 1, "There is no cluster at nonsense:x"),
        ("download OUT --full --scheduler tcp://127.0.0.1:9 --workers 2", 2, "either --scheduler or --workers"),
        ("download OUT --full --workers 0", 2, "0 is not in the range"),
        ("download OUT --full --on-error ignore", 2, "'ignore' is not one of"),
        ("verify OUT", 1, "There is no complete store"),
        ("download OUT --bbox 0 9 0 9 0 1 --label golgi", 2, "Unknown label 'golgi'"),
        ("download OUT --bbox 0 9 0 9 0 1 --label sinusoid", 1, "has these folders: humanliver_er_mask"),
        (
            "download OUT --bbox 0 9 0 9 0 1 --label sinusoid",
            1,
            "Correct the address, the label, or the archive (--archive).",
        ),
        (
            "download OUT --bbox 0 9 0 9 0 1 --shape 10 300 421",
            1,
            "expected 300 x 421; say how large the volume is by shape=(z, y, x), or --shape, or shape = [z, y, x] in a "
            "TOML file.",
        ),
        ("download OUT --bbox 0 9 0 9 0 1 --source http://127.0.0.1:9", 1, "gave up after"),
        (
            "download OUT --bbox 0 9 0 9 0 1 --source http://127.0.0.1:9",
            1,
            "no connection to 127.0.0.1:9 (connection refused) (6 x). Check the address and the connection",
        ),
        ("demo --out there/mine", 2, "Invalid value for '--out': Directory 'there/mine' is a file."),
        ("demo --out there/mine/demo", 1, "Cannot use there/mine/demo (not a directory); choose another path."),
        ("download OUT --bbox 0 9 0 9 0 1 --source /no/such/folder", 1, "There is no folder"),
        ("download THERE --bbox 0 9 0 9 0 1", 1, "something that liver_dask did not write; choose another path."),
        ("download EMPTY --bbox 0 9 0 9 0 1", 2, "Invalid value for 'OUT': the path is empty; give a folder"),
        ("download https://b/a.zarr --bbox 0 9 0 9 0 1", 2, "https://b/a.zarr is not a place for a store"),
        ("download s3://b --bbox 0 9 0 9 0 1", 2, "give a name in the bucket, such as s3://b/crop.zarr"),
        ("download s3://b/a.zarr --bbox 0 9 0 9 0 1", 1, "(unable to locate credentials); look at the address"),
        ("demo --out EMPTY", 2, "the path is empty"),
        ("pyramid EMPTY", 2, "the path is empty"),
        (
            "info there",
            1,
            "there has no file of EMPIAR-13356, such as humanliver_raw_images/humanliver_raw_000.tif; give",
        ),
        ("info nonsense", 1, "There is no folder"),
        ("donwload", 2, "No such command 'donwload'"),
    ],
)
def test_used_wrongly_it_says_so_in_one_sentence(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, code: int, message: str
) -> None:
    """A wrong command exits with the right code and a message, and writes nothing."""
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("")
    words = args.replace("OUT", "out.zarr").replace("THERE", "there").split()
    words = ["" if word == "EMPTY" else word for word in words]
    if words[0] == "download":
        words += [] if "--source" in words else ["--source", server.url]
        words += [] if "--shape" in words else SHAPE_OPTION
    connects = "--scheduler" in words and code == 1  # dask's client that found no scheduler remains the default one
    done = (run if connects else run_here)(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_commands_that_read_an_archive_take_it() -> None:
    """Exactly the commands that the README names take `--archive`."""
    takers = {name for name, of in main.commands.items() for option in of.params if "--archive" in option.opts}
    assert takers == {"info", "doctor", "snapshot", "view", "serve", "download", "measure", "predict"}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("info STORE --shape 1 2 3", "STORE is a store, for which --shape has no effect; leave --shape out."),
        ("snapshot STORE --archive EMPIAR-12535/testis --z 2 -o a.png", "for which --archive has no effect"),
        ("snapshot STORE --missing zeros --z 2 -o a.png", "for which --missing has no effect"),
        ("view STORE --archive EMPIAR-13356", "for which --archive has no effect"),
        ("verify STORE.partial", "an unfinished store of liver_dask; finish it first, by the command that began it"),
        ("download STORE.partial --bbox 0 9 0 9 0 1", "an unfinished store of liver_dask; finish it first"),
    ],
)
def test_what_a_store_has_no_use_for_is_refused(archive: Path, tmp_path: Path, args: str, told: str) -> None:
    """Options about an archive are refused for a store, and so is an unfinished store in place of a complete one."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=[])
    store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=(0, 20, 0, 20, 2, 3), progress=False))
    if "partial" in args:
        store.rename(tmp_path / "store")
        (tmp_path / "a.zarr.partial").mkdir()
        (tmp_path / "store").rename(tmp_path / "a.zarr.partial" / "store")
    done = CliRunner().invoke(main, args.replace("STORE", str(store)).split())
    assert done.exit_code in (1, 2)
    assert told.replace("STORE", str(store)) in " ".join(done.output.split())


@pytest.mark.parametrize("end", ["", ".partial"])
@pytest.mark.parametrize(
    "args",
    ["snapshot --z 2 -o a.png", "view --no-browser", "serve", "verify", "pyramid"],
    ids=lambda a: a.split()[0],
)
def test_an_unfinished_store_is_called_so(archive: Path, tmp_path: Path, args: str, end: str) -> None:
    """Each command says of an unfinished store that it is one, by its name and by that of the folder beside it."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=[])
    store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=(0, 20, 0, 20, 2, 3), progress=False))
    (tmp_path / "a.zarr.partial").mkdir()
    store.rename(tmp_path / "a.zarr.partial" / "store")
    command, *options = args.split()
    done = CliRunner().invoke(main, [command, f"{store}{end}", *options])
    assert done.exit_code == 1
    told = " ".join(done.output.split())
    assert f"{store}.partial" in told
    assert "unfinished" in told
    assert "finish it first" in told
    with pytest.raises(ld.NotDownloadedError, match="unfinished"):
        ld.view(f"{store}{end}")


def test_the_systems_errors_are_sentences(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system names the path and what to do, without the number of the error."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "ro/a.png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", denied)
    arguments = ["snapshot", str(archive), *SHAPE_OPTION, "--z", "0", "-o", str(tmp_path / "a.png")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    told = "Error: Cannot use ro/a.png (permission denied); choose another path, or change its permissions."
    assert " ".join(done.output.split()) == told


def test_a_full_disk_is_told_with_the_path(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of an open file, to which the system gives no path, says where it was, also in what `info` lists."""
    opened = DurableFile.__enter__

    def opening(self: DurableFile) -> Any:
        file = opened(self)
        if "slabs" not in self._path.parts:
            return file
        return mock.Mock(write=mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))

    monkeypatch.setattr(DurableFile, "__enter__", opening)
    store = tmp_path / "a.zarr"
    asked = ["download", store, "--source", archive, *SHAPE_OPTION, "--label", "none", "--bbox", 0, 40, 0, 40, 0, 4]
    advice = "(no space left on device); free some space there, or choose another path."
    assert f"Error: Cannot use {tmp_path}" in run_here(*asked).stderr
    told = " ".join(run_here(*asked, "--on-error", "continue").stderr.split())
    assert "of the store: Cannot use " in told
    assert advice in told
    assert "Errno" not in told


def test_a_warning_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is shown without the line of code that warns, and without secrets; and other packages log nothing."""

    def examine(*_: object, **__: object) -> None:
        warnings.warn("http://me:word@host ignores byte ranges.", stacklevel=2)
        logging.getLogger("tifffile").error("invalid offset")
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr("liver_dask.cli.clean", examine)
    monkeypatch.setattr(warnings, "showwarning", lambda *of: sys.stderr.write(warnings.formatwarning(*of[:4])))
    before = warnings.formatwarning
    with warnings.catch_warnings(action="always"):
        done = run_here("clean", tmp_path / "a.zarr")
    assert done.stderr == "Warning: http://***@host ignores byte ranges.\nError: File too large.\n"
    assert warnings.formatwarning is before
    with warnings.catch_warnings(action="error"):
        done = run_here("clean", tmp_path / "a.zarr")
    assert done.returncode == 1
    assert "Error: UserWarning: http://***@host ignores byte ranges." in done.stderr


def test_ctrl_c_is_how_the_viewer_ends(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends `view` quietly with exit code 0; before its server runs, it is an error."""

    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("liver_dask.cli.view", lambda *_, **__: io.StringIO())
    monkeypatch.setattr("liver_dask.cli.serve_slicer", interrupt)
    done = CliRunner().invoke(main, ["view", str(archive), *SHAPE_OPTION])
    assert (done.exit_code, done.output) == (0, "Starting; the address of the page follows.\n")
    monkeypatch.setattr("liver_dask.cli.view", interrupt)
    done = CliRunner().invoke(main, ["view", str(archive), *SHAPE_OPTION])
    assert done.exit_code == 1
    assert "Interrupted" in done.output


def test_the_plan_on_the_page_is_what_the_command_prints(tmp_path: Path) -> None:
    """The plan in .github/docs/keep.md is the output of `--full --dry-run`, which writes nothing."""
    page = (ROOT / ".github" / "docs" / "keep.md").read_text()
    shown = page.split("--full --dry-run\n")[1].split("```")[0]
    done = run_here("download", "full_volume.zarr", "--full", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(f"{tmp_path}/", "") == shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_volume_by_processes_of_this_machine(server: ArchiveServer, tmp_path: Path, voxels) -> None:
    """`--full --workers 2` exports the whole volume, and counts the requests of its workers."""
    store = str(tmp_path / "full.zarr")
    done = run("download", store, "--full", "--workers", "2", "--source", server.url, *SHAPE_OPTION)
    assert done.returncode == 0, done.stderr
    assert "is complete" in done.stdout
    assert re.search(r"[1-9]\d* requests", done.stdout), "what the workers fetched is not counted"
    stored = xr.open_zarr(store)
    for name, expected in voxels.items():
        np.testing.assert_array_equal(stored[name], expected)


@pytest.mark.slow
def test_no_traceback_whatever_is_wrong(archive: Path, tmp_path: Path) -> None:
    """A damaged store, a store without raw, and an address instead of a folder are errors without traceback."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE).isel(z=slice(2), y=slice(64), x=slice(64))
    store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False))
    ld.to_zarr(ds[["er"]], tmp_path / "b.zarr", progress=False)
    shard = store / "raw" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    picture = ["-o", str(tmp_path / "a.png")]
    for arguments, message in (
        (["snapshot", str(store), "--z", "0", *picture], "liver-dask verify"),
        (["snapshot", str(tmp_path / "b.zarr"), "--z", "0", *picture], "There is no 'raw'"),
        (["verify", "http://127.0.0.1:9/x.zarr"], "is not a place for a store"),
    ):
        done = run_here(*arguments, cwd=tmp_path)
        assert done.returncode in (1, 2), arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr
