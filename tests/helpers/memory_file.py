"""A file of an archive that is bytes in memory, for targets that read slices."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from liver_dask.archive.remote.files import RemoteFile
from liver_dask.archive.remote.ranges import ByteRange
from liver_dask.archive.remote.source import Source
from liver_dask.archive.remote.versions import FileVersion, Versions

SOURCE = Source("memory://fuzz", connections=2, timeout=1, attempts=1)


class MemoryFile(RemoteFile):
    """Answers at once, and counts: what never ends would ask without end."""

    def __init__(self, data: bytes, most_requests: int = 2000) -> None:
        super().__init__(replace(SOURCE, versions=Versions()), "a file")
        self.source.versions.note(self.url, FileVersion(len(data), ""))
        self._data = data
        self._requests_left = most_requests
        self.sent: list[int] = []  # bytes of each range

    def fetch(self, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop`, fewer where the file ends."""
        return self.fetch_ranges([ByteRange(start, stop)])[0]

    def fetch_ranges(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """Ranges, each in a request."""
        self._requests_left -= len(ranges)
        assert self._requests_left > 0, "asks for more and more"
        assert all(0 <= byte_range.start < byte_range.stop for byte_range in ranges), f"asks for {ranges}"
        parts = [memoryview(self._data)[byte_range.start : byte_range.stop] for byte_range in ranges]
        self.sent += map(len, parts)
        return parts

    def fetch_ends(self, head: int, tail: int) -> list[tuple[int, bytes]]:
        """Beginning and end."""
        return [(0, self._data[:head]), (max(len(self._data) - tail, 0), self._data[-tail:])]

    def fetch_each(
        self, requests: Sequence[Sequence[ByteRange]], consume: Callable[[int, list[memoryview]], None]
    ) -> None:
        """One request after the other."""
        for i, ranges in enumerate(requests):
            consume(i, self.fetch_ranges(ranges))
