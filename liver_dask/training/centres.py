"""Sample positions of patches by their centre voxel: of one of the labels, or of none, each with a given share.

The box of all possible centres is cut into windows. A window lies in one chunk of the tables, and its patches are all
of the split or none is. A window is drawn in proportion to the largest number of wanted voxels that it can have, and
with it a rank below that number. Then the window is read, and the wanted voxel with this rank is taken, or the draw is
repeated if there are fewer. So every wanted voxel has the same chance, however rare it is. The exact number of a window
that was read before saves reading it in vain, but changes no draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape
from .sampling import FIRST_DRAW, LARGEST_DRAW, MOST_TRIES, PatchSampler
from .sources import PatchSource
from .tables import Counts, Positions, union

MOST_WINDOWS = 5000
"""Maximum number of windows to read for one patch. A read takes about 1 ms for each label."""

AT_ONCE = 1 << 14
"""Number of windows that are compared with the tables at once."""


@dataclass(frozen=True, eq=False)
class Centre:
    """What the centre voxels of a share of the patches are.

    The centre voxel of a patch is the one at its position + its shape // 2, before it is flipped or transformed.

    Attributes:
        name: What error messages call such a voxel.
        share: The share of these patches, more than 0.
        labels: Arrays (z, y, x); only whether a voxel is 0 matters.
        is_labelled: Whether the voxel is nonzero in one of the arrays, or in none.
        most: Upper bounds of the number of such voxels in each chunk.
    """

    name: str
    share: float
    labels: tuple[Any, ...]
    is_labelled: bool
    most: Counts

    def find(self, window: tuple[slice, ...]) -> npt.NDArray[np.intp]:
        """Read a window, and return the places of all such voxels in it, as flat indexes, ascending."""
        labelled = self.labels[0][window] != 0
        for label in self.labels[1:]:
            labelled |= label[window] != 0
        return np.flatnonzero(labelled == self.is_labelled)


class Windows:
    """The boxes that the centres of the patches of a PatchSampler are drawn from.

    Args:
        places: The sampler of positions.
        chunks: Shape (z, y, x) of a chunk of the tables in voxels.

    Attributes:
        places: The same sampler.
        half: Distance (z, y, x) of a patch's centre from its position.
    """

    def __init__(self, places: PatchSampler, chunks: Shape) -> None:
        self.places, self.half = places, np.array(places.patch) // 2
        self._chunks = chunks

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("edges", "possible")}

    @cached_property
    def edges(self) -> list[npt.NDArray[np.int64]]:
        """For each axis, the edges of the windows in voxels, ascending, the first and the last one included."""
        places, split = self.places, self.places.split
        first = np.array(places.box.start, np.int64)
        end = np.array(places.box.stop, np.int64) - places.patch + 1
        of_split: Sequence[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * 3
        if split:
            origin = np.array(split.origin, np.int64)
            of_split = split.grid.changes(split.name, first + origin, end + origin, places.patch)
            of_split = [at - of for at, of in zip(of_split, origin, strict=True)]
        found = []
        for low, high, half, chunk, at in zip(first, end, self.half, self._chunks, of_split, strict=True):
            lines = np.arange((low + half) // chunk + 1, -(-(high + half) // chunk)) * chunk
            inner = at[(low < at) & (at < high)] + half
            found.append(np.unique(np.concatenate([[low + half, high + half], lines, inner])))
        return found

    @cached_property
    def possible(self) -> npt.NDArray[np.bool_]:
        """Which windows may have allowed patches, with one entry per window, (z, y, x) in windows."""
        shape = tuple(len(edges) - 1 for edges in self.edges)
        found = np.empty(shape, bool)
        for start in range(0, found.size, AT_ONCE):
            numbers = np.arange(start, min(start + AT_ONCE, found.size))
            found.reshape(-1)[numbers] = self._are_possible(np.stack(np.unravel_index(numbers, shape), axis=1))
        return found

    def _are_possible(self, numbers: Positions) -> npt.NDArray[np.bool_]:
        """Return which windows, given by their numbers (z, y, x) along the axes, may have allowed patches."""
        places = self.places
        first = np.stack([edges[of] for edges, of in zip(self.edges, numbers.T, strict=True)], axis=1) - self.half
        allowed = np.ones(len(numbers), bool)
        if places.split:
            name, grid, origin, volume = places.split
            allowed = grid.allows(name, first + origin, places.patch, volume)
        if places.region:
            z, y, x = ((first + self.half) // self._chunks).T
            allowed &= places.region.values[z, y, x] > 0
        z, y, x = (patch + chunk - 1 for patch, chunk in zip(places.patch, self._chunks, strict=True))
        for minimum in places.minima:  # in the box that all patches of a window lie in
            allowed[allowed] = minimum.counts.most(first[allowed], (z, y, x)) >= minimum.voxels
        return allowed

    def most(self, counts: Counts) -> npt.NDArray[np.int64]:
        """Return the largest possible number of counted voxels in each window; 0 where no patch is allowed.

        Args:
            counts: Upper bounds of the number of voxels in each chunk.

        Returns:
            Voxels, (z, y, x) in windows.
        """
        (z, y, x), (deep, high, wide) = zip(
            *((edges[:-1] // chunk, np.diff(edges)) for edges, chunk in zip(self.edges, self._chunks, strict=True)),
            strict=True,
        )
        volume = deep[:, None, None] * high[:, None] * wide
        return np.where(self.possible, np.minimum(counts.values[np.ix_(z, y, x)], volume), 0)

    def at(self, number: int) -> tuple[slice, ...]:
        """Return a window by its number in `possible`, flattened."""
        place = np.unravel_index(number, [len(edges) - 1 for edges in self.edges])
        return tuple(slice(int(edges[of]), int(edges[of + 1])) for edges, of in zip(self.edges, place, strict=True))


class CentreSampler:
    """Samples positions of patches whose centre voxel is of one kind, uniformly.

    Args:
        windows: Where centres may be.
        centre: What the centre voxels are.

    Attributes:
        centre: The same.
    """

    def __init__(self, windows: Windows, centre: Centre) -> None:
        self.centre = centre
        self._windows = windows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_ends", "_found")}

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """0, and the largest possible number of wanted voxels in all windows up to each one."""
        return np.concatenate([[0], np.cumsum(self._windows.most(self.centre.most))])

    @cached_property
    def _found(self) -> npt.NDArray[np.int64]:
        """For each window, the number of wanted voxels, or the largest possible one if it was not read."""
        return np.diff(self._ends)

    def candidates(self, rng: np.random.Generator) -> Iterator[Shape]:
        """Yield random positions that may be allowed, with a centre voxel of this kind, until too many were tried.

        If the caller takes the first position that is allowed according to its voxels, all allowed positions with such
        a centre have the same chance.
        """
        tried, read, count = 0, 0, FIRST_DRAW
        while tried < MOST_TRIES and self._ends[-1]:
            drawn = rng.integers(0, self._ends[-1], count)
            windows = np.searchsorted(self._ends, drawn, side="right") - 1
            ranks = drawn - self._ends[windows]
            there = ranks < self._found[windows]
            for window, rank in zip(windows[there].tolist(), ranks[there].tolist(), strict=True):
                if rank >= self._found[window]:
                    continue  # it was read just now
                if read == MOST_WINDOWS:
                    return
                read += 1
                position = self._position(window, rank)
                if position and self._windows.places.may_be(np.array([position]))[0]:
                    yield position
            tried, count = tried + count, min(4 * count, LARGEST_DRAW)

    def check_that_there_are_voxels(self) -> None:
        """Raise InvalidArgumentError if the store has no voxel of this kind at all."""
        if not self.centre.most.values.any():
            raise InvalidArgumentError(
                f"The box does not have {self.centre.name}; choose another box, other labels or another share."
            )

    def _position(self, number: int, rank: int) -> Shape | None:
        """Return the position of the patch around the wanted voxel with this rank in a window; None if it has fewer."""
        window = self._windows.at(number)
        voxels = self.centre.find(window)
        self._found[number] = len(voxels)
        if rank >= len(voxels):
            return None
        inside = np.unravel_index(voxels[rank], [of.stop - of.start for of in window])
        z, y, x = (
            int(of.start + place - half) for of, place, half in zip(window, inside, self._windows.half, strict=True)
        )
        return z, y, x


class Centres:
    """The samplers of one box, one for each kind of centre voxel.

    Args:
        places: The positions that are allowed at all.
        centres: The kinds of centre voxels, at least one.
    """

    def __init__(self, places: PatchSampler, centres: Sequence[Centre]) -> None:
        windows = Windows(places, centres[0].most.chunks)
        self.samplers = tuple(CentreSampler(windows, centre) for centre in centres)
        self._ends = np.cumsum([centre.share for centre in centres])

    def at(self, fraction: float) -> CentreSampler:
        """Return the sampler for a number from 0 to 1: each has its share of this interval."""
        number = int(np.searchsorted(self._ends / self._ends[-1], fraction, side="right"))
        return self.samplers[min(number, len(self.samplers) - 1)]


def check_centres(
    class_balance: bool, foreground_share: float | None, names: Sequence[str], stream: bool, reuse: int
) -> None:
    """Raise InvalidArgumentError if the arguments that say what centre voxels are do not make sense."""
    if not isinstance(class_balance, bool | np.bool_):
        raise InvalidArgumentError(f"class_balance={class_balance!r} must be True or False.")
    is_share = isinstance(foreground_share, Real) and not isinstance(foreground_share, bool)
    if foreground_share is not None and not (is_share and 0 <= foreground_share <= 1):
        raise InvalidArgumentError(f"foreground_share={foreground_share!r} must be a share, 0 to 1, or None.")
    if class_balance and len(names) < 2:
        raise InvalidArgumentError(
            f"class_balance=True needs several labels, and label_choice has only {names[0]!r}; "
            "foreground_share=1.0 puts it at the centre of each patch."
        )
    given = "class_balance" if class_balance else "foreground_share"
    is_given = class_balance or foreground_share is not None
    if is_given and reuse != 1:
        raise InvalidArgumentError(
            f"{given} cannot be combined with reuse={reuse}, which draws patches from the same chunks; leave one out."
        )
    if stream and is_given:
        raise InvalidArgumentError(f"{given} needs the table of a store; download one, or do not stream.")


def centres_of(
    source: PatchSource, places: PatchSampler, class_balance: bool, foreground_share: float | None
) -> Centres | None:
    """Return the samplers by centre voxels of one box of a store, or None if nothing is asked of centre voxels."""
    if not class_balance and foreground_share is None:
        return None
    share = 1.0 if foreground_share is None else float(foreground_share)
    tables = [source.tables[name] for name in source.names]
    if class_balance:
        found = [
            Centre(f"a voxel of {name!r}", share / len(tables), (label,), True, table)
            for name, label, table in zip(source.names, source.labels, tables, strict=True)
        ]
    else:
        name = "a voxel of " + " or ".join(map(repr, source.names))
        found = [Centre(name, share, source.labels, True, union(tables))]
    found.append(Centre("an unlabelled voxel", 1 - share, source.labels, False, _unlabelled(tables)))
    return Centres(places, [centre for centre in found if centre.share > 0])


def _unlabelled(tables: Sequence[Counts]) -> Counts:
    """Return upper bounds of the number of voxels that are 0 in each of several arrays with the same chunks."""
    first = tables[0]
    lengths = [
        np.minimum(chunk, length - np.arange(count) * chunk)
        for chunk, length, count in zip(first.chunks, first.shape, first.values.shape, strict=True)
    ]
    z, y, x = lengths
    labelled = np.max([table.values for table in tables], axis=0).astype(np.int64)
    return Counts(z[:, None, None] * y[:, None] * x - labelled, first.chunks, first.shape)
