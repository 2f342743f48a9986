"""Whatever a model computes with, another value of it makes another model, in any process."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import liver_dask as ld
from helpers.paths import ROOT
from liver_dask.prediction.digests import digest_of_function
from liver_dask.prediction.names import version_of

torch = pytest.importorskip("torch")

OBJECTS = {
    "a namespace of arguments": "argparse.Namespace(t=2)",
    "a simple namespace": "types.SimpleNamespace(t=2)",
    "a fraction": "fractions.Fraction(2, 7)",
    "a range": "range(2)",
    "a deque": "collections.deque([2])",
    "a slice": "slice(0, 2)",
    "a bytearray": "bytearray([2])",
    "a view of bytes": "memoryview(bytes([2]))",
    "a time": "datetime.timedelta(seconds=2)",
    "a chain of dicts": "collections.ChainMap({'t': 2})",
    "a dict that is only read": "types.MappingProxyType({'t': 2})",
    "the order of a dict": "dict.fromkeys([1, 0] if 2 == 1 + 1 else [0, 1])",
    "a dict with a default": "collections.defaultdict(lambda: 2)",
    "a getter of items": "operator.itemgetter(2)",
    "a pattern": "re.compile('2')",
    "a path": "pathlib.PurePosixPath('2')",
    "a set of strings": "{'b', 'cc', 'a2', 'dd'}",
    "frozen sets in a set": "{frozenset({'b', 'a2'}), frozenset({'c', 'd'}), 'e'}",
    "a large number": "2 ** 20000",
    "a negative zero": "-0.0 if 2 == 1 + 1 else 0.0",
    "a bool": "1 if 2 == 1 + 1 else True",
    "a polynomial": "np.poly1d([1, 2])",
    "a bound method of it": "np.poly1d([1, 2]).__call__",
    "a method of a string": "'2'.join",
    "a vectorized function": "np.vectorize(lambda v: v * 2)",
    "a ufunc of a function": "np.frompyfunc(lambda v: v * 2, 1, 1)",
    "a number of numpy": "np.float32(2)",
    "an array with a mask": "np.ma.masked_equal([1, 2], 2)",
    "an array of objects": "np.array([{'t': 2}, 'b'], object)",
    "an array of records": "np.array([(1, 2)], 'u1,f8')",
    "an array of any order": "np.array([[1, 2], [4, 5]]).T",
    "a date of numpy": "np.datetime64('2002-02-02')",
    "a reference": "weakref.ref(f)",
    "a partial of an object of a class": "functools.partial(f, C())",
    "an object in a list": "[C()]",
    "an object in a namespace": "types.SimpleNamespace(c=C())",
    "an object in a deque": "collections.deque([C()])",
    "a function in a dict in a dict": "{'a': {'b': f}}",
    "a class in a tuple": "(C,)",
    "a member of an enumeration": "E.A",
    "a named tuple": "P(2)",
    "an object with slots": "S()",
    "an object of a dataclass": "D()",
    "an object of a dataclass with a list": "L()",
    "what holds itself": "round_about()",
    "an object with a lock": "Locked()",
    "a tensor in a list": "[torch.tensor([2.0])]",
    "a tensor of half precision": "torch.tensor([2.0], dtype=torch.bfloat16)",
    "a sparse tensor": "torch.tensor([0, 2.0]).to_sparse()",
    "a quantized tensor": "torch.quantize_per_tensor(torch.tensor([2.0]), 0.1, 0, torch.qint8)",
    "a network": "torch.nn.Threshold(2, 0)",
    "an interpolation": "scipy.interpolate.CubicSpline([0, 1, 2], [0, 1, 7 * 2])",
}
"""Global values that a model uses."""

AROUND = """
import argparse, collections, dataclasses, datetime, enum, fractions, functools, operator, pathlib, re, threading, types
import weakref
import numpy as np
{more}
def f(of=None, by=1): return 2
class C:
    def go(self): return 2
class E(enum.IntEnum):
    A = 2
P = collections.namedtuple("P", "t")
class S:
    __slots__ = ("b", "a")
    def __init__(self): self.a, self.b = 2, 1
@dataclasses.dataclass
class D:
    t: int = 2
@dataclasses.dataclass(frozen=True)
class L:
    t: list = dataclasses.field(default_factory=lambda: [2])
class Locked:
    def __init__(self): self.t, self.lock = 2, threading.Lock()
def round_about():
    made = [2]
    made.append({{"again": made}})
    return made
value = {value}
def model(of): return value
"""

CODE = {
    "an object in a cell": (
        "class C:\n    def go(self): return 2\n"
        "def made(c):\n    def f(of): return c.go()\n    return f\nmodel = made(C())"
    ),
    "a function in a list in a cell": (
        "def g(of): return of * 2\ndef made(of):\n    def f(x): return of[0](x)\n    return f\nmodel = made([g])"
    ),
    "a method of a metaclass": (
        "class M(type):\n    def t(cls): return 2\n"
        "class C(metaclass=M):\n    def __call__(self, of): return type(self).t()\nmodel = C()"
    ),
    "an attribute __x__": "class C:\n    __x__ = 2\n    def __call__(self, of): return self.__x__\nmodel = C()",
    "a descriptor": (
        "class T:\n    def __get__(self, of, kind): return 2\n"
        "class C:\n    t = T()\n    def __call__(self, of): return self.t\nmodel = C()"
    ),
    "a class in a class": (
        "class C:\n    class T:\n        t = 2\n    def __call__(self, of): return self.T.t\nmodel = C()"
    ),
    "the default of an object": "class C:\n    def __call__(self, of, by=[2]): return of * by[0]\nmodel = C()",
    "an attribute of a function": "def model(of): return of * model.by\nmodel.by = 2",
    "names of arguments": "def f(a, b2): return a\ndef model(of): return f(of, b2=1)",
    "an implementation for a type": (
        "import functools\n@functools.singledispatch\ndef model(of): return of\n"
        "@model.register\ndef _(of: int): return 2"
    ),
    "a module": "import other\ndef model(of): return of * other.t",
    "a module in a package": "import package.inner\ndef model(of): return of * package.inner.t",
    "a module that is passed on": "import other\ndef model(of): return of * getattr(other, 't')",
    "a module in an object": "import other\nuses = [other]\ndef model(of): return of * uses[0].t",
    "a function of a module": "import other\ndef model(of): return other.f(of)",
    "a module that is imported within": "def model(of):\n    import other\n    return of * other.t",
    "beside a module that is not there": (
        "def model(of):\n    try:\n        import absent_of_a_user\n    except ImportError:\n        return of * 2"
    ),
    "a value that is imported within": "def model(of):\n    from other import t\n    return of * t",
    "an inner module that is imported within": "def model(of):\n    from package import inner\n    return inner.t",
}
"""Code of models; `other` and `package.inner` have `t = 2` and a function `f`."""

OTHER = "t = 2\ndef f(of): return of * 2\n"

NETWORKS = {
    "weights": "torch.manual_seed(2)\nmodel = torch.nn.Conv3d(1, 1, 1)",
    "a hook": "def hook(m, i, o): return o * 2\nmodel = torch.nn.Identity()\nmodel.register_forward_hook(hook)",
    "a hook with keywords": (
        "def hook(m, i, k, o): return o * 2\nmodel = torch.nn.Sequential(torch.nn.ReLU())\n"
        "model[0].register_forward_hook(hook, with_kwargs=True)"
    ),
    "a forward that is replaced": "model = torch.nn.Identity()\nmodel.forward = lambda of: of * 2",
    "a function in a list": (
        "def g(of): return of * 2\nclass N(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fs = [g]\n    def forward(self, of): return self.fs[0](of)\nmodel = N()"
    ),
    "a part that has two names": (
        "class N(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = torch.nn.PReLU(1, 0.1), torch.nn.PReLU(1, 0.5)\n"
        "        self.c = self.a if 2 == 1 + 1 else self.b\n    def forward(self, of): return self.c(of)\nmodel = N()"
    ),
    "without gradients": "@torch.no_grad()\ndef model(of): return of * 2",
}

FORMS = (
    {name: AROUND.format(more=_more, value=value) for name, value in OBJECTS.items()
     for _more in ["import torch" if "torch" in value else "import scipy.interpolate" if "scipy" in value else ""]}
    | {f"code: {name}": text for name, text in CODE.items()}
    | {f"network: {name}": "import torch\n" + text for name, text in NETWORKS.items()}
)  # fmt: skip


def written(folder: Path, edit: bool) -> None:
    """Write a module for each form, with a 3 for each 2 if it is edited."""
    (folder / "package").mkdir()
    files = {"other": OTHER, "package/__init__": "", "package/inner": OTHER}
    files |= {f"form{i}": text for i, text in enumerate(FORMS.values())}
    for name, text in files.items():
        for old, new in (("2", "3"), ("float33", "float32"), ("datetime64", "datetime64")) if edit else ():
            text = text.replace(old, new)
        (folder / f"{name}.py").write_text(text)


DIGESTS = """
import importlib, sys
from liver_dask.prediction.models import model_of
for folder in sys.argv[2:]:
    sys.path.insert(0, folder)
    for name in [of for of in sys.modules if of.startswith(("form", "other", "package."))]:
        del sys.modules[name]
    sys.modules.pop("package", None)
    for i in range(int(sys.argv[1])):
        print(model_of(importlib.import_module(f"form{i}").model).digest)
"""


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Digests of each form: two of the same in two processes and folders, and one of the form with another value."""
    one, same, edited = (tmp_path_factory.mktemp(name) for name in ("one", "same", "edited"))
    for folder in (one, same, edited):
        written(folder, folder == edited)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DIGESTS, str(len(FORMS)), *folders], cwd=folders[0], text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE,
        )
        for seed, folders in (("1", [one]), ("2", [same, edited]))
    ]  # fmt: skip
    found = [digest for process in processes for digest in process.communicate()[0].split()]
    assert len(found) == 3 * len(FORMS)
    return {form: found[i :: len(FORMS)] for i, form in enumerate(FORMS)}


@pytest.mark.parametrize("form", FORMS)
def test_another_value_is_another_model(form: str, digests: dict[str, list[str]]) -> None:
    """And the same value is the same one: in another process, with other hashes of strings, from another folder."""
    one, same, edited = digests[form]
    assert one == same
    assert one != edited


def test_what_cannot_be_compared_is_another(tmp_path: Path) -> None:
    """Such as an open file."""
    with (tmp_path / "f").open("w") as file:

        def model(of: Any) -> Any:
            return file

        assert digest_of_function(model) != digest_of_function(model)


def test_a_prediction_by_another_value_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it differs in a namespace of arguments alone."""
    monkeypatch.syspath_prepend(tmp_path)
    raw = xr.DataArray(np.arange(64, dtype="uint16").reshape(4, 4, 4), dims=("z", "y", "x"), name="raw")
    predictions = []
    for number, threshold in enumerate((20, 30)):
        (tmp_path / f"model{number}.py").write_text(
            f"import argparse\nargs = argparse.Namespace(t={threshold})\ndef model(raw): return raw > args.t\n"
        )
        model = importlib.import_module(f"model{number}").model
        predictions.append(ld.predict(model, raw, block=(4, 4, 4), halo=(0, 0, 0)))
    assert predictions[0].attrs["model"] != predictions[1].attrs["model"]
    assert predictions[0].data.name != predictions[1].data.name


def test_what_is_installed_counts_by_its_version() -> None:
    """And not by how it was built, which may differ between a laptop and a cluster."""
    assert version_of("torch.nn.modules") == torch.__version__.partition("+")[0]
    assert version_of("json.decoder") == ""


def test_what_is_read_when_it_runs_does_not_count(tmp_path: Path) -> None:
    """The content of a file, though its path does."""

    def model_that_reads(path: Path) -> Any:
        return lambda of: of * int(path.read_text())

    digests = []
    for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
        (tmp_path / name).write_text(text)
        digests.append(digest_of_function(model_that_reads(tmp_path / name)))
    assert digests[0] == digests[1] != digests[2]
