"""Files of an archive below any URL: byte ranges are verified, retried, fetched in parallel, limited and counted."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from ...core.errors import LiverDaskError
from ...core.metrics import traffic
from ...core.threads import ContextPool, cancel_unless, check_cancelled
from .address import ZARR_METADATA
from .cache import RangeCache
from .fsspec_transport import FsspecTransport
from .http_transport import HttpTransport
from .ranges import MOST_OF_A_REQUEST, ByteRange, Received, coalesce_ranges
from .source import OneRangeOnlyError, Source, TransientError, Transport
from .tries import Tries
from .versions import MISSING, FileVersion

log = logging.getLogger(__name__)


LARGEST_RANGE = 4 << 20


GAP = 512
"""Maximum number of unneeded bytes between two ranges that are fetched as one: an additional range in the same answer
takes about 150 bytes."""


WIDE_GAP = 256 << 10
"""The same limit where each range takes its own request: in the time of a request, a distant archive would send about
as many bytes."""


class RemoteFile:
    """One file of the archive; all its ranges belong to one version of it, or SourceChangedError is raised."""

    def __init__(self, source: Source, path: str) -> None:
        """Fetch nothing yet.

        If `range_cache` is set, it caches the ranges of `fetch_ranges`, for this process and for others.
        """
        self.source = source
        self.url = f"{source.url}/{path}"
        self.range_cache: RangeCache | None = None
        self._whole = b""

    @property
    def version(self) -> FileVersion | None:
        """The version of the file that is read; None before the first read, and for a missing file."""
        version = self.source.versions.get(self.url)
        return None if version == MISSING else version

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the file, as one Dataset reads it, among all files in this process."""
        return self.source.versions.id, self.url

    def is_current(self, version: FileVersion) -> bool:
        """Return whether this version is the one that is read; if that is unknown, one byte is requested."""
        if self.version is None:
            self.fetch(0, 1)
        return self.version == version

    @property
    def nbytes(self) -> int:
        """Bytes of the file that are kept in memory, because the server sends only whole files."""
        return len(self._whole)

    @property
    def connections(self) -> int:
        """Best number of parallel requests for a read; in a worker of a cluster, less than `source.connections`."""
        return _process.transport(self.source).connections

    @property
    def takes_several_ranges(self) -> bool:
        """Whether the source answers several ranges of a file in one request, as far as it is known."""
        return _process.transport(self.source).supports_multirange

    def fetch(self, start: int, stop: int) -> memoryview:
        """Return the bytes `start` to `stop`, fewer only at the end of the file; errors are those of `fetch_ranges`."""
        return self._fetch_ranges([ByteRange(start, stop)])[0]

    def fetch_ranges(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """Return the bytes of ascending, non-empty ranges.

        All ranges are fetched in one request if the server supports that, otherwise in few requests.

        Raises:
            SliceNotFoundError: There is no such file.
            SourceChangedError: The file is not the version that was read before.
            RangeNotSupportedError: The server would send all of a large file.
            RemoteError: The source did not answer correctly in `source.attempts` tries.
        """
        if self.range_cache is None or self.version is None or not self.version.etag:
            return self._fetch_ranges(ranges)
        found = self.range_cache.find(self.url, self.version, ranges)
        lacking = [byte_range for byte_range, part in zip(ranges, found, strict=True) if part is None]
        fetched = self._fetch_ranges(lacking) if lacking else []
        if lacking:
            self.range_cache.keep(self.url, self.version, lacking, fetched)
        rest = iter(fetched)
        return [next(rest) if part is None else part for part in found]

    def fetch_at_once(self, ranges: Sequence[ByteRange]) -> list[memoryview] | None:
        """Return the bytes of ranges like `fetch_ranges`; None if the source does not answer several ranges at once."""
        if self.range_cache is not None:
            return self.fetch_ranges(ranges) if self.takes_several_ranges else None
        return self._fetch_ranges_at_once(ranges)

    def _fetch_ranges(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        parts = self._fetch_ranges_at_once(ranges)
        if parts is None:
            return self._fetch_merged(ranges, coalesce_ranges(ranges, WIDE_GAP, LARGEST_RANGE), 1)
        return parts

    def _fetch_ranges_at_once(self, ranges: Sequence[ByteRange]) -> list[memoryview] | None:
        transport = _process.transport(self.source)
        if not self._whole and transport.supports_multirange:
            try:
                return self._fetch_merged(ranges, coalesce_ranges(ranges, GAP, LARGEST_RANGE), MOST_OF_A_REQUEST)
            except OneRangeOnlyError as refusal:
                transport.supports_multirange = False
                log.info("%s: %s; it is asked for one range at a time from now on", self.url, refusal)
        return None

    def _fetch_merged(self, ranges: Sequence[ByteRange], merged: Sequence[ByteRange], most: int) -> list[memoryview]:
        """Fetch the merged ranges, up to `most` per request, and cut the needed ranges out of them."""
        found: list[memoryview] = []
        for i in range(0, len(merged), most):
            asked = merged[i : i + most]
            here = [byte_range for byte_range in ranges if asked[0].start <= byte_range.start < asked[-1].stop]
            if self._whole:
                found += [memoryview(self._whole)[byte_range.start : byte_range.stop] for byte_range in here]
            else:
                found += _Request(self, asked).fetch().cut(here)
        return found

    def fetch_ends(self, head: int, tail: int) -> list[tuple[int, bytes]]:
        """Return bytes at the beginning and end of the file, each with its offset, as far as one request gives them."""
        ends: list[ByteRange] = []
        received = Received([])

        def receive(version: FileVersion, start: int, data: bytes) -> None:
            nonlocal received
            self.receive(version, start, data)
            if not ends:  # their positions depend on the size of the file
                first = min(head, version.size)
                ends.extend([ByteRange(0, first), ByteRange(max(version.size - tail, first), version.size)])
                received = Received(ends)
            if not received.add(start, data):
                raise TransientError(f"sent bytes from {start} on, which were not asked for")

        transport = _process.transport(self.source)
        if transport.supports_multirange and not self._whole:
            try:
                traffic.add(requests=1)
                transport.get(self.url, [ByteRange(0, head), ByteRange(-tail, 0)], self.source.timeout, receive)
            except OneRangeOnlyError:
                transport.supports_multirange = False
            except TransientError as fault:  # missing bytes are requested later in the usual way
                log.info("%s: %s", self.url, fault)
                traffic.add(stalls=int(fault.is_stall))
        parts = zip(ends, received.cut(ends), strict=True)
        return [(byte_range.start, bytes(part)) for byte_range, part in parts if part]

    def receive(self, version: FileVersion, start: int, data: bytes) -> None:
        """Record received bytes; raise SourceChangedError if they belong to another version of the file."""
        traffic.add(bytes=len(data))
        self.source.versions.note(self.url, version)
        if start == 0 and len(data) == version.size:
            self._whole = data

    def fetch_each(
        self, requests: Sequence[Sequence[ByteRange]], consume: Callable[[int, list[memoryview]], None]
    ) -> None:
        """Fetch in parallel; call `consume(i, parts)` on the fetching thread when the ranges of `requests[i]` arrive.

        The first error cancels all requests that have not begun, and is raised.
        """
        if len(requests) == 1:  # no other thread can help
            consume(0, self.fetch_ranges(requests[0]))
            return

        def fetch_one(i: int) -> None:
            consume(i, self.fetch_ranges(requests[i]))

        threads = _process.threads(self.source.connections)
        is_interrupted = False
        with cancel_unless(lambda: not is_interrupted):
            futures = [threads.submit(fetch_one, i) for i in range(len(requests))]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            is_interrupted = not isinstance(error, Exception)
            raise
        finally:
            for future in futures:
                future.cancel()


class _Request:
    """Ranges that are requested until all have arrived; bytes received before a fault are not requested again."""

    def __init__(self, file: RemoteFile, ranges: Sequence[ByteRange]) -> None:
        self._file = file
        self._received = Received(ranges)

    def fetch(self) -> Received:
        if self._missing():
            Tries(self._file.source, self._file.url).run(self._ask)
        return self._received

    def _ask(self, read_timeout: float) -> None:
        missing = self._missing()
        if missing:
            _process.transport(self._file.source).get(self._file.url, missing, read_timeout, self._receive)
        if self._missing():
            raise TransientError("sent fewer bytes than asked for")

    def _receive(self, version: FileVersion, start: int, data: bytes) -> None:
        check_cancelled(self._file.url)
        self._file.receive(version, start, data)
        if not self._received.add(start, data):
            raise TransientError(f"sent bytes from {start} on, which were not asked for")

    def _missing(self) -> list[ByteRange]:
        return self._received.missing(self._file.version.size if self._file.version else None)


def transport_of(source: Source) -> Transport:
    """Return this process's transport for an archive."""
    return _process.transport(source)


def list_folders(source: Source) -> list[str]:
    """Return the names of the archive's folders; empty if the source does not list them."""
    try:
        return sorted(_process.transport(source).folders(source.url))
    except (LiverDaskError, OSError, urllib3.exceptions.HTTPError):
        return []


def local_files(source: Source, folder: str) -> list[str] | None:
    """Return the sorted names of the files in a folder of an archive on this machine; None if it is elsewhere."""
    if "://" in source.url:
        return None
    try:
        return sorted(entry.name for entry in os.scandir(Path(source.url, folder)) if not entry.is_dir())
    except OSError:
        return []


def folder_exists(source: Source, url: str) -> bool:
    """Return whether a folder of the archive exists, as far as the source says; `url` ends with a slash."""
    try:
        return _process.transport(source).folder_exists(url)
    except (LiverDaskError, OSError):
        return False


def is_zarr(source: Source) -> bool:
    """Return whether there is a Zarr store instead of an archive; this requests its metadata."""
    try:
        RemoteFile(source, ZARR_METADATA[0]).fetch(0, 1)
    except (LiverDaskError, OSError):
        return False
    return True


@dataclass
class _Process:
    """Connections and threads of this process, shared by all open archives; a fork starts without any."""

    transports: dict[Source, Transport] = field(default_factory=dict)
    executors: dict[int, ContextPool] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close_idle(self) -> None:
        """Close the connections that are kept alive."""
        with self.lock:
            transports = list(self.transports.values())
        for transport in transports:
            transport.close_idle()

    def transport(self, source: Source) -> Transport:
        """Return the transport: one pool of connections per web server, one fsspec file system per source."""
        parts = urlsplit(source.url)
        url = f"{parts.scheme}://{parts.netloc}" if source.is_http else source.url
        key = replace(source, url=url, cache_dir=None, cache_raw_bytes=0)
        with self.lock:
            if key not in self.transports:
                self.transports[key] = HttpTransport(source) if source.is_http else FsspecTransport(source)
            return self.transports[key]

    def threads(self, count: int) -> ContextPool:
        """Return a pool with as many threads as connections, so that a waiting fetch blocks no other."""
        with self.lock:
            if count not in self.executors:
                self.executors[count] = ContextPool(count, thread_name_prefix="liver_dask-fetch")
            return self.executors[count]

    def forget(self) -> None:
        """Reset in a fork, which has none of the parent's threads and must not share its sockets."""
        self.__init__()  # type: ignore[misc]  # reset in place: other code holds this object


_process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forget)
