"""A file of an archive in memory, for fuzz targets that read slices."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from liver_dask.archive.remote.files import RemoteFile
from liver_dask.archive.remote.ranges import ByteRange
from liver_dask.archive.remote.source import Source
from liver_dask.archive.remote.versions import FileVersion, Versions

SOURCE = Source("memory://fuzz", connections=2, timeout=1, attempts=1)


class MemoryFile(RemoteFile):
    """A file that responds at once and limits the number of requests, so that an endless loop fails.

    Attributes:
        sent: Number of bytes of each range so far.
    """

    def __init__(self, data: bytes, most_requests: int = 2000) -> None:
        super().__init__(replace(SOURCE, versions=Versions()), "a file")
        self.source.versions.note(self.url, FileVersion(len(data), ""))
        self._data = data
        self._requests_left = most_requests
        self.sent: list[int] = []

    def fetch(self, start: int, stop: int) -> memoryview:
        """Return the bytes from `start` to `stop`, or fewer at the end of the file."""
        return self.fetch_ranges([ByteRange(start, stop)])[0]

    def fetch_ranges(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """Return the ranges. Each counts as one request."""
        self._requests_left -= len(ranges)
        assert self._requests_left > 0, "asks for more and more"
        assert all(0 <= byte_range.start < byte_range.stop for byte_range in ranges), f"asks for {ranges}"
        parts = [memoryview(self._data)[byte_range.start : byte_range.stop] for byte_range in ranges]
        self.sent += map(len, parts)
        return parts

    def fetch_ends(self, head: int, tail: int) -> list[tuple[int, bytes]]:
        """Return the beginning and the end of the file, each with its offset."""
        return [(0, self._data[:head]), (max(len(self._data) - tail, 0), self._data[-tail:])]

    def fetch_each(
        self, requests: Sequence[Sequence[ByteRange]], consume: Callable[[int, list[memoryview]], None]
    ) -> None:
        """Process the requests one after the other."""
        for i, ranges in enumerate(requests):
            consume(i, self.fetch_ranges(ranges))
