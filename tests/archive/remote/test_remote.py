"""Byte ranges: verified, retried, capped; a wrong answer is never taken for the file."""

import threading
from pathlib import Path

import dask
import numpy as np
import pytest
from PIL import Image

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.hostile import scripted
from liver_dask.demo import RangeRequestHandler, serve


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries are noted, not made."""
    waits: list[float] = []
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", waits.append)
    return waits


@pytest.mark.parametrize("fault", ["reset", "truncate", "shorter", "elsewhere", "untold", "500", "503 7", "429 2"])
def test_a_passing_fault_costs_one_more_request(archive: Path, voxels, no_waiting: list[float], fault: str) -> None:
    """A fault would end the read, or its answer be taken for the file's bytes."""
    with serve(archive, scripted({1: fault, 3: fault})) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        part = ds.isel(z=3, y=slice(20, 60)).compute()
    for name in voxels:
        np.testing.assert_array_equal(part[name], voxels[name][3, 20:60])
    assert no_waiting, "no wait before the next try"
    if fault == "503 7":
        assert set(no_waiting) == {7}, "the server's Retry-After was not honoured"


def test_a_silent_request_is_given_up_and_asked_again_at_once(archive: Path, voxels, no_waiting: list[float]) -> None:
    """One request in thirty would hang for minutes."""
    with serve(archive, scripted({1: "stall 5"})) as server, dask.config.set({"liver-dask.timeout": 0.3}):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.raw[1, :9], voxels["raw"][1, :9])
    assert set(no_waiting) == {0}


def test_tries_are_bounded_and_the_error_tells_the_last_reason(archive: Path, no_waiting: list[float]) -> None:
    """A server that always fails would be asked for ever, or the reason be lost."""
    with serve(archive, scripted(dict.fromkeys(range(1, 100), "503"))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.RemoteError, match=r"slice 0, rows 0-4: .*gave up after 6 tries.*answered 503"):
            ds.raw[0, :5].compute()
        assert len(server.requests) == 6
    assert all(wait <= 10 for wait in no_waiting)


def test_a_file_that_changes_between_two_reads_is_an_error_not_a_mix(archive: Path) -> None:
    """Rows of two versions of a file would be put into one slice."""
    with serve(archive, scripted({3: "changed"})) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.SourceChangedError, match="is not the file it was"):
            ds.raw[0, :5].compute()
        ds.raw[0, :5].compute()  # the next read begins anew


def test_no_more_requests_at_once_than_connections(archive: Path) -> None:
    """The archive would be asked more at once than the user allowed, or one window wait for one connection."""
    under_way, most = 0, 0
    lock, met = threading.Lock(), threading.Event()

    class Counting(RangeRequestHandler):
        def do_GET(self) -> None:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
                if under_way == 3:
                    met.set()
            met.wait(5)
            super().do_GET()
            with lock:
                under_way -= 1

    with serve(archive, Counting) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=3)
        ds.compute(scheduler="threads", num_workers=12)
    assert most == 3


def test_connections_are_kept_alive(archive: Path) -> None:
    """Every request would pay for a new connection."""
    ports = set()

    class Noting(RangeRequestHandler):
        def do_GET(self) -> None:
            ports.add(self.client_address)
            super().do_GET()

    with serve(archive, Noting) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=2)
        ds.compute()
        assert len(server.requests) > 20
    assert len(ports) <= 2


def test_a_failure_does_not_use_up_the_connections(archive: Path, voxels, no_waiting: list[float]) -> None:
    """Each failed request would keep its place in the pool, until the next one waits for ever."""
    with serve(archive, scripted(dict.fromkeys((1, 2, 4, 5), "truncate"))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=1)
        for z in range(4):
            np.testing.assert_array_equal(ds.raw[z], voxels["raw"][z])


@pytest.mark.parametrize("fault", ["503", "404", "changed"])
def test_a_fault_while_the_index_is_read_is_not_called_damage(archive: Path, fault: str) -> None:
    """An outage would be reported as a damaged file, since tifffile takes any failing read for that."""
    kind = {"503": ld.RemoteError, "404": ld.SliceNotFoundError, "changed": ld.SourceChangedError}[fault]
    with serve(archive, scripted(dict.fromkeys(range(2, 50), fault))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(kind, match="slice 1, rows 0-4"):
            ds.raw[1, :5].compute()


def test_a_refused_connection_is_told_as_such_and_waited_for(no_waiting: list[float]) -> None:
    """A server that restarts would fail the whole job within milliseconds, as silent."""
    with pytest.raises(ld.RemoteError, match=r"no connection to 127\.0\.0\.1:9"):
        ld.open_human_liver_em("http://127.0.0.1:9", shape=SHAPE).raw[0, 0].compute()
    assert len(no_waiting) == 5
    assert max(no_waiting) > 0


def test_a_body_longer_than_its_range_is_not_read(archive: Path, no_waiting: list[float]) -> None:
    """A server that sends more than it says would fill the memory."""

    class TooMuch(RangeRequestHandler):
        def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
            self.send_response(206)
            self.send_header("Content-Length", str(10**12))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()

    with serve(archive, TooMuch) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.RemoteError, match="would send 1000000000000 bytes for 512"):
            ds.raw[0, 0].compute()


def test_opening_anew_looks_anew(archive: Path, tmp_path: Path) -> None:
    """A mask that was replaced would stay the old one for as long as the process lives."""
    folder = tmp_path / "humanliver_er_mask"
    folder.mkdir()
    path = folder / "humanliver_er_mask_000.png"
    for value in (0, 255):
        Image.fromarray(np.full((20, 30), value, np.uint8)).save(path)
        assert ld.open_human_liver_em(tmp_path, shape=(1, 20, 30), labels="er").er.max() == value


def test_a_kept_entry_of_an_older_file_is_replaced_without_an_error(tmp_path: Path) -> None:
    """After a change at the source every cached file would cost one failed run."""
    (tmp_path / "humanliver_raw_images").mkdir()
    path = tmp_path / "humanliver_raw_images" / "humanliver_raw_000.tif"
    for value in (7, 900):
        Image.fromarray(np.full((20, 30), value, np.uint16)).save(path, compression="tiff_lzw")
        ds = ld.open_human_liver_em(tmp_path, shape=(1, 20, 30), cache_dir=tmp_path / "kept")
        assert ds.raw.max() == value
    with pytest.raises(ld.FormatError, match="expected 20 x 10"):
        ld.open_human_liver_em(tmp_path, shape=(1, 20, 10), cache_dir=tmp_path / "kept").raw.compute()


def test_a_cache_folder_that_cannot_be_written_costs_no_voxel(archive: Path, tmp_path: Path, voxels, caplog) -> None:
    """A full or read-only disk under the cache would end a read whose voxels are there."""
    (tmp_path / "file").write_text("")
    ds = ld.open_human_liver_em(archive, shape=SHAPE, cache_dir=tmp_path / "file" / "kept")
    np.testing.assert_array_equal(ds.er[0], voxels["er"][0])
    assert "cannot be kept" in caplog.text
