"""Models as they are sent to other processes, where each is loaded once.

A model is known by a digest of its weights, so that a store says by which model it was made, and is not gone on with by
another one.
"""

import hashlib
import os
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from ..core.errors import InvalidArgumentError, MissingExtraError, how_to_install
from ..store.broadcast import Sent, of_jobs

Batch = npt.NDArray[Any]
"""Blocks with their halo: (block, z, y, x)."""

CHECKPOINT = "best.pt"
"""The file in a folder of torch_em that has the weights."""

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
        digest: 64 hexadecimal digits that are those of the same weights.
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
        return _of_path(Path(model).absolute())
    if _is_module(model):
        snapshot = deepcopy(model).cpu().eval()
        return Model("module", cloudpickle.dumps(snapshot), _digest_of_module(snapshot))
    if callable(model):
        return Model("function", model, hashlib.sha256(tokenize(model).encode()).hexdigest())
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
    return Model("export" if path.suffix == ".pt2" else "script", str(path), _digest_of_file(path))


def _is_module(model: Any) -> bool:
    return any(f"{of.__module__}.{of.__qualname__}" == "torch.nn.modules.module.Module" for of in type(model).__mro__)


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(BYTES_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()


def _digest_of_module(module: Any) -> str:
    """Return a digest of the structure and the weights; the pickle of the same module differs from time to time."""
    digest = hashlib.sha256(f"{type(module).__qualname__}\n{module}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


class _Loaded:
    """The model that this process has loaded last.

    Attributes:
        loads: How often one was loaded.
    """

    def __init__(self) -> None:
        self.loads = 0
        self.forget()

    def forget(self) -> None:
        """Free the memory of the model."""
        self._key: tuple[str, str] | None = None
        self._module: Callable[..., Any] | None = None

    def get(self, model: Model, device: str) -> Callable[..., Any]:
        """Return the model on a device. The caller holds `one_at_a_time`."""
        if self._module is None or self._key != (model.digest, device):
            self.forget()  # before the next one is loaded
            self._module = _load(model, device)
            self.loads += 1
            self._key = model.digest, device
        return self._module


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
            from torch_em.util import load_model

            module = load_model(model.content, device=device)
        elif model.kind == "script":
            module = torch.jit.load(model.content, map_location=device)
        else:
            module = torch.export.load(model.content).module()
    except (RuntimeError, OSError, KeyError, AttributeError, ImportError, EOFError) as error:
        where = model.content if isinstance(model.content, str) else "the model"
        raise InvalidArgumentError(f"{where} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if model.kind != "export":  # which has no modes any more
        module = module.eval()
    return module.to(device)


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
    blocks = torch.from_numpy(np.ascontiguousarray(batch, np.float32)).to(device)
    shape = (count, 1, depth, *plane) if ndim == 3 else (count * depth, 1, *plane)
    with torch.inference_mode():
        result = module(blocks.reshape(shape))
        if not isinstance(result, torch.Tensor):
            raise InvalidArgumentError(f"The model returns a {type(result).__name__}; it must return one tensor.")
        if ndim == 2 and result.ndim == 4:
            result = result.reshape(count, depth, *result.shape[1:]).movedim(2, 1)
        return np.asarray(result.float().cpu().numpy())


def _device(name: str | None) -> str:
    return name or ("cuda" if _torch().cuda.is_available() else "cpu")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"This model needs torch: {how_to_install('train')}.") from None
    return torch
