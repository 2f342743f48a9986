"""Plan of a multipart upload: which bytes are copied within the storage, and which pass through this process.

S3 joins parts of at least 5 MiB, the last of any size; at most 10,000 of at most 5 GiB each. A part is a range of one
object, copied where it lies, or bytes that are uploaded. Ranges that are too short for a part are uploaded together
with what comes before or after them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .interface import Extent

LEAST = 5 << 20
"""Bytes of the shortest part, except the last."""

UPLOADED_AT_ONCE = 8 << 20
"""Bytes of a part that is uploaded; it is held in memory."""

COPIED_AT_ONCE = 256 << 20
"""Bytes of a part that is copied within the storage; the storage copies several at a time."""

Piece = bytes | Extent


class Part(NamedTuple):
    """One part: an extent to copy, or pieces to upload, whose extents must be fetched first.

    Attributes:
        pieces: The pieces.
        is_copy: Whether the only piece is an extent to copy.
    """

    pieces: tuple[Piece, ...]
    is_copy: bool

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(map(size_of, self.pieces))


def size_of(piece: Piece) -> int:
    """Return the number of bytes of a piece."""
    return piece.length if isinstance(piece, Extent) else len(piece)


def plan_parts(pieces: Iterable[Piece]) -> Iterator[Part]:
    """Yield the parts of a file, in order; all but the last have at least LEAST bytes.

    Adjacent extents of a file are one extent. At most LEAST bytes of an extent of 2 * LEAST are uploaded.
    """
    waiting: list[Piece] = []
    size = 0
    for piece in _joined(pieces):
        if isinstance(piece, Extent):
            lacking = LEAST - size if waiting else 0
            if piece.length >= max(lacking, 0) + LEAST:
                if lacking > 0:  # its first bytes complete the part before it
                    waiting.append(Extent(piece.place, piece.start, lacking))
                    piece = Extent(piece.place, piece.start + lacking, piece.length - lacking)
                if waiting:
                    yield Part(tuple(waiting), is_copy=False)
                    waiting, size = [], 0
                yield from _copies(piece)
                continue
        waiting.append(piece)
        size += size_of(piece)
        if size >= UPLOADED_AT_ONCE:
            yield Part(tuple(waiting), is_copy=False)
            waiting, size = [], 0
    if waiting:
        yield Part(tuple(waiting), is_copy=False)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces that have bytes; extents that follow one another in the same file as one."""
    last: Extent | None = None
    for piece in pieces:
        if not size_of(piece):
            continue
        if isinstance(piece, Extent):
            if last and (last.place, last.start + last.length) == (piece.place, piece.start):
                last = Extent(last.place, last.start, last.length + piece.length)
                continue
            if last:
                yield last
            last = piece
        else:
            if last:
                yield last
                last = None
            yield piece
    if last:
        yield last


def _copies(extent: Extent) -> Iterator[Part]:
    """Yield copies of an extent, none of them too long, and none too short."""
    count = -(-extent.length // COPIED_AT_ONCE)
    ends = [extent.length * (number + 1) // count for number in range(count)]
    for start, stop in zip([0, *ends], ends, strict=False):
        yield Part((Extent(extent.place, extent.start + start, stop - start),), is_copy=True)
