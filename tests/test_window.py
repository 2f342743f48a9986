"""Any chain of indexes of a VolumeArray gives what numpy gives, and what is not an index gives a plain dask array."""

import copy
import pickle
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from liver_dask.window import LazyWindow, Selection, VolumeArray, Window

SHAPE = (5, 24, 17)
WHOLE = np.arange(np.prod(SHAPE), dtype="u2").reshape(SHAPE)


class CountingReader:
    """Reads from an array and notes how many voxels it was asked for."""

    variant = ""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, z: Selection, y: Selection, x: Selection, out: np.ndarray) -> None:
        self.read += len(z) * len(y) * len(x)
        out[:] = WHOLE[np.ix_(z, y, x)]

    def describe(self) -> str:
        return "test"


def volume_array() -> tuple[VolumeArray, CountingReader]:
    reader = CountingReader()
    chunks = ((1,) * 5, (10, 10, 4), (17,))
    return VolumeArray.of(LazyWindow(reader, Window.whole(SHAPE), WHOLE.dtype), chunks), reader


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Basic indexes, and at most one list or mask, as dask takes them."""
    basic = draw(hnp.basic_indices(shape, allow_newaxis=False, allow_ellipsis=False))
    key = list(basic) if isinstance(basic, tuple) else [basic]
    if key and draw(st.booleans()):
        axis = draw(st.integers(0, len(key) - 1))
        if shape[axis]:
            number = st.integers(-shape[axis], shape[axis] - 1)
            mask = st.lists(st.booleans(), min_size=shape[axis], max_size=shape[axis]).map(np.array)
            key[axis] = draw(st.one_of(st.lists(number, max_size=8), mask, number.map(np.int32)))
    return tuple(key)


def outer(array: np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
    """Index axis by axis, so that a list keeps its place among numbers."""
    key = (*key, *(slice(None),) * (array.ndim - len(key)))
    for axis in reversed(range(len(key))):
        index = key[axis]
        index = np.asarray(index, int) if isinstance(index, list) else index
        array = array[(slice(None),) * axis + (index,)]
    return array


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_chain_of_indexes_reads_those_voxels_and_no_others(data: st.DataObject) -> None:
    """A composed index would give other voxels than numpy, or read more than it gives."""
    array, reader = volume_array()
    expected = WHOLE
    result: da.Array = array
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(keys(expected.shape))
        result, expected = result[key], outer(expected, key)
    assert isinstance(result, VolumeArray)
    assert result.shape == expected.shape
    assert sum(result.numblocks) == 0 or all(sum(c) == n for c, n in zip(result.chunks, result.shape, strict=True))
    np.testing.assert_array_equal(result.compute(scheduler="sync"), expected)
    assert reader.read == expected.size


@pytest.mark.parametrize(
    "use",
    [
        lambda a: a.T,
        lambda a: a + 1,
        lambda a: a[None, 2:4],
        lambda a: a[..., None],
        lambda a: a.rechunk((5, 7, 3)) if isinstance(a, da.Array) else a,
        lambda a: a[2:].rechunk((3, 24, 17))[:, 3:9] if isinstance(a, da.Array) else a[2:, 3:9],
        lambda a: a.reshape(-1),
        lambda a: a[a > 100] if isinstance(a, np.ndarray) else a[a > 100].compute_chunk_sizes(),
        lambda a: a.blocks[1:3] if isinstance(a, da.Array) else a[1:3],
        lambda a: a.sum(axis=0),
        lambda a: a.astype("f4")[1, 5:9],
        lambda a: np.concatenate([a[:2], a[3:]]),
        lambda a: a.vindex[[1, 2], [3, 4]] if isinstance(a, da.Array) else a[[1, 2], [3, 4]],
        lambda a: copy.deepcopy(a)[1],
        lambda a: pickle.loads(pickle.dumps(a))[1, ::-2],
        lambda a: a.persist(scheduler="sync")[1, 3:5] if isinstance(a, da.Array) else a[1, 3:5],
        lambda a: a[np.array(2)],
        lambda a: a[..., 3],
        lambda a: a[1, ..., 3],
        lambda a: a[:, :0],
    ],
)
def test_all_that_dask_arrays_do(use) -> None:
    """The array would not be a dask array to the rest of the world."""
    array, _ = volume_array()
    result = use(array)
    assert isinstance(result, da.Array)
    np.testing.assert_array_equal(result.compute(scheduler="sync"), use(WHOLE))


@pytest.mark.parametrize("key", [(5,), (0, 24), (slice(None), slice(None), -18), ([7],), (0, 0, 0, 0), (1.5,)])
def test_what_is_out_of_bounds_is_an_index_error(key) -> None:
    """A wrong index would give some voxels, or fail when they are read."""
    with pytest.raises(IndexError):
        volume_array()[0][key]


def test_xarray_composes_too() -> None:
    """Xarray's own ways of indexing would read whole blocks."""
    array, reader = volume_array()
    variable = xr.DataArray(array, dims=("z", "y", "x"))
    got = variable.isel(z=2).isel(y=[3, 4, 9], x=[1, 5])[::-1].compute(scheduler="sync")
    np.testing.assert_array_equal(got, WHOLE[2][np.ix_([9, 4, 3], [1, 5])])
    assert reader.read == 6
    points = variable.isel(z=xr.DataArray([0, 1], dims="p"), y=xr.DataArray([2, 3], dims="p"))
    np.testing.assert_array_equal(points.compute(scheduler="sync"), WHOLE[[0, 1], [2, 3]])


def test_equal_windows_have_equal_names_and_unequal_ones_have_not() -> None:
    """Dask would take one window's voxels for another's."""
    first, second = volume_array()[0], volume_array()[0]
    assert first[1, 2:9][3:5].name == second[1, 5:7].name
    names = {first[key].name for key in [(1,), (2,), (slice(1, 2),), (1, slice(0, 9)), ([1],), (slice(None), 1)]}
    assert len(names) == 6


def test_blocks_of_a_composed_index_are_cut_where_the_source_is() -> None:
    """A window across blocks would become one task, or a block read the files of two."""
    array, _ = volume_array()
    assert array[1, 5:23].chunks == ((5, 10, 3), (17,))
    assert array[1:4][:, ::-3].chunks == ((1, 1, 1), (2, 3, 3), (17,))
    assert array[[0, 0, 3]].chunks[0] == (2, 1)


@pytest.mark.parametrize("how", ["slice", "mask", "out", "xarray"])
def test_an_array_that_was_assigned_to_is_no_longer_its_window(how: str) -> None:
    """What was assigned would be lost with the next index, copy or pickle."""
    array, _ = volume_array()
    expected = WHOLE.copy()
    if how == "slice":
        array[0] = expected[0] = 0
    elif how == "mask":
        array[array > 100] = 100
        expected[expected > 100] = 100
    elif how == "out":
        da.add(array, 1, out=array)
        expected += 1
    else:
        xr.DataArray(array, dims=("z", "y", "x"))[{"z": 0}] = 0
        expected[0] = 0
    for use in (lambda a: a, lambda a: a[:, 3], copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))):
        np.testing.assert_array_equal(
            use(array).compute(scheduler="sync"), expected[:, 3] if use(array).ndim == 2 else expected
        )


def test_it_mixes_with_other_dask_arrays_in_one_dataset() -> None:
    """Xarray refuses chunked arrays of two types."""
    array, _ = volume_array()
    ds = xr.Dataset({"raw": (("z", "y", "x"), array)}).assign(half=lambda ds: ds.raw // 2)
    for done in (ds.compute(), ds.persist().compute(), ds.unify_chunks().compute()):
        np.testing.assert_array_equal(done.half, WHOLE // 2)
    both = xr.apply_ufunc(np.add, ds.raw, ds.half, dask="parallelized", output_dtypes=["u2"])
    np.testing.assert_array_equal(both.compute(), WHOLE + WHOLE // 2)
