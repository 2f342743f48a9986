"""Pictures show masks on the voxels that they mark, far views fetch few bytes, and a command saves pictures."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.drawn import marks_of_mito
from helpers.far import far
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.cli import main
from liver_dask.core import geometry
from liver_dask.demo import ArchiveServer
from liver_dask.viewing import figures as pictures
from liver_dask.viewing import levels
from liver_dask.viewing.accessor import LiverAccessor

DEPTH, HEIGHT, WIDTH = SHAPE


@pytest.fixture
def corner() -> xr.Dataset:
    """A dark slice far from the origin of the volume, with mito from row 5100 and column 7200 on."""
    shape, first = (1, 400, 600), (290, 5000, 7000)
    masks = {name: np.zeros(shape, np.uint8) for name in ("mito", "er")}
    masks["mito"][:, 100:, 200:] = 255
    variables = {
        name: (geometry.DIMS, voxels, EMPIAR_13356[name].attributes)
        for name, voxels in ({"raw": np.full(shape, 1000, np.uint16)} | masks).items()
    }
    coordinates = {dim: np.arange(start, start + n) for dim, start, n in zip(geometry.DIMS, first, shape, strict=True)}
    return xr.Dataset(variables, coordinates)


@pytest.mark.parametrize(
    ("y", "x", "pixels"), [(None, None, 100), ((5050, 5170), (7120, 7290), 1024), ((5098, 5118), (7198, 7218), 1024)]
)
def test_the_overlay_is_on_the_voxels_that_it_marks(corner: xr.Dataset, y, x, pixels: int) -> None:
    """At every zoom a mask is drawn exactly on the voxels that it marks."""
    figure = ld.show(corner, 290, y, x, labels=["mito"], opacity=1, pixels=pixels)
    canvas = FigureCanvasAgg(figure)
    is_red = marks_of_mito(canvas, *figure.axes)
    step = levels.window(corner, 290, y, x, pixels).attrs["step"][1]
    assert (step > 1) == (pixels == 100)

    for away in (0.4, 1.4) if step == 1 else (step, 2 * step):  # voxel 5100 is marked; it begins at 5099.5
        assert is_red(5099.5 + away, 7199.5 + away)
        assert not is_red(5099.5 - away, 7199.5 + away)
        assert not is_red(5099.5 + away, 7199.5 - away)


@pytest.mark.parametrize(
    ("y", "x"), [(None, None), ((5000, 5100), None), (None, (7000, 7060)), ((5000, 5080), (7000, 7400))]
)
def test_a_picture_has_the_shape_of_its_window(corner: xr.Dataset, y, x) -> None:
    """A figure has no empty space above or below a wide window, and the legend is not on the title."""
    figure = ld.show(corner, 290, y, x, pixels=300)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    drawn = axes.get_tightbbox()
    assert drawn.height > 0.85 * figure.bbox.height
    assert drawn.width > 0.6 * figure.bbox.width
    assert figure.bbox.containsx(drawn.x1)
    title = axes._left_title.get_window_extent()
    assert not title.overlaps(axes.get_legend().get_window_extent())


def test_the_legend_has_several_colours_for_instances(corner: xr.Dataset) -> None:
    """The legend shows colours of instances, and the one colour of a mask."""
    instances = corner.mito.astype(np.uint32).assign_attrs(kind="instances")
    ds = corner.assign(
        mito=instances.copy(data=np.arange(corner.mito.size, dtype=np.uint32).reshape(corner.mito.shape))
    )
    colors = [to_hex(patch.get_facecolor()) for patch in ld.show(ds, 290).axes[0].get_legend().findobj(Rectangle)]
    numbers = ds.mito[0, 0, 1 : 1 + pictures.LEGEND_COLORS]
    drawn = [to_hex(color) for color in pictures.overlay(numbers, EMPIAR_13356["mito"].color, 1)]
    assert len(set(drawn)) == pictures.LEGEND_COLORS > 1
    assert colors == [*drawn, EMPIAR_13356["er"].color]


def test_the_bar_is_seen_on_black_glass(corner: xr.Dataset) -> None:
    """The black bar lies inside a light box, away from its edges."""
    figure = ld.show(corner, 290, labels=[])
    FigureCanvasAgg(figure).draw()
    (bar,) = figure.axes[0].artists
    box, line = bar.patch.get_window_extent(), bar.size_bar.get_children()[0].get_window_extent()
    assert line.y1 < box.y1 - 2
    assert line.x0 > box.x0 + 2
    assert np.mean(bar.patch.get_facecolor()[:3]) * bar.patch.get_alpha() > 0.8


def test_a_far_view_costs_a_few_rows(server: ArchiveServer, archive: Path, voxels) -> None:
    """A far view averages the columns of every 14th row, and fetches less than a third of the file."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=[])
    seen = ds.liver.overview(4, pixels=30)
    assert not server.requests
    assert seen.attrs["step"] == [1, 14, 14]
    np.testing.assert_array_equal(seen.raw, far(voxels["raw"][4], (0, HEIGHT), (0, WIDTH), 14))
    whole = (archive / EMPIAR_13356.path("raw", 4)).stat().st_size
    assert sum(request.sent for request in server.requests) < whole / 3


def test_the_accessor_does_what_the_functions_do(archive: Path, voxels) -> None:
    """`ds.liver` crops, shows a slice and computes the fraction of each label lazily."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    crop = ds.liver.crop((37, 137, 21, 121, 2, 6))
    np.testing.assert_array_equal(crop.raw, voxels["raw"][2:6, 21:121, 37:137])
    assert crop.liver.show(3, (30, 60), (40, 90)).axes[0].get_title(loc="left") == "z 3"
    shares = ds.liver.fractions()
    assert shares.mito.chunks is not None, "it was computed"
    for name in EMPIAR_13356.labels:
        np.testing.assert_allclose(shares[name], (voxels[name] > 0).mean((1, 2)))


@pytest.mark.parametrize("name", ["show", "view", "fractions"])
def test_the_accessor_has_the_options_of_the_functions(name: str) -> None:
    """Methods of `ds.liver` have the same options and default values as the functions, and describe each."""
    method = getattr(LiverAccessor, name)
    function = {"show": ld.show, "view": ld.view, "fractions": pictures.fractions}[name]
    (_, *own), (_, *options) = (inspect.signature(found).parameters.values() for found in (method, function))
    assert own == [option for option in options if option.name != "storage_options"]  # the Dataset is open
    assert all(f"{option.name}: " in method.__doc__ for option in own)


def test_a_path_is_shown_as_what_it_holds(archive: Path, tmp_path: Path) -> None:
    """`show` takes the path of a store, too."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    store = ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=(37, 137, 21, 121, 2, 6), progress=False)
    for path in (store, str(store)):
        found, expected = (ld.show(source, 3).axes[0].images[0].get_array() for source in (path, xr.open_zarr(store)))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ld.SliceNotFoundError, match="nowhere"):
        ld.show(tmp_path / "nowhere", 3)


def test_without_a_label_there_are_no_shares(corner: xr.Dataset) -> None:
    """The fractions of a Dataset without a label are an error with the names that it has."""
    with pytest.raises(ld.InvalidArgumentError, match=r"^There is no label in the Dataset; it has raw\.$"):
        corner[["raw"]].liver.fractions()


def test_shares_are_those_of_any_dataset(archive: Path, tmp_path: Path) -> None:
    """Fractions are the same for a store, other chunks, parts, strides and data in memory."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, chunk_rows=70).isel(y=slice(5, 290))
    expected = (ds[list(EMPIAR_13356.labels)].compute() > 0).mean(("y", "x"))
    small = ds.isel(z=slice(0, 3))
    ld.to_zarr(small, tmp_path / "a.zarr", progress=False, chunks=(2, 64, 64), shards=(4, 128, 128))
    others = [ds.compute(), ds.chunk(z=3, y=50, x=100), ds.isel(z=slice(None, None, -2)), ds.isel(z=2), ds.isel(z=[])]
    for other in (ds, *others, xr.open_zarr(tmp_path / "a.zarr")):
        wanted = expected.sel(z=other.z)
        xr.testing.assert_allclose(other.liver.fractions().compute(), wanted)


def test_the_bar_shows_the_scale(corner: xr.Dataset) -> None:
    """The scale bar is in µm if the voxel size is known, otherwise in pixels."""

    def told(ds: xr.Dataset) -> str:
        (bar,) = ld.show(ds, 290).axes[0].artists
        return bar.txt_label.get_text()

    assert told(corner) == "100 voxels"
    assert told(corner.assign_attrs(voxel_size_nm=[55, 8, 8])) == "0.5 µm"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"z": 291}, "z 291..292 is not within the 290..291"),
        ({"z": 290, "y": (4999, 5010)}, "y 4999..5010 is not within"),
        ({"z": 290, "x": (7100, 7100)}, "x 7100..7100 holds nothing"),
        ({"z": 290, "x": 7}, "x=7 must be two whole numbers"),
        ({"z": 290, "y": slice(5000, 5100, 2)}, r"y=slice\(5000, 5100, 2\) must be two whole numbers.* without a step"),
        ({"z": 290, "y": slice(5000.5, None)}, "must be two whole numbers"),
        ({"z": 290, "y": slice(-10, None)}, "y -10..5400 is not within"),
        ({"z": 290, "y": (5000, 5100, 1)}, "must be two whole numbers"),
        ({"z": slice(290, 291)}, "must be a whole number: one slice"),
        ({"z": 290, "labels": ["nucleus"]}, "There is no 'nucleus'"),
    ],
)
def test_a_window_that_is_not_there(corner: xr.Dataset, wrong, told: str) -> None:
    """A window outside the Dataset, or an invalid one, is an error with the allowed range."""
    with pytest.raises(ld.InvalidArgumentError, match=told):
        ld.show(corner, **wrong)
    with pytest.raises(ld.InvalidArgumentError, match="holds no voxels"):
        ld.show(corner.isel(x=[]), 290)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (slice(5010, 5020), (5010, 5020)),
        (slice(5010, 5020, 1), (5010, 5020)),
        (slice(None, 5020), (5000, 5020)),
        (slice(5390, None), (5390, 5400)),
        (slice(None), (5000, 5400)),
        ([np.int64(5010), np.uint16(5020)], (5010, 5020)),
    ],
)
def test_slices_are_as_good_as_pairs(corner: xr.Dataset, given, rows: tuple[int, int]) -> None:
    """Slices and pairs of numbers give the same window."""
    (bottom, top) = corner.liver.show(290, y=given).axes[0].get_ylim()
    assert (top, bottom) == (rows[0] - 0.5, rows[1] - 0.5)
    (left, right) = ld.show(corner, 290, x=slice(7100, 7200), y=given).axes[0].get_xlim()
    assert (left, right) == (7099.5, 7199.5)
    xr.testing.assert_identical(levels.window(corner, 290, given), levels.window(corner, 290, rows))


def test_a_snapshot_from_the_shell(archive: Path, tmp_path: Path) -> None:
    """`snapshot` saves a picture; a wrong option and a lost shard are errors without a traceback."""

    def run(*arguments: object):
        return CliRunner().invoke(main, ["snapshot", *map(str, arguments)])

    given = [archive, "--shape", *SHAPE, "--z", 3]
    done = run(*given, "--y", 30, 200, "--x", 20, 300, "-o", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 500
    store = ld.to_zarr(ld.open_human_liver_em(archive, shape=SHAPE), tmp_path / "a.zarr", progress=False)
    assert run(store, "--z", 3, "--label", "er", "-o", tmp_path / "b.png").exit_code == 0
    for wrong, said in (
        ([*given[:-1], 99, "-o", tmp_path / "c.png"], "z 99..100 is not within the 0..10"),
        ([*given, "--y", 200, 30, "-o", tmp_path / "c.png"], "y 200..30 is reversed"),
        ([*given, "-o", tmp_path / "c.xyz"], "must end with one of"),
        ([*given, "-o", tmp_path / "nowhere" / "c.png"], "There is no folder"),
        ([tmp_path / "nothing", "--z", 3, "-o", tmp_path / "c.png"], "nothing"),
    ):
        failed = run(*wrong)
        assert failed.exit_code in (1, 2), failed.output
        assert said in failed.output
        assert "Traceback" not in failed.output
    Path(store, "er", "c", "0", "0", "0").unlink()  # Zarr readers read it as zeros
    assert "lost shard (0, 0, 0) of er" in run(store, "--z", 3, "-o", tmp_path / "c.png").output
    assert not list(tmp_path.glob("c.*"))


def test_a_snapshot_is_as_large_as_asked_for(archive: Path, tmp_path: Path) -> None:
    """`--pixels` is the size of the picture, not only the number of rows that are fetched."""
    sizes = []
    for pixels in (100, 800, 1600):
        path = tmp_path / f"{pixels}.png"
        given = ["snapshot", archive, "--shape", *SHAPE, "--z", 3, "--pixels", pixels, "-o", path]
        assert CliRunner().invoke(main, [str(word) for word in given]).exit_code == 0
        with Image.open(path) as picture:
            sizes.append(max(picture.size))
    assert all(0.9 * pixels < size < 1.5 * pixels for pixels, size in zip((100, 800, 1600), sizes, strict=True)), sizes


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (np.arange(-120, 0, dtype=np.float32), (-119.4, -1.6)),  # standardised
        (np.repeat([0, 100, 200], 40).astype(np.int16), (100, 200)),  # 0 is empty glass
        (np.zeros(120, np.uint16), (0, 1)),
        (np.full(120, 7, np.uint8), (7, 8)),
        (np.array([np.nan, np.inf, *[5, 6] * 59], np.float32), (5, 6)),
        (np.arange(120) % 2 == 0, (1, 2)),
    ],
)
def test_black_and_white_are_percentiles_of_what_is_not_glass(raw: np.ndarray, shown: tuple[float, float]) -> None:
    """The contrast follows from all voxels but 0, of whatever dtype, and is never empty."""
    ds = xr.Dataset({"raw": (geometry.DIMS, raw.reshape(1, 10, 12))}, {"z": [0], "y": range(10), "x": range(12)})
    image = ld.show(ds, 0).axes[0].images[0]
    np.testing.assert_allclose(image.get_clim(), shown, atol=0.02)


def test_one_label_may_be_a_word(corner: xr.Dataset) -> None:
    """A single label can be given as a string."""
    assert len(ld.show(corner, 290, labels="mito").axes[0].images) == 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"opacity": 4}, "opacity=4 from 0 to 1"),
        ({"contrast": (90, 10)}, "two ascending percentiles"),
        ({"contrast": "ab"}, "two ascending percentiles"),
        ({"contrast": (1,)}, "two ascending percentiles"),
        ({"opacity": "x"}, "opacity='x' from 0 to 1"),
    ],
)
def test_looks_that_cannot_be_are_one_sentence(corner: xr.Dataset, wrong: dict, told: str) -> None:
    """Impossible options are named, by pictures and by the slicer alike, and so are targets that cannot be shown."""
    for show in (lambda **options: ld.show(corner, 290, **options), lambda **options: ld.view(corner, **options)):
        with pytest.raises(ld.InvalidArgumentError, match=told):
            show(**wrong)
    for target in (corner.raw, corner.raw.values, None):
        with pytest.raises(ld.InvalidArgumentError, match="cannot be shown; give a Dataset"):
            ld.show(target, 290)
    with pytest.raises(ld.InvalidArgumentError, match="pixels=0 must be at least 1"):
        corner.liver.overview(290, pixels=0)
    for size in ("abc", [1, 1, 0], 5):
        with pytest.raises(ld.InvalidArgumentError, match="voxel_size_nm="):
            ld.show(corner.assign_attrs(voxel_size_nm=size), 290)
    ld.show(corner.assign_attrs(voxel_size_nm=np.array([55.0, 8, 8])), 290)
