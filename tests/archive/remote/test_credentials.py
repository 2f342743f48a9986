"""Secrets of an address are sent to its host, and are neither shown nor stored anywhere."""

import base64
import importlib
import itertools
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import dask
import fsspec
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from distributed import Client, LocalCluster

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.chains import chain_of
from helpers.hostile import scripted
from helpers.talkers import WHOLE, fetched, talking, to
from liver_dask.archive.remote import files as remote
from liver_dask.archive.remote.address import resolve_url
from liver_dask.archive.remote.credentials import Secret, split_secret
from liver_dask.cli import main
from liver_dask.demo import RangeRequestHandler, serve

USER, PASSWORD, SIGNATURE = "walter", "tOp/s3cr3t p@ss", "sv=2026&sig=aB%2Fc%3D-verys3cret"
WRITTEN = "tOp%2Fs3cr3t%20p%40ss"
SECRETS = [
    PASSWORD,
    WRITTEN,
    "s3cr3t",
    SIGNATURE,
    "verys3cret",
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
]


class Guarded(RangeRequestHandler):
    """Answers only requests that carry both secrets."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        told = self.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(told).decode() != f"{USER}:{PASSWORD}" or query != SIGNATURE:
            self.refuse(401)
            return
        self.path = path
        super().do_GET()


def with_secrets(url: str) -> str:
    return url.replace("://", f"://{USER}:{WRITTEN}@") + f"?{SIGNATURE}"


@pytest.fixture
def guarded(archive: Path) -> Iterator[str]:
    with serve(archive, Guarded) as server:
        yield with_secrets(server.url)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", lambda seconds: None)


def assert_clean(*told: object) -> None:
    for text in map(str, told):
        assert not [secret for secret in SECRETS if secret in text], text


def test_the_secret_opens_the_archive_and_is_found_nowhere(
    guarded: str, archive: Path, tmp_path: Path, voxels, caplog: pytest.LogCaptureFixture, capfd
) -> None:
    """The secret gives access, and is in no attribute, repr, log, graph, cache entry or file of a store."""
    with caplog.at_level(logging.INFO), ld.trace():
        ds = ld.open_human_liver_em(guarded, shape=SHAPE, cache_dir=tmp_path / "kept", cache_raw_gb=1)
        np.testing.assert_array_equal(ds.er[1], voxels["er"][1])
        np.testing.assert_array_equal(ds.raw[1, :9], voxels["raw"][1, :9])
        plain = xr.open_dataset(guarded, engine="liver_dask", shape=SHAPE)
        np.testing.assert_array_equal(plain.raw[2, :9], voxels["raw"][2, :9])
        ld.to_zarr(ds.isel(z=slice(2)), tmp_path / "a.zarr", pyramid=True)
        changed = (ds.er.isel(z=slice(2)) + 1).to_dataset(name="er")
        ld.to_zarr(changed, tmp_path / "b.zarr", progress=False)
    reader = ds.raw.data.lazy.read
    clean = f"http://127.0.0.1:{guarded.rpartition(':')[2].partition('?')[0]}"
    assert ds.attrs["source"] == clean
    assert_clean(ds, ds.attrs, plain, plain.attrs, plain.raw.variable, repr(reader), repr(reader.source))
    assert_clean(repr(reader.source.secret), reader.describe(), reader.origin(), reader.files)
    assert_clean(ds.raw.data.name, dict(ds.raw.data.dask), repr(remote._process), vars(reader.source.versions))
    assert_clean(ld.to_zarr.__doc__, caplog.text, *capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert_clean(path, path.read_bytes().decode("latin-1"))


def test_the_same_voxels_have_the_same_name_whatever_opens_them(guarded: str, archive: Path) -> None:
    """Another token changes no name, description or dask token; a pickle carries the secret."""
    for source in (guarded, guarded.replace("sv=2026", "sv=2027")):
        lazy = ld.open_human_liver_em(source, shape=SHAPE).raw.data.lazy
        told = lazy.describe(), lazy.origin(), dask.base.tokenize(lazy), lazy.read.files
        if source == guarded:
            first, reader = told, lazy.read
    assert told == first
    assert pickle.loads(pickle.dumps(reader)) == reader != lazy.read
    assert pickle.loads(pickle.dumps(reader)).source.secret.user == f"{USER}:{WRITTEN}"


def test_workers_have_the_secret(guarded: str, voxels, tmp_path: Path) -> None:
    """Workers of a cluster can read an archive that needs the secret."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", processes=False) as cluster,
        Client(cluster) as client,
    ):
        ds = ld.open_human_liver_em(guarded, shape=SHAPE)
        ld.to_zarr(ds.isel(z=slice(1)), tmp_path / "a.zarr", client=client, progress=False)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").er[0], voxels["er"][0])


@pytest.mark.parametrize(
    "fault", ["401", "403 7", "404", "416", "500", "reset", "stall 9", "untold", "refused", "loop", "no host"]
)
def test_no_error_holds_the_secret(archive: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """No error, nor any error that it was raised from, nor the log contains the secret."""
    handler = (
        scripted(dict.fromkeys(range(1, 40), fault))
        if fault not in ("refused", "loop", "no host")
        else RangeRequestHandler
    )

    class Without(handler):
        def do_GET(self) -> None:
            self.path = self.path.partition("?")[0]
            if fault == "loop":
                self.send(302, {"Location": f"/a?{SIGNATURE}"}, b"")
            else:
                super().do_GET()

    with (
        serve(archive, Without) as server,
        dask.config.set({"liver-dask.timeout": 0.3, "liver-dask.attempts": 2}),
        caplog.at_level(logging.INFO),
    ):
        url = {"refused": "http://127.0.0.1:9", "no host": "http://no-such-host.invalid"}.get(fault, server.url)
        ds = ld.open_human_liver_em(with_secrets(url), shape=SHAPE)
        with pytest.raises(ld.LiverDaskError) as told:
            ds.raw[0, :5].compute()
    assert_clean(chain_of(told.value), caplog.text)


def test_the_shell_shows_no_secret(archive: Path, tmp_path: Path) -> None:
    """The output of the command contains no secret, whether it succeeds or fails."""
    with serve(archive, scripted(dict.fromkeys(range(1, 90), "403"))) as server:
        target = with_secrets(server.url)
        box = ["--shape", *map(str, SHAPE), "--bbox", "0", "9", "0", "9", "0", "1"]
        for call, code in (
            (["download", str(tmp_path / "a.zarr"), "--source", target, *box], 1),
            (["download", str(tmp_path / "a.zarr"), "--source", target, *box, "--dry-run"], 0),
            (["info", target], 1),
            (["info", target, "--offline"], 0),
            (["info", with_secrets("httpx://a")], 2),
            (["info", with_secrets("zip://a::http://a")], 2),
        ):
            done = CliRunner().invoke(main, call)
            assert done.exit_code == code, done.output
            assert_clean(done.output)


@pytest.mark.parametrize(
    ("address", "url", "user", "query"),
    [
        ("http://a/b/", "http://a/b", "", ""),
        ("https://u:p%40@a:81/b/?x=1&y=ä z#part", "https://a:81/b", "u:p%40", "x=1&y=%C3%A4%20z"),
        ("http://a/b?x#y?z", "http://a/b", "", "x"),
        ("http://a/b#y?z", "http://a/b", "", ""),
        ("http://u@[::1]:8/b", "http://[::1]:8/b", "u", ""),
        ("ftp://u:p@a/b?c", "ftp://a/b?c", "u:p", ""),
        ("memory://u:p@a/b", "memory://a/b", "u:p", ""),
        ("abfs://box@account.net/b", "abfs://box@account.net/b", "", ""),
        ("memory://a@b/c", "memory://a@b/c", "", ""),
    ],
)
def test_what_of_an_address_is_secret(address: str, url: str, user: str, query: str) -> None:
    """An address is split into a URL without secrets, the user part and the query."""
    clean, secret = split_secret(address)
    assert (clean.rstrip("/"), secret) == (url, Secret(user, query))


@pytest.mark.parametrize(
    "torn", ["http://u:s3cr3t#x@host/", "http://u:s3cr3t/x@host/", "http://u:s3cr3t?x@host/", "http://u:s3cr3t[@host"]
)
def test_a_password_that_tears_its_address_is_not_shown(torn: str) -> None:
    """The error about an address with an unquoted password does not show the password."""
    with pytest.raises(ld.InvalidArgumentError) as told:
        resolve_url(torn)
    assert_clean(chain_of(told.value))


def test_a_query_goes_behind_the_path_and_a_header_with_it() -> None:
    """The query is sent after the path, and user and password as a Basic Authorization header."""
    with talking(lambda *_: WHOLE) as talker:
        assert fetched(talker.url.replace("://", "://u%3A:p%C3%A4@") + "/b/?x=1") == b"abcde"
    (request,) = talker.requests
    assert request.startswith(b"GET /b/a?x=1 HTTP/1.1\r\n")
    assert b"Authorization: Basic " + base64.b64encode("u::pä".encode()) in request


def test_a_secret_goes_to_no_other_host() -> None:
    """A redirect to another host carries no secret; one to the same host carries the Authorization header."""
    with talking(lambda *_: WHOLE) as other, talking(lambda *_: to(other.url + "/c?its=own")) as first:
        assert fetched(first.url.replace("://", "://u:p@") + "?mine=1") == b"abcde"
    assert b"/a?mine=1" in first.requests[0]
    assert b"Authorization" in first.requests[0]
    assert b"GET /c?its=own HTTP" in other.requests[0]
    assert b"Authorization" not in other.requests[0]
    assert b"mine" not in other.requests[0]
    answers = itertools.chain([to("/c")], itertools.repeat(WHOLE))
    with talking(lambda *_: next(answers)) as same:
        assert fetched(same.url.replace("://", "://u:p@") + "?mine=1") == b"abcde"
    assert b"Authorization" in same.requests[1]


def test_netrc_is_looked_at_as_requests_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password from netrc is used unless the address has one; a broken or missing netrc file is ignored."""
    file = tmp_path / "own-netrc"
    file.write_text("machine 127.0.0.1 login carl password s3cr3t\n")
    monkeypatch.setenv("NETRC", str(file))
    of_carl = b"Authorization: Basic " + base64.b64encode(b"carl:s3cr3t")
    with talking(lambda *_: WHOLE) as talker:
        fetched(talker.url)
        fetched(talker.url.replace("://", "://u:p@"))
        assert [of_carl in request for request in talker.requests] == [True, False]
        file.write_text("machine this is not a netrc")
        fetched(talker.url)
        monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
        fetched(talker.url)
        monkeypatch.delenv("NETRC")
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login carl password s3cr3t\n")
        (tmp_path / ".netrc").chmod(0o600)
        fetched(talker.url)
    assert [b"Authorization" in request for request in talker.requests[2:]] == [False, False, True]
    assert of_carl in talker.requests[4]


def test_file_systems_get_their_user_and_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An fsspec file system gets user and password, and no attribute, repr or error shows them."""
    asked = []

    class Ftp(fsspec.get_filesystem_class("memory")):
        def __init__(self, **options) -> None:
            super().__init__()
            asked.append(options)

        @staticmethod
        def _get_kwargs_from_urls(url: str) -> dict[str, object]:
            return {"url": url}

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.partition("://")[2].partition("/")[2]

        def info(self, path: str, **_: object) -> dict[str, object]:
            raise OSError(f"530 Login as {USER} with {PASSWORD} ({WRITTEN}) failed")

    monkeypatch.setattr(Ftp, "cachable", False)
    fsspec.register_implementation("liverftp", Ftp, clobber=True)
    ds = ld.open_human_liver_em(f"liverftp://{USER}:{WRITTEN}@host/liver", shape=SHAPE)
    with pytest.raises(ld.RemoteError, match="Login as walter with") as told:
        ds.raw[0, :5].compute()
    assert asked[0]["url"] == f"liverftp://{USER}:{WRITTEN}@host/liver"
    assert ds.attrs["source"] == "liverftp://host/liver"
    assert_clean(ds, ds.attrs, repr(ds.raw.data.lazy), chain_of(told.value))


def test_the_slicers_notebook_holds_no_secret(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook cell of the slicer contains no secret; the address is passed by the environment."""
    pytest.importorskip("voila", reason="needs the extra `app`")
    view, browser = (importlib.import_module(f"liver_dask.viewing.{name}") for name in ("view", "browser"))
    cells = []
    monkeypatch.setattr(browser, "serve_notebook", lambda cell, *_: cells.append(cell))
    monkeypatch.setenv(view.TARGET, "")
    view.serve_slicer(guarded, {"archive": "EMPIAR-13356", "shape": SHAPE}, None, None, 0, False)
    assert len(cells) == 1
    assert_clean(cells)
    assert os.environ[view.TARGET] == guarded
