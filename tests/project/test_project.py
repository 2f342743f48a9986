"""Checks of the project itself: metadata, README, environments, docstrings, imports, style and types."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import liver_dask
from helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = ROOT / "liver_dask"
OF_AN_EXTRA = {
    "liver_dask.serving.app": "starlette",
    "liver_dask.training.batches": "torch_em",
    "liver_dask.training.dataset": "torch_em",
    "liver_dask.training.randomness": "torch",
    "liver_dask.training.tile_dataset": "torch_em",
    "liver_dask.viewing.browser": "voila",
}
"""Modules that need an optional package."""

PACKAGES_BELOW = {
    "core": set(),
    "archive": {"core"},
    "store": {"core", "archive"},
    "training": {"core", "archive", "store"},
    "viewing": {"core", "archive", "store"},
    "serving": {"core", "archive", "store"},
    "analysis": {"core", "archive", "store"},
    "prediction": {"core", "archive", "store"},
    "top": {"core", "archive", "store", "training", "viewing", "serving", "analysis", "prediction"},
}
"""What each package may import besides itself. Modules at the top level, such as `cli`, are `top`."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [
    importlib.import_module(name) for name in NAMES if importlib.util.find_spec(OF_AN_EXTRA.get(name, "liver_dask"))
]

CONDA_NAME_OF = {"dask[array]": "dask", "zlib-ng": "python-zlib-ng", "torch": "pytorch"}
"""Packages that have another name on conda-forge."""


def test_environment_yml_is_in_step_with_pyproject() -> None:
    """environment.yml lists the dependencies of pyproject.toml with the same lower bounds."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    given = {spec for spec in environment["dependencies"] if isinstance(spec, str)}
    needed = {f"python {PROJECT['requires-python']}", "pip"}
    for requirement in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["view"]:
        match = re.fullmatch(r"([\w\-\[\]]+)(>=[\d.]+)", requirement)
        assert match, f"{requirement} has no lower bound that environment.yml could repeat"
        name, version = match.groups()
        needed.add(f"{CONDA_NAME_OF.get(name, name)} {version}")
    assert {re.sub(r"\s+", " ", spec) for spec in given} == needed


FAKE_PYTHON = """#!/bin/bash
# Notes how it is called, and makes an environment whose programs do so, too.
if [[ $1 == -c ]]; then echo "$0"; exit; fi
if [[ $1 == --version ]]; then echo "Python $0"; exit; fi
echo "${0#$HOME/} $*" >>"$HOME/calls"
if [[ "$1 $2" == "-m venv" ]]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip"; fi
[[ "$0 $*" != *"$FAILS"* ]]
"""


def test_the_version_is_that_of_the_package() -> None:
    """`liver_dask.__version__` is the version of the package that is built, and a version as SemVer has them."""
    path = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{liver_dask.__version__}"' in (ROOT / path).read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", liver_dask.__version__)
    assert liver_dask.__version__ == importlib.metadata.version("liver_dask")


def test_the_versions_that_are_stated_are_those_of_pyproject() -> None:
    """README and CONTRIBUTING state the oldest Python of pyproject.toml, and dependencies have a lower bound each."""
    oldest = PROJECT["requires-python"].removeprefix(">=")
    for path in ("README.md", ".github/CONTRIBUTING.md"):
        stated = re.findall(r"Python (3\.\d+) (?:and|or) later", (ROOT / path).read_text())
        assert set(stated) == {oldest}, path
        assert "https://scientific-python.org/specs/spec-0000/" in (ROOT / path).read_text()
    every = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    bare = [spec for specs in every for spec in specs if ">=" not in spec and not spec.startswith("liver_dask[")]
    assert bare == []


def test_nothing_else_is_at_the_top() -> None:
    """The top of the repository has these files and folders only, but for hidden ones and what git ignores."""
    known = "CHANGELOG.md CITATION.cff LICENSE README.md environment.yml liver_dask notebooks pyproject.toml tests"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    found = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} == set(known.split())
    assert {name for name in found if name.startswith(".")} <= {".ci", ".github", ".gitignore"}


def test_ci_runs_the_readmes_own_test_command(tmp_path: Path) -> None:
    """CI runs the test command as the README has it, then on Python 3.13 without `train`, slow tests and what
    needs no other package's newest version; a failure of either is one of CI.
    """
    command = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1].strip()
    (tmp_path / ".ci").mkdir()
    for name in ("README.md", ".ci/run"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "python3.13"):
        (tmp_path / "bin" / name).write_text(FAKE_PYTHON)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(fails: str) -> tuple[int, list[str]]:
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "FAILS": fails}
        code = subprocess.run(["bash", tmp_path / ".ci" / "run"], env=environment, stdout=subprocess.DEVNULL).returncode
        return code, (tmp_path / "calls").read_text().splitlines()

    as_it_is = [part.replace('"', "").replace("python3 ", "bin/python3 ") for part in command.split(" && ")]
    changes = {"bin/python3 ": "bin/python3.13 ", ".venv": ".venv313", "train,": ""}
    newer = as_it_is
    for word, other in changes.items():
        newer = [part.replace(word, other) for part in newer]
    newer[-1] += " -m not real and not slow -k not s3 and not object_storage"
    left_out = "archive/formats archive/remote store/test_damage.py store/test_untrusted.py"
    left_out += " project/test_release.py project/test_fuzz.py"
    newer[-1] += "".join(f" --ignore tests/{name}" for name in left_out.split())
    assert any(".[train," in part for part in as_it_is)
    code, calls = run("nothing fails")
    assert code == 0
    assert [call for call in calls if call in as_it_is] == as_it_is
    assert [call for call in calls if call not in as_it_is] == newer, "which is installed meanwhile"
    assert calls[-1] == newer[-1]
    code, calls = run(".venv/bin/python -m pytest -n")
    assert code != 0
    assert newer[-1] not in calls
    code, calls = run(".venv313/bin/pip")
    assert code != 0
    assert newer[-1] not in calls
    code, calls = run("tests/archive/remote")
    assert code != 0
    assert sorted(calls) == sorted(as_it_is + newer)


def test_all_that_is_public_is_documented() -> None:
    """All that is public has a docstring, and functions of the API document each parameter."""
    for module in MODULES:
        assert module.__doc__, module
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert thing.__doc__, f"{module.__name__}.{name}"
    for name in liver_dask.__all__:
        thing = getattr(liver_dask, name)
        if inspect.isfunction(thing):
            for parameter in inspect.signature(thing).parameters:
                assert f"\n    {parameter}: " in inspect.getdoc(thing), f"{name} does not document {parameter}"


def imports_in(source: str, package: str) -> set[str]:
    """The modules of this project that a module of `package` imports anywhere in its source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "liver_dask"}
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            if origin.split(".")[0] == "liver_dask":
                members = {f"{origin}.{alias.name}" for alias in node.names}
                found |= members & NAMES.keys() or {origin}
    return found


def imports_of(name: str) -> set[str]:
    path = NAMES[name]
    return imports_in(path.read_text(), name if path.name == "__init__.py" else name.rpartition(".")[0])


def package_of(name: str) -> str:
    """The first part below `liver_dask`, if that is a package."""
    part = ".".join(name.split(".")[1:2])
    return part if part in PACKAGES_BELOW else "top"


def test_imports_are_found_however_they_are_written() -> None:
    """`imports_in` finds every kind of import, and `package_of` the package of a module."""
    package = "liver_dask.store"
    for source, found in {
        "from .record import RECORD": "liver_dask.store.record",
        "def f():\n    from ..archive.remote import files": "liver_dask.archive.remote.files",
        "from ..core.errors import DamagedError": "liver_dask.core.errors",
        "import liver_dask.viewing.view": "liver_dask.viewing.view",
        "from liver_dask.viewing import view": "liver_dask.viewing.view",
        "from .. import cli": "liver_dask.cli",
        "if TYPE_CHECKING:\n    from . import pyramid": "liver_dask.store.pyramid",
    }.items():
        assert imports_in(source, package) == {found}, source
        assert found in NAMES, found
    names = ["liver_dask", "liver_dask.cli", "liver_dask.store", "liver_dask.store.record"]
    assert list(map(package_of, names)) == ["top", "top", "store", "store"]


def test_packages_import_only_those_below() -> None:
    """A package imports only itself and the packages that PACKAGES_BELOW lists."""
    assert {package_of(name) for name in NAMES} == PACKAGES_BELOW.keys()
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} | {
        "top"
    } == PACKAGES_BELOW.keys()
    edges = {(name, other) for name in NAMES for other in imports_of(name)}
    between = {(package_of(name), package_of(other)) for name, other in edges}
    assert {("archive", "core"), ("store", "archive"), ("training", "store"), ("viewing", "store")} <= between
    wrong = [(name, other) for name, other in edges if not is_allowed(package_of(name), package_of(other))]
    assert not wrong


def is_allowed(package: str, other: str) -> bool:
    return package == other or other in PACKAGES_BELOW[package]


@pytest.mark.parametrize("reader", ["store.array", "store.record", "store.levels", "viewing.figures"])
def test_who_reads_a_store_does_not_import_what_writes_one(reader: str) -> None:
    """Modules that read a store import none of those that write one, directly or indirectly."""
    found, left = set(), [f"liver_dask.{reader}"]
    while left:
        new = imports_of(left.pop()) - found
        found |= new
        left += new
    assert "liver_dask.core.errors" in found, "else nothing was found"
    assert not found & {
        f"liver_dask.store.{name}" for name in ("writer", "durable", "slabs", "plan", "driver", "worker")
    }


def test_modules_import_each_other_in_no_ring() -> None:
    """There are no import cycles among the modules."""
    imported_by = {name: imports_of(name) - {name} for name in NAMES}
    while imported_by:
        leaves = {name for name, needed in imported_by.items() if not needed & imported_by.keys()}
        assert leaves, f"a ring among {sorted(imported_by)}"
        imported_by = {name: needed for name, needed in imported_by.items() if name not in leaves}


def test_importing_is_light() -> None:
    """`import liver_dask` starts no thread and does not import torch, matplotlib or numba."""
    script = (
        "import sys, threading, liver_dask; "
        "print(threading.active_count(), {'torch', 'matplotlib', 'torch_em', 'IPython', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["1", "set()\n"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], pytest.param(["mypy"], marks=pytest.mark.slow)],
    ids=["lint", "format", "types"],
)
def test_style_and_types(command: list[str]) -> None:
    """Ruff finds nothing to change in style or format, and mypy no error."""
    if not shutil.which(command[0], path=str(Path(sys.executable).parent)):
        pytest.fail(f"{command[0]} is not installed; install the extra `test`")
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_map_of_modules_is_complete() -> None:
    """The list of modules in CONTRIBUTING.md has each module with the first line of its docstring."""
    expected = []
    for name, path in NAMES.items():
        if path.name != "__init__.py":
            summary = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
            expected.append(f"- `{name.removeprefix('liver_dask.').replace('.', '/')}`: {summary}")
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    found = [line for line in text.splitlines() if line.startswith("- `")]
    assert found == expected, "the list should be:\n" + "\n".join(expected)
