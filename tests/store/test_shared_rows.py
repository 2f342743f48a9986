"""Rows that several variables of a job share are those of the reader, each read once where a job goes down the rows."""

import pickle
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from liver_dask.store.shared_rows import SharedRows

VOXELS = np.random.default_rng(0).integers(0, 255, (3, 40, 50)).astype(np.uint8)


class Counting:
    """A reader that counts how often each row of each slice is read."""

    slices_at_once = 1
    variant = "raise"

    def __init__(self) -> None:
        self.rows = np.zeros(VOXELS.shape[:2], int)

    def __call__(self, z: Any, y: Any, x: Any, out: np.ndarray) -> None:
        out[...] = VOXELS[np.ix_(z, y, x)]
        self.rows[np.ix_(z, y)] += 1

    def describe(self) -> str:
        return "counting"

    def origin(self) -> None:
        return None


spans = st.tuples(st.integers(0, 39), st.integers(1, 40)).map(lambda of: range(of[0], min(sum(of), 40)))
selections = st.one_of(spans, st.lists(st.integers(0, 39), min_size=1, max_size=5).map(np.array))


@given(st.lists(st.tuples(st.integers(0, 2), selections, selections), min_size=1, max_size=12))
def test_whatever_is_read_it_is_right(reads: list[tuple[int, Any, Any]]) -> None:
    """In any order, any rows and columns, also by a copy that another process gets."""
    shared = SharedRows(Counting())
    for number, (z, y, x) in enumerate(reads):
        out = np.empty((1, len(y), len(x)), np.uint8)
        shared(range(z, z + 1), y, x, out)
        np.testing.assert_array_equal(out, VOXELS[np.ix_([z], y, x)])
        if number == len(reads) // 2:
            shared = pickle.loads(pickle.dumps(shared))


@given(st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_down_the_rows_each_is_read_once(height: int, halo: int, less: int) -> None:
    """By one that needs a halo, one that needs less, and one that needs none, in this order."""
    counting = Counting()
    shared = SharedRows(counting)
    for start in range(0, 40, height):
        for far in (halo, min(halo, less), 0):
            rows = range(max(start - far, 0), min(start + height + far, 40))
            out = np.empty((3, len(rows), 50), np.uint8)
            shared(range(3), rows, range(50), out)
            np.testing.assert_array_equal(out, VOXELS[:, rows.start : rows.stop])
    assert (counting.rows == 1).all()
