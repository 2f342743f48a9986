"""Undoing PNG's row filters, byte for byte as the specification says it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_dask import png_filters
from liver_dask.png_filters import AVERAGE, LAST_FILTER, PAETH, unfilter


def expectation(kind: int, left: int, up: int, up_left: int) -> int:
    """What a filter expects of a byte, by section 9 of the specification."""
    by_paeth = left + up - up_left
    nearest = min((left, up, up_left), key=lambda neighbour: abs(by_paeth - neighbour))  # the first of equals
    return [0, left, up, (left + up) // 2, nearest][kind]


def code(rows: np.ndarray, kinds: np.ndarray, above: np.ndarray, step: int, *, undo: bool) -> np.ndarray:
    """Filter the bytes of rows, or unfilter them, one by one."""
    plain, coded = [above.tolist()], []
    for row, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
        here = [] if undo else row
        out = here if undo else []
        for i, byte in enumerate(row):
            left, up_left = (here[i - step], plain[-1][i - step]) if i >= step else (0, 0)
            expected = expectation(kind, left, plain[-1][i], up_left)
            out.append((byte + (expected if undo else -expected)) % 256)
        plain.append(here)
        coded.append(out)
    return np.array(coded, np.uint8).reshape(rows.shape)


def check(kinds: np.ndarray, filtered: np.ndarray, above: np.ndarray, step: int, expected: np.ndarray) -> None:
    rows = np.hstack([kinds[:, None], filtered]).astype(np.uint8)
    rows.setflags(write=False)
    above = above.copy()
    above.setflags(write=False)
    np.testing.assert_array_equal(unfilter(rows, above, step), expected)


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Kinds of filters, bytes of rows, those of the row above, and the bytes of a pixel."""
    step, width, height = draw(st.sampled_from([1, 2, 3, 4, 6, 8])), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    values = draw(st.sampled_from([[0, 255], [0, 1], [7, 200], [0, 1, 255], [0, 128, 255], [3, 4, 5, 6], range(256)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    pixels = random.choice(np.array(values, np.uint8), (height + 1, width * step))
    if draw(st.booleans()):  # stretches of a value, as in a mask
        pixels = pixels[:, np.sort(random.integers(0, width, width)).repeat(step) * step + np.tile(range(step), width)]
    allowed = draw(st.lists(st.integers(0, LAST_FILTER), min_size=1, max_size=5))
    above = pixels[0] if draw(st.booleans()) else np.zeros_like(pixels[0])
    return random.choice(allowed, height), pixels[1:], above, step


@settings(max_examples=400, deadline=None)
@given(image=images())
def test_any_bytes_behind_any_filters(image: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    """A file of few writers, or a damaged one, would give other bytes than the specification's."""
    kinds, filtered, above, step = image
    check(kinds, filtered, above, step, code(filtered, kinds, above, step, undo=True))


@settings(max_examples=400, deadline=None)
@given(image=images())
def test_any_image_filtered_in_any_way(image: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    """An image would not come back: unlike random bytes, its rows fit each other, and so take the faster ways."""
    kinds, pixels, above, step = image
    check(kinds, code(pixels, kinds, above, step, undo=False), above, step, pixels)


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (7, 200)], ids=str)
@pytest.mark.parametrize("step", [1, 3])
def test_masks_do_without_libpng(monkeypatch: pytest.MonkeyPatch, values: tuple[int, int], step: int) -> None:
    """Reading masks would take three times as long."""
    monkeypatch.setattr(png_filters, "_undo_by_libpng", None)
    pixels = np.random.default_rng(0).choice(np.array(values, np.uint8), (40, 60 * step))
    pixels[:20].sort(axis=1)
    kinds = np.arange(40) % (LAST_FILTER + 1)
    kinds[kinds == AVERAGE] = PAETH
    kinds[0] = 0  # the row above an image is 0, which need not be one of its values
    check(kinds, code(pixels, kinds, pixels[0] * 0, step, undo=False), pixels[0] * 0, step, pixels)


def test_long_runs_of_each_filter() -> None:
    """Where one small PNG ends and the next begins, a row would be lost or taken from the wrong one above."""
    random = np.random.default_rng(1)
    rows = random.integers(0, 256, (5 * 3 * png_filters.LIBPNG_ROWS, 5), np.uint8)
    kinds = np.repeat(random.permutation(5), 3 * png_filters.LIBPNG_ROWS)
    above = random.integers(0, 256, 5, np.uint8)
    check(kinds, rows, above, 1, code(rows, kinds, above, 1, undo=True))
