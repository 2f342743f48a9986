"""Each pixel of a picture of a store with a pyramid shows the voxels at its coordinates, after any operation."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from xarray.core import indexing

import liver_dask as ld
from liver_dask.core.kinds import kind_of
from liver_dask.store import levels as store_levels
from liver_dask.viewing.levels import Levels, extent_of, place_of, variable_of
from liver_dask.viewing.planes import PLANES, XY, Plane, held_along

SHAPE = (6, 96, 120)
FIRST = (40, 500, 900)
DIMS = ("z", "y", "x")
OPENED = [{}, {"chunks": None}, {"chunks": {"y": 48, "x": 64}}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store whose voxels encode their position, as do those of its levels: 16384 z + 128 y + x; and a mask."""
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    voxels = {"raw": (z * 16384 + y * 128 + x).astype(np.float32), "mito": ((y + x) % 64 < 32).astype(np.uint8) * 255}
    flags = {"flag_values": [0, 255], "flag_meanings": "background mito"}
    ds = xr.Dataset(
        {
            name: (DIMS, da.from_array(of, chunks=(2, 32, 120)), flags if name == "mito" else {})
            for name, of in voxels.items()
        },
        {dim: np.arange(first, first + n) for dim, first, n in zip(DIMS, FIRST, SHAPE, strict=True)},
    )
    path = tmp_path_factory.mktemp("placed") / "a.zarr"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_levels, "SMALL_ENOUGH", 15)
        ld.to_zarr(ds, path, chunks=(2, 16, 32), shards=(4, 32, 64), pyramid=True, progress=False)
        yield path


def draw_chain(data: st.DataObject) -> list[tuple[str, Callable[[xr.Dataset], xr.Dataset]]]:
    """A random sequence of operations, each with its name."""

    def cut(ds: xr.Dataset) -> xr.Dataset:
        dim = data.draw(st.sampled_from(DIMS))
        length = ds.sizes[dim]
        start = data.draw(st.integers(0, length - 1))
        stop = data.draw(st.integers(start + 1, length))
        return ds.isel({dim: slice(start, stop)})

    def by_label(ds: xr.Dataset) -> xr.Dataset:
        dim = data.draw(st.sampled_from([dim for dim in DIMS if ds.indexes[dim].is_unique] or [None]))
        return ds if dim is None else ds.sel({dim: slice(ds[dim].values[0], ds[dim].values[-1])})

    def stride(ds: xr.Dataset) -> xr.Dataset:
        return ds.isel(
            {data.draw(st.sampled_from(DIMS)): slice(None, None, data.draw(st.sampled_from([-2, -1, 2, 3])))}
        )

    def listed(ds: xr.Dataset) -> xr.Dataset:
        dim = data.draw(st.sampled_from(DIMS))
        indexes = np.arange(ds.sizes[dim])
        swapped = data.draw(st.booleans())
        if swapped:
            indexes[len(indexes) // 2 :] = indexes[len(indexes) // 2 :][::-1]
        return ds.isel({dim: indexes.tolist()})

    def shifted(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign_coords(
            {dim: ds[dim] + data.draw(st.integers(-30, 30)) for dim in data.draw(st.sets(st.sampled_from(DIMS)))}
        )

    def numbered(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign_coords({dim: np.arange(ds.sizes[dim]) + data.draw(st.integers(0, 50)) for dim in DIMS})

    others = {
        "twice": lambda ds: xr.concat([ds, ds], "y"),
        "rolled": lambda ds: ds.roll(x=5, roll_coords=False),
        "chunked": lambda ds: ds.chunk({"y": 20}),
        "changed": lambda ds: ds.assign(raw=ds.raw + 1),
        "renamed": lambda ds: ds.rename(raw="other").rename(mito="raw").rename(other="mito"),
        "turned": lambda ds: ds.transpose("y", "x", "z").transpose(*DIMS),
        "mirrored": lambda ds: ds.sortby("y", ascending=False),
        "padded": lambda ds: ds.pad(y=(1, 0), mode="edge"),
        "loaded": lambda ds: ds.copy(deep=True).load(),
        "copied": lambda ds: ds.copy(deep=True),
    }
    mostly = [cut, cut, cut, shifted, shifted, by_label, stride, listed, numbered]
    steps = [(step.__name__, step) for step in mostly]
    drawn = data.draw(st.lists(st.sampled_from([*steps, *steps, *others.items()]), max_size=4))
    return [*drawn, ("numbered", numbered)] if data.draw(st.booleans()) else drawn


@pytest.mark.slow
@given(data=st.data(), opened=st.sampled_from(OPENED))
@settings(deadline=None, max_examples=60, phases=[Phase.explicit, Phase.generate])
def test_whatever_was_done_pictures_show_the_voxels_at_their_coordinates(
    store: Path, data: st.DataObject, opened
) -> None:
    """After any operations on the Dataset each pixel is the mean of the voxels at its coordinates."""
    ds = xr.open_zarr(store, **opened)
    names, plane = [], data.draw(st.sampled_from([*PLANES.values()]))
    for name, step in draw_chain(data):
        ds = step(ds)
        names.append(name)
    try:
        levels = Levels(ds)
    except ld.InvalidArgumentError:  # coordinates that do not increase by one
        return
    if set(names) <= {"cut", "shifted", "numbered", "copied"}:
        assert len(levels._levels) == 4, "the levels are not used where they could be"
    held, voxels = levels.held, ds.raw.values
    for pixels in (1, 9, 40):
        first, end = held_along(held, plane.across)
        at = data.draw(st.integers(first, end - 1))
        spans = [
            sorted(data.draw(st.lists(st.integers(*held_along(held, dim)), min_size=2, max_size=2, unique=True)))
            for dim in plane[1:]
        ]
        check_picture(levels, ds, voxels, plane, at, spans, pixels)


@pytest.mark.parametrize("size", [(16, 8, 8), (5, 9, 8), (30, 6, 9)])
@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_planes_of_voxels_that_are_no_cubes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plane: Plane, size: tuple[int, int, int]
) -> None:
    """Of voxels of any shape, pixels are square, show the voxels that are named, and are as fine as the screen's."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 15)
    z, y, x = np.meshgrid(*map(np.arange, (24, 40, 56)), indexing="ij")
    raw = xr.DataArray((z * 16384 + y * 128 + x).astype(np.float32), {"z": range(24), "y": range(40), "x": range(56)})
    given_ = xr.Dataset({"raw": raw}, attrs={"voxel_size_nm": list(size)})
    ld.to_zarr(
        given_.chunk(z=4), tmp_path / "a.zarr", chunks=(4, 20, 28), shards=(8, 40, 56), pyramid=True, progress=False
    )
    for ds in (xr.open_zarr(tmp_path / "a.zarr"), given_):
        levels = Levels(ds)
        assert len(levels._levels) == (3 if ds is not given_ else 1)
        assert {*levels.planes} == {*PLANES}
        for pixels in (4, 11, 30, 200):
            for at in (0, 17, 23):
                for rows, columns in ((None, None), ((3, 21), (5, 24))):
                    spans = [
                        span or held_along(levels.held, dim)
                        for span, dim in zip((rows, columns), plane[1:], strict=True)
                    ]
                    check_picture(levels, ds, raw.values, plane, at, spans, pixels)


@pytest.mark.parametrize("opened", OPENED)
def test_pictures_of_a_part_are_of_its_levels_under_whatever_coordinates(store: Path, opened) -> None:
    """A crop with new coordinates is still shown from the pyramid levels, at the right place."""
    ds = xr.open_zarr(store, **opened)
    part = ds.isel(y=slice(10, 80)).isel(z=slice(1, 5), x=slice(3, 99)).assign_coords(y=np.arange(20, 90), z=range(4))
    assert len(Levels(part)._levels) == len(Levels(ds)._levels) == 4
    seen = ld.show(part, 2, (30, 70), labels=[], pixels=24).axes[0].images[0]
    left, right, bottom, top = seen.get_extent()
    assert (left, right, bottom, top) == (899.5, 999.5, 69.5, 29.5)
    np.testing.assert_allclose(seen.get_array()[1, 1], 3 * 16384 + 25.5 * 128 + 5.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds.assign_coords(y=ds.y[::-1]).isel(y=slice(None, None, -1)),
        lambda ds: ds.isel(x=[*range(60), *range(119, 59, -1)]).assign_coords(x=ds.x),
        lambda ds: ds.rename(raw="other").rename(mito="raw").rename(other="mito"),
        lambda ds: ds.assign(raw=ds.raw.transpose("z", "y", "x").roll(y=3, roll_coords=False)),
        lambda ds: ds.assign(mito=ds.mito.isel(y=slice(1, None)).pad(y=(0, 1), mode="edge").drop_vars("y")),
        lambda ds: xr.concat([ds.isel(y=slice(48, None)), ds.isel(y=slice(48))], "y").assign_coords(y=ds.y),
    ],
)
def test_of_other_voxels_there_are_no_levels(store: Path, change) -> None:
    """A Dataset whose voxels were moved, mirrored, joined or renamed uses no pyramid level."""
    for opened in OPENED:
        assert len(store_levels.open_levels(change(xr.open_zarr(store, **opened)))) == 1


def test_at_the_end_of_a_part_the_voxels_beside_it_are_named(store: Path) -> None:
    """A pixel of a level may stand for voxels beside the part of a store that is looked at: these are named, too."""
    whole = xr.open_zarr(store)
    voxels, corner = whole.raw.values, [int(whole[dim][0]) for dim in DIMS]
    part = whole.isel(y=slice(3, 71), x=slice(5, 93))
    seen = Levels(part).window(FIRST[0] + 2, pixels=30)
    assert seen.attrs["factors"][1] > 1
    beside = 0
    for row, column in np.ndindex(seen.raw.shape):
        place = place_of(seen.raw.assign_attrs(seen.attrs), row, column)
        beside += place.x[1] > int(part.x[-1]) + 1
        named = voxels[tuple(slice(a - at, b - at) for (a, b), at in zip(place, corner, strict=True))]
        assert seen.raw.values[row, column] == pytest.approx(named.mean(), abs=1), place
    assert beside


@pytest.mark.filterwarnings("ignore:The specified chunks separate")
@pytest.mark.parametrize("chunks", [None, {}, "auto", {"z": 1, "y": 77, "x": 100}, {"z": -1, "y": -1, "x": -1}])
def test_a_store_opened_with_any_chunks_has_its_levels(store: Path, chunks) -> None:
    """The levels of a store are used whatever chunks it is opened with."""
    assert len(store_levels.open_levels(xr.open_zarr(store, chunks=chunks))) == 4


def test_a_level_of_another_store_or_of_none_is_not_shown(store: Path, tmp_path: Path) -> None:
    """A pyramid level that does not match the store's manifest, or is no level, is not used."""
    own = shutil.copytree(store, tmp_path / "a.zarr")
    assert len(store_levels.open_levels(xr.open_zarr(own))) == 4
    manifest = own / "raw" / "manifest.json"
    kept = manifest.read_bytes()
    known = json.loads(kept)
    known["shards"]["0/0/0"][1] ^= 1
    manifest.write_text(json.dumps(known))
    assert len(store_levels.open_levels(xr.open_zarr(own))) == 1
    manifest.write_bytes(kept)
    shutil.rmtree(own / "pyramid" / "s2")
    zarr.create_group(own / "pyramid" / "s2").create_array("raw", shape=(3, 24, 30), dtype="float32")
    assert len(store_levels.open_levels(xr.open_zarr(own))) == 2


def test_nothing_is_read_to_find_out(store: Path) -> None:
    """Finding the pyramid levels reads no voxels, even without dask."""
    ds = xr.open_zarr(store, chunks=None)
    levels = Levels(ds)
    assert isinstance(ds.raw.variable._data, indexing.MemoryCachedArray)
    assert isinstance(ds.raw.variable._data.array, indexing.CopyOnWriteArray), "all of it was read"
    assert len(levels._levels) == 4


def check_picture(
    levels: Levels, ds: xr.Dataset, voxels: np.ndarray, plane: Plane, at: int, spans, pixels: int
) -> None:
    """Compare pixels with the voxels that they are said to be of, and the picture's extent with what was asked for."""
    seen = levels.window(at, *spans, pixels, plane)
    aspect = plane.aspect(levels.voxel_size_nm)
    heights, widths = (high - low for low, high in spans)
    pixel = max(widths, heights * aspect) / pixels
    most = {plane.rows: max(1, pixel / aspect), plane.columns: max(1, pixel)}
    if len(levels._levels) == 1:
        most = {dim: -(-of // 1) for dim, of in most.items()}
    fine = [dict(zip(DIMS, factors, strict=True)) for _, factors in levels._levels]
    factors = max((of for of in fine if all(of[dim] <= most[dim] for dim in most)), key=lambda of: of["y"])
    step = dict(zip(DIMS, seen.attrs["step"], strict=True))
    assert seen.attrs["factors"] == [*factors.values()]
    assert all(most[dim] / 2 < step[dim] <= most[dim] for dim in most), "it is not as fine as the screen"
    assert seen.raw.dims == plane[1:]
    left, right, bottom, top = extent_of(variable_of(seen, "raw"))
    begins = {plane.rows: top + 0.5, plane.columns: left + 0.5}
    for dim, begin, end, (low, high) in zip(plane[1:], (top, left), (bottom, right), spans, strict=True):
        assert begin <= low - 0.5 < begin + factors[dim], "it begins elsewhere"
        assert end - step[dim] < high - 0.5 <= end, "it ends elsewhere"
    corner = [int(ds[dim][0]) for dim in DIMS]
    rows, columns = seen.raw.shape
    for index in {(0, 0), (rows // 2, columns // 3), (rows - 1, columns - 1)}:
        place = place_of(variable_of(seen, "raw"), *index)
        named = dict(zip(DIMS, place, strict=True))
        assert named[plane.across][0] <= at < named[plane.across][1]
        for dim, number in zip(plane[1:], index, strict=True):
            above = begins[dim] + number * step[dim]
            assert seen[dim].values[number] == above + (step[dim] - 1) / 2
            assert above <= named[dim][0] < named[dim][1] <= above + step[dim]
        ends = [at + ds.sizes[dim] for at, dim in zip(corner, DIMS, strict=True)]
        if any(first < at or last > end for (first, last), at, end in zip(place, corner, ends, strict=True)):
            continue  # a voxel of a level that begins before the Dataset, or ends after it
        sizes = [step[dim] if plane == XY and dim == "x" else factors[dim] for dim in DIMS]
        # levels are means of means, which weigh voxels differently where the volume ends
        cut = [unit * of for (a, b), unit, of in zip(place, (16384, 128, 1), sizes, strict=True) if b - a < of]
        expected = voxels[tuple(slice(a - at, b - at) for (a, b), at in zip(place, corner, strict=True))].mean()
        if kind_of(ds.raw) == "image" or expected in (0, 255):
            assert abs(seen.raw.values[index] - expected) <= sum(cut) + 1e-6 * expected
