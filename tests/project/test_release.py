"""What is released: wheel and sdist, their contents and metadata, and the wheel where nothing else is installed."""

import email
import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import xarray as xr
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from PIL import Image

import liver_dask
from helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_EXTRAS = {"ipywidgets", "matplotlib", "starlette", "torch", "torch_em", "uvicorn", "voila"}
"""Packages of extras which modules of SERVED_BY_EXTRAS import at once."""

SERVED_BY_EXTRAS = {"serving", "training", "viewing"}


class Built(NamedTuple):
    sdist: Path
    wheel: Path  # built from the sdist
    wheel_of_tree: Path


def build(out: Path, *options: str) -> None:
    """Build as for a release, but with the hatchling that is installed."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *options, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, the wheel that was built from it, and one that was built from this tree."""
    out, of_tree = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("of_tree")
    build(out)
    build(of_tree, "--wheel")
    return Built(*out.glob("*.tar.gz"), *out.glob("*.whl"), *of_tree.glob("*.whl"))


def sources() -> tuple[set[str], set[str]]:
    """The files of the repository, and with them those that are there and not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a repository")

    def listed(*options: str) -> set[str]:
        done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
        return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}

    return listed(), listed("--cached", "--others", "--exclude-standard")


def test_the_sdist_holds_the_repository_and_nothing_local(built: Built) -> None:
    """The sdist has all files of the repository, tests and CI with them, and none that is ignored."""
    tracked, there = sources()
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert "tests/data/format3.tar.xz" in names
    assert names - {"PKG-INFO"} <= there
    assert tracked <= names


def test_the_wheel_holds_the_package_alone(built: Built) -> None:
    """The wheel has the files of the package, which is typed, and neither tests nor notebooks."""
    tracked, there = sources()
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"liver_dask/py.typed", "liver_dask/archive/descriptions/empiar_13356.toml"} <= names
    assert {name for name in tracked if name.startswith("liver_dask/")} <= names
    assert names <= {name for name in there if name.startswith("liver_dask/")}


def test_the_sdist_builds_the_wheel_of_the_tree(built: Built) -> None:
    """Who builds from the sdist gets the same wheel, byte by byte."""
    assert built.wheel.read_bytes() == built.wheel_of_tree.read_bytes()


def test_the_metadata_are_valid(built: Built) -> None:
    """The metadata are valid and of a version that tools know, and the description is the README."""
    with zipfile.ZipFile(built.wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(path)
        entry_points = archive.read(path.replace("METADATA", "entry_points.txt")).decode()
    with tarfile.open(built.sdist) as archive:
        of_sdist = archive.extractfile(f"liver_dask-{liver_dask.__version__}/PKG-INFO")
        assert of_sdist is not None
        assert of_sdist.read() == text
    found = Metadata.from_email(text, validate=True)
    assert found.metadata_version == "2.4"
    assert (found.name, str(found.version)) == ("liver_dask", liver_dask.__version__)
    assert found.license_expression == "MIT"
    assert email.message_from_bytes(text)["Description-Content-Type"] == "text/markdown"
    assert found.description is not None
    assert found.description.strip() == (ROOT / "README.md").read_text().strip()
    assert "liver-dask = liver_dask.cli:main" in entry_points
    assert "[xarray.backends]\nliver_dask = " in entry_points


def test_the_version_is_the_same_everywhere() -> None:
    """The citation file names the version of the package, and so does the changelog, once a version is released."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == liver_dask.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"^## (.*)", changes, re.MULTILINE)
    assert first == "[Unreleased]"
    matches = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    assert all(matches), "a release is headed by its version and date"
    newest = [(match[1], match[2]) for match in matches[:1] if match]
    assert newest in ([], [(liver_dask.__version__, str(citation.get("date-released")))])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)", changes, re.MULTILINE)) <= kinds


def reachable(requirements: Iterable[str]) -> Iterator[importlib.metadata.Distribution]:
    """The installed distributions that the requirements ask for, directly or indirectly."""
    left, seen = [Requirement(text) for text in requirements], set()
    while left:
        requirement = left.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        for extra in extras | {""}:
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            distribution = importlib.metadata.distribution(requirement.name)
            if not extra:
                yield distribution
            for text in distribution.requires or ():
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    further.marker = None
                    left.append(further)


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what it declares, without extras, and nothing else.

    Its dependencies are links to those of this environment, which takes a second instead of minutes.
    """
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built.wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        declared = email.message_from_bytes(archive.read(path)).get_all("Requires-Dist") or []
    for distribution in reachable(declared):
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not top.endswith(".pth") and not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", built.wheel], check=True)
    subprocess.run([*pip, "check"], check=True)
    return folder / "bin"


def test_no_module_needs_what_is_not_declared(alone: Path) -> None:
    """Every module of the wheel is imported with what the wheel declares, except those of an extra."""
    script = """
import importlib, json, pkgutil, liver_dask
lost = {}
for module in pkgutil.walk_packages(liver_dask.__path__, "liver_dask."):
    try:
        module.name.endswith("__main__") or importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        lost[module.name] = error.name.split(".")[0]
print(json.dumps([liver_dask.__file__, lost]))
"""
    done = subprocess.run([alone / "python", "-I", "-c", script], capture_output=True, text=True, check=True)
    path, lost = json.loads(done.stdout)
    assert Path(path).is_relative_to(alone.parent), "not the wheel"
    assert set(lost.values()) <= OF_EXTRAS, lost
    assert {name.split(".")[1] for name in lost} <= SERVED_BY_EXTRAS, lost


@pytest.mark.slow
@pytest.mark.timeout(400)  # its archive alone takes a minute on a busy machine
def test_the_demo_shows_and_checks(alone: Path, tmp_path: Path) -> None:
    """The demo at its full size makes a checked crop and a picture, with the wheel and what it declares alone."""
    done = subprocess.run([alone / "liver-dask", "demo"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "# 0 requests" in done.stdout
    assert "All 16,121,856 voxels of the crop equal the archive's." in done.stdout
    with Image.open(tmp_path / "liver_dask_demo" / "slice.png") as picture:
        assert picture.width == 2048
    assert "liver-dask view liver_dask_demo/crop.zarr" in done.stdout
    assert "`liver-dask verify` compares a store with its archive; the demo's own archive was only" in done.stdout
    assert "Writing crop.zarr: 100%, 20.2 MB in " in done.stderr
    assert set(xr.open_zarr(tmp_path / "liver_dask_demo" / "crop.zarr")) == {"raw", "mito", "er", "nucleus"}
