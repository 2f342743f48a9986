"""Stores from elsewhere: no request is sent, no file opened and no memory allocated only because a store says so."""

import io
import json
import logging
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

import liver_dask as ld
from helpers import tiny
from helpers.command import run_here
from helpers.tiny import nested
from liver_dask import cli
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import ArchiveServer, serve
from liver_dask.store import levels as store_levels
from liver_dask.store import ome_zarr
from liver_dask.store.array import StoredArray
from liver_dask.store.record import read_statistics
from liver_dask.store.record_checks import record_problem

MOST_MEMORY = 96 << 20


@pytest.fixture
def elsewhere(made: Path, tmp_path: Path) -> Path:
    """A copy of the archive in another place, which a test may change."""
    return shutil.copytree(made.parent / "archive", tmp_path / "elsewhere")


def of_server(made: Path, tmp_path: Path, server: ArchiveServer) -> Path:
    return tiny.make_tiny_store(tmp_path, server.url, "of_server.zarr")


def test_the_recorded_address_is_reported_before_it_is_asked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`verify` prints the recorded address of the source before the first request, or logs it if progress is off."""
    asked: list[int] = []
    with serve(made.parent / "archive") as server:
        path = of_server(made, tmp_path, server)
        server.requests.clear()

        class Seen(io.StringIO):
            def write(self, text: str) -> int:
                if server.url in text:
                    asked.append(len(server.requests))
                return super().write(text)

        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", Seen())
            assert ld.verify(path).ok
        assert asked
        assert asked[0] == 0
        assert server.requests
        with caplog.at_level(logging.INFO, "liver_dask"):
            ld.verify(path, progress=False)
        assert any(server.url in record.getMessage() for record in caplog.records)


def test_who_names_the_source_is_not_told_of_it(made: Path, elsewhere: Path, capsys: pytest.CaptureFixture) -> None:
    """`verify` prints the recorded address, but not if the caller gives a source or a Dataset."""
    ld.verify(made, source=elsewhere)
    ld.verify(made, ld.open_human_liver_em(made.parent / "archive", shape=tiny.SHAPE, labels=["er"]))
    assert "Comparing with" not in capsys.readouterr().err
    ld.verify(made)
    assert f"Comparing with {made.parent / 'archive'}" in capsys.readouterr().err


@pytest.mark.parametrize("full", [False, True])
def test_another_address_of_the_archive_can_be_named(made: Path, elsewhere: Path, tmp_path: Path, full: bool) -> None:
    """`verify` compares a store with the given source, and sends no request to the recorded address."""
    with serve(made.parent / "archive") as first:
        path = of_server(made, tmp_path, first)
        first.requests.clear()
        with serve(elsewhere) as other:
            report = ld.verify(path, source=other.url, full=full, progress=False)
            assert report.ok, report
            assert report.voxels
            assert other.requests
            assert not first.requests
            file = elsewhere / EMPIAR_13356.path("raw", 3)
            voxels = tifffile.imread(file)
            voxels[0, 7] += 1
            tifffile.imwrite(file, voxels, rowsperstrip=1)
            ld.open_human_liver_em(other.url, shape=tiny.SHAPE)  # opening it again forgets what was read
            report = ld.verify(path, source=other.url, full=full, progress=False)
            assert any("raw[3, 0, 7]" in problem for problem in report.problems), report


def test_a_source_and_a_dataset_are_one_too_many(made: Path) -> None:
    """`verify` refuses a source and a Dataset together."""
    ds = ld.open_human_liver_em(made.parent / "archive", shape=tiny.SHAPE, labels=["er"])
    with pytest.raises(ld.InvalidArgumentError, match="either"):
        ld.verify(made, ds, source=made.parent / "archive")


def test_the_command_takes_a_source(made: Path, elsewhere: Path, store: Path) -> None:
    """`liver-dask verify` takes `--source`. Without it, the command prints the recorded address and mentions this
    option.
    """
    recorded = run_here("verify", store)
    assert recorded.returncode == 0, recorded.stderr
    assert f"Comparing with {made.parent / 'archive'}" in recorded.stderr
    assert "--source" in recorded.stderr
    named = run_here("verify", store, "--source", elsewhere)
    assert named.returncode == 0, named.stderr
    assert "Comparing with" not in named.stderr


@pytest.mark.parametrize(
    "address",
    [
        "ssh://h/x",
        "reference://h/x",
        "gopher://h/x",
        "zip://::http://h/x",
        "archive",
        "../archive",
        "~/x",
        "",
        "dask://",
    ],
)
def test_an_address_of_another_kind_is_not_opened_unasked(
    store: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """A recorded address that is relative or of another protocol is an error and is not opened. `verify` accepts
    another source instead.
    """
    import fsspec

    def change(record: dict[str, Any]) -> None:
        for variable in record["variables"].values():
            variable["voxels"]["source"] = address

    tiny.edit_record(store, change)
    with monkeypatch.context() as patched:
        patched.setattr(fsspec, "url_to_fs", lambda *_, **__: pytest.fail("it was opened"))
        patched.setattr(fsspec, "get_filesystem_class", lambda *_, **__: pytest.fail("it was looked at"))
        with pytest.raises(ld.LiverDaskError, match="source"):
            ld.verify(store, progress=False)
    report = ld.verify(store, source=elsewhere, progress=False)
    assert report.voxels


def of_record(key: str, value: Any) -> Callable[[Path], None]:
    return lambda store: tiny.edit_record(store, lambda record: {**record} and record.__setitem__(key, value))


def of_both(key: str, value: Any, in_array: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Return a change of a value in the record, and of the arrays' metadata, so that both say the same."""

    def change(store: Path) -> None:
        of_record(key, value)(store)
        for name in ("raw", "er"):
            tiny.edit(store / name / "zarr.json", in_array)

    return change


def set_shape(shape: list[int]) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__("shape", shape)


def of_variable(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda store: tiny.edit_record(store, lambda record: change(record["variables"]["raw"]))


def of_origin(key: str, value: Any) -> Callable[[Path], None]:
    return of_variable(lambda variable: variable["voxels"].__setitem__(key, value))


def of_file(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda store: tiny.edit(store / path, change)


HUGE = 2**31 - 1
ABSURD: dict[str, Callable[[Path], None]] = {
    **{
        f"{key} {value!r:.40}": of_record(key, value)
        for key in ("shape", "chunks", "shards")
        for value in (
            [HUGE, HUGE, HUGE], [10**30, 40, 50], [-4, 40, 50], [0, 40, 50], ["4", "40", "50"], [[4], [40], [50]],
            [4.0, 40.0, 50.0], [4, 40], "abc", None, [True, 40, 50], [4, HUGE, 50], [1, 1, 1],
        )
    },
    "shape everywhere": of_both("shape", [HUGE, HUGE, HUGE], set_shape([HUGE] * 3)),
    "slices everywhere": of_both("shape", [HUGE, 40, 50], set_shape([HUGE, 40, 50])),
    "columns everywhere": of_both("shape", [4, 40, HUGE], set_shape([4, 40, HUGE])),
    "variables none": of_record("variables", {}),
    "variables a list": of_record("variables", ["raw"]),
    "variables text": of_record("variables", "raw"),
    "variables null": of_record("variables", {"raw": None}),
    "a name up the tree": lambda store: tiny.edit_record(
        store, lambda record: record["variables"].__setitem__("../a.zarr/raw", record["variables"]["raw"])
    ),
    "a name of the root": lambda store: tiny.edit_record(
        store, lambda record: record["variables"].__setitem__("/etc", record["variables"]["raw"])
    ),
    "a name of a group": lambda store: tiny.edit_record(
        store, lambda record: record["variables"].__setitem__("liver_dask", record["variables"]["raw"])
    ),
    "a name of a coordinate": lambda store: tiny.edit_record(
        store, lambda record: record["variables"].__setitem__("x", record["variables"]["raw"])
    ),
    **{
        f"dtype {dtype!r:.30}": of_variable(lambda variable, dtype=dtype: variable.__setitem__("dtype", dtype))
        for dtype in (
            "O", "<u3", "V2147483647", "<U1000000", "<u2,<u2", "M8[ns]", "(", "", None, 5, ["<u2"], "<u4", ">u2",
        )
    },
    "no dtype": of_variable(lambda variable: variable.pop("dtype")),
    "no voxels": of_variable(lambda variable: variable.pop("voxels")),
    "voxels a number": of_variable(lambda variable: variable.__setitem__("voxels", 5)),
    "voxels empty": of_variable(lambda variable: variable.__setitem__("voxels", {})),
    "origin of many slices": of_origin("shape", [HUGE, 40, 50]),
    "origin of many rows": of_origin("shape", [4, HUGE, 50]),
    "origin of all": of_origin("shape", [HUGE, HUGE, HUGE]),
    "origin without shape": of_origin("shape", None),
    "origin of text": of_origin("shape", "abc"),
    "origin beyond": of_origin("z", [4, 8, 1]),
    "origin of no step": of_origin("z", [0, 4, 0]),
    "origin of a huge step": of_origin("z", [0, 10**30, 10**29]),
    "origin of more": of_origin("x", [0, 51, 1]),
    "origin of text in a range": of_origin("y", ["0", "40", "1"]),
    "origin of another label": of_origin("variable", "../../etc"),
    "origin of a list": of_origin("variable", ["raw"]),
    "origin at no address": of_origin("source", None),
    "origin at a list": of_origin("source", ["http://h"]),
    "files text": of_variable(lambda variable: variable.__setitem__("files", 5)),
    "no record": of_file("liver_dask/zarr.json", lambda _: []),
    "attributes a list": of_file("liver_dask/zarr.json", lambda document: document.__setitem__("attributes", [])),
    **{
        f"shard key {key!r:.30}": of_file(
            "raw/manifest.json", lambda document, key=key: document["shards"].__setitem__(key, [5, 5])
        )
        for key in (
            "../../../x", "0/0", "0/0/0/0", "-1/0/0", "00/0/0", "0/0/" + "9" * 400, "x", "", "9/9/9", " 0/0/0",
            "\u0660/0/0",
        )
    },
    **{
        f"checksum {found!r:.30}": of_file(
            "raw/manifest.json", lambda document, found=found: document["shards"].__setitem__("0/0/0", found)
        )
        for found in (
            "ab", [1], [1, 2, 3], ["1", "2"], [-1, 5], [10**40, 5], [5, 2**32], [True, 1], {"a": 1, "b": 2}, None,
            [1.5, 2],
        )
    },
    "shards a list": of_file("raw/manifest.json", lambda document: document.__setitem__("shards", [])),
    "shards none": of_file("raw/manifest.json", lambda document: document.__setitem__("shards", {})),
    "sources a number": of_file("raw/manifest.json", lambda document: document.__setitem__("sources", 5)),
    "sources of numbers": of_file("raw/manifest.json", lambda document: document.__setitem__("sources", [1, 2])),
    "sources without size": of_file("raw/manifest.json", lambda document: document["sources"][0].pop("size")),
    "nested": lambda store: (store / "raw" / "manifest.json").write_text("[" * 100_000) and None,
    "a record nested": lambda store: (store / "liver_dask" / "zarr.json").write_text("[" * 100_000) and None,
    "a record nested as far as Python reads": of_record("deep", nested(600)),
    "a root nested as far as Python reads": of_file(
        "zarr.json", lambda document: document["attributes"].update(ome=nested(600), voxel_size_nm=nested(600))
    ),
    "a root nested": lambda store: (store / "zarr.json").write_text("[" * 100_000) and None,
    "not text": lambda store: (store / "liver_dask" / "zarr.json").write_bytes(bytes(range(256))) and None,
    "a coordinate of many": of_file("x/zarr.json", lambda document: document.__setitem__("shape", [2**33])),
    "a coordinate in one chunk": of_file(
        "x/zarr.json", lambda document: document["chunk_grid"]["configuration"].__setitem__("chunk_shape", [2**33])
    ),
    "a table of many": of_file(
        "liver_dask/raw/nonzero/zarr.json", lambda document: document.__setitem__("shape", [2**11, 2**11, 2**11])
    ),
    "a table of one large chunk": of_file(
        "liver_dask/raw/nonzero/zarr.json",
        lambda document: document["chunk_grid"]["configuration"].__setitem__("chunk_shape", [2**11, 2**11, 2**11]),
    ),
    "a table of a codec of a long name": of_file(
        "liver_dask/raw/mean/zarr.json", lambda document: document["codecs"].append({"name": "x" * 5000})
    ),
    "a voxel of no size": of_file("zarr.json", lambda document: document["attributes"].update(voxel_size_nm=[0, 0, 0])),
    "a voxel of text": of_file("zarr.json", lambda document: document["attributes"].update(voxel_size_nm="abc")),
    "a voxel of two": of_file("zarr.json", lambda document: document["attributes"].update(voxel_size_nm=[8])),
    "a voxel too large": of_file(
        "zarr.json", lambda document: document["attributes"].update(voxel_size_nm=[10**400, 8, 8])
    ),
}  # fmt: skip


LARGE = re.compile(r"many|large|everywhere|of all|huge|2147483647|1000000")


def result_of(what: str, call: Callable[[], Any]) -> Any:
    """Return the result of a call, or its error, whose message is one short line. If the name of the case stands for
    something large, the call must not take much memory.
    """
    if LARGE.search(what):
        tracemalloc.start()
    try:
        result = call()
    except ld.LiverDaskError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
        return error
    finally:
        if tracemalloc.is_tracing():
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MOST_MEMORY, f"{peak / 1e6:.0f} MB"
    return result


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ABSURD)
def test_what_cannot_be_is_reported_by_all_that_read_it(made: Path, store: Path, what: str) -> None:
    """Absurd metadata are reported or refused by `verify`. The other readers return right voxels or raise a short
    error, and none of them takes much memory.
    """
    expected = StoredArray(made, "raw")[:, :, :]
    ABSURD[what](store)

    def read() -> None:
        np.testing.assert_array_equal(StoredArray(store, "raw")[0:4, 0:40, 0:50], expected)

    def read_table() -> None:
        np.testing.assert_array_equal(read_statistics(store, "raw", "nonzero"), read_statistics(made, "raw", "nonzero"))

    report = result_of(what, lambda: ld.verify(store, full=True, progress=False))
    if isinstance(report, ld.VerifyReport):
        assert report.problems
        assert len(str(report)) < 20_000
    for call in (
        read,
        read_table,
        lambda: ld.add_pyramid(store, progress=False),
        lambda: store_levels.levels_of(store),
    ):
        result_of(what, call)
    told = result_of(what, lambda: CliRunner().invoke(cli.main, ["info", str(store)]))
    assert told.exception is None or isinstance(told.exception, SystemExit), told.exception
    assert "Traceback" not in told.output
    assert told.exit_code == 0 or re.search(r"Error: \S", told.output)


@pytest.mark.parametrize("path", ["liver_dask/zarr.json", "labels/zarr.json"])
@pytest.mark.parametrize("depth", [600, 1_100, 100_000])
def test_what_is_nested_is_reported_by_what_describes_a_store(store: Path, path: str, depth: int) -> None:
    """Deeply nested metadata are a short error of add_pyramid, which names the store.

    Which depth can be read but not written depends on the versions of Python and Zarr: a depth of 600 may also be fine.
    """
    (store / "labels").mkdir()
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    document = json.loads((store / path).read_bytes()) if (store / path).exists() else group
    document["attributes"]["deep"] = "here"
    (store / path).write_text(json.dumps(document).replace('"here"', "[" * depth + "]" * depth))
    told = result_of(path, lambda: ld.add_pyramid(store, progress=False))
    if isinstance(told, list) and depth == 600:
        assert ome_zarr.is_described(store_levels.levels_of(store))
        return
    assert isinstance(told, ld.LiverDaskError)
    assert re.search(rf"{re.escape(str(store))}.*(damaged|nested|group|cannot be read)", str(told))


def test_a_name_leads_nowhere_else(store: Path, tmp_path: Path) -> None:
    """A variable name that leads out of the store is an error in verify and in StoredArray."""
    (tmp_path / "secret" / "c" / "0" / "0").mkdir(parents=True)
    (tmp_path / "secret" / "c" / "0" / "0" / "0").write_bytes(b"secret" * 100)
    shutil.copy(store / "raw" / "manifest.json", tmp_path / "secret")
    shutil.copy(store / "raw" / "zarr.json", tmp_path / "secret")
    tiny.edit_record(store, lambda record: record["variables"].__setitem__("../secret", record["variables"]["raw"]))
    with pytest.raises(ld.DamagedError, match="damaged"):
        ld.verify(store, progress=False)
    with pytest.raises(ld.DamagedError, match="damaged"):
        StoredArray(store, "../secret")


def test_arrays_that_disagree_with_the_record_are_not_read(store: Path) -> None:
    """An array whose shape is not that of the record is an error when it is read, and is reported by verify."""
    tiny.edit(store / "raw" / "zarr.json", set_shape([4, 40, 48]))
    with pytest.raises(ld.DamagedError, match="shape"):
        StoredArray(store, "raw")
    assert StoredArray(store, "er")[0:1, 0:1, 0:1].shape == (1, 1, 1)
    report = ld.verify(store, progress=False)
    assert any("the metadata of raw: its shape" in problem for problem in report.problems), report


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"shards": [8, 8, 8]}, "more than the shape"),
        ({"shards": [4, 8, 6]}, "whole number of chunks"),
        ({"shape": [8, 2**13, 2**14], "chunks": [8, 2**13, 2**14], "shards": [8, 2**13, 2**14]}, "more than can be"),
        ({"shape": [1, 2**13, 2**13], "chunks": [1, 1, 2], "shards": [1, 2**13, 2**13]}, "more chunks than can be"),
        ({"shape": [1, 2**12, 2**13], "chunks": [1, 1, 2], "shards": [1, 2**12, 2**13]}, None),
    ],
)
def test_grids_that_cannot_be_are_named(change: dict[str, Any], told: str | None) -> None:
    """A record whose grids were not planned by this package, or need too much memory, has a problem."""
    variables = {"raw": {"dtype": "<u2", "files": [], "voxels": "computed x"}}
    record = {"shape": [4, 8, 8], "chunks": [2, 4, 4], "shards": [4, 8, 8], "variables": variables}
    problem = record_problem(record | change)
    assert problem == told if told is None else told in str(problem)
