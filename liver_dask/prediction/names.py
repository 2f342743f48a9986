"""What code uses by name, and what is installed, so is known by a name and a version."""

import dis
import functools
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
"""Instructions that look a name up in the module."""

LOADS_OF_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")

WHERE_A_MODULE_IS = {
    *("__builtins__", "__cached__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__"),
    "__spec__",
}
"""Names of a module that say nothing of what it computes."""

SITES = ("site-packages", "dist-packages")


def used_by(code: types.CodeType, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what some code, and the functions within it, look up in their module, and what they import.

    Of a module that is not installed it is the attribute that is used, or all of the module where it is passed on.

    Args:
        code: The code.
        names: The globals of its module.
    """
    steps = list(dis.get_instructions(code))
    for i, step in enumerate(steps):
        if step.opname in LOADS and step.argval in names and step.argval not in WHERE_A_MODULE_IS:
            yield _attribute_at(step.argval, names[step.argval], steps[i + 1 :])
        elif step.opname == "IMPORT_NAME":
            yield from _imported("." * int(steps[i - 2].argval) + step.argval, steps[i - 1].argval, names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from used_by(constant, names)


def _attribute_at(name: str, value: Any, steps: list[dis.Instruction]) -> tuple[str, Any]:
    for step in steps:
        if not isinstance(value, types.ModuleType) or is_installed(value):
            break
        if step.opname not in LOADS_OF_ATTRIBUTES or step.argval not in vars(value):
            break
        name, value = f"{name}.{step.argval}", vars(value)[step.argval]
    return name, value


def _imported(name: str, wanted: tuple[str, ...] | None, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a function imports from modules that are not installed; it would do so itself when it is called."""
    name = importlib.util.resolve_name(name, names.get("__package__") or names.get("__name__", ""))
    top = name.partition(".")[0]
    spec = None if top in sys.modules else importlib.util.find_spec(top)
    if (top in sys.modules and is_installed(sys.modules[top])) or (spec and _is_site(spec.origin)):
        yield name, version_of(name)
        return
    try:
        module = import_module(name)
    except ImportError:  # one that it can do without
        yield name, None
        return
    if not wanted:
        yield name, module
    for of in wanted or ():
        yield f"{name}.{of}", vars(module)[of] if of in vars(module) else import_module(f"{name}.{of}")


def named(value: Any) -> str | None:
    """Return the name and version of a function or class that is found under its own name in an installed module."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)):
        return None
    found = sys.modules.get(module)
    if found is None or not is_installed(found):
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}.{name} {version_of(module)}" if found is value else None


def is_installed(module: types.ModuleType) -> bool:
    """Return whether a module is of Python itself or of a package that was installed, so has a version."""
    if module.__name__ == "__main__":
        return False
    spec = getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return _is_site(file) if file else spec is not None


def _is_site(file: str | None) -> bool:
    if file is None:
        return False
    python = os.path.dirname(types.__file__)
    return any(of in file for of in SITES) or file in ("built-in", "frozen") or file.startswith((python, "<frozen"))


@functools.cache
def version_of(module: str) -> str:
    """Return the version of the package of an installed module; for those of Python, nothing.

    Without the part that says how it was built: `2.4.0+cpu` and `2.4.0+cu121` compute the same.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    version = getattr(sys.modules.get(top), "__version__", None)
    if not isinstance(version, str):
        distributions = importlib.metadata.packages_distributions().get(top, [])
        version = " ".join(f"{of} {importlib.metadata.version(of)}" for of in sorted(set(distributions)))
    return version.partition("+")[0]
