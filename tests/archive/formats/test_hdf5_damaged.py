"""Damaged and hostile HDF5 slices are refused in one sentence: they end or delay no process and give no wrong voxel."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest

from helpers.hdf5_checksums import with_checksums
from helpers.memory_file import MemoryFile
from helpers.paths import FUZZ
from liver_dask.archive.formats.hdf5 import Hdf5Slice
from liver_dask.archive.formats.hdf5_filters import FLETCHER32, LZF, N_BIT, SCALE_OFFSET
from liver_dask.archive.formats.hdf5_metadata import Fields, Metadata
from liver_dask.archive.formats.hdf5_places import Places
from liver_dask.core.errors import FormatError

HEIGHT, WIDTH = 50, 60
PIXELS = np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH)).astype("<u2")
NODE_HEAD, KEY, ENTRY = 24, 32, 40
"""Bytes of a tree of version 1: of a node in front of the first key, of a key, and of a key and an address."""


def file_of(libver: str = "earliest", **options: Any) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as h5:
        h5.create_dataset("data", data=PIXELS, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    out = np.full((HEIGHT, WIDTH), 77, "uint16")
    Hdf5Slice(MemoryFile(data), HEIGHT, WIDTH, out.dtype, "data", None).read(np.arange(HEIGHT), slice(0, WIDTH), out)
    return out


def refused(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as told:
        read(data)
    assert "\n" not in str(told.value)


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def places_of(data: bytes) -> Places:
    return Hdf5Slice(MemoryFile(data), HEIGHT, WIDTH, np.dtype("u2"), "data", None).prepare(0, 1).places


def number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def test_old_trees_that_lead_astray() -> None:
    """A tree of version 1 that leads in a circle or elsewhere, or that is not in order, is refused."""
    whole = file_of(chunks=(3, 4), compression="gzip")
    root = max((at for at in range(len(whole)) if whole.startswith(b"TREE\x01\x01", at)), default=0)
    assert root, "it has no nodes below"
    child = root + NODE_HEAD + KEY
    leaf, next_leaf = number(whole, child), number(whole, child + ENTRY)
    in_leaf = leaf + NODE_HEAD
    for at, new, problem in [
        (child, struct.pack("<Q", root), "not in order"),
        (child, struct.pack("<Q", next_leaf), "overlap"),
        (child, struct.pack("<Q", next_leaf + 8), "overlap|something else"),
        (child, b"\xff" * 8, "later ones"),
        (child, struct.pack("<Q", len(whole) - 20), "later ones"),
        (leaf + 5, b"\1", "not in order"),
        (root + 5, b"\0", "cannot be decoded"),
        (root + 5, b"\2", "not in order"),
        (root + 5, b"\xff", "not in order"),
        (leaf + 6, b"\0\0", "empty node"),
        (leaf + 6, b"\xff\xff", "later ones|too short|not in order"),
        (leaf + 4, b"\0", "something else"),
        (leaf, b"XREE", "something else"),
        (root + NODE_HEAD + 8, b"\3", "not in order"),
        (in_leaf + 8, b"\xff" * 8, "not in order"),
        (in_leaf + ENTRY + 16, b"\1", "not in order|another size"),
        (in_leaf + 24, b"\4", "not in order"),
        (in_leaf, b"\0\0\0\0", "is not within"),
        (in_leaf, b"\xff\xff\xff\x7f", "is not within"),
        (in_leaf + KEY, struct.pack("<Q", len(whole) - 3), "is not within"),
        (in_leaf + KEY, b"\xfe" * 8, "is not within"),
        (in_leaf + KEY, whole[in_leaf + ENTRY + KEY :][:8], "chunks overlap"),
        (in_leaf + KEY, struct.pack("<Q", number(whole, in_leaf + ENTRY + KEY) - 1), "chunks overlap"),
    ]:
        refused(changed(whole, at, new), problem)
    refused(changed(whole, in_leaf, struct.pack("<I", 90_000)) + bytes(1 << 20), "more bytes than it can")


def test_chunks_without_filters_have_their_size() -> None:
    """A chunk without filters whose index gives another size is refused."""
    whole = file_of(chunks=(50, 10))
    entry = whole.index(b"TREE\x01\x00") + NODE_HEAD
    assert number(whole, entry) == 50 * 10 * 2
    refused(changed(whole, entry, struct.pack("<I", 999)), "chunks of another size")


@pytest.mark.parametrize(
    ("maxshape", "signature", "changes"),
    [
        ((HEIGHT, WIDTH), b"FAHD", [(4, b"\1"), (5, b"\0"), (6, b"\1"), (7, b"\x3f"), (8, b"\0"), (15, b"\x40"),
                                    (16, b"\xfe" * 8)]),
        ((HEIGHT, WIDTH), b"FADB", [(0, b"XADB"), (5, b"\0"), (6, b"\1"), (14, b"\xfe" * 8), (22, b"\xff" * 4)]),
        ((None, WIDTH), b"EAHD", [(6, b"\1"), (7, b"\xff"), (8, b"\0"), (9, b"\1"), (10, b"\0"), (44, b"\1"),
                                (60, b"\xfe" * 8)]),
        ((None, WIDTH), b"EAIB", [(0, b"XAIB"), (5, b"\0"), (6, b"\1"), (14, b"\xfe" * 8)]),
        ((None, WIDTH), b"EADB", [(0, b"XADB"), (5, b"\0"), (6, b"\1"), (18, b"\xfe" * 8)]),
        ((None, None), b"BTHD", [(5, b"\x0a"), (6, b"\xff" * 4), (10, b"\x80"), (12, b"\xff"), (16, b"\0" * 8),
                                 (16, b"\xfe" * 8), (25, b"\x7f"), (24, b"\1"), (26, b"\1"), (24, b"\xff\xff")]),
        ((None, None), b"BTLF", [(0, b"XTLF"), (5, b"\x0a"), (6, b"\0" * 8), (6, b"\xfe" * 8), (21, b"\xff"),
                                 (33, b"\x80"), (42, b"\0" * 36)]),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else None,
)  # fmt: skip
def test_hostile_indexes_with_right_checksums(maxshape: Any, signature: bytes, changes: list[Any]) -> None:
    """An index with an impossible number is refused, also if its checksum is right."""
    whole = file_of("latest", chunks=(10, 10), maxshape=maxshape, compression="gzip")
    np.testing.assert_array_equal(read(with_checksums(whole, HEIGHT, WIDTH)), PIXELS)
    first = whole.index(signature)
    for at, new in changes:
        hostile = changed(whole, first + at, new)
        refused(hostile, "is no HDF5 that can be read")
        mended = with_checksums(hostile, HEIGHT, WIDTH)
        refused(mended, r"(?!.*checksum)(its chunks|tree|chunks? |not within|later ones|is not where|be decoded)")


def test_wrong_checksums() -> None:
    """A changed byte in any part that has a checksum is refused."""
    for maxshape in (None, (None, WIDTH), (None, None)):
        whole = file_of("latest", chunks=(3, 4), maxshape=maxshape)
        for signature in (b"OHDR", b"FAHD", b"FADB", b"EAHD", b"EAIB", b"EASB", b"EADB", b"BTHD", b"BTIN", b"BTLF"):
            at = whole.rfind(signature)
            if at >= 0:
                refused(changed(whole, at + 20, bytes([whole[at + 20] ^ 1])), "is no HDF5|is not where")


def test_limits_that_are_absurd() -> None:
    """A dataset that may grow to absurd sizes is read right if its index can be, or is refused at once."""
    for maxshape in ((1 << 30, 1 << 30), (1 << 62, 1 << 62), (None, 1 << 62), (1 << 62, None), (None, None)):
        for libver in ("earliest", "latest"):
            file = io.BytesIO()
            with h5py.File(file, "w", libver=libver) as h5:
                h5.create_dataset("data", (HEIGHT, WIDTH), "u2", chunks=(10, 10), maxshape=maxshape, fillvalue=3)
            assert (read(file.getvalue()) == 3).all()
    for limit in (1 << 20, 1 << 40, 1 << 62):
        for address, problem in ((0, "more chunks|not where|later ones"), (1 << 60, "more chunks|later ones")):
            whole = file_of("latest", chunks=(10, 10), maxshape=(HEIGHT, WIDTH + 1))
            at = whole.index(struct.pack("<QQ", HEIGHT, WIDTH + 1)) + 8
            hostile = changed(whole, at, struct.pack("<Q", limit))
            header = hostile.index(b"FAHD")
            hostile = changed(hostile, header + 8, struct.pack("<Q", 5 * -(-limit // 10)))
            if address:
                hostile = changed(hostile, header + 16, struct.pack("<Q", address))
            refused(with_checksums(hostile, HEIGHT, WIDTH), problem)
    for maxshape, axis in (((HEIGHT + 1, WIDTH), 0), ((None, WIDTH + 1), 1), ((HEIGHT + 1, None), 0)):
        whole = file_of("latest", chunks=(10, 10), maxshape=maxshape)
        limits = struct.pack("<QQ", *(size or (1 << 64) - 1 for size in maxshape))
        hostile = changed(whole, whole.index(limits) + 8 * axis, struct.pack("<Q", 1 << 62))
        refused(with_checksums(hostile, HEIGHT, WIDTH), "room for more chunks than there can be")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_values_in_one_piece(libver: str) -> None:
    """A dataset without chunks that has another size than its values, or is not within the file, is refused."""
    whole, size = file_of(libver), struct.pack("<Q", PIXELS.nbytes)
    at = max(i for i in range(len(whole)) if whole[i : i + 8] == size and whole[i - 10 : i - 9] in b"\x03\x04\x05")
    assert whole[number(whole, at - 8) :].startswith(PIXELS.tobytes())
    for place, new, problem in [
        (at, struct.pack("<Q", PIXELS.nbytes - 2), "more or fewer bytes than values"),
        (at, struct.pack("<Q", PIXELS.nbytes + 2), "more or fewer bytes than values"),
        (at - 8, struct.pack("<Q", len(whole) - 5990), "row 49 is not within"),
        (at - 8, b"\xfe" * 8, "row 0 is not within"),
    ]:
        refused(with_checksums(changed(whole, place, new), HEIGHT, WIDTH), problem)


def continuations(data: bytes) -> list[tuple[int, int]]:
    """Return where the header of the dataset is continued, and with how many bytes."""
    found, original = [], Metadata.read

    def note(metadata: Metadata, address: int, size: int) -> Fields:
        found.append((address, size))
        return original(metadata, address, size)

    with patch.object(Metadata, "read", note):
        read(data)
    return [place for place in found if place[1] > 1000][-1:]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_header_in_a_circle(libver: str) -> None:
    """A header whose continuation leads to itself is refused."""
    file = io.BytesIO(file_of(libver))
    with h5py.File(file, "r+", libver=libver) as h5:
        for i in range(3):
            h5["data"].attrs[f"attribute {i}"] = np.arange(200)
    whole = file.getvalue()
    for block, size in continuations(whole):
        if libver == "latest":
            circle = b"\x10\x10\0\0" + struct.pack("<QQ", block, size)
            rest = b"\0" + struct.pack("<HB", size - 8 - len(circle) - 4, 0)
            hostile = with_checksums(changed(whole, block + 4, circle + rest), HEIGHT, WIDTH)
        else:
            circle = b"\x10\0\x10\0\0\0\0\0" + struct.pack("<QQ", block, size)
            hostile = changed(whole, block, circle + b"\0\0" + struct.pack("<HI", size - len(circle) - 8, 0))
        refused(hostile, "the header of an object is too long")


def test_groups_that_lead_astray() -> None:
    """A group whose list of links is in a circle or damaged is refused."""
    file = io.BytesIO(file_of())
    with h5py.File(file, "r+") as h5:
        for i in range(400):
            h5.create_group(f"group {i}")
    whole = file.getvalue()
    root = whole.index(b"TREE\x00\x01")
    leaf = number(whole, root + NODE_HEAD + 8)
    node = number(whole, leaf + NODE_HEAD + 8)
    assert whole[node : node + 4] == b"SNOD"
    for at, new, problem in [
        (root + NODE_HEAD + 8, struct.pack("<Q", root), "not in order"),
        (root + NODE_HEAD + 8, b"\xfe" * 8, "later ones"),
        (root + NODE_HEAD + 8, whole[root + NODE_HEAD + 24 :][:8], "not in order"),
        (root + 5, b"\xff", "not in order"),
        (leaf + 5, b"\1", "not in order|not where"),
        (leaf, b"XREE", "not where"),
        (node, b"XNOD", "not where"),
        (node + 6, b"\xff\xff", "later ones|without a name"),
        (node + 8, b"\xfe" * 8, "without a name"),
        (whole.index(b"HEAP"), b"XEAP", "not where"),
        (whole.index(b"HEAP") + 8, b"\xff" * 7, "later ones"),
    ]:
        refused(changed(whole, at, new), problem)


def test_names_that_are_not_printable() -> None:
    """The error for a missing dataset is one line, whatever the names of the other objects are."""
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5.create_group("a\nb\x1b[31m" + "c" * 1000)
    refused(file.getvalue(), r"its root has a\?b\?\[31mc{90,100}\.$")


@pytest.mark.parametrize(
    ("code", "options", "change"),
    [
        (1, {"compression": "gzip"}, lambda chunk: chunk[:-1]),
        (1, {"compression": "gzip"}, lambda chunk: zlib.compress(bytes(1 << 25))),
        (1, {"compression": "gzip"}, lambda chunk: zlib.compress(bytes(3000 * 2 - 2))),
        (1, {"compression": "gzip"}, lambda chunk: zlib.compress(bytes(3000 * 2 + 2))),
        (FLETCHER32, {"fletcher32": True}, lambda chunk: chunk[:2]),
        (FLETCHER32, {"fletcher32": True}, lambda chunk: b"\1" + chunk[1:]),
        (LZF, {"compression": "lzf"}, lambda chunk: chunk[:-1]),
        (LZF, {"compression": "lzf"}, lambda chunk: b"\xff\xff\xff" + chunk),
        (SCALE_OFFSET, {"scaleoffset": 0}, lambda chunk: chunk[:-2]),
        (SCALE_OFFSET, {"scaleoffset": 0}, lambda chunk: chunk[:20]),
        (SCALE_OFFSET, {"scaleoffset": 0}, lambda chunk: b"\x10" + chunk[1:]),
        (SCALE_OFFSET, {"scaleoffset": 0}, lambda chunk: b"\x11" + chunk[1:] + bytes(9000)),
        (SCALE_OFFSET, {"scaleoffset": 0}, lambda chunk: chunk[:4] + b"\4" + chunk[5:]),
        (2, {"shuffle": True}, lambda chunk: chunk[:-1]),
    ],
)
def test_damaged_chunks(code: int, options: dict[str, Any], change: Callable[[bytes], bytes]) -> None:
    """A chunk that a filter cannot undo, or that would become larger than it can be, is refused in bounded memory."""
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        dataset = h5.create_dataset("data", data=PIXELS, chunks=(HEIGHT, WIDTH), **options)
        assert dataset.id.get_create_plist().get_filter(0)[0] == code
        dataset.id.write_direct_chunk((0, 0), change(dataset.id.read_direct_chunk((0, 0))[1]))
    tracemalloc.start()
    try:
        refused(file.getvalue(), "rows 0-49, columns 0-59 cannot be decoded|more bytes than it can")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("code", [4, 32_008, 32_015])
def test_filters_that_are_not_supported(code: int) -> None:
    """A filter that is not supported is named. Szip is among them: decoders of it do not notice missing bytes."""
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((10, 10))
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (4, 8) if code == 4 else ())
        h5py.h5d.create(h5.id, b"data", h5py.h5t.STD_U16LE, h5py.h5s.create_simple((HEIGHT, WIDTH)), plist)
    name = "szip" if code == 4 else f"with the number {code}"
    refused(file.getvalue(), f"is encoded by the filter {name}, which is not supported; use gzip")


def test_parameters_of_filters_that_no_library_writes() -> None:
    """Parameters with which HDF5's library would compute other values are refused."""
    data = (FUZZ / "corpus" / "hdf5" / "scaleoffset").read_bytes()[1:]
    at = data.index(struct.pack("<8I", 2, 0, 35, 0, 2, 0, 0, 1)) + 28
    out = np.zeros((12, 20), "u4")
    item = Hdf5Slice(MemoryFile(changed(data, at, b"\1\0\0\1")), 12, 20, out.dtype, "data", None)
    with pytest.raises(FormatError, match="scaled in an impossible way"):
        item.read(np.arange(12), slice(0, 20), out)


@pytest.mark.parametrize(("dtype", "first"), [("<u2", 0), (">i4", 3)])
def test_packed_bits_that_are_cut_short(dtype: str, first: int) -> None:
    """A chunk of packed bits that is cut short is refused."""
    kind = h5py.h5t.py_create(np.dtype(dtype)).copy()
    kind.set_precision(8 * kind.get_size() - 4)
    kind.set_offset(first)
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((HEIGHT, WIDTH))
        plist.set_filter(N_BIT)
        space = h5py.h5s.create_simple((HEIGHT, WIDTH))
        dataset = h5py.Dataset(h5py.h5d.create(h5.id, b"data", kind, space, plist))
        dataset[:] = PIXELS
        dataset.id.write_direct_chunk((0, 0), dataset.id.read_direct_chunk((0, 0))[1][:-3])
    refused(file.getvalue(), "fewer bits than it should")


def test_metadata_take_bounded_memory() -> None:
    """The metadata of a file are fetched up to a limit, in blocks and in parallel."""
    file = MemoryFile(bytes(10 << 20))
    metadata = Metadata(file, 1 << 20)
    metadata.read(0, 900_000)
    with pytest.raises(ValueError, match="take more of the file than they can"):
        metadata.read(5 << 20, 200_000)
    with pytest.raises(ValueError, match="take more of the file than they can"):
        Metadata(file, 1 << 20).read_many([(i << 12, 4096) for i in range(400)])
    with pytest.raises(ValueError, match="overlap"):
        Metadata(file, 1 << 20).read_many([(0, 100), (99, 100)])


def test_a_file_that_is_being_written() -> None:
    """A file that another program is writing, or has not closed, is refused."""
    whole = file_of("latest")
    refused(with_checksums(changed(whole, 11, b"\1"), HEIGHT, WIDTH), "is being written")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_type_of_few_bits(libver: str) -> None:
    """A type that uses less than half of its bits, or more than all, is refused: no program writes one."""
    whole = file_of(libver)
    at = whole.index(struct.pack("<IHH", 2, 0, 16)) + 4
    for first, bits in ((0, 7), (0, 0), (0, 17), (1, 16), (0xFFFF, 16)):
        hostile = changed(whole, at, struct.pack("<HH", first, bits))
        refused(with_checksums(hostile, HEIGHT, WIDTH), f"whole numbers of {bits} bits in 2 bytes")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_fill_values_of_another_size(libver: str) -> None:
    """A fill value that has another size than the voxels is refused, and so are two that differ."""
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as h5:
        h5.create_dataset("data", (HEIGHT, WIDTH), "<u2", fillvalue=0xABCD)
    whole, value = file.getvalue(), struct.pack("<IH", 2, 0xABCD)
    assert (read(whole) == 0xABCD).all()
    for size in (1, 3, 0x7FFFFFFF):
        hostile = changed(whole, whole.index(value), struct.pack("<I", size))
        refused(with_checksums(hostile, HEIGHT, WIDTH), "has a fill value of|two fill values")
    if libver == "earliest":
        refused(changed(whole, whole.rindex(value) + 4, b"\xce"), "two fill values")
