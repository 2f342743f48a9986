"""The slicer shows the right voxels at the right place, fetches few bytes, and survives errors."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from ipywidgets import ColorPicker
from matplotlib.backend_bases import MouseEvent

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.drawn import marks_of_mito
from helpers.far import assert_shares, far, far_shares
from helpers.hostile import Profile, hostile
from helpers.waiting import wait_until
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core import geometry
from liver_dask.demo import ArchiveServer, make_archive, serve
from liver_dask.store import levels as store_levels
from liver_dask.viewing import figures as pictures
from liver_dask.viewing import levels, progressive
from liver_dask.viewing import slicer as slicer_module
from liver_dask.viewing.progressive import ProgressiveReader, Viewport
from liver_dask.viewing.slicer import Slicer

SIZE = 200


def settle(slicer: Slicer) -> None:
    """Wait until a slicer has read what it shows."""
    until = time.monotonic() + 60
    while True:
        with slicer._lock:  # a timer that has fired ends the next one before it begins to read
            if not slicer._moved.is_moving and slicer._reader.idle.is_set():
                return
        assert time.monotonic() < until
        time.sleep(0.01)


def seen_by(slicer: Slicer) -> dict[str, np.ndarray]:
    """The arrays of the visible images of the picture."""
    settle(slicer)
    assert not slicer.status.value
    images = {"raw": slicer._picture._raw, **slicer._picture._masks}
    return {name: np.asarray(image.get_array()) for name, image in images.items() if image.get_visible()}


@pytest.fixture(autouse=True)
def nothing_ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read ahead, except in tests of that, so that requests can be counted."""
    if "ahead" not in request.node.name:
        monkeypatch.setattr(progressive, "AHEAD", 0)


@pytest.fixture
def slicers() -> Iterator[Callable[..., Slicer]]:
    """A function that makes slicers, which are closed after the test."""
    made: list[Slicer] = []

    def make(*arguments, **options) -> Slicer:
        made.append(ld.view(*arguments, **{"size": SIZE} | options))
        return made[-1]

    yield make
    for slicer in made:
        slicer.close()


@pytest.mark.parametrize("window", [((20, 120), (37, 200)), ((299, 300), (0, 9)), ((0, 300), (0, 420))])
@pytest.mark.parametrize("kind", ["archive", "store", "in memory"])
def test_the_window_shows_the_source(archive: Path, tmp_path: Path, voxels, slicers, kind: str, window) -> None:
    """The picture shows the voxels of the chosen slice and window, at the right coordinates."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    if kind == "store":
        ds = xr.open_zarr(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False))
    slicer = slicers(ds.load() if kind == "in memory" else ds, z=0)
    slicer.go_to(7, *window)
    found = seen_by(slicer)
    (y0, y1), (x0, x1) = window
    step = max(1, -(-max(y1 - y0, x1 - x0) // SIZE))
    np.testing.assert_array_equal(found["raw"], far(voxels["raw"][7], *window, step))
    for name in EMPIAR_13356.labels:
        assert_shares(found[name][:, : 32 * 4, 3], far_shares(voxels[name][7], *window, step)[:, : 32 * 4])
    rows, columns = len(range(y0, y1, step)), len(range(x0, x1, step))
    edges = x0 - 0.5, x0 + columns * step - 0.5, y0 + rows * step - 0.5, y0 - 0.5
    assert tuple(slicer._picture._raw.get_extent()) == edges


@pytest.mark.parametrize("kind", ["archive", "store", "in memory"])
def test_other_planes_show_the_source(archive: Path, tmp_path: Path, voxels, slicers, kind: str) -> None:
    """Seen from the side, the picture shows the voxels of the chosen slice, at their coordinates, and tells them."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"])
    if kind == "store":
        ds = xr.open_zarr(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False))
    slicer = slicers(ds.load() if kind == "in memory" else ds, z=6, opacity=1)
    slicer.go_to((2, 9), 123, (30, 200), plane="xz")
    found = seen_by(slicer)
    np.testing.assert_array_equal(found["raw"], voxels["raw"][2:9, 123, 30:200])
    np.testing.assert_array_equal(found["mito"][..., 3], voxels["mito"][2:9, 123, 30:200] / 255)
    assert tuple(slicer._picture._raw.get_extent()) == (29.5, 199.5, 8.5, 1.5)
    assert slicer._picture.axes.get_title(loc="left") == "y 123"
    assert slicer.where.value == "y 123, z 2 to 9, x 30 to 200"
    assert slicer._told_of(77.2, 4.8).startswith(f"z 5, y 123, x 77: raw {voxels['raw'][5, 123, 77]}, mito ")
    slicer.go_to(None, (10, 160), 201, plane="yz")
    np.testing.assert_array_equal(seen_by(slicer)["raw"], voxels["raw"][:, 10:160, 201].T)
    assert slicer._told_of(4.8, 77.2).startswith(f"z 5, y 77, x 201: raw {voxels['raw'][5, 77, 201]}, mito ")
    slicer.x.value = 33
    np.testing.assert_array_equal(seen_by(slicer)["raw"], voxels["raw"][:, 10:160, 33].T)
    slicer.go_to(x=33)  # all of it, with fewer voxels than it has
    np.testing.assert_array_equal(seen_by(slicer)["raw"], voxels["raw"][1::2, 1::2, 33].T)
    assert slicer._told_of(4, 70).startswith(f"z 4, y 70, x 33; z 5, y 71, x 33: raw {voxels['raw'][5, 71, 33]}, mito ")


def test_planes_keep_the_place(archive: Path, slicers) -> None:
    """Another plane goes through the middle of the picture; back in a plane, slice and window are what they were."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE, labels=[]), z=7)
    assert [value for _, value in slicer.plane.options] == ["xy", "xz", "yz"]
    slicer.go_to(7, (100, 140), (60, 100))
    mouse(slicer, "motion_notify_event", 80, 120)
    assert slicer.value.value
    slicer.plane.value = "xz"
    assert not slicer.value.value, "a voxel of the other plane"
    seen_by(slicer)
    assert (slicer.z.value, slicer.y.value, slicer.x.value) == (5, 120, 80)
    assert slicer.window == ((0, 10), (60, 100))
    slicer.plane.value = "yz"
    assert slicer.x.value == 80
    assert slicer.window == ((100, 140), (0, 10))
    slicer.x.value = 95
    slicer.plane.value = "xy"
    seen_by(slicer)
    assert (slicer.z.value, slicer.y.value, slicer.x.value) == (7, 120, 80)
    assert slicer.window == ((100, 140), (60, 100))
    slicer.plane.value = "yz"
    assert slicer.x.value == 95, "the slice of a plane is forgotten"
    slicer.plane.value = "xz"
    slicer.go_to((0, 3))
    slicer.plane.value = "xy"
    assert slicer.z.value == 2, "a slice that the picture did not show"
    before = slicer.plane.value, slicer.z.value, slicer.window
    for wrong in (
        {"plane": "zx"},
        {"plane": ["xz"]},
        {"plane": "xz", "y": (3, 9)},
        {"plane": "yz", "z": 3},
        {"plane": "yz", "x": 420},
    ):
        with pytest.raises(ld.InvalidArgumentError):
            slicer.go_to(**wrong)
        assert (slicer.plane.value, slicer.z.value, slicer.window) == before


def test_voxels_are_as_high_as_they_are_from_the_side(archive: Path, slicers) -> None:
    """From the side, voxels have the shape that they have in the tissue, and lengths are measured with it."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE, labels=[], voxel_size_nm=(40, 5, 8)), z=7)
    for plane, aspect, said in (("xy", 5 / 8, "0.050 µm"), ("xz", 40 / 8, "0.400 µm"), ("yz", 5 / 40, "0.050 µm")):
        slicer.plane.value = plane
        assert slicer._picture.axes.get_aspect() == aspect
        assert slicer._picture.length_of((3, 0), (3, 10)).startswith(said)


def test_an_archive_of_many_slices_is_not_seen_from_the_side(tmp_path: Path, slicers) -> None:
    """From the side of an archive, rows of every slice would be read: of many slices it is refused, with advice."""
    make_archive(tmp_path, (66, 64, 70))
    ds = ld.open_human_liver_em(tmp_path, shape=(66, 64, 70), labels=[])
    slicer = slicers(ds)
    assert slicer.plane.layout.display == "none"
    with pytest.raises(ld.InvalidArgumentError, match="at most 64 slices"):
        slicer.go_to(plane="xz", y=3)
    engine = xr.open_dataset(tmp_path, engine="liver_dask", shape=(66, 64, 70), labels=[])
    for remote in (ds.chunk(z=33), ds + 1, engine, engine.isel(y=slice(3, 9))):
        assert levels.Levels(remote).planes == ("xy",), "as many slices are read"
    assert len(levels.Levels(ds.compute()).planes) == 3
    few = slicers(ds.isel(z=slice(1, 65)))
    few.go_to(plane="xz", y=3)
    assert seen_by(few)["raw"].shape == (64, 70)


@pytest.mark.parametrize("earlier", ["import matplotlib.pyplot as p; p.switch_backend('svg'); p.figure()", ""])
def test_it_leaves_the_users_own_figures_alone(earlier: str) -> None:
    """Importing the slicer changes neither pyplot's backend nor its open figures."""
    asked = "import matplotlib.pyplot as p; print(p.get_backend(), p.get_fignums())"
    imported = "import liver_dask.viewing.slicer"
    environ = os.environ | {"MPLBACKEND": "pdf"}
    said = [
        subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
        for code in ("; ".join(filter(None, (earlier, asked))), "; ".join(filter(None, (earlier, imported, asked))))
    ]
    assert said[0] == said[1] != ""


def test_its_title_is_that_of_a_picture(archive: Path, slicers) -> None:
    """The slicer and a picture of the same window have the same title, which tells the voxels of a pixel."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    slicer = slicers(ds, z=3)
    for window, title in ((((20, 120), (37, 200)), "z 3"), ((None, None), "z 3, 1 pixel = 3 x 3 voxels")):
        slicer.go_to(3, *window)
        seen_by(slicer)
        drawn = ld.show(ds, 3, *window, pixels=SIZE)
        assert {axes.get_title(loc="left") for axes in (slicer._picture.axes, drawn.axes[0])} == {title}


def test_it_goes_to_slices_as_to_pairs_and_to_nothing_else(archive: Path, slicers) -> None:
    """`go_to` accepts slices and pairs; an invalid place is an error and changes nothing."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE), z=3)
    slicer.go_to(5, slice(20, 120), slice(None, 200))
    assert (slicer.z.value, slicer.window) == (5, ((20, 120), (0, 200)))
    slicer.go_to(y=(30, 60))
    assert (slicer.z.value, slicer.window) == (5, ((30, 60), (0, 420)))
    for wrong in ({"z": 10}, {"z": -1}, {"z": 2, "y": (-1, 10)}, {"x": slice(0, 10, 2)}, {"y": 7}, {"x": (9, 9)}):
        with pytest.raises(ld.InvalidArgumentError):
            slicer.go_to(**wrong)
    assert (slicer.z.value, slicer.window) == (5, ((30, 60), (0, 420)))


@pytest.mark.parametrize("zoom", [1, 4, 16])
def test_the_overlay_is_on_the_voxels_that_it_marks(slicers, zoom: int) -> None:
    """At every zoom a mask is drawn exactly on the voxels that it marks."""
    corner, shape = (5100, 7200), (1, 800, 800)
    first = (290, corner[0] - 300, corner[1] - 300)
    mito = np.zeros(shape, np.uint8)
    mito[:, 300:, 300:] = 255
    variables = {"raw": np.full(shape, 1000, np.uint16), "mito": mito}
    ds = xr.Dataset(
        {name: (geometry.DIMS, values, EMPIAR_13356[name].attributes) for name, values in variables.items()},
        {dim: np.arange(start, start + n) for dim, start, n in zip(geometry.DIMS, first, shape, strict=True)},
    )
    slicer = slicers(ds, opacity=1, size=500)
    half = 400 // zoom
    if zoom > 1:
        slicer.go_to(290, *((at - half // 2, at + half) for at in corner))
    seen_by(slicer)
    is_red = marks_of_mito(slicer._picture.canvas, slicer._picture.axes)
    step = -(-2 * half // 500) if zoom == 1 else 1

    away = 1.4 * step
    assert is_red(corner[0] - 0.5 + away, corner[1] - 0.5 + away)
    assert not is_red(corner[0] - 0.5 - away, corner[1] - 0.5 + away)
    assert not is_red(corner[0] - 0.5 + away, corner[1] - 0.5 - away)


@pytest.mark.parametrize("kind", ["archive", "store with a pyramid"])
def test_the_value_under_the_mouse_is_of_the_voxels_that_are_named(
    archive: Path, tmp_path: Path, voxels, slicers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At five zooms the value is that of the voxel, or a mean that is called so, with the rows and columns it is of."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 64)
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"])
    if kind != "archive":
        ds = xr.open_zarr(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False, pyramid=True))
    slicer = slicers(ds, size=100)
    steps = set()
    for half in (20, 60, 90, 120, 150):
        y, x = (150 - half, 150 + half), (max(210 - 2 * half, 0), min(210 + 2 * half, 420))
        slicer.go_to(6, y, x)
        seen_by(slicer)
        steps.add(slicer._seen["raw"].attrs["step"][1])
        for row, column in ((y[0], x[0]), (150, 210), (y[1] - 1, x[1] - 1)):
            text = slicer._told_of(column + 0.3, row - 0.3)
            told = re.fullmatch(
                r"z 6, y (\d+), x (\d+)(?:; z 6, y (\d+)(?: to (\d+))?, x (\d+) to (\d+))?"
                r": raw (\d+)( \(mean\))?, mito (\d+)",
                text,
            )
            assert told, text
            *numbers, value, mean, mito = told.groups()
            assert [int(number) for number in numbers[:2]] == [row, column]
            if mean is None:
                assert slicer._seen["raw"].attrs["step"][1] == 1
                assert (int(value), int(mito)) == tuple(voxels[name][6, row, column] for name in ("raw", "mito"))
                continue
            first, last, left, right = (int(n) for n in (numbers[2], numbers[3] or numbers[2], *numbers[4:]))
            assert left <= column <= right
            assert abs(int(value) - voxels["raw"][6, first : last + 1, left : right + 1].mean()) <= 1 + (first != last)
            assert mito in ("0", "255")
    assert len(steps) > 2
    assert slicer._told_of(-50, 3).endswith("x -50"), "a value where there are no voxels"


def mouse(slicer: Slicer, kind: str, column: float, row: float, **more) -> None:
    """Let the mouse do something at a voxel, given by column and row."""
    x, y = slicer._picture.axes.transData.transform((column, row))
    MouseEvent(kind, slicer._picture.canvas, x, y, **more)._process()


def test_the_mouse_drags_zooms_and_tells(archive: Path, slicers, voxels) -> None:
    """Dragging moves the window; the wheel zooms around the voxel under it, scrolls no page; that voxel is told."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE), z=3)
    slicer.go_to(4, (100, 180), (100, 180))
    seen_by(slicer)
    mouse(slicer, "motion_notify_event", 120, 110)
    assert slicer.value.value.startswith(f"z 4, y 110, x 120: raw {voxels['raw'][4, 110, 120]}, mito ")
    slicer.z.value = 5
    seen_by(slicer)
    assert slicer.value.value.startswith(f"z 5, y 110, x 120: raw {voxels['raw'][5, 110, 120]}, mito "), "of before"
    slicer.z.value = 4
    seen_by(slicer)
    mouse(slicer, "motion_notify_event", 10, 10)
    assert slicer.value.value == "", "a voxel is told that is not shown"
    mouse(slicer, "button_press_event", 150, 150, button=1)
    at, _ = slicer._picture.axes.transData.transform((150, 150))
    for left in (10, 30):  # pixels
        x, y = at - left, slicer._picture.canvas.get_width_height()[1] / 2
        MouseEvent("motion_notify_event", slicer._picture.canvas, x, y, buttons=[1])._process()
    mouse(slicer, "button_release_event", 150, 150, button=1)
    (top, bottom), (left, right) = slicer.window
    assert left > 105
    assert right - left in (80, 81)
    before = slicer.window
    mouse(slicer, "motion_notify_event", 200, 150)
    assert slicer.window == before, "it is dragged without a button"
    slicer.go_to(4, (100, 180), (100, 180))
    mouse(slicer, "scroll_event", 110, 170, step=2)
    (top, bottom), (left, right) = slicer.window
    assert bottom - top in (40, 41)
    assert abs((110 - left) / (right - left) - 1 / 8) < 0.03
    assert slicer._picture.canvas.capture_scroll


@pytest.mark.parametrize(("size", "said"), [(None, "50.0 voxels"), ((30, 8, 8), "0.400 µm")])
def test_a_ruler_measures(archive: Path, slicers, size, said: str) -> None:
    """With the ruler, dragging measures in micrometres, or in pixels if no voxel size is known, and moves nothing."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE, voxel_size_nm=size), z=3)
    slicer.go_to(4, (100, 180), (100, 180))
    seen_by(slicer)
    before = slicer.window
    slicer.ruler.value = True
    mouse(slicer, "button_press_event", 110, 120, button=1)
    mouse(slicer, "motion_notify_event", 140, 160, buttons=[1])
    assert slicer.value.value == f"{said} from y 120, x 110 to y 160, x 140"
    np.testing.assert_allclose(slicer._picture._ruler.get_xydata(), [[110, 120], [140, 160]])
    mouse(slicer, "button_release_event", 140, 160, button=1)
    mouse(slicer, "motion_notify_event", 150, 160)
    assert slicer.value.value.startswith("z 4, y 160, x 150: raw")
    assert slicer.window == before
    slicer.ruler.value = False
    assert not len(slicer._picture._ruler.get_xydata())


def test_a_place_can_be_typed(archive: Path, slicers) -> None:
    """The centre is shown and can be typed; a number outside the Dataset is its nearest voxel."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE), z=3)
    slicer.go_to(4, (100, 180), (100, 200))
    seen_by(slicer)
    assert (slicer.y.value, slicer.x.value) == (140, 150)
    slicer.x.value = 250
    assert slicer.window == ((100, 180), (200, 300))
    slicer.y.value = 10_000
    seen_by(slicer)
    assert slicer.y.value == 299
    assert slicer.window[0][1] == 300
    slicer.go_to(4)
    for column in (20, 25, 30, 35):  # near the edge, where half of the picture is empty
        slicer.x.value = column
        seen_by(slicer)
        assert slicer.x.value == column
        assert sum(slicer._picture.axes.get_xlim()) / 2 == pytest.approx(column, abs=0.6)


def test_the_picture_stays_at_the_volume(archive: Path, slicers) -> None:
    """Dragging and zooming out end where nothing of the volume would be in the middle."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE), z=3)
    seen_by(slicer)
    for _ in range(30):
        slicer._picture.zoom(2)
    (left, right), (bottom, top) = slicer._picture.axes.get_xlim(), slicer._picture.axes.get_ylim()
    assert right - left <= 4 * 420
    assert bottom - top <= 4 * 420
    slicer.go_to(3)
    mouse(slicer, "button_press_event", 150, 150, button=1)
    MouseEvent("motion_notify_event", slicer._picture.canvas, 10_000, 10_000, buttons=[1])._process()
    mouse(slicer, "button_release_event", 150, 150, button=3)
    assert slicer._is_dragged, "another button ends it"
    mouse(slicer, "button_release_event", 150, 150, button=1)
    for middle, length in zip(slicer._picture.middle, SHAPE[1:], strict=True):
        assert 0 <= middle <= length


def test_the_slices_beside_are_read_ahead(
    server: ArchiveServer, slicers, voxels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a slice is sharp, those beside it are read; the next one is then shown without a request."""
    slicer = slicers(ld.open_human_liver_em(server.url, shape=SHAPE, labels=["mito"]), z=0)
    seen_by(slicer)
    slicer.z.value = 3
    seen_by(slicer)
    wanted = {slicer._viewport().key(name) for name in ("raw", "mito")}
    wanted = {(name, z, *rest) for name, _, *rest in wanted for z in (2, 3, 4)}
    until = time.monotonic() + 30
    while not wanted <= {*slicer._reader._kept}:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert slicer._reader.idle.is_set(), "what is read ahead counts as reading"
    server.requests.clear()
    monkeypatch.setattr(progressive, "AHEAD", 0)
    for z in (4, 2):
        slicer.z.value = z
        np.testing.assert_array_equal(seen_by(slicer)["raw"], far(voxels["raw"][z], (0, 300), (0, 420), 3))
    assert not server.requests


def test_slices_on_the_way_are_shown_coarsely(archive: Path, slicers, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the slider is dragged, raw of slices on the way is shown as soon as it is there, under its own number."""
    monkeypatch.setattr(slicer_module, "SECONDS_AT_REST", 0.6)
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE), z=3)
    seen_by(slicer)
    titles = []
    draw = slicer._picture.draw_raw
    monkeypatch.setattr(slicer._picture, "draw_raw", lambda z, seen, _: titles.append((z, seen.attrs["step"][1])))
    for z in (4, 5, 6):
        slicer.z.value = z
        time.sleep(0.3)
    assert {4, 5, 6} >= {z for z, _ in titles}
    assert len(titles) >= 2, "nothing was shown on the way"
    assert all(step > 3 for _, step in titles), "sharp slices were read on the way"
    monkeypatch.setattr(slicer._picture, "draw_raw", draw)
    seen_by(slicer)
    assert slicer._picture.axes.get_title(loc="left").startswith("z 6,")


def test_it_is_as_small_as_a_narrow_window(archive: Path, slicers) -> None:
    """The picture and its one tool fit into a window of 700 pixels, and what is told is above the picture."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE), size=620)
    assert inspect.signature(ld.view).parameters["size"].default == 620
    canvas = slicer._picture.canvas
    assert slicer.children[-1] is canvas
    assert canvas.get_width_height()[0] == 620
    assert [item[0] for item in canvas.toolbar.toolitems] == ["Download"]
    assert not canvas.footer_visible


def test_a_colour_can_be_chosen_for_a_mask_and_not_for_instances(archive: Path, slicers) -> None:
    """A mask has a control of its colour; instances have a patch of several colours instead."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito", "er"])
    slicer = slicers(ds.assign(mito=ds.mito.assign_attrs(kind="instances")), z=3)
    seen_by(slicer)
    mito, er = (slicer.masks[name].controls for name in ("mito", "er"))
    assert isinstance(er[1], ColorPicker)
    assert not any(isinstance(control, ColorPicker) for control in mito)
    colors = re.findall("background: (#[0-9a-f]{6})", mito[1].value)
    assert len(set(colors)) == pictures.LEGEND_COLORS


def test_a_toggled_mask_fetches_nothing_else_and_a_known_one_nothing(server: ArchiveServer, slicers) -> None:
    """Switching a mask on fetches this mask alone; a known mask, colours and contrast fetch nothing."""
    slicer = slicers(ld.open_human_liver_em(server.url, shape=SHAPE), z=3, labels=["mito"])
    assert seen_by(slicer).keys() == {"raw", "mito"}
    server.requests.clear()
    slicer.masks["er"].on.value = True
    assert seen_by(slicer).keys() == {"raw", "mito", "er"}
    assert {request.path for request in server.requests} == {f"/{EMPIAR_13356.path('er', 3)}"}
    server.requests.clear()
    slicer.masks["er"].on.value = False
    assert seen_by(slicer).keys() == {"raw", "mito"}
    slicer.masks["er"].on.value = True
    slicer.masks["er"].colour.value = "#00ff00"
    slicer.masks["er"].opacity.value = 0.9
    slicer.contrast.value = (5, 95)
    pixels = seen_by(slicer)["er"]
    np.testing.assert_allclose(pixels[pixels[..., 3] > 0][0], [0, 1, 0, 0.9], atol=1e-6)
    assert not server.requests


def test_sliding_back_fetches_nothing(server: ArchiveServer, slicers, voxels) -> None:
    """Going back to the previous slice sends no request and computes nothing."""
    slicer = slicers(ld.open_human_liver_em(server.url, shape=SHAPE), z=3)
    seen_by(slicer)
    slicer.z.value = 4
    seen_by(slicer)
    server.requests.clear()
    slicer._levels.window = None  # a call fails: nothing is read again, not even from the cache
    slicer.z.value = 3
    np.testing.assert_array_equal(seen_by(slicer)["raw"], far(voxels["raw"][3], (0, 300), (0, 420), 3))
    assert not server.requests


def test_going_there_and_back_shows_what_was_there(archive: Path, slicers, voxels) -> None:
    """After a move away and back the slice is shown in full, and late results of other slices are ignored."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE), z=3)
    seen_by(slicer)
    slicer.z.value = 4
    slicer.z.value = 3
    assert seen_by(slicer).keys() == {"raw", *EMPIAR_13356.labels}
    assert slicer._picture._raw.get_alpha() == 1
    slicer._turn()
    slicer.masks["mito"].opacity.value = 0.7
    assert not slicer._picture._masks["mito"].get_visible(), "a mask of the slice before"
    late = levels.variable_of(slicer._levels.window(4, pixels=SIZE), "raw").compute()
    slicer._take(Viewport(4, (0, 300), (0, 420), SIZE, ("raw",)), late)
    np.testing.assert_array_equal(seen_by(slicer)["raw"], far(voxels["raw"][3], (0, 300), (0, 420), 3))


def test_a_coarse_picture_comes_first_and_costs_little(server: ArchiveServer) -> None:
    """A coarse picture of raw comes before the sharp one, for less than a fifth of its bytes; masks come meanwhile."""
    came: list[tuple[str, int, int]] = []
    reader = ProgressiveReader(
        levels.Levels(ld.open_human_liver_em(server.url, shape=SHAPE)),
        lambda _, seen: came.append((seen.name, seen.attrs["step"][1], server.bytes_sent)),
        lambda *_: None,
    )
    coarse = -(-300 // (300 // progressive.COARSER))
    reader.see(Viewport(4, (0, 300), (0, 300), 300, ("raw",)))
    assert reader.idle.wait(30)
    assert [(name, step) for name, step, _ in came] == [("raw", coarse), ("raw", 1)]
    index = 2 * (16 * SHAPE[1] + 1024)
    assert came[0][2] - index < (server.bytes_sent - index) / 5
    came.clear()
    reader.see(Viewport(5, (0, 300), (0, 300), 300, ("raw", "mito", "er")))
    assert reader.idle.wait(30)
    assert sorted((name, step) for name, step, _ in came) == [("er", 1), ("mito", 1), ("raw", 1), ("raw", coarse)]
    reader.close()


def test_a_control_of_a_mask_does_not_bring_it_early(archive: Path, slicers) -> None:
    """While raw of a slice is awaited, colours and switches of masks that are there draw nothing over the old raw."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"]), z=3)
    seen_by(slicer)
    slicer._reader.close()  # the test brings what is read
    slicer.z.value = 4
    seen = slicer._levels.window(4, pixels=SIZE)
    slicer._take(slicer._viewport(), levels.variable_of(seen, "mito").compute())
    slicer.masks["mito"].opacity.value = 0.9
    assert not slicer._picture._masks["mito"].get_visible()
    slicer._take(slicer._viewport(), levels.variable_of(seen, "raw").compute())
    assert slicer._picture._masks["mito"].get_visible()
    other = levels.variable_of(slicer._levels.window(5, pixels=SIZE), "raw").compute()
    slicer._moved.begin()  # for a moment
    slicer._take(Viewport(5, *slicer.window, SIZE, ("raw",)), other)  # a glance that was late
    assert not slicer._picture._masks["mito"].get_visible(), "a mask over raw of another slice"


def test_a_late_glance_does_not_replace_the_sharp_picture(archive: Path, slicers) -> None:
    """A coarse picture that comes after the sharp one of the same window is not shown; that of another window is."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE, labels=[]), z=3)
    sharp = seen_by(slicer)["raw"]
    slicer._reader.close()  # the test brings what is read
    for rows, is_shown in (((0, 300), False), ((0, 150), True)):
        slicer.go_to(3, rows)
        viewport = slicer._viewport()
        coarse = levels.variable_of(slicer._levels.window(3, viewport.rows, viewport.columns, SIZE // 8), "raw")
        slicer._take(viewport, coarse.compute())
        assert np.array_equal(slicer._picture._raw.get_array(), sharp) != is_shown


def test_the_slice_that_was_looked_at_stays_in_the_picture(archive: Path, slicers) -> None:
    """From another plane, the window goes to the slice that was shown, and the way back leads to it."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE, labels=[]).compute())
    slicer.go_to(y=(0, 100))
    slicer.go_to(y=230, plane="xz")
    slicer.plane.value = "xy"
    (top, bottom), _ = slicer.window
    assert (top, bottom) == (180, 280)
    slicer.plane.value = "xz"
    assert slicer.y.value == 230


def test_masks_wait_for_raw_of_their_slice(archive: Path, slicers) -> None:
    """A mask that is read before raw is not drawn over raw of another slice; it is drawn with its own."""
    slicer = slicers(ld.open_human_liver_em(archive, shape=SHAPE, labels=["mito"]), z=3)
    seen_by(slicer)
    slicer._reader.close()  # the test brings what is read
    slicer.z.value = 4
    of = {name: levels.variable_of(slicer._levels.window(4, pixels=SIZE), name).compute() for name in ("raw", "mito")}
    for name, shown in (("mito", False), ("raw", True)):
        slicer._take(slicer._viewport(), of[name])
        assert slicer._picture._masks["mito"].get_visible() == shown


@pytest.mark.slow
def test_what_is_no_longer_looked_at_is_given_up(tmp_path: Path) -> None:
    """Reads of slices that are no longer looked at are cancelled, and the last view is shown soon."""
    make_archive(tmp_path / "archive", shape := (6, 1200, 1200))
    slow = hostile(Profile(rate=150_000, latency=0.02))
    shown: list[int] = []
    with serve(tmp_path / "archive", slow) as server:
        seen = levels.Levels(ld.open_human_liver_em(server.url, shape=shape, labels=[], connections=4))
        reader = ProgressiveReader(seen, lambda look, *_: shown.append(look.at), lambda *_: None)
        whole = (0, 1200), (0, 1200), 1200
        for z in (0, 1, 2, 3):
            reader.see(Viewport(z, *whole, ("raw",)))
            time.sleep(0.4)
        reader.see(Viewport(4, (0, 64), (0, 64), 64, ("raw",)))
        began = time.monotonic()
        assert reader.idle.wait(60)
        seconds = time.monotonic() - began
        out = slow.bytes_out
        time.sleep(1.5)
        assert slow.bytes_out - out < 300_000, "what was given up was still being sent"
        reader.close()
    assert shown[-2:] == [4, 4]
    assert out < 2 * 1200 * 1200 * 2, "four slices were fetched whole"
    assert seconds < 10


def test_a_slice_that_cannot_be_read_is_reported_and_others_are_seen(archive: Path, tmp_path: Path, slicers) -> None:
    """An error is shown, escaped, in the status; its masks are hidden, and later reads succeed."""
    shutil.copytree(archive, tmp_path / "archive")
    (tmp_path / "archive" / EMPIAR_13356.path("raw", 6)).unlink()
    ds = ld.open_human_liver_em(tmp_path / "archive", shape=SHAPE)
    slicer = slicers(ds, z=5)
    seen_by(slicer)
    slicer.z.value = 6
    settle(slicer)
    assert "raw, slice 6" in slicer.status.value
    slicer._show_message(Viewport(6, (0, 1), (0, 1), 1, ()), "the folder <b> is gone")
    assert slicer.status.value == "the folder &lt;b&gt; is gone"
    assert not any(image.get_visible() for image in slicer._picture._masks.values())
    assert slicer._picture._raw.get_alpha() < 1
    shutil.copy2(archive / EMPIAR_13356.path("raw", 6), tmp_path / "archive" / EMPIAR_13356.path("raw", 6))
    slicer._look()
    assert seen_by(slicer).keys() == {"raw", *EMPIAR_13356.labels}
    assert slicer._picture._raw.get_alpha() == 1
    slicer.z.value = 7
    assert seen_by(slicer).keys() == {"raw", *EMPIAR_13356.labels}


@pytest.mark.slow
def test_a_slow_look_is_reported(archive: Path) -> None:
    """During a slow read the status shows the progress, and is empty afterwards."""
    told: list[str] = []
    with serve(archive, hostile(Profile(rate=80_000, latency=0.1))) as server:
        seen = levels.Levels(ld.open_human_liver_em(server.url, shape=SHAPE, labels=[], connections=2))
        reader = ProgressiveReader(seen, lambda *_: None, lambda _, text: told.append(text))
        reader.see(Viewport(4, (0, 300), (0, 420), 420, ("raw",)))
        assert reader.idle.wait(60)
        reader.close()
    assert any("Reading z 4" in text and "fetched" in text for text in told)
    assert told[-1] == ""


def test_far_views_of_a_store_are_of_its_levels(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far views of a store, or of a crop of it, read a pyramid level; changed Datasets use no level."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 64)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    box = (37, 401, 21, 290, 1, 9)
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=box, pyramid=True, progress=False)
    stored = xr.open_zarr(tmp_path / "a.zarr")
    part = stored.isel(y=slice(30, 260), x=slice(11, 300))
    for of in (stored, part):
        assert len(store_levels.open_levels(of)) == 4
        near, far = levels.window(of, 4, (60, 100), (50, 90)), levels.window(of, 4, pixels=80)
        np.testing.assert_array_equal(near.raw, stored.raw.sel(z=4, y=slice(60, 99), x=slice(50, 89)))
        assert 80 <= max(far.raw.shape) < 160, "a pixel shows more or less than the screen can"
        level = xr.open_zarr(tmp_path / "a.zarr" / "pyramid" / f"s{far.attrs['step'][1].bit_length() - 1}")
        xr.testing.assert_equal(far.raw.compute().drop_vars("z"), level.raw.sel(z=4, y=far.y, x=far.x).drop_vars("z"))
        half = far.attrs["step"][1]
        assert abs(far.y[0] - of.y[0]) <= half
        assert abs(far.x[-1] - of.x[-1]) <= half
    for changed in (stored.assign(raw=stored.raw * 2), stored.load(), stored.roll(y=3), ds):
        assert len(store_levels.open_levels(changed)) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"z": 10}, "not one of the slices 0 to 9"),
        ({"labels": ["bile_duct"]}, "no 'bile_duct'"),
        ({"contrast": (99, 1)}, "two ascending percentiles"),
        ({"size": 0}, "at least 100"),
    ],
)
def test_what_is_not_there_cannot_be_viewed(archive: Path, wrong, told: str) -> None:
    """A wrong slice, label, contrast or size is an InvalidArgumentError."""
    with pytest.raises(ld.InvalidArgumentError, match=told):
        ld.view(ld.open_human_liver_em(archive, shape=SHAPE), **wrong)


def test_closing_ends_the_threads(archive: Path) -> None:
    """Closing a slicer ends its threads; those of slicers that others have left open are not meant."""
    before = set(threading.enumerate())
    slicer = ld.view(ld.open_human_liver_em(archive, shape=SHAPE), size=SIZE)
    seen_by(slicer)
    slicer.close()
    slicer._look()  # as by a timer that was about to fire
    own = set(threading.enumerate()) - before
    wait_until(lambda: not any(of.is_alive() for of in own if of.name.startswith("liver_dask-view")), 60)
