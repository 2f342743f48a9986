"""How many bytes of a strip its first columns take, learnt from strips that were decoded.

LZW and deflate run from left to right, so a window needs of each strip only the first bytes; how many, no index says.
Rows of one archive are alike in that (an empty margin, then tissue), so that after the first strips it is known within
some per cent. What is fetched too little is fetched after.
"""

import math

import numpy as np
import numpy.typing as npt

MARGIN_BYTES = 48
MARGIN_SHARE = 1.015
"""What is fetched beyond the most that strips took so far, lest every request has a strip that lacks some bytes."""

WHOLE_FROM = 0.85
"""The share of a strip from which on it is fetched whole: then neighbours are one range."""

REMEMBERED = 64
PLACES = 256


class PrefixShares:
    """Shares of strips' bytes, by archive and column; what threads overwrite is learnt again."""

    def __init__(self) -> None:
        self._clear()

    def bytes_wanted(
        self, archive: str, width: int, x_stops: npt.NDArray[np.intp], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """How many bytes to fetch of strips of `counts` bytes, each for the columns up to one of `x_stops`."""
        shares = self._shares(archive, width, x_stops)
        some = np.minimum(counts, np.ceil(counts * shares * MARGIN_SHARE).astype(np.int64) + MARGIN_BYTES)
        return np.where(shares >= WHOLE_FROM, counts, some)

    def learn(self, archive: str, width: int, x_stop: int, share: float) -> None:
        """Take note of the share of a strip's bytes that its columns up to `x_stop` took."""
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
    """How many of a strip's `count` bytes to have, where `part` of them gave `decoded` of the `wanted` bytes."""
    return min(count, math.ceil(part * wanted / max(decoded, 1) * MARGIN_SHARE) + MARGIN_BYTES)
