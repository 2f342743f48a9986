"""Answers of several ranges: only what was asked for lands, in its place, whatever the body is and however it is cut.

An input is how many parts are asked for, which of the ways below makes the body, where the body is cut into blocks, and
the rest: a body as it is; or a list of parts (where, how long, what they say of themselves) that a body is made of.
"""

from collections.abc import Iterator

from liver_dask.archive.remote.ranges import (
    LONGEST_PART_HEADER,
    ByteRange,
    Received,
    range_header,
    read_content_range,
    read_parts,
)

SIZE = 500
FILE = bytes(i * i % 251 for i in range(SIZE))
SPANS = [ByteRange(0, 10), ByteRange(17, 60), ByteRange(61, 62), ByteRange(100, 250), ByteRange(490, 510)]
MOST_PARTS = 6
HEADERS = [
    b"\r\n--x\r\nContent-Range: bytes %d-%d/%d\r\n\r\n",
    b"\r\n--x\r\nContent-Type: image/tiff\r\ncontent-range:bytes %d-%d/%d\r\n\r\n",
    b"--x\r\nX: y\r\nContent-Range: bytes  %d-%d/%d\r\n\r\n",
    b"\r\n--x\r\nContent-Range: %d-%d/%d\r\n\r\n",
    b"\r\n--x\r\nContent-Range: bytes %d-%d/%d\n\n",
]


def of_parts(told: bytes) -> bytes:
    """A body of parts, five bytes each; most say the truth of themselves."""
    body = b""
    for at in range(0, min(len(told) - 4, 5 * MOST_PARTS), 5):
        start, length = int.from_bytes(told[at : at + 2], "big") % SIZE, int.from_bytes(told[at + 2 : at + 4], "big")
        data = FILE[start : start + length % 100]
        lie = told[at + 4] // 32 if told[at + 4] > 128 else 0
        head = HEADERS[told[at + 4] % len(HEADERS) if lie else told[at + 4] % 2]
        body += head % (start + (lie == 5), start + len(data) - 1 + (lie == 6), SIZE + (lie == 7)) + data
    return body + b"\r\n--x--\r\n"


def cut_into_blocks(body: bytes, where: int) -> Iterator[bytes]:
    """The body in blocks of a few lengths that come again and again."""
    lengths = [where % 5 + 1, where % 37 + 1, 2 * where + 16]
    at = number = 0
    while at < len(body):
        stop = at + lengths[number % 3]
        yield body[at:stop]
        at, number = stop, number + 1


def read(body: bytes, ranges: list[ByteRange], where: int) -> tuple[Received, list[tuple[int, bytes, int]], bool]:
    """What has come, the pieces, and whether the body could be read to its end."""
    received, pieces = Received(ranges), []
    try:
        for piece in read_parts(cut_into_blocks(body, where)):
            assert piece.data
            assert 0 <= piece.start < piece.start + len(piece.data) <= piece.size
            pieces.append((piece.start, piece.data, piece.size))
            received.add(piece.start, piece.data)
    except ValueError:
        return received, pieces, False
    return received, pieces, True


def joined(pieces: list[tuple[int, bytes, int]]) -> list[tuple[int, bytes, int]]:
    """The same, whatever the blocks were."""
    out: list[tuple[int, bytes, int]] = []
    for start, data, size in pieces:
        if out and out[-1][0] + len(out[-1][1]) == start and out[-1][2] == size:
            out[-1] = out[-1][0], out[-1][1] + data, size
        else:
            out.append((start, data, size))
    return out


def landed(byte_range: ByteRange, pieces: list[tuple[int, bytes, int]]) -> bytes:
    """What may come of a range: of each piece in turn the bytes that are the next ones."""
    out = b""
    for start, data, _ in pieces:
        reached = byte_range.start + len(out)
        if start <= reached:
            out += data[reached - start : byte_range.stop - start]
    return out


def one_input(data: bytes) -> None:
    """Read a body, cut in two ways."""
    if len(data) < 4:
        return
    ranges = SPANS[: data[0] % len(SPANS) + 1]
    made = data[1] % 2
    body = of_parts(data[3:]) if made else data[3:]
    received, pieces, is_whole = read(body, ranges, data[2])
    assert sum(len(part) for _, part, _ in pieces) <= len(body)
    for byte_range, part in zip(ranges, received.cut(ranges), strict=True):
        assert bytes(part) == landed(byte_range, pieces)
    for lack in received.missing(SIZE):
        assert any(byte_range.start <= lack.start < lack.stop <= byte_range.stop for byte_range in ranges)
    _, again, is_again = read(body, ranges, len(body))
    if is_whole and is_again:
        assert joined(pieces) == joined(again)
    elif len(body) <= LONGEST_PART_HEADER:
        assert is_whole == is_again
    found = read_content_range(data[3:])
    if found:
        assert 0 <= found[0].start < found[0].stop <= found[1]
        assert range_header([found[0]]) == f"bytes={found[0].start}-{found[0].stop - 1}"
