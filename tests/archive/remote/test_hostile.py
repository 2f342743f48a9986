"""The test server that simulates slow and faulty archives works as the network tests expect."""

import email
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

from helpers.hostile import EBI, LAN, WORST, Profile, hostile, scripted
from helpers.waiting import wait_until
from liver_dask.demo import serve

SIZE = 300_000
CONTENT = bytes(i * i % 251 for i in range(SIZE))
ASKED = [(0, 10), (5_000, 6_000), (299_900, 400_000)]
SEVERAL = "bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in ASKED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.tif").write_bytes(CONTENT)
    return tmp_path


@contextmanager
def asked(folder: Path, handler=None) -> Iterator:
    """A function that requests ranges of the file, and the server."""
    with (
        serve(folder, *([handler] if handler else [])) as server,
        urllib3.PoolManager(timeout=5, maxsize=20, retries=False) as pool,
    ):
        yield lambda ranges: pool.request("GET", f"{server.url}/a.tif", headers={"Range": ranges}), server


def parts_of(response: urllib3.BaseHTTPResponse) -> list[tuple[str, bytes]]:
    """The ranges of a multipart answer and their bytes, as parsed by Python's email package."""
    head = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + response.data).get_payload()
    assert {part.get_content_type() for part in parts} == {"image/tiff"}
    return [(part["Content-Range"], part.get_payload(decode=True)) for part in parts]


@pytest.mark.parametrize("handler", [None, hostile(LAN), scripted({})], ids=["demo", "hostile", "scripted"])
def test_several_ranges_come_as_one_multipart_answer(folder: Path, handler) -> None:
    """Several ranges are answered by one multipart body with correct headers and byte counts."""
    with asked(folder, handler) as (ask, server):
        response = ask(SEVERAL)
        assert response.status == 206
        assert int(response.headers["Content-Length"]) == len(response.data)
        assert parts_of(response) == [
            (f"bytes {start}-{min(stop, SIZE) - 1}/{SIZE}", CONTENT[start:stop]) for start, stop in ASKED
        ]
        assert ask("bytes=7-9").data == CONTENT[7:10]
        assert [request.sent for request in server.requests] == [10 + 1000 + 100, 3]
        assert server.bytes_sent == 1113


def test_ranges_beyond_the_end_and_long_headers_are_answered_as_nginx_does(folder: Path) -> None:
    """Ranges beyond the end are answered with 416, and too long Range headers with 400, as by nginx."""
    with asked(folder) as (ask, server):
        only = ask("bytes=299999-300005,300000-300001")
        assert (only.status, only.headers["Content-Range"], only.data) == (
            206,
            "bytes 299999-299999/300000",
            CONTENT[-1:],
        )
        assert ask("bytes=300000-300001,400000-400001").status == 416
        many = "bytes=" + ",".join("100000-100000" for _ in range(584))
        assert len(many) == 8181
        assert ask(many).status == 206
        assert ask(f"{many},1-2").status == 400
        assert len(server.requests) == 4


@pytest.mark.parametrize(("kind", "status"), [("whole", 200), ("first", 206), ("refused", 416)])
def test_several_ranges_can_be_turned_off(folder: Path, kind, status: int) -> None:
    """The server can answer several ranges by the whole file, by the first range, or with 416."""
    with asked(folder, hostile(LAN, multi_range=kind)) as (ask, _):
        response = ask(SEVERAL)
        assert (response.status, response.data) == (status, {200: CONTENT, 206: CONTENT[:10], 416: b""}[status])
        assert ask("bytes=7-9").data == CONTENT[7:10]


def test_rate_and_latency_are_kept(folder: Path) -> None:
    """Each connection has its own rate and latency, and the counts of connections and bytes are right."""
    handler = hostile(Profile(rate=5e5, latency=0.1))
    spent = []
    with asked(folder, handler) as (ask, _):

        def timed(ranges: str) -> None:
            began = time.monotonic()
            assert ask(ranges).status == 206
            spent.append(time.monotonic() - began)

        began = time.monotonic()
        ranges = [f"bytes={start}-{start + 99_999}" for start in (0, 1, 2, 3)] + ["bytes=0-49999,60000-109999"]
        threads = [threading.Thread(target=timed, args=(asked,)) for asked in ranges]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < sum(spent) / 2
        until = time.monotonic() + 5
        while handler.bytes_out <= 500_000 and time.monotonic() < until:  # bytes are counted after they are sent
            time.sleep(0.01)
    assert len(spent) == len(ranges)
    assert min(spent) >= 0.1 + 100_000 / 5e5
    assert handler.most_connections == 5
    assert handler.bytes_out > 500_000


def outcome(ask) -> str:
    """The name of the fault that a client sees in one answer."""
    try:
        response = ask("bytes=100-9099")
    except urllib3.exceptions.TimeoutError:
        return "stall"
    except urllib3.exceptions.ProtocolError as error:
        return "reset" if "reset" in str(error) else "truncate"
    match response.status, response.headers.get("Content-Range"), response.data == CONTENT[100:9100]:
        case 206, "bytes 100-9099/300000", right:
            return "" if right else "corrupt"
        case 206, "bytes 100-4599/300000", _:
            return "shorter" if response.data == CONTENT[100:4600] else "wrong"
        case 206, "bytes 101-9100/300000", _:
            return "elsewhere" if response.data == CONTENT[101:9101] else "wrong"
        case 200, _, _:
            return "ignore_range" if response.data == CONTENT else "wrong"
        case 429, _, _:
            return "too_many" if response.headers["Retry-After"] == "1" else "wrong"
    return f"error_{response.status}"


def test_each_fault_is_what_it_is_called(folder: Path) -> None:
    """Each kind of fault of a profile is the one that a client sees."""
    for kind in (*(name for name in WORST.shares() if not name.startswith("stall")), ""):
        with asked(folder, hostile(Profile(**{kind: 1}) if kind else LAN)) as (ask, _):
            assert outcome(ask) == kind


def test_the_seed_says_which_requests_fail(folder: Path) -> None:
    """The same seed gives the same sequence of faults, and another seed another one."""
    told = []
    for seed in (1, 1, 2):
        handler = hostile(Profile(reset=0.2, error_503=0.2, shorter=0.2), seed)
        with asked(folder, handler) as (ask, _):
            told.append([outcome(ask) for _ in range(40)])
        assert told[-1] == handler.drawn
    assert told[0] == told[1] != told[2]
    assert set(told[0]) == {"", "reset", "error_503", "shorter"}
    assert 0.14 < sum(WORST.shares().values()) < 0.16
    assert sum(EBI.shares().values()) == EBI.stall


def test_a_stalled_answer_ends_with_its_client_or_its_server(folder: Path) -> None:
    """A stalled answer ends when its client or its server closes, and leaves no thread behind."""
    before = threading.active_count()
    handler = hostile(Profile(stall=1, stall_seconds=120))
    with (
        serve(folder, handler) as server,
        urllib3.PoolManager(timeout=0.1, maxsize=1, retries=False) as impatient,
        urllib3.PoolManager(timeout=urllib3.Timeout(read=None), maxsize=1, retries=False) as patient,
    ):
        for _ in range(6):
            with pytest.raises((urllib3.exceptions.TimeoutError, urllib3.exceptions.ProtocolError)):
                impatient.request("GET", f"{server.url}/a.tif", headers={"Range": "bytes=0-99999"})
        assert {*handler.drawn} == {"stall before", "stall amid"}
        wait_until(lambda: handler.connections == 0, 5)

        def wait_for_it() -> None:
            with pytest.raises(urllib3.exceptions.ProtocolError):
                patient.request("GET", f"{server.url}/a.tif", headers={"Range": "bytes=0-99999"})

        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        wait_until(lambda: len(handler.drawn) == 7, 5)
    waiting.join(timeout=5)
    wait_until(lambda: threading.active_count() <= before, 5)
