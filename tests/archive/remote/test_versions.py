"""A Dataset sees one version of each file, or raises an error, also after copies, pickles and from a cache."""

import contextlib
import json
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.processes import NewProcesses
from liver_dask.archive import reader
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import tiff
from liver_dask.archive.remote.fsspec_transport import FsspecTransport
from liver_dask.core.kinds import RAW
from liver_dask.demo import ArchiveServer, RangeRequestHandler, serve

LONG_AGO = 1_000_000_000


@pytest.fixture
def own(archive: Path, tmp_path: Path) -> Path:
    """An archive that a test may change."""
    folder = tmp_path / "own"
    shutil.copytree(archive, folder)
    for path in folder.rglob("*.*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def change(own: Path, z: int = 0, when: float | None = None) -> None:
    """Replace every file of a slice by one with other pixels, dated `when` (default: now)."""
    for name in (RAW, *EMPIAR_13356.labels):
        path = own / EMPIAR_13356.path(name, z)
        if name == RAW:
            shutil.copyfile(own / EMPIAR_13356.path(name, z + 1), path)
        else:
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        os.utime(path, (when or time.time(),) * 2)


class WithoutVersions(RangeRequestHandler):
    """Sends neither ETag nor date, so that versions cannot be told apart."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword not in ("ETag", "Last-Modified"):
            super().send_header(keyword, value)


class WithoutEtags(RangeRequestHandler):
    """Sends a date and no ETag, as Python's own web server does."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "ETag":
            super().send_header(keyword, value)


def forget() -> None:
    """Clear the caches of this process, as in a new process."""
    reader._memory._clear()
    tiff.cached_rows._clear()


def read_or_error(ds: xr.Dataset, name: str, rows: slice = slice(None)) -> np.ndarray | None:
    try:
        return ds[name][0, rows].values
    except ld.SourceChangedError:
        return None


@pytest.mark.parametrize("name", ["raw", "er"])
@pytest.mark.parametrize("raw_gb", [0, 1])
def test_a_cached_file_is_of_the_present_version_or_not_used(own: Path, tmp_path: Path, name: str, raw_gb: int) -> None:
    """After a change of a file, a new Dataset reads the new version and nothing from the cache."""
    with serve(own) as server:
        options = {"shape": SHAPE, "chunk_rows": 16, "cache_dir": tmp_path / "kept", "cache_raw_gb": raw_gb}
        before = ld.open_human_liver_em(server.url, **options)[name][0].values
        change(own)
        forget()
        found = ld.open_human_liver_em(server.url, **options)[name][0].values
        forget()
        expected = ld.open_human_liver_em(own, shape=SHAPE)[name][0].values
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(before, found)


def test_what_is_cached_is_checked_by_one_byte_and_once(server: ArchiveServer, tmp_path: Path) -> None:
    """A new process checks each cached file by one request of one byte."""
    options = {"shape": SHAPE, "chunk_rows": 16, "cache_dir": tmp_path, "cache_raw_gb": 1}
    ld.open_human_liver_em(server.url, **options)[["raw", "er"]].isel(z=[0, 1]).compute()
    forget()
    server.requests.clear()
    ld.open_human_liver_em(server.url, **options)[["raw", "er"]].isel(z=[0, 1]).compute()
    assert [request.stop - request.start for request in server.requests] == [1, 1, 1, 1]
    assert len({request.path for request in server.requests}) == 4


@pytest.mark.parametrize("name", ["raw", "er"])
def test_another_dataset_of_the_source_changes_nothing_for_the_first(own: Path, name: str) -> None:
    """After a change, the first Dataset gives its own version or an error, even if a second one reads the new."""
    with serve(own) as server:
        first = ld.open_human_liver_em(server.url, shape=SHAPE)
        expected = ld.open_human_liver_em(own, shape=SHAPE)[name][0].values
        top = first[name][0, :50].values
        change(own)
        second = ld.open_human_liver_em(server.url, shape=SHAPE)
        assert not np.array_equal(second[name][0, :50].values, top)
        for rows in (slice(200, None), slice(50), slice(None)):
            found = read_or_error(first, name, rows)
            assert found is None or np.array_equal(found, expected[rows])
        forget()
        assert read_or_error(first, name, slice(200, None)) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "read_first", "name"),
    [(RangeRequestHandler, False, "er"), (WithoutEtags, False, "raw"), (RangeRequestHandler, True, "raw")],
)
def test_two_processes_that_share_a_dataset_see_one_version(
    own: Path,
    tmp_path: Path,
    new_processes: NewProcesses,
    handler: type[RangeRequestHandler],
    read_first: bool,
    name: str,
) -> None:
    """If a file changes between the reads of two processes, the second one raises SourceChangedError."""
    script = (
        "import pickle, sys, numpy as np, liver_dask as ld\n"
        "ds = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "try:\n    np.save(sys.argv[2], ds[sys.argv[3]][0, int(sys.argv[4]) :][:100].values)\n"
        "except ld.SourceChangedError as error:\n    print('refused:', error)\n"
    )

    def read(place: str, row: int) -> str:
        return new_processes.run(script, tmp_path / "ds", tmp_path / place, name, row)

    with serve(own, handler) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        if read_first:  # then the pickle contains the version
            ds[name][0, :3].compute()
        (tmp_path / "ds").write_bytes(pickle.dumps(ds))
        assert read("one.npy", 0) == ""
        if not read_first:
            time.sleep(2.1)  # dates of HTTP are in whole seconds
        change(own, when=LONG_AGO + 5 if read_first else None)
        assert read("two.npy", 100).startswith("refused: ")


def test_a_file_that_is_older_than_the_dataset_is_read_whatever_the_clocks_say(own: Path) -> None:
    """Files are read from a server whose clock is an hour ahead or behind."""

    class Ahead(RangeRequestHandler):
        hours = 1.0

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((time.time() if timestamp is None else timestamp) + 3600 * self.hours)

    for hours in (1.0, -1.0):
        change(own)
        with serve(own, type("Skewed", (Ahead,), {"hours": hours})) as server:
            assert ld.open_human_liver_em(server.url, shape=SHAPE).raw[0, :9].values.any()


def test_copies_in_a_process_share_what_was_read(own: Path) -> None:
    """Copies, pickles and crops of a Dataset know the versions of files that it has read."""
    ds = ld.open_human_liver_em(own, shape=SHAPE)
    copies = [pickle.loads(pickle.dumps(ds)), ds.copy(deep=True), ds.isel(z=slice(2)), ds.chunk(y=50)]
    ds.er[0, :20].compute()
    change(own, when=LONG_AGO + 5)
    for copy in copies:
        forget()
        assert read_or_error(copy, "er", slice(200, None)) is None


def test_without_etag_and_date_nothing_kept_outlives_the_dataset(own: Path, tmp_path: Path) -> None:
    """Without ETag and date nothing is kept in the cache folder, and a new Dataset reads the new file."""
    with serve(own, WithoutVersions) as server:
        options = {"shape": SHAPE, "cache_dir": tmp_path / "kept", "cache_raw_gb": 1}
        path = own / EMPIAR_13356.path("er", 0)
        size = path.stat().st_size
        before = ld.open_human_liver_em(server.url, **options).er[0].values
        mask = np.asarray(Image.open(path))
        mask = np.roll(mask, 1, axis=0)
        Image.fromarray(mask).save(path)
        with path.open("ab") as file:  # pad to the same size; bytes after IEND are ignored
            file.write(bytes(max(size - path.stat().st_size, 0)))
        if path.stat().st_size != size:
            Image.fromarray(mask).save(path, compress_level=9)
        found = ld.open_human_liver_em(server.url, **options).er[0].values
    np.testing.assert_array_equal(found, mask)
    assert not np.array_equal(before, found)
    assert not [entry for entry in (tmp_path / "kept").rglob("*") if entry.is_file()]


@contextlib.contextmanager
def many_read(server: ArchiveServer) -> Iterator[xr.Dataset]:
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    ds.isel(z=[0, 1, 2, 3], y=slice(50)).compute()
    yield ds


def test_a_store_knows_the_files_that_it_is_made_of_and_no_others(server: ArchiveServer, tmp_path: Path) -> None:
    """The manifest of each variable lists exactly the source files that it was computed from."""
    with many_read(server) as ds:
        part = ds.assign(both=ds.raw.where(ds.mito > 0, 0))[["raw", "er", "both"]].isel(z=slice(4, 6))
        ld.to_zarr(part, tmp_path / "a.zarr", progress=False)
    for name, of in {"raw": ["raw"], "er": ["er"], "both": ["mito", "raw"]}.items():
        manifest = json.loads((tmp_path / "a.zarr" / name / "manifest.json").read_bytes())
        expected = {f"{server.url}/{EMPIAR_13356.path(variable, z)}" for variable in of for z in (4, 5)}
        assert {source["url"] for source in manifest["sources"]} == expected


def test_a_changed_file_of_another_slice_does_not_stop_a_store(own: Path, tmp_path: Path) -> None:
    """A changed file stops an export only if the export reads it."""
    with serve(own) as server, many_read(server) as ds:
        ld.to_zarr(ds.isel(z=slice(0, 2)), tmp_path / "a.zarr", progress=False)
        change(own, z=0)
        ld.to_zarr(ds.isel(z=slice(4, 6)), tmp_path / "b.zarr", progress=False)
        with pytest.raises(ld.SourceChangedError):
            ld.to_zarr(ds.isel(z=slice(0, 1)), tmp_path / "c.zarr", progress=False)


def test_what_was_read_of_files_changes_no_name(own: Path) -> None:
    """Dask names do not depend on what was read before, and differ for different parts."""

    def names() -> list[str]:
        ds = xr.open_dataset(own, engine="liver_dask", shape=SHAPE)
        parts = [ds.raw, ds.er, ds.raw[:2], ds.raw[2:4], ds.raw[[1, 3]], ds.raw[[1, 4]], ds.raw[:, 5:, ::2]]
        found = [part.chunk(y=100).data.name for part in parts]
        ds.er[0].compute()
        assert found == [part.chunk(y=100).data.name for part in parts]
        return [*found, ld.open_human_liver_em(own, shape=SHAPE).raw.data.name]

    first = names()
    assert len(set(first)) == len(first)
    assert names() == first


@pytest.mark.parametrize("name", ["raw", "er"])
def test_two_versions_that_two_processes_have_read_are_an_error_when_they_meet(
    own: Path, tmp_path: Path, new_processes: NewProcesses, name: str
) -> None:
    """If two processes have read two versions of a file, every copy of the Dataset raises an error afterwards."""
    script = (
        "import pickle, sys, liver_dask as ld\n"
        "ds = pickle.load(open(sys.argv[1], 'rb'))\nds[sys.argv[2]][0, -1].values\n"
        "pickle.dump(ds, open(sys.argv[1], 'wb'))\n"
    )
    pickled = tmp_path / "ds"
    ds = ld.open_human_liver_em(own, shape=SHAPE)
    pickled.write_bytes(pickle.dumps(ds))
    ds[name][0, :40].compute()
    change(own, when=LONG_AGO + 5)  # a date in the past, as `mv` and `rsync` keep it
    new_processes.run(script, pickled, name)
    again = pickle.loads(pickled.read_bytes())
    for copy in (ds, again, pickle.loads(pickle.dumps(ds))):
        for rows in (slice(None), slice(40), slice(200, None)):
            assert read_or_error(copy, name, rows) is None


def test_a_file_that_is_replaced_while_it_is_read(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced during a read is a SourceChangedError."""
    path = own / EMPIAR_13356.path("raw", 0)
    shutil.copyfile(own / EMPIAR_13356.path("raw", 1), tmp_path / "new")
    os.utime(tmp_path / "new", (LONG_AGO + 5,) * 2)
    ds = ld.open_human_liver_em(own, shape=SHAPE)
    ds.raw[0, :40].compute()
    real = LocalFileSystem.cat_file

    def cat_file(fs: LocalFileSystem, *args: object, **options: object) -> bytes:
        if (tmp_path / "new").exists():
            os.replace(tmp_path / "new", path)
        return real(fs, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", lambda seconds: None)
    assert read_or_error(ds, "raw", slice(100, None)) is None


def test_a_file_system_is_asked_what_there_is_and_not_what_there_was(own: Path) -> None:
    """Each transport has its own fsspec file system, which caches no listings."""
    source = ld.open_human_liver_em(f"file://{own}", shape=SHAPE).raw.data.lazy.read.source
    one, other = FsspecTransport(source), FsspecTransport(source)
    assert not one._fs.dircache.use_listings_cache
    assert one._fs is not other._fs


def test_datasets_that_treat_missing_slices_in_two_ways_are_two_to_dask(own: Path) -> None:
    """Datasets with `missing="raise"` and `missing="zeros"` have different dask names."""
    (own / EMPIAR_13356.path("er", 3)).unlink()
    strict, lenient = (ld.open_human_liver_em(own, shape=SHAPE, missing=word).er[3].data for word in ("raise", "zeros"))
    assert strict.name != lenient.name
    with pytest.raises(ld.SliceNotFoundError):
        dask.compute(lenient, strict)
