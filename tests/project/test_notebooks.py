"""The notebooks run from the first cell to the last on the demo's archive."""

import ast
import base64
import io
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import nbformat
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from nbclient import NotebookClient
from PIL import Image

import liver_dask as ld
from helpers.paths import ROOT
from liver_dask.cli import main

NOTEBOOKS = ROOT / "notebooks"
SOURCE_LINE = re.compile(r"^`?(SOURCE, SHAPE.*?)`?$", re.MULTILINE)
"""The line to replace for the liver: in the first code cell, and as text in the first cell."""


def executed(
    name: str, environ: dict[str, str], folder: Path, line: str = "", changes: Mapping[str, str] = MappingProxyType({})
) -> list[nbformat.NotebookNode]:
    """Run a notebook in a folder of its own, and return its cells.

    Args:
        name: The notebook.
        environ: Variables of the environment that are changed.
        folder: Where it runs.
        line: What replaces the line for its source, if anything.
        changes: What replaces other parts of its code, each of which occurs once.
    """
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    if line:
        notebook.cells[1].source, count = SOURCE_LINE.subn(line, notebook.cells[1].source)
        assert count == 1
    for old, new in changes.items():
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
        cell.source = cell.source.replace(old, new)
    client = NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | environ)
    return notebook.cells


def printed(cells: list[nbformat.NotebookNode]) -> str:
    return "".join(out.text for cell in cells for out in cell.get("outputs", ()) if out.output_type == "stream")


def shown(cells: list[nbformat.NotebookNode], kind: str = "image/png") -> int:
    """How many outputs are of a kind."""
    return sum(kind in out.get("data", ()) for cell in cells for out in cell.get("outputs", ()))


def picture(cells: list[nbformat.NotebookNode]) -> np.ndarray:
    """The last picture that is shown."""
    shown = [
        out.data["image/png"] for cell in cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", ())
    ]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[-1]))).convert("L"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_runs_and_learns(tmp_path: Path) -> None:
    """The training notebook runs, and its network scores more than twice as high as a guess."""
    pytest.importorskip("torch_em", reason="the extra `train` is not installed")
    few = {"LIVER_DASK_EM": "none", "LIVER_DASK_ITERATIONS": "12"}
    yielding = {"OMP_WAIT_POLICY": "PASSIVE"}  # otherwise torch's threads take the cores that other tests need
    smaller = {
        "SHAPE = (20, 1024, 1024)": "SHAPE = (20, 512, 512)",
        "BOX = (0, 1024, 0, 1024, 0, 20)": "BOX = (0, 512, 0, 512, 0, 20)",
        "PATCH = (1, 256, 256)": "PATCH = (1, 128, 128)",
        "n_samples=40": "n_samples=8",
    }
    cells = executed("train_mito.ipynb", few | yielding, tmp_path, changes=smaller)
    told = printed(cells)
    assert "the made-up archive of the demo" in told
    reached, guessed = (float(part.split()[-1]) for part in told.split("all five: ")[1].split(","))
    assert reached > 2 * guessed > 0
    assert shown(cells) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "(400, 400) voxels of slice 12"),
        ('SOURCE, SHAPE = Path("other"), (4, 500, 600)', "(250, 300) voxels of slice 2"),
    ],
)
def test_looking(tmp_path: Path, line: str, said: str) -> None:
    """The first notebook runs on archives of any shape, and shows the slicer and a picture of tissue."""
    cells = executed("01_open_and_look.ipynb", {}, tmp_path, line)
    assert said in printed(cells)
    assert shown(cells, "application/vnd.jupyter.widget-view+json") == 1
    assert shown(cells, "image/png") == 1
    assert (picture(cells) < 10).mean() < 0.1, "a picture of empty glass"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "slices"),
    [
        ("", 24),
        pytest.param(
            'SOURCE, SHAPE, BOX = Path("other"), (40, 500, 600), (100, 500, 50, 450, 22, 36)',
            14,
            marks=pytest.mark.real,
        ),
    ],
)
def test_keeping(tmp_path: Path, line: str, slices: int) -> None:
    """The notebook on clusters runs on any archive and box, and its store is complete and verified."""
    cells = executed("02_download_on_a_cluster.ipynb", {}, tmp_path, line)
    told = printed(cells)
    assert "http://127.0.0.1:" in told
    assert "liver_box.zarr: all right" in told
    assert shown(cells) == 1
    assert len(xr.open_zarr(tmp_path / "liver_box.zarr").z) == slices


def test_what_it_will_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell command in the notebook on clusters prints a plan of the notebook's store."""
    cells = nbformat.read(NOTEBOOKS / "02_download_on_a_cluster.ipynb", as_version=4).cells
    (command,) = (line for cell in cells for line in cell.source.splitlines() if line.startswith("liver-dask download"))
    monkeypatch.chdir(tmp_path)
    Path("made-up_liver").mkdir()
    planned = CliRunner().invoke(main, shlex.split(command)[1:])
    assert planned.exit_code == 0, planned.output
    assert "24 x 650 x 800 voxels" in planned.output


@pytest.mark.parametrize(
    "name", ["01_open_and_look", "02_download_on_a_cluster", "03_measure", "04_predict_and_measure"]
)
def test_one_line_is_replaced_for_the_liver(name: str) -> None:
    """The line for the liver sets the same names as the line that it replaces, and a box inside the tissue."""
    told, code = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells[:2]
    ((line,), (replaced,)) = (SOURCE_LINE.findall(cell.source) for cell in (told, code))
    first, second = (ast.unparse(ast.parse(text).body[0].targets[0]) for text in (line, replaced))
    assert first == second
    values: dict = {"ld": ld}
    exec(line, values)
    assert (values["SOURCE"], values["SHAPE"]) == (ld.EMPIAR_13356.url, ld.EMPIAR_13356.shape)
    ld.open_human_liver_em().liver.crop(ld.EMPIAR_13356.full_box).liver.crop(
        values.get("BOX", ld.EMPIAR_13356.full_box)
    )


@pytest.mark.slow
def test_measuring(tmp_path: Path) -> None:
    """The contact that the notebook prints equals an independent calculation."""
    cells = executed("03_measure.ipynb", {}, tmp_path)
    ds = ld.open_human_liver_em(tmp_path / "made-up_liver", shape=(24, 700, 900))
    mito, er = (ds[name][:, 40:660, 60:840].values > 0 for name in ("mito", "er"))
    inside, near = [np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge") for mask in (mito, er)]
    near_by = (slice(0, -2), slice(1, -1)), (slice(2, None), slice(1, -1))
    beside = [*near_by, *(pair[::-1] for pair in near_by)]
    edge = mito & np.logical_or.reduce([~inside[:, y, x] for y, x in beside])
    touching = edge & np.logical_or.reduce([near[:, y, x] for y, x in beside])
    expected = 100 * (touching.sum((1, 2)) / edge.sum((1, 2))).mean()
    assert f"All slices: {expected:.1f} %" in printed(cells)
    assert shown(cells) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_predicting(tmp_path: Path) -> None:
    """A network that has learned for a moment finds more than a guess; its store is verified, its objects measured."""
    pytest.importorskip("torch_em", reason="the extra `train` is not installed")
    environ = {"LIVER_DASK_ITERATIONS": "24", "OMP_WAIT_POLICY": "PASSIVE"}
    smaller = {
        "(24, 512, 512), (0, 512, 0, 512, 0, 24)": "(12, 320, 320), (0, 320, 0, 320, 0, 12)",
        "PATCH = 256": "PATCH = 128",
        "initial_features=16": "initial_features=8",
    }
    cells = executed("04_predict_and_measure.ipynb", environ, tmp_path, changes=smaller)
    told = printed(cells)
    reached, guessed = (
        float(part.split()[-1]) for part in told.split("held-out slices: ")[1].split("\n")[0].split(",")
    )
    assert reached > guessed > 0
    assert shown(cells) == 3
    (store,) = (tmp_path / "stores").glob("*.zarr")
    assert f"{store.name}: all right" in told
    ds = xr.open_zarr(store)
    mask = (ds.mito_pred.values > 127) & (ds.raw.values > 0)
    assert len(pd.read_parquet(tmp_path / "mito_pred.parquet")) == ds.mito_objects.max() > 0
    np.testing.assert_array_equal(ds.mito_objects.values > 0, mask)
    assert (store / "labels" / "mito_objects").is_dir()


def test_notebooks_are_kept_without_what_a_run_left() -> None:
    """The notebooks are stored without outputs and execution counts."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path.name
            assert not cell.get("execution_count"), path.name
