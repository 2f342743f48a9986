"""How a model is run: the blocks that it gets, what is done to voxels before, and to what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape
from ..core.kinds import FOREGROUND
from .digests import digest_of_function

Process = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

LARGEST = {"uint8": 255, "uint16": 65535}
"""What a probability of 1 becomes, for the data types that hold probabilities as integers."""

OUTSIDE = 0.05
"""The share of a block's results beyond 0 and 1 from which on they look like no probabilities."""

ROUNDING = 1e-3
"""How far beyond 0 and 1 a probability may be, of networks that compute in half precision."""


@dataclass(frozen=True)
class Settings:
    """How a model is run; see `predict` for the attributes."""

    block: Shape
    halo: Shape
    ndim: int
    channel: int | None
    preprocess: Process | tuple[float, float] | None
    postprocess: Process | None
    threshold: float | None
    dtype: np.dtype[Any]
    skip_empty: bool

    def prepared(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what the model gets of a block with its halo."""
        if self.preprocess is None:
            return voxels.astype(np.float32)
        if isinstance(self.preprocess, tuple):
            mean, deviation = self.preprocess
            return (voxels.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        return np.asarray(self.preprocess(voxels.copy()))  # others need the same voxels for their halo

    def finished(self, prediction: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what is kept of a prediction (channel, z, y, x) of a block without its halo."""
        if self.channel is None and len(prediction) > 1 and self.postprocess is None:
            raise InvalidArgumentError(f"The model returns {len(prediction)} channels; choose one, such as channel=0.")
        if self.postprocess is not None:
            kept = prediction if self.channel is None else self._one(prediction)
            result = np.asarray(self.postprocess(kept))
            if result.shape != prediction.shape[1:] or result.dtype != self.dtype:
                raise InvalidArgumentError(
                    f"postprocess returns {result.dtype} of {result.shape}; it must return {self.dtype} (the argument "
                    f"dtype) of {prediction.shape[1:]}, the block (z, y, x)."
                )
            return result
        one = self._one(prediction)
        if self.dtype.kind != "f" and np.isnan(one).any():
            raise InvalidArgumentError("The model returns NaN, which is no probability; is the input as in training?")
        if self.threshold is not None:
            return np.where(one >= self.threshold, FOREGROUND, 0).astype(self.dtype)
        largest = LARGEST.get(self.dtype.name)
        return (np.rint(np.clip(one, 0, 1) * largest) if largest else one).astype(self.dtype)

    def cuts_much(self, prediction: npt.NDArray[Any]) -> bool:
        """Return whether results are taken as probabilities, and many of a block (channel, z, y, x) are none."""
        if self.postprocess is not None or self.dtype.name not in LARGEST:
            return False
        one = self._one(prediction)
        return bool(np.mean((one < -ROUNDING) | (one > 1 + ROUNDING)) > OUTSIDE)

    def described(self) -> dict[str, Any]:
        """Return JSON that is equal for equal settings, in every process, as far as functions have the same name."""
        known = {"block": list(self.block), "halo": list(self.halo), "ndim": self.ndim, "dtype": self.dtype.str}
        known |= {"channel": self.channel, "threshold": self.threshold, "skip_empty": self.skip_empty}
        known |= {"preprocess": _named(self.preprocess), "postprocess": _named(self.postprocess)}
        return {key: of for key, of in known.items() if of is not None}

    def _one(self, prediction: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            return prediction[self.channel or 0]
        except IndexError:
            raise InvalidArgumentError(
                f"channel={self.channel}, but the model returns {len(prediction)} channels, counted from 0."
            ) from None


def _named(process: Process | tuple[float, float] | None) -> Any:
    if callable(process):
        return f"{getattr(process, '__name__', type(process).__name__)} {digest_of_function(process)[:16]}"
    return None if process is None else list(process)
