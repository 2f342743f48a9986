"""Estimates how many bytes of a strip hold its first columns, from strips that were decoded before.

LZW and deflate decode from left to right, so a window needs only the first bytes of each strip. No index gives their
number. The rows of one archive are similar (an empty margin, then tissue), so the number is known within a few per cent
after the first strips. If too few bytes were fetched, the rest is fetched later.
"""

import math

import numpy as np
import numpy.typing as npt

MARGIN_BYTES = 48
MARGIN_SHARE = 1.015
"""Margins that are fetched beyond the largest share of the strips so far.

Without them, every request would contain a strip that lacks some bytes.
"""

WHOLE_FROM = 0.85
"""Share of a strip from which the strip is fetched whole: neighbouring strips then form one byte range."""

REMEMBERED = 64
PLACES = 256
"""Number of shares remembered for a column, and number of columns remembered for an archive."""


class PrefixShares:
    """Shares of strips' bytes, per archive and column.

    There is no lock. If one thread overwrites the entries of another, the shares are learned again.
    """

    def __init__(self) -> None:
        self._clear()

    def bytes_wanted(
        self, archive: str, width: int, x_stops: npt.NDArray[np.intp], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return how many bytes of each strip to fetch.

        Args:
            archive: Address of the archive.
            width: Columns of a slice.
            x_stops: Column up to which (exclusive) each strip is needed, (strips,).
            counts: Bytes of each strip, (strips,).
        """
        shares = self._shares(archive, width, x_stops)
        some = np.minimum(counts, np.ceil(counts * shares * MARGIN_SHARE).astype(np.int64) + MARGIN_BYTES)
        return np.where(shares >= WHOLE_FROM, counts, some)

    def learn(self, archive: str, width: int, x_stop: int, share: float) -> None:
        """Record the share of a strip's bytes that its columns up to `x_stop` took."""
        places = self._seen.setdefault((archive, width), {})
        places[x_stop] = (*places.get(x_stop, ()), share)[-REMEMBERED:]
        if len(places) > PLACES:
            places.pop(next(iter(places)), None)

    def _shares(self, archive: str, width: int, x_stops: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        places = dict(self._seen.get((archive, width), {}))
        columns = sorted(places)
        return np.interp(x_stops, [0, *columns, width], [0, *(max(places[x]) for x in columns), 1])

    def _clear(self) -> None:
        self._seen: dict[tuple[str, int], dict[int, tuple[float, ...]]] = {}


def bytes_for(count: int, part: int, decoded: int, wanted: int) -> int:
    """Return how many bytes of a strip are needed in total, with a margin.

    Args:
        count: Bytes of the whole strip.
        part: Bytes of the strip that were decoded.
        decoded: Decoded bytes that they gave.
        wanted: Decoded bytes that are needed.
    """
    return min(count, math.ceil(part * wanted / max(decoded, 1) * MARGIN_SHARE) + MARGIN_BYTES)
