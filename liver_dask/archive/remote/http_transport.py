"""Byte ranges of one file, asked for once: by urllib3 over http(s), by fsspec over anything else.

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

Requests are large: small ranges are asked for many at once. So urllib3 costs no more than obstore; it shows status and
headers before the body (so a server that ignores ranges is refused before it sends 880 MB), and the body as it comes
(so one that breaks off is continued); and it has no event loop or runtime thread that a fork would lose.
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
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3 import exceptions as faults

from ...core.errors import (
    InvalidArgumentError,
    LiverDaskError,
    RangeNotSupportedError,
    RemoteError,
    SliceNotFoundError,
    SourceChangedError,
)
from ...core.threads import SECONDS_BETWEEN_LOOKS
from .connections import Exchange, check_certificates, exchanging, open_pool
from .credentials import netrc_authorization, split_secret
from .ranges import ByteRange, range_header, read_content_range, read_parts
from .shares import share_of
from .source import OneRangeOnlyError, Receive, Source, TransientError
from .versions import FileVersion
from .watchdog import Watch

T = TypeVar("T")


SMALL_FILE = 32 << 20
"""Bytes. A file up to this size is fetched whole from a server that ignores ranges; a larger one is refused."""


BLOCK = 256 << 10


SLOWEST = 20_000
"""Bytes a second. The archive sends a connection 1.5 MB/s; what is slower than this for seconds will not recover."""


OVERHEAD = 8 << 10
"""Bytes that an answer may have more than was asked for, for each of several ranges: its header, and a gap."""


MOST_OF_A_LISTING = 4 << 20


MOST_OF_A_TEXT = 200


MOST_REDIRECTS = 5


HEADERS = {
    "User-Agent": f"liver_dask/{version('liver_dask')}",
    "Accept-Encoding": "identity",  # a range of a compressed answer would not be a range of the file
}


REFUSALS_OF_SEVERAL = {200, 400, 413, 414, 416, 431, 501}
"""How servers answer that take one range a request: all of the file, a complaint about the header, or about a range."""


class _Answer(NamedTuple):
    """An answer whose body has not been read.

    Attributes:
        response: Its status and headers.
        watch: Ends it.
        read_timeout: Seconds without a byte, or with hardly any, after which it is given up.
    """

    response: urllib3.BaseHTTPResponse
    watch: Watch
    read_timeout: float

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        return self.response.headers.get(name, "")

    def blocks(self, most: int) -> Iterator[bytes]:
        """The body as it comes, no more than `most` bytes of it; TransientError if hardly anything comes."""
        since, count, total = monotonic(), 0, 0
        while True:
            self.watch.allow(self.read_timeout)  # also the lines between the chunks of a body
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


class HttpTransport:
    """Ranges over http(s), on kept-alive connections."""

    def __init__(self, source: Source) -> None:
        self.supports_multirange = True
        self._took_one = self._took_several = False
        self._secret = source.secret
        self._origin = _origin_of(source.url)
        self._patience = source.timeout
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

    @contextmanager
    def _ask(self, url: str, headers: Mapping[str, str], read_timeout: float) -> Iterator[_Answer]:
        """The answer to a request, its redirects followed; what urllib3 raises meanwhile is told as ours."""
        with self._share, Watch() as watch:
            try:
                response = self._follow(url, {**HEADERS, **headers}, Exchange(watch, read_timeout))
                try:
                    yield _Answer(response, watch, read_timeout)
                finally:
                    _release(response)
            except (faults.HTTPError, TimeoutError) as fault:  # the latter is the watch's
                watch.check_cancelled()
                raise self._explain(fault, url, read_timeout, watch.ended == "late") from fault
            except ValueError as error:  # urllib3's own, of an address
                if isinstance(error, LiverDaskError):
                    raise
                raise InvalidArgumentError(f"{url} is not a URL that can be opened.") from None

    def _follow(self, url: str, headers: Mapping[str, str], exchange: Exchange) -> urllib3.BaseHTTPResponse:
        """Ask, and ask where it is redirected to; the body of a redirect is not read."""
        address, query = url, self._secret.query
        for _ in range(MOST_REDIRECTS + 1):
            authorization = self._authorization(address)
            with exchanging(exchange._replace(query=query, authorization=authorization)):
                response = self._send(address, headers, exchange)
            try:
                exchange.watch.check()  # headers that end with their connection look like whole ones
            except BaseException:
                _release(response)
                raise
            target = response.get_redirect_location()
            if not target:
                return response
            _release(response)
            address, query = _redirected(url, address, target)
        raise RemoteError(f"{url}: is redirected more than {MOST_REDIRECTS} times, last to {_short(address)}.")

    def _authorization(self, address: str) -> str:
        """The header for an address: of ours the secret that came with it; of any, what the user's .netrc has."""
        origin = _origin_of(address)
        if self._secret.user and (origin == self._origin or origin == self._origin.secured()):
            return self._secret.authorization
        if origin.host not in self._of_netrc:
            self._of_netrc[origin.host] = netrc_authorization(origin.host)
        return self._of_netrc[origin.host]

    def _send(self, address: str, headers: Mapping[str, str], exchange: Exchange) -> urllib3.BaseHTTPResponse:
        if address.startswith("https"):
            check_certificates()
        exchange.watch.uses(None)
        exchange.watch.allow(math.inf)  # others may have all connections
        while True:
            try:
                return self._pool.request(
                    "GET",
                    address,
                    headers=headers,  # which replace the pool's
                    timeout=urllib3.Timeout(connect=exchange.read_timeout, read=exchange.read_timeout),
                    pool_timeout=SECONDS_BETWEEN_LOOKS,
                    preload_content=False,  # nothing is read before status and headers have been checked
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
        """What it means that several ranges were not sent: a passing fault only of a server that has sent some."""
        message = f"asked for {len(ranges)} ranges, answered with {answer}"
        return TransientError(message) if self._took_several else OneRangeOnlyError(message)

    def _read_several(self, answer: _Answer, ranges: Sequence[ByteRange], receive: Receive) -> None:
        """The body of a 206 of several parts, whichever they are, as long as they are about as much as asked for."""
        etag = _tag(answer.response)
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
        self._took_several = True

    def _read_whole(self, answer: _Answer, url: str, byte_range: ByteRange, receive: Receive) -> None:
        size = answer.response.length_remaining
        if size is None or size > SMALL_FILE:
            amount = "of untold size" if size is None else f"{size / 1e6:.0f} MB"
            raise RangeNotSupportedError(
                f"{url}: the server ignores byte ranges and would send the whole file ({amount}) for bytes "
                f"{byte_range.start}-{byte_range.stop - 1}; use a server that supports ranges, or a local copy."
            )
        whole = b"".join(answer.blocks(size))
        if len(whole) != size:
            raise TransientError(f"sent {len(whole)} of {size} bytes")
        receive(FileVersion(size, _tag(answer.response)), 0, whole)
        with self._lock:
            self._warn_once(urlsplit(url).netloc)

    def _warn_once(self, host: str) -> None:
        if host not in self._warned:
            self._warned.add(host)
            warnings.warn(f"{host} ignores byte ranges: a file is fetched whole for any part of it.", stacklevel=2)

    def _explain(self, fault: Exception, url: str, read_timeout: float, is_late: bool) -> LiverDaskError:
        """One of our errors for one of urllib3's."""
        host = urlsplit(url).netloc
        if is_late:
            return TransientError(f"no whole answer in {read_timeout:g} s", wait=0, is_stall=True)
        if isinstance(fault, faults.LocationValueError):
            return InvalidArgumentError(f"{url} is not a URL that can be opened.")
        if isinstance(fault, faults.ProxyError):
            return TransientError(f"no way through the proxy to {host} ({_short(fault.original_error)})")
        if isinstance(fault, faults.NameResolutionError):
            return TransientError(f"there is no host {urlsplit(url).hostname}, or its name cannot be looked up now")
        if isinstance(fault, faults.NewConnectionError):  # which urllib3 counts among the time-outs
            return TransientError(f"no connection to {host} ({fault.args[-1]})")
        if isinstance(fault, faults.TimeoutError):
            message = f"silent for {read_timeout:g} s"
            return TransientError(message, wait=0, is_stall=True)  # it would stay silent; a new request may not
        if isinstance(fault, faults.SSLError) and isinstance(fault.args[0], ssl.SSLCertVerificationError):
            return RemoteError(f"{url}: the server's certificate is not trusted ({fault.args[0]}).")
        return TransientError(self._secret.hidden(_short(fault)))

    def _refusal(self, response: urllib3.BaseHTTPResponse, url: str) -> LiverDaskError:
        status = response.status
        reason = self._secret.hidden(_short(f"{status} {response.reason}"))
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
        """See Transport; read from the HTML listing, if the server makes one."""
        with self._ask(url + "/", {}, self._patience) as answer:
            if answer.response.status != 200 or answer.header("Content-Encoding"):
                return []
            listing = _FolderLinks()
            listing.feed(b"".join(answer.blocks(MOST_OF_A_LISTING)).decode(errors="replace"))
            return listing.folders

    def folder_exists(self, url: str) -> bool:
        """See Transport."""
        with self._ask(url, {}, self._patience) as answer:
            return answer.response.status == HTTPStatus.OK

    def close_idle(self) -> None:
        """See Transport.

        The pools stay: urllib3 would leave those it drops, and their sockets, to the garbage collector, and in one that
        is closed a thread that waits for a connection waits for ever.
        """
        for key in self._pool.pools.keys():  # noqa: SIM118  # it is no dictionary
            idle = getattr(self._pool.pools.get(key), "pool", None)
            if idle is None:
                continue
            taken: list[Any] = []
            with suppress(queue.Empty):
                while True:
                    taken.append(idle.get_nowait())
                    if taken[-1]:
                        taken[-1].close()  # at once, or another was opened beside it; it is opened again when needed
            for connection in taken:
                idle.put_nowait(connection)


def _read_one(answer: _Answer, byte_range: ByteRange, receive: Receive) -> None:
    """The body of a 206, once its headers say that it is the range asked for, or the first bytes of it."""
    content_range, length = read_content_range(answer.header("Content-Range")), answer.response.length_remaining
    if content_range is None:
        found = _short(repr(answer.header("Content-Range")))
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
    version = FileVersion(size, _tag(answer.response))
    for block in answer.blocks(stop - start):
        receive(version, start, block)
        start += len(block)


def _release(response: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back; closed if something was not read, which would be taken for the next answer."""
    if not response.closed:
        response.close()
    response.release_conn()


def _short(value: object) -> str:
    """What a server said, as far as a sentence bears it."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return text if len(text) <= MOST_OF_A_TEXT else f"{text[:MOST_OF_A_TEXT]}..."


class _Origin(NamedTuple):
    """Who answers for an address."""

    scheme: str
    host: str
    port: int

    def secured(self) -> "_Origin | None":
        """The same server's, over TLS; None if that is another one."""
        return _Origin("https", self.host, 443) if (self.scheme, self.port) == ("http", 80) else None


def _redirected(url: str, address: str, target: str) -> tuple[str, str]:
    """Where it goes on, and the query there, which may open it; what opened the last address does not go along."""
    try:
        moved, secret = split_secret(urljoin(address, target))
        origin = _origin_of(moved)
    except ValueError:
        raise RemoteError(f"{url}: is redirected to an address that makes no sense.") from None
    if origin.scheme not in ("http", "https") or not origin.host:
        raise RemoteError(f"{url}: is redirected to {_short(moved)}, which is no web address.")
    if origin.scheme == "http" and address.startswith("https"):
        raise RemoteError(f"{url}: is redirected to {_short(moved)}, away from https, and that is not followed.")
    return moved, secret.query


def _origin_of(url: str) -> _Origin:
    parts = urlsplit(url)
    return _Origin(parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def _tag(response: urllib3.BaseHTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _modified(headers: Mapping[str, str], asked: float) -> float | None:
    """When a file was changed at the earliest, by this machine's clock; how long ago that is, the server's clock tells.

    Args:
        headers: Of an answer.
        asked: When it was asked for.
    """
    try:
        now, changed = (parsedate_to_datetime(headers[name]).timestamp() for name in ("Date", "Last-Modified"))
        age = now + int(headers.get("Age", 0)) - changed  # a cache on the way keeps the Date of when it asked
    except (KeyError, ValueError):
        return None
    return asked - age - 1 if age >= 0 else None  # both are cut to whole seconds


def _dated(receive: Receive, modified: float | None) -> Receive:
    """Tell with each version when it was made, too."""
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
