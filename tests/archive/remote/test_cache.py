"""The cache folder removes nothing but its own entries, and an error of its disk makes no read fail."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.command import run_here
from liver_dask.archive import reader
from liver_dask.archive.remote.cache import FolderCache, RangeCache
from liver_dask.archive.remote.ranges import ByteRange
from liver_dask.archive.remote.versions import FileVersion
from liver_dask.demo import ArchiveServer

VERSION = FileVersion(10**6, "v1")


def make_foreign(folder: Path) -> dict[Path, bytes]:
    """A user's own files where the cache has, or might have, its entries."""
    digest = "0123456789abcdef" * 2
    names = ["mine.txt", "raw/scan.raw", "raw/007/1", f"raw/{digest}/12", f"raw/{digest}/notes", f"masks/{digest}"]
    names += [
        "raw/.part-mine",
        "masks/cell.png",
        "strips/a/b",
        f"strips/{digest[:-1]}g",
        f"raw/{digest}/.part-00000000",
    ]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"precious " + name.encode() * 1000)
        os.utime(path, (1, 1))  # as the oldest they are the first to be removed
    (folder / "raw" / "empty").mkdir()
    return {folder / name: (folder / name).read_bytes() for name in names}


def assert_untouched(foreign: dict[Path, bytes]) -> None:
    assert {path: path.read_bytes() for path in foreign if path.exists()} == foreign


def fill(folder: Path, limit: int, count: int, url: str = "http://a/b.tif") -> RangeCache:
    cache = RangeCache(str(folder), limit)
    for number in range(count):
        byte_range = ByteRange(number << 22, (number << 22) + 900)
        cache.keep(url, VERSION, [byte_range], [memoryview(bytes([number]) * 900)])
    return cache


def test_a_cache_that_is_full_removes_its_own_alone(tmp_path: Path) -> None:
    """A full cache drops its own oldest entries and leaves a user's files in place."""
    foreign = make_foreign(tmp_path)
    cache = fill(tmp_path, 10_000, 30)
    assert_untouched(foreign)
    assert cache.find("http://a/b.tif", VERSION, [ByteRange(0, 900), ByteRange(29 << 22, (29 << 22) + 900)])[0] is None


def test_emptying_a_cache_removes_its_own_alone(server: ArchiveServer, tmp_path: Path) -> None:
    """`liver-dask cache clear` removes all files of the cache and no others."""
    foreign = make_foreign(tmp_path)
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, cache_dir=tmp_path, cache_raw_gb=1)
    ds.isel(z=2).compute()
    torn = next(path for path in tmp_path.rglob("*") if path.is_file() and path not in foreign)
    killed = torn.with_name(".part-abcd1234")
    killed.write_bytes(torn.read_bytes()[:60])  # as a killed process leaves it
    done = run_here("cache", "clear", tmp_path)
    assert done.returncode == 0, done.stderr
    assert " files removed" in done.stdout
    assert_untouched(foreign)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(foreign)
    assert (tmp_path / "raw" / "empty").is_dir()


def test_forgetting_a_file_removes_its_entries_alone(tmp_path: Path) -> None:
    """Dropping a file removes its entries and leaves a foreign file beside them."""
    fill(tmp_path, 10**9, 3)
    (entry, *_) = (path for path in tmp_path.rglob("raw/*/*"))
    (entry.parent / "77").write_bytes(b"precious")
    FolderCache(str(tmp_path)).drop("http://a/b.tif")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["77"]


@pytest.mark.parametrize("step", ["write", "replace", "mkdir", "mkstemp"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_disk_costs_no_voxel_and_leaves_no_parts(
    server: ArchiveServer, tmp_path: Path, monkeypatch, voxels, caplog, step: str, number: int
) -> None:
    """If an entry cannot be written, the voxels are right, no file is left, and one warning is given."""

    def fails(*_args: Any, **_options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    real_open = open

    def full(*args: Any, **options: Any) -> Any:
        file = real_open(*args, **options)
        return FullFile(file, fails) if isinstance(args[0], int) else file

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr("liver_dask.archive.remote.cache.open", full, raising=False)
        else:
            where = {"replace": "os.replace", "mkdir": "pathlib.Path.mkdir", "mkstemp": "tempfile.mkstemp"}
            patch.setattr(f"liver_dask.archive.remote.cache.{where[step]}" if step != "mkdir" else where[step], fails)
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, cache_dir=tmp_path, cache_raw_gb=1)
        for name in ("raw", "er"):
            np.testing.assert_array_equal(ds[name][:3], voxels[name][:3])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1, "once, not for each entry"
    assert os.strerror(number) in warned[0].message


class FullFile:
    """A file on a disk that is full after ten bytes."""

    def __init__(self, file: Any, fails: Callable[[], Any]) -> None:
        self._file, self._fails = file, fails

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[:10])
        self._file.flush()
        self._fails()


def test_a_read_only_cache_over_its_limit_fails_no_read(
    server: ArchiveServer, tmp_path: Path, monkeypatch, voxels
) -> None:
    """If old entries cannot be removed, reads still succeed."""
    fill(tmp_path, 10**9, 30)

    def fails(path: Path, *_args: Any, **_options: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", fails)  # file modes do not stop root
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, cache_dir=tmp_path, cache_raw_gb=1e-5)
    np.testing.assert_array_equal(ds.raw[:2], voxels["raw"][:2])


@pytest.mark.parametrize("flip", range(0, 120, 7))
def test_a_damaged_header_of_an_entry_is_no_entry(server: ArchiveServer, tmp_path: Path, flip: int, voxels) -> None:
    """An entry with a damaged header is ignored, and the voxels are right."""
    options = {"shape": SHAPE, "cache_dir": tmp_path, "cache_raw_gb": 1}
    ld.open_human_liver_em(server.url, **options)[["raw", "er"]].isel(z=1).compute()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        data = bytearray(path.read_bytes())
        data[flip] ^= 1
        path.write_bytes(data)
    reader._memory._clear()
    again = ld.open_human_liver_em(server.url, **options).isel(z=1)
    for name in ("raw", "er"):
        np.testing.assert_array_equal(again[name], voxels[name][1])


def test_an_entry_with_a_deeply_nested_header_is_no_entry(tmp_path: Path) -> None:
    """A header that is nested too deeply for the JSON parser is damaged, too."""
    cache = FolderCache(str(tmp_path))
    cache.store("strips", "http://host/file", FileVersion(3, "a"), b"...")
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(b"[" * 200_000 + b"\n...")
    assert cache.load("strips", "http://host/file") is None
