"""The workflows of GitHub: what starts them, what they may do, and that what they run is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import liver_dask
from helpers.paths import ROOT

WORKFLOWS = {path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in ROOT.glob(".github/workflows/*.yml")}
STEPS = [step for workflow in WORKFLOWS.values() for job in workflow["jobs"].values() for step in job.get("steps", ())]


def test_what_starts_them_and_what_they_may_do() -> None:
    """Changes are tested, tags are released; a job may read, and one job each may publish and make a release."""
    assert WORKFLOWS.keys() == {"release", "tests"}
    assert WORKFLOWS["tests"]["on"] == {"push": {"branches": ["main"]}, "pull_request": "", "workflow_call": ""}
    assert WORKFLOWS["release"]["on"] == {"push": {"tags": ["v*"]}}
    assert [workflow["permissions"] for workflow in WORKFLOWS.values()] == [{"contents": "read"}] * 2
    jobs: dict[str, Any] = WORKFLOWS["release"]["jobs"] | WORKFLOWS["tests"]["jobs"]
    more = {name: job["permissions"] for name, job in jobs.items() if "permissions" in job}
    assert more == {"publish": {"id-token": "write"}, "attach": {"contents": "write"}}
    assert [name for name, job in jobs.items() if "environment" in job] == ["publish"]
    assert jobs["publish"]["environment"] == "pypi"
    assert jobs["publish"]["needs"] == ["tests", "build"]
    assert jobs["attach"]["needs"] == "publish"


def test_they_use_no_secret_and_fixed_actions() -> None:
    """No workflow uses a secret, and actions are named by their commits, with the version beside them."""
    for path in ROOT.glob(".github/workflows/*.yml"):
        text = path.read_text()
        assert "secrets" not in text
        for line in re.findall(r"uses: (.*)", text):
            assert re.match(r"[\w/.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$|\./\.github/workflows/", line), line


def test_zizmor_finds_nothing() -> None:
    """Zizmor finds nothing of medium severity or above."""
    command = [Path(sys.executable).with_name("zizmor"), "--offline", "--min-severity", "medium", ".github/workflows"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_they_run_is_there() -> None:
    """The scripts and workflows that are named exist."""
    text = "".join(path.read_text() for path in ROOT.glob(".github/workflows/*.yml"))
    named = set(re.findall(r"(?<!\w)\.(?:ci|github)/[\w/.]+", text))
    assert {".ci/run", ".ci/oldest", ".github/workflows/tests.yml"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("wrong", ["", "tag", "changelog"])
def test_a_tag_that_disagrees_is_not_released(tmp_path: Path, wrong: str) -> None:
    """The tag must be the version, and the changelog must have a section of it, which is the text of the release."""
    version = liver_dask.__version__
    (script,) = (step["run"] for step in STEPS if step.get("name") == "Tag, version and changelog agree")
    (tmp_path / "liver_dask").mkdir()
    for name in ("pyproject.toml", "liver_dask/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    heading = "## [Unreleased]" if wrong == "changelog" else f"## [{version}] - 2026-11-30"
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\n- This.\n\n## [0.0.1] - 2020-01-01\n- That.\n")
    tag = f"v{version}.1" if wrong == "tag" else f"v{version}"
    environment = {"TAG": tag, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, wrong in done.stdout.lower()) == (1 if wrong else 0, True), done.stdout + done.stderr
    if not wrong:
        assert (tmp_path / "notes.md").read_text().strip() == "- This."
