"""An archive is examined: what is there, what its files are, what its server can do; and lies are found."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

import liver_dask as ld
from helpers.archive import write_raw
from helpers.command import run_here
from helpers.hostile import LAN, WORST, HugeWithoutRanges, NoRanges, Profile, hostile
from helpers.paths import ROOT
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.doctor import survey
from liver_dask.archive.doctor.survey import runs
from liver_dask.archive.facts import check_facts_path, save_facts
from liver_dask.archive.formats import png_file
from liver_dask.archive.remote import retry
from liver_dask.cli import main
from liver_dask.demo import RangeRequestHandler, make_archive, serve

SHAPE = (6, 64, 80)
SHAPE_OPTION = ["--shape", *map(str, SHAPE)]
FILES = SHAPE[0] * 4


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny archive that is as its description says."""
    folder = tmp_path_factory.mktemp("honest")
    make_archive(folder, SHAPE)
    return folder


@pytest.fixture
def own(honest: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(honest, tmp_path / "archive"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(retry, "pause", lambda seconds: None)


def path_of(archive: Path, name: str, z: int) -> Path:
    return archive / EMPIAR_13356.path(name, z)


def examine(source: Any, **options: Any) -> ld.ArchiveReport:
    report = ld.examine(source, shape=SHAPE, **options)
    assert str(report)
    assert json.loads(json.dumps(report.as_json())) == report.as_json()
    assert report.ok == report.as_json()["ok"] == (not report.problems)
    return report


def pixels_of(archive: Path, z: int) -> np.ndarray:
    return tifffile.imread(path_of(archive, "raw", z))


def test_an_honest_archive_is_as_described(honest: Path) -> None:
    """Each file is asked for once, what is in it is read, and nothing is wrong."""
    with serve(honest) as server:
        report = examine(server.url, deep=1)
        asked = server.requests
    assert report.ok, report
    assert not report.notes
    for table in report.tables:
        assert list(table.sizes) == [path_of(honest, table.name, z).stat().st_size for z in range(SHAPE[0])]
        assert (table.missing, table.pages, table.failed) == ([], (), {})
    assert report.server == ld.archive.doctor.server.ServerFacts(True, True, True, True, True, True)
    assert {(one.variable, one.z) for one in report.slices} >= {
        (name, z) for name in ("raw", "mito", "er", "nucleus") for z in (0, 2, 5)
    }
    raw = next(one for one in report.slices if one.variable == "raw")
    assert raw.facts == {
        "format": "TIFF", "shape": [64, 80], "dtype": "uint16", "byte_order": "little", "directory": "at the end",
        "compression": "lzw", "predictor": 2, "layout": "strips", "rows_per_strip": 1, "pages": 1,
    }  # fmt: skip
    whole = {one.variable: one.facts for one in report.whole}
    assert whole["raw"] == {"min": 0, "max": pixels_of(honest, 3).max()}
    with Image.open(path_of(honest, "er", 3)) as mask:
        assert whole["er"] == {"labelled": round((np.asarray(mask) > 0).mean(), 6), "values": [0, 255]}
    small = [request for request in asked if request.sent <= 1]
    assert len(small) < FILES + 12, "each file is asked for once, but for those by which the server is known"
    assert "All that was examined is as described." in str(report)


def test_every_kind_of_source(honest: Path) -> None:
    """A folder and fsspec's file systems are examined; what only web servers have is not asked."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(honest), "/examined", recursive=True)
    try:
        for source in (honest, f"file://{honest}", "memory://examined"):
            report = examine(source)
            assert report.ok, report
            assert report.server is None
            assert [len(table.present) for table in report.tables] == [SHAPE[0]] * 4
            assert "not asked" in str(report)
        memory.rm("/examined/" + EMPIAR_13356.path("er", 3))
        assert [table.missing for table in examine("memory://examined").tables] == [[], [], [3], []]
    finally:
        memory.rm("/examined", recursive=True)


def test_object_storage(honest: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive in S3 is examined with the credentials of the environment, which the report does not have."""
    from helpers.object_storage import BUCKET, KEY, SECRET

    for name, value in {"ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "ENDPOINT_URL": s3.url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("raw", "er"):
        for z in range(SHAPE[0]):
            if (name, z) != ("er", 4):
                s3.client.upload_file(str(path_of(honest, name, z)), BUCKET, f"ex/{EMPIAR_13356.path(name, z)}")
    report = examine(f"s3://{BUCKET}/ex", labels=["er"])
    assert [table.missing for table in report.tables] == [[], [4]]
    assert len(report.problems) == 1
    assert SECRET not in json.dumps(report.as_json()) + str(report)


# what a server may do


class NoHead(RangeRequestHandler):
    """Refuses HEAD, in one of the ways in which servers do."""

    status = 405

    def do_HEAD(self) -> None:
        self.refuse(self.status)


class LostHead(NoHead):
    status = 404


class UnknownHead(NoHead):
    status = 501


class ForbiddenHead(NoHead):
    status = 403


class SizelessHead(RangeRequestHandler):
    """Answers HEAD, and says that each file is empty."""

    def do_HEAD(self) -> None:
        self._note(0, 0, 200)
        self.send(200, {}, b"")


class Untagged(RangeRequestHandler):
    """Sends neither ETag nor date."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword not in ("ETag", "Last-Modified"):
            super().send_header(keyword, value)


class Restless(RangeRequestHandler):
    """Sends another ETag each time, as clusters of servers do that derive it from the inode."""

    count = 0

    def send_header(self, keyword: str, value: str) -> None:
        Restless.count += 1
        super().send_header(keyword, f'"{Restless.count}"' if keyword == "ETag" else value)


class SometimesSizeless(RangeRequestHandler):
    """Answers HEAD without the size for some files, and as if another was not there."""

    def do_HEAD(self) -> None:
        if self.path.endswith("er_mask_001.png"):
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
        elif self.path.endswith("er_mask_002.png"):
            self.send(200, {}, b"")
        elif self.path.endswith("er_mask_004.png"):
            self.refuse(404)
        else:
            super().do_HEAD()


def test_head_is_believed_only_if_it_says_a_size(honest: Path) -> None:
    """A file about which HEAD says nothing is asked for by its first byte."""
    with serve(honest, SometimesSizeless) as server:
        report = examine(server.url)
    assert report.ok, report
    assert report.server is not None
    assert report.server.head is True
    assert report.tables[2].sizes[1:3] == tuple(path_of(honest, "er", z).stat().st_size for z in (1, 2))


class RefusesOnce(RangeRequestHandler):
    """Refuses the first request for several ranges, and no other."""

    refused = 0

    def answer_parts(self, *args: Any) -> None:
        type(self).refused += 1
        if type(self).refused == 1:
            self.refuse(416)
        else:
            super().answer_parts(*args)


def test_one_refusal_of_several_ranges_is_not_believed(honest: Path) -> None:
    """What a server can do is asked again before it is denied."""
    with serve(honest, RefusesOnce) as server:
        report = examine(server.url)
    assert report.server is not None
    assert report.server.multi_range is True


@pytest.mark.parametrize("handler", [NoHead, LostHead, UnknownHead, ForbiddenHead, SizelessHead])
def test_where_head_is_refused_the_first_byte_is_requested(own: Path, handler: type[RangeRequestHandler]) -> None:
    """The same is found without HEAD; nothing is taken for missing by it alone."""
    path_of(own, "er", 3).unlink()
    with serve(own, handler) as server:
        report = examine(server.url)
    assert report.server is not None
    assert report.server.head is False
    assert [table.missing for table in report.tables] == [[], [], [3], []]
    assert report.problems == (
        f"er: 1 of 6 files is missing, of slices 3, such as {server.url}/{EMPIAR_13356.path('er', 3)}.",
    )


def test_a_server_without_ranges(honest: Path) -> None:
    """Small files are fetched whole; that is noted, and their sizes are right."""
    with serve(honest, NoRanges) as server, pytest.warns(UserWarning, match="ignores byte ranges"):
        report = examine(server.url)
    assert report.server is not None
    assert (report.server.ranges, report.server.multi_range) == (False, False)
    assert report.ok
    assert report.notes[0].startswith("The server ignores byte ranges")
    assert report.tables[0].sizes[0] == path_of(honest, "raw", 0).stat().st_size


def test_a_server_without_ranges_and_large_files_is_a_problem_and_costs_nothing(honest: Path) -> None:
    """A file that would be sent whole is not read."""
    with serve(honest, HugeWithoutRanges) as server:
        report = examine(server.url, deep=1)
    assert "ignores byte ranges: files of raw, mito, er, nucleus would be sent whole" in report.problems[0]
    assert len(report.problems) == 1
    assert not report.slices
    assert report.traffic["bytes"] == 0


@pytest.mark.parametrize("kind", ["first", "whole", "refused"])
def test_one_range_a_request(honest: Path, kind: Any) -> None:
    """That a server sends one range per request is noted, and is no problem."""
    with serve(honest, hostile(LAN, multi_range=kind)) as server:
        report = examine(server.url)
    assert report.ok, report
    assert report.server is not None
    assert (report.server.ranges, report.server.multi_range) == (True, False)
    assert "one range per request" in report.notes[0]


def test_tags(honest: Path) -> None:
    """A server without ETag and date is noted; one whose ETags change is a problem, since every read would fail."""
    with serve(honest, Untagged) as server:
        report = examine(server.url)
    assert report.ok, report
    assert "neither ETag nor Last-Modified" in report.notes[0]
    with serve(honest, Restless) as server:
        report = examine(server.url)
    assert "was not the same in two answers" in report.problems[0]
    assert report.server is not None
    assert report.server.is_steady is False
    assert len(report.slices) <= 5 * 4, "that is no damage of files, of which there might be more"


@pytest.mark.parametrize("seed", range(3))
def test_faults_are_not_taken_for_what_the_archive_is(honest: Path, seed: int) -> None:
    """A server with many faults of each kind that may pass has the same files and abilities as an honest one."""
    faulty = replace(WORST, rate=None, latency=0, stall=0, retry_after=0)
    with serve(honest, hostile(faulty, seed)) as server:
        report = examine(server.url)
    assert report.ok, report
    assert report.server == ld.archive.doctor.server.ServerFacts(True, True, True, True, True, True)
    assert report.traffic["retries"] > 0


def test_stalls_are_counted(honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that stall are asked again, and counted; a longer watch counts them, too."""
    monkeypatch.setenv("DASK_LIVER_DASK__TIMEOUT", "0.2")
    import dask

    with (
        dask.config.set({"liver-dask.timeout": 0.2}),
        serve(honest, hostile(Profile(stall=0.2, stall_seconds=5), 1)) as server,
    ):
        report = examine(server.url, stall_minutes=0.02, slices=1, labels=[])
    assert report.ok, report
    assert report.traffic["stalls"] > 0
    assert report.watched is not None
    assert report.watched.requests > 3
    assert report.latency.median < 0.2


def test_no_more_than_so_many_requests_at_once(honest: Path) -> None:
    """At most `connections` requests are under way, and never more than 16."""

    class Counting(RangeRequestHandler):
        now, most, lock = 0, 0, threading.Lock()

        def parse_request(self) -> bool:
            with Counting.lock:
                Counting.now += 1
                Counting.most = max(Counting.most, Counting.now)
            threading.Event().wait(0.02)
            with Counting.lock:
                Counting.now -= 1  # before the client can know that it is answered
            return super().parse_request()

    for asked, most in ((3, 3), (40, 16)):
        Counting.most = 0
        with serve(honest, Counting) as server:
            ld.examine(server.url, shape=(20, 64, 80), connections=asked, slices=0)
        assert 1 < Counting.most <= most


# what files may be


def test_what_is_missing_is_listed(own: Path) -> None:
    """Missing files are listed as runs, and each is asked for twice before."""
    gone = {"mito": (1, 2, 3, 5), "nucleus": range(SHAPE[0])}
    for name, slices in gone.items():
        for z in slices:
            path_of(own, name, z).unlink()
    with serve(own) as server:
        report = examine(server.url)
        lost = [request.path for request in server.requests if request.status == 404]
    assert {table.name: table.missing for table in report.tables} == {
        "raw": [], "mito": [1, 2, 3, 5], "er": [], "nucleus": [*range(SHAPE[0])]
    }  # fmt: skip
    assert report.as_json()["variables"]["mito"]["missing"] == [[1, 3], [5, 5]]
    assert "mito: 4 of 6 files are missing, of slices 1-3, 5, such as" in report.problems[0]
    assert "nucleus: none of its 6 files is there" in report.problems[1]
    assert len(report.problems) == 2
    assert {lost.count(path) for path in lost} == {2}


def _save(file: Path, pixels: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(file, pixels, **options)


def _cut_last_row(file: Path, pixels: np.ndarray) -> None:
    """Write a file with its directory at the start, whose last row is lost."""
    _save(file, pixels, rowsperstrip=1)
    file.write_bytes(file.read_bytes()[:-100])


RAW_FILES: dict[str, tuple[Callable[[Path, np.ndarray], Any], str, dict[str, Any]]] = {
    "another shape": (lambda f, p: write_raw(f, p[:-1]), "found 63 x 80 pixels (rows x columns), expected 64 x 80", {}),
    "another dtype": (
        lambda f, p: _save(f, (p >> 8).astype(np.uint8)),
        "dtype is uint8, and described is uint16.",
        {"dtype": "uint8"},
    ),
    "signed": (lambda f, p: _save(f, p.astype(np.int16)), "dtype is int16", {"dtype": "int16"}),
    "float": (lambda f, p: _save(f, p.astype(np.float32)), "dtype is float32", {"dtype": "float32"}),
    "colours": (
        lambda f, p: _save(f, np.dstack([p] * 3), photometric="rgb"),
        "dtype is uint16 x 3",
        {"dtype": "uint16 x 3"},
    ),
    "no compression": (lambda f, p: _save(f, p), "", {"compression": "none", "predictor": 1}),
    "no predictor": (lambda f, p: _save(f, p, compression="lzw"), "", {"compression": "lzw", "predictor": 1}),
    "deflate": (lambda f, p: _save(f, p, compression="zlib", predictor=2), "", {"compression": "adobe_deflate"}),
    "directory at the start": (lambda f, p: _save(f, p, rowsperstrip=1), "", {"directory": "at the start"}),
    "many rows a strip": (lambda f, p: _save(f, p, rowsperstrip=7, compression="lzw"), "", {"rows_per_strip": 7}),
    "big-endian": (lambda f, p: _save(f, p, byteorder=">"), "", {"byte_order": "big"}),
    "BigTIFF": (lambda f, p: _save(f, p, bigtiff=True), "", {"format": "BigTIFF"}),
    "tiles": (lambda f, p: _save(f, p, tile=(16, 32)), "", {"layout": "tiles", "tile": [16, 32]}),
    "a stack": (lambda f, p: _save(f, np.stack([p, p]), photometric="minisblack"), "holds several images", {}),
    "cut short": (
        lambda f, p: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
        "is cut short or damaged: its dir",
        {},
    ),
    "cut short before its end": (_cut_last_row, "is cut short or damaged: row 63 is not within its", {}),
    "a web page": (
        lambda f, p: f.write_text("<!DOCTYPE html><title>503</title>" + "sorry " * 20),
        "is a web page or XML, such as a server sends in place of an error, not data.",
        {},
    ),
    "empty": (lambda f, p: f.write_bytes(b""), "raw: 1 files are empty, of slices 5.", {}),
}


@pytest.mark.parametrize("kind", RAW_FILES)
def test_one_file_of_raw_is_of_another_kind(own: Path, kind: str) -> None:
    """What differs from the description is one sentence with the file and what is wrong; what may vary is noted."""
    make, problem, facts = RAW_FILES[kind]
    file = path_of(own, "raw", 5)
    make(file, pixels_of(own, 5))
    with serve(own) as server:
        source = server.url
        report = examine(source)
    if not problem:
        assert report.ok, report
        assert any(note.startswith("raw: ") and "differ from each other, in " in note for note in report.notes)
    else:
        (said,) = report.problems
        assert problem in said
        assert f"{source}/{EMPIAR_13356.path('raw', 5)}" in said or kind == "empty"
    found = [one.facts for one in report.slices if (one.variable, one.z) == ("raw", 5)]
    assert all(one.items() >= facts.items() for one in found), found
    assert found or kind == "empty"


MASKS: dict[str, tuple[Callable[[Path, Image.Image], Any], str, dict[str, Any], list[int]]] = {
    "1 bit": (lambda f, m: m.convert("1").save(f), "", {"dtype": "grey, 1 bit"}, [0, 1]),
    "RGB": (lambda f, m: m.convert("RGB").save(f), "", {"dtype": "RGB, 8 bit"}, [0, 255]),
    "RGBA": (lambda f, m: m.convert("RGBA").save(f), "", {"dtype": "RGB and alpha, 8 bit"}, [0, 255]),
    "palette": (lambda f, m: m.convert("P").save(f), "", {}, [0, 256]),
    "another shape": (lambda f, m: m.resize((80, 65)).save(f), "found 65 x 80 pixels", {}, []),
    "a TIFF": (lambda f, m: m.save(f, format="TIFF"), "is not a PNG: it begins with", {}, []),
    "numbers of objects": (
        lambda f, m: Image.fromarray(np.arange(64 * 80, dtype=np.uint8).reshape(64, 80)).save(f),
        "is described as a mask, and has other values than two: 0, 1, 2, 3.",
        {},
        [0, 1, 2, 3],
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_one_mask_is_of_another_kind(own: Path, kind: str) -> None:
    """A mask may be any PNG of two colours; its values are looked at where slices are read whole."""
    make, problem, facts, values = MASKS[kind]
    with Image.open(path_of(own, "er", 3)) as opened:
        mask = opened.copy()
    make(path_of(own, "er", 3), mask)
    report = examine(own, slices=6, deep=1)
    assert bool(report.problems) == bool(problem), report.problems
    assert all(problem in said for said in report.problems)
    found = next(one.facts for one in report.slices if (one.variable, one.z) == ("er", 3))
    assert found.items() >= facts.items()
    whole = next(one.facts for one in report.whole if one.variable == "er")
    assert whole.get("values", []) == values


def interlaced(file: Path, mask: np.ndarray) -> None:
    """Write a mask as an interlaced PNG, which Pillow does not; all filters are 0."""
    import struct
    import zlib

    from liver_dask.archive.formats.png_interlace import PASSES

    rows = b"".join(
        b"\0" + row.tobytes()
        for y, x, down, right in PASSES
        for row in mask[y::down, x::right]
        if mask[y::down, x::right].size
    )
    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 8, 0, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


@pytest.mark.parametrize("first_request", [128 << 10, 200], ids=["small", "large"])
def test_masks_that_were_cut_are_found(own: Path, monkeypatch: pytest.MonkeyPatch, first_request: int) -> None:
    """Of each file whose headers are read, the end is looked at; the smallest are read until one is whole."""
    monkeypatch.setattr(png_file, "FIRST_REQUEST", first_request)
    for z in (1, 3, 4):
        file = path_of(own, "er", z)
        file.write_bytes(file.read_bytes()[: 250 + z])
    with path_of(own, "mito", 2).open("ab") as file:
        file.write(b"written by a program of its own")
    with serve(own) as server:
        report = examine(server.url)
    assert len(report.problems) == 3, report
    for z, problem in zip((1, 3, 4), report.problems, strict=True):
        assert problem.startswith(f"er, slice {z}")
        assert f"{path_of(own, 'er', z).name}: has no end (IEND); the file is damaged or cut short" in problem


def test_an_interlaced_mask(own: Path) -> None:
    """Interlacing is told, and its values are counted as those of others."""
    with Image.open(path_of(own, "er", 3)) as opened:
        mask = np.asarray(opened)
    interlaced(path_of(own, "er", 3), mask)
    report = examine(own, slices=6, deep=1)
    assert report.ok, report
    assert [one.facts["interlaced"] for one in report.slices if one.variable == "er"] == [False] * 3 + [True] + [
        False
    ] * 2
    assert report.notes[0] == "er: the slices that were examined differ from each other, in interlaced."
    whole = next(one.facts for one in report.whole if one.variable == "er")
    assert whole == {"labelled": round((mask > 0).mean(), 6), "values": [0, 255]}


def test_damage_that_only_reading_finds(own: Path) -> None:
    """Slices that are read whole are decoded: damage within, and an image of zeros, are problems."""
    raw = path_of(own, "raw", 3)
    with tifffile.TiffFile(raw) as tiff:
        start = tiff.pages[0].dataoffsets[40]
    content = bytearray(raw.read_bytes())
    content[start : start + 9] = b"\xff" * 9
    raw.write_bytes(content)
    assert examine(own).ok, "headers alone do not show it"
    (problem,) = examine(own, deep=1).problems
    assert "the strip of rows 40-40" in problem
    assert str(raw) in problem
    write_raw(raw, np.zeros(SHAPE[1:], np.uint16))
    (problem,) = examine(own, deep=1).problems
    assert "all its voxels are 0" in problem


def test_hdf5(tmp_path: Path) -> None:
    """Datasets in HDF5 files are described: dtype, shape, chunks and filters; another dtype is noted."""
    archive = ld.Archive(
        name="mine", url=str(tmp_path), shape=(3, 64, 80),
        variables=(
            ld.Variable(name="raw", files="em/{z}.tif", kind="image", dtype="uint8"),
            ld.Variable(name="cells", files="cells/{z}.h5", dataset="data", kind="instances", dtype="uint16"),
        ),
    )  # fmt: skip
    (tmp_path / "em").mkdir()
    (tmp_path / "cells").mkdir()
    for z in range(3):
        tifffile.imwrite(tmp_path / f"em/{z}.tif", np.full((64, 80), z + 1, np.uint8))
        with h5py.File(tmp_path / f"cells/{z}.h5", "w") as file:
            dtype = np.int64 if z == 2 else np.uint16
            file.create_dataset("data", data=np.full((64, 80), 7, dtype), chunks=(32, 32), compression="gzip")
    report = ld.examine(None, archive, deep=1)
    assert report.ok, report
    cells = [one for one in report.slices if one.variable == "cells"]
    assert cells[0].facts == {
        "format": "HDF5", "dataset": "data", "shape": [64, 80], "dtype": "uint16", "chunks": [32, 32],
        "filters": ["gzip"],
    }  # fmt: skip
    assert any("dtype is int64, and described is uint16" in note for note in report.notes)
    assert [one.facts for one in report.whole] == [{"min": 2, "max": 2}, {"labelled": 1.0, "max": 7}]


# what is no archive


class Refuses(RangeRequestHandler):
    status = 403
    refused_after = 0

    def __init_subclass__(cls) -> None:
        cls.count = 0

    def _refuses(self) -> bool:
        cls: Any = type(self)
        cls.count += 1
        if cls.count > self.refused_after:
            self.refuse(self.status)
        return cls.count > self.refused_after

    def do_GET(self) -> None:
        if not self._refuses():
            super().do_GET()

    def do_HEAD(self) -> None:
        if not self._refuses():
            super().do_HEAD()


class Pages(RangeRequestHandler):
    """Sends the same web page for whatever is asked for, with status 200."""

    def do_GET(self) -> None:
        self._note(0, 0, 200)
        self.send(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Nothing here</html>")

    do_HEAD = do_GET


def test_who_refuses_everything_is_asked_little(honest: Path) -> None:
    """A server that refuses is asked for the first files only, and one that begins to refuse for a few more."""

    class Always(Refuses):
        pass

    class Later(Refuses):
        refused_after = 30
        status = 429

    with serve(honest, Always) as server, pytest.raises(ld.RemoteError, match=r"refuses to send it \(403") as error:
        examine(server.url)
    assert len(server.requests) == 12
    assert "none of the first 12 is there" in str(error.value)
    with serve(honest, Later) as server:
        report = ld.examine(server.url, shape=(500, 64, 80), connections=2)
    assert len(server.requests) < 400
    assert any(
        said.startswith("raw") and "not asked, after too many equal failures" in said for said in report.problems
    )


def test_addresses_without_an_archive(honest: Path, tmp_path: Path) -> None:
    """A wrong address is one sentence, after few requests."""
    with serve(honest, Pages) as server, pytest.raises(ld.FormatError, match="is a web page, not a file of data"):
        examine(server.url)
    assert len(server.requests) < 20
    with serve(honest) as server, pytest.raises(ld.SliceNotFoundError, match="Correct the address") as error:
        examine(f"{server.url}/humanliver_er_mask")
    assert len(server.requests) < 40
    (tmp_path / "above" / "liver").mkdir(parents=True)
    with serve(tmp_path / "above") as server, pytest.raises(ld.SliceNotFoundError, match=r"these folders: liver\."):
        examine(server.url)
    with pytest.raises(ld.RemoteError, match=r"no connection to 127\.0\.0\.1:9") as error:
        examine("http://127.0.0.1:9")
    assert "No other file was asked for" in str(error.value)
    with pytest.raises(ld.SliceNotFoundError, match="None of the 24 files of EMPIAR-13356 is there"):
        examine(tmp_path)
    with pytest.raises(ld.InvalidArgumentError, match="must be a number"):
        examine(honest, deep=-1)
    ds = ld.open_human_liver_em(honest, shape=SHAPE, labels=[])
    ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)
    with pytest.raises(ld.InvalidArgumentError, match="is a Zarr store"):
        examine(tmp_path / "a.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "elsewhere")
    with serve(tmp_path) as server, pytest.raises(ld.SliceNotFoundError, match="is a Zarr store, and no archive"):
        examine(f"{server.url}/elsewhere")


class PageOfError(RangeRequestHandler):
    """Sends a web page for one file, with status 200."""

    def do_GET(self) -> None:
        if self.path.endswith("er_mask_003.png"):
            self.send(200, {"Content-Type": "text/html"}, b"<html>Service unavailable</html>")
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if self.path.endswith("er_mask_003.png"):
            self.send(200, {"Content-Type": "text/html", "Content-Length": "32"}, b"")
        else:
            super().do_HEAD()


def test_a_page_in_place_of_a_file(honest: Path) -> None:
    """A web page with status 200 is no file of data, by its media type."""
    with serve(honest, PageOfError) as server:
        report = examine(server.url)
    (problem,) = report.problems
    assert "er: 1 of 6 files are web pages (text/html) instead of data, of slices 3, such as" in problem
    assert report.tables[2].missing == []


def test_small_files_that_are_wrong_are_followed(own: Path) -> None:
    """Files that were replaced by a message are found although none was among the slices that are always read."""
    for z in (1, 4):
        path_of(own, "raw", z).write_text(f"<html>Error 50{z}</html>")
    report = examine(own, slices=1)
    assert [one.z for one in report.slices if one.problem] == [1, 4]
    assert sum("is a web page or XML" in problem for problem in report.problems) == len(report.problems) == 2


class ForbidsTheMissing(RangeRequestHandler):
    """Answers 403 for what is not there, as S3 does to those who may not list it."""

    def send_error(self, code: int, *args: object, **options: object) -> None:
        super().send_error(403 if code == 404 else code)


def test_what_is_refused_one_by_one_does_not_end_the_examination(own: Path) -> None:
    """Many refusals in a row end nothing, as long as a file that is there is still sent."""
    gone = [(name, z) for name in ("mito", "er", "nucleus") for z in range(SHAPE[0])]
    for name, z in gone:
        path_of(own, name, z).unlink()
    with serve(own, ForbidsTheMissing) as server:
        report = examine(server.url, connections=1)
    assert len(gone) - 3 * 3 > survey.STRIKES, "those that are asked for first do not count"
    assert [len(table.present) for table in report.tables] == [6, 0, 0, 0]
    assert [len(table.failed) for table in report.tables] == [0, 6, 6, 6]
    assert not any("not asked" in problem for problem in report.problems)
    assert report.problems[0].startswith("mito: nothing is known of slices 0-5: ")
    assert "403" in report.problems[0]


# facts


@pytest.fixture
def examined(own: Path, tmp_path: Path) -> Path:
    """Facts about an archive without some masks."""
    for z in (2, 3):
        path_of(own, "er", z).unlink()
    path = tmp_path / "facts.json"
    assert run_here("doctor", own, *SHAPE_OPTION, "--save", path).returncode == 1
    return path


def test_facts_make_estimates_exact(own: Path, examined: Path, tmp_path: Path) -> None:
    """With facts, the plan of a download has the sizes of the files of its box, and says which are missing."""
    from liver_dask.store.plan import Export

    def fetched(box: tuple[int, ...], **options: Any) -> int:
        ds = ld.open_human_liver_em(own, shape=SHAPE, labels=["er"], **options)[["er"]]
        return Export.plan(ds, tmp_path / "a.zarr", box).estimate().fetched

    for box, slices in (((0, 80, 0, 64, 0, 6), (0, 1, 4, 5)), ((0, 80, 0, 64, 1, 4), (1,))):
        expected = sum(path_of(own, "er", z).stat().st_size for z in slices)
        assert abs(fetched(box, facts=examined) - expected) <= 2
        assert fetched(box) != pytest.approx(expected, rel=0.2)
    box = ["--bbox", 0, 80, 0, 64, 1, 4, "--source", own, *SHAPE_OPTION, "--dry-run"]
    planned = run_here("download", tmp_path / "a.zarr", *box, "--facts", examined).stdout
    assert "missing     2 slices of er (2-3); they are an error without --missing zeros" in planned
    assert "Sizes of raw, mito, er, nucleus, and what is missing, are as of 20" in planned
    planned = run_here("download", tmp_path / "a.zarr", *box, "--facts", examined, "--missing", "zeros").stdout
    assert "missing     2 slices of er (2-3)\n" in planned


def test_facts_change_no_voxel(own: Path, honest: Path, examined: Path) -> None:
    """A file that was missing, and is there now, is read; one that was there, and is not, is an error."""
    options: dict[str, Any] = {"shape": SHAPE, "labels": ["er"], "missing": "zeros"}
    plain = ld.open_human_liver_em(own, **options)
    with_facts = ld.open_human_liver_em(own, **options, facts=examined)
    assert with_facts.er.data.name == plain.er.data.name
    shutil.copy(path_of(honest, "er", 2), path_of(own, "er", 2))
    with Image.open(path_of(honest, "er", 2)) as mask:
        np.testing.assert_array_equal(ld.open_human_liver_em(own, **options, facts=examined).er[2], np.asarray(mask))
    assert not with_facts.er[3].any().compute()
    path_of(own, "raw", 1).unlink()
    with pytest.raises(ld.SliceNotFoundError):
        ld.open_human_liver_em(own, shape=SHAPE, labels=[], facts=examined).raw[1].compute()


def test_a_box_of_missing_slices_is_estimated_and_kept(own: Path, examined: Path, tmp_path: Path) -> None:
    """With true facts, of which none has bytes."""
    path_of(own, "raw", 0).unlink()
    facts = json.loads(examined.read_text())
    facts["variables"]["raw"] |= {"sizes": [None, *facts["variables"]["raw"]["sizes"][1:]], "missing": [[0, 0]]}
    examined.write_text(json.dumps(facts))
    ds = ld.open_human_liver_em(own, shape=SHAPE, labels=[], missing="zeros", facts=examined)
    store = ld.to_zarr(ds.isel(z=slice(1)), tmp_path / "a.zarr", progress=False)
    assert not ld.verify(store, progress=False).problems


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: {**document, **changes}


def _spoil_er(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: _spoil(
        variables={**document["variables"], "er": {**document["variables"]["er"], **changes}}
    )(document)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_spoil(archive="EMPIAR-1"), "its archive is 'EMPIAR-1', and that of this one is 'EMPIAR-13356'"),
        (_spoil(source="https://example.org"), "its source is 'https://example.org', and that of"),
        (_spoil(shape=[7, 64, 80]), r"its shape is \[7, 64, 80\], and that of this one is \[6, 64, 80\]"),
        (_spoil(liver_dask_facts=2), "has no facts that this version reads"),
        (_spoil_er(files="er_{z}.png"), "has facts about other files of er"),
        (_spoil_er(sizes=[1, 2]), "has facts about er that make no sense"),
        (_spoil_er(sizes=["1"] * 6), "has facts about er that make no sense"),
        (_spoil_er(missing=[3]), "has facts about er that make no sense"),
        (_spoil_er(missing=[[3, 0]]), "has facts about er that make no sense"),
        (_spoil_er(missing=[[0, float("inf")]]), "has facts about er that make no sense"),
        (_spoil_er(missing=[[0, 0]]), "has facts about er that make no sense"),
        (_spoil_er(sizes=[10**400] * 6), "has facts about er that make no sense"),
        (_spoil(date=float("nan")), "has facts of a date that makes no sense, nan"),
        (_spoil(date="yesterday"), "has facts of a date that makes no sense, 'yesterday'"),
        (_spoil(date=None), "has facts of a date that makes no sense, None"),
        (lambda document: [], "has no facts that this version reads"),
    ],
)
def test_facts_of_something_else_are_refused(own: Path, examined: Path, change: Any, told: str) -> None:
    """Facts about another archive, address, shape or files, and what is no document of facts, are refused."""
    examined.write_text(json.dumps(change(json.loads(examined.read_text()))))
    with pytest.raises(ld.InvalidArgumentError, match=told):
        ld.open_human_liver_em(own, shape=SHAPE, facts=examined)


# the command


def test_the_command(own: Path, tmp_path: Path) -> None:
    """The exit code is 0 if all is as described and otherwise 1; `--json` prints only JSON; `--save` keeps the same."""
    facts = tmp_path / "facts.json"
    with serve(own) as server:
        secret = server.url.replace("http://", "http://user:hush-hush@")
        done = run_here("doctor", secret, *SHAPE_OPTION, "--deep", 1)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "All that was examined is as described." in done.stdout
        path_of(own, "er", 3).unlink()
        for _ in range(2):  # the second time facts are replaced
            done = run_here("doctor", f"{secret}?sig=hush-hush", *SHAPE_OPTION, "--json", "--save", facts)
            assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document == json.loads(facts.read_text())
    assert "hush-hush" not in done.stdout + done.stderr
    assert document["source"] == server.url
    assert document["variables"]["er"]["missing"] == [[3, 3]]
    assert document["server"]["multi_range"] is True
    assert not list(tmp_path.glob(".facts*"))


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ("doctor there", 1, "None of the 2388 files of EMPIAR-13356 is there"),
        ("doctor nonsense", 1, "There is no folder"),
        ("doctor OWN --archive nonsense", 2, "There is no archive 'nonsense'"),
        ("doctor OWN --label golgi", 2, "Unknown label 'golgi'"),
        ("doctor OWN --label er --label raw", 2, "raw is always examined; leave out --label raw"),
        ("doctor OWN --connections 17", 2, "17 is not in the range"),
        ("doctor OWN --save there/mine", 1, "is something other than facts about an archive; choose another path"),
        ("doctor OWN --save nowhere/facts.json", 2, "There is no folder nowhere to save facts in"),
        ("doctor store.zarr", 2, "is a store, not an archive; `liver-dask verify store.zarr` examines it"),
        ("download a.zarr --full --source OWN --facts there/mine", 2, "there/mine, which has facts about an archive,"),
    ],
)
def test_it_is_used_wrongly(own: Path, tmp_path: Path, args: str, code: int, told: str) -> None:
    """What cannot be examined, or saved, is one sentence, before anything is asked."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("my notes")
    if "store.zarr" in args:
        ld.to_zarr(ld.open_human_liver_em(own, shape=SHAPE, labels=[]), tmp_path / "store.zarr", progress=False)
    done = run_here(*args.replace("OWN", str(own)).split(), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert (tmp_path / "there" / "mine").read_text() == "my notes"


def without_numbers(report: str) -> list[str]:
    """The lines of a report, in which addresses, times, numbers and sizes are replaced."""
    text = re.sub(r"http://[\d.]+:\d+", "ADDRESS", report)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "TIME", text)
    text = re.sub(r"\d+(\.\d+)*( bytes| [kM]B)?", "#", text)
    return [re.sub(" +", " ", line) for line in re.sub(r"#(, #)+", "#", text).splitlines()]


def test_the_report_on_the_page_is_what_is_printed(own: Path) -> None:
    """Each line of the report in doctor.md is one of an archive with the same faults, but for the numbers."""
    page = (ROOT / ".github" / "docs" / "doctor.md").read_text()
    shown = page.split("```console\n")[1].split("```")[0].replace("...\n", "")
    for z in (3, 4):
        path_of(own, "er", z).unlink()
    raw = path_of(own, "raw", SHAPE[0] - 1)
    os.truncate(raw, raw.stat().st_size // 2)
    with serve(own) as server:
        printed = run_here("doctor", server.url, *SHAPE_OPTION).stdout
    assert [line for line in without_numbers(shown) if line not in without_numbers(printed)] == []


def test_where_facts_cannot_be_saved_nothing_is_asked(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in which no file can be made is found before the examination, and the error names the file asked for."""
    plain = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name.startswith(".facts.json-"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args, **options)

    facts = tmp_path / "facts.json"
    monkeypatch.setattr(Path, "open", refuse)
    with serve(own) as server:
        done = CliRunner().invoke(main, ["doctor", server.url, *SHAPE_OPTION, "--save", str(facts)])
        assert not server.requests
    assert done.exit_code == 2
    assert f"Cannot write {facts}: Permission denied." in done.output
    monkeypatch.setattr("liver_dask.archive.facts.check_facts_path", lambda path: None)
    with pytest.raises(PermissionError, match="Permission denied") as told:
        save_facts({}, facts)
    assert told.value.filename == str(facts)
    monkeypatch.undo()
    check_facts_path(facts)
    assert not list(tmp_path.glob("*facts*")), "the check leaves nothing"


def test_runs() -> None:
    """Ascending numbers become runs."""
    assert runs([]) == []
    assert runs([3]) == [[3, 3]]
    assert runs(iter([0, 1, 2, 5, 7, 8])) == [[0, 2], [5, 5], [7, 8]]
    assert survey.STRIKES < 12
