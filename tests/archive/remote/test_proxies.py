"""Proxies and certificates are taken from the environment, as by `requests`, curl and other tools."""

import base64
import select
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
import numpy as np
import pytest

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.chains import chain_of
from helpers.paths import DATA
from helpers.talkers import WHOLE, fetched, listening, talking, to
from liver_dask.archive.remote import connections
from liver_dask.archive.remote import files as remote
from liver_dask.demo import RangeRequestHandler, serve

PEM = DATA / "loopback.pem"
"""The key and the certificate of 127.0.0.1 and localhost, which no system trusts."""

VARIABLES = ["http_proxy", "https_proxy", "all_proxy", "no_proxy", *connections.CERTIFICATES]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", lambda seconds: None)


class Proxy:
    """A proxy that relays data in both directions.

    Attributes:
        address: Host and port.
        asked: The first line and headers of each request.
    """

    def __init__(self, answer: bytes = b"") -> None:
        self.asked: list[bytes] = []
        self._answer = answer

    def serve(self, connection: socket.socket) -> None:
        with connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                got = connection.recv(1)
                if not got:
                    return
                head += got
            self.asked.append(head)
            if self._answer:
                connection.sendall(self._answer)
                return
            method, target, _ = head.split(b" ", 2)
            place = target if method == b"CONNECT" else target.split(b"/")[2]
            host, _, port = place.decode().rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                if method == b"CONNECT":
                    connection.sendall(b"HTTP/1.1 200 Go on\r\n\r\n")
                    relay(connection, server)
                else:
                    server.sendall(head.replace(b"http://" + place, b"", 1))
                    relay(connection, server, b"http://" + place)


def relay(client: socket.socket, server: socket.socket, dropped: bytes = b"") -> None:
    """Pass on data in both directions until one side closes; drop the server's address from requests."""
    with suppress(OSError):
        while True:
            for ready in select.select([client, server], [], [], 20)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                if ready is client:
                    server.sendall(data.replace(dropped, b"", 1))
                else:
                    client.sendall(data)


@contextmanager
def proxy(answer: bytes = b"") -> Iterator[Proxy]:
    running = Proxy(answer)
    with listening(lambda connection: running.serve(connection)) as running.address:
        yield running
        remote._process.close_idle()


class Secured(RangeRequestHandler):
    """Speaks TLS."""

    def setup(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(PEM)
        self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()


@contextmanager
def secured(archive: Path, handler: type[Secured] = Secured) -> Iterator[str]:
    """The archive over TLS."""
    with serve(archive, handler) as server:
        yield server.url.replace("http:", "https:")


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
@pytest.mark.parametrize("user", ["", "u%40:p%C3%A4s3cr3t@"])
def test_the_proxy_is_asked(archive: Path, voxels, monkeypatch, variable: str, scheme: str, user: str) -> None:
    """Requests go through the proxy of the environment, with its user and password if it has them."""
    with serve(archive) as server, proxy() as between:
        monkeypatch.setenv(variable, f"{scheme}{user}{between.address}")
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.er[1, :9], voxels["er"][1, :9])
        assert between.asked[0].startswith(b"GET " + server.url.encode() + b"/humanliver_er_mask/")
        told = b"Proxy-Authorization: Basic " + base64.b64encode("u@:päs3cr3t".encode())
        assert (told in between.asked[0]) == bool(user)


@pytest.mark.parametrize("excepted", ["127.0.0.1", "*", "127.0.0.0/8", "x.org, 127.0.0.0/8", ""])
def test_some_hosts_are_asked_without_it(monkeypatch: pytest.MonkeyPatch, excepted: str) -> None:
    """Hosts listed in `no_proxy` are asked directly."""
    with talking(lambda *_: WHOLE) as talker, proxy() as between:
        monkeypatch.setenv("http_proxy", between.address)
        monkeypatch.setenv("no_proxy", excepted)
        assert fetched(talker.url) == b"abcde"
        assert len(between.asked) == (not excepted)


def test_tls_goes_through_the_proxy(archive: Path, voxels, monkeypatch: pytest.MonkeyPatch) -> None:
    """An https archive is read through a CONNECT tunnel, and the proxy's password is sent with CONNECT."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(PEM))
    with secured(archive) as url, proxy() as between:
        monkeypatch.setenv("https_proxy", f"http://u:p@{between.address}")
        ds = ld.open_human_liver_em(url, shape=SHAPE)
        np.testing.assert_array_equal(ds.er[1, :9], voxels["er"][1, :9])
        assert between.asked[0].startswith(b"CONNECT 127.0.0.1:")
        assert b"Proxy-Authorization: Basic " in between.asked[0]


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n", None]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_reported_without_its_password(monkeypatch, answer: bytes | None, scheme: str) -> None:
    """The error about a proxy that refuses or is unreachable names the proxy without its password."""
    with proxy(answer or b"x") as between, dask.config.set({"liver-dask.attempts": 2, "liver-dask.timeout": 1}):
        monkeypatch.setenv("all_proxy", f"http://u:s3cr3t@{between.address if answer else '127.0.0.1:9'}")
        ds = ld.open_human_liver_em(f"{scheme}://127.0.0.1:7/a", shape=SHAPE)
        with pytest.raises(ld.RemoteError, match=r"proxy|407|nonsense") as told:
            ds.raw[0, :5].compute()
    assert "s3cr3t" not in chain_of(told.value)
    assert base64.b64encode(b"u:s3cr3t").decode() not in chain_of(told.value)


@pytest.mark.parametrize("variable", connections.CERTIFICATES)
def test_certificates_are_those_that_are_set_up(
    archive: Path, voxels, monkeypatch, tmp_path: Path, variable: str
) -> None:
    """Certificates come from the environment's variables; a missing file or an untrusted certificate is an error."""
    with secured(archive) as url:
        monkeypatch.setenv(variable, str(PEM))
        ds = ld.open_human_liver_em(url, shape=SHAPE)
        np.testing.assert_array_equal(ds.er[1, :9], voxels["er"][1, :9])
        remote._process.close_idle()
        remote._process.forget()
        monkeypatch.setenv(variable, str(tmp_path / "nothing.pem"))
        with pytest.raises(ld.InvalidArgumentError, match=rf"{variable}=.*nothing\.pem names no file of certificates"):
            ds.er[2, :9].compute()
        remote._process.forget()
        monkeypatch.delenv(variable)
        with pytest.raises(ld.RemoteError, match="certificate is not trusted"):
            ds.er[3, :9].compute()


def test_tls_is_not_left_for_a_redirect(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect from https to http is an error, and is not retried."""

    class Leaves(Secured):
        def do_GET(self) -> None:
            self.send(302, {"Location": "http://127.0.0.1:9/a"}, b"")

    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    with secured(archive, Leaves) as url:
        ds = ld.open_human_liver_em(url, shape=SHAPE)
        with pytest.raises(ld.RemoteError, match=r"is redirected to http://127\.0\.0\.1:9/a, away from https") as told:
            ds.raw[0, :5].compute()
    assert "tries" not in str(told.value)


def test_tls_is_taken_up_by_a_redirect(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect from http to https is followed only if the certificate is trusted."""
    with secured(archive) as url, talking(lambda head, _: to(f"{url}/{path_of(head)}")) as talker:
        ds = ld.open_human_liver_em(talker.url, shape=SHAPE)
        with pytest.raises(ld.RemoteError, match="not trusted"):
            ds.er[1, :9].compute()
        remote._process.forget()
        monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
        ds.er[1, :9].compute()


def path_of(head: bytes) -> str:
    return head.split(b" ")[1].decode().strip("/")


@pytest.mark.parametrize(("address", "told"), [("socks9://a:1", "is none of"), ("gopher://u:s3cr3t@a:1", "is none of")])
def test_a_proxy_of_another_kind_is_reported(monkeypatch: pytest.MonkeyPatch, address: str, told: str) -> None:
    """A proxy with an unknown scheme is an InvalidArgumentError without its password."""
    if "socks" in address:
        pytest.importorskip("socks")
    monkeypatch.setenv("all_proxy", address)
    with pytest.raises(ld.InvalidArgumentError, match=told) as error:
        ld.open_human_liver_em("http://127.0.0.1:9", shape=SHAPE).raw[0, 0].compute()
    assert "s3cr3t" not in str(error.value)


def test_socks_without_its_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy without PySocks is a MissingExtraError that says what to install."""
    monkeypatch.setitem(sys.modules, "socks", None)
    monkeypatch.delitem(sys.modules, "urllib3.contrib.socks", raising=False)
    monkeypatch.delattr("urllib3.contrib.socks", raising=False)
    monkeypatch.setenv("all_proxy", "socks5h://u:s3cr3t@a:1")
    with pytest.raises(ld.MissingExtraError, match=r"socks5h://a:1 speaks SOCKS .*pip install PySocks"):
        ld.open_human_liver_em("http://127.0.0.1:9", shape=SHAPE).raw[0, 0].compute()


def test_a_socks_proxy_is_asked(archive: Path, voxels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go through a SOCKS proxy with user and password."""
    pytest.importorskip("socks")
    asked = []

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(100)  # the methods of authentication
            connection.sendall(b"\x05\x02")
            asked.append(connection.recv(100))  # name and password
            connection.sendall(b"\x01\x00")
            request = connection.recv(100)
            port = int.from_bytes(request[-2:], "big")
            connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
            with socket.create_connection(("127.0.0.1", port)) as server:
                relay(connection, server)

    with serve(archive) as server, proxy() as between:
        monkeypatch.setattr(between, "serve", answer)
        monkeypatch.setenv("all_proxy", f"socks5h://u:p@{between.address}")
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        np.testing.assert_array_equal(ds.er[1, :9], voxels["er"][1, :9])
        assert asked[0] == b"\x01\x01u\x01p"
