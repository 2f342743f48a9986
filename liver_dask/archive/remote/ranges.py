"""Byte ranges of a file: which to ask for, and what of them has come. Pure: no file, no network.

A request may ask for several ranges at once (RFC 9110, 14.2). The answer is then one body of several parts, each behind
a header that says which range it is.
"""

import bisect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

MOST_OF_A_REQUEST = 190
"""Ranges of one request. Apache sends the whole file for more than 200, nginx refuses a header of more than 8 kB."""

LONGEST_PART_HEADER = 4096
_CONTENT_RANGE = re.compile(rb"(?i)\bbytes (\d{1,18})-(\d{1,18})/(\d{1,18})(?!\d)")


class Span(NamedTuple):
    """Bytes `start` to `stop` of a file; only to ask for: of a start below 0, that many at its end."""

    start: int
    stop: int


class Piece(NamedTuple):
    """Some bytes of a file of `size` bytes, from `start` on."""

    start: int
    data: bytes
    size: int


def merge_spans(spans: Iterable[Span], gap: int, most_bytes: int) -> list[Span]:
    """The fewest ranges that hold some ascending spans, with up to `gap` bytes between two fetched along.

    Args:
        spans: What is needed.
        gap: The most bytes between two spans of one range.
        most_bytes: The most bytes of a range that more than one span is in.
    """
    merged: list[Span] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last and 0 <= span.start - last.stop <= gap and span.stop - last.start <= most_bytes:
            merged[-1] = Span(last.start, span.stop)
        else:
            merged.append(Span(*span))
    return merged


def range_header(spans: Iterable[Span]) -> str:
    """The value of a request's Range header."""
    return "bytes=" + ",".join(
        f"{span.start}-{span.stop - 1}" if span.start >= 0 else str(span.start) for span in spans
    )


def read_content_range(text: str | bytes) -> tuple[Span, int] | None:
    """The range that a Content-Range header tells, and the size of the file; None if it does not."""
    found = _CONTENT_RANGE.search(text if isinstance(text, bytes) else text.encode())
    if not found:
        return None
    first, last, size = map(int, found.groups())
    return (Span(first, last + 1), size) if first <= last < size else None


def read_parts(blocks: Iterable[bytes]) -> Iterator[Piece]:
    """The parts of a body of several ranges (multipart/byteranges), as its blocks arrive.

    Raises:
        ValueError: It is not such a body.
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
            told = read_content_range(bytes(head[:end]))
            if not told:
                raise ValueError("a part does not say which range it is")
            (at, stop), size = told
            left = stop - at
            view = view[end + 4 - known :]
            head.clear()


class Received:
    """What has come of some ranges of a file, in whatever order.

    Args:
        spans: The ranges, ascending, none of them within another.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = list(spans)
        self._starts = [span.start for span in spans]
        self._buffers = [bytearray() for _ in spans]

    def add(self, start: int, data: bytes) -> bool:
        """Take the bytes from `start` on; False if they are not the next ones of any range."""
        stop, used = start + len(data), False
        i = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while i < len(self._spans) and self._starts[i] < stop:  # more than one, where a server puts ranges together
            span, reached = self._spans[i], self._starts[i] + len(self._buffers[i])
            if start <= reached < min(stop, span.stop):
                self._buffers[i] += memoryview(data)[reached - start : span.stop - start]
                used = True
            i += 1
        return used

    def missing(self, size: int | None = None) -> list[Span]:
        """What has not come yet, of a file of so many bytes if that is known."""
        stops = [span.stop if size is None else min(span.stop, size) for span in self._spans]
        reached = [span.start + len(buffer) for span, buffer in zip(self._spans, self._buffers, strict=True)]
        return [Span(first, stop) for first, stop in zip(reached, stops, strict=True) if first < stop]

    def cut(self, spans: Iterable[Span]) -> list[memoryview]:
        """The bytes of some ranges that lie within those that have come, fewer only where the file ends."""
        found = []
        i = 0
        for span in spans:
            while self._spans[i].stop < span.stop or self._spans[i].start > span.start:
                i += 1
            first = self._spans[i].start
            found.append(memoryview(self._buffers[i])[span.start - first : span.stop - first])
        return found
