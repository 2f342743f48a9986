"""Wrong arguments and damaged files are reported early, in one sentence, by an error that builtins also catch."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import liver_dask as ld
from helpers.archive import SHAPE, write_raw
from helpers.hostile import HugeWithoutRanges, NoRanges
from helpers.masks import chunk
from helpers.processes import NewProcesses
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.geometry import DIMS, check_shape, check_voxel_size, crop, held_box
from liver_dask.core.kinds import RAW
from liver_dask.demo import ArchiveServer, serve

HEIGHT, WIDTH = 40, 50


@pytest.fixture
def own_archive(tmp_path: Path) -> Path:
    """An archive of one slice that a test may damage."""
    random = np.random.default_rng(0)
    for name in (RAW, *EMPIAR_13356.labels):
        path = tmp_path / EMPIAR_13356.path(name, 0)
        path.parent.mkdir()
        if name == RAW:
            pixels = random.integers(0, 60000, (HEIGHT, WIDTH), np.uint16)
            write_raw(path, pixels)
        else:
            Image.fromarray(random.integers(0, 2, (HEIGHT, WIDTH), np.uint8) * 255).save(path)
    return tmp_path


@pytest.fixture
def own_server(own_archive: Path) -> Iterator[ArchiveServer]:
    with serve(own_archive) as running:
        yield running


def opened(url: object):
    return ld.open_human_liver_em(url, shape=(1, HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((0, 10, 0, 10, 0, 11), "z is 0..11, but there is only 0..10"),
        ((-1, 10, 0, 10, 0, 1), "x is -1..10"),
        ((5, 5, 0, 10, 0, 1), "holds no voxels: x_max=5"),
        ((0, 10, 20, 10, 0, 1), "is reversed along y: y_max=10"),
        ((0, 10, 0, 10, 0), r"has 5 numbers; give 6: \(x_min, x_max, "),
        ((0, 10, 0, 10, 0, 1.5), r"whole numbers \(x_min, x_max, "),
        ((True, 5, 0, 5, False, 1), r"bounding_box=\(True, 5, .* whole numbers \(x_min, x_max, "),
        (7, "whole numbers"),
        (b"012345", "whole numbers"),
        ({0, 1, 2, 3, 4, 5}, "whole numbers"),
        (dict.fromkeys(range(6)), "whole numbers"),
        (np.zeros((9, 9, 9)), r"bounding_box=array\([^\n]{,60}\) must be 6 whole numbers"),
        (range(9999), r"bounding_box=\(0, 1, 2, 3, 4, 5, \.\.\.\) has 9999 numbers"),
    ],
)
def test_a_box_that_makes_no_sense(archive: Path, tmp_path: Path, box, told: str) -> None:
    """A wrong bounding box is refused before anything is written."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with pytest.raises(ValueError, match=told):
        ld.to_zarr(ds, tmp_path / "crop.zarr", bounding_box=box)
    with pytest.raises(ld.InvalidArgumentError, match=told):
        ld.get_human_liver_em_data(tmp_path, box, download=True, source=archive, shape=SHAPE)
    assert list(tmp_path.iterdir()) == []


def of_columns(x: Sequence[object]) -> xr.Dataset:
    """A Dataset of 4 slices of 5 rows with this coordinate of its columns; each voxel has another value."""
    shape = 4, 5, len(x)
    coordinates = {"z": range(7, 11), "y": range(80, 85), "x": x}
    return xr.Dataset({"raw": (DIMS, np.arange(np.prod(shape)).reshape(shape))}, coordinates)


@pytest.mark.parametrize(
    "x", [[0.5, 1.5], [True, False], ["a", "b"], np.array(["2026", "2027"], "M8[ns]"), [1, 3], [2, 1]]
)
def test_coordinates_in_which_no_box_is_defined(x: Sequence[object]) -> None:
    """A box needs coordinates that are consecutive whole numbers, and the error names the one that is not."""
    for ds in (of_columns(x), of_columns([1, 2]).drop_vars("x")):
        with pytest.raises(ld.InvalidArgumentError, match="'x' is not whole numbers that run one by one"):
            crop(ds, (0, 1, 80, 81, 7, 8))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint64"])
def test_a_box_in_coordinates_of_any_integers(dtype: str) -> None:
    """A box is that of the coordinates, also where the end of a box is no number of their data type."""
    ds = of_columns(np.arange(100, 256, dtype=dtype))
    assert held_box(ds) == (100, 256, 80, 85, 7, 11)
    assert held_box(ds).shape == ds.raw.shape
    part = crop(ds, (250, 254, 81, 84, 8, 10))
    xr.testing.assert_identical(part, ds.sel(z=[8, 9], y=[81, 82, 83], x=[250, 251, 252, 253]))
    assert crop(ds, None) is ds


def test_a_box_of_no_voxels() -> None:
    """A Dataset without voxels has no box, and no part of it is taken."""
    for of in (held_box, lambda ds: crop(ds, None)):
        with pytest.raises(ld.InvalidArgumentError, match=r"holds no voxels: its sizes are .*'x': 0"):
            of(of_columns([]))


def test_the_least_and_the_largest_sizes() -> None:
    """Axes of one voxel and of 2^31 - 1, and voxels of 0.001 nm and of 1 m, are taken."""
    assert check_shape((1, 1, 2**31 - 1)) == (1, 1, 2**31 - 1)
    assert check_voxel_size([1e-3, 0.5, 1e9]) == (1e-3, 0.5, 1e9)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"labels": ["mito", "golgi"]}, "Unknown label 'golgi'; the classes of EMPIAR-13356 are mito, er"),
        ({"chunk_rows": -5}, "chunk_rows=-5"),
        ({"chunk_rows": 0}, "chunk_rows=0"),
        ({"connections": 0}, "connections=0"),
        ({"connections": "many"}, "connections='many'"),
        ({"shape": (0, 5, 5)}, "without voxels"),
        ({"shape": (5, 5)}, r"has 2 numbers; give 3: \(z, y, x\)"),
        ({"shape": (5, 5, 2**31)}, "too long"),
        ({"shape": {5, 6, 7}}, "shape=.* must be 3 whole numbers"),
        ({"voxel_size_nm": (8, 8)}, "three numbers"),
        ({"voxel_size_nm": (0, 8, 8)}, "above 0"),
        ({"voxel_size_nm": (8, 8, float("nan"))}, "above 0"),
        ({"voxel_size_nm": (8, 8, float("inf"))}, "not the size of a voxel in nm"),
        ({"voxel_size_nm": (9e-4, 8, 8)}, "not the size of a voxel in nm"),
        ({"voxel_size_nm": "888"}, "three numbers"),
        ({"source": "nonsense://x"}, "cannot be opened"),
        ({"source": "http://"}, "names no host"),
        ({"source": "http://[::1/a"}, "neither a URL nor a folder"),
        ({"source": 3}, "neither a URL nor a folder"),
        ({"source": "zip://::http://x/y.zip"}, "chain of URLs"),
        ({"labels": 5}, "must be names"),
    ],
)
def test_options_that_make_no_sense(options, told: str) -> None:
    """A wrong option is an error as soon as the archive is opened."""
    with pytest.raises(ValueError, match=told):
        ld.open_human_liver_em(**options)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Opening a folder that does not exist is a FileNotFoundError."""
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ld.open_human_liver_em(tmp_path / "nowhere")


def test_a_missing_slice_names_file_slice_and_rows(own_server: ArchiveServer) -> None:
    """The error about a missing file names the file, the slice and the rows."""
    ds = ld.open_human_liver_em(own_server.url, shape=(3, HEIGHT, WIDTH))
    with pytest.raises(FileNotFoundError, match=r"raw, slice 2, rows 3-6: .*humanliver_raw_002\.tif: there is no such"):
        ds.raw[2, 3:7].compute()


def test_a_missing_class_lists_the_folders_that_are_there(own_server: ArchiveServer, own_archive: Path) -> None:
    """The error about a class without a folder lists the folders that the archive has."""
    for url in (own_server.url, own_archive):
        ds = ld.open_human_liver_em(url, shape=(1, HEIGHT, WIDTH), labels=["sinusoid"])
        with pytest.raises(ld.SliceNotFoundError, match=r"folders: humanliver_er_mask, humanliver_mito_mask, .*raw"):
            ds.sinusoid.compute()


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection fails after 6 tries, and an unknown host is an error that names the host."""
    monkeypatch.setattr("liver_dask.archive.remote.retry.pause", lambda seconds: None)
    ds = ld.open_human_liver_em("http://127.0.0.1:9", shape=SHAPE)
    with pytest.raises(OSError, match=r"raw, slice 0, rows 0-0: .*gave up after 6 tries"):
        ds.raw[0, 0].compute()
    ds = ld.open_human_liver_em("http://no-such-host.invalid", shape=SHAPE)
    with pytest.raises(ld.RemoteError, match=r"there is no host no-such-host\.invalid"):
        ds.raw[0, 0].compute()


def test_small_files_work_without_ranges_with_one_warning(archive: Path, voxels) -> None:
    """From a server that ignores byte ranges each small file is fetched once, and one warning is given."""
    with serve(archive, NoRanges) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.warns(UserWarning, match="ignores byte ranges") as told:
            part = ds.isel(z=[0, 1, 2, 0]).compute(scheduler="sync").isel(z=slice(3))
        for name in voxels:
            np.testing.assert_array_equal(part[name], voxels[name][:3])
    assert len(told) == 1
    assert len(server.requests) == 12, "a file was sent more than once"


def test_a_large_file_without_ranges_is_refused_before_it_is_sent(archive: Path) -> None:
    """If a server ignores byte ranges, a large file is refused after one request, with its size."""
    with serve(archive, HugeWithoutRanges) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.RangeNotSupportedError, match=r"slice 0, rows 5-8: .*ignores byte ranges.* \(880 MB\)"):
            ds.raw[0, 5:9].compute()
        assert len(server.requests) == 1


def spoil(path: Path, how: str) -> None:
    """Damage a file, or replace it by another one."""
    data = path.read_bytes()
    match how:
        case "empty":
            path.write_bytes(b"")
        case "cut in the data":
            path.write_bytes(data[: len(data) // 2])
        case "cut at the end":
            path.write_bytes(data[:-60])
        case "not of this kind":
            path.write_bytes(b"<html>404</html>" * 100)
        case "noise":
            noise = np.random.default_rng(0).integers(0, 256, len(data) // 3, np.uint8).tobytes()
            path.write_bytes(data[: len(data) // 3] + noise + data[len(data) // 3 + len(noise) :])
        case "another size":
            Image.fromarray(np.zeros((HEIGHT + 1, WIDTH), np.uint16 if path.suffix == ".tif" else np.uint8)).save(path)
        case "a photo":
            Image.fromarray(np.tile(np.array([20, 30, 40], np.uint8), (HEIGHT, WIDTH, 1))).save(path)
        case "floats":
            Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)).save(path)
        case "a million pixels wide":
            header = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 0, 0, 0, 0)
            path.write_bytes(
                data[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + data[-12:]
            )
        case "not interlaced as it says":
            header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 1)
            path.write_bytes(data[:8] + chunk(b"IHDR", header) + data[33:])


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "cut in the data",
        "cut at the end",
        "not of this kind",
        "another size",
        "a photo",
        "floats",
    ],
)
def test_a_bad_tiff_is_one_sentence_and_leaves_nothing(own_archive: Path, tmp_path: Path, how: str) -> None:
    """A damaged or foreign TIFF is an error of one sentence, and an export of it leaves no finished store."""
    spoil(own_archive / EMPIAR_13356.path("raw", 0), how)
    check_refusal(own_archive, "raw", tmp_path / "out" / "crop.zarr")


@pytest.mark.parametrize(
    "how",
    [
        "empty", "cut in the data", "cut at the end", "not of this kind", "noise", "another size",
        "a million pixels wide", "not interlaced as it says",
    ],
)  # fmt: skip
def test_a_bad_png_is_one_sentence_and_leaves_nothing(own_archive: Path, tmp_path: Path, how: str) -> None:
    """A damaged or foreign PNG is an error of one sentence, and an export of it leaves no finished store."""
    pixels_limit = Image.MAX_IMAGE_PIXELS
    spoil(own_archive / EMPIAR_13356.path("mito", 0), how)
    check_refusal(own_archive, "mito", tmp_path / "out" / "crop.zarr")
    assert pixels_limit == Image.MAX_IMAGE_PIXELS, "a safety of the whole process was switched off"


def check_refusal(archive: Path, name: str, out: Path) -> None:
    with serve(archive) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = opened(server.url)
        with pytest.raises(ld.LiverDaskError) as told:
            ds[name].compute()
        text = str(told.value)
        assert f"{name}, slice 0, rows 0-{HEIGHT - 1}: {server.url}/{EMPIAR_13356.path(name, 0)}" in text
        assert "\n" not in text
        with pytest.raises(type(told.value)) as refused:
            ld.to_zarr(ds, out, progress=False)
    there = list(out.parent.iterdir()) if out.parent.exists() else []
    kept = out.with_name(out.name + ".partial")
    assert there == [] or (there == [kept] and f"is kept in {kept}" in refused.value.__notes__[0])


def test_a_damaged_strip_names_its_rows(own_archive: Path) -> None:
    """A strip that ends early is an error that names its rows; the rows after it are still read."""
    import tifffile

    path = own_archive / EMPIAR_13356.path("raw", 0)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes([0x80, 0x40]) * (count // 2) + data[offset : offset + count % 2]  # LZW's end
    path.write_bytes(data)
    with pytest.raises(ld.FormatError, match="the strip of rows 7-7"):
        opened(own_archive).raw.compute()
    assert opened(own_archive).raw[0, 8:].compute().shape == (HEIGHT - 8, WIDTH)


@pytest.mark.parametrize("path", ["", ".", "/", "~nobody-of-this-name/x", "a\0b", "x" * 300, None])
def test_a_path_that_is_none(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path) -> None:
    """A path that cannot be that of a store is an error, and nothing is written into the current folder."""
    monkeypatch.chdir(tmp_path)
    if path == ".":
        (tmp_path / "mine").write_text("")
    with pytest.raises((ld.InvalidArgumentError, ld.StoreExistsError)):
        ld.to_zarr(ld.open_human_liver_em(archive, shape=SHAPE), path, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == (["mine"] if path == "." else [])


@pytest.mark.parametrize("what", ["a file", "a folder", "a zarr of another", "an unfinished other store", "a url"])
def test_an_output_path_that_holds_something_else(archive: Path, tmp_path: Path, what: str) -> None:
    """An export to a path that holds something else, or to a web server, is refused and changes no file."""
    import zarr

    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    box = (0, 50, 0, 50, 0, 2)
    path: Path | str = tmp_path / "crop.zarr"
    match what:
        case "a file":
            (tmp_path / "crop.zarr").write_text("mine")
        case "a folder":
            (tmp_path / "crop.zarr" / "mine").mkdir(parents=True)
        case "a zarr of another":
            zarr.create_array(str(path) + "/raw", shape=(2, 50, 50), dtype="u2")
        case "an unfinished other store":
            ld.to_zarr(ds, path, bounding_box=(0, 50, 0, 51, 0, 2), progress=False)
            Path(path).rename(tmp_path / "crop.zarr.partial")
        case "a url":
            path = "https://host/crop.zarr"
    before = sorted(entry.name for entry in tmp_path.rglob("*"))
    with pytest.raises(ld.InvalidArgumentError if what == "a url" else FileExistsError):
        ld.to_zarr(ds, path, bounding_box=box, progress=False)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == before


def test_an_output_folder_that_cannot_be_made(archive: Path, tmp_path: Path) -> None:
    """An output folder that cannot be created is an InvalidArgumentError."""
    (tmp_path / "file").write_text("")
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with pytest.raises(ld.InvalidArgumentError, match="Cannot write"):
        ld.to_zarr(ds, tmp_path / "file" / "crop.zarr", progress=False)


def test_a_file_that_was_mended_is_read_anew(own_archive: Path) -> None:
    """After a damaged file is repaired, the old Dataset reports a changed source and a new one reads the file."""
    path = own_archive / EMPIAR_13356.path("er", 0)
    good = path.read_bytes()
    spoil(path, "cut in the data")
    ds = opened(own_archive)
    with pytest.raises(ld.FormatError):
        ds.er.compute()
    path.write_bytes(good)
    with pytest.raises(ld.SourceChangedError, match="open the source again"):  # other parts may have been read before
        ds.er.compute()
    assert opened(own_archive).er.compute().shape == (1, HEIGHT, WIDTH)


def test_a_tiff_cut_in_its_data_with_the_directory_first(own_archive: Path) -> None:
    """A TIFF that ends within its data, after its directory, is an error that names the first missing row."""
    import tifffile

    path = own_archive / EMPIAR_13356.path("raw", 0)
    tifffile.imwrite(path, np.ones((HEIGHT, WIDTH), "u2"), rowsperstrip=1)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ld.FormatError, match="is cut short or damaged: row 37"):
        opened(own_archive).raw.compute()


def test_a_directory_that_says_it_is_as_long_as_the_file(own_archive: Path) -> None:
    """A directory entry with an absurd count is an error after less than 4 MiB of reading."""
    path = own_archive / EMPIAR_13356.path("raw", 0)
    data = path.read_bytes()
    at = data.rindex(struct.pack("<HHI", 273, 4, HEIGHT))
    path.write_bytes(data[: at + 4] + struct.pack("<I", 1 << 26) + data[at + 8 :])
    os.truncate(path, 300 << 20)
    with ld.trace() as told, pytest.raises(ld.FormatError, match="is no TIFF that can be read, or is cut short"):
        opened(own_archive).raw.compute()
    assert told.bytes < 4 << 20


def test_a_changed_byte_of_a_mask_is_noticed(own_archive: Path) -> None:
    """A changed byte in an uncompressed PNG, which still decodes, is noticed by its checksum."""
    path = own_archive / EMPIAR_13356.path("er", 0)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(path, compress_level=0)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ld.FormatError, match="its checksum is wrong"):
        opened(own_archive).er.compute()


def test_a_damaged_strip_does_not_crash_the_process(own_archive: Path) -> None:
    """A strip with a bad first LZW code, on which imagecodecs can crash, is a FormatError that names its rows."""
    import tifffile

    path = own_archive / EMPIAR_13356.path("raw", 0)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset + 1] |= 0x6B
    path.write_bytes(data)
    with pytest.raises(ld.FormatError, match="the strip of rows 0-0"):
        opened(own_archive).raw[0, 0].compute()


@pytest.mark.parametrize(
    ("module", "call", "said"),
    [
        ("matplotlib", "show(ld.open_human_liver_em(), 1)", "Pictures need matplotlib (:view"),
        ("ipympl", "view()", "The slicer needs matplotlib, ipywidgets and ipympl (:view"),
        (
            "voila",
            "view_module.serve_slicer('.', {'archive': 'x'}, None, None, 0, False)",
            "A browser needs voila (:app",
        ),
        ("uvicorn", "serve(ld.open_human_liver_em())", "A server needs starlette and uvicorn (:serve"),
        ("starlette", "serve(ld.open_human_liver_em())", "A server needs starlette and uvicorn (:serve"),
        (
            "torch_em",
            "get_human_liver_em_loader('.', (1, 8, 8), 1, [(0, 8, 0, 8, 0, 8)])",
            "Training needs torch and torch_em (:train",
        ),
        (
            "torch_em",
            "get_human_liver_em_tiles('.', (1, 8, 8), (0, 8, 0, 8, 0, 8))",
            "Training needs torch and torch_em (:train",
        ),
    ],
    ids=["pictures", "slicer", "app", "server", "application", "train", "tiles"],
)
def test_without_an_extra_one_sentence_says_what_to_install(
    tmp_path: Path, new_processes: NewProcesses, module: str, call: str, said: str
) -> None:
    """If the package of an extra is missing, the error says in one sentence what to install."""
    script = (
        f"import sys; sys.modules['{module}'] = None\n"
        "import liver_dask as ld\n"
        "import sys; ld.view_module = sys.modules['liver_dask.viewing.view']\n"
        f"try: ld.{call}\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    printed = new_processes.run(script, cwd=tmp_path)
    needs, extra = said.split(":")
    assert printed.startswith(f"MissingExtraError {needs}")
    assert f"in a checkout of liver_dask, pip install '.[{extra}]'" in printed
    assert not os.listdir(tmp_path)
