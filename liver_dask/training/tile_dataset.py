"""A torch dataset of all patches of a box, in order, and the way back: one array from what a network makes of them.

Importing this module needs the extra `train`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch_em.util import ensure_tensor_with_channels

from ..core.errors import InvalidArgumentError
from ..core.geometry import BoundingBox, Shape
from ..core.malloc import keep_memory
from .dataset import Voxels
from .tile_grid import Tile, TileGrid


class TileDataset(torch.utils.data.Dataset[Any]):
    """All patches of a box in order, z slowest and x fastest.

    An item is raw and labels of a whole patch, halo included, as `get_human_liver_em_dataset` gives them; or raw alone
    if there are no labels.

    Args:
        raw: The image.
        labels: One array per class; none for items of raw alone.
        grid: The tiles.
        raw_transform: Function of raw (z, y, x).
        label_transform: Function of labels, (z, y, x), or (classes, z, y, x) if `with_label_channels`.
        bounding_box: The tiled box in the volume.
        with_label_channels: Whether labels have an additional first axis with one channel per class.
        ndim: Number of dimensions of a patch that a network gets: 3, or 2 for patches of one slice.
        dtype: Data type of raw.
        label_dtype: Data type of labels.

    Attributes:
        grid: The tiles; `grid[number]` tells where a patch and its inner part lie.
        shape: Shape (z, y, x) of the tiled box in voxels.
        bounding_box: The tiled box in the volume, (x_min, x_max, y_min, y_max, z_min, z_max).
    """

    def __init__(
        self,
        raw: Voxels,
        labels: tuple[Voxels, ...],
        grid: TileGrid,
        *,
        raw_transform: Callable[[Any], Any],
        label_transform: Callable[[Any], Any],
        bounding_box: BoundingBox,
        with_label_channels: bool,
        ndim: int,
        dtype: torch.dtype,
        label_dtype: torch.dtype,
    ) -> None:
        self.raw, self.labels, self.grid = raw, labels, grid
        self.raw_transform, self.label_transform = raw_transform, label_transform
        self.with_label_channels = with_label_channels
        self.ndim, self.dtype, self.label_dtype = ndim, dtype, label_dtype
        self.bounding_box = bounding_box
        self.shape: Shape = grid.box.shape
        self._is_first = True

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, index: int) -> Any:
        """Return raw and labels of a patch, transformed: tensors (channels, z, y, x), or (channels, y, x) in 2D."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} tiles")
        if self._is_first and torch.utils.data.get_worker_info():
            keep_memory()  # as for patches of the training
        self._is_first = False
        window = self.grid[int(index) % len(self)].window
        raw = self._tensor(self.raw_transform(self._read(self.raw, window)), self.dtype)
        if not self.labels:
            return raw
        classes = [self._read(label, window) for label in self.labels]
        labels = self.label_transform(np.stack(classes) if self.with_label_channels else classes[0])
        return raw, self._tensor(labels, self.label_dtype)

    def assemble(self, predictions: Iterable[Any], out: Any = None) -> Any:
        """Join the predictions of a network to one array; each voxel comes from the inner part of one tile.

        Args:
            predictions: What the network gives for all patches, in their order: arrays or tensors on any device, either
                batches (n, channels, z, y, x) of any size or patches (channels, z, y, x); without z if `ndim` is 2.
                A generator is asked for the next one when the one before is written and no longer held.
            out: Where to write instead of a new array: a numpy or Zarr array (channels, z, y, x), or anything with
                `out[window] = part`, where `window` is four slices and `part` a numpy array. Parts do not overlap,
                and are written one after the other.

        Returns:
            `out`, or a new numpy array (channels, z, y, x) of the predictions' dtype, with `shape` for (z, y, x).

        Raises:
            InvalidArgumentError: There are fewer or more predictions than tiles, or one has another shape than the
                patches. What was written to `out` before stays there. (ValueError)
        """
        channels, number = None, 0
        for prediction in self._one_by_one(predictions):
            if number == len(self):
                raise InvalidArgumentError(
                    f"There are more predictions than the {len(self)} tiles; give one for each patch, in order."
                )
            expected = (channels or prediction.shape[0], *self.grid.patch[3 - self.ndim :])
            if tuple(prediction.shape) != expected:
                raise InvalidArgumentError(
                    f"Prediction {number} has the shape {tuple(prediction.shape)}, but {expected} is expected: "
                    f"channels, and the patch with its halo."
                )
            tile = self.grid[number]
            part = self._inner(prediction, tile)
            del prediction  # else it would be held while the next one is computed
            channels = part.shape[0]
            if not number:
                out = self._checked(out, part)
            out[(slice(None), *tile.target)] = part
            del part  # of the CPU's memory, it is a view of the batch
            number += 1
        if number < len(self):
            raise InvalidArgumentError(
                f"There are predictions for {number} of {len(self)} tiles; give one for each patch, in order."
            )
        return out

    def _read(self, array: Voxels, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        voxels = array[window]
        return np.pad(voxels, self.grid.padding, "reflect") if np.any(self.grid.padding) else voxels

    def _tensor(self, voxels: Any, dtype: torch.dtype) -> torch.Tensor:
        if self.ndim == 2 and voxels.ndim == 4:
            voxels = voxels[:, 0]  # classes of one slice
        return ensure_tensor_with_channels(voxels, ndim=self.ndim, dtype=dtype)

    def _one_by_one(self, predictions: Iterable[Any]) -> Iterator[Any]:
        """Yield predictions of single patches; nothing is held while the next one is computed."""
        for batch in predictions:
            ndim = getattr(batch, "ndim", None)
            if ndim == self.ndim + 1:
                yield batch
            elif ndim == self.ndim + 2:
                yield from batch
            else:
                what = type(batch).__name__ if ndim is None else f"an array of shape {tuple(batch.shape)}"
                axes = "channels, z, y, x" if self.ndim == 3 else "channels, y, x"
                raise InvalidArgumentError(f"A prediction must be an array (n, {axes}) or ({axes}), and not {what}.")
            del batch

    def _inner(self, prediction: Any, tile: Tile) -> npt.NDArray[Any]:
        """Return the inner part of a prediction, (channels, z, y, x), as a numpy array."""
        inner = prediction[(slice(None), *tile.inner[3 - self.ndim :])]
        if isinstance(inner, torch.Tensor):
            inner = inner.detach().cpu()
            inner = (inner.float() if inner.dtype == torch.bfloat16 else inner).numpy()  # numpy has no bfloat16
        return np.asarray(inner[:, None] if self.ndim == 2 else inner)

    def _checked(self, out: Any, part: npt.NDArray[Any]) -> Any:
        """Return `out`, or a new array if there is none, for parts with these channels and this dtype."""
        shape = (part.shape[0], *self.shape)
        if out is None:
            return np.empty(shape, part.dtype)
        given = tuple(getattr(out, "shape", shape))
        if given != shape:
            raise InvalidArgumentError(
                f"out has the shape {given}, but the predictions need {shape} (channels, z, y, x)."
            )
        return out
