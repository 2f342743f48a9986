"""Byte ranges of a file: which to request, and which parts have arrived. No file access, no network.

A request may ask for several ranges at once (RFC 9110, 14.2). The answer is then one body with several parts, each
after a header that names its range.
"""

import bisect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

MOST_OF_A_REQUEST = 190
"""Maximum number of ranges in one request. Apache sends the whole file for more than 200, and nginx refuses a header of
more than 8 kB."""

LONGEST_PART_HEADER = 4096
_CONTENT_RANGE = re.compile(rb"(?i)\bbytes (\d{1,18})-(\d{1,18})/(\d{1,18})(?!\d)")


class ByteRange(NamedTuple):
    """Bytes `start` to `stop` of a file. In requests only, a negative start means that many bytes at the end."""

    start: int
    stop: int


class Piece(NamedTuple):
    """Some bytes from offset `start` of a file of `size` bytes."""

    start: int
    data: bytes
    size: int


def coalesce_ranges(ranges: Iterable[ByteRange], gap: int, most_bytes: int) -> list[ByteRange]:
    """Return the fewest ranges that cover some ascending ranges, with gaps of up to `gap` bytes included.

    Args:
        ranges: The needed ranges, ascending.
        gap: Maximum number of unneeded bytes between two ranges that are merged.
        most_bytes: Maximum size in bytes of a merged range; a single needed range may be larger.
    """
    merged: list[ByteRange] = []
    for byte_range in ranges:
        last = merged[-1] if merged else None
        if last and 0 <= byte_range.start - last.stop <= gap and byte_range.stop - last.start <= most_bytes:
            merged[-1] = ByteRange(last.start, byte_range.stop)
        else:
            merged.append(ByteRange(*byte_range))
    return merged


def range_header(ranges: Iterable[ByteRange]) -> str:
    """Return the value of a request's Range header."""
    return "bytes=" + ",".join(
        f"{byte_range.start}-{byte_range.stop - 1}" if byte_range.start >= 0 else str(byte_range.start)
        for byte_range in ranges
    )


def read_content_range(text: str | bytes) -> tuple[ByteRange, int] | None:
    """Return the range and the file size from a Content-Range header; None if the header does not give them."""
    found = _CONTENT_RANGE.search(text if isinstance(text, bytes) else text.encode())
    if not found:
        return None
    first, last, size = map(int, found.groups())
    return (ByteRange(first, last + 1), size) if first <= last < size else None


def read_parts(blocks: Iterable[bytes]) -> Iterator[Piece]:
    """Yield the parts of a body with several ranges (multipart/byteranges) as its blocks arrive.

    Raises:
        ValueError: The body does not have this format.
    """
    head, at, left, size = bytearray(), 0, 0, 0
    for block in blocks:
        view = memoryview(block)
        while view:
            if left:
                data, view = bytes(view[:left]), view[left:]
                yield Piece(at, data, size)
                at, left = at + len(data), left - len(data)
                continue
            known = len(head)
            head += view
            end = head.find(b"\r\n\r\n", max(known - 3, 0))
            if end < 0:
                if len(head) > LONGEST_PART_HEADER:
                    raise ValueError("a part has no header")
                break
            content_range = read_content_range(bytes(head[:end]))
            if not content_range:
                raise ValueError("a part does not say which range it is")
            (at, stop), size = content_range
            left = stop - at
            view = view[end + 4 - known :]
            head.clear()


class Received:
    """The received bytes of some ranges of a file; ranges may arrive in any order.

    Args:
        ranges: The ranges, ascending, none of them inside another.
    """

    def __init__(self, ranges: Sequence[ByteRange]) -> None:
        self._ranges = list(ranges)
        self._starts = [byte_range.start for byte_range in ranges]
        self._buffers = [bytearray() for _ in ranges]

    def add(self, start: int, data: bytes) -> bool:
        """Add the bytes from offset `start`; return False if they are not the next bytes of any range."""
        stop, used = start + len(data), False
        i = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while i < len(self._ranges) and self._starts[i] < stop:  # more than one if the server merges ranges
            byte_range, reached = self._ranges[i], self._starts[i] + len(self._buffers[i])
            if start <= reached < min(stop, byte_range.stop):
                self._buffers[i] += memoryview(data)[reached - start : byte_range.stop - start]
                used = True
            i += 1
        return used

    def missing(self, size: int | None = None) -> list[ByteRange]:
        """Return the ranges that have not arrived yet; `size` is the file size in bytes, if known."""
        stops = [byte_range.stop if size is None else min(byte_range.stop, size) for byte_range in self._ranges]
        reached = [
            byte_range.start + len(buffer) for byte_range, buffer in zip(self._ranges, self._buffers, strict=True)
        ]
        return [ByteRange(first, stop) for first, stop in zip(reached, stops, strict=True) if first < stop]

    def cut(self, ranges: Iterable[ByteRange]) -> list[memoryview]:
        """Return the bytes of ranges inside the received ranges, fewer only where the file ends."""
        found = []
        i = 0
        for byte_range in ranges:
            while self._ranges[i].stop < byte_range.stop or self._ranges[i].start > byte_range.start:
                i += 1
            first = self._ranges[i].start
            found.append(memoryview(self._buffers[i])[byte_range.start - first : byte_range.stop - first])
        return found
