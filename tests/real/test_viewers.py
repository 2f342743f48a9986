"""A store, and an archive that is not downloaded, in napari and neuroglancer, with screenshots.

`pytest -m real tests/real/test_viewers.py`. Each viewer needs the following, or its tests are skipped:

- napari: `pip install napari PyQt6 napari-ome-zarr aiohttp`; for its window also Debian's `xvfb`, `libegl1`, `libgl1`,
  `libgl1-mesa-dri`, `libdbus-1-3`, `libxkbcommon-x11-0`, `libxcb-cursor0`, `libxcb-icccm4`, `libxcb-image0`,
  `libxcb-keysyms1`, `libxcb-render-util0` and `libxcb-shape0`. Where it is installed, pytest needs the options
  `-p no:napari -p no:npe2 -p no:napari-plugin-engine`, because napari's plugins for pytest warn when imported.
- neuroglancer: `pip install neuroglancer playwright`, and Debian's `chromium`. The wheel contains the viewer: nothing
  is fetched from elsewhere.

If the environment variable LIVER_DASK_PICTURES names a folder, the pictures are kept there.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image, ImageColor

import liver_dask as ld
from helpers.neuroglancer import CHROMIUM, WINDOW, opened, photograph
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core import geometry
from liver_dask.core.kinds import FOREGROUND, RAW
from liver_dask.demo import ArchiveServer, RangeRequestHandler, make_archive, serve

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

SHAPE = (10, 1100, 1300)
BOX = geometry.BoundingBox(60, 1240, 20, 1080, 1, 10)
SLICE = 5
VOXEL_SIZE = (30, 8, 8)
LEVELS = 3
OPACITY = 0.4

NAPARI = f"""
import json, sys, time
import napari
from qtpy.QtWidgets import QApplication

def keep(path):
    for _ in range(20):
        QApplication.processEvents()
        time.sleep(0.1)
    viewer.screenshot(path, canvas_only=False, flash=False)
    return [layer.data_level for layer in layers]

store, near, far = sys.argv[1:]
viewer = napari.Viewer()
viewer.window.resize{(*WINDOW.values(),)}
layers = viewer.open(store, plugin="napari-ome-zarr")
for layer in layers[1:]:
    layer.visible, layer.opacity = True, {OPACITY}
viewer.layers.selection.active = layers[0]
viewer.dims.set_current_step(0, {SLICE - BOX.z_min})
viewer.reset_view()
levels = [keep(near)]
viewer.camera.zoom /= 4
levels.append(keep(far))
viewer.close()
print(json.dumps(levels))
"""


class ForBrowsers(RangeRequestHandler):
    """Lets web pages of other origins read the responses."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Expose-Headers", "*")
        super().end_headers()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with levels, of a box that does not begin at the volume's corner. Its slices are thicker than its pixels
    are wide.
    """
    folder = tmp_path_factory.mktemp("viewers")
    make_archive(folder / "archive", SHAPE)
    ds = ld.open_human_liver_em(folder / "archive", shape=SHAPE, voxel_size_nm=VOXEL_SIZE)
    return Path(ld.to_zarr(ds, folder / "crop.zarr", bounding_box=BOX, pyramid=True, progress=False))


@pytest.fixture
def display() -> Iterator[str]:
    """A virtual screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1600x1000x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL) as screen:
        os.close(write)
        with os.fdopen(read) as told:
            number = told.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
        screen.terminate()


def cropped(store: Path) -> xr.Dataset:
    """The archive of a store, in the same box."""
    ds = ld.open_human_liver_em(store.parent / "archive", shape=SHAPE, voxel_size_nm=VOXEL_SIZE)
    return ds.liver.crop(BOX)


def levels_of(store: Path) -> list[xr.Dataset]:
    folders = [store, *(store / "pyramid" / f"s{number}" for number in range(1, LEVELS))]
    return [xr.open_zarr(folder, chunks=None) for folder in folders]


def drawn(picture: Path, label: str) -> int:
    """Return how many pixels have the colour of the label over some grey."""
    pixels = np.asarray(Image.open(picture).convert("RGB"), np.float64)
    grey = pixels - OPACITY * np.array(ImageColor.getrgb(EMPIAR_13356[label].color))
    is_grey = np.ptp(grey, axis=-1) < 4
    return int((is_grey & (grey.min(axis=-1) > -4) & (grey.max(axis=-1) < 255 * (1 - OPACITY) + 4)).sum())


def assert_shows_the_slice(picture: Path, store: Path) -> None:
    """Assert that a picture has many greys and all labels, mitochondria and nuclei in the proportion of the store."""
    grey = np.asarray(Image.open(picture).convert("L"))
    assert len(np.unique(grey)) > 100
    voxels = levels_of(store)[0].sel(z=SLICE)
    labelled = {label: int((voxels[label] > 0).sum()) for label in EMPIAR_13356.labels}
    pixels = {label: drawn(picture, label) for label in EMPIAR_13356.labels}
    assert min(pixels.values()) > 500, pixels
    assert pixels["mito"] / pixels["nucleus"] == pytest.approx(labelled["mito"] / labelled["nucleus"], rel=0.1), pixels


@pytest.mark.filterwarnings("ignore")  # napari's dependencies deprecate each other
def test_napari_reads_every_voxel_of_every_level(store: Path) -> None:
    """The plugin of napari reads all voxels of all levels, names, scales and colours, and a contrast range for raw."""
    plugin = pytest.importorskip("napari_ome_zarr", reason="needs napari-ome-zarr")
    layers = plugin.napari_get_reader(str(store))(str(store))
    assert [kind for _, _, kind in layers] == ["image", "labels", "labels", "labels"]
    levels = levels_of(store)
    for name, (arrays, told, _) in zip([RAW, *EMPIAR_13356.labels], layers, strict=True):
        assert name in told["name"]
        assert told["scale"] == [*VOXEL_SIZE]
        assert set(told["units"]) == {"nanometer"}
        np.testing.assert_array_equal(told["affine"].affine_matrix, layers[0][1]["affine"].affine_matrix)
        for array, level in zip(arrays, levels, strict=True):
            np.testing.assert_array_equal(array.compute(), level[name].values)
    for name, (_, told, _) in zip(EMPIAR_13356.labels, layers[1:], strict=True):
        colour = [*ImageColor.getrgb(EMPIAR_13356[name].color), 255]
        np.testing.assert_allclose(told["colormap"][FOREGROUND], np.divide(colour, 255))
    least, most = layers[0][1]["contrast_limits"]
    raw = levels[0].raw.values
    assert ((raw > least) & (raw < most)).mean() > 0.8


@pytest.mark.parametrize("kind", ["store", "archive"])
def test_napari_shows_raw_and_labels(store: Path, display: str, pictures: Path, tmp_path: Path, kind: str) -> None:
    """The window of napari shows raw and labels, and reads the coarsest level when it is zoomed out: of a store, and of
    an archive that is served.
    """
    for module in ("napari", "PyQt6", "napari_ome_zarr"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}")
    near, far = pictures / f"napari-{kind}.png", pictures / f"napari-{kind}-from-afar.png"
    settings = {"NAPARI_CONFIG": str(tmp_path / "settings.yaml"), "XDG_RUNTIME_DIR": str(tmp_path)}
    screen = {"DISPLAY": display, "QT_QPA_PLATFORM": "xcb", "LIBGL_ALWAYS_SOFTWARE": "1"}
    with ld.serve(cropped(store)) if kind == "archive" else nullcontext() as server:
        command = [
            sys.executable,
            "-c",
            NAPARI,
            *map(str, (f"{server.url}volume.zarr" if server else store, near, far)),
        ]
        run = subprocess.run(command, env=os.environ | settings | screen, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1])[1] == [LEVELS - 1] * 4
    for picture in (near, far):
        assert_shows_the_slice(picture, store)


def test_neuroglancer_shows_raw_and_labels(store: Path, pictures: Path) -> None:
    """From a web server, neuroglancer shows raw and labels. It requests only byte ranges of shards, also of levels."""
    neuroglancer = pytest.importorskip("neuroglancer", reason="needs neuroglancer")
    pytest.importorskip("playwright", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    picture = pictures / "neuroglancer.png"
    with serve(store.parent, ForBrowsers) as server:
        viewer = neuroglancer.Viewer()
        try:
            with viewer.txn() as state:
                fill(state, server, store)
            hosts = photograph(str(viewer), picture)
        finally:
            neuroglancer.stop()
    assert hosts == {"127.0.0.1"}
    shards = [request for request in server.requests if "/c/" in request.path]
    assert {request.status for request in shards} == {206}
    assert any("/pyramid/" in request.path for request in shards)
    assert_shows_the_slice(picture, store)


def test_neuroglancer_shows_an_archive_that_was_not_downloaded(store: Path, pictures: Path) -> None:
    """The link of the gateway opens neuroglancer with raw and labels; all that is shown comes from the gateway."""
    pytest.importorskip("neuroglancer", reason="needs neuroglancer")
    pytest.importorskip("playwright", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    picture = pictures / "neuroglancer-archive.png"
    with ld.serve(cropped(store)) as server, opened(server.link(z=SLICE)) as page:
        hosts = photograph(page, picture)
    assert hosts == {"127.0.0.1", *(f"layer{i}.localhost" for i in (1, 2, 3))}
    assert_shows_the_slice(picture, store)


@pytest.mark.filterwarnings("ignore")  # napari's dependencies deprecate each other
def test_napari_reads_what_is_served(store: Path) -> None:
    """The plugin of napari reads all voxels of all scales over HTTP, with names, scales and colours."""
    plugin = pytest.importorskip("napari_ome_zarr", reason="needs napari-ome-zarr")
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    ds = cropped(store)
    root = zarr.open_group(ld.as_zarr(ds), mode="r")
    with ld.serve(ds) as server:
        layers = plugin.napari_get_reader(server.url)(server.url)
        assert [kind for _, _, kind in layers] == ["image", "labels", "labels", "labels"]
        for name, (arrays, told, _) in zip([RAW, *EMPIAR_13356.labels], layers, strict=True):
            assert name in told["name"]
            assert told["scale"] == [*VOXEL_SIZE]
            np.testing.assert_array_equal(arrays[0].compute(), ds[name].values)
            for number, array in enumerate(arrays[1:], 1):
                np.testing.assert_array_equal(array.compute(), root[f"pyramid/s{number}/{name}"][:])


def fill(state, server: ArchiveServer, store: Path) -> None:
    """Set what neuroglancer shows: it does not read the labels, colours and contrast from the metadata itself."""
    import neuroglancer

    url = f"zarr3://{server.url}/{store.name}"
    ome = json.loads((store / "zarr.json").read_bytes())["attributes"]["ome"]
    window = ome["omero"]["channels"][0]["window"]
    contrast = {"normalized": {"range": [window["start"], window["end"]]}}
    state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=VOXEL_SIZE[::-1])
    state.position = [(BOX.x_min + BOX.x_max) / 2, (BOX.y_min + BOX.y_max) / 2, SLICE]
    state.layers[RAW] = neuroglancer.ImageLayer(source=f"{url}/", opacity=1, shader_controls=contrast)
    for label in EMPIAR_13356.labels:
        colour = {FOREGROUND: EMPIAR_13356[label].color}
        state.layers[label] = neuroglancer.SegmentationLayer(
            source=f"{url}/labels/{label}/", segments=[*colour], segment_colors=colour, selected_alpha=OPACITY
        )
    state.layout, state.cross_section_scale = "xy", 1.4
    state.show_axis_lines = False
