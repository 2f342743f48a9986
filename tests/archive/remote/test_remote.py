"""Byte ranges are verified and retried within limits; a wrong answer is never taken for the file."""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from PIL import Image

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.hostile import Profile, hostile, scripted
from liver_dask.archive.remote import retry
from liver_dask.archive.remote.files import RemoteFile
from liver_dask.archive.remote.http_transport import MOST_REFUSALS
from liver_dask.archive.remote.ranges import ByteRange
from liver_dask.archive.remote.source import Source, TransientError
from liver_dask.archive.remote.tries import Tries
from liver_dask.demo import RangeRequestHandler, serve


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries are recorded and not made."""
    waits: list[float] = []
    monkeypatch.setattr(retry, "pause", waits.append)
    return waits


@pytest.mark.parametrize("fault", ["reset", "truncate", "shorter", "elsewhere", "untold", "500", "503 7", "429 3600"])
def test_a_passing_fault_costs_one_more_request(archive: Path, voxels, no_waiting: list[float], fault: str) -> None:
    """A temporary fault is retried after a wait, which honours Retry-After up to a minute, and the voxels are right."""
    with serve(archive, scripted({1: fault, 3: fault})) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        part = ds.isel(z=3, y=slice(20, 60)).compute()
    for name in voxels:
        np.testing.assert_array_equal(part[name], voxels[name][3, 20:60])
    assert no_waiting, "no wait before the next try"
    if asked_for := {"503 7": 7, "429 3600": 60}.get(fault):
        assert set(no_waiting) == {asked_for}, "the server's Retry-After was not honoured"


def test_a_silent_request_is_given_up_and_asked_again_at_once(archive: Path, voxels, no_waiting: list[float]) -> None:
    """A request without an answer is given up after the timeout and retried without a wait."""
    with serve(archive, scripted({1: "stall 5"})) as server, dask.config.set({"liver-dask.timeout": 0.3}):
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.raw[1, :9], voxels["raw"][1, :9])
    assert set(no_waiting) == {0}


def test_tries_are_bounded_and_the_error_has_the_last_reason(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After 6 tries the error gives the reason, and each try but the first was logged with the file and the reason."""
    with serve(archive, scripted(dict.fromkeys(range(1, 100), "503"))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with (
            caplog.at_level(logging.INFO, "liver_dask.archive.remote.retry"),
            pytest.raises(ld.RemoteError, match=r"slice 0, rows 0-4: .*gave up after 6 tries.*answered 503"),
        ):
            ds.raw[0, :5].compute()
        assert len(server.requests) == 6
    url = f"{server.url}/humanliver_raw_images/humanliver_raw_000.tif"
    assert caplog.messages == [f"{url}: answered 503 Service Unavailable; asking again"] * 5


def tries_in_vain(attempts: int, wait: float | None = None) -> str:
    """Try what always fails; return the error."""

    def fail(timeout: float) -> None:
        raise TransientError("failed", wait)

    with pytest.raises(ld.RemoteError) as told:
        Tries(Source("https://host", connections=1, timeout=1, attempts=attempts), "https://host/a").run(fail)
    return str(told.value)


def test_waits_double_up_to_ten_seconds(no_waiting: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server asks for no wait, it is a random time of up to 0.4 s, doubled with each try up to 10 s."""
    shortest = set()
    monkeypatch.setattr(retry._jitter, "uniform", lambda least, most: shortest.add(least) or most)
    assert "gave up after 8 tries" in tries_in_vain(8)
    assert no_waiting == [0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert shortest == {0}


def test_no_try_begins_after_ten_minutes(no_waiting: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tries are left, none begins 10 minutes after the first, and nothing is waited for in vain."""
    monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: sum(no_waiting)))
    assert "gave up after 12 tries" in tries_in_vain(1000, wait=50)


def test_a_file_that_changes_between_two_reads_is_an_error_not_a_mix(archive: Path) -> None:
    """A file that changes between two requests of a read is a SourceChangedError."""
    with serve(archive, scripted({3: "changed"})) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.SourceChangedError, match="is not the file it was"):
            ds.raw[0, :5].compute()
        ds.raw[0, :5].compute()  # the next read starts again


def test_no_more_requests_at_once_than_connections(archive: Path) -> None:
    """There are as many requests at once as `connections` allows, and no more."""
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
    """Many requests reuse at most `connections` connections."""
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
    """A failed request returns its connection, so that later reads go on with the only one."""
    with serve(archive, scripted(dict.fromkeys((1, 2, 4, 5), "truncate"))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=1)
        for z in range(4):
            np.testing.assert_array_equal(ds.raw[z], voxels["raw"][z])


@pytest.mark.parametrize("fault", ["503", "404", "changed"])
def test_a_fault_while_the_index_is_read_is_not_called_damage(archive: Path, fault: str) -> None:
    """A fault while the index is read gives its own error, and is not reported as a damaged file."""
    kind = {"503": ld.RemoteError, "404": ld.SliceNotFoundError, "changed": ld.SourceChangedError}[fault]
    with serve(archive, scripted(dict.fromkeys(range(2, 50), fault))) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(kind, match="slice 1, rows 0-4"):
            ds.raw[1, :5].compute()


def test_a_refused_connection_is_reported_as_such_and_waited_for(no_waiting: list[float]) -> None:
    """A refused connection is retried after waits, and the error names the host and port."""
    with pytest.raises(ld.RemoteError, match=r"no connection to 127\.0\.0\.1:9"):
        ld.open_human_liver_em("http://127.0.0.1:9", shape=SHAPE).raw[0, 0].compute()
    assert len(no_waiting) == 5
    assert max(no_waiting) > 0


def test_a_body_longer_than_its_range_is_not_read(archive: Path, no_waiting: list[float]) -> None:
    """An answer with a Content-Length beyond its range is an error, and its body is not read."""

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
    """A new Dataset sees a mask that was replaced."""
    folder = tmp_path / "humanliver_er_mask"
    folder.mkdir()
    path = folder / "humanliver_er_mask_000.png"
    for value in (0, 255):
        Image.fromarray(np.full((20, 30), value, np.uint8)).save(path)
        assert ld.open_human_liver_em(tmp_path, shape=(1, 20, 30), labels="er").er.max() == value


def test_a_kept_entry_of_an_older_file_is_replaced_without_an_error(tmp_path: Path) -> None:
    """A cache entry of an older version of a file is replaced, and the new file is read."""
    (tmp_path / "humanliver_raw_images").mkdir()
    path = tmp_path / "humanliver_raw_images" / "humanliver_raw_000.tif"
    for value in (7, 900):
        Image.fromarray(np.full((20, 30), value, np.uint16)).save(path, compression="tiff_lzw")
        ds = ld.open_human_liver_em(tmp_path, shape=(1, 20, 30), cache_dir=tmp_path / "kept")
        assert ds.raw.max() == value
    with pytest.raises(ld.FormatError, match="expected 20 x 10"):
        ld.open_human_liver_em(tmp_path, shape=(1, 20, 10), cache_dir=tmp_path / "kept").raw.compute()


def test_a_cache_folder_that_cannot_be_written_costs_no_voxel(archive: Path, tmp_path: Path, voxels, caplog) -> None:
    """If the cache folder cannot be created, the voxels are right and a message is logged."""
    (tmp_path / "file").write_text("")
    ds = ld.open_human_liver_em(archive, shape=SHAPE, cache_dir=tmp_path / "file" / "kept")
    np.testing.assert_array_equal(ds.er[0], voxels["er"][0])
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("kind", ["first", "refused"])
@pytest.mark.usefixtures("no_waiting")
def test_a_server_that_sends_several_ranges_no_longer_is_asked_for_one(tmp_path: Path, kind) -> None:
    """Such as after another server has taken its place in the middle of a run; it is found out once."""
    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "a.tif").write_bytes(content)
    ranges = [ByteRange(start, start + 9) for start in (5, 1_000_000, 2_000_000)]
    handler = hostile(Profile())
    with serve(tmp_path, handler) as server:
        file = RemoteFile(Source(server.url, 2, 5, 6), "a.tif")
        asked = []
        for _ in range(3):
            assert [bytes(part) for part in file.fetch_ranges(ranges)] == [content[of.start : of.stop] for of in ranges]
            asked.append(len(server.requests))
            handler.multi_range = kind
    assert np.diff([0, *asked]).tolist() == [1, MOST_REFUSALS + 3, 3]
