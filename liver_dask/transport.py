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

import queue
import ssl
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from http import HTTPStatus
from importlib.metadata import version
from time import monotonic, time
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import fsspec
import urllib3
from urllib3 import exceptions as faults

from .byteranges import Span, range_header, read_content_range, read_parts
from .errors import (
    InvalidArgumentError,
    LiverDaskError,
    RangeNotSupportedError,
    RemoteError,
    SliceNotFoundError,
    SourceChangedError,
)
from .versions import Identity, Versions

SMALL_FILE = 32 << 20
"""Bytes. A file up to this size is fetched whole from a server that ignores ranges; a larger one is refused."""

BLOCK = 256 << 10
SLOWEST = 20_000
"""Bytes a second. The archive sends a connection 1.5 MB/s; what is slower than this for seconds will not recover."""

REFUSALS_OF_SEVERAL = {200, 400, 413, 414, 416, 431, 501}
"""How servers answer that take one range a request: all of the file, a complaint about the header, or about a range."""


@dataclass(frozen=True)
class Source:
    """Where an archive is, and how it is asked.

    Attributes:
        url: The archive's root: an http(s) URL, any other fsspec URL, or a local folder; no slash at the end.
        connections: The most requests under way at once from this process.
        timeout: Seconds without a byte after which a request is given up and asked again, with more patience each time.
        attempts: How often one range is asked for before that is an error.
        cache_dir: Folder that keeps strip indexes and masks between processes, or None.
        cache_raw_bytes: How many bytes of strips it keeps besides.
        versions: Which version of each file is read; whatever they are, it is the same source.
    """

    url: str
    connections: int
    timeout: float
    attempts: int
    cache_dir: str | None = None
    cache_raw_bytes: int = 0
    versions: Versions = field(default_factory=Versions, compare=False, repr=False)

    @property
    def is_http(self) -> bool:
        """Whether the archive is behind a web server."""
        return self.url.startswith(("http://", "https://"))


Receive = Callable[[Identity, int, bytes], None]
"""Is given some bytes of a file as they come: which version of it they are of, where they begin, and they."""


class TryAgainError(RemoteError):
    """A fault that another request may not meet.

    Attributes:
        wait: Seconds to wait before; None leaves it to the back-off.
        is_stall: Whether the server was silent, or nearly so.
    """

    def __init__(self, reason: str, wait: float | None = None, is_stall: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.is_stall = is_stall


class OneRangeOnlyError(RemoteError):
    """The server does not answer requests for several ranges; it may answer one for each."""


class Transport(Protocol):
    """Asks for ranges, once; a fault that may pass is a TryAgainError.

    Attributes:
        takes_several: Whether a request may be for several ranges, as far as is known; whoever gets a OneRangeOnlyError
            may set it.
    """

    takes_several: bool

    def get(self, url: str, spans: Sequence[Span], patience: float, receive: Receive) -> None:
        """Fetch ranges, each at most to the end of the file; or the whole of a small one.

        Args:
            url: The file.
            spans: The ranges, ascending; one, or where the server takes that, several.
            patience: Seconds without a byte, or with hardly any, after which the request is given up.
            receive: Gets the bytes in the order in which they come.
        """

    def folders(self, url: str) -> list[str]:
        """Names of the folders below `url`, as far as the source lists them."""

    def folder_exists(self, url: str) -> bool:
        """Whether the source says that a folder is there; `url` ends with a slash."""

    def close_idle(self) -> None:
        """Close what is kept open for the next request."""


class HttpTransport:
    """Ranges over http(s), on kept-alive connections."""

    def __init__(self, source: Source) -> None:
        self.takes_several = True
        self._took_one = self._took_several = False
        self._pool = _connection_pool(source)
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def get(self, url: str, spans: Sequence[Span], patience: float, receive: Receive) -> None:
        """See Transport."""
        try:
            self._ask(url, spans, patience, receive)
        except faults.HTTPError as fault:
            raise _explain(fault, url, patience) from fault
        except ValueError as error:  # urllib's own, of an address
            if isinstance(error, LiverDaskError):
                raise
            raise InvalidArgumentError(f"{url} is not a URL that can be opened ({error}).") from error

    def _ask(self, url: str, spans: Sequence[Span], patience: float, receive: Receive) -> None:
        asked = time()
        response = self._pool.request(
            "GET",
            url,
            headers={**self._pool.headers, "Range": range_header(spans)},  # given ones replace the pool's
            timeout=urllib3.Timeout(connect=patience, read=patience),
            preload_content=False,  # nothing is read before status and headers have been checked
            retries=urllib3.Retry(5, connect=0, read=0, status=0, other=0, respect_retry_after_header=False),
        )
        try:
            self._read(response, url, spans, patience, _dated(receive, _modified(response.headers, asked)))
        finally:
            if not response.closed:
                response.close()  # what was not read would be taken for the next answer
            response.release_conn()

    def _read(
        self, response: urllib3.BaseHTTPResponse, url: str, spans: Sequence[Span], patience: float, receive: Receive
    ) -> None:
        several = len(spans) > 1
        if response.status == 206:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise TryAgainError("answered with compressed bytes")
            if response.headers.get("Content-Type", "").lower().startswith("multipart/byteranges"):
                _read_several(response, patience, receive)
                self._took_several = True
            elif several:
                raise self._unlike(spans, "one range")
            else:
                _read_one(response, spans[0], patience, receive)
                self._took_one = True
        elif several and response.status in REFUSALS_OF_SEVERAL:
            raise self._unlike(spans, str(response.status))
        elif response.status == 200 and self._took_one:
            raise TryAgainError("answered with the whole file, unlike before")
        elif response.status == 200:
            self._read_whole(response, url, spans[0], patience, receive)
        else:
            raise _refusal(response, url)

    def _unlike(self, spans: Sequence[Span], answer: str) -> LiverDaskError:
        """What it means that several ranges were not sent: a passing fault only of a server that has sent some."""
        told = f"asked for {len(spans)} ranges, answered with {answer}"
        return TryAgainError(told) if self._took_several else OneRangeOnlyError(told)

    def _read_whole(
        self, response: urllib3.BaseHTTPResponse, url: str, span: Span, patience: float, receive: Receive
    ) -> None:
        size = response.length_remaining
        if size is None or size > SMALL_FILE:
            told = "of untold size" if size is None else f"{size / 1e6:.0f} MB"
            raise RangeNotSupportedError(
                f"{url}: the server ignores byte ranges and would send the whole file ({told}) for bytes "
                f"{span.start}-{span.stop - 1}; use a server that supports ranges, or a local copy."
            )
        whole = b"".join(_blocks(response, patience))
        if len(whole) != size:
            raise TryAgainError(f"sent {len(whole)} of {size} bytes")
        receive(Identity(size, _tag(response)), 0, whole)
        with self._lock:
            self._warn_once(urlsplit(url).netloc)

    def _warn_once(self, host: str) -> None:
        if host not in self._warned:
            self._warned.add(host)
            warnings.warn(f"{host} ignores byte ranges: a file is fetched whole for any part of it.", stacklevel=2)

    def folders(self, url: str) -> list[str]:
        """See Transport; read from the HTML listing, if the server makes one."""
        response = self._pool.request("GET", url + "/", retries=False)
        if response.status != 200:
            return []
        listing = _FolderLinks()
        listing.feed(response.data.decode(errors="replace"))
        return listing.folders

    def folder_exists(self, url: str) -> bool:
        """See Transport."""
        response = self._pool.request("HEAD", url, retries=False)
        return response.status == HTTPStatus.OK

    def close_idle(self) -> None:
        """See Transport.

        The pools stay: urllib3 would leave those it drops, and their sockets, to the garbage collector, and in one that
        is closed a thread that waits for a connection waits for ever.
        """
        for key in self._pool.pools.keys():  # noqa: SIM118  # it is no dictionary
            kept = getattr(self._pool.pools.get(key), "pool", None)
            if kept is None:
                continue
            idle: list[Any] = []
            with suppress(queue.Empty):
                while True:
                    idle.append(kept.get_nowait())
            for connection in idle:
                if connection:
                    connection.close()  # it is opened again when it is needed
                kept.put_nowait(connection)


class FsspecTransport:
    """Ranges of anything else that fsspec opens: folders, memory, s3, ..."""

    takes_several = False

    def __init__(self, source: Source) -> None:
        try:
            self._fs, _ = fsspec.url_to_fs(source.url)
        except Exception as error:  # whatever the file system's package raises where it cannot connect
            raise RemoteError(f"{source.url} cannot be opened ({error}).") from error

    def get(self, url: str, spans: Sequence[Span], patience: float, receive: Receive) -> None:
        """See Transport; the file system has its own patience."""
        (start, stop), *_ = spans
        path = self._fs._strip_protocol(url)
        try:
            info = self._fs.info(path)
            stop = min(stop, int(info["size"]))
            if stop < start:
                raise SourceChangedError(f"{url}: is shorter than when it was first read; read it again.")
            data = self._fs.cat_file(path, start=start, end=stop)
        except FileNotFoundError as error:
            raise SliceNotFoundError(f"{url}: there is no such file.") from error
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise RemoteError(f"{url}: cannot be read ({error}).") from error
        except LiverDaskError:
            raise
        except OSError as error:
            raise TryAgainError(str(error)) from error
        if len(data) != stop - start:
            raise TryAgainError(f"sent {len(data)} of {stop - start} bytes")
        tag = next((str(info[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created") if key in info), "")
        mtime = info.get("mtime")
        modified = mtime if isinstance(mtime, (int, float)) and mtime <= time() else None
        receive(Identity(int(info["size"]), tag, modified), start, data)

    def folders(self, url: str) -> list[str]:
        """See Transport."""
        entries = self._fs.ls(self._fs._strip_protocol(url), detail=True)
        return [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]

    def folder_exists(self, url: str) -> bool:
        """See Transport."""
        return bool(self._fs.isdir(self._fs._strip_protocol(url)))

    def close_idle(self) -> None:
        """See Transport; fsspec keeps its own connections, and has no way to close the idle ones."""


def _connection_pool(source: Source) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "maxsize": source.connections,
        "block": True,  # the cap: a further request waits for a connection
        "timeout": source.timeout,
        "headers": {
            "User-Agent": f"liver_dask/{version('liver_dask')}",
            "Accept-Encoding": "identity",  # a range of a compressed answer would not be a range of the file
        },
    }
    parts = urlsplit(source.url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _read_one(response: urllib3.BaseHTTPResponse, span: Span, patience: float, receive: Receive) -> None:
    """The body of a 206, once its headers say that it is the range asked for, or the first bytes of it."""
    told = read_content_range(response.headers.get("Content-Range", ""))
    if told is None:
        found = response.headers.get("Content-Range", "")
        raise TryAgainError(f"asked for bytes {span.start}-{span.stop - 1}, answered with Content-Range {found!r}")
    (start, stop), size = told
    if start != span.start or stop > span.stop:
        raise TryAgainError(f"asked for bytes {span.start}-{span.stop - 1} of {size}, answered with {start}-{stop - 1}")
    if response.length_remaining not in (stop - start, None):
        raise TryAgainError(f"would send {response.length_remaining} bytes for {stop - start}")
    identity = Identity(size, _tag(response))
    for block in _blocks(response, patience):
        receive(identity, start, block)
        start += len(block)
        if start > stop:
            raise TryAgainError(f"sent more than the {stop - span.start} bytes of its range")


def _read_several(response: urllib3.BaseHTTPResponse, patience: float, receive: Receive) -> None:
    """The body of a 206 of several parts, whichever they are."""
    tag = _tag(response)
    try:
        for piece in read_parts(_blocks(response, patience)):
            receive(Identity(piece.size, tag), piece.start, piece.data)
    except ValueError as error:
        if isinstance(error, LiverDaskError):
            raise
        raise TryAgainError(f"answered with several ranges that cannot be read ({error})") from error


def _blocks(response: urllib3.BaseHTTPResponse, patience: float) -> Iterator[bytes]:
    """A body as it comes; TryAgainError if hardly anything comes for `patience` seconds."""
    since, count = monotonic(), 0
    while block := response.read1(BLOCK):
        yield block
        count += len(block)
        passed = monotonic() - since
        if passed > patience:
            if count < SLOWEST * passed:
                raise TryAgainError(f"sent {count} bytes in {passed:.1f} s", wait=0, is_stall=True)
            since, count = monotonic(), 0


def _explain(fault: faults.HTTPError, url: str, patience: float) -> LiverDaskError:
    """One of our errors for one of urllib3's."""
    reason = getattr(fault, "reason", None) or fault
    if isinstance(reason, faults.LocationValueError):
        return InvalidArgumentError(f"{url} is not a URL that can be opened.")
    if isinstance(reason, faults.NameResolutionError):
        return TryAgainError(f"there is no host {urlsplit(url).hostname}, or its name cannot be looked up now")
    if isinstance(reason, faults.NewConnectionError):
        return TryAgainError(f"no connection to {urlsplit(url).netloc} ({reason.args[-1]})")
    if isinstance(reason, faults.TimeoutError):
        told = f"silent for {patience:g} s"
        return TryAgainError(told, wait=0, is_stall=True)  # it would stay silent; a new request may not
    if isinstance(reason, faults.SSLError) and isinstance(reason.args[0], ssl.SSLCertVerificationError):
        return RemoteError(f"{url}: the server's certificate is not trusted ({reason.args[0]}).")
    return TryAgainError(str(reason))


def _refusal(response: urllib3.BaseHTTPResponse, url: str) -> LiverDaskError:
    status = response.status
    if status == HTTPStatus.NOT_FOUND:
        return SliceNotFoundError(f"{url}: there is no such file ({status}).")
    if status == 429 or status >= 500:
        try:
            pause = urllib3.Retry().get_retry_after(response)
        except (faults.InvalidHeader, ValueError):
            pause = None
        return TryAgainError(f"answered {status} {response.reason}", wait=pause or None)
    if status == 416:
        return SourceChangedError(f"{url}: is shorter than when it was first read ({status}); read it again.")
    return RemoteError(f"{url}: the server refuses to send it ({status} {response.reason}).")


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
