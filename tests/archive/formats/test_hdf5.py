"""HDF5 slices of any layout are read right from few bytes, and hostile files open no other files."""

import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.memory_file import MemoryFile
from helpers.paths import DATA, ROOT
from liver_dask.archive.formats import hdf5, hdf5_metadata
from liver_dask.archive.formats.hdf5 import Hdf5Slice
from liver_dask.archive.formats.hdf5_description import Filter
from liver_dask.archive.formats.hdf5_filters import FLETCHER32, undo_filters
from liver_dask.core.errors import FormatError
from liver_dask.demo import ArchiveServer, serve

HEIGHT, WIDTH = 97, 131
OPTIONS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks": {"chunks": (10, 17)},
    "one chunk": {"chunks": (HEIGHT, WIDTH)},
    "gzip": {"chunks": (10, 17), "compression": "gzip"},
    "gzip and shuffle": {"chunks": (40, 33), "compression": "gzip", "shuffle": True},
    "all three": {"chunks": (10, 17), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "checksums": {"chunks": (10, 17), "fletcher32": True},
    "lzf": {"chunks": (10, 17), "compression": "lzf"},
    "scale and offset": {"chunks": (10, 17), "scaleoffset": 0},
    "growing down": {"chunks": (10, 17), "maxshape": (None, WIDTH), "compression": "gzip"},
    "growing to the right": {"chunks": (10, 17), "maxshape": (HEIGHT, None), "compression": "gzip"},
    "growing both ways": {"chunks": (200, 17), "maxshape": (None, None)},
}


def pixels_of(dtype: str) -> np.ndarray:
    """Blocks of 8 x 8 pixels with numbers below 100, and zeros on the right."""
    numbers = np.random.default_rng(0).integers(0, 100, (13, 17)) * (np.arange(17) < 12)
    return np.kron(numbers, np.ones((8, 8), int))[:HEIGHT, :WIDTH].astype(dtype)


def file_of(pixels: np.ndarray, libver: str = "earliest", name: str = "data", **options: Any) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as h5:
        h5.create_dataset(name, data=pixels, **options)
    return file.getvalue()


def slice_of(data: bytes, dtype: str = "uint32", dataset: str = "data", **options: Any) -> Hdf5Slice:
    return Hdf5Slice(MemoryFile(data, **options), HEIGHT, WIDTH, np.dtype(dtype), dataset, None)


def read(item: Hdf5Slice, rows: Any = slice(None), columns: slice = slice(0, WIDTH)) -> np.ndarray:
    numbers = np.arange(HEIGHT)[rows]
    out = np.full((len(numbers), columns.stop - columns.start), 77, item._dtype)
    item.read(numbers, columns, out)
    return out


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("dtype", ["<u4", ">u4", "u1", "<u2", ">i2", "<i8"])
def test_every_layout_and_filter_is_read_right(dtype: str, how: str, libver: str) -> None:
    """A file of any layout, filter, type and library version is read right, whole, in windows and at points."""
    pixels = pixels_of(dtype)
    data = file_of(pixels, libver, **OPTIONS[how])
    np.testing.assert_array_equal(read(slice_of(data)), pixels)
    item = slice_of(data)
    np.testing.assert_array_equal(read(item, slice(11, 73), slice(9, 100)), pixels[11:73, 9:100])
    np.testing.assert_array_equal(read(item, [0, 50, 96], slice(130, 131)), pixels[[0, 50, 96], 130:])
    y, x = np.random.default_rng(1).integers(0, (HEIGHT, WIDTH), (60, 2)).T
    points = np.empty(60, np.uint32)
    item.read_points(y, x, points)
    np.testing.assert_array_equal(points, pixels[y, x])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(OPTIONS)), st.data())
def test_any_window(how: str, data: st.DataObject) -> None:
    """Any rows and any range of columns are read right, also across borders of chunks."""
    pixels = pixels_of("<u4")
    rows = data.draw(st.lists(st.integers(0, HEIGHT - 1), min_size=1, unique=True).map(sorted))
    first = data.draw(st.integers(0, WIDTH - 1))
    columns = slice(first, data.draw(st.integers(first + 1, WIDTH)))
    found = read(slice_of(file_of(pixels, **OPTIONS[how])), rows, columns)
    np.testing.assert_array_equal(found, pixels[rows][:, columns])


def test_what_is_not_there_has_the_fill_value() -> None:
    """Chunks that are not stored have the fill value, and a chunk that skips its filters is read right."""
    for options in ({}, {"chunks": (10, 17), "compression": "gzip", "shuffle": True}):
        file = io.BytesIO()
        with h5py.File(file, "w") as h5:
            dataset = h5.create_dataset("data", (HEIGHT, WIDTH), "u4", fillvalue=9, **options)
            if options:
                dataset[20:30, 17:34] = 5
                plain = np.arange(170, dtype="u4").reshape(10, 17)
                dataset.id.write_direct_chunk((30, 34), plain.tobytes(), filter_mask=0b11)
            expected = dataset[:]
        np.testing.assert_array_equal(read(slice_of(file.getvalue())), expected)
        assert (expected == 9).any()


def test_the_checksum_is_hdf5s(tmp_path: Path) -> None:
    """The checksums that HDF5 stores are right, for chunks of many lengths, and another one is refused."""
    random = np.random.default_rng(0)
    for length in (1, 2, 3, 719, 720, 721, 1440, 5001):
        values = random.integers(0, 256, length, "uint8")
        values[: length // 2] = random.choice([0, 255])
        with h5py.File(tmp_path / "a.h5", "w") as h5:
            dataset = h5.create_dataset("data", data=values, chunks=(length,), fletcher32=True)
            _, stored = dataset.id.read_direct_chunk((0,))
        checksums = (Filter(FLETCHER32, ()),)
        assert undo_filters(stored, checksums, 0, length, length) == stored[:-4], length
        swapped = stored[:-4] + bytes(stored[i] for i in (-3, -4, -1, -2))  # as old versions of HDF5 wrote it
        assert undo_filters(swapped, checksums, 0, length, length) == stored[:-4], length
        with pytest.raises(ValueError, match="its checksum is wrong"):
            undo_filters(bytes([stored[0] ^ 1]) + stored[1:], checksums, 0, length, length)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    with serve(tmp_path) as running:
        yield running


@pytest.mark.parametrize("how", ["gzip", "contiguous"])
def test_a_window_fetches_its_chunks_and_little_else(server: ArchiveServer, tmp_path: Path, how: str) -> None:
    """A window fetches little more than its chunks or rows, and a second opening takes at most 3 requests."""
    shape = (1024, 1536)
    pixels = np.random.default_rng(0).integers(0, 2**31, shape, "uint32")
    options = {"chunks": (128, 128), "compression": "gzip"} if how == "gzip" else {}
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "0000.h5").write_bytes(file_of(pixels, **options))
    raw = ld.Variable(name="raw", files="raw/{z:04d}.h5", kind="image", dtype="uint32", dataset="data")
    archive = ld.Archive(name="mine", url=server.url, shape=(1, *shape), variables=(raw,))
    window = ld.open_archive(archive).raw[0, 300:420, 200:330]
    np.testing.assert_array_equal(window, pixels[300:420, 200:330])
    sent = sum(request.sent for request in server.requests)
    needed = 2 * 3 * 128 * 128 * 4 if how == "gzip" else 120 * 130 * 4
    assert sent < 1.1 * needed + 3 * hdf5_metadata.BLOCK + (120 * 512 if how == "contiguous" else 0)
    assert len(server.requests) <= 16
    requests = len(server.requests)
    np.testing.assert_array_equal(ld.open_archive(archive).raw[0, 900, 5], pixels[900, 5])
    assert len(server.requests) <= requests + 3


def test_an_index_is_taken_over_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that adopts another's prepared index reads the slice without parsing the file."""
    pixels = pixels_of("<u4")
    data = file_of(pixels, **OPTIONS["gzip"])
    prepared = slice_of(data).prepare(0, 10)
    item = slice_of(data)
    item.adopt(pickle.loads(pickle.dumps(prepared)))
    monkeypatch.setattr(hdf5, "Metadata", None)  # nothing is parsed
    np.testing.assert_array_equal(read(item), pixels)
    assert 0 < prepared.nbytes < 10_000


def test_many_threads_read_one_file() -> None:
    """Six threads that read the same files at the same time all get the right rows."""
    pixels = pixels_of("<u4")
    items = [slice_of(file_of(pixels, **OPTIONS[how]), most_requests=10**6) for how in ("gzip", "lzf", "contiguous")]
    wrong: list[Any] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(20):
            start, stop = sorted(random.choice(HEIGHT + 1, 2, replace=False).tolist())
            item = items[random.integers(3)]
            try:
                if (read(item, slice(start, stop)) != pixels[start:stop]).any():
                    wrong.append((start, stop))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class FailingFile(MemoryFile):
    """A file whose n-th request fails."""

    def __init__(self, data: bytes, failing: int, error: BaseException) -> None:
        super().__init__(data)
        self.failing, self.error = failing, error

    def fetch_ranges(self, ranges: Any) -> list[memoryview]:
        self.failing -= 1
        if self.failing == 0:
            raise self.error
        return super().fetch_ranges(ranges)


@pytest.mark.parametrize("error", [ld.RemoteError("no answer"), ld.SourceChangedError("changed"), KeyboardInterrupt()])
@pytest.mark.parametrize("how", ["gzip", "lzf", "contiguous"])
def test_what_goes_wrong_in_fetching_is_raised_as_it_is(
    how: str, error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error while fetching is raised unchanged, nothing is printed, and the next read succeeds."""
    pixels = pixels_of("<u4")
    data = file_of(pixels, **OPTIONS[how])
    failed = 0
    for number in itertools.count(1):
        item = Hdf5Slice(FailingFile(data, number, error), HEIGHT, WIDTH, np.dtype("uint32"), "data", None)
        try:
            read(item)
            break
        except type(error):
            failed += 1
            np.testing.assert_array_equal(read(item), pixels)  # the next read succeeds
    assert failed
    assert capfd.readouterr().err == ""


def test_values_that_do_not_fit_are_reported_with_their_place() -> None:
    """A value that does not fit the voxel type is an error that names its row and column; other rows are read."""
    for dtype, wrong in (("<u8", 2**32), ("<i4", -1)):
        for how in ("gzip", "contiguous", "lzf"):
            pixels = pixels_of(dtype)
            pixels[61, 44] = wrong
            item = slice_of(file_of(pixels, **OPTIONS[how]))
            with pytest.raises(FormatError, match=rf"the value of row 61, column 44 is {wrong}, which is no whole"):
                read(item, slice(50, 70), slice(40, 50))
            np.testing.assert_array_equal(read(item, slice(0, 20)), pixels[:20])


@pytest.mark.parametrize(
    ("data", "dataset", "said"),
    [
        (file_of(pixels_of("u4")), "labels", "has no dataset labels; its root has data"),
        (file_of(pixels_of("u4"), name="a/b"), "a/data", "has no dataset a/data; a has b"),
        (file_of(pixels_of("u4"), name="a/b"), "a", "has no dataset a: that is a group"),
        (file_of(pixels_of("u4")), "data/data", "has no dataset data/data"),
        (file_of(pixels_of("u4")[1:]), "data", "found 96 x 131 pixels (rows x columns), expected 97 x 131"),
        (file_of(pixels_of("u4")[None]), "data", "found 1 x 97 x 131 pixels"),
        (file_of(pixels_of("f4")), "data", "the values of data are float32, expected whole numbers"),
        (b"no HDF5" * 1000, "data", "is no HDF5 that can be read"),
        (b"\x89HDF\r\n\x1a\n", "data", "is no HDF5 that can be read"),
    ],
)  # fmt: skip
def test_other_files_are_one_sentence(data: bytes, dataset: str, said: str) -> None:
    """A file without the expected dataset, shape or type is an error of one line that names the file."""
    for call in (Hdf5Slice.probe, read):
        with pytest.raises(FormatError) as told:
            call(slice_of(data, dataset=dataset))
        assert said in str(told.value)
        assert "memory://fuzz/a file" in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("how", ["gzip", "contiguous", "chunks", "lzf"])
def test_a_file_that_is_cut_short_is_refused(how: str) -> None:
    """A file that is cut at any length is a FormatError."""
    pixels = pixels_of("<u4")
    data = file_of(pixels, **OPTIONS[how])
    for length in range(0, len(data), max(len(data) // 60, 1)):
        with pytest.raises(FormatError):
            read(slice_of(data[:length]))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["all three", "checksums"]), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_changes_nothing(how: str, place: float, flip: int) -> None:
    """After any changed byte the file is refused, or its voxels are right or zeros."""
    pixels = pixels_of("<u4")
    data = bytearray(file_of(pixels, "latest", **OPTIONS[how]))
    data[int(place * len(data))] ^= flip
    try:
        found = read(slice_of(bytes(data)))
    except FormatError:
        return
    same = found == pixels
    assert same.all() or (found[~same] == 0).all(), "only a chunk that is said not to be there may be missing"


@pytest.mark.parametrize("how", ["external link", "soft link", "virtual", "external storage"])
def test_no_other_file_is_opened(tmp_path: Path, how: str) -> None:
    """A dataset that is in another file, by a link, virtually or as external storage, is a FormatError."""
    secret = tmp_path / "secret.h5"
    secret.write_bytes(file_of(pixels_of("u4")))
    (tmp_path / "secret.bin").write_bytes(pixels_of("<u4").tobytes())
    path = tmp_path / "hostile.h5"
    with h5py.File(path, "w") as h5:
        if how == "external link":
            h5["data"] = h5py.ExternalLink(secret, "data")
        elif how == "soft link":
            h5["link"] = h5py.ExternalLink(secret, "/")
            h5["data"] = h5py.SoftLink("/link/data")
        elif how == "virtual":
            layout = h5py.VirtualLayout((HEIGHT, WIDTH), "u4")
            layout[:] = h5py.VirtualSource(secret, "data", (HEIGHT, WIDTH))
            h5.create_virtual_dataset("data", layout)
        else:
            external = [(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
            h5.create_dataset("data", (HEIGHT, WIDTH), "<u4", external=external)
    with h5py.File(path) as h5:
        assert (h5["data"][:] == pixels_of("u4")).all(), "else the test opens nothing"
    with pytest.raises(FormatError, match=r"has no dataset data|are in other files, which are not opened"):
        read(slice_of(path.read_bytes()))


def test_nothing_needs_h5py(tmp_path: Path) -> None:
    """HDF5 is read in a process in which h5py cannot be imported."""
    (tmp_path / "0.h5").write_bytes(file_of(pixels_of("u4"), compression="lzf"))
    script = (
        "import sys; sys.modules['h5py'] = None\n"
        "import liver_dask as ld\n"
        "raw = ld.Variable(name='raw', files='{z}.h5', kind='image', dtype='uint32', dataset='data')\n"
        f"archive = ld.Archive(name='a', url={str(tmp_path)!r}, shape=(1, 97, 131), variables=(raw,))\n"
        "print(int(ld.open_archive(archive).raw[0].sum().compute()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pixels_of("u4").sum()


def test_ranges_are_asked_for_side_by_side() -> None:
    """The ranges of many chunks are passed on as more than ten requests in one call, so that they run in parallel."""
    item = slice_of(file_of(pixels_of("<u4"), **OPTIONS["chunks"]))
    asked: list[int] = []
    item._file.fetch_each = lambda requests, consume: asked.append(len(requests))  # type: ignore[method-assign]
    item._fetch(np.arange(50) * 10**6, np.full(50, 10**6), lambda i, part: None)
    assert asked[0] > 10


def test_chunks_of_one_row_may_be_missing() -> None:
    """Chunks of one row that are not stored are read as the fill value, between rows that are stored."""
    for written in ((5, 20), (0, 20)):
        file = io.BytesIO()
        with h5py.File(file, "w") as h5:
            dataset = h5.create_dataset("data", (HEIGHT, WIDTH), "u4", chunks=(1, WIDTH))
            for row in written:
                dataset[row] = row + 7
            expected = dataset[:]
        np.testing.assert_array_equal(read(slice_of(file.getvalue())), expected)


def test_integers_that_do_not_use_all_their_bits() -> None:
    """Integers with fewer significant bits than their bytes hold are read with the values that h5py gives."""
    kind = h5py.h5t.STD_U32LE.copy()
    kind.set_precision(12)
    kind.set_offset(4)
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        space = h5py.h5s.create_simple((HEIGHT, WIDTH))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((10, 17))
        dataset = h5py.Dataset(h5py.h5d.create(h5.id, b"data", kind, space, plist))
        dataset[:] = pixels_of("<u4")
        expected = dataset[:]
    np.testing.assert_array_equal(read(slice_of(file.getvalue())), expected)


def test_a_damaged_fill_value_does_not_end_the_process() -> None:
    """A file with a damaged fill value is read or is a FormatError; the process does not crash."""
    script = (
        "import numpy as np\n"
        "from helpers.memory_file import MemoryFile\n"
        "from liver_dask.archive.formats.hdf5 import Hdf5Slice\n"
        f"data = open({str(DATA / 'hdf5_fill_value.h5')!r}, 'rb').read()\n"
        "item = Hdf5Slice(MemoryFile(data), 8, 8, np.dtype('uint32'), 'data', None)\n"
        "try: item.read(np.arange(8), slice(0, 8), np.empty((8, 8), 'uint32'))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "else: print('read')"
    )
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout in ("FormatError\n", "read\n"), done


@pytest.mark.parametrize(("compression", "userblock"), [("lzf", 0), ("gzip", 0), ("gzip", 512)])
def test_chunks_larger_than_the_slice_are_refused(compression: str, userblock: int) -> None:
    """A file whose chunks are much larger than the slice is a FormatError that says so."""
    file, options = io.BytesIO(), {"chunks": (20_000, 10_000), "maxshape": (None, None), "compression": compression}
    with h5py.File(file, "w", userblock_size=userblock) as h5:
        h5.create_dataset("data", (HEIGHT, WIDTH), "u1", **options)
    with pytest.raises(FormatError, match="its chunks of 20000 x 10000 pixels are larger than the slice"):
        read(slice_of(file.getvalue()))


def test_an_index_larger_than_the_slice_is_refused() -> None:
    """A dataset with chunks of one pixel, whose index is larger than the slice, is a FormatError."""
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5.create_dataset("data", (4000, 4000), "u1", chunks=(1, 1))
    with pytest.raises(FormatError, match="are too small"):
        Hdf5Slice(MemoryFile(file.getvalue()), 4000, 4000, np.dtype("uint8"), "data", None).probe()
