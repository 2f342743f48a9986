"""Real size: slices of 20000 x 20000 from real EM, from nginx on loopback, next to torch_em's own loader.

Off by default: `pytest -m real -s tests/real`. A run takes minutes and 3.6 GB of disk. With
`LIVER_DASK_REAL_ARCHIVE=FOLDER` the archive is kept there, and the next run uses it. The tests need nginx, the extra
`train`, and the images of "Segmented anisotropic ssTEM dataset of neural tissue" (doi 10.6084/m9.figshare.856713) in
the folder EM.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import xarray as xr
from PIL import Image

import liver_dask as ld
from helpers.build_archive import SIZE, build_archive
from helpers.measured import OURS, TORCH_EM, measured
from helpers.nginx import Nginx
from helpers.transforms import same
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import serve

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

EM = Path(__file__).parents[3] / "shared" / "em"
SLICES = 4
SHAPE = (SLICES, SIZE, SIZE)
BOX = (2219, 4267, 1493, 3541, 0, SLICES)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not EM.is_dir():
        pytest.skip(f"there is no real EM in {EM}")
    kept = os.environ.get("LIVER_DASK_REAL_ARCHIVE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("archive")
    build_archive(EM, folder, SLICES)
    sizes = [(folder / EMPIAR_13356.path("raw", z)).stat().st_size for z in range(SLICES)]
    assert all(850e6 < size < 950e6 for size in sizes), sizes
    return folder


@pytest.fixture(scope="module")
def nginx(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    if not shutil.which("nginx"):
        pytest.skip("nginx is not installed (Debian's nginx-light)")
    server = Nginx(archive, tmp_path_factory.mktemp("nginx"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def last_slice(archive: Path) -> dict[str, np.ndarray]:
    """The last slice, read whole by tifffile and Pillow."""
    return {name: read_slice(archive, name, SLICES - 1) for name in ("raw", *EMPIAR_13356.labels)}


def read_slice(archive: Path, name: str, z: int) -> np.ndarray:
    path = archive / EMPIAR_13356.path(name, z)
    if name == "raw":
        return tifffile.imread(path)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return np.asarray(Image.open(path))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize(
    "window",
    [
        np.s_[:200, :200],
        np.s_[-200:, -200:],
        np.s_[:3, -5:],
        np.s_[1000:1100, 9000:9500],
        np.s_[4090:4100, 1190:1200],
        np.s_[465:475, :],
        np.s_[19560:19580, 18880:18900],
        np.s_[::400, ::400],
        np.s_[12000:11000:-7, 9999],
    ],
    ids=str,
)
def test_windows_equal_the_source(nginx: Nginx, last_slice, window) -> None:
    """Windows at corners, across borders of blocks, at the tissue's edge and with strides have the source's voxels."""
    ds = ld.open_human_liver_em(nginx.url, shape=SHAPE)
    for name, whole in last_slice.items():
        np.testing.assert_array_equal(ds[name][SLICES - 1][window].to_numpy(), whole[window])


def test_a_window_costs_its_strips_and_the_index(nginx: Nginx, archive: Path, last_slice) -> None:
    """A window of 128 rows fetches the index and the beginnings of its strips, in at most ten requests. Every 20th row
    fetches the index and its strips.
    """
    with tifffile.TiffFile(archive / EMPIAR_13356.path("raw", 2)) as tiff:
        counts = tiff.pages[0].databytecounts
        index = 12 * len(counts)
    ds = ld.open_human_liver_em(nginx.url, shape=SHAPE)
    nginx.sent()
    ds.raw.isel(z=2, y=slice(1493, 1621), x=slice(2219, 4267)).compute()
    sent, strips = nginx.sent(), sum(counts[1493:1621])
    print(f"\nwindow of 128 rows: {sent}, strips {strips}, index at most {index}: {sent.bytes / (strips + index):.4f}")
    assert sent.bytes <= 1.1 * strips * 4267 / SIZE + index
    assert sent.requests <= 10
    ds.raw[1, ::20, ::20].compute()
    sent, strips = nginx.sent(), sum(counts[::20])
    print(f"every 20th row: {sent}, strips {strips}")
    assert sent.bytes <= 1.05 * (strips + index)


def test_points_cost_their_strips(nginx: Nginx, archive: Path) -> None:
    """Points have the source's voxels. Three of them cost at most 1 MB in 9 requests, and 10,000 at most 30 kB each in
    200 requests.
    """
    slices = np.stack([tifffile.imread(archive / EMPIAR_13356.path("raw", z))[::13, ::17] for z in range(SLICES)])
    random = np.random.default_rng(0)
    for count in (3, 10_000):
        raw = ld.open_human_liver_em(nginx.url, shape=SHAPE, labels=[]).raw
        at = [random.integers(0, length, count) for length in slices.shape]
        indexes = {
            dim: xr.DataArray(index * step, dims="point")
            for dim, index, step in zip("zyx", at, (1, 13, 17), strict=True)
        }
        nginx.sent()
        np.testing.assert_array_equal(raw.isel(indexes), slices[tuple(at)])
        sent = nginx.sent()
        print(f"\n{count} points: {sent}")
        assert sent.bytes <= (1e6 if count == 3 else 0.03e6 * count)
        assert sent.requests <= (9 if count == 3 else 200)


def test_a_cross_section_of_all_slices(archive: Path, tmp_path: Path) -> None:
    """A row of all slices has the right voxels and costs at most 12 MB, and the next one 6 MB. All strip indexes
    together are 96 MB.
    """
    linked = tmp_path / "archive"
    for z in range(EMPIAR_13356.shape[0]):
        path = linked / EMPIAR_13356.path("raw", z)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to((archive / EMPIAR_13356.path("raw", z % SLICES)).absolute())
    rows = [tifffile.imread(archive / EMPIAR_13356.path("raw", z))[9000:9101:100, 2219:4267] for z in range(SLICES)]
    with serve(linked) as server:
        raw = ld.open_human_liver_em(server.url, labels=[]).raw
        for number, most in enumerate((12e6, 6e6)):
            begun = server.bytes_sent
            found = raw[:, 9000 + 100 * number, 2219:4267].to_numpy()
            sent = server.bytes_sent - begun
            print(f"\nrow {9000 + 100 * number} of {len(raw)} slices: {sent}, {len(server.requests)} requests so far")
            assert all(np.array_equal(pixels, rows[z % SLICES][number]) for z, pixels in enumerate(found))
            assert sent <= most


def test_a_crop_next_to_torch_ems_own_loader(nginx: Nginx, archive: Path, tmp_path: Path) -> None:
    """A crop has the source's voxels, and takes at most the bytes and a quarter of the memory of torch_em's loader."""
    pytest.importorskip("torch_em", reason="needs the extra `train`")
    told = {}
    nginx.sent()
    for name, script in (("ours", OURS), ("torch_em", TORCH_EM), ("ours again", OURS.replace("ours.zarr", "b.zarr"))):
        seconds, memory = measured(script.format(url=nginx.url, shape=SHAPE, box=BOX, out=str(tmp_path)))
        sent = nginx.sent()
        told[name] = {"s": round(seconds, 1), "MB": sent.bytes / 1e6, "requests": sent.requests, "RSS MB": memory / 1e6}
    print("\n" + json.dumps(told, indent=1))
    ours, theirs = told["ours"], told["torch_em"]
    print("torch_em / ours:", {key: round(theirs[key] / ours[key], 2) for key in ours})
    stored = xr.open_zarr(tmp_path / "ours.zarr")
    x0, x1, y0, y1, z0, z1 = BOX
    for name in ("raw", *EMPIAR_13356.labels):
        for z in range(z0, z1):
            np.testing.assert_array_equal(stored[name].sel(z=z), read_slice(archive, name, z)[y0:y1, x0:x1])
    assert ours["MB"] <= theirs["MB"]
    assert ours["RSS MB"] <= theirs["RSS MB"] / 4


@pytest.fixture(scope="module")
def full_volume(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of all slices, for training."""
    folder = tmp_path_factory.mktemp("full_volume")
    ld.get_human_liver_em_full_volume(folder, download=True, source=archive, shape=SHAPE)
    return folder


@pytest.fixture(scope="module")
def sources(archive: Path) -> dict[str, np.ndarray]:
    """Raw and mito of all slices, read whole by tifffile and Pillow."""
    return {name: np.stack([read_slice(archive, name, z) for z in range(SLICES)]) for name in ("raw", "mito")}


@pytest.mark.parametrize("patch", [(4, 512, 512), (1, 1024, 1024)])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_patches_of_whole_slices(archive: Path, full_volume: Path, sources, patch, split: str) -> None:
    """Patches of whole slices have the source's voxels, lie at different places, and have the minimum of foreground."""
    pytest.importorskip("torch_em", reason="needs the extra `train`")
    loader = ld.get_human_liver_em_loader(
        full_volume,
        patch,
        1,
        full_volume=True,
        source=archive,
        shape=SHAPE,
        split=split,
        split_grid=ld.SplitGrid(block=(64, 2560, 2560)),
        min_foreground=0.05,
        labelled_region_only=True,
        n_samples=60,
        num_workers=2,
        pin_memory=False,
        raw_transform=same,
        transform=same,
        seed=1,
    )
    (one,) = loader.dataset.datasets
    found = set()
    for number in range(20):
        start = next(one.places.candidates(np.random.default_rng(number)))
        window = tuple(slice(first, first + length) for first, length in zip(start, patch, strict=True))
        np.testing.assert_array_equal(one.raw[window], sources["raw"][window])
        np.testing.assert_array_equal(one.labels[0][window], sources["mito"][window])
        found.add(tuple(part.start for part in window))
    assert len(found) == 20
    assert all(labels.mean() >= 0.05 for _, labels in loader)
