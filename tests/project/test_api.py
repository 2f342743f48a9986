"""Everything public is documented as a user needs it, and the reference is built from it without a warning.

Public is what `liver_dask.__all__` names, and the methods and attributes of the classes among it.
"""

import ast
import builtins
import dataclasses
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import liver_dask as ld

SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):\n((?:    .*\n|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^    (\*{0,2}[\w.]+): ", re.MULTILINE)
ARRAYS = ("DataArray", "ndarray", "NDArray")
SHAPE = re.compile(r"\((?:channel, )?z, y, x\)|\(\w+, \d[^)]*\)|\(\.\.\., \d\)")
"""How a docstring tells the axes of an array, such as (z, y, x) or (n, 3)."""


def sections(thing: object) -> dict[str, str]:
    """The sections of a docstring by name, with the text of each."""
    return dict(SECTION.findall(f"{inspect.getdoc(thing) or ''}\n"))


def public_classes() -> Iterator[tuple[str, type]]:
    for name in ld.__all__:
        thing = getattr(ld, name)
        if inspect.isclass(thing):
            yield name, thing


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions of the package, and methods, class methods and properties of its public classes."""
    for name in ld.__all__:
        thing = getattr(ld, name)
        if inspect.isfunction(thing):
            yield name, thing
    for name, of in public_classes():
        for attribute, value in vars(of).items():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if not attribute.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{attribute}", function


FUNCTIONS = dict(public_functions())
CLASSES = dict(public_classes())


def lacks(function: Callable[..., Any]) -> list[str]:
    """What the docstring of a function does not tell."""
    doc, parts = inspect.getdoc(function) or "", sections(function)
    function = inspect.unwrap(function)
    signature = inspect.signature(function)
    names = [name for name in signature.parameters if name not in ("self", "cls")]
    found = [] if doc else ["a docstring"]
    found += [f"the parameter {name}" for name in names if name not in ENTRY.findall(parts.get("Args", ""))]
    found += [f"no such parameter: {name}" for name in ENTRY.findall(parts.get("Args", "")) if name not in names]
    returns = str(signature.return_annotation)
    is_told = {"Returns", "Yields"} & parts.keys() or (not names and re.match(r"Return |The |Whether |What ", doc))
    if returns not in ("None", "<class 'NoneType'>") and not is_told:
        found.append("what it returns")
    if any(kind in f"{signature}" for kind in ARRAYS) and not SHAPE.search(doc):
        found.append("the axes of its arrays")
    raised = set(raised_in(function))
    found += [f"the error {name}" for name in raised - set(ENTRY.findall(parts.get("Raises", "")))]
    return found + lacks_of_errors(parts.get("Raises", ""))


def raised_in(function: Callable[..., Any]) -> Iterator[str]:
    """The errors of this package that a function raises by itself."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            if hasattr(ld, name):
                yield name


def lacks_of_errors(raises: str) -> list[str]:
    """What the section about errors does not tell: errors that there are, and which builtin error each is."""
    found = []
    for entry in re.split(r"^(?=    \w)", raises, flags=re.MULTILINE)[1:]:
        name, _, text = entry.strip().partition(": ")
        of = getattr(ld, name, None) or getattr(builtins, name, None)
        if of is None:
            found.append(f"no such error: {name}")
        elif issubclass(of, ld.LiverDaskError) and of is not ld.LiverDaskError:
            also = re.search(r"\((\w+)\)\s*$", text)
            if not also or not issubclass(of, getattr(builtins, also[1], ())):
                found.append(f"which builtin error {name} is")
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_tell_what_a_caller_needs(name: str) -> None:
    """Each tells its parameters, what it returns, the axes of arrays, and its errors with the builtin ones."""
    assert lacks(FUNCTIONS[name]) == []


@pytest.mark.parametrize("name", CLASSES)
def test_classes_tell_their_attributes(name: str) -> None:
    """Each has a docstring, which lists the fields of a dataclass and what an instance is given."""
    of = CLASSES[name]
    parts = sections(of)
    assert inspect.getdoc(of)
    assert "docstring" not in (inspect.getdoc(of) or "")
    told = set(ENTRY.findall(parts.get("Attributes", "")))
    fields = {field.name for field in dataclasses.fields(of)} if dataclasses.is_dataclass(of) else set()
    assert {field for field in fields if not field.startswith("_")} - told == set()
    known = (
        fields | set(vars(of)) | get_type_hints(of).keys() | set(re.findall(r"self\.(\w+)\b", inspect.getsource(of)))
    )
    assert told - known == set(), "no such attribute"
    assert lacks_of_errors(parts.get("Raises", "")) == []


def test_what_is_not_documented_would_be_noticed() -> None:
    """`lacks` finds each thing that a docstring may lack."""

    def silent(one, *, two: int = 0) -> int:
        """Do it."""
        raise ld.DamagedError("")

    def wrong(one) -> None:  # noqa: D417  # which is what it is for
        """Do it.

        Args:
            other: Not there.

        Raises:
            DamagedError: It is damaged. (ValueError)
            NoSuchError: Never.
        """

    assert lacks(silent) == ["the parameter one", "the parameter two", "what it returns"]
    assert lacks(wrong) == [
        "the parameter one",
        "no such parameter: other",
        "which builtin error DamagedError is",
        "no such error: NoSuchError",
    ]


def test_the_module_names_all_that_it_has() -> None:
    """The docstring of the package, which is the first page of the reference, names each public name."""
    named = set(re.findall(r"`(\w+)`", ld.__doc__ or ""))
    errors = {name for name, of in CLASSES.items() if issubclass(of, ld.LiverDaskError)}
    assert set(ld.__all__) - errors - named == set()
    assert "LiverDaskError" in named


def test_the_reference_is_built(tmp_path: Path) -> None:
    """Pdoc builds the reference without a warning, of public names alone."""
    import pdoc

    pytest.importorskip("torch")  # without the extra `train`, types of its functions cannot be resolved

    with warnings.catch_warnings(action="error"):
        pdoc.render.configure(docformat="google", show_source=False)
        pdoc.pdoc("liver_dask", output_directory=tmp_path)
    assert {path.name for path in tmp_path.rglob("*.html")} == {"index.html", "liver_dask.html"}
    page = (tmp_path / "liver_dask.html").read_text()
    shown = set(re.findall(r'<section id="([\w.]+)"', page))
    assert set(ld.__all__) <= shown
    assert {name for name in shown if re.search(r"(^|\.)_(?!_init__)", name)} == set()
    assert {name.split(".")[0] for name in shown} <= set(ld.__all__)
