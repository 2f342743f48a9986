"""If a server sends more, or for longer, than was asked for, only a bounded part of the answer is read."""

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
"""The size of the file that these servers report."""


def pouring(head: bytes, block: bytes, count: int) -> Iterator[bytes]:
    """Yields headers, and a body of `count` blocks."""
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
    """Of an endless multipart answer less than 30 MB is received, in less than 20 MB of memory."""
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
    """Parts of a multipart answer that were not asked for are not taken for the ends of the file."""
    body = b"".join(parts(at, at + 10) + bytes([at % 251]) * 10 for at in (0, 100, SIZE - 30, SIZE - 10)) + b"\r\n--x--"
    head = MULTIPART + b"Content-Length: %d\r\n\r\n" % len(body)
    with talking(lambda *_: [head + body]) as talker:
        assert RemoteFile(source_of(talker.url), "a").fetch_ends(20, 20) == [(0, bytes(10))]


@pytest.mark.parametrize("body", ["listing", "error", "redirect", "one range", "whole", "compressed"])
def test_no_body_is_read_beyond_what_it_is_for(body: str) -> None:
    """Of an endless listing, error, redirect or compressed body only a bounded part is read."""
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
    """Five redirects are followed; a sixth one is an error that names the address."""
    with talking(lambda head, number: to(f"/{number}") if number <= 5 else WHOLE) as talker:
        assert fetched(talker.url) == b"abcde"
    with talking(lambda head, number: to("/a")) as talker:
        with pytest.raises(ld.RemoteError, match=r"/a: is redirected more than 5 times, last to http://.*/a"):
            fetched(talker.url)
        assert len(talker.requests) == 6


@pytest.mark.parametrize(
    "place", ["ftp://a/b", "http://[bad", "file:///etc/passwd", "http://a:x/", "s3://a/b?sig=hush"]
)
def test_a_redirect_to_no_web_address_is_reported(place: str) -> None:
    """A redirect to an address that is not a valid http(s) URL is a RemoteError, without what may be a secret."""
    with talking(lambda *_: to(place)) as talker, pytest.raises(ld.RemoteError, match="is redirected to") as told:
        fetched(talker.url)
    assert "hush" not in str(told.value)


def test_what_a_server_says_is_reported_in_few_words() -> None:
    """An error quotes what the server says in less than 500 printable characters."""
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
    """Any Content-Range header is parsed to a valid byte range, or to None."""
    found = read_content_range(text)
    if found:
        (start, stop), size = found
        assert 0 <= start < stop <= size


@given(start=st.integers(0, 1 << 50), length=st.integers(1, 1 << 40), after=st.integers(0, 1 << 40))
def test_a_content_range_is_read_as_it_was_meant(start: int, length: int, after: int) -> None:
    """A Content-Range header gives its range and the file size; one that is empty or leaves the file gives None."""
    stop, size = start + length, start + length + after
    assert read_content_range(f"bytes {start}-{stop - 1}/{size}") == (ByteRange(start, stop), size)
    assert read_content_range(b"Bytes %d-%d/%d; more" % (start, stop - 1, size)) == (ByteRange(start, stop), size)
    assert read_content_range(f"bytes {start}-{stop - 1}/{stop - 1}") is None
    assert read_content_range(f"bytes {start + 1}-{start}/{size}") is None


def test_numbers_beyond_any_file_are_a_passing_fault() -> None:
    """A file size of 5000 digits in a Content-Range header is an error that can be retried."""
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/%b\r\nContent-Length: 5\r\n\r\nabcde" % (b"9" * 5000)
    with talking(lambda *_: [head]) as talker, pytest.raises(TransientError, match="Content-Range"):
        fetched(talker.url)
