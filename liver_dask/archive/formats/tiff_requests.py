"""Requests for the strips of a slice: how they are cut, and how many they will be."""

import math

import numpy as np
import numpy.typing as npt

from ..remote.files import LARGEST_RANGE, WIDE_GAP
from ..remote.ranges import MOST_OF_A_REQUEST, ByteRange, coalesce_ranges
from .slices import Measured, Reading
from .strip_prefix import WHOLE_FROM
from .tiff_index import BOTH_ENDS_FROM, INDEX_BYTES_PER_ROW

SMALLEST_REQUEST = 256 << 10


LARGEST_REQUEST = 4 << 20
"""A window is split over the connections, into byte ranges of SMALLEST_REQUEST to LARGEST_REQUEST bytes."""


def plan_pieces(offsets: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], connections: int) -> list[slice]:
    """Group strips into requests: about one per connection, and at most MOST_OF_A_REQUEST byte ranges in each.

    Args:
        offsets: First byte of each strip that is needed, in the order of the rows.
        wanted: Number of bytes of each strip that are needed.
        connections: Number of parallel requests.

    Returns:
        The strips of each request: neighbours, ascending in the file. Together they contain every strip once.
    """
    share = request_bytes(int(wanted.sum()), connections)
    pieces: list[slice] = []
    first = count = ranges = 0
    reached = -1
    for i, (offset, length) in enumerate(zip(offsets.tolist(), wanted.tolist(), strict=True)):
        apart = offset != reached
        if i > first and (offset < reached or count + length > share or ranges + apart > MOST_OF_A_REQUEST):
            pieces.append(slice(first, i))
            first, count, ranges, apart = i, 0, 0, True
        count, ranges, reached = count + length, ranges + apart, offset + length
    return [*pieces, slice(first, len(offsets))]


def bridged_bytes(offsets: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> int:
    """Return how many bytes are fetched for strips, in any order, where one range reaches from one to the next."""
    order = np.argsort(offsets, kind="stable")
    ranges = map(ByteRange, offsets[order].tolist(), (offsets + wanted)[order].tolist())
    return sum(of.stop - of.start for of in coalesce_ranges(ranges, WIDE_GAP, LARGEST_RANGE))


def request_bytes(total: int, connections: int) -> int:
    """Return the largest number of bytes of one request, if `total` bytes of a file are needed."""
    return min(max(-(-total // connections), SMALLEST_REQUEST), LARGEST_REQUEST)


def traffic_of_strips(reading: Reading, row_blocks: int) -> tuple[float, float]:
    """Estimate the requests and bytes of the strip index, and of the strips of some rows, see `SliceReader.traffic`."""
    measured = reading.measured or _guessed(reading)
    if measured.is_file:
        return 1, measured.whole
    is_whole = measured.part >= WHOLE_FROM * measured.whole
    part = measured.whole if is_whole else measured.part
    several = measured.takes_several_ranges
    fetched = part if several else measured.bridged
    rows, block = reading.rows / row_blocks, (part if several else min(measured.whole, fetched)) / row_blocks
    pieces = max(math.ceil(block / request_bytes(math.ceil(block), 1)), 1)
    has_gaps = not is_whole if several else fetched > measured.whole  # one range reaches over the ends of strips
    if has_gaps:
        pieces = max(pieces, math.ceil(rows / MOST_OF_A_REQUEST))
    each = 1 if several else math.ceil(fetched / row_blocks / pieces / LARGEST_RANGE)
    has_both_ends = several and reading.height * reading.width >= BOTH_ENDS_FROM
    of_index = 1 if has_both_ends else 2
    return of_index + row_blocks * pieces * each, fetched + INDEX_BYTES_PER_ROW * reading.height


def _guessed(reading: Reading) -> Measured:
    """Return what is most likely the size of the strips of some rows, from the size of a pixel in the file."""
    whole = reading.bytes_per_pixel * reading.width * reading.rows
    return Measured(whole * reading.last_column / reading.width, whole, whole, reading.takes_several_ranges)
