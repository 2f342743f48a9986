"""Every reader gets the bits that were written, of every data type; a changed bit is an error."""

import io
import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.stores import SMALL
from liver_dask.core.errors import DamagedError
from liver_dask.store import array as stored
from liver_dask.store import downsampling
from liver_dask.store import finished as store
from liver_dask.store import levels as store_levels
from liver_dask.store import shards as slabs
from liver_dask.store.shards import decode_chunk, decode_planes, encode_chunk
from liver_dask.store.slabs import Slab, merge_slabs, read_first_row, write_slab

DTYPES = ("bool", "int8", "uint8", "int16", "uint16", ">u2", "int32", "uint64", "float16", "float32", ">f4", "float64")
TINY = {"chunks": (2, 3, 4), "shards": (4, 6, 8)}

Read = Callable[[Path, str], np.ndarray]


def read_by_xarray(path: Path, name: str) -> np.ndarray:
    return xr.open_zarr(path, chunks=None)[name].to_numpy()


def read_by_zarr(path: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_array(path / name, mode="r")[:])


def read_by_tensorstore(path: Path, name: str) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}
    return tensorstore.open(spec).result().read().result()


def read_by_the_loader(path: Path, name: str) -> np.ndarray:
    return stored.StoredArray(path, name)[:, :, :]


def read_by_the_loader_in_planes(path: Path, name: str) -> np.ndarray:
    array = stored.StoredArray(path, name)
    return np.concatenate([array[z : z + 1, :, :] for z in range(array.shape[0])])


READERS = (read_by_xarray, read_by_zarr, read_by_tensorstore, read_by_the_loader, read_by_the_loader_in_planes)
"""neuroglancer, which reads the same codec, is not among them, because the tests run no JavaScript."""


def bits(voxels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<")).view("u1")


def dataset_of(**variables: np.ndarray) -> xr.Dataset:
    shape = next(iter(variables.values())).shape
    coordinates = {dim: np.arange(length) for dim, length in zip("zyx", shape, strict=True)}
    return xr.Dataset({name: (("z", "y", "x"), of) for name, of in variables.items()}, coordinates).chunk()


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_written_comes_back_to_the_bit(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every reader returns the written voxels bit for bit, NaN and -0.0 included, for every data type."""
    shape = data.draw(arrays.array_shapes(min_dims=3, max_dims=3, max_side=9))
    written = {}
    for name in "abc":  # several in a store: to make and open one takes longer than to write and read these
        dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
        plain = st.sampled_from([0, 1] if dtype.kind in "bui" else [0.0, -0.0, float("nan"), float("inf"), 1.5])
        elements = plain if data.draw(st.booleans()) else None
        written[name] = data.draw(arrays.arrays(dtype, shape, elements=elements, fill=plain))
    path = tmp_path_factory.mktemp("a") / "a.zarr"
    ld.to_zarr(dataset_of(**written), path, progress=False, **TINY)
    for read in READERS:
        for name, voxels in written.items():
            found = read(path, name)
            assert found.dtype == voxels.dtype.newbyteorder("="), read
            np.testing.assert_array_equal(bits(found), bits(voxels), err_msg=read.__name__)


@pytest.mark.parametrize("value", [0.0, -0.0, float("nan"), 1.0])
def test_a_chunk_of_one_value_comes_back(tmp_path: Path, value: float) -> None:
    """A chunk is left out only if all its bits are 0, and every reader returns its values bit for bit."""
    voxels = np.full((2, 3, 4), value, np.float32)
    assert (encode_chunk(voxels, (2, 3, 4)).data == b"") == (bits(voxels) == 0).all()
    ld.to_zarr(dataset_of(a=voxels), tmp_path / "a.zarr", progress=False, **TINY)
    for read in READERS:
        np.testing.assert_array_equal(bits(read(tmp_path / "a.zarr", "a")), bits(voxels), err_msg=read.__name__)


def test_a_float_that_zarr_lacks_is_refused(tmp_path: Path) -> None:
    """A data type that zarr lacks is refused before anything is written."""
    voxels = np.zeros((2, 2, 2), "longdouble")
    with pytest.raises(ld.InvalidArgumentError, match="only numbers"):
        ld.to_zarr(dataset_of(a=voxels), tmp_path / "a.zarr", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_zeros_of_glass_are_zeros_at_every_level(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voxels
) -> None:
    """Voxels of a computed float variable that are 0 are 0, not NaN, for every reader and at every pyramid level."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 100)
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=[])
    ds = ds.assign(grey=(ds.raw / 65535).astype("float32") * (ds.x > 200))[["grey"]]
    path = Path(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, pyramid=True, **SMALL))
    expected = (voxels["raw"] / 65535).astype("float32") * (np.arange(SHAPE[2]) > 200)
    levels = [path, path / "pyramid" / "s1", path / "pyramid" / "s2"]
    for number, level in enumerate(levels):
        if number:
            expected = downsampling.downsample(expected, (1, 2, 2), "mean")
        assert (expected[:, :, : 64 // 2**number] == 0).all()
        for read in READERS:
            np.testing.assert_array_equal(read(level, "grey"), expected, err_msg=f"{read.__name__} of {level}")


@pytest.fixture(scope="module")
def kept(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with shards of raw, of masks and of a computed variable."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE).assign(grey=lambda ds: (ds.raw / 65535).astype("float32"))
    path = tmp_path_factory.mktemp("kept") / "a.zarr"
    layout = {"chunks": (4, 32, 64), "shards": (4, 64, 128)}
    return Path(ld.to_zarr(ds, path, bounding_box=(60, 188, 60, 124, 2, 6), progress=False, **layout))


def test_a_changed_bit_is_an_error_for_every_reader(kept: Path) -> None:
    """A changed bit anywhere in a shard is an error for every reader; that of this package names the shard."""
    random = np.random.default_rng(0)
    told = dict.fromkeys(READERS, 0)
    names = ("raw", "mito", "er", "grey")
    expected = {name: read_by_zarr(kept, name) for name in names}
    flips = 120
    for name in random.choice(names, flips):
        (path,) = (path for path in (kept / name / "c").rglob("*") if path.is_file())
        whole = path.read_bytes()
        bit = int(random.integers(8 * len(whole)))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            path.write_bytes(damaged)
            for read in READERS:
                try:
                    found = read(kept, name)
                except ld.DamagedError as error:
                    told[read] += str(path) in str(error)
                except (ValueError, RuntimeError):  # of zarr-python; of tensorstore
                    told[read] += read not in (read_by_the_loader, read_by_the_loader_in_planes)
                else:
                    np.testing.assert_array_equal(found, expected[name], err_msg=f"{read.__name__}, bit {bit}")
        finally:
            path.write_bytes(whole)
    assert set(told.values()) == {flips}, "every byte of a shard is under some checksum"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_plane_of_a_damaged_chunk_is_decoded(data: st.DataObject) -> None:
    """Decoding any plane of a damaged or shortened chunk is a checksum error, as is decoding the whole chunk."""
    chunk = (8, 32, 64)
    encoded = bytearray(encode_chunk(np.random.default_rng(0).integers(0, 300, chunk).astype("<u2"), chunk).data)
    if data.draw(st.booleans()):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del encoded[data.draw(st.integers(1, len(encoded) - 1)) :]
    first = data.draw(st.integers(0, 7))
    with pytest.raises(ld.DamagedError, match="its checksum is wrong"):
        decode_planes(bytes(encoded), np.dtype("<u2"), chunk, slice(first, first + 1))
    with pytest.raises(ld.DamagedError, match="its checksum is wrong"):
        decode_chunk(bytes(encoded), np.dtype("<u2"), chunk)


def test_nothing_passes_for_a_chunk(kept: Path) -> None:
    """Decoding empty bytes or bytes that are all 0 is an error."""
    for hole in (b"", bytes(4), bytes(5), bytes(1000)):
        with pytest.raises(ld.DamagedError):
            decode_planes(hole, np.dtype("<u2"), (2, 3, 4), slice(1))
    with pytest.raises(ld.DamagedError):
        decode_chunk(bytes(4), np.dtype("<u2"), (2, 3, 4))


def test_a_damaged_chunk_of_a_slab_is_not_merged(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export ends with an error if a chunk of a slab changed on the disk before it is merged into a shard."""
    write_slab = store.write_slab

    def write_badly(path: Path, chunks: list[slabs.Chunk], *grids) -> None:
        write_slab(path, chunks, *grids)
        with path.open("r+b") as file:
            file.seek(len(chunks[0].data) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 16]))

    monkeypatch.setattr(store, "write_slab", write_badly)
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=[])
    ds = ds.isel(z=slice(2), y=slice(100, 200), x=slice(100, 200))
    with pytest.raises(ld.DamagedError, match="a chunk is not as it was written"):
        ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)


def test_the_metadata_say_what_chunks_are(kept: Path) -> None:
    """The metadata of every array list the codecs blosc and crc32c, a fill value of 0, and no _FillValue attribute."""
    for name in ("raw", "mito", "grey"):
        codecs = [codec.to_dict()["name"] for codec in zarr.open_array(kept / name, mode="r").compressors]
        assert codecs == ["blosc", "crc32c"]
        document = json.loads((kept / name / "zarr.json").read_bytes())
        assert document["fill_value"] == 0
        assert "_FillValue" not in document["attributes"]


def test_an_index_that_cannot_be_is_damaged() -> None:
    """An index that points out of the chunks, is cut short or was changed is an error; the last byte may be used."""
    grid, content = (1, 1, 2), bytes(50)

    def shard(offset: int, length: int) -> bytes:
        return content + slabs.with_checksum(np.array([[slabs.EMPTY] * 2, [offset, length]], "<u8"))

    for place in ((0, 50), (49, 1), (50, 0)):
        found = slabs.read_shard_index(io.BytesIO(shard(*place)), grid)
        assert found.tolist() == [[[[slabs.EMPTY] * 2, [*place]]]]
    for place in ((0, 51), (50, 1), (51, 0), (2**64 - 2, 3), (3, 2**64 - 2)):
        with pytest.raises(DamagedError, match="points out of the file"):
            slabs.read_shard_index(io.BytesIO(shard(*place)), grid)
    right = shard(0, 50)
    with pytest.raises(DamagedError, match="cut short"):
        slabs.read_shard_index(io.BytesIO(right[-35:]), grid)
    for at in range(-36, 0):
        changed = bytearray(right)
        changed[at] ^= 1
        with pytest.raises(DamagedError, match="checksum of its index"):
            slabs.read_shard_index(io.BytesIO(changed), grid)
    for tail in (right[-35:], right[-37:]):
        with pytest.raises(DamagedError, match="cut short"):
            slabs.index_in(tail, (*grid, 2), np.dtype("<u8"))


def test_slabs_and_shards_hold_each_chunk_in_its_place(tmp_path: Path) -> None:
    """Slabs of chunks become shards with the same voxels, statistics, size and checksum, and rows of both are right."""
    chunk, grid, width, dtype = (2, 3, 4), (2, 2, 3), 5, np.dtype("u2")  # the second shard is two chunks wide
    voxels = np.random.default_rng(0).integers(1, 9, (3, 5, 18), dtype)  # the last chunks are cut
    voxels[:2, :3, 4:8] = voxels[2:, 3:, 16:] = 0  # chunks that have no bytes
    layers = []
    for z, y in product(range(grid[0]), range(grid[1])):
        rows = voxels[2 * z : 2 * z + 2, 3 * y : 3 * y + 3]
        chunks = [encode_chunk(rows[:, :, 4 * x : 4 * x + 4], chunk) for x in range(width)]
        layers.append(Slab(tmp_path / f"{z}.{y}", z, y, (1, width)))
        write_slab(layers[-1].path, chunks, (1, width), grid[2])
        found = read_first_row(layers[-1].path, (1, width), dtype, chunk)
        np.testing.assert_array_equal(found, np.pad(rows[0, 0], (0, 2)))
    for x, there in enumerate((slice(0, 3), slice(3, 5))):
        part, path = voxels[:, :, 4 * there.start : 4 * there.stop], tmp_path / f"shard{x}"
        checksum, known = merge_slabs(path, tmp_path / "part", grid, layers, there)
        assert checksum == (path.stat().st_size, google_crc32c.value(path.read_bytes()))
        for z, y in np.ndindex(part.shape[:2]):
            row = slabs.read_row(path, grid, dtype, chunk, z, y)
            np.testing.assert_array_equal(row, np.pad(part[z, y], (0, 12 - part.shape[2])))
        for at in np.ndindex(grid):
            here = part[tuple(slice(i * n, (i + 1) * n) for i, n in zip(at, chunk, strict=True))]
            expected = (np.count_nonzero(here), here.mean(), here.std()) if here.any() else (0, 0, 0)
            np.testing.assert_allclose(known[at].tolist(), expected, rtol=1e-6)
