"""The demo leaves a user's files in its folder untouched, and works again after it was killed."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import liver_dask as ld
from helpers.kills import killed_at
from helpers.places import contents
from liver_dask import demo
from liver_dask.store import own_files

SMALL = "demo.DEMO_SHAPE, demo.DEMO_BOX = (4, 96, 128), (20, 90, 10, 80, 1, 3)"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_SHAPE", (4, 96, 128))
    monkeypatch.setattr(demo, "DEMO_BOX", (20, 90, 10, 80, 1, 3))


def check(out: Path) -> None:
    """Check that the folder holds exactly what a demo leaves."""
    assert {path.name for path in out.iterdir()} == {"slice.png", "crop.zarr", ".liver_dask_demo"}
    assert {path.name for path in (out / ".liver_dask_demo").iterdir()} == {"lock", "made.json"}
    assert dict(xr.open_zarr(out / "crop.zarr").sizes) == {"z": 2, "y": 70, "x": 70}


@pytest.mark.parametrize("what", ["crop.zarr", "slice.png", "crop.zarr of ours", ".liver_dask_demo"])
def test_what_is_a_users_stays(tmp_path: Path, archive: Path, what: str) -> None:
    """The demo refuses to replace files that it did not make, and changes nothing."""
    path = tmp_path / what.split()[0]
    if what.endswith("ours"):
        ds = ld.open_human_liver_em(archive, shape=(10, 300, 420))
        ld.to_zarr(ds, path, bounding_box=(0, 50, 0, 50, 0, 2), progress=False)
    elif what == "slice.png":
        path.write_bytes(b"a picture")
    else:
        zarr.create_array(path, data=np.ones(3))
    before = contents(tmp_path)
    with pytest.raises(ld.StoreExistsError, match=r"was not made by this command.*choose another folder"):
        demo.run_demo(tmp_path)
    assert contents(tmp_path) == before


def test_the_demo_can_be_run_again(tmp_path: Path) -> None:
    """A second demo in the same folder succeeds, and leaves what the first one left."""
    for _ in range(2):
        demo.run_demo(tmp_path)
        check(tmp_path)


def test_what_a_user_changed_of_a_demo_stays(tmp_path: Path) -> None:
    """The demo refuses to replace its own files if they were changed; after their removal it works again."""
    demo.run_demo(tmp_path)
    for change in (
        lambda: zarr.create_array(tmp_path / "crop.zarr" / "mine", data=np.ones(3)),
        lambda: (tmp_path / "slice.png").write_bytes(b"a picture"),
    ):
        change()
        before = contents(tmp_path)
        with pytest.raises(ld.StoreExistsError, match="changed since"):
            demo.run_demo(tmp_path)
        assert contents(tmp_path) == before
        shutil.rmtree(tmp_path / "crop.zarr", ignore_errors=True)
    (tmp_path / "slice.png").unlink()
    demo.run_demo(tmp_path)
    check(tmp_path)


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    """Other files and folders in the demo's folder keep their contents."""
    (tmp_path / "crop.zarr.partial").mkdir()
    (tmp_path / "crop.zarr.partial" / "mine").write_text("mine")
    (tmp_path / "archive").write_text("mine")
    demo.run_demo(tmp_path)
    assert (tmp_path / "crop.zarr.partial" / "mine").read_text() == (tmp_path / "archive").read_text() == "mine"


def test_of_two_at_once_the_second_is_refused(tmp_path: Path) -> None:
    """A second replacement of the same files at the same time is an error, and the first one succeeds."""
    with own_files.replacing(tmp_path, ("a",), "test") as new:
        (new / "a").write_text("first")
        with (
            pytest.raises(ld.StoreExistsError, match="Another process is at work"),
            own_files.replacing(tmp_path, ("a",), "test"),
        ):
            pytest.fail("both are at it")
    assert (tmp_path / "a").read_text() == "first"


@pytest.mark.parametrize("made_before", [False, True])
def test_killed_at_any_step_the_next_one_replaces_what_was_made(tmp_path: Path, made_before: bool) -> None:
    """After a kill at any step the next replacement succeeds."""

    def make(text: str) -> None:
        with own_files.replacing(tmp_path / "out", ("a", "b"), "test") as new:
            (new / "a").write_text(text)
            (new / "b").mkdir()
            (new / "b" / "c").write_text(text)

    for step in range(1, 40):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if made_before:
            make("before")
        ended = killed_at(step, lambda: make("killed"))
        make("after")
        assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out" / "b" / "c").read_text() == "after"
        if ended == 0:
            break
    assert step > 8
    assert ended == 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_after_a_real_kill_the_next_demo_works(tmp_path: Path, share: float) -> None:
    """A demo succeeds after an earlier one in the same folder was killed by SIGKILL."""
    script = (
        f"from pathlib import Path; from liver_dask import demo; {SMALL}; print('began', flush=True); "
        "[print(n, flush=True) or demo.run_demo(Path('out')) for n in range(100)]"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    began = None
    for line in process.stdout:
        if line == "0\n":
            began = time.monotonic()
        if line == "1\n":
            break
    took = time.monotonic() - began
    time.sleep(share * took)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    demo.run_demo(tmp_path / "out")
    check(tmp_path / "out")
