"""TIFFs of other kinds than the archive's (tiles, planes, other codecs and samples) are read as tifffile does."""

import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import liver_dask as ld
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import serve

HEIGHT, WIDTH = 150, 203


def pixels(dtype: str = "u2", samples: int = 0) -> np.ndarray:
    """Smooth pixels with some noise, of whole numbers that all these types can hold."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    most = 120 if np.dtype(dtype).itemsize == 1 else 30000
    noise = np.random.default_rng(7).integers(0, most // 30, (HEIGHT, WIDTH))
    grey = (((np.sin(rows / 9) + np.cos(columns / 7) + 2) * most / 4).astype(int) + noise).astype(dtype)
    return np.repeat(grey[..., None], samples, axis=-1) if samples else grey


def write(folder: Path, data: np.ndarray, **options) -> Path:
    """Write the one slice of an archive, by default as grey and without tifffile's metadata."""
    path = folder / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, data, **{"photometric": "minisblack", "metadata": None} | options)
    return path


WINDOWS = [
    np.s_[HEIGHT - 1 : HEIGHT, WIDTH - 1 : WIDTH],
    np.s_[30:34, 60:70],
    np.s_[3:HEIGHT:37, 5:WIDTH:11],
    np.s_[100:20:-1, ::-3],
    np.s_[:HEIGHT, :WIDTH],
]


def check(source: Path | str, path: Path, windows: Sequence[tuple[slice, slice]] = WINDOWS) -> None:
    """Compare windows of the slice with what tifffile reads."""
    expected = tifffile.imread(path, key=0)
    if expected.ndim > 2:
        expected = expected[..., 0] if expected.shape[-1] < 5 else expected[0]
    raw = ld.open_human_liver_em(source, shape=(1, HEIGHT, WIDTH), chunk_rows=60).raw[0]
    for window in windows:
        found = raw[window].compute(scheduler="sync")
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, expected[window])


LOSSLESS = ["none", "lzw", "deflate", "zstd", "packbits", "lzma"]
LAYOUTS = {
    "a row a strip": {"rowsperstrip": 1},
    "7 rows a strip": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 64)},
    "tiles larger than the slice": {"tile": (256, 256)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
def test_types_codecs_and_layouts(tmp_path: Path, dtype: str, compression: str, layout: str) -> None:
    """Every combination of type, lossless codec and layout is read as tifffile reads it."""
    for predictor, byteorder in [(False, "<"), (True, ">")]:
        path = write(
            tmp_path,
            pixels(dtype),
            compression=compression,
            predictor=predictor and compression not in ("none", "packbits"),
            byteorder=byteorder,
            bigtiff=predictor,
            **LAYOUTS[layout],
        )
        check(tmp_path, path, WINDOWS[1::3])


@pytest.mark.parametrize("dtype", ["b1", "i1", "i2", "u4", "u8", "i8", "f2", "f8"])
def test_types_that_few_use(tmp_path: Path, dtype: str) -> None:
    """Booleans and rare integer and float types are read unchanged where a voxel can hold their values."""
    data = pixels("u1") > 60 if dtype == "b1" else (pixels("u2") // 16).astype("u1" if dtype == "i1" else "u2")
    data = np.minimum(data, 127 if dtype == "i1" else 2000).astype(dtype)
    check(tmp_path, write(tmp_path, data, tile=(32, 64), compression="zlib" if dtype != "b1" else None))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg", "dtype": "u1"},
        {"compression": "jpeg", "dtype": "u1", "tile": (64, 64)},
        {"compression": "jpeg2000", "tile": (64, 64)},
        {"compression": "jpegxl", "tile": (64, 64)},
        {"compression": "png", "tile": (64, 64)},
        {"compression": "webp", "dtype": "u1", "samples": 3, "tile": (64, 64), "photometric": "rgb",
         "compressionargs": {"lossless": True}},
        {"compression": "lerc", "tile": (64, 64)},
        {"compression": "zlib", "samples": 3, "planarconfig": "contig"},
        {"compression": "lzw", "samples": 3, "planarconfig": "separate", "tile": (32, 64)},
        {"compression": "lzw", "samples": 2, "planarconfig": "separate", "rowsperstrip": 3, "predictor": 2},
        {"compression": "lzw", "samples": 4, "dtype": "u1", "predictor": 2, "planarconfig": "contig"},
        {"samples": 3, "dtype": "u1", "photometric": "rgb"},
        {"bitspersample": 12, "tile": (32, 64)},
        {"bitspersample": 10},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)  # fmt: skip
def test_codecs_and_samples_that_few_use(tmp_path: Path, options) -> None:
    """Files with rare codecs, several equal samples, or 10 or 12 bits a sample are read as tifffile reads them."""
    asked = dict(options)
    samples = asked.pop("samples", 0)
    data = pixels(asked.pop("dtype", "u2"), samples)
    if "bitspersample" in asked:
        data = data % 1024
    if asked.get("planarconfig") == "separate":
        data = np.moveaxis(data, -1, 0).copy()
    path = write(tmp_path, data, **asked)
    with serve(tmp_path) as server:
        check(server.url, path)


@pytest.mark.parametrize("compression", ["none", "lzw", "zlib"])
def test_bytes_whose_bits_are_in_reverse_order(tmp_path: Path, compression: str) -> None:
    """A file whose fill order reverses the bits of each byte is read right."""
    encode = {"none": bytes, "lzw": imagecodecs.lzw_encode, "zlib": imagecodecs.zlib_encode}[compression]
    strips = [imagecodecs.bitorder_decode(encode(row.tobytes())) for row in pixels()]
    path = write(
        tmp_path, iter(strips), shape=(HEIGHT, WIDTH), dtype="u2", compression=compression, rowsperstrip=1,
        extratags=[(65000, 3, 1, 2, True)],
    )  # fmt: skip
    entry, of_fill_order = (struct.pack("<HHI", tag, 3, 1) for tag in (65000, 266))  # tifffile does not write it
    path.write_bytes(path.read_bytes().replace(entry, of_fill_order))
    assert np.array_equal(tifffile.imread(path), pixels())
    check(tmp_path, path)


def test_only_the_touched_tiles_are_fetched_and_it_says_so_once(tmp_path: Path, caplog) -> None:
    """A window fetches only the tiles that it touches, and one log record says that tiles are slower than strips."""
    path = write(tmp_path, np.random.default_rng(0).integers(0, 1 << 16, (1024, 1024), np.uint16), tile=(64, 64))
    with serve(tmp_path) as server, caplog.at_level(logging.INFO, "liver_dask"):
        raw = ld.open_human_liver_em(server.url, shape=(1, 1024, 1024)).raw[0]
        np.testing.assert_array_equal(raw[70:80, 60:70], tifffile.imread(path)[70:80, 60:70])
        first = server.bytes_sent
        assert first <= 2 * 64 * 64 * 2 + 8000
        raw[500:510, 500:510].compute()
        assert server.bytes_sent - first <= 4 * 64 * 64 * 2
    told = [record.getMessage() for record in caplog.records if "slower" in record.getMessage()]
    assert len(told) == 1
    assert "found layout tiles, expected strips" in told[0]


@pytest.mark.parametrize(
    ("dtype", "value", "told"),
    [
        ("i4", 65536, "65536"),
        ("i4", -1, "-1"),
        ("i1", -7, "-7"),
        ("u8", 2**63 + 1, "9223372036854775809"),
        ("i8", -(2**40), "-1099511627776"),
        ("f4", 0.5, "0.5"),
        ("f4", np.nan, "nan"),
        ("f8", np.inf, "inf"),
        ("f8", 65535.0001, "65535.0001"),
        ("f4", -0.25, "-0.25"),
    ],
)
def test_a_value_that_no_voxel_can_hold(tmp_path: Path, dtype: str, value, told: str) -> None:
    """A value that is no whole number of 0 to 65535 is an error that names its row and column; other rows are read."""
    data = pixels("u1").astype(dtype)
    data[77, 101] = value
    for options in ({"tile": (32, 64)}, {"rowsperstrip": 1, "compression": "zlib"}):
        write(tmp_path, data, **options)
        raw = ld.open_human_liver_em(tmp_path, shape=(1, HEIGHT, WIDTH)).raw[0]
        np.testing.assert_array_equal(raw[:77], data[:77].astype("u2"))
        with pytest.raises(
            ld.FormatError, match=rf"row 77, column 101 is {told}, which is no whole number of 0 to 65535"
        ):
            raw.compute()


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_are_no_grey(tmp_path: Path, planar: str) -> None:
    """A pixel whose samples differ is an error that names its row and column; rows of equal samples are read."""
    data = pixels("u2", 3)
    data[77, 101, 1] += 1
    if planar == "separate":
        data = np.moveaxis(data, -1, 0).copy()
    write(tmp_path, data, planarconfig=planar, tile=(32, 64))
    raw = ld.open_human_liver_em(tmp_path, shape=(1, HEIGHT, WIDTH)).raw[0]
    raw[:70].compute()
    with pytest.raises(ld.FormatError, match="the 3 samples of row 77, column 101 are not all equal"):
        raw.compute()


def test_a_palette_is_no_grey(tmp_path: Path) -> None:
    """A slice whose values are colours of a palette is a FormatError."""
    colours = np.arange(3 * 256, dtype="u2").reshape(3, 256)
    write(tmp_path, pixels("u1"), photometric="palette", colormap=colours)
    with pytest.raises(ld.FormatError, match="colours of a palette"):
        ld.open_human_liver_em(tmp_path, shape=(1, HEIGHT, WIDTH)).raw.compute()


@pytest.mark.parametrize("compression", ["none", "lzw", "zlib", "zstd", "packbits", "jpeg2000"])
def test_a_damaged_tile_is_one_sentence(tmp_path: Path, compression: str) -> None:
    """A damaged tile is an error of one line that names its rows and columns; the rows above it are read."""
    path = write(tmp_path, pixels(), tile=(32, 64), compression=compression)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[6], page.databytecounts[6]  # rows 32-63, columns 128-191
        counts_at, size = page.tags["TileByteCounts"].valueoffset, page.tags["TileByteCounts"].dtype_name
    data = bytearray(path.read_bytes())
    if compression == "none":  # cut
        width = {"SHORT": 2, "LONG": 4}[size]
        data[counts_at + 6 * width : counts_at + 7 * width] = (count - 2).to_bytes(width, "little")
    else:
        data[offset : offset + count] = np.random.default_rng(0).bytes(count)
    path.write_bytes(data)
    raw = ld.open_human_liver_em(tmp_path, shape=(1, HEIGHT, WIDTH)).raw[0]
    assert raw[:32].compute().shape == (32, WIDTH)
    with pytest.raises(
        ld.FormatError, match=r"rows 32-63, columns 128-191 cannot be decoded \(.*\); the file is dam"
    ) as told:
        raw.compute()
    assert "\n" not in str(told.value)
    assert compression != "lzw" or "a code that cannot be" in str(told.value), "a decoder that may end the process"


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.sampled_from([None, (16, 16), (16, 48), (32, 16)]),
    samples=st.sampled_from([0, 2, 3]),
    planar=st.booleans(),
    compression=st.sampled_from(["lzw", "zlib", "zstd", "none"]),
)
def test_any_window_of_any_layout(
    tmp_path_factory: pytest.TempPathFactory,
    data,
    height: int,
    width: int,
    tile,
    samples: int,
    planar: bool,
    compression,
) -> None:
    """Any window of strips or tiles of any size, with or without planes, has the right voxels."""
    folder = tmp_path_factory.mktemp("layout")
    grey = np.random.default_rng(height * width).integers(0, 1 << 16, (height, width), np.uint16)
    pixels = grey if not samples else np.stack([grey] * samples, axis=0 if planar else -1)
    layout = {"tile": tile} if tile else {"rowsperstrip": data.draw(st.integers(1, height))}
    separate = {"planarconfig": "separate" if planar else "contig"} if samples else {}
    write(folder, pixels, compression=compression, **layout, **separate)
    raw = ld.open_human_liver_em(folder, shape=(1, height, width)).raw[0]
    rows = slice(*sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height)))))
    columns = slice(*sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width)))))
    np.testing.assert_array_equal(raw[rows, columns].compute(scheduler="sync"), grey[rows, columns])
    np.testing.assert_array_equal(raw[:: height // 3 + 1].compute(scheduler="sync"), grey[:: height // 3 + 1])


def test_an_8_bit_palette_is_no_grey(tmp_path: Path) -> None:
    """An 8-bit image with a palette is a FormatError, also in an archive whose voxels have 8 bits."""
    pixels = Image.fromarray(np.arange(600, dtype="uint8").reshape(20, 30)).convert("P")
    pixels.save(tmp_path / "0.tif", compression="tiff_lzw")
    raw = ld.Variable(name="raw", files="{z}.tif", kind="image")
    archive = ld.Archive(name="mine", url=str(tmp_path), shape=(1, 20, 30), variables=(raw,))
    with pytest.raises(ld.FormatError, match="colours of a palette"):
        ld.open_archive(archive).raw.compute()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"imagej": True},
        {"metadata": None},
        {"truncate": True},
        {"ome": True},
        {"bigtiff": True, "compression": "lzw", "rowsperstrip": 1},
        {"tile": (16, 16)},
    ],
    ids=str,
)
def test_a_stack_is_no_slice(tmp_path: Path, options: dict[str, Any]) -> None:
    """A file with several images is refused, and not read as its first image."""
    tifffile.imwrite(tmp_path / "0.tif", np.ones((4, 20, 30), np.uint8), photometric="minisblack", **options)
    with pytest.raises(ld.FormatError, match=r"0\.tif: holds several images, and a slice is one image"):
        ld.open_archive(of_bytes(tmp_path)).raw.compute()


def test_smaller_copies_and_masks_are_no_slices(tmp_path: Path) -> None:
    """A file with an image, a reduced copy and a transparency mask is read as its image."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
    with tifffile.TiffWriter(tmp_path / "0.tif") as file:
        file.write(pixels, metadata=None)
        file.write(pixels[::2, ::2], subfiletype=1, metadata=None)
        file.write(pixels > 9, subfiletype=4, metadata=None)
    np.testing.assert_array_equal(ld.open_archive(of_bytes(tmp_path)).raw[0], pixels)


@pytest.mark.parametrize("between", [1, 4])
def test_an_image_after_a_copy_or_a_mask_is_a_second_image(tmp_path: Path, between: int) -> None:
    """A file with an image, a reduced copy or a mask, and another image is refused."""
    pixels = np.ones((20, 30), np.uint8)
    with tifffile.TiffWriter(tmp_path / "0.tif") as file:
        file.write(pixels, metadata=None)
        file.write(pixels > 0 if between == 4 else pixels[::2, ::2], subfiletype=between, metadata=None)
        file.write(pixels, metadata=None)
    with pytest.raises(ld.FormatError, match="holds several images"):
        ld.open_archive(of_bytes(tmp_path)).raw.compute()


def of_bytes(folder: Path) -> ld.Archive:
    """An archive of one slice of 20 x 30 bytes."""
    raw = ld.Variable(name="raw", files="{z}.tif", kind="image")
    return ld.Archive(name="mine", url=str(folder), shape=(1, 20, 30), variables=(raw,))
