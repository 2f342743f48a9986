"""The commands `measure` and `predict`."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner

import liver_dask as ld
from helpers.archive import SHAPE
from liver_dask.cli import main
from liver_dask.training.transforms import standardized

OF_ARCHIVE = ["--shape", *map(str, SHAPE)]


def test_a_mask_is_measured(archive: Path, tmp_path: Path) -> None:
    """The table is that of `measure`, of an archive or of a box of it; wrong usage is one sentence, and exit code 2."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    out, runner = tmp_path / "t.csv", CliRunner()
    options = ["--label", "mito", "--contact", "er", "--raw", "--voxel-size", "50", "8", "8", "--connectivity", "6"]
    told = runner.invoke(main, ["measure", str(archive), str(out), *options, *OF_ARCHIVE])
    assert told.exit_code == 0, told.output
    table = ld.measure(
        ds.mito, ds.raw, contacts={"er": ds.er}, voxel_size_nm=(50, 8, 8), connectivity=6, progress=False
    )
    pd.testing.assert_frame_equal(pd.read_csv(out), table, check_dtype=False)
    assert f"{len(table)} objects of mito" in told.output
    box = ["--bbox", "100", "300", "50", "250", "2", "8"]
    told = runner.invoke(main, ["measure", str(archive), str(tmp_path / "b.csv"), "--label", "er", *box, *OF_ARCHIVE])
    assert told.exit_code == 0, told.output
    assert pd.read_csv(tmp_path / "b.csv").x_min.min() >= 100
    for wrong, said in (
        (["--label", "mitos"], "has no 'mitos'; it has mito"),
        (["--label", "mito", "--connectivity", "8"], "8"),
        (["--label", "mito"], "exists already"),
        ([], "--label"),
    ):
        told = runner.invoke(main, ["measure", str(archive), str(out), *wrong, *OF_ARCHIVE])
        assert told.exit_code == 2, told.output
        assert said in told.output


def test_a_model_is_run(archive: Path, tmp_path: Path) -> None:
    """The store holds what `predict` gives; the same command again returns it, and another model is refused."""
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 3, padding=1), torch.nn.Sigmoid())
    for name in ("a", "b"):
        torch.nn.init.normal_(network[0].weight)
        exported = torch.export.export(network, (torch.zeros(1, 1, 4, 68, 68),))
        torch.export.save(exported, tmp_path / f"{name}.pt2")
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    out, runner = tmp_path / "p.zarr", CliRunner()
    options = ["--block", "2", "64", "64", "--halo", "1", "2", "2", "--standardize", "30000", "9000", "--with-raw"]
    command = ["predict", str(archive), str(tmp_path / "a.pt2"), str(out), *options, *OF_ARCHIVE]
    for _ in range(2):
        told = runner.invoke(main, command)
        assert told.exit_code == 0, told.output
    predicted = ld.predict(
        tmp_path / "a.pt2", ds.raw, block=(2, 64, 64), halo=(1, 2, 2), preprocess=(30_000, 9_000)
    ).compute()
    kept = xr.open_zarr(out)
    np.testing.assert_array_equal(kept.prediction, predicted)
    assert set(kept.data_vars) == {"raw", "prediction"}
    for wrong, said in (
        (["predict", str(archive), str(tmp_path / "b.pt2"), str(out), *options, *OF_ARCHIVE], "prediction"),
        (["predict", str(archive), str(tmp_path / "none.pt2"), str(tmp_path / "q.zarr"), *OF_ARCHIVE], "no model at"),
    ):
        told = runner.invoke(main, wrong)
        assert told.exit_code in (1, 2)
        assert told.output.startswith("Error: ")
        assert said in told.output
    assert not (tmp_path / "q.zarr").exists()


def test_a_model_of_standardised_voxels_gets_them_by_the_documented_command(archive: Path, tmp_path: Path) -> None:
    """As the loader's default gives them in training; without the option a line on stderr names it."""
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1), torch.nn.Sigmoid())
    torch.nn.init.constant_(network[0].weight, 1.0)  # of grey values, nothing but 1
    torch.nn.init.constant_(network[0].bias, 0.0)
    torch.export.save(torch.export.export(network, (torch.zeros(1, 1, 8, 320, 320),)), tmp_path / "m.pt2")
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=("mito",))
    crop = ld.to_zarr(ds, tmp_path / "crop.zarr", chunks=(2, 64, 64), shards=(4, 128, 128), progress=False)
    runner = CliRunner()

    def predicted(target: Path | str, *options: str, code: int = 0) -> str:
        told = runner.invoke(main, ["predict", str(target), str(tmp_path / "m.pt2"), *options])
        assert told.exit_code == code, told.output
        return told.stderr

    assert "voxels as they are" not in predicted(crop, "--image-statistics", "--name", "right")
    told = predicted(crop, "--name", "as_they_are")
    (line,) = [line for line in told.splitlines() if "voxels as they are" in line]
    assert "--image-statistics" in line
    kept = xr.open_zarr(crop)
    patch = torch.from_numpy(standardized(ds.raw.values))  # the loader's default, of one patch that is all of it
    with torch.inference_mode():
        expected = np.rint(network(patch[None, None])[0, 0].numpy() * 255)
    np.testing.assert_allclose(kept.right, expected, atol=1)
    assert len(np.unique(kept.right)) > 50
    assert (kept.as_they_are.values[kept.raw > 20] == 255).all()
    both = predicted(crop, "--image-statistics", "--standardize", "1", "2", code=2)
    assert "not both" in both
    said = predicted(archive, str(tmp_path / "o.zarr"), "--image-statistics", *OF_ARCHIVE, code=2)
    assert "is no store, so has no --image-statistics; give --standardize MEAN STD" in said
    assert "The model gets the grey values as they are, unless" in runner.invoke(main, ["predict", "--help"]).output


def _shown_as_by_python(*told: Any) -> None:
    sys.stderr.write(warnings.formatwarning(*told[:4]))


def test_logits_are_one_line_on_stderr(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without a Sigmoid is run, and a line says what becomes of its results; so does the help."""
    torch = pytest.importorskip("torch")
    network = torch.nn.Conv3d(1, 1, 1)
    torch.nn.init.constant_(network.weight, 5.0)
    torch.export.save(torch.export.export(network, (torch.zeros(1, 1, 8, 320, 320),)), tmp_path / "m.pt2")
    command = ["predict", str(archive), str(tmp_path / "m.pt2"), str(tmp_path / "o.zarr"), *OF_ARCHIVE]
    with warnings.catch_warnings(action="always"):
        monkeypatch.setattr(warnings, "showwarning", _shown_as_by_python)  # pytest would record it
        told = CliRunner().invoke(main, [*command, "--standardize", "30000", "9000"])
    assert told.exit_code == 0, told.output
    (line,) = [line for line in told.stderr.splitlines() if "taken as probabilities" in line]
    assert line.startswith("Warning: Many results")
    told = CliRunner().invoke(main, [*command, "--threshold", "2"])
    assert told.exit_code == 2
    assert "threshold=2 must be a probability, above 0 and at most 1: 127 of 255 is 0.5" in told.output
    assert "needs a Sigmoid first" in CliRunner().invoke(main, ["predict", "--help"]).output
