"""PNG's row filters are undone byte for byte as the specification says."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_dask.archive.formats import png_filters
from liver_dask.archive.formats.png_filters import LAST_FILTER, unfilter

STRETCH = int(png_filters.STRETCH)


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
    """Random bytes behind any filters are unfiltered as the specification says."""
    kinds, filtered, above, step = image
    check(kinds, filtered, above, step, code(filtered, kinds, above, step, undo=True))


@settings(max_examples=400, deadline=None)
@given(image=images())
def test_any_image_filtered_in_any_way(image: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    """An image that is filtered in any way is restored; its rows, unlike random bytes, take the faster code paths."""
    kinds, pixels, above, step = image
    check(kinds, code(pixels, kinds, above, step, undo=False), above, step, pixels)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.integers(0, LAST_FILTER),
    values=st.sampled_from([(0, 255), (0, 1), (7, 200), (0, 3, 200)]),
    lengths=st.lists(st.integers(1, 3 * STRETCH), min_size=1, max_size=12),
)
def test_stretches_of_any_length(seed: int, kind: int, values: tuple[int, ...], lengths: list[int]) -> None:
    """Rows with stretches of equal bytes of any length are unfiltered right, up to the ends of each stretch."""
    random = np.random.default_rng(seed)
    width = sum(lengths)
    pixels = np.array([np.repeat(random.choice(values, len(lengths)), random.permutation(lengths)) for _ in range(6)])
    pixels[3] = pixels[2]
    pixels = pixels.astype(np.uint8).reshape(6, width)
    kinds = np.full(5, kind)
    check(kinds, code(pixels[1:], kinds, pixels[0], 1, undo=False), pixels[0], 1, pixels[1:])
    rare = np.where(random.random((5, width)) < 0.01, random.integers(0, 256, (5, width)), 0).astype(np.uint8)
    check(kinds, rare, pixels[0], 1, code(rare, kinds, pixels[0], 1, undo=True))
