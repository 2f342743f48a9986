"""Digests of models and functions: what they compute follows from weights, attributes and code.

A digest that changes for no reason costs a refusal; one that stays the same in spite of a change would give wrong
voxels. Therefore everything counts that can be found, and what cannot be compared counts as another.

The pickle of a model would not do: it differs from process to process, and has functions and classes only by name.
Here, all that pickle would find is followed, and functions and classes by their code. What is installed has a version,
and is not followed.
"""

import copyreg
import hashlib
import threading
import types
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from dask.base import tokenize

from .names import WHERE_A_MODULE_IS, is_installed, named, used_by, version_of

NOT_OF_A_MODULE = {"_non_persistent_buffers_set", "training"}
"""Attributes of a module of torch that are no matter: it predicts in evaluation."""

NOT_OF_A_CLASS = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__slotnames__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__orig_bases__", "__parameters__"),
}
"""Attributes of a class that say where it is, or again what other ones say."""

WITHOUT_CONTENT = (type(threading.Lock()), type(threading.RLock()), threading.local)
"""Types of objects that compute nothing."""

DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)

HEAP_TYPE = 1 << 9
"""Flag of a class that is no part of compiled code (Py_TPFLAGS_HEAPTYPE)."""


def digest_of_module(module: Any) -> str:
    """Return a digest of a torch.nn.Module: of its weights, buffers, attributes, parts, and the code of its classes."""
    return _sha256([_Walk().of(module)])


def digest_of_function(function: Callable[..., Any]) -> str:
    """Return a digest of a function, or of another callable: of its code, and of what it holds and uses."""
    return _sha256([_Walk().of(function)])


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


class _Walk:
    """A walk through all that a value is made of, each part once.

    Attributes:
        known: By `id`, the parts that are done and their texts. They are kept, lest another one gets the `id`.
        under_way: By `id`, how deep the parts are that the walk is in; these contain themselves.
    """

    def __init__(self, known: dict[int, tuple[Any, str]] | None = None, under_way: dict[int, int] | None = None):
        self.known = known or {}
        self.under_way = under_way or {}

    def of(self, value: Any) -> str:
        """Return a text that is the same, in any process, for values that compute the same, and for no other ones."""
        kind = type(value)
        if kind in (float, complex, str, bool) or value is None or value is Ellipsis or value is NotImplemented:
            return f"{kind.__name__} {value!r}"
        if kind is int:
            return f"int {value:x}"
        if kind is bytes:
            return f"bytes {hashlib.sha256(value).hexdigest()}"
        key = id(value)
        if key in self.known:
            return self.known[key][1]
        if key in self.under_way:
            return f"within {self.under_way[key]}"
        self.under_way[key] = len(self.under_way)
        try:
            text = _sha256(self._parts(value))
        except Exception:  # whatever the code of an object raises that is asked for its content
            text = uuid.uuid4().hex
        del self.under_way[key]
        self.known[key] = value, text
        return text

    def _parts(self, value: Any) -> Iterator[str]:
        if hasattr(value, "__dask_tokenize__") and not isinstance(value, type):  # the user's word
            yield f"token {tokenize(value, ensure_deterministic=True)}"
        elif name := named(value):
            yield f"installed {name}"
        elif isinstance(value, type):
            yield from self._of_class(value)
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, types.CodeType):
            yield from self._of_code(value)
        elif isinstance(value, types.ModuleType):
            yield from self._of_python_module(value)
        elif callable(getattr(value, "__wrapped__", None)):  # cached or compiled; what is cached is no matter
            yield f"wrapper {self.of(type(value))} {self.of(getattr(value, 'targetoptions', None))}"
            yield self.of(value.__wrapped__)
        elif type(value) in (list, tuple):
            yield type(value).__name__
            yield from map(self.of, value)
        elif type(value) in (dict, types.MappingProxyType):
            yield type(value).__name__
            yield from self._of_items(value.items())
        elif type(value) in (set, frozenset):  # the order of which differs from process to process
            yield type(value).__name__
            yield from sorted(_Walk(dict(self.known), dict(self.under_way)).of(part) for part in value)
        elif type(value) in (np.ndarray, np.memmap):
            yield from self._of_array(value)
        elif hasattr(value, "untyped_storage"):
            yield from self._of_tensor(value)
        elif hasattr(value, "named_modules") and hasattr(value, "_forward_hooks"):
            yield from self._of_module(value)
        elif isinstance(value, np.ufunc):
            yield from self._of_ufunc(value)
        else:
            yield from self._of_part_of_python(value)

    def _of_items(self, items: Iterable[tuple[Any, Any]]) -> Iterator[str]:
        for key, value in items:
            yield f"{self.of(key)} {self.of(value)}"

    def _of_part_of_python(self, value: Any) -> Iterator[str]:
        """Yield what methods, properties and the like are made of, which cannot be pickled."""
        if isinstance(value, types.MethodType):
            yield f"method {self.of(value.__self__)} {self.of(value.__func__)}"
        elif isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            yield f"method {value.__name__} {self.of(value.__self__)}"
        elif isinstance(value, staticmethod | classmethod):
            yield f"{type(value).__name__} {self.of(value.__func__)}"
        elif isinstance(value, property):
            yield f"property {self.of(value.fget)} {self.of(value.fset)} {self.of(value.fdel)}"
        elif isinstance(value, DESCRIPTORS):
            yield f"{type(value).__name__} {value.__qualname__}"
        elif isinstance(value, memoryview):
            yield f"memoryview {value.format} {value.shape} {self.of(value.tobytes())}"
        elif type(value) is weakref.ref:
            yield f"reference {self.of(value())}"
        elif isinstance(value, WITHOUT_CONTENT):
            yield type(value).__qualname__
        else:
            yield from self._of_object(value)

    def _of_object(self, value: Any) -> Iterator[str]:
        """Yield the class of an object, and what pickle would keep of the object."""
        yield f"object {self.of(type(value))}"
        reduce = copyreg.dispatch_table.get(type(value))
        found = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(found, str):
            yield f"{found} {self.of(getattr(value, '__dict__', None))}"
            return
        made_by, arguments, state, items, pairs = (*found, None, None, None)[:5]
        yield f"{self.of(made_by)} {self.of(arguments)}"
        if isinstance(state, dict):
            yield from sorted(self._of_items(state.items()))
        else:
            yield self.of(state)
        yield from map(self.of, items or ())
        yield from self._of_items(pairs or ())

    def _of_class(self, item: type) -> Iterator[str]:
        yield f"class {item.__qualname__}"
        if not item.__flags__ & HEAP_TYPE:
            yield f"{item.__module__} {version_of(item.__module__)}"
            return
        yield self.of(type(item))
        yield from map(self.of, item.__mro__[1:])
        for name, value in sorted(vars(item).items()):
            if name not in NOT_OF_A_CLASS:
                yield f"{name} {self.of(value)}"

    def _of_function(self, item: types.FunctionType) -> Iterator[str]:
        yield f"function {item.__qualname__}"
        if hasattr(item, "registry") and hasattr(item, "dispatch"):  # functools.singledispatch, which has a cache too
            yield from self._of_items(item.registry.items())
            return
        yield self.of(item.__code__)
        for cell in item.__closure__ or ():
            try:
                yield self.of(cell.cell_contents)
            except ValueError:  # it is empty
                yield "empty"
        yield f"{self.of(item.__defaults__)} {self.of(item.__kwdefaults__)}"
        yield from self._of_items(sorted(vars(item).items()))
        for name, value in used_by(item.__code__, item.__globals__):
            yield f"{name} {self.of(value)}"

    def _of_code(self, code: types.CodeType) -> Iterator[str]:
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        yield f"code {code.co_posonlyargcount} {code.co_flags} {arguments} {code.co_names}"
        yield f"{code.co_code.hex()} {code.co_exceptiontable.hex()}"
        yield from map(self.of, code.co_consts)

    def _of_python_module(self, module: types.ModuleType) -> Iterator[str]:
        yield f"module {module.__name__}"
        if is_installed(module):
            yield version_of(module.__name__)
            return
        for name, value in sorted(vars(module).items()):
            if name not in WHERE_A_MODULE_IS:
                yield f"{name} {self.of(value)}"

    def _of_array(self, array: Any) -> Iterator[str]:
        yield f"array {array.shape} {self.of(array.dtype)}"
        if array.dtype.names:  # there may be anything between the fields
            yield from (self.of(np.asarray(array[name])) for name in array.dtype.names)
        elif array.dtype.hasobject:
            yield from map(self.of, array.ravel().tolist())
        else:
            yield hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()

    def _of_tensor(self, tensor: Any) -> Iterator[str]:
        import torch

        yield f"tensor {tensor.dtype} {tuple(tensor.shape)} {tensor.layout}"
        tensor = tensor.detach().cpu()
        if tensor.is_quantized:
            yield repr(tensor.dequantize().dtype)
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        content = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield hashlib.sha256(content).hexdigest()

    def _of_module(self, module: Any) -> Iterator[str]:
        if type(module).__name__ == "OptimizedModule":  # of torch.compile
            module = module._orig_mod
        yield f"network {self.of(type(module))}"
        hooks = {name: of for name, of in vars(module).items() if "_hooks" in name and isinstance(of, dict)}
        order = sorted({number for of in hooks.values() for number in of})  # numbers are counted in the whole process
        for name, of in sorted(hooks.items()):
            yield f"{name} {self.of([(order.index(number), hook) for number, hook in of.items()])}"
        for name, value in sorted(vars(module).items()):
            if name not in NOT_OF_A_MODULE and name not in hooks:
                yield f"{name} {self.of(value)}"

    def _of_ufunc(self, ufunc: np.ufunc) -> Iterator[str]:
        """Yield the name of a function of numpy or scipy, or what one of numpy.frompyfunc calls."""
        import gc

        yield f"ufunc {ufunc.__name__} {ufunc.nin} {ufunc.nout} {ufunc.types}"
        if getattr(np, ufunc.__name__, None) is not ufunc:
            called = [of for of in gc.get_referents(ufunc) if not isinstance(of, dict)]
            yield from map(self.of, called or [object()])
