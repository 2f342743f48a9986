"""The project holds together: metadata, README, environments, docstrings, style and types."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import liver_dask

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_AN_EXTRA = {"torch_dataset": "torch_em", "browser": "voila"}
"""Modules that need a package which need not be there."""

MODULES = [
    importlib.import_module(f"liver_dask.{module.name}")
    for module in pkgutil.iter_modules(liver_dask.__path__)
    if importlib.util.find_spec(OF_AN_EXTRA.get(module.name, "liver_dask"))
]

CONDA_NAME_OF = {"dask[array]": "dask", "zlib-ng": "python-zlib-ng", "torch": "pytorch"}
"""Packages that conda-forge has under another name."""


def test_environment_yml_is_in_step_with_pyproject() -> None:
    """Conda users would lack a package, or have another version of it."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    given = {spec for spec in environment["dependencies"] if isinstance(spec, str)}
    needed = {f"python {PROJECT['requires-python']}", "pip"}
    for requirement in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["view"]:
        match = re.fullmatch(r"([\w\-\[\]]+)(>=[\d.]+)", requirement)
        assert match, f"{requirement} has no lower bound that environment.yml could repeat"
        name, version = match.groups()
        needed.add(f"{CONDA_NAME_OF.get(name, name)} {version}")
    assert {re.sub(r"\s+", " ", spec) for spec in given} == needed


def test_ci_runs_the_readmes_own_test_command() -> None:
    """CI could pass with a command that the README does not show."""
    commands = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "liver-dask demo" in commands[0]
    assert "pytest" in commands[1]
    assert commands[1].strip() not in (ROOT / ".ci" / "run").read_text(), "a copy may fall out of step"
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_all_that_is_public_is_documented() -> None:
    """A user would have to read the source."""
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


def test_imports_go_one_way() -> None:
    """Modules would import each other in a ring."""
    imported_by = {}
    for module in MODULES:
        tree = ast.parse(Path(module.__file__).read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
        imported_by[module.__name__.split(".")[1]] = {
            name for node in nodes for name in ([node.module] if node.module else [alias.name for alias in node.names])
        }
    while imported_by:
        leaves = {name for name, needed in imported_by.items() if not needed & imported_by.keys()}
        assert leaves, f"a ring among {sorted(imported_by)}"
        imported_by = {name: needed for name, needed in imported_by.items() if name not in leaves}


def test_importing_is_light() -> None:
    """`import liver_dask` would start threads, or drag in torch, matplotlib or numba."""
    script = (
        "import sys, threading, liver_dask; "
        "print(threading.active_count(), {'torch', 'matplotlib', 'torch_em', 'IPython', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["1", "set()\n"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=["lint", "format", "types"]
)
def test_style_and_types(command: list[str]) -> None:
    """Style or types would drift."""
    if not shutil.which(command[0], path=str(Path(sys.executable).parent)):
        pytest.fail(f"{command[0]} is not installed; install the extra `test`")
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
