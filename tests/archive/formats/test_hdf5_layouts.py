"""HDF5 slices of rare layouts are read right: indexes of chunks in several levels, rare types, groups of any kind."""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from helpers.memory_file import MemoryFile
from helpers.paths import FUZZ
from liver_dask.archive.formats.hdf5 import Hdf5Slice

HEIGHT, WIDTH = 50, 60
PIXELS = np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH)).astype("<u2")
Shape = tuple[int, int]


def read(data: bytes, shape: Shape = (HEIGHT, WIDTH), dataset: str = "data") -> np.ndarray:
    out = np.full(shape, 77, "uint16")
    item = Hdf5Slice(MemoryFile(data, most_requests=10**5), *shape, out.dtype, dataset, None)
    item.read(np.arange(shape[0]), slice(0, shape[1]), out)
    return out


def file_of(libver: str = "earliest", dataset: str = "data", **options: Any) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as h5:
        h5.create_dataset(dataset, data=PIXELS, **options)
    return file.getvalue()


@pytest.mark.parametrize("filters", [{}, {"compression": "gzip"}])
@pytest.mark.parametrize(
    ("libver", "maxshape", "mark"),
    [
        ("earliest", None, b"TREE"),
        ("latest", None, b"FADB"),
        ("latest", (HEIGHT + 9, WIDTH + 9), b"FADB"),
        ("latest", (None, WIDTH), b"EASB"),
        ("latest", (HEIGHT, None), b"EASB"),
        ("latest", (None, WIDTH + 9), b"EASB"),
        ("latest", (None, None), b"BTIN"),
    ],
)
def test_indexes_of_many_chunks(libver: str, maxshape: Any, mark: bytes, filters: dict[str, Any]) -> None:
    """Chunks of one pixel are found by indexes of several levels or pages."""
    data = file_of(libver, chunks=(1, 1), maxshape=maxshape, **filters)
    assert mark in data
    np.testing.assert_array_equal(read(data), PIXELS)


@pytest.mark.parametrize("maxshape", [(700, 400), (None, 400), (700, None), (None, None)])
def test_large_indexes_with_gaps(maxshape: Any) -> None:
    """In an index of 280 000 chunks of which few are stored, the others have the fill value."""
    file, expected = io.BytesIO(), np.full((700, 400), 9, "u2")
    with h5py.File(file, "w", libver="latest") as h5:
        dataset = h5.create_dataset("data", (700, 400), "u2", chunks=(1, 1), maxshape=maxshape, fillvalue=9)
        for row, column in [(0, 0), (1, 3), (2, 399), (300, 7), (699, 0), (699, 398)]:
            dataset[row, column] = expected[row, column] = row + column
    np.testing.assert_array_equal(read(file.getvalue(), (700, 400)), expected)


def test_an_index_of_a_dataset_that_became_smaller() -> None:
    """A dataset that was made smaller and larger again has the fill value where it had been cut."""
    for libver in ("earliest", "latest"):
        for maxshape in ((200, 200), (None, 200), (200, None), (None, None)):
            file = io.BytesIO()
            with h5py.File(file, "w", libver=libver) as h5:
                dataset = h5.create_dataset("data", (120, 130), "u2", chunks=(7, 9), maxshape=maxshape, fillvalue=4)
                dataset[:] = 1
                dataset.resize((30, 40))
                dataset.resize((HEIGHT, WIDTH))
                expected = dataset[:]
            np.testing.assert_array_equal(read(file.getvalue()), expected)


@pytest.mark.parametrize("path", sorted((FUZZ / "corpus" / "hdf5").iterdir()), ids=lambda path: path.name)
def test_small_files_of_every_kind(path: Path) -> None:
    """Files with rare layouts, filters, types and groups are read as by h5py: the fuzz target begins with them."""
    data = path.read_bytes()[1:]
    with h5py.File(io.BytesIO(data)) as h5:
        expected = h5["data"][:]
    np.testing.assert_array_equal(read(data, expected.shape), expected)


@pytest.mark.parametrize("address_bytes", [2, 4, 8])
def test_addresses_of_any_width(address_bytes: int) -> None:
    """Files whose addresses and lengths take fewer bytes than usual are read right, of both formats."""
    for libver in ("earliest", "latest"):
        file = io.BytesIO()
        create, access = h5py.h5p.create(h5py.h5p.FILE_CREATE), h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        create.set_sizes(address_bytes, max(address_bytes, 4))
        access.set_fileobj_driver(h5py.h5fd.fileobj_driver, file)
        if libver == "latest":
            access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
        with h5py.File(h5py.h5f.create(b"file", h5py.h5f.ACC_TRUNC, create, access)) as h5:
            for name, maxshape in [("a", None), ("b", (None, WIDTH)), ("c", (None, None))]:
                h5.create_dataset(name, data=PIXELS, chunks=(8, 9), maxshape=maxshape, compression="gzip")
        for name in "abc":
            np.testing.assert_array_equal(read(file.getvalue(), dataset=name), PIXELS)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_what_is_in_front_of_the_file(libver: str) -> None:
    """A file that begins with a block of another program's bytes is read right, with every layout."""
    for options in ({}, {"chunks": (8, 9)}, {"chunks": (8, 9), "compression": "gzip", "maxshape": (None, None)}):
        file = io.BytesIO()
        with h5py.File(file, "w", libver=libver, userblock_size=1024) as h5:
            h5.create_dataset("data", data=PIXELS, **options)
        data = b"%PDF" + file.getvalue()[4:]
        np.testing.assert_array_equal(read(data), PIXELS)
        moved = b"another".ljust(2048, b" ") + file.getvalue()[1024:]  # though its superblock gives another place
        np.testing.assert_array_equal(read(moved), PIXELS)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("count", [1, 9, 400])
def test_groups_with_many_datasets(count: int, libver: str) -> None:
    """A dataset is found in groups within groups, among few or hundreds of other objects."""
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver, track_order=True) as h5:
        group = h5.create_group("a").create_group("b")
        for i in range(count):
            group.create_group(f"{'other' * (i % 7)} {i}")
        group.create_dataset("ö", data=PIXELS)
    np.testing.assert_array_equal(read(file.getvalue(), dataset="/a/b/ö"), PIXELS)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_header_in_several_parts(libver: str) -> None:
    """A dataset whose attributes pushed parts of its header elsewhere is read right."""
    file = io.BytesIO(file_of(libver, chunks=(8, 9), compression="gzip"))
    with h5py.File(file, "r+", libver=libver) as h5:
        for i in range(30):
            h5["data"].attrs[f"attribute {i}"] = np.arange(200)
            h5.attrs[f"attribute {i}"] = np.arange(200)
    np.testing.assert_array_equal(read(file.getvalue()), PIXELS)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_types_with_names(libver: str) -> None:
    """A type that is an object of its own, enumerations and bit fields are read as their numbers."""
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as h5:
        h5["type"] = np.dtype(">u2")
        h5.create_dataset("named", data=PIXELS, dtype=h5["type"], chunks=(8, 9))
        h5.create_dataset("enumeration", data=PIXELS, dtype=h5py.enum_dtype({"one": 1, "two": 2}, "<u2"))
        space = h5py.h5s.create_simple(PIXELS.shape)
        bits = h5py.h5d.create(h5.id, b"bits", h5py.h5t.STD_B16LE, space)
        bits.write(h5py.h5s.ALL, h5py.h5s.ALL, PIXELS, h5py.h5t.STD_B16LE)
    for name in ("named", "enumeration", "bits"):
        np.testing.assert_array_equal(read(file.getvalue(), dataset=name), PIXELS)


@pytest.mark.parametrize("dtype", ["<i2", ">i4", "<u2", ">u8"])
@pytest.mark.parametrize(("unused", "first"), [(0, 0), (5, 0), (7, 4)])
def test_numbers_that_do_not_use_all_their_bits(dtype: str, unused: int, first: int) -> None:
    """Numbers that use some of their bits are read right, also if only these bits are stored, and negative ones."""
    kind = h5py.h5t.py_create(np.dtype(dtype)).copy()
    kind.set_precision(8 * kind.get_size() - unused)
    kind.set_offset(first)
    low = -100 if dtype[1] == "i" else 0
    values = PIXELS.astype(dtype) + low
    for is_packed in (False, True):
        file = io.BytesIO()
        with h5py.File(file, "w") as h5:
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((10, 17))
            if is_packed:
                plist.set_filter(h5py.h5z.FILTER_NBIT)
            space = h5py.h5s.create_simple(PIXELS.shape)
            dataset = h5py.Dataset(h5py.h5d.create(h5.id, b"data", kind, space, plist))
            dataset[:] = values
        with h5py.File(io.BytesIO(file.getvalue())) as h5:
            np.testing.assert_array_equal(h5["data"][:], values)
        out = np.zeros(PIXELS.shape, "int64")
        item = Hdf5Slice(MemoryFile(file.getvalue()), HEIGHT, WIDTH, out.dtype, "data", None)
        item.read(np.arange(HEIGHT), slice(0, WIDTH), out)
        np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "<u4", ">i8"])
@pytest.mark.parametrize("spread", [1, 2, 100, 256, 60_000])
def test_numbers_as_differences_from_the_least(dtype: str, spread: int) -> None:
    """Scaled and offset numbers are read as by h5py: of any range, and with a fill value among them or none."""
    random = np.random.default_rng(spread)
    limits = np.iinfo(dtype)
    for fill in (None, 7):
        start = max(limits.min, -30)
        values = random.integers(start, min(start + spread, int(limits.max) + 1), PIXELS.shape).astype(dtype)
        values[20:22] = 0 if fill is None else fill
        file = io.BytesIO()
        with h5py.File(file, "w") as h5:
            h5.create_dataset("data", data=values, chunks=(10, 17), scaleoffset=0, fillvalue=fill)
        with h5py.File(io.BytesIO(file.getvalue())) as h5:
            expected = h5["data"][:]
        out = np.zeros(PIXELS.shape, "int64")
        item = Hdf5Slice(MemoryFile(file.getvalue()), HEIGHT, WIDTH, out.dtype, "data", None)
        item.read(np.arange(HEIGHT), slice(0, WIDTH), out)
        np.testing.assert_array_equal(out, expected)
