"""The tests are independent of each other, of other test files, and of what another test left in the process."""

import ast
import os

import pytest

from helpers.lasting import EMPTIED, LEFT
from helpers.paths import ROOT
from liver_dask.archive.formats import tiff, tiff_index
from liver_dask.core.metrics import traffic

FILES = sorted((ROOT / "tests").rglob("test_*.py"))
FOLDERS = {"tests", *(path.name for path in (ROOT / "tests").iterdir() if path.is_dir())} - {"helpers"}
SHARED = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path not in FILES]


def imports_of_tests(source: str) -> list[str]:
    """The test files and conftest files that a source imports anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or "tests"
            names = [origin, *(alias.name for alias in node.names if origin.split(".")[0] in FOLDERS)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        parts = [part for name in names for part in str(name).split(".")]
        found += [part for part in parts if part == "conftest" or part.startswith("test_")]
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from conftest import SHAPE", ["conftest"]),
        ("import test_cli", ["test_cli"]),
        ("def test():\n    from test_resume import killed_at", ["test_resume"]),
        ("from tests.store.test_resume import killed_at", ["test_resume"]),
        ("from tests import conftest", ["conftest"]),
        ("from . import test_resume", ["test_resume"]),
        ("from tests.store import test_resume", ["test_resume"]),
        ("from store import test_resume", ["test_resume"]),
        ("importlib.import_module('test_cli')", ["test_cli"]),
        ("__import__('test_cli')", ["test_cli"]),
        ("from helpers.stores import BOX, test_volume", []),
        ("importlib.import_module(name)", []),
    ],
)
def test_imports_are_found_however_they_are_written(source: str, found: list[str]) -> None:
    """`imports_of_tests` finds every kind of import of test files."""
    assert imports_of_tests(source) == found


def test_no_test_imports_another_or_fixtures() -> None:
    """No file of the tests imports a test file or a conftest file."""
    assert len(FILES) > 50
    assert len(SHARED) > 20, "helpers, benchmarks and targets are looked at, too"
    assert {path.name: found for path in [*FILES, *SHARED] if (found := imports_of_tests(path.read_text()))} == {}


def test_no_two_files_of_tests_have_the_same_name() -> None:
    """All test files have different names."""
    assert len({path.name for path in FILES}) == len(FILES)


def lasting_in(source: str) -> set[str]:
    """The names of a module's mutable state: no constants, types, options or loggers."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            counters = [part for part in node.body if isinstance(part, ast.Assign) and isinstance(part.value, ast.Call)]
            found |= {f"{node.name}.{name}" for part in counters for name in assigned(part) if "count" in told(part)}
            if not node.bases and all(isinstance(part, ast.Assign) for part in node.body):
                found.add(node.name)  # a namespace of attributes, without instances
        elif isinstance(node, ast.FunctionDef):
            if any("cache" in ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list):
                found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            changes = isinstance(node.value, ast.Call | ast.Dict | ast.List | ast.Set)
            if changes and not told(node).startswith(("logging.", "click.")):
                found |= {name for name in assigned(node) if not name.strip("_")[:1].isupper()}
    return found - {"__all__"}


def assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def told(node: ast.Assign | ast.AnnAssign) -> str:
    return ast.unparse(node.value) if node.value else ""


def test_whatever_lasts_is_emptied_or_cannot_matter() -> None:
    """All mutable state of the package's modules is listed in helpers/lasting.py."""
    there = set()
    for path in sorted((ROOT / "liver_dask").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        there |= {f"{module}.{name}" for name in lasting_in(path.read_text())}
    assert not EMPTIED.keys() & LEFT.keys()
    assert there == EMPTIED.keys() | LEFT.keys(), "say in helpers/lasting.py how it is emptied, or why it need not be"


@pytest.mark.parametrize("time", ["first", "second"])
def test_a_test_begins_as_a_process_does(time: str) -> None:
    """Caches, counters and the environment are reset before each test."""
    assert "LIVER_DASK_LEFT_BY_A_TEST" not in os.environ
    assert not tiff_index.known_directories
    assert not tiff.prefix_shares._seen
    assert traffic.requests == 0
    os.environ["LIVER_DASK_LEFT_BY_A_TEST"] = time
    tiff_index.known_directories["somewhere", 1, 1] = None
    tiff.prefix_shares.learn("somewhere", 1, 1, 0.5)
    traffic.add(requests=1)
