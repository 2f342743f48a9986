"""Networks of torch, as they are given: in memory, as checkpoints, TorchScript and torch.export."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import liver_dask as ld
from helpers.paths import ROOT
from liver_dask.prediction import models
from liver_dask.prediction.digests import digest_of_function, digest_of_module
from liver_dask.prediction.models import model_of

torch = pytest.importorskip("torch")

BLOCK, HALO = (2, 8, 8), (1, 2, 2)
WHOLE = tuple(of + 2 * far for of, far in zip(BLOCK, HALO, strict=True))


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(1, 4, 3, padding=1)
    return torch.nn.Sequential(convolution, torch.nn.Dropout(0.5), torch.nn.Conv3d(4, 1, 1), torch.nn.Sigmoid())


@pytest.fixture
def raw() -> xr.DataArray:
    voxels = np.random.default_rng(0).integers(1, 255, (5, 19, 27)).astype(np.uint8)
    return xr.DataArray(voxels, dims=["z", "y", "x"])


def predicted(model: Any, raw: xr.DataArray, **options: Any) -> np.ndarray:
    options = {"block": BLOCK, "halo": HALO, "preprocess": (128, 64), "dtype": "float32", **options}
    return ld.predict(model, raw, **options).compute(scheduler="threads").values


def test_a_network_is_that_of_the_whole_volume(network: Any, raw: xr.DataArray) -> None:
    """By blocks, alone or several at once, to the last digits of float32; as uint8, to the last bit."""
    network.eval()
    voxels = torch.from_numpy(np.pad(raw.values, 3, "reflect").astype(np.float32))
    with torch.inference_mode():
        expected = network((voxels[None, None] - 128) / 64)[0, 0, 3:-3, 3:-3, 3:-3].numpy()
    for batch in (1, 3):
        np.testing.assert_allclose(predicted(network, raw, batch=batch), expected, atol=3e-7)
        np.testing.assert_array_equal(predicted(network, raw, batch=batch, dtype="uint8"), np.rint(expected * 255))


def test_dropout_is_off_and_the_network_is_left_as_it_is(network: Any, raw: xr.DataArray) -> None:
    """A network in training predicts as in evaluation, and trains on."""
    network.train()
    np.testing.assert_array_equal(predicted(network, raw), predicted(network, raw))
    assert network.training


def test_the_weights_of_now_are_used(network: Any, raw: xr.DataArray) -> None:
    """What becomes of the network later does not change a prediction; and a changed network is another model."""
    before = ld.predict(network, raw, block=BLOCK, halo=HALO, dtype="float32")
    expected = before.compute().values
    with torch.no_grad():
        network[0].weight += 1
    models._loaded.forget()
    np.testing.assert_array_equal(before.compute(), expected)
    after = ld.predict(network, raw, block=BLOCK, halo=HALO, dtype="float32")
    assert after.attrs["model"] != before.attrs["model"]
    assert after.data.name != before.data.name
    assert not np.array_equal(after, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_files_give_the_same(network: Any, raw: xr.DataArray, tmp_path: Path) -> None:
    """TorchScript and torch.export give what the network gives."""
    expected = predicted(network, raw)
    network.eval()
    example = torch.zeros(1, 1, *WHOLE)
    torch.jit.trace(network, example).save(tmp_path / "m.pt")
    torch.export.save(torch.export.export(network, (example,)), tmp_path / "m.pt2")
    for name in ("m.pt", "m.pt2"):
        np.testing.assert_allclose(predicted(tmp_path / name, raw), expected, atol=1e-6)
    torch.save(network.state_dict(), tmp_path / "state.pt")
    for name, content in (("broken.pt", b"no model"), ("broken.pt2", b""), ("state.pt", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ld.InvalidArgumentError, match=rf"{name} cannot be loaded \(.*\): give TorchScript") as told:
            predicted(tmp_path / name, raw)
        assert "\n" not in str(told.value)
    (tmp_path / "model.py").write_text("1")
    with pytest.raises(ld.InvalidArgumentError, match=r"model.py is no file of a model: give TorchScript"):
        ld.predict(tmp_path / "model.py", raw)
    with pytest.raises(ld.InvalidArgumentError, match=r"fails for an array of shape \(1, 1, 4, 14, 12\)") as told:
        predicted(tmp_path / "m.pt2", raw, block=(2, 10, 8))
    assert "\n" not in str(told.value)
    with pytest.raises(ld.InvalidArgumentError, match="device='gpu' is no device"):
        ld.predict(tmp_path / "m.pt", raw, device="gpu")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_checkpoint_of_torch_em(raw: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that a trainer of torch_em writes; one without its file is refused at once."""
    pytest.importorskip("torch_em")
    monkeypatch.chdir(tmp_path)  # where the trainer writes its logs
    from torch_em.loss import DiceLoss
    from torch_em.model import AnisotropicUNet
    from torch_em.trainer import DefaultTrainer

    network = AnisotropicUNet(1, 1, scale_factors=[[1, 2, 2]], initial_features=2, final_activation="Sigmoid")
    loader = torch.utils.data.DataLoader([(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))])
    loader.shuffle = True
    trainer = DefaultTrainer(
        name="m", train_loader=loader, val_loader=loader, model=network, loss=DiceLoss(),
        optimizer=torch.optim.Adam(network.parameters()), metric=DiceLoss(), device="cpu", save_root=tmp_path,
        mixed_precision=False, compile_model=False, logger=None,
    )  # fmt: skip
    trainer.fit(1)
    options: dict[str, Any] = {"halo": (0, 4, 4)}
    np.testing.assert_allclose(
        predicted(tmp_path / "checkpoints" / "m", raw, **options), predicted(trainer.model, raw, **options), atol=1e-6
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ld.InvalidArgumentError, match=r"it has no best.pt"):
        ld.predict(tmp_path / "empty", raw)


def test_a_file_that_was_replaced_is_another_model(network: Any, raw: xr.DataArray, tmp_path: Path) -> None:
    """A prediction is named by the file that there was, so another one in its place is told, and not used."""
    example = (torch.zeros(1, 1, *WHOLE),)
    torch.export.save(torch.export.export(network.eval(), example), tmp_path / "m.pt2")
    pending = ld.predict(tmp_path / "m.pt2", raw, block=BLOCK, halo=HALO)
    with torch.no_grad():
        network[0].weight += 1
    torch.export.save(torch.export.export(network, example), tmp_path / "m.pt2")
    with pytest.raises(ld.InvalidArgumentError, match="is not the model that it was"):
        pending.compute(scheduler="threads")


def test_a_network_of_slices(raw: xr.DataArray) -> None:
    """With ndim=2, a network gets slices, and gives what it gives slice by slice."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    found = predicted(network, raw, ndim=2, halo=(0, 1, 1), channel=1, batch=2)
    padded = torch.from_numpy(np.pad(raw.values, ((0, 0), (1, 1), (1, 1)), "reflect").astype(np.float32))
    with torch.inference_mode():
        expected = network((padded[:, None] - 128) / 64)[:, 1, 1:-1, 1:-1].numpy()
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_models_that_return_something_else(raw: xr.DataArray) -> None:
    """Are told in one sentence when they are run."""

    class Two(torch.nn.Module):
        def forward(self, blocks: Any) -> Any:
            return blocks, blocks

    with pytest.raises(ld.InvalidArgumentError, match="returns a tuple"):
        predicted(Two(), raw)
    with pytest.raises(ld.InvalidArgumentError, match="as many voxels"):
        predicted(torch.nn.Conv3d(1, 1, 3), raw)


def test_a_digest_is_that_of_the_weights(network: Any) -> None:
    """It is the same after a round trip through a file, and another one after any change of a weight."""
    first = model_of(network).digest
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    assert model_of(network).digest == first
    with torch.no_grad():
        network[2].bias[0] = torch.nextafter(network[2].bias[0], torch.tensor(9.0))
    assert model_of(network).digest != first


class Scaled(torch.nn.Module):
    """Multiplies by a number that is no weight."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("hidden", torch.ones(1), persistent=False)

    def forward(self, blocks: Any) -> Any:
        return blocks * self.factor * self.hidden


def test_what_is_no_weight_counts_too(raw: xr.DataArray) -> None:
    """Attributes, buffers that are not saved, and the code of a class."""
    one, other, hidden = Scaled(1.0), Scaled(0.5), Scaled(1.0)
    hidden.hidden[0] = 0.25

    class Changed(Scaled):
        def forward(self, blocks: Any) -> Any:
            return blocks / 4

    Changed.__qualname__, Changed.__module__ = Scaled.__qualname__, Scaled.__module__
    results = [predicted(of, raw, preprocess=None) for of in (one, other, hidden, Changed(1.0))]
    for result, factor in zip(results, (1, 0.5, 0.25, 0.25), strict=True):
        np.testing.assert_array_equal(result, raw.values * np.float32(factor))
    assert len({model_of(of).digest for of in (one, other, hidden, Changed(1.0))}) == 4
    assert model_of(Scaled(1.0)).digest == model_of(one).digest


PARTS_OF_MODELS = {
    "a default": "def model(of, by=2): return of * by",
    "a default by name": "def model(of, *, by=2): return of * by",
    "a default of a function that is called": "def f(of, by=2): return of * by\ndef model(of): return f(of)",
    "a function within": "def model(of):\n    def f(x): return x * 2\n    return f(of)",
    "one of some constants": "def model(of): return of * (1 in {5, 7, 2})",
    "a number": "BY = 2\ndef model(of): return of * BY",
    "a list": "BY = [2]\ndef model(of): return of * BY[0]",
    "a dict of functions": "def f(of): return of * 2\nBY = {'f': f}\ndef model(of): return BY['f'](of)",
    "an array": "import numpy as np\nBY = np.array([2])\ndef model(of): return of * BY",
    "an object": "class C:\n    def __init__(self): self.by = 2\nBY = C()\ndef model(of): return of * BY.by",
    "an object's code": "class C:\n    def __call__(self, of): return of * 2\nf = C()\ndef model(of): return f(of)",
    "a tensor": "import torch\nBY = torch.tensor([2])\ndef model(of): return of * BY",
    "a function of a package": "from numpy import atleast_2d as f\ndef model(of): return f(of)",
    "functions that call each other": (
        "def f(of): return g(of)\ndef g(of): return of * 2 if len(of) else f(of)\ndef model(of): return f(of)"
    ),
    "a network": "import torch\nnet = torch.nn.Threshold(2, 0)\ndef model(of): return net(of)",
    "a partial": "from functools import partial\ndef f(of, by): return of * by\nmodel = partial(f, by=2)",
    "a function in a partial": (
        "from functools import partial\ndef g(of): return of * 2\ndef f(of, by): return by(of)\n"
        "model = partial(f, by=g)"
    ),
    "a partial that is used": (
        "from functools import partial\ndef f(of, by): return of * by\ng = partial(f, by=2)\n"
        "def model(of): return g(of)"
    ),
    "a cell": "def made(by):\n    def f(of): return of * by\n    return f\nmodel = made(2)",
    "a function in a cell": (
        "def g(of): return of * 2\ndef made(by):\n    def f(of): return by(of)\n    return f\nmodel = made(g)"
    ),
    "a decorator": (
        "import functools\ndef twice(f):\n    @functools.wraps(f)\n    def g(of): return f(of) * 2\n    return g\n"
        "@twice\ndef model(of): return of"
    ),
    "what is decorated": "import torch\n@torch.no_grad()\ndef model(of): return of * 2",
    "a cached function": "import functools\n@functools.cache\ndef by(): return 2\ndef model(of): return of * by()",
    "an attribute of a class": "class C:\n    by = 2\n    def __call__(self, of): return of * self.by\nmodel = C()",
    "a property": (
        "class C:\n    @property\n    def by(self): return 2\n"
        "    def __call__(self, of): return of * self.by\nmodel = C()"
    ),
    "a cached property": (
        "import functools\nclass C:\n    @functools.cached_property\n    def by(self): return 2\n"
        "    def __call__(self, of): return of * self.by\nmodel = C()"
    ),
    "a static method": (
        "class C:\n    @staticmethod\n    def f(of): return of * 2\n"
        "    def __call__(self, of): return self.f(of)\nmodel = C()"
    ),
    "a base class": (
        "class B:\n    def f(self, of): return of * 2\nclass C(B):\n"
        "    def __call__(self, of): return self.f(of)\nmodel = C()"
    ),
    "a method": "class C:\n    def f(self, of): return of * 2\nmodel = C().f",
}
"""Code of a model that multiplies by 2 in some way."""


@pytest.mark.parametrize("text", PARTS_OF_MODELS.values(), ids=PARTS_OF_MODELS.keys())
def test_all_that_a_function_is_made_of_counts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the 2 of a module becomes a 3, the model is another one, and without an edit it is the same."""
    digests = []
    for edited in (text, text, text.replace("2", "3")):
        module = types.ModuleType("of_a_user")
        module.__file__ = "of_a_user.py"
        monkeypatch.setitem(sys.modules, "of_a_user", module)
        exec(compile(edited, module.__file__, "exec"), module.__dict__)
        digests.append(digest_of_function(module.model))
    assert digests[0] == digests[1] != digests[2]


def test_what_an_object_says_of_itself_is_believed() -> None:
    """An object that tells dask what it is, is compared by that alone."""

    class Told:
        def __init__(self, word: str, other: int) -> None:
            self.word, self.other = word, other

        def __dask_tokenize__(self) -> str:
            return self.word

        def __call__(self, of: Any) -> Any:
            return of * self.other

    assert digest_of_function(Told("a", 1)) == digest_of_function(Told("a", 2)) != digest_of_function(Told("b", 1))


def test_a_network_that_cannot_be_looked_into_is_compared_by_its_pickle() -> None:
    """A module whose parameters cannot be listed is another one if its weights are."""

    class Packed(torch.nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(weight))

        def named_parameters(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("packed")

    assert digest_of_module(Packed(1.0)) != digest_of_module(Packed(2.0))


def test_the_code_of_a_function_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of those that it calls, if they were edited since; and it is the same in another process."""
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for factor in (2, 3):
        text = f"def double(of):\n    return of * {factor}\n\n\ndef model(of):\n    return double(of) + 1\n"
        (tmp_path / f"of_a_user{factor}.py").write_text(text)
        module = importlib.import_module(f"of_a_user{factor}")
        module.__name__ = "of_a_user"
        module.model.__module__ = module.double.__module__ = "of_a_user"
        monkeypatch.setitem(sys.modules, "of_a_user", module)
        digests.append(model_of(module.model).digest)
    assert digests[0] != digests[1]
    parts = [text for text in PARTS_OF_MODELS.values() if "torch" not in text]  # which takes seconds to import
    for i, text in enumerate(parts):
        (tmp_path / f"part{i}.py").write_text(text)
    code = (
        "import of_a_user2; from liver_dask.prediction import models; print(models.model_of(of_a_user2.model).digest)\n"
        "import importlib; from liver_dask.prediction.digests import digest_of_function\n"
        f"for i in range({len(parts)}):\n"
        "    print(i, digest_of_function(importlib.import_module(f'part{i}').model))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONHASHSEED": seed},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_weights_of_other_types(network: Any, raw: xr.DataArray) -> None:
    """A network of half or double precision gets its own type."""
    expected = predicted(network, raw)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 0.05)):
        np.testing.assert_allclose(predicted(network.to(dtype), raw), expected, atol=tolerance)


def test_two_models_in_one_computation_are_loaded_once_each(raw: xr.DataArray) -> None:
    """Although their blocks come in turn."""
    models._loaded.forget()
    models._loaded.loads = 0
    one, other = (ld.predict(Scaled(of), raw, block=BLOCK, halo=HALO, dtype="float32") for of in (1.0, 2.0))
    np.testing.assert_array_equal((other - one).compute(scheduler="threads"), raw)
    assert models._loaded.loads == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_without_the_code_of_its_training(
    raw: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch_em saves of the loaders may be of a notebook; the weights are all that is needed."""

    def of_a_notebook(of: Any) -> Any:
        return of

    of_a_notebook.__module__, of_a_notebook.__qualname__ = "__main__", "of_a_notebook"
    monkeypatch.setattr(sys.modules["__main__"], "of_a_notebook", of_a_notebook, raising=False)
    kwargs = {"in_channels": 1, "out_channels": 1, "kernel_size": 1}
    layer = torch.nn.Conv3d(**kwargs)
    init = {"model_class": "torch.nn.Conv3d", "model_kwargs": kwargs, "train_dataset": [of_a_notebook]}
    (tmp_path / "m").mkdir()
    torch.save({"model_state": layer.state_dict(), "init": init}, tmp_path / "m" / "best.pt")
    monkeypatch.undo()
    np.testing.assert_array_equal(predicted(tmp_path / "m", raw), predicted(layer, raw))
