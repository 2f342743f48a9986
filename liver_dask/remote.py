"""Files of an archive below any URL: their byte ranges verified, retried, several at once, capped, counted."""

import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import fsspec
import tenacity
import urllib3

from . import allowance
from .errors import InvalidArgumentError, LiverDaskError, RemoteError, SliceNotFoundError, SourceChangedError
from .transport import FsspecTransport, HttpTransport, Identity, Part, Source, Transport, TryAgainError

log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer pause (Retry-After) is asked again after this one."""


class RemoteFile:
    """One file of the archive; all its ranges are of the same version of it, or SourceChangedError is raised."""

    def __init__(self, source: Source, path: str) -> None:
        self.source = source
        self.url = f"{source.url}/{path}"
        self.identity: Identity | None = None
        self._whole = b""

    def identify(self, identity: Identity) -> None:
        """Take note of which version of the file is read.

        Raises:
            SourceChangedError: It is not the one that was read before.
        """
        if self.identity is None:
            self.identity = versions[self.url] = identity
        if identity != self.identity:
            raise SourceChangedError(
                f"{self.url} is not the file it was when it was first read: it had {self.identity.size} bytes "
                f"({self.identity.tag}), and has {identity.size} ({identity.tag}); open the source again."
            )

    @property
    def nbytes(self) -> int:
        """Bytes kept of it, because the server sends nothing less than all."""
        return len(self._whole)

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, fewer only where the file ends.

        Raises:
            SliceNotFoundError: There is no such file.
            SourceChangedError: The file is not the one that was read before.
            RangeNotSupportedError: The server would send all of a large file.
            RemoteError: The source did not answer rightly in `source.attempts` tries.
        """
        if self._whole:
            return self._whole[start:stop]
        transport = _process.transport(self.source)

        def get() -> Part:
            with allowance.connections:
                return transport.get(self.url, start, stop)

        part = _with_retries(self.source, self.url, get)
        traffic.add(requests=1, bytes=len(part.data))
        self.identify(part.identity)
        if len(part.data) > stop - start:
            self._whole = part.data
        return part.data[start - part.start : stop - part.start]

    def fetch_each(self, ranges: Sequence[tuple[int, int]], consume: Callable[[int, bytes], None]) -> None:
        """Fetch ranges side by side and call `consume(i, data)` for each as it arrives, on the thread that fetched it.

        The first error cancels what has not begun, and is raised.
        """
        if len(ranges) == 1:  # no other thread can help
            consume(0, self.fetch(*ranges[0]))
            return

        def fetch_one(i: int) -> None:
            consume(i, self.fetch(*ranges[i]))

        threads = _process.threads(self.source.connections)
        futures = [threads.submit(fetch_one, i) for i in range(len(ranges))]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()


class Traffic:
    """Ranges asked for and bytes received by this process since it started."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self) -> dict[str, int]:
        """What was counted since the last call, whoever made it."""
        with self._lock:
            new = self._counts - self._taken
            self._taken = self._counts.copy()
            return dict(new)

    def add(self, **counts: int) -> None:
        """Count what one request brought."""
        with self._lock:
            self._counts.update(counts)

    def forget(self) -> None:
        """Start anew, in a fork: the lock may be held by a thread of the parent's."""
        self.__init__()  # type: ignore[misc]  # as new, and the same object: others hold it

    @property
    def requests(self) -> int:
        """Ranges received."""
        return self._counts["requests"]

    @property
    def bytes(self) -> int:
        """Bytes of those ranges."""
        return self._counts["bytes"]


traffic = Traffic()

versions: dict[str, Identity] = {}
"""By URL, the version of each file that this process read last."""


def list_folders(source: Source) -> list[str]:
    """Names of the archive's folders; empty where the source does not list them."""
    try:
        return sorted(_process.transport(source).folders(source.url))
    except (LiverDaskError, OSError, urllib3.exceptions.HTTPError):
        return []


def resolve_url(source: str | os.PathLike[str]) -> str:
    """The archive's root as a URL or absolute folder, no slash at the end. Looks at a local folder, at nothing else.

    Raises:
        InvalidArgumentError: fsspec knows no such protocol, or lacks a package for it.
        SliceNotFoundError: There is no such local folder.
    """
    try:
        text = os.fspath(source)
        protocol, separator, path = text.partition("://")
        host = urlsplit(text).hostname
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"source={source!r} is neither a URL nor a folder ({error}).") from None
    if separator and "::" in text:
        raise InvalidArgumentError(f"source={text!r} is a chain of URLs; give one.")
    if not separator:
        folder = Path(text).expanduser().absolute()
        if not text or not folder.is_dir():
            raise SliceNotFoundError(f"There is no folder {text!r}; give a URL or a folder with the archive's layout.")
        return str(folder)
    if protocol in ("http", "https"):
        if not host:
            raise InvalidArgumentError(f"source={text!r} names no host.")
    else:
        try:
            fsspec.get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            raise InvalidArgumentError(f"source={text!r} cannot be opened: {error}.") from None
    return f"{protocol}://{path.rstrip('/')}"


def _with_retries(source: Source, url: str, get: Callable[[], Part]) -> Part:
    began = monotonic()
    try:
        return _retrying(source.attempts)(_get_of, url, get)
    except TryAgainError as fault:
        raise RemoteError(
            f"{url}: gave up after {source.attempts} tries in {monotonic() - began:.0f} s; the last time: {fault}. "
            "Check the address and the connection, or try again later."
        ) from fault


@functools.cache
def _retrying(attempts: int) -> tenacity.Retrying:
    """One for all requests, not one for each.

    Each has a `threading.local`. Where one becomes garbage while a dask worker's profiler lists the threads, older
    CPythons (3.11.7 for one; gh-106883) wait for themselves, for ever.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TryAgainError),
        stop=tenacity.stop_after_attempt(attempts),
        wait=_wait,
        before_sleep=_tell,
        reraise=True,
    )


def _get_of(url: str, get: Callable[[], Part]) -> Part:
    """`url` is for `_tell`."""
    return get()


def _wait(state: tenacity.RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    asked_for = fault.wait if isinstance(fault, TryAgainError) else None
    return _back_off(state) if asked_for is None else min(asked_for, LONGEST_WAIT)


def _tell(state: tenacity.RetryCallState) -> None:
    log.info("%s: %s; asking again", state.args[0], state.outcome.exception() if state.outcome else "")


_back_off = tenacity.wait_random_exponential(multiplier=0.2, max=10)


@dataclass
class _Process:
    """Connections and threads of this process, shared by all that is open in it; a fork starts with none."""

    transports: dict[Source, Transport] = field(default_factory=dict)
    executors: dict[int, ThreadPoolExecutor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close_idle(self) -> None:
        """Close the connections that are kept alive."""
        with self.lock:
            transports = list(self.transports.values())
        for transport in transports:
            transport.close_idle()

    def transport(self, source: Source) -> Transport:
        """One pool of connections a web server, one fsspec file system a source."""
        parts = urlsplit(source.url)
        url = f"{parts.scheme}://{parts.netloc}" if source.is_http else source.url
        key = replace(source, url=url, cache_dir=None)
        with self.lock:
            if key not in self.transports:
                self.transports[key] = HttpTransport(source) if source.is_http else FsspecTransport(source)
            return self.transports[key]

    def threads(self, count: int) -> ThreadPoolExecutor:
        """As many threads as connections: a fetch that waits holds up no other."""
        with self.lock:
            if count not in self.executors:
                self.executors[count] = ThreadPoolExecutor(count, thread_name_prefix="liver_dask-fetch")
            return self.executors[count]

    def forget(self) -> None:
        """Start anew, in a fork that has none of the parent's threads and must not share its sockets."""
        self.__init__()  # type: ignore[misc]  # as new, and the same object: others hold it


_process = _Process()


@contextmanager
def limited(connections: int | None, threads: int) -> Iterator[None]:
    """Let a job have so many requests under way, and so many threads at work; None leaves both as they are.

    Connections that were kept alive are closed in the end: other processes may open as many.
    """
    if connections is None:
        yield
        return
    with allowance.connections.of(connections), allowance.cores.of(threads):
        yield
    _process.close_idle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forget)
    os.register_at_fork(after_in_child=traffic.forget)
