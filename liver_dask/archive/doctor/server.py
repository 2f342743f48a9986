"""What a web server can do, and how fast a source answers."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any

import numpy as np

from ...core.errors import LiverDaskError
from ...core.metrics import trace, traffic
from ...core.threads import ContextPool, pause, wait_for_result
from ..remote.files import RemoteFile, transport_of
from ..remote.ranges import ByteRange, Received
from ..remote.source import OneRangeOnlyError, TransientError
from ..remote.tries import Tries
from ..remote.versions import FileVersion, Versions
from .asking import Asker

TIMES = 3
"""How often a request is repeated before it is believed that a server cannot do something."""

BYTES_OF_ONE = 4 << 20
BYTES_OF_EACH = 1 << 20
"""Bytes that are fetched to measure the speed of one connection, and of each of several."""

LEAST_BYTES = 64 << 10
"""Fewer bytes say nothing about a speed."""

WATCHERS = 4
SECONDS_BETWEEN = 0.25
"""Requests at once, and seconds between those of each, when a source is watched for stalls."""


@dataclass(frozen=True)
class ServerFacts:
    """What a web server can do; None is what was not asked.

    Attributes:
        ranges: Whether it sends a range of a file (206, with a correct Content-Range).
        multi_range: Whether it sends several ranges in one answer.
        head: Whether it answers HEAD with the size of the file.
        etag: Whether it sends ETag.
        last_modified: Whether it sends Last-Modified.
        is_steady: Whether these were the same in two answers about one file.
    """

    ranges: bool | None = None
    multi_range: bool | None = None
    head: bool | None = None
    etag: bool | None = None
    last_modified: bool | None = None
    is_steady: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """How fast small requests are answered.

    Attributes:
        requests: Number of requests, tries included.
        stalls: How many of them were given up, because nothing came.
        median: Seconds of an answer, from the request to the headers.
        p90: Seconds within which nine of ten answers came.
    """

    requests: int
    stalls: int
    median: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float], requests: int, stalls: int) -> "Latency":
        """Return the statistics of some answers."""
        median, p90 = np.percentile(seconds, (50, 90)) if seconds else (0.0, 0.0)
        return cls(requests, stalls, round(float(median), 4), round(float(p90), 4))


@dataclass(frozen=True)
class Speed:
    """Bytes per second of one connection, and of several together; None where files are too small to measure it."""

    of_one: float | None = None
    of_all: float | None = None
    connections: int = 0


def ask_server(asker: Asker, path: str) -> ServerFacts:
    """Find out what a web server can do, by requests for one file that is there."""
    first = asker.peek(path)
    answers = [first] + [asker.peek(path) for _ in range(1 if first.is_range else TIMES - 1)]
    ranges = any(answer.is_range for answer in answers)
    tags = {(answer.etag, answer.modified) for answer in answers}
    is_steady = None if tags == {("", "")} else len(tags) == 1
    head = any(_answers_head(asker, path, first.size) for _ in range(TIMES))
    several = None
    if not ranges:
        several = False
    elif first.size and first.size >= 256:
        several = _sends_two(asker, path, first.size)
    return ServerFacts(ranges, several, head, bool(first.etag), bool(first.modified), is_steady)


def measure_speed(asker: Asker, path: str, size: int) -> Speed:
    """Fetch up to 4 MB of a file over one connection, and up to 1 MB over each of all connections."""
    source = replace(asker.source, versions=Versions(), cache_dir=None, cache_raw_bytes=0)
    connections = source.connections
    one, each = min(BYTES_OF_ONE, size // 2), min(BYTES_OF_EACH, size // (connections + 1))
    starts = [1 + i * (size // (connections + 1)) for i in range(connections)]
    requests = [[ByteRange(start, start + each)] for start in starts]
    file = RemoteFile(source, path)

    def rate(count: int, fetch: Callable[[], object]) -> float | None:
        if count < LEAST_BYTES:
            return None
        began = monotonic()
        fetch()
        return count / max(monotonic() - began, 1e-6)

    with suppress(LiverDaskError):  # what cannot be read is reported where headers are read
        of_one = rate(one, lambda: file.fetch(0, one))
        of_all = rate(each, lambda: file.fetch_each(requests, lambda i, parts: None))
        return Speed(of_one, of_all and of_all * connections, connections)
    return Speed()


def watch_for_stalls(asker: Asker, paths: Sequence[str], minutes: float) -> Latency:
    """Send small requests for some minutes, a few at once, for files that are there."""
    until = monotonic() + 60 * minutes
    chance = random.Random()  # noqa: S311  # chooses files, no secrets
    watching = Asker(asker.source)

    def watch() -> None:
        while monotonic() < until:
            with suppress(LiverDaskError):
                watching.peek(chance.choice(paths), asker.method)
            pause(min(SECONDS_BETWEEN, max(until - monotonic(), 0)))

    with trace() as traced, ContextPool(WATCHERS, "liver_dask-doctor") as pool:
        for future in [pool.submit(watch) for _ in range(WATCHERS)]:
            wait_for_result(future)
    return Latency.of(watching.seconds, traced.requests, traced.stalls)


def _answers_head(asker: Asker, path: str, size: int | None) -> bool:
    """Send HEAD once, because servers that do not know it may answer with what looks like a fault that may pass."""
    traffic.add(requests=1)
    try:
        found = transport_of(asker.source).peek(asker.url(path), "HEAD", asker.source.timeout)
    except LiverDaskError:
        return False
    return found.size is not None and found.size == size


def _sends_two(asker: Asker, path: str, size: int) -> bool:
    """Ask for two ranges at once; return whether both came."""
    ranges = [ByteRange(0, 16), ByteRange(size // 2, size // 2 + 16)]
    url = asker.url(path)

    def ask(read_timeout: float) -> None:
        received = Received(ranges)

        def receive(version: FileVersion, start: int, data: bytes) -> None:
            if not received.add(start, data):
                raise TransientError(f"sent bytes from {start} on, which were not asked for")

        transport_of(asker.source).get(url, ranges, read_timeout, receive)
        if received.missing():
            raise TransientError("sent fewer bytes than asked for")

    for _ in range(TIMES):
        try:
            Tries(asker.source, url).run(ask)
        except OneRangeOnlyError:
            continue
        except LiverDaskError:
            return False
        return True
    return False
