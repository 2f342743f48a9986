"""Strip indexes that are fetched in part, for a few rows of many slices, and what later reads fetch of them."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import write_raw
from helpers.memory_file import MemoryFile
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import tiff, tiff_index
from liver_dask.archive.formats.tiff_directory import NEIGHBOURS, place_of_directory, read_directory
from liver_dask.core.errors import FormatError
from liver_dask.demo import ArchiveServer, serve

SHAPE = (8, 6000, 40)
CONNECTIONS = 2
WHOLE = np.random.default_rng(0).integers(0, 500, SHAPE, dtype="u2")

Write = Callable[[Path, np.ndarray], None]


def by_tifffile(**options: Any) -> Write:
    options = {"rowsperstrip": 1, "compression": "lzw", "metadata": None, "photometric": "minisblack"} | options
    return lambda path, pixels: tifffile.imwrite(path, pixels, **options)


def build(folder: Path, write: Write = write_raw) -> list[Path]:
    paths = [folder / EMPIAR_13356.path("raw", z) for z in range(SHAPE[0])]
    paths[0].parent.mkdir(parents=True)
    for path, pixels in zip(paths, WHOLE, strict=True):
        write(path, pixels)
    return paths


@pytest.fixture
def raw_and_server(tmp_path: Path):
    build(tmp_path / "archive")
    with serve(tmp_path / "archive") as server:
        yield opened(server), server


def opened(server: ArchiveServer, **options: Any) -> xr.DataArray:
    return ld.open_human_liver_em(server.url, shape=SHAPE, labels=[], connections=CONNECTIONS, **options).raw


def sent_for(server: ArchiveServer, window: xr.DataArray, expected: np.ndarray) -> tuple[int, int]:
    """Compare a window with what is expected; the bytes and the requests that it took."""
    before = server.bytes_sent, len(server.requests)
    np.testing.assert_array_equal(window, expected)
    return server.bytes_sent - before[0], len(server.requests) - before[1]


WRITERS = {
    "as the archive": write_raw,
    "big endian": by_tifffile(byteorder=">"),
    "BigTIFF": by_tifffile(bigtiff=True, predictor=True),
    "BigTIFF, big endian": by_tifffile(bigtiff=True, byteorder=">", compression="deflate"),
    "not compressed": by_tifffile(compression="none"),
}


@pytest.mark.parametrize("written", WRITERS)
def test_a_cross_section_fetches_only_the_entries_that_it_needs(tmp_path: Path, written: str) -> None:
    """A cross-section fetches only the entries near its row of each strip index, in at most three requests a slice."""
    build(tmp_path / "archive", WRITERS[written])
    with serve(tmp_path / "archive") as server:
        raw = opened(server)
        whole, _ = sent_for(server, raw[0, 3000], WHOLE[0, 3000])
        assert whole > 6 * SHAPE[1]
        some, requests = sent_for(server, raw[:, 3000], WHOLE[:, 3000])
        assert some <= 7 * (2 * (2 * NEIGHBOURS + 1) * 8 + 2000)
        assert requests <= 7 * 3


def test_rows_that_come_one_after_another_cost_no_request_more(raw_and_server) -> None:
    """A row near one read before takes one request a slice. A row further away fetches all of each index, once."""
    raw, server = raw_and_server
    raw[0, 10].compute()
    raw[:, 3000].compute()
    for row in (3001, 3002, 2990, 3000 + NEIGHBOURS, 3000 - NEIGHBOURS):
        sent, requests = sent_for(server, raw[:, row], WHOLE[:, row])
        assert requests == SHAPE[0]
        assert sent <= 200 * SHAPE[0]
    far, _ = sent_for(server, raw[:, 100], WHOLE[:, 100])
    assert far >= 7 * 6 * SHAPE[1], "then all of it"
    for row in (5000, 4000, 0, SHAPE[1] - 1):
        sent, requests = sent_for(server, raw[:, row], WHOLE[:, row])
        assert requests == SHAPE[0]
        assert sent <= 200 * SHAPE[0]


def test_a_window_of_many_rows_gets_its_index_at_once(raw_and_server) -> None:
    """A window of many rows takes no more requests after a cross-section than before; nor does one row of one slice."""
    raw, server = raw_and_server
    raw[0, 10].compute()
    _, first = sent_for(server, raw[1, 100:160], WHOLE[1, 100:160])
    raw[:, 3000].compute()
    _, after = sent_for(server, raw[2, 100:160], WHOLE[2, 100:160])
    assert after <= first
    _, one = sent_for(server, raw[3, 100:160], WHOLE[3, 100:160])
    assert one <= first
    single = opened(server)
    _, requests = sent_for(server, single[4, 7], WHOLE[4, 7])
    assert requests <= first, "one row of one slice"


def test_what_is_kept_between_processes_is_all_of_the_index(tmp_path: Path) -> None:
    """The disk cache holds whole strip indexes, even after a cross-section: a second opening fetches none of them."""
    build(tmp_path / "archive")
    with serve(tmp_path / "archive") as server:
        kept = str(tmp_path / "kept")
        raw = opened(server, cache_dir=kept)
        raw[0, 10].compute()
        sent_for(server, raw[:, 3000], WHOLE[:, 3000])
        again = opened(server, cache_dir=kept)
        sent, _ = sent_for(server, again[:, 100], WHOLE[:, 100])
        assert sent <= 300 * SHAPE[0]


@pytest.mark.parametrize(
    "other",
    [
        by_tifffile(byteorder=">"),
        by_tifffile(bigtiff=True),
        by_tifffile(rowsperstrip=3),
        by_tifffile(description="of another length"),
        by_tifffile(compression="zstd"),
        by_tifffile(tile=(16, 16)),
    ],
    ids=["big endian", "BigTIFF", "deep strips", "description", "codec", "tiles"],
)
def test_a_slice_that_is_written_otherwise_is_read_as_ever(tmp_path: Path, other: Write) -> None:
    """Slices that are written in another way than the first are read right in cross-sections."""
    paths = build(tmp_path / "archive")
    for z in (3, 6):
        other(paths[z], WHOLE[z])
    with serve(tmp_path / "archive") as server:
        raw = opened(server)
        raw[0, 10].compute()
        for rows in (3000, [0, 2000, 5999]):
            np.testing.assert_array_equal(raw[:, rows], WHOLE[:, rows])


@pytest.mark.parametrize("damage", ["an entry", "cut short"])
def test_damage_is_reported_as_ever(tmp_path: Path, damage: str) -> None:
    """A damaged entry or a file that is cut short is an error that names the variable, the slice and the row."""
    paths = build(tmp_path / "archive")
    with tifffile.TiffFile(paths[2]) as file:
        tag = file.pages[0].tags[273]
        place, length = tag.valueoffset, file.filehandle.size
    content = bytearray(paths[2].read_bytes())
    if damage == "an entry":
        content[place + 4 * 3000 : place + 4 * 3001] = (length + 5).to_bytes(4, "little")
    else:
        del content[-3 * SHAPE[1] :]
    paths[2].write_bytes(content)
    with serve(tmp_path / "archive") as server:
        raw = opened(server)
        raw[0, 10].compute()
        with pytest.raises(
            FormatError, match=r"raw, slice 2, rows 3000-3000: .*(row 3000|cut short|strips or tiles where)"
        ):
            raw[:, 3000].compute()


def read_row(archive: Path, row: int) -> np.ndarray | None:
    """A row of all slices, by some or all entries as FEW_ROWS says; None if a slice is refused."""
    raw = ld.open_human_liver_em(archive, shape=SHAPE, labels=[], connections=CONNECTIONS).raw
    try:
        raw[0, 10].compute()
        return raw[:, row].compute(scheduler="sync").to_numpy()
    except FormatError:
        return None


@pytest.mark.slow
def test_some_entries_of_a_damaged_index_give_no_other_voxels_than_all(tmp_path: Path, monkeypatch) -> None:
    """A damaged index that is accepted gives the same voxels whether some or all of its entries are fetched."""
    paths = build(tmp_path / "archive")
    content = paths[2].read_bytes()
    with tifffile.TiffFile(paths[2]) as file:
        begins = file.pages[0].offset
    random = np.random.default_rng(1)
    read = 0
    for _ in range(60):
        damaged = bytearray(content)
        near = random.choice([begins + random.integers(0, 200), begins + 200 + 4 * 3000 + random.integers(-100, 100)])
        for at in [near, near + random.integers(0, 9)][: random.integers(1, 3)]:
            damaged[at] = random.integers(0, 256)
        paths[2].write_bytes(damaged)
        monkeypatch.setattr(tiff, "FEW_ROWS", 8)
        some = read_row(tmp_path / "archive", 3000)
        monkeypatch.setattr(tiff, "FEW_ROWS", 0)
        whole = read_row(tmp_path / "archive", 3000)
        if some is not None and whole is not None:
            read += 1
            np.testing.assert_array_equal(some, whole)
    assert read > 5


def test_many_slices_at_points_need_no_whole_index(raw_and_server) -> None:
    """Two points in each of eight slices fetch only some entries of each strip index."""
    raw, server = raw_and_server
    raw[0, 10].compute()
    z, y, x = np.arange(16) % 8, np.arange(16) * 7 + 3000, np.arange(16)
    at = {dim: xr.DataArray(index, dims="p") for dim, index in zip("zyx", (z, y, x), strict=True)}
    sent, requests = sent_for(server, raw.isel(at), WHOLE[z, y, x])
    assert sent <= 8 * 12_000
    assert requests <= 7 * 3 + 1


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_bytes_are_an_error(header: bytes, data: bytes) -> None:
    """Arbitrary bytes as a header and a directory raise no error."""
    for begins in (header, b"II*\0" + header, b"MM\0*" + header, b"II+\0\x08\0\0\0" + header):
        assert place_of_directory(begins) >= 0
        read_directory(begins, data)
        read_directory(begins, b"\x02\0" + data)


def test_a_directory_is_known_wherever_it_lies() -> None:
    """Directories that differ only in their place in the file compare equal; another compression makes them differ."""
    first = tiff_bytes(1000)
    second = tiff_bytes(77_000)
    assert read_directory(*first) == read_directory(*second) is not None
    assert read_directory(*tiff_bytes(1000, compression=8)) != read_directory(*first)


def test_a_directory_that_is_not_the_only_one_is_not_like_the_others(tmp_path: Path) -> None:
    """A slice with a second image is refused, also if its first directory is that of the other slices."""
    paths = build(tmp_path / "archive", by_tifffile())
    with tifffile.TiffWriter(paths[2]) as file:
        for pixels in (WHOLE[2], WHOLE[3]):
            file.write(pixels, rowsperstrip=1, compression="lzw", metadata=None, photometric="minisblack")
    with serve(tmp_path / "archive") as server:
        raw = opened(server)
        raw[0, 10].compute()
        with pytest.raises(FormatError, match=r"slice 2, .*holds several images, and a slice is one"):
            raw[2, 10].compute()


def tiff_bytes(begins: int, compression: int = 5) -> tuple[bytes, bytes]:
    """Header and directory of a file whose arrays follow the directory."""
    fields = [(259, 3, 1, compression), (273, 4, 5, begins + 100), (279, 4, 5, begins + 120)]
    packed = b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + count.to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, count, value in fields
    )
    return b"II*\0" + begins.to_bytes(4, "little") + bytes(8), len(fields).to_bytes(2, "little") + packed + bytes(4)


def test_nothing_is_asked_of_before_the_beginning() -> None:
    """A seek to before the file's beginning is a ValueError, sends no request and leaves the position unchanged."""
    file = MemoryFile(bytes(5000))
    sparse = tiff_index._Sparse(file, 10, 10)
    asked = list(file.sent)
    for offset, whence in ((-74, 0), (-1, 1), (-6000, 2)):
        with pytest.raises(ValueError, match="before the file begins"):
            sparse.seek(offset, whence)
    assert (sparse.tell(), file.sent) == (0, asked)
    assert sparse.seek(-10, 2) == 4990


@settings(deadline=None)
@given(reads=st.lists(st.tuples(st.integers(0, 2), st.integers(-3000, 30_000), st.integers(-1, 9000)), max_size=12))
def test_any_sequence_of_reads_is_that_of_a_file(reads: list[tuple[int, int, int]]) -> None:
    """What tifffile reads of a file that is fetched in parts is what it would read of the whole file, to its end."""
    data = np.random.default_rng(0).bytes(20_000)
    sparse, whole = tiff_index._Sparse(MemoryFile(data), 10, 10), io.BytesIO(data)
    for whence, offset, size in reads:
        if offset + (0, whole.tell(), len(data))[whence] >= 0:
            assert sparse.seek(offset, whence) == whole.seek(offset, whence)
        assert sparse.read(size) == whole.read(size)
        assert sparse.tell() == whole.tell()


@given(
    height=st.integers(1, 40),
    per_strip=st.integers(1, 9),
    itemsize=st.sampled_from([1, 2, 4]),
    lacking=st.none() | st.integers(0, 39),
    compression=st.sampled_from([1, 1, 5]),
)
def test_rows_of_whole_uncompressed_strips_are_found_by_themselves(
    height: int, per_strip: int, itemsize: int, lacking: int | None, compression: int
) -> None:
    """The rows of uncompressed strips are where they lie within them; with a strip that is too short, nothing is
    assumed.
    """
    strips, row_bytes = -(-height // per_strip), 7 * itemsize
    rows_of = np.full(strips, per_strip)
    rows_of[-1] = height - per_strip * (strips - 1)
    offsets = 8 + np.random.default_rng(height).permutation(strips) * 1000
    counts = rows_of * row_bytes
    if lacking is not None:
        counts[lacking % strips] -= 1
    index = tiff_index.StripIndex(offsets, counts, height, 7, per_strip, compression, 1, False, itemsize)
    found = tiff_index._by_rows(index)
    if lacking is not None or compression != 1:
        assert found is index
        return
    rows = np.arange(height)
    np.testing.assert_array_equal(found.offsets, offsets[rows // per_strip] + rows % per_strip * row_bytes)
    np.testing.assert_array_equal(found.counts, np.full(height, row_bytes))
    assert (found.rows_per_strip, found.needed) == (1, height)


def test_an_index_says_what_it_knows_and_what_is_in_the_file() -> None:
    """A partial index knows only rows whose strips it has; a strip is beyond the file if any byte of it is."""
    index = tiff_index.StripIndex(np.array([8, 0, 90]), np.array([5, 0, 10]), 6, 7, 2, 5, 1, False)
    assert index.knows(np.array([0, 1, 4]))
    assert not index.knows(np.array([0, 3]))
    assert not index.knows(np.array([2]))
    assert index.nbytes == 48
    file = MemoryFile(bytes(100))
    offsets, counts = np.array([0, 1, 1, 90, 90, 50]), np.array([5, 99, 100, 10, 11, 0])
    wrong = tiff_index.beyond(replace(index, offsets=offsets, counts=counts), file)
    assert wrong.tolist() == [True, False, True, False, True, True]
