"""A Dataset as a Zarr store in this process: every voxel of every scale, metadata, and how little is fetched."""

import asyncio
import json
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.far import assert_shares, far, far_shares
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import ArchiveServer
from liver_dask.serving import rows, scales
from liver_dask.store import levels as store_levels

DEPTH, HEIGHT, WIDTH = SHAPE
FACTORS = (1, 2, 4, 8)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and the last scale are small, so that a small archive has several of both."""
    monkeypatch.setattr(scales, "CHUNK", (1, 64, 96))
    monkeypatch.setattr(scales, "SMALL_ENOUGH", 64)


def opened(source: Any, **options: Any) -> xr.Dataset:
    return ld.open_human_liver_em(source, shape=SHAPE, **options)


def nth(slice_: np.ndarray, step: int) -> np.ndarray:
    """What a scale shows of a slice: every n-th row, its columns averaged."""
    return far(slice_[::step].repeat(step, 0), (0, step * -(-len(slice_) // step)), (0, WIDTH), step)


def test_every_voxel_of_every_scale(archive: Path, voxels) -> None:
    """The first scale has the voxels of the source; others have every n-th row, with its columns averaged."""
    root = zarr.open_group(ld.as_zarr(opened(archive)), mode="r")
    for name in voxels:
        np.testing.assert_array_equal(root[name][:], voxels[name])
    for number, factor in enumerate(FACTORS[1:], 1):
        found = root[f"pyramid/s{number}/raw"][:]
        for z in range(DEPTH):
            np.testing.assert_array_equal(found[z], nth(voxels["raw"][z], factor))
        for name in EMPIAR_13356.labels:
            labelled = root[f"pyramid/s{number}/{name}"][:]
            np.testing.assert_array_equal(root[f"labels/{name}/{number}"][:], labelled)
            assert set(np.unique(labelled)) <= {0, 255}
            for z in range(DEPTH):
                rows = voxels[name][z][::factor].repeat(factor, 0)
                shares = far_shares(rows, (0, len(rows)), (0, WIDTH // factor * factor), factor)
                whole = shares.shape[1] // 32 * 32
                assert_shares(labelled[z][:, :whole], shares[:, :whole])


def test_xarray_reads_it_as_a_store(archive: Path) -> None:
    """Xarray opens it with coordinates and attributes, and its scales as a tree."""
    ds = opened(archive, voxel_size_nm=(30, 8, 8)).isel(y=slice(21, 290), x=slice(37, 400), z=slice(2, 7))
    store = ld.as_zarr(ds)
    found = xr.open_zarr(store)
    assert found.attrs.items() >= ds.attrs.items()
    xr.testing.assert_equal(found.compute(), ds.compute())
    for name in ds:
        assert found[name].attrs == ds[name].attrs
    levels = xr.open_datatree(store, engine="zarr", group="pyramid")
    assert list(levels.children) == ["s1", "s2", "s3"]
    coarse = levels["s2"].to_dataset()
    np.testing.assert_array_equal(coarse.y, 21 + 4 * np.arange(68))
    np.testing.assert_array_equal(coarse.x, 37 + 1.5 + 4 * np.arange(91))
    row = coarse.raw.sel(z=4, y=101).compute()
    np.testing.assert_array_equal(row[:90], np.rint(ds.raw.sel(z=4, y=101).values[:360].reshape(-1, 4).mean(1)))


def test_the_metadata_are_ome_zarr(archive: Path, voxels) -> None:
    """Models of the specification read it, scales are in nm, at their place, and the contrast is that of the tissue."""
    ds = opened(archive, voxel_size_nm=(30, 8, 8)).isel(y=slice(20, None), x=slice(36, None))
    root = zarr.open_group(ld.as_zarr(ds), mode="r")
    image = Image.from_zarr(root)
    (scale,) = image.ome_attributes.multiscales
    assert [axis.unit for axis in scale.axes] == ["nanometer"] * 3
    assert [dataset.path for dataset in scale.datasets] == ["raw", *(f"pyramid/s{i}/raw" for i in (1, 2, 3))]
    for factor, dataset in zip(FACTORS, scale.datasets, strict=True):
        of, at = dataset.coordinateTransformations
        assert of.scale == [30, 8 * factor, 8 * factor]
        assert at.translation == [0, 20 * 8, (36 + (factor - 1) / 2) * 8]
    (channel,) = root.attrs["ome"]["omero"]["channels"]
    tissue = voxels["raw"][voxels["raw"] > 0]
    assert np.percentile(tissue, 0.01) < channel["window"]["start"] < np.percentile(tissue, 5)
    assert np.percentile(tissue, 95) < channel["window"]["end"] < np.percentile(tissue, 99.99)
    assert root["labels"].attrs["ome"]["labels"] == list(EMPIAR_13356.labels)
    for name in EMPIAR_13356.labels:
        label = ImageLabel.from_zarr(root[f"labels/{name}"])
        (color,) = label.ome_attributes.image_label.colors
        assert "#{:02x}{:02x}{:02x}".format(*color.rgba[:3]) == EMPIAR_13356[name].color
    unknown = zarr.open_group(ld.as_zarr(opened(archive)), mode="r").attrs["ome"]["multiscales"][0]
    assert "unit" not in unknown["axes"][0]
    assert unknown["datasets"][2]["coordinateTransformations"][0]["scale"] == [1, 4, 4]


@pytest.mark.parametrize("kind", ["store", "in memory", "computed", "instances", "floats", "one slice"])
def test_other_datasets(archive: Path, tmp_path: Path, kind: str) -> None:
    """Stores without a pyramid, data in memory, computed variables, instances and floats are served as they are."""
    ds = opened(archive, labels=["mito"])
    if kind == "store":
        ds = xr.open_zarr(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, chunks=(2, 64, 64), shards=(4, 128, 128)))
    elif kind == "in memory":
        ds = ds.compute()
    elif kind == "computed":
        ds = ds.assign(dark=(ds.raw < 20000).astype("uint8") * 255, smooth=ds.raw.rolling(y=3, center=True).mean())
        ds = ds.assign(smooth=ds.smooth.fillna(0).astype("int16"))
    elif kind == "instances":
        numbers = da.from_array(np.random.default_rng(0).integers(0, 2**31, SHAPE).astype("uint32"), chunks=(1, -1, -1))
        ds = ds.assign(cells=(("z", "y", "x"), numbers, {"kind": "instances"}))
    elif kind == "floats":
        ds = ds.assign(raw=ds.raw.astype("float32") / 7 - 3000)
    else:
        ds = ds.isel(z=[4])
    root = zarr.open_group(ld.as_zarr(ds), mode="r")
    for name in map(str, ds):
        np.testing.assert_array_equal(root[name][:], ds[name].values)
    if kind == "instances":
        columns = np.arange(0, WIDTH, 4)
        middle = (columns + np.minimum(columns + 4, WIDTH)) // 2
        np.testing.assert_array_equal(root["labels/cells/2"][:], ds.cells.values[:, ::4][:, :, middle])
        assert "colors" not in root["labels/cells"].attrs["ome"]["image-label"]
    found = root["pyramid/s1/raw"][0]
    np.testing.assert_allclose(found, nth(ds.raw[0].values, 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("ds", "said"),
    [
        (xr.DataArray(np.zeros((2, 3, 4)), dims=("z", "y", "x")), "A Dataset is served, not a DataArray"),
        (xr.Dataset(), "has no variables"),
        (xr.Dataset({"raw": (("y", "x"), np.zeros((3, 4)))}), r"dims \('y', 'x'\)"),
        (xr.Dataset({"raw": (("z", "y", "x"), np.zeros((0, 3, 4)))}), "not empty"),
        (xr.Dataset({"raw": (("z", "y", "x"), np.zeros((1, 3, 4), complex))}), "dtype complex128"),
        (xr.Dataset({"labels": (("z", "y", "x"), np.zeros((1, 3, 4)))}), "cannot be served as 'labels'"),
    ],
)
def test_what_cannot_be_served(ds: Any, said: str) -> None:
    """A Dataset that viewers could not show is refused with one sentence."""
    with pytest.raises(ld.InvalidArgumentError, match=said):
        ld.as_zarr(ds)


def numbered(name: str, dtype: str = "u1", **attrs: Any) -> xr.Dataset:
    """A variable of ones of the name, with coordinates."""
    data = da.ones((1, 200, 300), dtype=dtype, chunks=-1)
    coordinates = {dim: np.arange(n) for dim, n in zip(("z", "y", "x"), data.shape, strict=True)}
    return xr.Dataset({name: (("z", "y", "x"), data, attrs)}, coordinates)


@pytest.mark.parametrize("kind", ["image", "mask", "instances"])
def test_a_variable_of_any_name_is_served_or_refused(kind: str) -> None:
    """Names that are parts of paths themselves are served; others are refused, and never served as zeros."""
    attrs = {"mask": {"flag_values": [0, 1], "flag_meanings": "no yes"}, "instances": {"kind": "instances"}}.get(
        kind, {}
    )
    for name in ("c", "0", "s1", "zarr", "ä b", "x.y"):
        root = zarr.open_group(ld.as_zarr(numbered(name, **attrs)), mode="r")
        paths = [name, f"pyramid/s1/{name}"] + [f"labels/{name}/0"] * (kind != "image")
        for path in paths:
            assert (root[path][:] == 1).all(), path
    for name in ("", ".", "..", "zarr.json", "a/b", "a\\b", "labels", 1):
        with pytest.raises(ld.InvalidArgumentError, match="cannot be served as"):
            ld.as_zarr(numbered("raw", **attrs).rename(raw=name))


@pytest.mark.parametrize(
    "attrs", [{"voxel_size_nm": "abc"}, {"voxel_size_nm": (1, 2)}, {"voxel_size_nm": (0, 1, 1)}, {"a": object()}]
)
def test_attributes_that_no_store_can_have(attrs: dict[str, Any]) -> None:
    """A voxel size that is none, and attributes that are no JSON, are one sentence."""
    with pytest.raises(ld.InvalidArgumentError):
        ld.as_zarr(numbered("raw").assign_attrs(attrs))


def test_errors_at_once_end_every_wait() -> None:
    """Of many reads that fail at the same moment, each request gets one error, and none waits for ever."""

    def fail(block: np.ndarray) -> np.ndarray:
        raise ValueError("no voxels")

    ds = numbered("raw")
    ds = ds.assign(
        raw=(ds.raw.dims, ds.raw.data.rechunk((1, 20, 50)).map_blocks(fail, dtype="u1", meta=np.empty((0,) * 3, "u1")))
    )
    store = ld.as_zarr(ds)
    reader = store._rows["raw"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows, "BYTES_AT_ONCE", 400)
        asked = [reader.ask(0, np.arange(i, i + 60), slice(0, 100 + i)) for i in range(60)]
        for one in asked:
            with pytest.raises(ValueError, match="no voxels"):
                one.result(30)
    store.close()


def test_opening_costs_nothing_and_a_chunk_its_rows(server: ArchiveServer, archive: Path) -> None:
    """Nothing is requested until a chunk is read; neighbours, coarser scales and a second read cost next to nothing."""
    store = ld.as_zarr(opened(server.url, labels=[]))
    root = zarr.open_array(store, mode="r", path="raw")
    assert not server.requests
    assert root[4, 64:128, 96:192].any()
    strips = server.bytes_sent
    assert strips < (archive / EMPIAR_13356.path("raw", 4)).stat().st_size / 2
    assert root[4, 64:128, :192].any()
    assert server.bytes_sent == strips, "the chunk to the left was fetched again"
    other = ld.as_zarr(opened(server.url, labels=[]))
    before = server.bytes_sent
    levels = [zarr.open_array(other, mode="r", path=f"pyramid/s{i}/raw") for i in (3, 2, 1)]
    sent = []
    for level in levels:
        level[5]
        sent.append(server.bytes_sent - before)
    assert sent[-1] < 0.62 * (archive / EMPIAR_13356.path("raw", 5)).stat().st_size
    for level in levels:
        level[5]
    assert server.bytes_sent - before == sent[-1], "it was fetched again"


def test_what_is_asked_for_at_once_is_read_at_once(server: ArchiveServer) -> None:
    """Chunks of the same rows, and scales whose rows are among them, share their reads: each strip is fetched once."""
    store = ld.as_zarr(opened(server.url, labels=[]))
    keys = [f"raw/c/4/1/{x}" for x in range(5)] + [f"pyramid/s{i}/raw/c/4/0/0" for i in (1, 2, 3)]

    async def ask() -> list[bytes | None]:
        return await asyncio.gather(*(store.read(key) for key in keys))

    found = asyncio.run(ask())
    assert all(found)
    sent, rows = server.bytes_sent, {*range(64, 128), *range(0, 128, 2), *range(0, 256, 4), *range(0, HEIGHT, 8)}
    other = opened(server.url, labels=[]).raw.isel(z=5, y=sorted(rows)).values
    assert other.any()
    assert sent < 1.1 * (server.bytes_sent - sent), "some strips were fetched twice"


def test_keys_of_nothing(archive: Path) -> None:
    """Other keys than those of its arrays do not exist, and nothing can be written."""
    store = ld.as_zarr(opened(archive))
    prototype = default_buffer_prototype()
    wrong = "zarr.jso raw raw/c raw/c/0/0 raw/c/0/0/0/0 raw/c/0/0/-1 raw/c/0/5/0 raw/c/10/0/0 raw/c/0/0/5 raw/c/0/0/x"
    wrong += " raw/c/00/0/0 raw/c/0/0/² other/c/0/0/0 pyramid/s9/raw/c/0/0/0 ../raw/zarr.json"

    async def check() -> None:
        for key in ("", *wrong.split()):
            assert await store.get(key, prototype) is None, key
            assert not await store.exists(key), key
        for key in ("zarr.json", "raw/zarr.json", "raw/c/9/4/4", "labels/er/2/c/0/1/1", "x/zarr.json"):
            assert await store.exists(key), key
        assert "raw" in [name async for name in store.list_dir("")]
        assert [name async for name in store.list_dir("labels/er/")] == ["0", "1", "2", "3", "zarr.json"]
        whole = (await store.get("raw/c/1/1/1", prototype)).to_bytes()
        for byte_range, part in (
            (RangeByteRequest(10, 30), whole[10:30]),
            (OffsetByteRequest(100), whole[100:]),
            (SuffixByteRequest(7), whole[-7:]),
        ):
            assert (await store.get("raw/c/1/1/1", prototype, byte_range)).to_bytes() == part
        for call in (store.set("raw/zarr.json", prototype.buffer.from_bytes(b"")), store.delete("raw/zarr.json")):
            with pytest.raises(ValueError, match="read-only"):
                await call

    asyncio.run(check())
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(zarr.open_array(again, path="er")[3], zarr.open_array(store, path="er")[3])


def test_an_error_of_the_source_is_raised_and_may_pass(archive: Path, tmp_path: Path) -> None:
    """A missing slice is an error and never zeros; when it is back, the same store reads it."""
    import shutil

    copy = shutil.copytree(archive, tmp_path / "archive")
    lost = (copy / EMPIAR_13356.path("raw", 3)).rename(tmp_path / "lost.tif")
    raw = zarr.open_array(ld.as_zarr(opened(copy)), mode="r", path="raw")
    with pytest.raises(ld.SliceNotFoundError, match="raw, slice 3"):
        raw[3]
    assert raw[4].any()
    lost.rename(copy / EMPIAR_13356.path("raw", 3))
    assert raw[3].any()


def test_all_chunks_exist_and_are_whole(archive: Path) -> None:
    """Each chunk of each array has the length that its metadata say, also at the ends."""
    store = ld.as_zarr(opened(archive, labels=[]))
    for path in ("raw", "pyramid/s1/raw", "pyramid/s3/raw"):
        metadata = json.loads(asyncio.run(store.read(f"{path}/zarr.json")) or b"")
        chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        counts = [-(-n // of) for n, of in zip(metadata["shape"], chunk, strict=True)]
        for z, y, x in product((0, counts[0] - 1), range(counts[1]), range(counts[2])):
            assert len(asyncio.run(store.read(f"{path}/c/{z}/{y}/{x}")) or b"") == 2 * int(np.prod(chunk))


def test_the_last_scale_is_that_of_pyramids(archive: Path) -> None:
    """Scales end as pyramids of stores do."""
    assert scales.SMALL_ENOUGH != store_levels.SMALL_ENOUGH, "the fixture makes it small"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scales, "SMALL_ENOUGH", store_levels.SMALL_ENOUGH)
        assert "pyramid" not in zarr.open_group(ld.as_zarr(opened(archive)), mode="r")
