"""The notebooks run from the first cell to the last, on the demo's archive."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def executed(name: str, environ: dict[str, str], folder: Path) -> list[nbformat.NotebookNode]:
    """Run a notebook in a folder of its own; its cells."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | environ)
    return notebook.cells


def printed(cells: list[nbformat.NotebookNode]) -> str:
    return "".join(out.text for cell in cells for out in cell.get("outputs", ()) if out.output_type == "stream")


def pictures(cells: list[nbformat.NotebookNode]) -> int:
    return sum("image/png" in out.get("data", ()) for cell in cells for out in cell.get("outputs", ()))


@pytest.mark.timeout(300)
def test_training_runs_and_learns(tmp_path: Path) -> None:
    """The notebook on training would stop midway, or not learn what it is for."""
    pytest.importorskip("torch_em", reason="the extra `train` is not installed")
    cells = executed("train_mito.ipynb", {"LIVER_DASK_EM": "none", "LIVER_DASK_ITERATIONS": "30"}, tmp_path)
    told = printed(cells)
    assert "the made-up archive of the demo" in told
    reached, guessed = (float(part.split()[-1]) for part in told.split("all five: ")[1].split(","))
    assert reached > 2 * guessed > 0
    assert pictures(cells) == 3


def test_notebooks_are_kept_without_what_a_run_left() -> None:
    """Pictures, times and paths of somebody's run would be in every change."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path.name
            assert not cell.get("execution_count"), path.name
