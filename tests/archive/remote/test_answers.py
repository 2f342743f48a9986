"""Servers that send more, or longer, than was asked for: what is read of each answer is bounded."""

import gzip
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.talkers import WHOLE, fetched, source_of, talking, to
from liver_dask.archive.remote import http_transport as transport
from liver_dask.archive.remote.files import RemoteFile
from liver_dask.archive.remote.http_transport import HttpTransport
from liver_dask.archive.remote.ranges import ByteRange, read_content_range
from liver_dask.archive.remote.source import TransientError

MB = 1 << 20
SIZE = 500 * MB
"""Of the file that all these servers say to have."""


def pouring(head: bytes, block: bytes, count: int) -> Iterator[bytes]:
    """Headers, and a body of so many blocks."""
    yield head
    for _ in range(count):
        yield block


def parts(start: int, stop: int) -> bytes:
    return b"\r\n--x\r\nContent-Range: bytes %d-%d/%d\r\n\r\n" % (start, stop - 1, SIZE)


MULTIPART = b'HTTP/1.1 206 Partial\r\nContent-Type: multipart/byteranges; boundary=x\r\nETag: "a"\r\n'
ZEROS = bytes(MB)


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [b"Content-Length: %d\r\n\r\n" % (400 * MB), b"Connection: close\r\n\r\n"])
@pytest.mark.parametrize("what", ["a part", "many parts", "no part", "an endless header"])
def test_several_ranges_are_no_more_than_was_asked_for(length: bytes, what: str) -> None:
    """24 kB that were asked for would come with 400 MB, and take 900 MB of memory."""
    head = MULTIPART + length
    body = {
        "a part": (head + parts(0, 400 * MB), ZEROS),
        "many parts": (head, b"".join(parts(i, i + 1) + b"a" for i in range(10_000))),
        "no part": (head, b"a" * MB),
        "an endless header": (head + b"\r\n--x\r\nContent-Range: ", b"a" * MB),
    }[what]
    with talking(lambda *_: pouring(*body, 400)) as talker, little_memory(20 * MB):
        file = RemoteFile(source_of(talker.url), "a.tif")
        ends = file.fetch_ends(8192, 16384)
        assert sum(len(data) for _, data in ends) <= 24_576
        with pytest.raises(ld.RemoteError):
            HttpTransport(source_of(talker.url)).get(
                f"{talker.url}/a", [ByteRange(0, 99), ByteRange(9999, 12_000)], 5, lambda *_: None
            )
    assert talker.sent < 30 * MB


def test_the_ends_of_a_file_are_no_more_than_was_asked_for() -> None:
    """What a server sends besides would be taken for the file's end."""
    body = b"".join(parts(at, at + 10) + bytes([at % 251]) * 10 for at in (0, 100, SIZE - 30, SIZE - 10)) + b"\r\n--x--"
    head = MULTIPART + b"Content-Length: %d\r\n\r\n" % len(body)
    with talking(lambda *_: [head + body]) as talker:
        assert RemoteFile(source_of(talker.url), "a").fetch_ends(20, 20) == [(0, bytes(10))]


@pytest.mark.parametrize("body", ["listing", "error", "redirect", "one range", "whole", "compressed"])
def test_no_body_is_read_beyond_what_it_is_for(body: str) -> None:
    """A server that pours would fill the memory, or be listened to for hours."""
    bomb = gzip.compress(bytes(100 * MB))
    head = {
        "listing": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        "error": b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n" % SIZE,
        "redirect": b"HTTP/1.1 302 No\r\nLocation: /b\r\nContent-Length: %d\r\n\r\n" % SIZE,
        "one range": b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-99/%d\r\nConnection: close\r\n\r\n" % SIZE,
        "whole": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (transport.SMALL_FILE + 1),
        "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(bomb), bomb),
    }[body]
    with talking(lambda *_: pouring(head, ZEROS, 400)) as talker, little_memory(40 * MB):
        asked = HttpTransport(source_of(talker.url))
        if body == "listing":
            with pytest.raises(ld.RemoteError):
                asked.folders(talker.url)
        else:
            with pytest.raises(ld.RemoteError):
                asked.get(f"{talker.url}/a", [ByteRange(0, 100)], 5, lambda *_: None)
            if body == "compressed":
                assert asked.folders(talker.url) == []
    assert talker.sent < 60 * MB


def test_a_redirect_is_followed_five_times() -> None:
    """An archive that was moved would not be found; or one that redirects in a ring be asked for ever."""
    with talking(lambda head, number: to(f"/{number}") if number <= 5 else WHOLE) as talker:
        assert fetched(talker.url) == b"abcde"
    with talking(lambda head, number: to("/a")) as talker:
        with pytest.raises(ld.RemoteError, match=r"/a: is redirected more than 5 times, last to http://.*/a"):
            fetched(talker.url)
        assert len(talker.requests) == 6


@pytest.mark.parametrize("place", ["ftp://a/b", "http://[bad", "file:///etc/passwd", "http://a:x/"])
def test_a_redirect_to_no_web_address_is_told(place: str) -> None:
    """What a server says would be opened as whatever it is, or end in an error of Python's own."""
    with talking(lambda *_: to(place)) as talker, pytest.raises(ld.RemoteError, match="is redirected to"):
        fetched(talker.url)


def test_what_a_server_says_is_told_in_few_words() -> None:
    """An error would be a page, or change colours and titles of the terminal."""
    said = b"\x1b[31m" + b"no " * 10_000
    answer = [b"HTTP/1.1 403 " + said + b"\r\nContent-Length: 0\r\n\r\n"]
    with talking(lambda *_: answer) as talker, pytest.raises(ld.RemoteError) as told:
        fetched(talker.url)
    assert len(str(told.value)) < 500
    assert str(told.value).isprintable()


@given(
    st.one_of(
        st.text(), st.from_regex(r"bytes \d+-\d+/\d+"), st.integers(1, 6000).map(lambda n: f"bytes 0-0/{'9' * n}")
    )
)
@settings(max_examples=300, deadline=None)
def test_any_content_range_is_read_or_is_none(text: str) -> None:
    """A header with a number of 5000 digits would end in an error that calls the address wrong."""
    found = read_content_range(text)
    if found:
        (start, stop), size = found
        assert 0 <= start < stop <= size


def test_numbers_beyond_any_file_are_a_passing_fault() -> None:
    """The same, on the whole way."""
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/%b\r\nContent-Length: 5\r\n\r\nabcde" % (b"9" * 5000)
    with talking(lambda *_: [head]) as talker, pytest.raises(TransientError, match="Content-Range"):
        fetched(talker.url)
