"""Servers whose responses are defined byte by byte by a test."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from liver_dask.archive.remote import files as remote
from liver_dask.archive.remote.address import resolve_url
from liver_dask.archive.remote.http_transport import HttpTransport
from liver_dask.archive.remote.ranges import ByteRange
from liver_dask.archive.remote.source import Source

WHOLE = [b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nabcde"]


class Talker:
    """A server whose responses come from a function of the request's head and number.

    Attributes:
        url: The root URL.
        requests: The head of each request so far.
        sent: Number of bytes that were sent to clients.
    """

    def __init__(self, answer) -> None:
        self._answer = answer
        self.requests: list[bytes] = []
        self.sent = 0

    def serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            try:
                while head := self._request(connection):
                    self.requests.append(head)
                    for block in self._answer(head, len(self.requests)):
                        connection.sendall(block)
                        self.sent += len(block)
            except OSError:
                pass  # the client closed the connection

    def _request(self, connection: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            got = connection.recv(1)
            if not got:
                return b""
            head += got
        return head


@contextmanager
def listening(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """Call `serve` with each connection, each on its own thread, and yield host and port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def talking(answer) -> Iterator[Talker]:
    talker = Talker(answer)
    with listening(talker.serve) as address:
        talker.url = f"http://{address}"
        yield talker
        remote._process.close_idle()


def to(place: str) -> list[bytes]:
    return [f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()]


def source_of(url: str) -> Source:
    return Source(url, 2, 5, 2)


def fetched(url: str) -> bytes:
    """Fetch five bytes of the file `a`. Credentials in the URL are sent, too."""
    got = []
    url, secret = resolve_url(url)
    source = replace(source_of(url), secret=secret)
    HttpTransport(source).get(f"{url}/a", [ByteRange(0, 5)], 5, lambda _, start, data: got.append(data))
    return b"".join(got)
