"""Every kind of PNG is read: all files of PngSuite (data/pngsuite), and all kinds of the specification at any size."""

import struct
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.masks import chunk, read_by_pillow
from helpers.paths import DATA
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import png_rows, png_stream
from liver_dask.demo import serve

SUITE = sorted((DATA / "pngsuite").glob("*.png"))
BROKEN = [path for path in SUITE if path.name.startswith("x")]
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8)] + [
    (colour, bits) for colour in (4, 6) for bits in (8, 16)
]
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
"""First row and column of each pass, and the steps between its rows and columns."""


def read_by_libpng(path: Path) -> np.ndarray:
    """The mask by libpng, which, unlike Pillow, gives samples of 16 bits unchanged."""
    pixels = imagecodecs.png_decode(path.read_bytes())
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    colours = pixels.shape[-1] // 2 * 2 - 1 if pixels.shape[-1] % 2 == 0 else pixels.shape[-1]
    return np.where(pixels[..., :colours].any(axis=-1), 255, 0).astype(np.uint8)


def opened(path: Path, height: int, width: int):
    """The mask of an archive that holds only this file."""
    return ld.open_human_liver_em(path.parents[1], shape=(1, height, width), labels="er").er[0]


def archive_of(data: bytes, folder: Path) -> Path:
    path = folder / EMPIAR_13356.path("er", 0)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("path", [path for path in SUITE if path not in BROKEN], ids=lambda path: path.stem)
def test_every_file_of_the_suite(tmp_path: Path, path: Path) -> None:
    """Every valid file of PngSuite gives the same mask as Pillow, whole and in a window."""
    expected = read_by_pillow(path)
    height, width = expected.shape
    interlaced = path.read_bytes()[28] == 1
    if not interlaced:  # imagecodecs' libpng warns about each interlaced file
        np.testing.assert_array_equal(read_by_libpng(path), expected)
    mask = opened(archive_of(path.read_bytes(), tmp_path), height, width)
    np.testing.assert_array_equal(mask.to_numpy(), expected)
    np.testing.assert_array_equal(mask[height // 2 :, width // 3 :].to_numpy(), expected[height // 2 :, width // 3 :])


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_every_broken_file_of_the_suite_is_one_sentence(tmp_path: Path, path: Path) -> None:
    """Every broken file of PngSuite is a FormatError of one line that names the slice and file, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ld.FormatError, match=r"er, slice 0, rows 0-31: .*er_mask_000\.png: ") as told:
            opened(archive_of(path.read_bytes(), tmp_path), 32, 32).compute()
    assert "\n" not in str(told.value)


def packed_rows(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples, as (rows, columns, samples), packed into the bytes of rows."""
    flat = samples.reshape(len(samples), -1)
    if bits == 16:
        return flat.astype(">u2").view(np.uint8).reshape(len(flat), -1)
    as_bits = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(as_bits.reshape(len(flat), -1).astype(bool), axis=1)


def filtered(rows: np.ndarray, kinds: list[int], step: int) -> bytes:
    """Rows filtered in the given ways by the specification, each behind the number of its filter."""
    out, above = b"", np.zeros(rows.shape[1], int)
    for i, row in enumerate(rows.astype(int)):
        left = np.concatenate([np.zeros(step, int), row])[: len(row)]
        up_left = np.concatenate([np.zeros(step, int), above])[: len(row)]
        distances = np.abs(np.stack([above - up_left, left - up_left, left + above - 2 * up_left]))
        by_paeth = np.choose(distances.argmin(axis=0), [left, above, up_left])
        kind = kinds[i % len(kinds)]
        expected = [0, left, above, (left + above) // 2, by_paeth][kind]
        out += bytes([kind]) + ((row - expected) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def png_of(samples: np.ndarray, colour: int, bits: int, interlaced: bool, kinds: list[int], piece: int) -> bytes:
    """A PNG of (rows, columns, samples), its image data in chunks of `piece` bytes."""
    height, width, count = samples.shape
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    step = max(count * bits // 8, 1)
    image = zlib.compress(b"".join(filtered(packed_rows(part, bits), kinds, step) for part in passes if part.size))
    palette = chunk(
        b"PLTE", bytes(3) + bytes(range(1, 3 * (1 << bits) - 2)) if bits < 8 else bytes(384) + bytes([7] * 384)
    )
    return b"".join(
        [
            png_stream.SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)),
            palette if colour == 3 else b"",
            *(chunk(b"IDAT", image[i : i + piece]) for i in range(0, len(image), piece)),
            chunk(b"IEND", b""),
        ]
    )


@st.composite
def images(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A file of any kind, and its mask."""
    colour, bits = draw(st.sampled_from(KINDS))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples = random.integers(0, 1 << bits, (height, width, SAMPLES[colour]))
    samples[random.random((height, width)) < draw(st.sampled_from([0.2, 0.9]))] = 0
    if bits == 16 and draw(st.booleans()):
        samples %= 3  # nothing in the high byte
    kinds = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    data = png_of(samples, colour, bits, draw(st.booleans()), kinds, draw(st.sampled_from([1, 9, 10**6])))
    colours = samples[..., : 3 if colour in (2, 6) else 1].any(axis=-1)
    if colour == 3 and bits == 8:
        colours = samples[..., 0] >= 128
    return data, np.where(colours, 255, 0).astype(np.uint8)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(image=images(), data=st.data())
def test_any_kind_of_any_size(tmp_path_factory: pytest.TempPathFactory, image, data: st.DataObject) -> None:
    """A PNG of any kind, size, filters and interlacing gives the right mask, whole and in any window."""
    content, expected = image
    path = archive_of(content, tmp_path_factory.mktemp("kind"))
    mask = opened(path, *expected.shape)
    rows = slice(*sorted(data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40)))))
    columns = slice(*sorted(data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40)))))
    np.testing.assert_array_equal(mask[rows, columns].compute(scheduler="sync"), expected[rows, columns])
    np.testing.assert_array_equal(mask.compute(scheduler="sync"), expected)


@pytest.mark.parametrize("palette", [None, b"", bytes(4), bytes(3 * 257)], ids=["none", "empty", "torn", "too long"])
def test_a_palette_that_cannot_be(tmp_path: Path, palette: bytes | None) -> None:
    """A mask whose palette is missing, empty, torn or too long is a FormatError that says so."""
    data = png_of(np.ones((9, 9, 1), int), 3, 2, False, [0], 1000)
    right = chunk(b"PLTE", bytes(3) + bytes(range(1, 10)))
    assert right in data
    spoilt = data.replace(right, b"" if palette is None else chunk(b"PLTE", palette))
    with pytest.raises(ld.FormatError, match="has no palette, or a damaged one"):
        opened(archive_of(spoilt, tmp_path), 9, 9).compute()


@pytest.mark.parametrize("kind", ["16 bit", "interlaced", "interlaced 16 bit RGB"])
def test_large_ones_are_decoded_once_and_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A large mask of 16 bits or with interlacing that is read in blocks is fetched once and decoded about once."""
    mask = np.random.default_rng(0).integers(0, 2, (1000, 133)).repeat(3, axis=1)
    colour, bits = (2, 16) if "RGB" in kind else (0, 16 if "16" in kind else 8)
    samples = np.repeat(mask[..., None] * 3, SAMPLES[colour], axis=-1)
    path = archive_of(png_of(samples, colour, bits, "interlaced" in kind, [1, 2, 4], 3000), tmp_path)
    expected = np.where(mask, 255, 0)
    decoded = []
    unfilter = png_rows.unfilter
    monkeypatch.setattr(png_rows, "unfilter", lambda rows, *args: decoded.append(rows.size) or unfilter(rows, *args))
    with serve(tmp_path) as server:
        array = ld.open_human_liver_em(server.url, shape=(1, *mask.shape), labels="er", chunk_rows=100).er[0]
        for first in (900, 300, 0, 600, 305, 790):
            np.testing.assert_array_equal(array[first : first + 100].compute(), expected[first : first + 100])
        assert sum(request.stop - request.start for request in server.requests) == path.stat().st_size
    assert sum(decoded) <= (samples.size * bits // 8 + 2000) * 1.3
