"""The reader of a prediction: it reads what the model needs of a block, and runs the model on it.

A prediction has no graph of its own, so that it costs nothing until voxels are asked for, whatever the size of the
volume; and what is asked for is known as a window of the volume, and predicted block by block.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..archive.lazy.lazy_window import LazyWindow, Reader
from ..archive.lazy.leaves import Read
from ..archive.lazy.window import Selection, Window
from ..core.documents import reason_of
from ..core.errors import ExportError, LiverDaskError
from ..core.geometry import DIMS, Shape
from ..core.threads import check_cancelled
from ..store.identity import PREDICTION
from ..store.voxels import Box, Voxels
from .models import Model
from .settings import Settings

T = TypeVar("T")

NO_PROBABILITIES = (
    "Many results of the model are below 0 or above 1, and are cut to 0 to 1, since they are taken as probabilities. "
    "Does it return logits, which need a Sigmoid, or get voxels that are not standardised as in training?"
)

_told: set[str] = set()
"""Digests of the models of which this process has said so."""


@dataclass(frozen=True, eq=False)
class PredictionReader:
    """Reader of the prediction of a model.

    Attributes:
        model: The model.
        raw: The volume that it gets.
        settings: How it is run.
        batch: Number of blocks that it gets at once.
        device: Name of torch's device; None for the first GPU, or the processor.
        by_rows: Whether rows are read over the full width for all blocks along x, as those of an archive's files.
    """

    model: Model
    raw: Voxels
    settings: Settings
    batch: int
    device: str | None
    by_rows: bool

    @property
    def slices_at_once(self) -> int:
        """See Reader: those of a block."""
        return self.settings.block[0]

    def __call__(self, z: Selection, y: Selection, x: Selection, out: npt.NDArray[Any]) -> None:
        """See Reader."""
        along = [list(_blocks(of, size)) for of, size in zip((z, y, x), self.settings.block, strict=True)]
        width = max(len(along[2]), 1) if self.by_rows else self.batch
        for of_z, of_y in product(*along[:2]):
            for columns in _batches(along[2], width):
                self._predict(of_z, of_y, columns, out)

    def describe(self) -> str:
        """See Reader: the model, the settings, and the voxels that it gets. Batch and device do not matter."""
        known = {"model": str(self.model), **self.settings.described(), "raw": self.raw.described()}
        return PREDICTION + json.dumps(known, sort_keys=True)

    @property
    def variant(self) -> str:
        """See Reader."""
        return self.raw.variant

    def origin(self) -> None:
        """See Reader: a model cannot be opened again."""

    def probe(self, z: int) -> None:
        """See Reader."""
        self.raw.probe(z)

    def read_ahead(self, z: Selection, y: Selection) -> AbstractContextManager[None]:
        """See Reader."""
        of_z, of_y, _ = self._needed(Window((z, y, range(1))))
        return self.raw.read_ahead(of_z, of_y)

    @property
    def inputs(self) -> Iterable[LazyWindow]:
        """See DerivedReader."""
        return self.raw.inputs

    def reads(self, window: Window) -> Iterable[Read]:
        """See DerivedReader."""
        return self.raw.reads(self._needed(window))

    @property
    def times(self) -> float:
        """See DerivedReader."""
        of_z, of_y, _ = ((of + 2 * more) / of for of, more in zip(self.settings.block, self.settings.halo, strict=True))
        return 0 if self.raw.is_shared else of_z * of_y

    def reading(self, others: Mapping[Reader, Reader]) -> "PredictionReader":
        """See DerivedReader."""
        return replace(self, raw=self.raw.reading(others))

    def part(self, z: Selection) -> "PredictionReader":
        """See DerivedReader."""
        of_z, _, _ = self._needed(Window((z, range(1), range(1))))
        _, height, width = self.raw.shape
        return replace(self, raw=self.raw.part((of_z, slice(0, height), slice(0, width))))

    def _needed(self, window: Window) -> Box:
        """Return the box that the model gets of raw for a window."""
        box = []
        for of, size, halo, length in zip(
            window.selections, self.settings.block, self.settings.halo, self.raw.shape, strict=True
        ):
            first, last = (int(at) // size for at in (min(of), max(of)))
            box.append(slice(max(first * size - halo, 0), min((last + 1) * size + halo, length)))
        z, y, x = box
        return z, y, x

    def _predict(self, z: "_Block", y: "_Block", columns: Sequence["_Block"], out: npt.NDArray[Any]) -> None:
        """Predict the blocks in some columns, of the same slices and rows."""
        first, last = columns[0].number, columns[-1].number
        starts = [number * size for number, size in zip((z.number, y.number, first), self.settings.block, strict=True)]
        voxels = self._with_halo(starts, (1, 1, last + 1 - first))
        for some in _batches(self._filled(voxels, columns, first, (z, y), out), self.batch):
            check_cancelled("A prediction")
            try:
                finished = self._finished([block for _, block in some])
            except (LiverDaskError, UserWarning):
                raise
            except Exception as error:  # of the user's model or functions
                at = ", ".join(f"{dim} {start}" for dim, start in zip(DIMS, starts, strict=True))
                raise ExportError(f"The model failed at the block from {at} on: {reason_of(error)}.") from error
            for (x, _), prediction in zip(some, finished, strict=True):
                _place(out, (z, y, x), prediction)

    def _finished(self, blocks: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return what is kept of the predictions of some blocks with their halo."""
        prepared = np.stack([self.settings.prepared(block) for block in blocks])
        predictions = self.model.predict(prepared, self.settings.ndim, self.device)
        inner = tuple(slice(halo, halo + of) for halo, of in zip(self.settings.halo, self.settings.block, strict=True))
        kept = [prediction[:, *inner] for prediction in predictions]
        finished = [self.settings.finished(prediction) for prediction in kept]
        if self.model.digest not in _told and any(map(self.settings.cuts_much, kept)):
            _told.add(self.model.digest)
            warnings.warn(NO_PROBABILITIES, stacklevel=2)
        return finished

    def _filled(
        self,
        voxels: npt.NDArray[Any],
        columns: Iterable["_Block"],
        first: int,
        row: tuple["_Block", "_Block"],
        out: npt.NDArray[Any],
    ) -> Iterator[tuple["_Block", npt.NDArray[Any]]]:
        """Yield the blocks to predict, with their halo; the others are 0."""
        _, _, width = self.settings.block
        for column in columns:
            begin = (column.number - first) * width
            block = voxels[:, :, begin : begin + width + 2 * self.settings.halo[2]]
            if not self.settings.skip_empty or block.any():
                yield column, block
            else:
                _place(out, (*row, column), np.zeros(self.settings.block, out.dtype))

    def _with_halo(self, starts: Sequence[int], counts: Shape) -> npt.NDArray[Any]:
        """Return the voxels of some blocks next to each other with their halo, mirrored beyond the volume's ends."""
        box, beyond = [], []
        settings = self.settings
        for at, count, of, halo, length in zip(
            starts, counts, settings.block, settings.halo, self.raw.shape, strict=True
        ):
            begin, end = at - halo, at + count * of + halo
            box.append(slice(max(begin, 0), min(end, length)))
            beyond.append((max(-begin, 0), max(end - length, 0)))
        z, y, x = box
        voxels = self.raw.read((z, y, x))
        return np.pad(voxels, beyond, "reflect") if any(map(any, beyond)) else voxels


class _Block(NamedTuple):
    """The wanted indexes in one block along an axis.

    Attributes:
        number: The number of the block.
        into: Where they are in the result.
        inside: Where they are in the block.
    """

    number: int
    into: npt.NDArray[np.intp]
    inside: npt.NDArray[np.intp]


def _blocks(selection: Selection, size: int) -> Iterator[_Block]:
    """Yield the blocks that hold some indexes of an axis."""
    indexes = np.asarray(selection, np.intp)
    numbers = indexes // size
    for number in np.unique(numbers).tolist():
        into = np.flatnonzero(numbers == number)
        yield _Block(number, into, indexes[into] - number * size)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def _place(out: npt.NDArray[Any], blocks: Sequence[_Block], prediction: npt.NDArray[Any]) -> None:
    """Copy what is wanted of a predicted block."""
    into, inside = ([_as_slice(of) for of in axes] for axes in zip(*((b.into, b.inside) for b in blocks), strict=True))
    if all(isinstance(of, slice) for of in (*into, *inside)):
        out[tuple(into)] = prediction[tuple(inside)]
    else:
        out[np.ix_(*(of.into for of in blocks))] = prediction[np.ix_(*(of.inside for of in blocks))]


def _as_slice(indexes: npt.NDArray[np.intp]) -> Any:
    first, last = int(indexes[0]), int(indexes[-1])
    is_run = last - first + 1 == len(indexes) and bool((np.diff(indexes) == 1).all())
    return slice(first, last + 1) if is_run else indexes
