"""Every supported dialect of TIFF and PNG, whole and in windows, is read as tifffile and Pillow read it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import liver_dask as ld
from helpers.masks import chunk, read_by_pillow
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import png_file, png_rows, png_stream
from liver_dask.archive.formats.tiff_requests import LARGEST_REQUEST, SMALLEST_REQUEST, plan_pieces
from liver_dask.archive.remote.ranges import MOST_OF_A_REQUEST
from liver_dask.demo import RangeRequestHandler, serve

HEIGHT, WIDTH = 530, 203


def em(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Pixels like those of EM: smooth enough for a predictor to matter, noisy enough for all bytes to occur."""
    random = np.random.default_rng(7)
    rows, columns = np.mgrid[:height, :width]
    return ((np.sin(rows / 9) + np.cos(columns / 7) + 2) * 8000 + random.integers(0, 900, (height, width))).astype("u2")


def blobs(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (np.sin(rows / 11 + np.cos(columns / 13) * 2) + np.cos(columns / 17) > 0.6).astype("u1") * 255


def check_windows(folder: Path, name: str, expected: np.ndarray) -> None:
    """Compare the whole slice and windows at its corners, in its middle and across blocks, all read over HTTP."""
    height, width = expected.shape
    with serve(folder) as server:
        ds = ld.open_human_liver_em(server.url, shape=(1, height, width), chunk_rows=100, labels=["er"])
        array = ds[name][0]
        for rows, columns in [
            (slice(height - 1, height), slice(width - 1, width)),
            (slice(95, 105), slice(0, width)),
            (slice(0, 1), slice(0, 1)),
            (slice(3, height, 37), slice(5, width, 11)),
            (slice(300, 130, -1), slice(None, None, -3)),
            (slice(0, height), slice(0, width)),
        ]:
            np.testing.assert_array_equal(array[rows, columns].to_numpy(), expected[rows, columns])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("rows_per_strip", [1, 8, 530])
def test_tiffs_with_the_directory_first(
    tmp_path: Path, byteorder: str, bigtiff: bool, compression: str | None, predictor: int, rows_per_strip: int
) -> None:
    """A TIFF with its directory first is read as tifffile reads it; of 530 rows the last strip of 8 has only 2."""
    path = tmp_path / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir()
    tifffile.imwrite(
        path, em(), byteorder=byteorder, bigtiff=bigtiff, compression=compression, rowsperstrip=rows_per_strip,
        predictor=predictor if compression else 1,
    )  # fmt: skip
    check_windows(tmp_path, "raw", tifffile.imread(path))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"])
@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("rows_per_strip", [1, 8])
def test_tiffs_of_libtiff(tmp_path: Path, compression: str, predictor: int, rows_per_strip: int) -> None:
    """A TIFF of libtiff, with the directory last as in the archive, is read as tifffile reads it."""
    path = tmp_path / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir()
    tags = {278: rows_per_strip} | ({317: predictor} if compression != "raw" else {})
    Image.fromarray(em()).save(path, compression=compression, tiffinfo=tags)
    check_windows(tmp_path, "raw", tifffile.imread(path))


def test_a_large_bigtiff_index_costs_three_requests_at_most(tmp_path: Path) -> None:
    """A window of a large BigTIFF with its directory first takes at most four requests, those of its index included."""
    path = tmp_path / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir()
    tifffile.imwrite(path, em(9000, 20), bigtiff=True, compression="lzw", rowsperstrip=1, predictor=2)
    with serve(tmp_path) as server:
        ds = ld.open_human_liver_em(server.url, shape=(1, 9000, 20))
        np.testing.assert_array_equal(ds.raw[0, 5000:5003], em(9000, 20)[5000:5003])
        assert len(server.requests) <= 4


def pack(pixels: np.ndarray, bits: int) -> bytes:
    """Unfiltered PNG rows of samples of less than a byte."""
    per_byte = 8 // bits
    padded = np.pad(pixels, ((0, 0), (0, -pixels.shape[1] % per_byte))).reshape(len(pixels), -1, per_byte)
    return b"".join(b"\0" + row.tobytes() for row in (padded << np.arange(8 - bits, -1, -bits)).sum(-1).astype("u1"))


def write_png(path: Path, kind: str, mask: np.ndarray) -> None:
    """Write a mask with Pillow in the given mode, or, with samples of 2 bits, by hand."""
    opaque = np.full_like(mask, 200)
    match kind:
        case "grey":
            image = Image.fromarray(mask)
        case "grey of 0 and 1":
            image = Image.fromarray(mask // 255)
        case "1 bit":
            image = Image.fromarray(mask).convert("1")
        case "grey and alpha":
            image = Image.merge("LA", (Image.fromarray(mask), Image.fromarray(opaque)))
        case "RGB":
            image = Image.fromarray(np.stack([mask] * 3, axis=-1))
        case "red RGBA":
            image = Image.fromarray(np.stack([mask, mask * 0, mask * 0, opaque], axis=-1))
        case "palette" | "palette of 4 bits":
            image = Image.fromarray(mask // 255).convert("P")
            colours = 2 if kind == "palette" else 12
            image.putpalette([0, 0, 0, 0, 200, 60] + [9] * 3 * (colours - 2))
        case "2 bits":
            header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 2, 0, 0, 0, 0)
            data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pack(mask // 85, 2))) + chunk(b"IEND", b"")
            path.write_bytes(png_stream.SIGNATURE + data)
            return
    image.save(path, optimize=kind == "palette")


KINDS = [
    "grey", "grey of 0 and 1", "1 bit", "grey and alpha", "RGB", "red RGBA", "palette", "palette of 4 bits", "2 bits"
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pngs(tmp_path: Path, kind: str) -> None:
    """A PNG of any mode gives the same mask as Pillow, whole and in windows."""
    path = tmp_path / EMPIAR_13356.path("er", 0)
    path.parent.mkdir()
    write_png(path, kind, blobs())
    expected = read_by_pillow(path)
    assert 0 < expected.mean() < 255
    check_windows(tmp_path, "er", expected)


@pytest.mark.parametrize("cut", [1, 7, 1000, 10**9], ids=lambda n: f"IDAT of {n}")
def test_image_data_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """A mask is read right however its image data are cut into IDAT chunks and requests."""
    path = tmp_path / EMPIAR_13356.path("er", 0)
    path.parent.mkdir()
    mask = np.random.default_rng(1).integers(0, 2, (HEIGHT, WIDTH), np.uint8) * np.uint8(255)
    Image.fromarray(mask).save(path)
    data = path.read_bytes()
    at, image = 8, b""
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IDAT":
            image += data[at + 8 : at + 8 + length]
        at += 12 + length
    parts = [image[i : i + cut] for i in range(0, len(image), cut)]
    idats = b"".join(chunk(b"IDAT", part) for part in (parts[0], b"", *parts[1:]))
    path.write_bytes(data[:33] + chunk(b"tEXt", b"a" * 3000) + idats + chunk(b"IEND", b""))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), mask)
    monkeypatch.setattr(png_file, "FIRST_REQUEST", 2048)
    monkeypatch.setattr(png_file, "SMALLEST_REQUEST", 100)
    check_windows(tmp_path, "er", mask)


def test_a_mask_read_block_by_block_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is read in 20 blocks, from the top or from the bottom, is fetched once and decoded about once."""
    path = tmp_path / EMPIAR_13356.path("er", 0)
    path.parent.mkdir()
    mask = blobs(3000, 100)
    Image.fromarray(mask).save(path)
    decoded = []
    unfilter = png_rows.unfilter
    monkeypatch.setattr(png_rows, "unfilter", lambda rows, *args: decoded.append(len(rows)) or unfilter(rows, *args))
    for order in (1, -1):
        decoded.clear()
        with serve(tmp_path) as server:
            array = ld.open_human_liver_em(server.url, shape=(1, 3000, 100), labels="er", chunk_rows=3000).er[0]
            for first in range(0, 3000, 150)[::order]:
                np.testing.assert_array_equal(array[first : first + 150].compute(), mask[first : first + 150])
            assert sum(request.stop - request.start for request in server.requests) == path.stat().st_size
        assert sum(decoded) <= 3000 * 1.15


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_windows_of_one_mask(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any four windows of one mask, read one after another, have the right pixels."""
    folder = tmp_path_factory.mktemp("mask")
    path = folder / EMPIAR_13356.path("er", 0)
    path.parent.mkdir()
    mask = blobs()
    Image.fromarray(mask).save(path)
    array = ld.open_human_liver_em(folder, shape=(1, HEIGHT, WIDTH), labels="er").er[0]
    for _ in range(4):
        rows = sorted(data.draw(st.lists(st.integers(0, HEIGHT), min_size=2, max_size=2, unique=True)))
        columns = sorted(data.draw(st.lists(st.integers(0, WIDTH), min_size=2, max_size=2, unique=True)))
        step = data.draw(st.sampled_from([1, 1, 3, 300]))
        window = np.s_[rows[0] : rows[1] : step, slice(*columns)]
        np.testing.assert_array_equal(array[window].compute(scheduler="sync"), mask[window])


@settings(max_examples=300, deadline=None)
@given(
    strips=st.lists(
        st.tuples(st.sampled_from([0, 0, 9, 10**6]), st.sampled_from([1, 9, 10**4, 2 * SMALLEST_REQUEST])),
        min_size=1,
        max_size=500,
    ),
    connections=st.integers(1, 20),
    shuffled=st.booleans(),
)
def test_requests_hold_every_strip_once_and_no_more_than_a_server_takes(strips, connections: int, shuffled) -> None:
    """Planned requests cover each strip once, in order, with limited bytes and a limited number of byte ranges."""
    gaps, counts = (np.array(numbers, np.int64) for numbers in zip(*strips, strict=True))
    offsets = 8 + np.cumsum(gaps) + np.cumsum(counts) - counts
    if shuffled:
        offsets, counts = offsets[::-1].copy(), counts[::-1].copy()
    pieces = plan_pieces(offsets, counts, connections)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == len(offsets)
    for piece in pieces:
        starts, stops = offsets[piece], (offsets + counts)[piece]
        assert (starts[1:] >= stops[:-1]).all(), "ranges of a request ascend"
        assert len(starts) == 1 or counts[piece].sum() <= LARGEST_REQUEST
        assert 1 + (starts[1:] > stops[:-1]).sum() <= MOST_OF_A_REQUEST


@pytest.mark.slow
def test_a_window_deep_in_a_mask_fetches_little_more_than_its_prefix(tmp_path: Path) -> None:
    """A window deep in a mask fetches little more than the file up to its last row, in at most 18 requests."""
    path = tmp_path / EMPIAR_13356.path("er", 0)
    path.parent.mkdir()
    mask = np.random.default_rng(3).integers(0, 2, (6000, 4000), np.uint8) * np.uint8(255)
    Image.fromarray(mask).save(path)
    size = path.stat().st_size
    with serve(tmp_path) as server:
        er = ld.open_human_liver_em(server.url, shape=(1, 6000, 4000), labels="er").er[0]
        np.testing.assert_array_equal(er[2000:2100, 7:99], mask[2000:2100, 7:99])
        chunk = 66_000  # Pillow's; its checksum is at its end, and its length is known only once it begins
        assert server.bytes_sent <= size * 2100 / 6000 * 1.08 + 0.01 * size + 2 * chunk
        assert len(server.requests) <= 18


@pytest.mark.parametrize("columns", [slice(None), slice(10, 400)])
@pytest.mark.parametrize("chunk_rows", [64, 1024])
def test_a_byte_that_changed_on_its_way_gives_no_pixel(tmp_path: Path, columns: slice, chunk_rows: int) -> None:
    """A byte that changes in transit is noticed by the chunk's checksum and fetched again; the pixels are right."""
    mask = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (1024, 420))
    path = tmp_path / EMPIAR_13356.path("er", 0)
    path.parent.mkdir()
    rows = b"".join(b"\0" + row.tobytes() for row in mask)
    header = struct.pack(">IIBBBBB", 420, 1024, 8, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")  # a changed pixel still inflates
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    np.testing.assert_array_equal(Image.open(path), mask)

    class Flips(RangeRequestHandler):
        times = 0

        def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
            if start <= 50_000 < stop and not type(self).times:
                type(self).times += 1
                body = body[: 50_000 - start] + bytes([body[50_000 - start] ^ 0xFF]) + body[50_001 - start :]
            super().answer(body, start, stop, size, etag)

    with serve(tmp_path, Flips) as server:
        ds = ld.open_human_liver_em(server.url, shape=(1, 1024, 420), labels="er", chunk_rows=chunk_rows)
        np.testing.assert_array_equal(ds.er[0, :, columns], mask[:, columns])
        assert Flips.times == 1


def test_rows_of_a_strip_that_is_not_compressed_are_read_alone(tmp_path: Path) -> None:
    """A window of one large uncompressed strip fetches only about the rows that it needs, not the whole strip."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (400, 500), "uint16")
    path = tmp_path / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir()
    tifffile.imwrite(path, pixels, rowsperstrip=400)
    with serve(tmp_path) as server:
        ds = ld.open_human_liver_em(server.url, shape=(1, *pixels.shape), labels=[])
        np.testing.assert_array_equal(ds.raw[0, 300:320, 100:200], pixels[300:320, 100:200])
        sent = sum(request.sent for request in server.requests)
    assert sent < 20 * 500 * 2 + 10_000
