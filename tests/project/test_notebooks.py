"""The notebooks run from the first cell to the last on the demo's archive."""

import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr
from nbclient import NotebookClient

import liver_dask as ld
from helpers.paths import ROOT

NOTEBOOKS = ROOT / "notebooks"


def executed(name: str, environ: dict[str, str], folder: Path) -> list[nbformat.NotebookNode]:
    """Run a notebook in a folder of its own; returns its cells."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | environ)
    return notebook.cells


def printed(cells: list[nbformat.NotebookNode]) -> str:
    return "".join(out.text for cell in cells for out in cell.get("outputs", ()) if out.output_type == "stream")


def shown(cells: list[nbformat.NotebookNode], kind: str = "image/png") -> int:
    """How many outputs are of a kind."""
    return sum(kind in out.get("data", ()) for cell in cells for out in cell.get("outputs", ()))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_runs_and_learns(tmp_path: Path) -> None:
    """The training notebook runs, and its network scores more than twice as high as a guess."""
    pytest.importorskip("torch_em", reason="the extra `train` is not installed")
    few = {"LIVER_DASK_EM": "none", "LIVER_DASK_ITERATIONS": "12"}
    yielding = {"OMP_WAIT_POLICY": "PASSIVE"}  # otherwise torch's threads take the cores that other tests need
    cells = executed("train_mito.ipynb", few | yielding, tmp_path)
    told = printed(cells)
    assert "the made-up archive of the demo" in told
    reached, guessed = (float(part.split()[-1]) for part in told.split("all five: ")[1].split(","))
    assert reached > 2 * guessed > 0
    assert shown(cells) == 3


@pytest.mark.slow
def test_looking(tmp_path: Path) -> None:
    """The first notebook runs, and shows the slicer and one picture."""
    cells = executed("01_open_and_look.ipynb", {}, tmp_path)
    assert "(128, 128) voxels of slice 5" in printed(cells)
    assert shown(cells, "application/vnd.jupyter.widget-view+json") == 1
    assert shown(cells, "image/png") == 1


@pytest.mark.slow
def test_keeping(tmp_path: Path) -> None:
    """The notebook on clusters runs, and its store is complete and verified."""
    cells = executed("02_download_on_a_cluster.ipynb", {}, tmp_path)
    told = printed(cells)
    assert "http://127.0.0.1:" in told
    assert "liver_box.zarr: all right" in told
    assert shown(cells) == 1
    assert len(xr.open_zarr(tmp_path / "liver_box.zarr").z) == 24


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


def test_notebooks_are_kept_without_what_a_run_left() -> None:
    """The notebooks are stored without outputs and execution counts."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path.name
            assert not cell.get("execution_count"), path.name
