"""A Dataset over HTTP: voxels, ranges, conditional requests, origins, tokens, clients that hang up, and errors."""

import http.client
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import tensorstore as ts
import xarray as xr
import zarr

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.hostile import Profile, hostile
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import ArchiveServer, make_archive
from liver_dask.demo import serve as serve_folder
from liver_dask.serving import ahead, scales
from liver_dask.serving.server import Server

FACTORS = (1, 2, 4, 8)
COMMAND = [str(Path(sys.executable).with_name("liver-dask"))]


@pytest.fixture(autouse=True)
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and the last scale are small, so that a small archive has several of both; nothing is read ahead, except
    in tests of that, so that requests can be counted.
    """
    monkeypatch.setattr(scales, "CHUNK", (1, 64, 96))
    monkeypatch.setattr(scales, "SMALL_ENOUGH", 64)
    monkeypatch.setattr(ahead, "SECONDS_AT_REST", 0.1 if "ahead" in request.node.name else 600)


@pytest.fixture
def gateway(archive: Path) -> Iterator[Server]:
    with ld.serve(ld.open_human_liver_em(archive, shape=SHAPE)) as running:
        yield running


class Answer:
    def __init__(self, url: str, method: str = "GET", **headers: str) -> None:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, parts.path, headers=named)
        response = connection.getresponse()
        self.status, self.headers, self.body = response.status, response.headers, response.read()
        connection.close()


def test_every_voxel_comes_over_http(gateway: Server, voxels) -> None:
    """An independent reader reads every voxel of the first scale, and of the others what this process reads."""
    root = zarr.open_group(gateway._served, mode="r")
    for name in voxels:
        found = ts.open({"driver": "zarr3", "kvstore": f"{gateway.url}{name}/"}).result().read().result()
        np.testing.assert_array_equal(found, voxels[name])
    named = Answer(f"{gateway.url}volume.zarr/raw/c/3/1/2")
    assert named.body == Answer(f"{gateway.url}raw/c/3/1/2").body, "readers that go by the suffix find nothing"
    for path in ("pyramid/s1/raw", "pyramid/s3/er", "labels/mito/2"):
        found = ts.open({"driver": "zarr3", "kvstore": f"{gateway.url}{path}/"}).result().read().result()
        np.testing.assert_array_equal(found, root[path][:])


def test_http_as_viewers_speak_it(gateway: Server) -> None:
    """HEAD, ranges, conditional requests and other origins are answered as HTTP says."""
    url = f"{gateway.url}raw/c/3/1/2"
    whole = Answer(url)
    assert (whole.status, len(whole.body)) == (200, 64 * 96 * 2)
    assert whole.headers["Accept-Ranges"] == "bytes"
    head = Answer(url, "HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(whole.body)))
    size = len(whole.body)
    for asked, start, stop in (("0-9", 0, 10), ("100-", 100, size), ("-7", size - 7, size), (f"5-{size * 2}", 5, size)):
        part = Answer(url, Range=f"bytes={asked}")
        assert (part.status, part.body) == (206, whole.body[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.headers["Content-Length"] == str(stop - start)
    for asked in (f"{size}-", "-0"):
        assert Answer(url, Range=f"bytes={asked}").status == 416
    for asked in (
        "bytes=1-2,5-6",
        "bytes=x-",
        "pages=1-2",
        "bytes=-",
        "bytes",
        "bytes=9-3",
        "bytes=0-\xb2",
        "bytes=0-" + "9" * 5000,
    ):
        assert Answer(url, Range=asked).body == whole.body, "what is not understood is ignored"
    assert Answer(url, Range="BYTES = 0-3").body == whole.body[:4]
    assert Answer(f"{gateway.url}raw/c/0/0/{'1' * 5000}").status == 404
    assert Answer(url, If_None_Match="*").status == 304
    etag = whole.headers["ETag"]
    assert Answer(url, Range="bytes=0-9", If_Range=etag).status == 206
    assert Answer(url, Range="bytes=0-9", If_Range='"other"').status == 200
    same = Answer(url, If_None_Match=etag)
    assert (same.status, same.body) == (304, b"")
    assert Answer(url, If_None_Match='"other"').status == 200
    assert Answer(url, Origin="https://viewer.example").headers["Access-Control-Allow-Origin"] == "*"
    asked_first = Answer(
        url, "OPTIONS", Origin="https://viewer.example", Access_Control_Request_Method="GET",
        Access_Control_Request_Headers="range",
    )  # fmt: skip
    assert asked_first.status == 200
    assert "range" in asked_first.headers["Access-Control-Allow-Headers"].lower()
    for method in ("PUT", "POST", "DELETE"):
        assert Answer(url, method).status == 405
    for wrong in ("", "raw/c/3/1/9", "raw/", "%2e%2e/raw/zarr.json", "zarr.json/", "nothing"):
        assert Answer(gateway.url + wrong).status == 404


def test_a_token_is_needed_where_others_can_ask(archive: Path) -> None:
    """On other than local addresses a random token is part of the path, and without it there is nothing."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with ld.serve(ds, host="0.0.0.0") as server:
        parts = urlsplit(server.url)
        token = parts.path.strip("/")
        assert len(token) > 20
        near = f"http://127.0.0.1:{parts.port}/"
        assert Answer(f"{near}{token}/raw/zarr.json").status == 200
        for path in ("raw/zarr.json", f"{token[:-1]}/raw/zarr.json", "", "zarr.json"):
            assert Answer(near + path).status == 404
    with ld.serve(ds, token="mine") as server:
        assert server.url.endswith("/mine/")
        assert Answer(server.url + "zarr.json").status == 200
        assert Answer(server.url.replace("mine/", "") + "zarr.json").status == 404


def test_a_store_is_served_as_the_files_that_it_has(archive: Path, tmp_path: Path) -> None:
    """The files of a store with a pyramid are served by ranges, and nothing beside it; nothing is written."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("liver_dask.store.levels.SMALL_ENOUGH", 100)
        store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, pyramid=True))
        (tmp_path / "secret.txt").write_text("secret")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with ld.serve(store) as server:
            found = ts.open({"driver": "zarr3", "kvstore": f"{server.url}labels/mito/1/"}).result().read().result()
            np.testing.assert_array_equal(found, xr.open_zarr(store / "pyramid" / "s1").mito)
            shard = Answer(f"{server.url}raw/c/0/0/0", Range="bytes=4-13")
            assert (shard.status, shard.body) == (206, (store / "raw/c/0/0/0").read_bytes()[4:14])
            etag = Answer(f"{server.url}raw/c/0/0/0").headers["ETag"]
            assert Answer(f"{server.url}raw/c/0/0/0", If_None_Match=etag).status == 304
            assert Answer(f"{server.url}raw/zarr.json", Origin="http://x").headers["Access-Control-Allow-Origin"] == "*"
            for path in ("../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "raw/c/9/9/9", ""):
                assert Answer(server.url + path).status in (404, 405)
            assert "zarr3" in server.link()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_many_clients_of_which_a_third_hangs_up(archive: Path, voxels) -> None:
    """Of 50 clients that ask for random chunks at once, those that stay get the right bytes, and no read is left."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with serve_folder(archive, hostile(Profile(latency=0.02, rate=2_000_000))) as source:
        far = ld.open_human_liver_em(source.url, shape=SHAPE)
        near = ld.as_zarr(ds)
        with ld.serve(far) as server:
            root = zarr.open_group(near, mode="r")
            expected = {name: root[name] for name in ("raw", "er", "pyramid/s1/raw", "pyramid/s2/er", "labels/mito/0")}
            address = urlsplit(server.url)

            def client(seed: int) -> int:
                rng = random.Random(seed)
                got = 0
                for _ in range(12):
                    path = rng.choice([*expected])
                    array = expected[path]
                    place = [rng.randrange(-(-n // of)) for n, of in zip(array.shape, array.chunks, strict=True)]
                    asked = f"/{path}/c/{'/'.join(map(str, place))}"
                    if rng.random() < 1 / 3:
                        with socket.create_connection((address.hostname, address.port)) as connection:
                            connection.sendall(f"GET {asked} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                            time.sleep(rng.random() * 0.05)
                        continue
                    spec = {"driver": "zarr3", "kvstore": f"{server.url}{path}/"}
                    at = tuple(slice(i * of, (i + 1) * of) for i, of in zip(place, array.chunks, strict=True))
                    box = tuple(slice(s.start, min(s.stop, n)) for s, n in zip(at, array.shape, strict=True))
                    found = ts.open(spec).result()[box].read().result()
                    np.testing.assert_array_equal(found, array[box])
                    got += 1
                return got

            with ThreadPoolExecutor(50) as pool:
                assert sum(pool.map(client, range(50))) > 200
            until = time.monotonic() + 10
            while any(reader._waiting for reader in server._served._rows.values()):
                assert time.monotonic() < until, "a read is left"
                time.sleep(0.05)


@pytest.mark.slow
def test_who_hangs_up_stops_the_transfer(tmp_path: Path) -> None:
    """When nobody waits for a chunk any more, its transfers stop; another client still gets the same chunk."""
    make_archive(tmp_path / "archive", shape := (2, 1200, 1200))
    slow = hostile(Profile(rate=100_000, latency=0.02))
    with serve_folder(tmp_path / "archive", slow) as source, pytest.MonkeyPatch.context() as patched:
        patched.setattr(scales, "CHUNK", (1, 512, 1200))
        ds = ld.open_human_liver_em(source.url, shape=shape, labels=[], connections=4)
        with ld.serve(ds) as server:
            address = urlsplit(server.url)
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(b"GET /raw/c/1/1/0 HTTP/1.1\r\nHost: x\r\n\r\n")
                time.sleep(1)
            time.sleep(1)
            out = slow.bytes_out
            time.sleep(1.5)
            assert slow.bytes_out - out < 100_000, "what nobody wants was still sent"
            assert slow.bytes_out < 512 * 1200 * 2, "it was sent whole"
            slow.rate = None


def test_an_error_of_the_source_is_no_hole(archive: Path, tmp_path: Path) -> None:
    """A slice that cannot be read is 424 with one sentence: readers take 404 for zeros, and ask again after 502."""
    copy = shutil.copytree(archive, tmp_path / "archive")
    (copy / EMPIAR_13356.path("raw", 3)).unlink()
    with ld.serve(copy, shape=SHAPE) as server:
        failed = Answer(f"{server.url}raw/c/3/0/0")
        assert failed.status == 424
        assert b"raw, slice 3" in failed.body
        assert Answer(f"{server.url}raw/c/4/0/0").status == 200
        with pytest.raises(ValueError, match="424"):
            ts.open({"driver": "zarr3", "kvstore": f"{server.url}raw/"}).result()[3].read().result()
        changed = copy / EMPIAR_13356.path("raw", 4)
        changed.write_bytes(changed.read_bytes()[:-1000])
        failed = Answer(f"{server.url}raw/c/4/4/0")
        assert failed.status == 424, "a file that has changed is asked for again and again"
        assert b"open" in failed.body


def test_the_link_says_what_neuroglancer_shows(archive: Path) -> None:
    """Layers, contrast, colours, place, and scales in metres are in the link, with the chosen neuroglancer."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, voxel_size_nm=(30, 8, 8)).isel(y=slice(100, None), z=slice(2, 9))
    with ld.serve(ds) as server:
        link = server.link("http://127.0.0.1:9/v/", z=3)
        client, _, state = link.partition("#!")
        state = json.loads(unquote(state))
    assert client == "http://127.0.0.1:9/v/"
    assert state["dimensions"] == {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [pytest.approx(30e-9), "m"]}
    assert state["position"] == [210, 200, 3]
    assert state["layout"] == "xy"
    raw, *labels = state["layers"]
    assert raw["source"] == f"zarr3://{server.url}"
    low, high = raw["shaderControls"]["normalized"]["range"]
    assert 0 < low < high < 65535
    assert [label["name"] for label in labels] == list(EMPIAR_13356.labels)
    for number, label in enumerate(labels, 1):  # a browser sends six requests at once to each name of a machine
        own = server.url.replace("127.0.0.1", f"layer{number}.localhost")
        assert label["segmentColors"] == {"255": EMPIAR_13356[label["name"]].color}
        assert label["source"] == f"zarr3://{own}labels/{label['name']}/"


def test_a_link_begins_to_read_what_it_shows(archive: Path) -> None:
    """The last scale of the slice is read when the link is made, and not fetched again; a slice must be served."""
    with serve_folder(archive) as source, ld.serve(ld.open_human_liver_em(source.url, shape=SHAPE)) as server:
        with pytest.raises(ld.InvalidArgumentError, match="z=10 is not one of the slices 0 to 9"):
            server.link(z=10)
        server.link(z=3)
        before = -1
        while source.bytes_sent > before or not source.bytes_sent:
            before = source.bytes_sent
            time.sleep(0.3)
        last = len(list(scales.scales_of("raw", ld.open_human_liver_em(archive, shape=SHAPE).raw))) - 1
        for key in (f"pyramid/s{last}/raw/c/3/0/0", f"labels/mito/{last}/c/3/0/0", f"labels/er/{last}/c/3/0/0"):
            assert Answer(server.url + key).status == 200
        assert source.bytes_sent == before


def at_rest(source: ArchiveServer) -> int:
    """Wait until nothing more is requested of a source, and return how many bytes it has sent."""
    before = -1
    while source.bytes_sent > before:
        before = source.bytes_sent
        time.sleep(0.5)
    return before


def test_the_next_slice_is_read_ahead(archive: Path) -> None:
    """When a viewer rests, what it shows is read of the next slice, at all scales that it will ask for; not of the one
    before, not beyond the last, and not anything beside it.
    """
    places = ("raw/c/{z}/1/1", "raw/c/{z}/1/2", "pyramid/s1/raw/c/{z}/0/0", "pyramid/s3/raw/c/{z}/0/0", "er/c/{z}/1/1")
    with serve_folder(archive) as source, ld.serve(ld.open_human_liver_em(source.url, shape=SHAPE)) as server:
        Answer(f"{server.url}pyramid/s3/raw/c/4/0/0")
        for place in ("raw/c/4/1/1", "raw/c/4/1/2", "er/c/4/1/1"):
            assert Answer(server.url + place).status == 200
        first = at_rest(source)
        asked = {request.path for request in source.requests}
        assert asked == {f"/{EMPIAR_13356.path(name, z)}" for name in ("raw", "er") for z in (4, 5)}
        for place in places:
            assert Answer(server.url + place.format(z=5)).status == 200
        assert source.bytes_sent == first, "it was fetched again"
        at_rest(source)
        source.requests.clear()
        Answer(server.url + "raw/c/4/1/1")  # back
        at_rest(source)
        assert {request.path for request in source.requests} == {f"/{EMPIAR_13356.path('raw', 3)}"}
        source.requests.clear()
        Answer(server.url + "raw/c/0/1/1")
        at_rest(source)
        assert {request.path for request in source.requests} == {f"/{EMPIAR_13356.path('raw', 0)}"}


def test_what_is_read_ahead_ends_with_the_next_look_and_with_the_server(tmp_path: Path) -> None:
    """Who goes elsewhere, or closes the server, stops what is read ahead; what is computed is not read ahead."""
    make_archive(tmp_path / "archive", shape := (4, 512, 1200))
    slow = hostile(Profile(rate=None, latency=0.01))
    with serve_folder(tmp_path / "archive", slow) as source:
        ds = ld.open_human_liver_em(source.url, shape=shape, labels=[], connections=2)
        with ld.serve(ds) as server:
            Answer(f"{server.url}raw/c/1/0/0")
            slow.rate = 20_000
            time.sleep(1)  # the next slice is being read
            assert any(EMPIAR_13356.path("raw", 2) in request.path for request in source.requests)
            slow.rate = None
            Answer(f"{server.url}raw/c/0/0/0")
            assert not server._served._ahead._reads or server._served._ahead._read_z != 2
        with ld.serve(ds.assign(raw=ds.raw + 1)) as server:
            assert Answer(f"{server.url}raw/c/1/0/0").status == 200
            at_rest(source)
            source.requests.clear()
            time.sleep(0.5)
            assert not source.requests


def test_nothing_is_read_ahead_for_who_hung_up(archive: Path) -> None:
    """Who left, and who asks for the head alone, sees nothing of which the next slice would follow."""
    with serve_folder(archive) as source, ld.serve(ld.open_human_liver_em(source.url, shape=SHAPE)) as server:
        Answer(f"{server.url}raw/c/4/1/1", "HEAD")
        served = server._served
        served._ahead.begin(served._documents.scales["raw"][0], (6, 1, 1))
        served._ahead.end(is_answered=False)
        at_rest(source)
        assert {request.path for request in source.requests} == {f"/{EMPIAR_13356.path('raw', 4)}"}


def test_what_is_read_ahead_is_cached_and_not_kept(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that nobody asked for yet are not held; after the server was closed, nothing begins."""
    store = ld.as_zarr(ld.open_human_liver_em(archive, shape=SHAPE, labels=[]))
    scale = store._documents.scales["raw"][0]
    store._ahead.begin(scale, (3, 1, 1))
    store._ahead.end(is_answered=True)
    until = time.monotonic() + 30
    while not store._ahead._reads:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [read.result(30).size for read in store._ahead._reads] == [0] * len(FACTORS)
    store._ahead.begin(scale, (4, 1, 1))
    store.close()
    store._ahead.end(is_answered=True)
    time.sleep(0.3)
    assert not store._ahead._reads


def test_the_root_does_not_hold_up_anything(archive: Path) -> None:
    """While the contrast is being read, other documents are answered, and the server can be closed at once; the read
    of who hung up ends.
    """
    slow = hostile(Profile(rate=2000, latency=0.01))
    with serve_folder(archive, slow) as source:
        server = ld.serve(ld.open_human_liver_em(source.url, shape=SHAPE, labels=["er"]))
        host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
        waiting = [socket.create_connection((host, port)) for _ in range(10)]
        for one in waiting:
            one.sendall(b"GET /zarr.json HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.5)
        began = time.monotonic()
        assert Answer(f"{server.url}er/zarr.json").status == 200
        for one in waiting:
            one.close()
        server.close()
        assert time.monotonic() - began < 10
        slow.rate = None


def test_without_the_middle_slice_the_others_are_served(archive: Path, tmp_path: Path) -> None:
    """If the slice of the contrast is missing, another one gives it; what is wrong with a source, the source says."""
    copy = shutil.copytree(archive, tmp_path / "archive")
    (copy / EMPIAR_13356.path("raw", SHAPE[0] // 2)).unlink()
    with ld.serve(copy, shape=SHAPE) as server:
        assert "shaderControls" in unquote(server.link(z=1))
        assert Answer(f"{server.url}zarr.json").status == 200
    for path in (copy / EMPIAR_13356["raw"].folder).iterdir():
        path.unlink()
    with ld.serve(copy, shape=SHAPE) as server:
        with pytest.raises(ld.SliceNotFoundError, match="raw, slice 5"):
            server.link()
        root = json.loads(Answer(f"{server.url}zarr.json").body)
        assert "omero" not in root["attributes"]["ome"]
        assert Answer(f"{server.url}er/c/5/0/0").status == 200


def test_closing_ends_every_wait(archive: Path) -> None:
    """Whoever waits when a store is closed, or asks later, gets one sentence; nobody waits for ever."""
    slow = hostile(Profile(rate=2000, latency=0.01))
    with serve_folder(archive, slow) as source:
        store = ld.as_zarr(ld.open_human_liver_em(source.url, shape=SHAPE, labels=[]))
        rows = store._rows["raw"]
        waiting = [rows.ask(z, np.arange(20), slice(0, 100)) for z in range(10) for _ in range(3)]
        time.sleep(0.3)
        waiting += [rows.ask(z, np.arange(40), slice(0, 50)) for z in range(10)]
        store.close()
        waiting += [rows.ask(3, np.arange(9), slice(0, 9)) for _ in range(2)]
        for one in waiting:
            with pytest.raises(ld.LiverDaskError, match="is closed"):
                one.result(10)
        slow.rate = None


def test_a_lost_shard_and_an_unfinished_pyramid(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is lost while a store is served is no hole; levels without their description are not served."""
    monkeypatch.setattr("liver_dask.store.levels.SMALL_ENOUGH", 100)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, pyramid=True))
    with ld.serve(store) as server:
        for array in ("raw", "pyramid/s1/raw", "labels/mito/0"):
            (store / array / "c/0/0/0").rename(tmp_path / "lost")
            assert Answer(f"{server.url}{array}/c/0/0/0").status == 424
            (tmp_path / "lost").rename(store / array / "c/0/0/0")
        assert Answer(f"{server.url}raw/c/9/0/0").status == 404
    document = json.loads((store / "zarr.json").read_text())
    del document["attributes"]["ome"]
    (store / "zarr.json").write_text(json.dumps(document))
    with ld.serve(store) as server:
        assert "raw" in unquote(server.link())
        assert Answer(f"{server.url}raw/c/3/0/0").status == 200


def test_masks_alone_have_a_link(archive: Path) -> None:
    """Neuroglancer shows masks without an image."""
    with ld.serve(ld.open_human_liver_em(archive, shape=SHAPE).drop_vars("raw")) as server:
        state = json.loads(unquote(server.link(z=3).partition("#!")[2]))
    assert [layer["name"] for layer in state["layers"]] == list(EMPIAR_13356.labels)
    assert state["position"] == [210, 150, 3]


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        (None, {}, "is served, not a NoneType"),
        (b"x", {}, "is served, not a bytes"),
        ("archive", {"host": ""}, "Cannot listen on port 0 of ''"),
        ("archive", {"port": "80"}, "Cannot listen on port '80'"),
        ("archive", {"token": "{key}"}, "The token is part of an address"),
        ("archive", {"token": "/a/"}, "The token is part of an address"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(archive: Path, target, options, said: str) -> None:
    """Wrong targets, hosts, ports and tokens are one sentence."""
    with pytest.raises(ld.InvalidArgumentError, match=re.escape(said)):
        ld.serve(archive if target == "archive" else target, **{"port": 0} | options)


@pytest.mark.parametrize(("port", "host"), [(70000, "127.0.0.1"), (0, "203.0.113.1"), (0, "nowhere.invalid")])
def test_where_it_cannot_listen(archive: Path, port: int, host: str) -> None:
    """A port or address that cannot be used is one sentence."""
    with pytest.raises(ld.InvalidArgumentError, match=f"Cannot listen on port {port} of '{host}'"):
        ld.serve(ld.open_human_liver_em(archive, shape=SHAPE), port, host=host)


def test_a_port_that_is_taken(archive: Path, gateway: Server) -> None:
    """A port that another server has is an error, and that server goes on."""
    with pytest.raises(ld.InvalidArgumentError, match="Cannot listen on port"):
        ld.serve(ld.open_human_liver_em(archive, shape=SHAPE), urlsplit(gateway.url).port or 0)
    assert Answer(f"{gateway.url}zarr.json").status == 200


@pytest.mark.slow
def test_from_the_shell(archive: Path, tmp_path: Path) -> None:
    """`liver-dask serve` says where, serves, and ends at Ctrl-C; a wrong address is an error at once."""
    command = [*COMMAND, "serve", str(archive), "--shape", *map(str, SHAPE), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        url = lines[0].split()[-1]
        assert Answer(f"{url}raw/c/0/0/0").status == 200
        assert "#!" in lines[1]
        assert lines[2] == "Press Ctrl-C to stop.\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "")
    failed = subprocess.run(
        [*COMMAND, "serve", str(tmp_path / "nowhere"), "--port", "0"], capture_output=True, text=True, timeout=100
    )
    assert failed.returncode != 0
    assert "nowhere" in failed.stderr
    assert "Traceback" not in failed.stderr
