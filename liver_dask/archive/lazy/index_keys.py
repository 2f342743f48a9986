"""Keys of dask's indexing, with one entry for each axis."""

from itertools import accumulate
from numbers import Number
from typing import Any

import numpy as np
from dask.array.slicing import sanitize_index

from .window import is_list, is_number


def _without_0d(index: Any) -> Any:
    """Return the number in a 0-d array, which numpy's own functions return; return other indexes unchanged."""
    return index[()] if isinstance(index, np.ndarray) and index.ndim == 0 else index


def one_per_axis(index: Any, ndim: int) -> tuple[Any, ...]:
    """Return `index` with one entry per axis, and with whole numbers as ints.

    Raises:
        NotImplementedError: `index` has new axes, several ellipses or too many entries.
    """
    key = tuple(map(_with_ints, index if isinstance(index, tuple) else (index,)))
    if any(entry is None for entry in key) or sum(entry is Ellipsis for entry in key) > 1:
        raise NotImplementedError
    at = next((i for i, entry in enumerate(key) if entry is Ellipsis), len(key))
    filled = (*key[:at], *(slice(None),) * (ndim - len(key) + (at < len(key))), *key[at + 1 :])
    if len(filled) != ndim:
        raise NotImplementedError  # dask reports what is wrong
    return filled


def _with_ints(entry: Any) -> Any:
    """Return whole numbers of any type as ints; dask itself slices with floats (`x[0.0:1.0]`)."""
    entry = _without_0d(entry)
    is_float = is_list(entry) and len(entry) > 0 and np.asarray(entry).dtype.kind == "f"
    if isinstance(entry, slice) or (isinstance(entry, Number) and not isinstance(entry, bool)) or is_float:
        return sanitize_index(entry)
    return entry


def full_key(index: Any, ndim: int) -> tuple[Any, ...]:
    """Return `index` with one entry per axis, at most one of which is a list."""
    key = one_per_axis(index, ndim)
    if sum(not (is_number(entry) or isinstance(entry, slice)) for entry in key) > 1:
        raise NotImplementedError  # dask reports what is wrong
    return key


def cut_chunks(chunks: tuple[int, ...], index: Any, length: int) -> tuple[int, ...]:
    """Return chunks that are cut where the indexed array was cut, so that no block reads the files of two blocks.

    Along a list of indexes, there is a cut wherever two consecutive entries are in different blocks.
    """
    if length == 0:
        return (0,)
    block_ends = np.fromiter(accumulate(chunks), np.intp)
    chosen = np.arange(block_ends[-1])[index]
    block_of = np.searchsorted(block_ends, chosen, side="right")
    cuts = np.flatnonzero(np.diff(block_of)) + 1
    return tuple(int(n) for n in np.diff([0, *cuts, length]))
