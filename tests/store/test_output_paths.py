"""The path of a store: links are followed, and a path that no store can be written to is refused before any request."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import liver_dask as ld
from helpers.archive import SHAPE
from liver_dask.demo import ArchiveServer
from liver_dask.store import record

BOX = (100, 160, 100, 140, 2, 4)


def make_link(kind: str, folder: Path) -> tuple[Path, Path]:
    """Make a symbolic link of the given kind, and return it and the path that it leads to."""
    there, link = folder / "disk" / "b.zarr", folder / "a.zarr"
    there.parent.mkdir()
    match kind:
        case "to an empty folder":
            there.mkdir()
        case "to nothing in a folder that is not there":
            there = folder / "other" / "disk" / "b.zarr"
        case "through another link":
            (folder / "between").symlink_to(there)
            there, link_to = there, folder / "between"
            link.symlink_to(link_to)
        case "with a relative path":
            link.symlink_to(Path("disk", "..", "disk", "b.zarr"))
    if not link.is_symlink():
        link.symlink_to(there)
    return link, there


@pytest.mark.parametrize(
    "kind",
    [
        "to an empty folder",
        "to nothing",
        "to nothing in a folder that is not there",
        "through another link",
        "with a relative path",
    ],
)
def test_a_store_is_made_where_a_link_leads(
    server: ArchiveServer, tmp_path: Path, kind: str, voxels: dict[str, np.ndarray]
) -> None:
    """A store is written where a symbolic link leads, and later calls find it there, by the link and by its target."""
    link, there = make_link(kind, tmp_path)
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    assert ld.to_zarr(ds, link, bounding_box=BOX, progress=False) == str(there)
    assert link.is_symlink()
    assert sorted(path.name for path in there.parent.iterdir()) == ["b.zarr"]
    np.testing.assert_array_equal(xr.open_zarr(link).raw, voxels["raw"][2:4, 100:140, 100:160])
    server.requests.clear()
    for path in (link, there):
        assert ld.to_zarr(ds, path, bounding_box=BOX, progress=False) == str(there)
    assert server.requests == []
    assert ld.verify(link, progress=False).ok
    with pytest.raises(ld.StoreExistsError, match="another box"):
        ld.to_zarr(ds, link, bounding_box=(0, 9, 0, 9, 0, 9), progress=False)


def test_torch_ems_names_find_a_store_behind_a_link(server: ArchiveServer, tmp_path: Path) -> None:
    """A store that was moved and replaced by a link is found by the name that torch_em gives it."""
    path = ld.get_human_liver_em_data(tmp_path / "a", BOX, download=True, source=server.url, shape=SHAPE)
    shutil.move(path, tmp_path / "moved.zarr")
    Path(path).symlink_to(tmp_path / "moved.zarr")
    for download in (False, True):
        found = ld.get_human_liver_em_data(tmp_path / "a", BOX, download=download, source=server.url, shape=SHAPE)
        assert found == str(tmp_path / "moved.zarr")


@pytest.mark.parametrize("kind", ["in a circle", "to a file", "to a folder with a file", "to the root"])
def test_a_link_that_leads_nowhere_good_is_refused_early(server: ArchiveServer, tmp_path: Path, kind: str) -> None:
    """A link in a circle, to a file, to a folder with files or to the root is an error before any request or change."""
    link, there = tmp_path / "a.zarr", tmp_path / "there"
    match kind:
        case "in a circle":
            there.symlink_to(link)
        case "to a file":
            there.write_text("mine")
        case "to a folder with a file":
            there.mkdir()
            (there / "mine").write_text("mine")
        case "to the root":
            there = Path("/")
    link.symlink_to(there)
    before = sorted(tmp_path.rglob("*"))
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    with pytest.raises((ld.InvalidArgumentError, ld.StoreExistsError)) as told:
        ld.to_zarr(ds, link, bounding_box=BOX, progress=False)
    assert "\n" not in str(told.value)
    assert server.requests == []
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_replaced(server: ArchiveServer, tmp_path: Path) -> None:
    """A store takes the place of an empty folder."""
    (tmp_path / "a.zarr").mkdir()
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert xr.open_zarr(tmp_path / "a.zarr").raw.shape == (2, 40, 60)


def test_an_empty_folder_that_cannot_be_replaced_is_refused_early(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder that cannot be renamed or replaced is an error before any request."""
    target = tmp_path / "a.zarr"
    target.mkdir()
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    for name in ("rename", "replace"):
        move = getattr(os, name)

        def refuse(source: Path, to: Path, move=move) -> None:
            if target in (Path(source), Path(to)):
                raise OSError(errno.EBUSY, "Device or resource busy", str(source))
            move(source, to)

        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(ld.InvalidArgumentError, match=r"a\.zarr is an empty folder that a store cannot take the place"):
        ld.to_zarr(ds, target, bounding_box=BOX, progress=False)
    assert server.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_mount_point_is_refused_early(archive: Path, tmp_path: Path) -> None:
    """A real mount point is an error, with the message of the system."""
    (tmp_path / "a.zarr").mkdir()
    script = f"""
        import subprocess
        subprocess.run(["mount", "-t", "tmpfs", "none", "a.zarr"], check=True)
        import liver_dask as ld
        ds = ld.open_human_liver_em({str(archive)!r}, shape={SHAPE})
        try: ld.to_zarr(ds, "a.zarr", bounding_box={BOX}, progress=False)
        except ld.InvalidArgumentError as error: print(error)
    """
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*command, "mount", "-t", "tmpfs", "none", tmp_path]).returncode:
        pytest.skip("nothing can be mounted here")
    command += [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=100)
    assert "cannot take the place of (Device or resource busy), a mount point perhaps" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_partial_folder_on_another_disk_is_refused_early(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `.partial` folder on another disk than the store is an error before any request."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk here")
    partial = elsewhere / f"liver_dask-{os.getpid()}"
    partial.mkdir()
    try:
        (tmp_path / "a.zarr.partial").symlink_to(partial)
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.InvalidArgumentError, match="is on another disk than"):
            ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False)
        assert server.requests == []
    finally:
        shutil.rmtree(partial)


def test_what_is_foreign_in_the_partial_folder_stays(server: ArchiveServer, tmp_path: Path) -> None:
    """A user's file in the `.partial` folder stays there when the store is complete."""
    partial = tmp_path / "a.zarr.partial"
    partial.mkdir()
    (partial / "lock").write_text("")
    (partial / "notes.txt").write_text("mine")
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False)
    assert [path.name for path in partial.iterdir() if path.name != "lock"] == ["notes.txt"]
    assert record.read_record(tmp_path / "a.zarr")


def test_what_is_foreign_in_an_unfinished_store_stays(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's files in an unfinished store, and in its progress folder, are kept when the store is completed."""
    ds, box = ld.open_human_liver_em(server.url, shape=SHAPE), BOX
    with monkeypatch.context() as patch:
        patch.setattr("liver_dask.store.writer.Store.complete", lambda store: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=box, progress=False)
    partial = tmp_path / "a.zarr.partial"
    mine = ["store/notes.partial", "store/raw/.mine", "store/liver_dask/.mine.txt", "progress/mine.txt"]
    for name in mine:
        (partial / name).write_text("precious")
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=box, progress=False)
    there = [tmp_path / "a.zarr" / name.removeprefix("store/") for name in mine[:3]] + [partial / mine[3]]
    assert all(path.read_text() == "precious" for path in there)
