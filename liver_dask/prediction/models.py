"""Models as they are sent to other processes, where each is loaded once.

A model is known by a digest of all that it computes with, so that a store says by which model it was made, and is not
gone on with by another one.
"""

import hashlib
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import numpy as np
import numpy.typing as npt

from ..core.addresses import is_address
from ..core.errors import InvalidArgumentError, LiverDaskError, MissingExtraError, how_to_install
from ..store.broadcast import Sent, of_jobs
from .digests import digest_of_function, digest_of_module

Batch = npt.NDArray[Any]
"""Blocks with their halo: (block, z, y, x)."""

CHECKPOINT = "best.pt"
"""The file in a folder of torch_em that has the weights."""

SUFFIXES = (".pt", ".pth", ".ts", ".pt2")
"""Of files of models; .pt2 is of torch.export."""

WHAT_CAN_BE_LOADED = (
    "give TorchScript (.pt, .pth, .ts), torch.export (.pt2), or the folder of a checkpoint of torch_em; what was saved "
    "as a module or as a state_dict is loaded with torch first, and given as a torch.nn.Module"
)

MOST_LOADED = 4
"""How many models a process keeps loaded: those of one computation, such as some that are averaged."""

BYTES_AT_ONCE = 8 << 20
"""Bytes of a file that are in memory while its digest is made."""

one_at_a_time = threading.RLock()
"""Held by the thread that runs a model. A device, or all cores, run one model fastest; meanwhile other threads read."""


@dataclass(frozen=True)
class Model:
    """What predicts.

    Attributes:
        kind: `module` (a pickled torch.nn.Module), `checkpoint` (a folder of torch_em), `script` (TorchScript),
            `export` (torch.export) or `function` (of arrays).
        content: The pickle, the path, or the function; in a job of a cluster, where its pickle is.
        digest: 64 hexadecimal digits, equal for the same file, or the same weights, attributes and code.
    """

    kind: Literal["module", "checkpoint", "script", "export", "function"]
    content: Any
    digest: str

    def __str__(self) -> str:
        return f"{self.kind} {self.digest}"

    def __dask_tokenize__(self) -> tuple[str, str]:
        return self.kind, self.digest

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model; to jobs of a cluster, weights are sent once, and not with each job."""
        broadcast, content = of_jobs.get(), self.content
        if broadcast and self.kind in ("module", "function") and not isinstance(content, Sent):
            content = broadcast.send(self.digest, self._pickled)
        return Model, (self.kind, content, self.digest)

    def _pickled(self) -> bytes:
        content: bytes = self.content if self.kind == "module" else cloudpickle.dumps(self.content)
        return content

    def predict(self, batch: Batch, ndim: int, device: str | None) -> npt.NDArray[Any]:
        """Run the model on some blocks, on one thread of this process at a time.

        Args:
            batch: The blocks.
            ndim: 2 if the model takes slices, 3 if it takes blocks.
            device: Name of the device; None for the first GPU, or the processor.

        Returns:
            The prediction (block, channel, z, y, x).

        Raises:
            InvalidArgumentError: The model does not return as many voxels as it gets. (ValueError)
        """
        with one_at_a_time:
            if self.kind == "function":
                call = _loaded.get(self, "") if isinstance(self.content, Sent) else self.content
                found = [np.asarray(call(block)) for block in batch]
                result = np.stack([of[None] if of.ndim == 3 else of for of in found])
            else:
                result = _of_torch(_loaded.get(self, _device(device)), batch, ndim, _device(device))
        if result.ndim != 5 or (result.shape[0], *result.shape[2:]) != batch.shape:
            raise InvalidArgumentError(
                f"The model returns an array of {result.shape[1:]} for a block of {batch.shape[1:]}: it must return as "
                "many voxels (z, y, x) as it gets, with or without channels before them."
            )
        return result


def model_of(model: Any) -> Model:
    """Return what predicts.

    Args:
        model: A torch.nn.Module, whose weights of now are kept; the path of a checkpoint folder of torch_em, of a
            TorchScript file (.pt, .ts, .pth) or of one of torch.export (.pt2); or a function of an array (z, y, x).

    Raises:
        InvalidArgumentError: It is none of these, or the path does not exist. (ValueError)
        MissingExtraError: torch is not installed. (ImportError)
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str | os.PathLike):
        if is_address(os.fspath(model)):
            raise InvalidArgumentError(f"{os.fspath(model)} is an address; give a model on this machine.")
        return _of_path(Path(model).absolute())
    if _is_module(model):
        try:
            snapshot = deepcopy(model).cpu().eval()
            return Model("module", cloudpickle.dumps(snapshot), digest_of_module(snapshot))
        except (RuntimeError, TypeError, AttributeError, pickle.PicklingError) as error:  # TorchScript, for example
            raise InvalidArgumentError(
                f"The module {type(model).__name__} cannot be copied or sent ({first_line_of(error)}); save what was "
                "scripted or traced, and give the file."
            ) from error
    if type(model).__module__.startswith("torch."):
        raise InvalidArgumentError(f"model is a {type(model).__name__}; save it, and give the file: .pt or .pt2.")
    if isinstance(model, type):
        raise InvalidArgumentError(f"model is the class {model.__name__}; give an object of it: {model.__name__}(...).")
    if callable(model):
        return Model("function", model, digest_of_function(model))
    raise InvalidArgumentError(
        f"model is a {type(model).__name__}; give a torch.nn.Module, the path of a checkpoint, or a function of arrays."
    )


def _of_path(path: Path) -> Model:
    if path.is_dir():
        checkpoint = path / CHECKPOINT
        if not checkpoint.is_file():
            raise InvalidArgumentError(f"{path} is no checkpoint of torch_em: it has no {CHECKPOINT}.")
        return Model("checkpoint", str(path), _digest_of_file(checkpoint))
    if not path.is_file():
        raise InvalidArgumentError(f"There is no model at {path}.")
    if path.suffix not in SUFFIXES:
        raise InvalidArgumentError(f"{path} is no file of a model: {WHAT_CAN_BE_LOADED}.")
    return Model("export" if path.suffix == ".pt2" else "script", str(path), _digest_of_file(path))


def _is_module(model: Any) -> bool:
    return any(f"{of.__module__}.{of.__qualname__}" == "torch.nn.modules.module.Module" for of in type(model).__mro__)


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(BYTES_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()


class _Loaded:
    """The models that this process has loaded last.

    Attributes:
        loads: How often one was loaded.
    """

    def __init__(self) -> None:
        self.loads = 0
        self._known: dict[tuple[str, str], Callable[..., Any]] = {}

    def forget(self) -> None:
        """Free the memory of the models."""
        self._known.clear()

    def get(self, model: Model, device: str) -> Callable[..., Any]:
        """Return the model on a device. The caller holds `one_at_a_time`."""
        key = model.digest, device
        found = self._known.pop(key, None)
        if found is None:
            while len(self._known) >= MOST_LOADED:
                del self._known[next(iter(self._known))]  # before the next one is loaded
            found = _load(model, device)
            self.loads += 1
        self._known[key] = found
        return found


_loaded = _Loaded()


def _load(model: Model, device: str) -> Callable[..., Any]:
    content = model.content.get() if isinstance(model.content, Sent) else model.content
    if model.kind == "function":
        function: Callable[..., Any] = cloudpickle.loads(content)
        return function
    torch = _torch()
    _check_unchanged(model)
    try:
        if model.kind == "module":
            module = cloudpickle.loads(content)
        elif model.kind == "checkpoint":
            module = _of_checkpoint(Path(str(content)) / CHECKPOINT)
        elif model.kind == "script":
            with warnings.catch_warnings(action="ignore"):  # that it is deprecated is known, and it is still used
                module = torch.jit.load(content, map_location="cpu")
        else:
            module = torch.export.load(content).module()
    except LiverDaskError:
        raise
    except Exception as error:  # torch raises arbitrary errors for files that are no models
        where = content if isinstance(content, str) else "the model"
        raise InvalidArgumentError(
            f"{where} cannot be loaded ({first_line_of(error)}): {WHAT_CAN_BE_LOADED}."
        ) from error
    if model.kind != "export":  # which has no modes any more
        module = module.eval()
    return module.to(device)


def _of_checkpoint(file: Path) -> Any:
    """Return the network of a checkpoint of torch_em with its weights.

    A checkpoint also has the loaders of the training, with functions of a script or notebook that may not be there.
    """
    torch = _torch()
    saved = torch.load(file, map_location="cpu", weights_only=False, pickle_module=_Tolerant)
    init = saved["init"]
    module, _, name = init["model_class"].rpartition(".")
    try:
        network = getattr(import_module(module), name)(**init["model_kwargs"])
    except ImportError as error:
        advice = f": {how_to_install('train')}" if "torch_em" in module else ""
        raise MissingExtraError(f"{file} is of {module}.{name}, which is not installed{advice}.") from error
    state = {key.removeprefix("_orig_mod."): of for key, of in saved["model_state"].items()}  # of compiled networks
    network.load_state_dict(state)
    return network


class _Tolerant:
    """What torch needs of the module `pickle`, but classes and functions that are not there are left out."""

    class Unpickler(pickle.Unpickler):
        """See `pickle.Unpickler`."""

        def find_class(self, module: str, name: str) -> Any:
            """Return a class or function, or what stands for one that is not there."""
            try:
                return super().find_class(module, name)
            except (AttributeError, ImportError):
                return _Absent


class _Absent:
    """Stands for an object whose class is not there."""

    def __new__(cls, *_: Any, **_options: Any) -> "_Absent":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _check_unchanged(model: Model) -> None:
    """Raise InvalidArgumentError if the file of a model is not the one whose digest the prediction is named by."""
    if model.kind in ("module", "function"):
        return
    path = Path(model.content)
    path = path / CHECKPOINT if model.kind == "checkpoint" else path
    if not path.is_file() or _digest_of_file(path) != model.digest:
        raise InvalidArgumentError(f"{path} is not the model that it was, or not on this machine; predict anew.")


def _of_torch(module: Callable[..., Any], batch: Batch, ndim: int, device: str) -> npt.NDArray[Any]:
    torch = _torch()
    count, depth, *plane = batch.shape
    blocks = torch.from_numpy(np.ascontiguousarray(batch, np.float32)).to(device, _dtype_of(module))
    shape = (count, 1, depth, *plane) if ndim == 3 else (count * depth, 1, *plane)
    with torch.inference_mode():
        try:
            result = module(blocks.reshape(shape))
        except Exception as error:  # a network raises arbitrary errors for a shape that it does not take
            raise InvalidArgumentError(
                f"The model fails for an array of shape {shape} ({first_line_of(error)}). Is ndim={ndim} right? What "
                "was traced or exported may take one block with its halo, and one batch, alone."
            ) from error
        if not isinstance(result, torch.Tensor):
            raise InvalidArgumentError(f"The model returns a {type(result).__name__}; it must return one tensor.")
        if ndim == 2 and result.ndim == 4:
            result = result.reshape(count, depth, *result.shape[1:]).movedim(2, 1)
        return np.asarray(result.float().cpu().numpy())


def _dtype_of(module: Any) -> Any:
    """Return the type of a network's weights, which its input must have; float32 if it has none."""
    weights = (of.dtype for of in module.parameters()) if hasattr(module, "parameters") else ()
    return next((of for of in weights if of.is_floating_point), _torch().float32)


def _device(name: str | None) -> str:
    return name or ("cuda" if _torch().cuda.is_available() else "cpu")


def check_device(name: str | None) -> None:
    """Raise InvalidArgumentError if torch has no such device; whether the machine has it is known to its worker."""
    if name is None:
        return
    try:
        _torch().device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(f"device={name!r} is no device of torch; give cpu, cuda or cuda:1.") from error


def first_line_of(error: Exception) -> str:
    """Return the message of another library's error, without what comes after its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[-1] if lines and lines[0].startswith("The following operation failed") else (lines or [""])[0]
    return f"{type(error).__name__}: {told[:200]}" if told else type(error).__name__


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"This model needs torch: {how_to_install('train')}.") from None
    return torch
