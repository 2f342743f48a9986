"""Digests of models and functions: what they compute follows from weights, attributes and code.

A digest that changes for no reason costs a refusal; one that stays the same in spite of a change would give wrong
voxels. Therefore everything counts that can be found, and what cannot be compared counts as another.
"""

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
from dask.base import tokenize

NOT_COMPARED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
"""Attributes of a module of torch whose content is compared in another way, or is no matter."""


PLAIN = (int, float, complex, str, bytes, type(None), tuple, list, dict, set, frozenset, np.ndarray, np.generic)
"""Values that dask's `tokenize` compares by their content."""


def digest_of_module(module: Any) -> str:
    """Return a digest of a torch.nn.Module: of its structure, weights, buffers, attributes and the code of its classes.

    The pickle of a module would not do: it differs from process to process.
    """
    digest = hashlib.sha256(str(module).encode())
    try:
        for text in _of_module(module):
            digest.update(f"{text}\n".encode())
    except Exception:  # of modules that are no usual ones, such as quantized ones
        digest.update(cloudpickle.dumps(module))
    return digest.hexdigest()


def digest_of_function(function: Callable[..., Any]) -> str:
    """Return a digest of a function, or of another callable: of its name, its code, and what it holds and uses."""
    told = tokenize(function)
    if hasattr(function, "__dask_tokenize__"):  # the user's word
        return hashlib.sha256(told.encode()).hexdigest()
    return hashlib.sha256("\n".join([told, *_code_of(function, set())]).encode()).hexdigest()


def _of_module(module: Any) -> Iterator[str]:
    seen: set[int] = set()
    for name, part in module.named_modules():
        yield f"{name} {type(part).__module__}.{type(part).__qualname__}"
        yield from _code_of(type(part), seen)
        others = {key: of for key, of in sorted(vars(part).items()) if key not in NOT_COMPARED}
        for key, of in others.items():
            yield f"{key} {_content_of(of)}"
            if callable(of):
                yield from _code_of(of, seen)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {_content_of(tensor)}"


def _content_of(value: Any) -> str:
    """Return a text that is the same for equal values; dask's for a tensor of torch would differ each time."""
    if not hasattr(value, "untyped_storage"):
        return tokenize(value)
    import torch

    content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"


def _code_of(item: Any, seen: set[int]) -> Iterator[str]:
    """Yield the code of a function or class, and of those of the same module that it uses by name.

    Packages that are installed have versions; their code is not followed.
    """
    if callable(wrapped := getattr(item, "__wrapped__", None)):  # what decorates it may be installed
        yield from _code_of(wrapped, seen)
    if isinstance(item, types.MethodType):
        item = item.__func__
    if not isinstance(item, types.FunctionType | type):
        if type(item).__module__ in ("builtins", "functools"):
            keywords: dict[str, Any] = getattr(item, "keywords", {})
            for part in (getattr(item, "func", None), *getattr(item, "args", ()), *keywords.values()):
                if callable(part):
                    yield from _code_of(part, seen)
            return
        item = type(item)
    if id(item) in seen or _is_installed(item):
        return
    seen.add(id(item))
    yield from _of_class(item, seen) if isinstance(item, type) else _of_function(item, seen)


def _of_class(item: type, seen: set[int]) -> Iterator[str]:
    for base in item.__mro__[1:]:
        yield from _code_of(base, seen)
    for name, of in vars(item).items():
        of = getattr(of, "__func__", None) or getattr(of, "fget", None) or getattr(of, "func", None) or of
        if isinstance(of, types.FunctionType | type):
            yield from _code_of(of, seen)
        elif not (name.startswith("__") and name.endswith("__")):
            yield from _of_value(name, of, seen)


def _of_function(item: types.FunctionType, seen: set[int]) -> Iterator[str]:
    yield from _of_code(item.__code__)
    for cell in item.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # it is empty
            continue
        yield _content_of(content)
        if callable(content):
            yield from _code_of(content, seen)
    for number, default in enumerate(item.__defaults__ or ()):
        yield from _of_value(str(number), default, seen)
    for name, default in sorted((item.__kwdefaults__ or {}).items()):
        yield from _of_value(name, default, seen)
    for name in sorted(_names_in(item.__code__) & item.__globals__.keys()):
        yield from _of_value(name, item.__globals__[name], seen)


def _of_value(name: str, value: Any, seen: set[int]) -> Iterator[str]:
    """Yield what a name stands for in some code: a value, or the name and code of a function, class or object."""
    if called := getattr(value, "__qualname__", None) or getattr(value, "__name__", None):
        yield f"{name} {getattr(value, '__module__', '')}.{called}"
    if isinstance(value, types.FunctionType | type) or hasattr(value, "__wrapped__"):
        yield from _code_of(value, seen)
    elif hasattr(value, "named_modules"):
        yield digest_of_module(value)
    elif isinstance(value, PLAIN) or hasattr(value, "__array__"):
        yield f"{name} {_content_of(value)}"
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            if callable(part):
                yield from _code_of(part, seen)
    elif isinstance(value, functools.partial) or not _is_installed(type(value)):
        yield f"{name} {tokenize(value)}"
        yield from _code_of(value, seen)


def _of_code(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        elif not isinstance(constant, frozenset):  # the order of which differs from process to process
            yield repr(constant)
        else:
            yield repr(sorted(map(repr, constant)))
    yield " ".join(code.co_names)


def _names_in(code: types.CodeType) -> set[str]:
    inner = [of for of in code.co_consts if isinstance(of, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))


def _is_installed(item: Any) -> bool:
    """Return whether a function or class is of Python itself or of a package that was installed, so has a version."""
    if isinstance(item, types.FunctionType):  # a decorated one says that it is of the module where it is used
        file: str | None = item.__code__.co_filename
    else:
        module = inspect.getmodule(item)
        if module is None or module.__name__ == "__main__":
            return False
        file = getattr(module, "__file__", None)
    return file is None or "site-packages" in file or file.startswith((types.__file__.rpartition("/")[0], "<frozen"))
