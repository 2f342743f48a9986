"""Chains of indexes of a VolumeArray give what numpy gives, and other operations give right dask arrays."""

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

from helpers.counting import WHOLE, volume_array
from liver_dask.archive.lazy.arrays import VolumeArray


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Basic indexes with at most one list or mask, as dask accepts them."""
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
    """Index axis by axis, so that the axis of a list keeps its place where other axes have numbers."""
    key = (*key, *(slice(None),) * (array.ndim - len(key)))
    for axis in reversed(range(len(key))):
        index = key[axis]
        index = np.asarray(index, int) if isinstance(index, list) else index
        array = array[(slice(None),) * axis + (index,)]
    return array


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_chain_of_indexes_reads_those_voxels_and_no_others(data: st.DataObject) -> None:
    """Any chain of indexes gives the same voxels as in numpy, and reads exactly those."""
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
    """What can be done with a dask array gives a dask array with numpy's voxels."""
    array, _ = volume_array()
    result = use(array)
    assert isinstance(result, da.Array)
    np.testing.assert_array_equal(result.compute(scheduler="sync"), use(WHOLE))


def smooth(block: np.ndarray) -> np.ndarray:
    """For each voxel, the sum of its two neighbours along every axis, with the block's edges wrapped."""
    return sum(np.roll(block, shift, axis) for axis in range(3) for shift in (-1, 1)).astype("u2")


ALIKE = {
    "flip": lambda m, a: m.flip(a, 1),
    "flip all": lambda m, a: m.flip(a),
    "fliplr": lambda m, a: m.fliplr(a),
    "flipud": lambda m, a: m.flipud(a),
    "rot90": lambda m, a: m.rot90(a, axes=(1, 2)),
    "roll": lambda m, a: m.roll(a, 5, 1),
    "roll all": lambda m, a: m.roll(a, -3),
    "roll two": lambda m, a: m.roll(a, (2, -7), (0, 2)),
    "take": lambda m, a: m.take(a, [3, 1, 1, -1], axis=1),
    "take along z": lambda m, a: m.take(a, np.array([4, 0, 2]), axis=0),
    "repeat": lambda m, a: m.repeat(a, 3, axis=1),
    "repeat x": lambda m, a: m.repeat(a, 2, axis=2),
    "tile": lambda m, a: m.tile(a, (1, 2, 1)),
    "tril": lambda m, a: m.tril(a, 2),
    "triu": lambda m, a: m.triu(a[0], -3),
    "diag": lambda m, a: m.diag(a[0, :17]),
    "diagonal": lambda m, a: m.diagonal(a, 1, 0, 2),
    "compress": lambda m, a: m.compress([True, False, True, True], a, axis=0),
    "compress rows": lambda m, a: m.compress(np.arange(24) % 5 == 0, a, axis=1),
    "extract": lambda m, a: m.extract(a[0] > 50, a[0]),
    "diff": lambda m, a: m.diff(a.astype("i4"), axis=1),
    "diff twice": lambda m, a: m.diff(a.astype("i4"), n=2, axis=2),
    "gradient": lambda m, a: m.gradient(a.astype("f8"), axis=1),
    "cumsum": lambda m, a: m.cumsum(a, axis=1),
    "pad": lambda m, a: m.pad(a, ((1, 0), (2, 3), (0, 4)), mode="reflect"),
    "pad edge": lambda m, a: m.pad(a, 2, mode="edge"),
    "pad wrap": lambda m, a: m.pad(a, ((0, 0), (3, 3), (1, 1)), mode="wrap"),
    "histogram": lambda m, a: m.histogram(a, bins=7, range=(0, 2040))[0],
    "bincount": lambda m, a: m.bincount(a[0].ravel(), minlength=408),
    "searchsorted": lambda m, a: (
        m.searchsorted(a[0, 0], np.array([3, 9]))
        if m is np
        else m.searchsorted(a[0, 0], da.from_array(np.array([3, 9])))
    ),
    "percentile": lambda m, a: m.median(a, axis=0),
    "argmax": lambda m, a: m.argmax(a, axis=2),
    "topk": lambda m, a: np.sort(a, axis=2)[..., ::-1][..., :3] if m is np else da.topk(a, 3, axis=2),
    "where": lambda m, a: m.where(a % 2 == 0, a, 0),
    "choose": lambda m, a: m.where(a[0] > 9, a[1], a[2]),
    "stack": lambda m, a: m.stack([a[0], a[::-1][0]]),
    "concatenate": lambda m, a: m.concatenate([a[:, :7], a[:, 7:]], axis=1),
    "block": lambda m, a: m.block([[a[0], a[1]], [a[2], a[3]]]),
    "squeeze": lambda m, a: m.squeeze(a[1:2]),
    "moveaxis": lambda m, a: m.moveaxis(a, 0, -1)[3, ::-2],
    "rollaxis": lambda m, a: m.rollaxis(a, 2)[4],
    "transposed": lambda m, a: m.transpose(a, (2, 0, 1))[5:9],
    "ravel": lambda m, a: m.ravel(a)[30:900:7],
    "reshape": lambda m, a: a.reshape(5, 4, 6, 17)[1:, 2],
    "swapaxes": lambda m, a: m.swapaxes(a, 0, 1),
    "einsum": lambda m, a: m.einsum("zyx,zyx->y", a.astype("i8"), a.astype("i8")),
    "tensordot": lambda m, a: m.tensordot(a.astype("i8"), a.astype("i8"), axes=((0, 2), (0, 2))),
    "insert": lambda m, a: m.insert(a, [1, 4], 7, axis=1),
    "delete": lambda m, a: m.delete(a, [1, 4], axis=1),
    "append": lambda m, a: m.append(a, a[:1], axis=0),
    "split": lambda m, a: m.stack([a[:, i : i + 6] for i in range(0, 24, 6)]),
    "apply_along_axis": lambda m, a: m.apply_along_axis(np.sum, 1, a),
    "isin": lambda m, a: m.isin(a, [3, 500]),
    "unique": lambda m, a: m.unique(a[0] // 7),
    "nonzero": lambda m, a: m.nonzero(a[0] > 400)[0],
    "floats": lambda m, a: a[1:4, 2:20:3] if m is np else a[1.0:4.0, 2.0 : np.float64(20) : 3.0],
    "a whole float": lambda m, a: a[2, :, 5] if m is np else a[2.0, :, np.float32(5)],
    "a list of floats": lambda m, a: a[:, [3, 1]] if m is np else a[:, [3.0, 1.0]],
    "an empty list": lambda m, a: a[:, [][:0] if m is not np else np.array([], int)],
    "backwards": lambda m, a: a[..., ::-1],
    "mask of a row": lambda m, a: a[:, np.arange(24) % 3 == 1],
    "mask of slices": lambda m, a: a[[True, False, False, True, True]],
    "mask of all": lambda m, a: a[np.asarray(WHOLE % 3 == 0)],
    "new axes": lambda m, a: a[:, None, 3:5, ..., None],
    "numpy ints": lambda m, a: a[np.uint8(3), np.int16(-2) :],
    "0-d": lambda m, a: a[np.array(3), np.array(-1)],
    "blocks": lambda m, a: a[2:4, 10:20] if m is np else a.blocks[2:4, 1],
    "partitions": lambda m, a: a[2:4, 10:20] if m is np else a.partitions[2:4, 1],
    "blocks back to front": lambda m, a: a[[4, 0]] if m is np else a.blocks[[4, 0]],
    "rechunk": lambda m, a: a[1:, 3:] if m is np else a.rechunk((2, 5, 4))[1:, 3:],
    "coarsen": lambda m, a: (
        a[:, :, :16].reshape(5, 6, 4, 4, 4).sum((2, 4))
        if m is np
        else da.coarsen(np.sum, a[:, :, :16].rechunk((1, 12, 16)), {1: 4, 2: 4})
    ),
    "map_blocks": lambda m, a: a + 1 if m is np else a.map_blocks(lambda block: block + 1),
    "dask index": lambda m, a: a[[3, 1]] if m is np else a[da.from_array(np.array([3, 1]))],
    "dask mask": lambda m, a: a[[0, 2]] if m is np else a[da.from_array(np.array([1, 0, 1, 0, 0], bool))],
    "vindex": lambda m, a: a[[1, 4], [0, -1], [3, 3]] if m is np else a.vindex[[1, 4], [0, -1], [3, 3]],
}


@pytest.mark.parametrize("function", ALIKE)
def test_dasks_functions_give_what_numpys_give(function: str) -> None:
    """Dask's functions, some of which index with floats or 0-d arrays, give the same results as numpy's."""
    array, _ = volume_array()
    for found_in, expected_in in ((array, WHOLE), (array[::-1], WHOLE[::-1])):
        result = ALIKE[function](da, found_in)
        np.testing.assert_array_equal(result.compute(scheduler="sync"), ALIKE[function](np, expected_in))


@pytest.mark.parametrize("boundary", ["nearest", "reflect", "periodic", "none", 7])
@pytest.mark.parametrize("depth", [1, 2, (0, 1, 2), (0, 0, 3), (0, 2, 0)])
def test_overlaps_of_any_boundary(boundary: str | int, depth: Any) -> None:
    """`map_overlap` with any boundary and depth gives the same as for an array in memory."""
    found, expected = (
        da.map_overlap(smooth, array, depth=depth, boundary=boundary, dtype="u2", allow_rechunk=True).compute(
            scheduler="sync"
        )
        for array in (volume_array()[0], da.from_array(WHOLE, chunks=((1,) * 5, (10, 10, 4), (17,))))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("key", [(0.5,), (slice(0.5, 3),), ([0.5, 1],), (slice("a", None),), ("a",), (object(),)])
def test_what_is_no_index_is_refused_as_dask_does(key) -> None:
    """A key that is no index, like half a number, raises the same type of error as dask."""
    expected = da.from_array(WHOLE, chunks=(1, 10, 17))
    with pytest.raises(Exception) as refused:  # noqa: PT011  # of dask's own kind
        expected[key]
    with pytest.raises(refused.type):
        volume_array()[0][key]


@pytest.mark.parametrize("key", [(5,), (0, 24), (slice(None), slice(None), -18), ([7],), (0, 0, 0, 0), (1.5,)])
def test_what_is_out_of_bounds_is_an_index_error(key) -> None:
    """An index that is out of bounds, has too many axes or is no whole number is an IndexError at once."""
    with pytest.raises(IndexError):
        volume_array()[0][key]


def test_xarray_composes_too() -> None:
    """Chains of `isel` read only the voxels of the result, and points by `isel` have the right voxels."""
    array, reader = volume_array()
    variable = xr.DataArray(array, dims=("z", "y", "x"))
    got = variable.isel(z=2).isel(y=[3, 4, 9], x=[1, 5])[::-1].compute(scheduler="sync")
    np.testing.assert_array_equal(got, WHOLE[2][np.ix_([9, 4, 3], [1, 5])])
    assert reader.read == 6
    points = variable.isel(z=xr.DataArray([0, 1], dims="p"), y=xr.DataArray([2, 3], dims="p"))
    np.testing.assert_array_equal(points.compute(scheduler="sync"), WHOLE[[0, 1], [2, 3]])


def test_equal_windows_have_equal_names_and_unequal_ones_have_not() -> None:
    """The same window has the same name, however it was indexed, and different windows have different names."""
    first, second = volume_array()[0], volume_array()[0]
    assert first[1, 2:9][3:5].name == second[1, 5:7].name
    names = {first[key].name for key in [(1,), (2,), (slice(1, 2),), (1, slice(0, 9)), ([1],), (slice(None), 1)]}
    assert len(names) == 6


def test_blocks_of_a_composed_index_are_cut_where_the_source_is() -> None:
    """The blocks of a window end where the source's blocks end, also with steps, backwards and for lists."""
    array, _ = volume_array()
    assert array[1, 5:23].chunks == ((5, 10, 3), (17,))
    assert array[1:4][:, ::-3].chunks == ((1, 1, 1), (2, 3, 3), (17,))
    assert array[[0, 0, 3]].chunks[0] == (2, 1)


@pytest.mark.parametrize("how", ["slice", "mask", "out", "xarray"])
def test_an_array_that_was_assigned_to_is_no_longer_its_window(how: str) -> None:
    """What was assigned to an array is kept when it is indexed, copied or pickled."""
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
    """A dataset of this array and other dask arrays can be computed, persisted, rechunked and passed to ufuncs."""
    array, _ = volume_array()
    ds = xr.Dataset({"raw": (("z", "y", "x"), array)}).assign(half=lambda ds: ds.raw // 2)
    for done in (ds.compute(), ds.persist().compute(), ds.unify_chunks().compute()):
        np.testing.assert_array_equal(done.half, WHOLE // 2)
    both = xr.apply_ufunc(np.add, ds.raw, ds.half, dask="parallelized", output_dtypes=["u2"])
    np.testing.assert_array_equal(both.compute(), WHOLE + WHOLE // 2)
