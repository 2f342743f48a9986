"""Windows and tables of a written store: they have the right numbers, leave no file open and report damage."""

import contextlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.places import copied, files_of, flip, put, read, remove
from helpers.stores import BOX, SMALL, read_by_tensorstore
from liver_dask.core.places import Place
from liver_dask.store.array import StoredArray
from liver_dask.store.record import read_statistics
from liver_dask.store.shards import decode_chunk, decode_planes, encode_chunk
from liver_dask.store.zarr_store import zarr_store

X0, X1, Y0, Y1, Z0, Z1 = BOX


@pytest.fixture(scope="module")
def in_a_folder(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ds = ld.open_human_liver_em(archive, shape=SHAPE).assign(nothing=lambda ds: ds.mito * 0)
    path = tmp_path_factory.mktemp("kept") / "a.zarr"
    return Path(ld.to_zarr(ds, path, bounding_box=BOX, progress=False, **SMALL))


@pytest.fixture(scope="module", params=["folder", "s3"])
def kept(request: pytest.FixtureRequest, in_a_folder: Path) -> Place:
    """The store, in a folder and in object storage."""
    if request.param == "folder":
        return in_a_folder
    return copied(in_a_folder, request.getfixturevalue("running_s3").folder() / "a.zarr")


@pytest.fixture(scope="module")
def by_tensorstore(kept: Place) -> dict[str, np.ndarray]:
    return {name: read_by_tensorstore(kept / name) for name in ("raw", "mito", "er", "nucleus", "nothing")}


def test_any_window_is_what_others_read(kept: Place, by_tensorstore: dict[str, np.ndarray]) -> None:
    """A window at any position has the same voxels as read by tensorstore."""

    @settings(max_examples=150 if isinstance(kept, Path) else 20, deadline=None)
    @given(data=st.data())
    def is_the_same(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(by_tensorstore)))
        array = StoredArray(kept, name)
        bounds = [sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2))) for length in array.shape]
        window = tuple(slice(*bound) for bound in bounds)
        found = array[window]
        np.testing.assert_array_equal(found, by_tensorstore[name][window])
        assert found.dtype == array.dtype

    is_the_same()


@pytest.mark.parametrize("dtype", ["<u2", "<u1", "<f4", "?"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_planes_of_a_chunk_are_those_of_all_of_it(dtype: str, data: st.DataObject) -> None:
    """Planes of a chunk that are decoded alone equal those of the whole chunk."""
    chunk = data.draw(st.tuples(st.integers(1, 9), st.sampled_from([1, 33, 256]), st.sampled_from([7, 256])))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    noise = random.integers(0, data.draw(st.sampled_from([2, 300, 60000])), chunk)
    voxels = (np.cumsum(noise, axis=2) if data.draw(st.booleans()) else noise).astype(dtype)
    encoded = encode_chunk(voxels, chunk).data
    first = data.draw(st.integers(0, chunk[0] - 1))
    planes = slice(first, data.draw(st.integers(first + 1, chunk[0])))
    np.testing.assert_array_equal(decode_planes(encoded, voxels.dtype, chunk, planes), voxels[planes])


@pytest.mark.parametrize("dtype", ["<u2", "<u1"])
@pytest.mark.parametrize("depth", [7, 8])
def test_planes_of_a_last_block_that_is_shorter(dtype: str, depth: int) -> None:
    """Planes of a chunk are decoded correctly whether or not its last Blosc block is shorter than the others."""
    chunk = (depth, 256, 256)
    voxels = np.random.default_rng(0).integers(0, 2, chunk).astype(dtype)
    encoded = encode_chunk(voxels, chunk).data
    size, block = np.frombuffer(encoded, "<u4", 2, 4)
    assert size > block, "all of it is one block"
    for first in range(depth):
        for last in range(first + 1, depth + 1):
            planes = slice(first, last)
            np.testing.assert_array_equal(decode_planes(encoded, voxels.dtype, chunk, planes), voxels[planes])


@pytest.mark.parametrize("size", [0, 1, 262144, 524288, 2**31, 2**32 - 1])
def test_a_chunk_of_another_size_is_reported(size: int) -> None:
    """A chunk whose header has a wrong size is an error, with and without a checksum."""
    chunk = (8, 256, 256)
    encoded = encode_chunk(np.random.default_rng(0).integers(0, 300, chunk).astype("<u2"), chunk).data
    torn = encoded[:4] + size.to_bytes(4, "little") + encoded[8:]
    with pytest.raises(ld.DamagedError, match="its checksum is wrong"):
        decode_planes(torn, np.dtype("<u2"), chunk, slice(1, 2))
    with pytest.raises(ld.DamagedError, match="cannot be decoded"):
        decode_planes(torn[:-4], np.dtype("<u2"), chunk, slice(1, 2), has_checksum=False)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_chunk_without_a_checksum_is_reported_or_harmless(data: st.DataObject) -> None:
    """Decoding a damaged chunk without a checksum raises DamagedError or succeeds, but raises no other error."""
    chunk = (8, 256, 128)
    voxels = np.random.default_rng(0).integers(0, 300, chunk).astype("<u2")
    whole = bytearray(encode_chunk(voxels, chunk).data[:-4])
    at = data.draw(st.one_of(st.integers(0, 47), st.integers(0, len(whole) - 1)))
    whole[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(whole), len(whole) // 2, 20, 16, 3]))
    first = data.draw(st.integers(0, 7))
    planes = slice(first, data.draw(st.integers(first + 1, 8)))
    for decode in (
        lambda d: decode_planes(d, voxels.dtype, chunk, planes, has_checksum=False),
        lambda d: decode_chunk(d, voxels.dtype, chunk, has_checksum=False),
    ):
        with contextlib.suppress(ld.DamagedError):
            decode(bytes(whole[:cut]))


def test_a_shard_that_is_damaged_or_gone_is_named(kept: Place) -> None:
    """A damaged shard is an error that names its file and `liver-dask verify`, and a missing shard is an error."""
    array = StoredArray(kept, "raw")
    everything = (slice(None),) * 3
    shard = kept / "raw" / "c" / "0" / "0" / "0"
    whole = read(shard)
    try:
        for damage in (whole[:-30], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
            put(shard, damage)
            with pytest.raises(OSError, match=rf"{shard} cannot be read .*liver-dask verify"):
                array[everything]
        remove(shard)
        with pytest.raises(ld.DamagedError, match="No such file"):
            array[everything]
    finally:
        put(shard, whole)


def test_a_pickle_is_small(kept: Place) -> None:
    """A pickled array is small and reads the same voxels."""
    array = StoredArray(kept, "raw")
    pickled = pickle.dumps(array)
    assert len(pickled) < 3000
    np.testing.assert_array_equal(pickle.loads(pickled)[2:3, :, :], array[2:3, :, :])


def test_nothing_is_left_open(in_a_folder: Path) -> None:
    """Reading windows leaves no file open."""
    array = StoredArray(in_a_folder, "raw")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    array[:, :, :]
    for _ in range(5):
        array[:, 3:9, 2:8]
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_a_store_is_reported(kept: Place) -> None:
    """A path without a store, and a variable that the store does not have, are errors."""
    with pytest.raises(ld.NotDownloadedError, match="no complete store"):
        StoredArray(kept.parent / "none.zarr", "raw")
    with pytest.raises(ld.InvalidArgumentError, match="does not hold 'bile_duct'; it holds raw, mito"):
        StoredArray(kept, "bile_duct")


def test_the_table_says_what_is_in_each_chunk(kept: Place, by_tensorstore: dict[str, np.ndarray]) -> None:
    """The table has the number of nonzero voxels of each chunk, and of raw also the mean and standard deviation."""
    depth, height, width = SMALL["chunks"]
    for name, voxels in by_tensorstore.items():
        table = {kind: read_statistics(kept, name, kind) for kind in ("nonzero", "mean", "std")}
        for z, y, x in np.ndindex(table["nonzero"].shape):
            chunk = voxels[z * depth :, y * height :, x * width :][:depth, :height, :width]
            assert table["nonzero"][z, y, x] == np.count_nonzero(chunk)
            if name == "raw":
                np.testing.assert_allclose(table["mean"][z, y, x], chunk.mean(), rtol=1e-5)
                np.testing.assert_allclose(table["std"][z, y, x], chunk.std(), rtol=1e-4)
        assert (z, y, x) == tuple(-(-n // c) - 1 for n, c in zip(voxels.shape, SMALL["chunks"], strict=True))
    assert read_statistics(kept, "mito", "nonzero").any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_without_a_mean_are_written_all_the_same(value: float) -> None:
    """Voxels with a NaN, an infinity or a very large number are encoded without a warning, and decoded unchanged."""
    voxels = np.ones((2, 3, 4))
    voxels[0, 0, 0] = value
    encoded = encode_chunk(voxels, (2, 3, 4))
    assert encoded.statistics["nonzero"] == 24
    np.testing.assert_array_equal(decode_chunk(encoded.data, voxels.dtype, (2, 3, 4)), voxels)


def test_the_table_is_no_part_of_the_dataset(kept: Place) -> None:
    """The tables of a store are not among the variables that xarray finds."""
    assert set(xr.open_zarr(zarr_store(kept)).data_vars) == {"raw", "mito", "er", "nucleus", "nothing"}


def test_a_table_that_is_damaged_is_reported(kept: Place) -> None:
    """A damaged table is an error when it is read."""
    chunks = kept / "liver_dask" / "er" / "nonzero" / "c"
    (part,) = files_of(chunks)
    flip(chunks / part, 0)
    try:
        with pytest.raises(ld.DamagedError, match="cannot be read"):
            read_statistics(kept, "er", "nonzero")
    finally:
        flip(chunks / part, 0)
