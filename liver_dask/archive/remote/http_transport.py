"""One attempt to fetch byte ranges of a file over http(s), with urllib3; `fsspec_transport` serves all other sources.

urllib3 was chosen by measurement (`tests/bench/transport.py`: nginx on loopback, 16 threads, two cores):

========  ============  =============  =========================
client    4 MB ranges   40 kB ranges   CPU for 800 MB (4 MB)
========  ============  =============  =========================
obstore   1190 MB/s     243 MB/s       1.0 s
urllib3    910 MB/s      50 MB/s       1.0 s
pycurl     382 MB/s     126 MB/s       2.6 s
fsspec     365 MB/s     104 MB/s       2.2 s
httpx      197 MB/s      27 MB/s       4.6 s
requests   143 MB/s      21 MB/s       6.1 s
========  ============  =============  =========================

Requests are large, because many small ranges are combined in one request. So urllib3 costs no more than obstore. It
gives status and headers before the body, so that a server that ignores ranges is refused before it sends 880 MB. It
gives the body as it arrives, so that an interrupted answer is continued. It has no event loop or runtime thread that
would be lost in a fork.
"""

import math
import queue
import ssl
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from http import HTTPStatus
from importlib.metadata import version
from time import monotonic, time
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3 import exceptions as faults

from ...core.documents import printable
from ...core.errors import (
    InvalidArgumentError,
    LiverDaskError,
    RangeNotSupportedError,
    RemoteError,
    SliceNotFoundError,
    SourceChangedError,
)
from ...core.threads import SECONDS_BETWEEN_CHECKS
from .connections import Exchange, check_certificates, exchanging, open_pool
from .credentials import netrc_authorization
from .ranges import ByteRange, range_header, read_content_range, read_parts
from .redirects import origin_of, redirected
from .shares import share_of
from .source import Headers, Method, OneRangeOnlyError, Receive, Source, TransientError
from .versions import FileVersion
from .watchdog import Watch

T = TypeVar("T")


SMALL_FILE = 32 << 20
"""Bytes. A file up to this size is fetched whole from a server that ignores ranges; a larger one is refused."""


BLOCK = 256 << 10


SLOWEST = 20_000
"""Bytes per second. The archive sends 1.5 MB/s per connection; a connection that is slower than this limit for seconds
does not recover."""


OVERHEAD = 8 << 10
"""Extra bytes that an answer may contain for each of several ranges: its part header, and a gap."""


MOST_OF_A_LISTING = 4 << 20


FIRST_BYTE = ByteRange(0, 1)


MOST_REDIRECTS = 5


HEADERS = {
    "User-Agent": f"liver_dask/{version('liver_dask')}",
    "Accept-Encoding": "identity",  # a range of a compressed answer is not a range of the file
}


REFUSALS_OF_SEVERAL = {200, 400, 413, 414, 416, 431, 501}
"""Status codes of servers that accept only one range per request: the whole file, or an error about the header or a
range."""


class _Answer(NamedTuple):
    """An answer whose body has not been read.

    Attributes:
        response: Its status and headers.
        watch: Can end the exchange.
        read_timeout: Seconds without a byte, or with almost none, after which the read is cancelled.
    """

    response: urllib3.BaseHTTPResponse
    watch: Watch
    read_timeout: float

    def header(self, name: str) -> str:
        """Return the value of a header, or an empty text."""
        return self.response.headers.get(name, "")

    def blocks(self, most: int) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            TransientError: The body exceeds `most` bytes, or almost nothing arrives within `read_timeout`.
        """
        since, count, total = monotonic(), 0, 0
        while True:
            self.watch.allow(self.read_timeout)  # this includes the lines between the chunks of a body
            block = self.response.read1(BLOCK)
            self.watch.allow(math.inf)
            if not block:
                break
            count, total = count + len(block), total + len(block)
            if total > most:
                raise TransientError(f"sent more than {most} bytes for what was asked for")
            yield block
            passed = monotonic() - since
            if passed > self.read_timeout:
                if count < SLOWEST * passed:
                    raise TransientError(f"sent {count} bytes in {passed:.1f} s", wait=0, is_stall=True)
                since, count = monotonic(), 0
        self.watch.check()


MOST_REFUSALS = 4
"""So many answers in a row without the several ranges that were asked for show that the server does not send them. If
it did so before, fewer may be the faults of one of several servers behind one address."""


class HttpTransport:
    """Ranges over http(s), on connections that are kept alive."""

    def __init__(self, source: Source) -> None:
        self.supports_multirange = True
        self._took_one = self._took_several = False
        self._refusals = 0
        self._secret = source.secret
        self._origin = origin_of(source.url)
        self._read_timeout = source.timeout
        self._pool = open_pool(source.url, source.connections, HEADERS)
        self._share = share_of("{0.scheme}://{0.netloc}".format(urlsplit(source.url)), source.connections)
        self._share.add(self)
        self._of_netrc: dict[str, str] = {}
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        """See Transport."""
        return self._share.now

    def get(self, url: str, ranges: Sequence[ByteRange], read_timeout: float, receive: Receive) -> None:
        """See Transport."""
        asked = time()
        with self._ask(url, {"Range": range_header(ranges)}, read_timeout) as answer:
            self._read(answer, url, ranges, _dated(receive, _modified(answer.response.headers, asked)))

    def peek(self, url: str, method: Method, read_timeout: float) -> Headers:
        """See Transport."""
        headers = {"Range": range_header([FIRST_BYTE])} if method == "GET" else {}
        with self._ask(url, headers, read_timeout, method) as answer:
            status, sizes = answer.response.status, list[int]()
            if status == 206 and method == "GET":
                _read_one(answer, FIRST_BYTE, lambda version, start, data: sizes.append(version.size))
            elif status == 416 and method == "GET":  # an empty file has no first byte
                sizes.append(0)
            elif status == 200:
                length = answer.header("Content-Length")
                is_plain = (answer.header("Content-Encoding") or "identity") == "identity"
                sizes += [int(length)] if is_plain and length.isdecimal() else []
            else:
                raise self._refusal(answer.response, url)
            etag, modified, kind = (answer.header(name) for name in ("ETag", "Last-Modified", "Content-Type"))
            return Headers(sizes[0] if sizes else None, etag, modified, kind, is_range=status != 200)

    @contextmanager
    def _ask(
        self, url: str, headers: Mapping[str, str], read_timeout: float, method: Method = "GET"
    ) -> Iterator[_Answer]:
        """Yield the answer to a request after redirects; exceptions of urllib3 become errors of this package."""
        with self._share, Watch() as watch:
            try:
                response = self._follow(url, {**HEADERS, **headers}, Exchange(watch, read_timeout), method)
                try:
                    yield _Answer(response, watch, read_timeout)
                finally:
                    _release(response)
            except (faults.HTTPError, TimeoutError) as fault:  # TimeoutError comes from the watch
                watch.check_cancelled()
                raise self._explain(fault, url, read_timeout, watch.ended == "late") from fault
            except ValueError as error:  # raised by urllib3 for an invalid address
                if isinstance(error, LiverDaskError):
                    raise
                raise InvalidArgumentError(f"{url} is not a URL that can be opened.") from None

    def _follow(
        self, url: str, headers: Mapping[str, str], exchange: Exchange, method: Method
    ) -> urllib3.BaseHTTPResponse:
        """Send the request, and follow redirects; the body of a redirect is not read."""
        address, query = url, self._secret.query
        for _ in range(MOST_REDIRECTS + 1):
            authorization = self._authorization(address)
            with exchanging(exchange._replace(query=query, authorization=authorization)):
                response = self._send(address, headers, exchange, method)
            try:
                exchange.watch.check()  # headers that a closed connection cuts off look complete
            except BaseException:
                _release(response)
                raise
            target = response.get_redirect_location()
            if not target:
                return response
            _release(response)
            address, query = redirected(url, address, target)
        raise RemoteError(f"{url}: is redirected more than {MOST_REDIRECTS} times, last to {printable(address)}.")

    def _authorization(self, address: str) -> str:
        """Return the Authorization header for an address.

        The user and password of the source are sent only to its own server, over https too. For other servers, and for
        a source without a user, the user's .netrc is used.
        """
        origin = origin_of(address)
        if self._secret.user and (origin == self._origin or origin == self._origin.secured()):
            return self._secret.authorization
        if origin.host not in self._of_netrc:
            self._of_netrc[origin.host] = netrc_authorization(origin.host)
        return self._of_netrc[origin.host]

    def _send(
        self, address: str, headers: Mapping[str, str], exchange: Exchange, method: Method
    ) -> urllib3.BaseHTTPResponse:
        if address.startswith("https"):
            check_certificates()
        exchange.watch.uses(None)
        exchange.watch.allow(math.inf)  # other threads may use all connections
        while True:
            try:
                return self._pool.request(
                    method,
                    address,
                    headers=headers,  # they replace those of the pool
                    timeout=urllib3.Timeout(connect=exchange.read_timeout, read=exchange.read_timeout),
                    pool_timeout=SECONDS_BETWEEN_CHECKS,
                    preload_content=False,  # check status and headers before reading the body
                    decode_content=False,
                    redirect=False,
                    retries=False,
                )
            except faults.EmptyPoolError:
                exchange.watch.check_cancelled()

    def _read(self, answer: _Answer, url: str, ranges: Sequence[ByteRange], receive: Receive) -> None:
        several, status = len(ranges) > 1, answer.response.status
        if status in (200, 206) and (answer.header("Content-Encoding") or "identity") != "identity":
            raise TransientError("answered with compressed bytes")
        if status == 206:
            if answer.header("Content-Type").lower().startswith("multipart/byteranges"):
                self._read_several(answer, ranges, receive)
            elif several:
                raise self._unlike(ranges, "one range")
            else:
                _read_one(answer, ranges[0], receive)
                self._took_one = True
        elif several and status in REFUSALS_OF_SEVERAL:
            raise self._unlike(ranges, str(status))
        elif status == 200 and self._took_one:
            raise TransientError("answered with the whole file, unlike before")
        elif status == 200:
            self._read_whole(answer, url, ranges[0], receive)
        else:
            raise self._refusal(answer.response, url)

    def _unlike(self, ranges: Sequence[ByteRange], answer: str) -> LiverDaskError:
        """Return the error for an answer without the requested ranges.

        It is transient only if the server has sent several ranges before; and not if it never does so again, because
        another server has taken its place.
        """
        message = f"asked for {len(ranges)} ranges, answered with {answer}"
        self._refusals += 1
        is_fault = self._took_several and self._refusals < MOST_REFUSALS
        return TransientError(message) if is_fault else OneRangeOnlyError(message)

    def _read_several(self, answer: _Answer, ranges: Sequence[ByteRange], receive: Receive) -> None:
        """Read the body of a 206 answer with several parts.

        The parts may be any ranges, as long as their total size is close to the requested size.
        """
        etag = _etag(answer.response)
        most = (
            sum(
                byte_range.stop - byte_range.start if byte_range.start >= 0 else -byte_range.start
                for byte_range in ranges
            )
            + len(ranges) * OVERHEAD
        )
        if (answer.response.length_remaining or 0) > most:
            raise self._unlike(ranges, f"{answer.response.length_remaining} bytes")
        try:
            for piece in read_parts(answer.blocks(most)):
                receive(FileVersion(piece.size, etag), piece.start, piece.data)
        except ValueError as error:
            if isinstance(error, LiverDaskError):
                raise
            raise TransientError(f"answered with several ranges that cannot be read ({error})") from error
        self._took_several, self._refusals = True, 0

    def _read_whole(self, answer: _Answer, url: str, byte_range: ByteRange, receive: Receive) -> None:
        size = answer.response.length_remaining
        if size is None or size > SMALL_FILE:
            amount = "of unknown size" if size is None else f"{size / 1e6:.0f} MB"
            raise RangeNotSupportedError(
                f"{url}: the server ignores byte ranges and would send the whole file ({amount}) for bytes "
                f"{byte_range.start}-{byte_range.stop - 1}; use a server that supports ranges, or a local copy."
            )
        whole = b"".join(answer.blocks(size))
        if len(whole) != size:
            raise TransientError(f"sent {len(whole)} of {size} bytes")
        receive(FileVersion(size, _etag(answer.response)), 0, whole)
        with self._lock:
            self._warn_once(urlsplit(url).netloc)

    def _warn_once(self, host: str) -> None:
        if host not in self._warned:
            self._warned.add(host)
            warnings.warn(f"{host} ignores byte ranges: a file is fetched whole for any part of it.", stacklevel=2)

    def _explain(self, fault: Exception, url: str, read_timeout: float, is_late: bool) -> LiverDaskError:
        """Return the error of this package for an error of urllib3."""
        host = urlsplit(url).netloc
        if is_late:
            return TransientError(f"no whole answer in {read_timeout:g} s", wait=0, is_stall=True)
        if isinstance(fault, faults.LocationValueError):
            return InvalidArgumentError(f"{url} is not a URL that can be opened.")
        if isinstance(fault, faults.ProxyError):
            return TransientError(f"no way through the proxy to {host} ({_reason(fault.original_error)})")
        if isinstance(fault, faults.NameResolutionError):
            return TransientError(f"there is no host {urlsplit(url).hostname}, or its name cannot be looked up now")
        if isinstance(fault, faults.NewConnectionError):  # in urllib3 a subclass of TimeoutError
            return TransientError(f"no connection to {host} ({_reason(fault)})")
        if isinstance(fault, faults.TimeoutError):
            message = f"silent for {read_timeout:g} s"
            return TransientError(message, wait=0, is_stall=True)  # it stays silent; a new request may be answered
        if isinstance(fault, faults.SSLError) and isinstance(fault.args[0], ssl.SSLCertVerificationError):
            return RemoteError(f"{url}: the server's certificate is not trusted ({fault.args[0]}).")
        return TransientError(self._secret.hidden(printable(fault)))

    def _refusal(self, response: urllib3.BaseHTTPResponse, url: str) -> LiverDaskError:
        status = response.status
        reason = self._secret.hidden(printable(f"{status} {response.reason}"))
        if status == HTTPStatus.NOT_FOUND:
            return SliceNotFoundError(f"{url}: there is no such file ({status}).")
        if status == 429 or status >= 500:
            try:
                pause = urllib3.Retry().get_retry_after(response)
            except (faults.InvalidHeader, ValueError, OverflowError):
                pause = None
            return TransientError(f"answered {reason}", wait=pause or None)
        if status == 416:
            return SourceChangedError(f"{url}: is shorter than when it was first read ({status}); read it again.")
        if status == 401:
            return RemoteError(
                f"{url}: the server wants to know who asks ({reason}); put user and password into ~/.netrc, or into "
                "the source's address (https://user:password@...)."
            )
        return RemoteError(f"{url}: the server refuses to send it ({reason}).")

    def folders(self, url: str) -> list[str]:
        """See Transport; the names come from the HTML listing, if the server creates one."""
        with self._ask(url + "/", {}, self._read_timeout) as answer:
            if answer.response.status != 200 or answer.header("Content-Encoding"):
                return []
            listing = _FolderLinks()
            listing.feed(b"".join(answer.blocks(MOST_OF_A_LISTING)).decode(errors="replace"))
            return listing.folders

    def folder_exists(self, url: str) -> bool:
        """See Transport."""
        with self._ask(url, {}, self._read_timeout) as answer:
            return answer.response.status == HTTPStatus.OK

    def close_idle(self) -> None:
        """See Transport.

        The pools stay open. urllib3 leaves the pools that it drops, and their sockets, to the garbage collector, and a
        thread that waits for a connection of a closed pool waits forever.
        """
        for key in self._pool.pools.keys():  # noqa: SIM118  # pools is not a dictionary
            idle = getattr(self._pool.pools.get(key), "pool", None)
            if idle is None:
                continue
            taken: list[Any] = []
            with suppress(queue.Empty):
                while True:
                    taken.append(idle.get_nowait())
                    if taken[-1]:
                        taken[-1].close()  # close at once, before another is opened in addition; it reopens if needed
            for connection in taken:
                idle.put_nowait(connection)


def _read_one(answer: _Answer, byte_range: ByteRange, receive: Receive) -> None:
    """Read the body of a 206 answer, if its headers say that it is the requested range or the beginning of it."""
    content_range, length = read_content_range(answer.header("Content-Range")), answer.response.length_remaining
    if content_range is None:
        found = printable(repr(answer.header("Content-Range")))
        raise TransientError(
            f"asked for bytes {byte_range.start}-{byte_range.stop - 1}, answered with Content-Range {found}"
        )
    (start, stop), size = content_range
    if start != byte_range.start or stop > byte_range.stop:
        raise TransientError(
            f"asked for bytes {byte_range.start}-{byte_range.stop - 1} of {size}, answered with {start}-{stop - 1}"
        )
    if length not in (stop - start, None):
        raise TransientError(f"would send {length} bytes for {stop - start}")
    version = FileVersion(size, _etag(answer.response))
    for block in answer.blocks(stop - start):
        receive(version, start, block)
        start += len(block)


def _release(response: urllib3.BaseHTTPResponse) -> None:
    """Return the connection to its pool.

    If unread bytes are left, the connection is closed first; otherwise they would be taken for the next answer.
    """
    if not response.closed:
        response.close()
    response.release_conn()


def _reason(fault: Exception) -> str:
    """Return why there is no connection, without the objects of urllib3 that its messages show."""
    cause = fault.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return printable(cause.strerror.lower())
    return printable(str(fault).rpartition("Failed to establish a new connection: ")[2])


def _etag(response: urllib3.BaseHTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _modified(headers: Mapping[str, str], asked: float) -> float | None:
    """Return the earliest time of a file's last change by this machine's clock; None if unknown.

    The age of the change is computed from the server's clock.

    Args:
        headers: Headers of an answer.
        asked: Time of the request, by this machine's clock.
    """
    try:
        now, changed = (parsedate_to_datetime(headers[name]).timestamp() for name in ("Date", "Last-Modified"))
        age = now + int(headers.get("Age", 0)) - changed  # a proxy cache keeps the Date of its own request
    except (KeyError, ValueError):
        return None
    return asked - age - 1 if age >= 0 else None  # both dates are truncated to seconds


def _dated(receive: Receive, modified: float | None) -> Receive:
    """Wrap `receive` so that each version also has its time of modification."""
    return lambda version, start, data: receive(replace(version, modified=modified), start, data)


class _FolderLinks(HTMLParser):
    """Collects the folders of a server's HTML listing."""

    def __init__(self) -> None:
        super().__init__()
        self.folders: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href") or ""
        if tag == "a" and target.endswith("/") and not target.startswith(("/", ".", "?", "http")):
            self.folders.append(unquote(target.rstrip("/")))
