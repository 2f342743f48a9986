"""Digests of models and functions: what they compute follows from weights, attributes and code.

A digest that changes for no reason costs a refusal; one that stays the same in spite of a change would give wrong
voxels. Therefore everything counts that can be found, and what cannot be compared counts as another.
"""

import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
from dask.base import tokenize

NOT_COMPARED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
"""Attributes of a module of torch whose content is compared in another way, or is no matter."""


def digest_of_module(module: Any) -> str:
    """Return a digest of a torch.nn.Module: of its structure, weights, buffers, attributes and the code of its classes.

    The pickle of a module would not do: it differs from process to process.
    """
    digest = hashlib.sha256(str(module).encode())
    try:
        for text in _of_module(module):
            digest.update(text if isinstance(text, bytes) else f"{text}\n".encode())
    except Exception:  # of modules that are no usual ones, such as quantized ones
        digest.update(cloudpickle.dumps(module))
    return digest.hexdigest()


def digest_of_function(function: Callable[..., Any]) -> str:
    """Return a digest of a function, or of another callable: of its name, its code, and what it holds."""
    told = tokenize(function)
    if hasattr(function, "__dask_tokenize__"):  # the user's word
        return hashlib.sha256(told.encode()).hexdigest()
    return hashlib.sha256("\n".join([told, *_code_of(function, set())]).encode()).hexdigest()


def _of_module(module: Any) -> Iterator[str | bytes]:
    seen: set[int] = set()
    for name, part in module.named_modules():
        yield f"{name} {type(part).__module__}.{type(part).__qualname__}"
        yield from _code_of(type(part), seen)
        others = {key: of for key, of in sorted(vars(part).items()) if key not in NOT_COMPARED}
        for key, of in others.items():
            yield f"{key} {tokenize(of)}"
            if callable(of):
                yield from _code_of(of, seen)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        import torch

        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _code_of(item: Any, seen: set[int]) -> Iterator[str]:
    """Yield the code of a function or class, and of those of the same module that it uses by name.

    Packages that are installed have versions; their code is not followed.
    """
    item = inspect.unwrap(item) if callable(item) else item
    if isinstance(item, types.MethodType):
        item = item.__func__
    if not isinstance(item, types.FunctionType | type):
        if type(item).__module__ in ("builtins", "functools"):
            for part in (getattr(item, "func", None), *getattr(item, "args", ())):
                if callable(part):
                    yield from _code_of(part, seen)
            return
        item = type(item)
    if id(item) in seen or _is_installed(item):
        return
    seen.add(id(item))
    if isinstance(item, type):
        for of in (*item.__mro__[1:], *vars(item).values()):
            of = getattr(of, "__func__", None) or getattr(of, "fget", None) or of
            if isinstance(of, types.FunctionType | type):
                yield from _code_of(of, seen)
        return
    yield from _of_code(item.__code__)
    for cell in item.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # it is empty
            continue
        yield tokenize(content)
        if callable(content):
            yield from _code_of(content, seen)
    for name in sorted(_names_in(item.__code__)):
        used = item.__globals__.get(name)
        if isinstance(used, types.FunctionType | type):
            yield from _code_of(used, seen)
        elif isinstance(used, int | float | str | tuple | bool):
            yield f"{name} {used!r}"


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
    module = inspect.getmodule(item)
    file = getattr(module, "__file__", None)
    if module is None or module.__name__ == "__main__":
        return False
    return file is None or "site-packages" in file or file.startswith(types.__file__.rpartition("/")[0])
