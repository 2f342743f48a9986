"""A file of an archive that is bytes in memory, for targets that read slices."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from liver_dask.archive.remote.files import RemoteFile
from liver_dask.archive.remote.ranges import Span
from liver_dask.archive.remote.source import Source
from liver_dask.archive.remote.versions import Identity, Versions

SOURCE = Source("memory://fuzz", connections=2, timeout=1, attempts=1)


class MemoryFile(RemoteFile):
    """Answers at once, and counts: what never ends would ask without end."""

    def __init__(self, data: bytes, most_requests: int = 2000) -> None:
        super().__init__(replace(SOURCE, versions=Versions()), "a file")
        self.source.versions.note(self.url, Identity(len(data), ""))
        self._data = data
        self._requests_left = most_requests
        self.sent: list[int] = []  # bytes of each range

    def fetch(self, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop`, fewer where the file ends."""
        return self.fetch_spans([Span(start, stop)])[0]

    def fetch_spans(self, spans: Sequence[Span]) -> list[memoryview]:
        """Ranges, each in a request."""
        self._requests_left -= len(spans)
        assert self._requests_left > 0, "asks for more and more"
        assert all(0 <= span.start < span.stop for span in spans), f"asks for {spans}"
        parts = [memoryview(self._data)[span.start : span.stop] for span in spans]
        self.sent += map(len, parts)
        return parts

    def fetch_ends(self, head: int, tail: int) -> list[tuple[int, bytes]]:
        """Beginning and end."""
        return [(0, self._data[:head]), (max(len(self._data) - tail, 0), self._data[-tail:])]

    def fetch_each(self, requests: Sequence[Sequence[Span]], consume: Callable[[int, list[memoryview]], None]) -> None:
        """One request after the other."""
        for i, spans in enumerate(requests):
            consume(i, self.fetch_spans(spans))
