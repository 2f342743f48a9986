"""`predict`: a model run over a volume in blocks that overlap, as a lazy variable of the same voxels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed

from ..archive.reader import readers_of
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape, check_lengths
from ..store.jobs import client_in_force
from .models import Model, model_of

Process = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

LARGEST = {"uint8": 255, "uint16": 65535}
"""What a probability of 1 becomes, for the data types that hold probabilities as integers."""


@dataclass(frozen=True)
class Settings:
    """How a model is run; see `predict` for the attributes."""

    block: Shape
    halo: Shape
    ndim: int
    channel: int | None
    preprocess: Process | tuple[float, float] | None
    postprocess: Process | None
    dtype: np.dtype[Any]
    skip_empty: bool

    def prepared(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what the model gets of a block with its halo."""
        if self.preprocess is None:
            return voxels.astype(np.float32)
        if isinstance(self.preprocess, tuple):
            mean, deviation = self.preprocess
            return (voxels.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        return np.asarray(self.preprocess(voxels))

    def finished(self, prediction: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what is kept of a prediction (channel, z, y, x) of a block without its halo."""
        if self.channel is None and len(prediction) > 1 and self.postprocess is None:
            raise InvalidArgumentError(f"The model returns {len(prediction)} channels; choose one, such as channel=0.")
        if self.postprocess is not None:
            kept = prediction if self.channel is None else prediction[self.channel]
            result = np.asarray(self.postprocess(kept))
            if result.shape != prediction.shape[1:] or result.dtype != self.dtype:
                raise InvalidArgumentError(
                    f"postprocess returns {result.dtype} of {result.shape}; it must return {self.dtype} (the argument "
                    f"dtype) of {prediction.shape[1:]}, the block (z, y, x)."
                )
            return result
        try:
            one = prediction[self.channel or 0]
        except IndexError:
            raise InvalidArgumentError(
                f"channel={self.channel}, but the model returns {len(prediction)} channels, counted from 0."
            ) from None
        if self.dtype.kind != "f" and np.isnan(one).any():
            raise InvalidArgumentError("The model returns NaN, which is no probability; is the input as in training?")
        largest = LARGEST.get(self.dtype.name)
        return (np.rint(np.clip(one, 0, 1) * largest) if largest else one).astype(self.dtype)


def predict(
    model: Any,
    raw: xr.DataArray,
    *,
    block: Sequence[int] = (8, 256, 256),
    halo: Sequence[int] = (0, 32, 32),
    ndim: int = 3,
    channel: int | None = None,
    preprocess: Process | tuple[float, float] | None = None,
    postprocess: Process | None = None,
    dtype: str | np.dtype[Any] = "uint8",
    device: str | None = None,
    batch: int = 1,
    skip_empty: bool = True,
) -> xr.DataArray:
    """Run a model over a volume, lazily.

    The model gets blocks with a halo, and each voxel is taken from the block that holds it. If the halo covers the
    model's receptive field, the result does not depend on the blocks (but for the last digits of floating-point
    numbers). All blocks that the model gets have the same shape: beyond the ends of the volume, it is mirrored.

    The result is a variable like any other: slice it, compute it, view it, or keep it beside the image by
    `ld.to_zarr(ds.assign(mito_pred=pred), path)`, on this machine or a cluster, where an interrupted call goes on.
    There, choose blocks that are whole chunks of the store, (8, 256, 256) by default. A process loads the model once,
    and runs it on one thread; the others read meanwhile.

    Args:
        model: A torch.nn.Module, whose weights of now are used, whatever becomes of it; the path of a checkpoint folder
            of torch_em, of a TorchScript file, or of one of torch.export (.pt2), which all workers must see; or a
            function of an array (z, y, x) that returns (z, y, x) or (channel, z, y, x).
        raw: The image (z, y, x), such as `ds.raw`.
        block: Voxels (z, y, x) of a block.
        halo: Voxels (z, y, x) around a block, on either side, that the model gets, too.
        ndim: 3 if the model takes (batch, 1, z, y, x), 2 if it takes slices (batch, 1, y, x).
        channel: The channel of the prediction to keep. None: the only one; `postprocess` gets all of them.
        preprocess: Mean and standard deviation, by which voxels are standardised (see `image_statistics`; those of each
            block by itself would leave seams); or a function of the voxels (z, y, x) of a block with its halo. None:
            voxels as they are, as float32.
        postprocess: A function of the prediction of a block, (z, y, x) or (channel, z, y, x), that returns (z, y, x) in
            `dtype`; for example, a threshold. None: see `dtype`.
        dtype: Data type of the result. As uint8 or uint16, probabilities of 0 to 1 become 0 to 255 or 65535, and
            what is beyond is cut off; other types keep the values.
        device: Name of torch's device. None: on each process a GPU if there is one, else the processor.
        batch: Number of blocks that the model gets at once.
        skip_empty: Whether blocks with nothing but 0, also in their halo, are not predicted, and stay 0.

    Returns:
        A lazy DataArray of the same voxels and coordinates. Its attributes name the model by a digest of its weights.

    Raises:
        InvalidArgumentError: An argument cannot be used. Where it depends on what the model returns, this is found when
            the result is computed. (ValueError)
        MissingExtraError: The model needs a package that is not installed. (ImportError)
    """
    _check(raw, ndim, batch, preprocess)
    settings = Settings(
        check_lengths("block", block), _halo(halo, ndim), ndim, channel, _pair(preprocess), postprocess,
        np.dtype(dtype), skip_empty,
    )  # fmt: skip
    known = model_of(model)
    array = raw.data if raw.chunks is not None else raw.chunk("auto").data
    predicted = _array(known, array, settings, device, batch)
    attributes = {
        "long_name": "prediction",
        "kind": "image",
        "model": f"{known.kind} {known.digest}",
        "model_block": list(settings.block),
        "model_halo": list(settings.halo),
    }
    return xr.DataArray(predicted, raw.coords, raw.dims, "prediction", attributes)


def _array(model: Model, raw: da.Array, settings: Settings, device: str | None, batch: int) -> da.Array:
    """Return the dask array of a prediction, in blocks of `batch` blocks along x."""
    z, y, x = settings.block
    sizes = z, y, x * batch
    lengths = [
        tuple(min(size, length - at) for at in range(0, length, size))
        for size, length in zip(sizes, raw.shape, strict=True)
    ]
    token = tokenize(model, raw.name, settings, batch)
    run, cut, sent = delayed(_predicted, pure=True), delayed(getitem, pure=True), _sent(model)
    by_rows = bool(readers_of(raw))  # files of an archive are read over their full width: once for all blocks along x
    parts = np.empty([len(of) for of in lengths], object)
    for i, j in product(*map(range, parts.shape[:2])):
        band: Any = None
        for k in range(parts.shape[2]):
            start = [number * size for number, size in zip((i, j, k), sizes, strict=True)]
            core = tuple(of[number] for of, number in zip(lengths, (i, j, k), strict=True))
            (of_z, of_y, of_x), beyond = _with_halo(start, core, settings, raw.shape)
            if by_rows and band is None:
                band = delayed(raw[of_z, of_y, :])
            voxels = cut(band, (slice(None), slice(None), of_x)) if by_rows else raw[of_z, of_y, of_x]
            name = f"predict-{token}-{i}-{j}-{k}"
            made = run(sent, voxels, settings, beyond, core, device, batch, dask_key_name=name)
            parts[i, j, k] = da.from_delayed(made, core, settings.dtype)
    return da.block(parts.tolist())


def _with_halo(
    start: Sequence[int], core: Sequence[int], settings: Settings, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[tuple[int, int], ...]]:
    """Return the part of the volume that some blocks need, and by how many voxels they go beyond its ends."""
    box, beyond = [], []
    for at, kept, of, halo, length in zip(start, core, settings.block, settings.halo, shape, strict=True):
        begin, end = at - halo, at + -(-kept // of) * of + halo
        box.append(slice(max(begin, 0), min(end, length)))
        beyond.append((max(-begin, 0), max(end - length, 0)))
    return tuple(box), tuple(beyond)


def _predicted(
    model: Model,
    voxels: npt.NDArray[Any],
    settings: Settings,
    beyond: tuple[tuple[int, int], ...],
    core: Shape,
    device: str | None,
    batch: int,
) -> npt.NDArray[Any]:
    """Predict the blocks of one part, next to each other along x."""
    result = np.zeros(core, settings.dtype)
    if settings.skip_empty and not voxels.any():
        return result
    whole = np.pad(voxels, beyond, "reflect")
    places, blocks = [], []
    for place, part in _blocks_in(settings, core):
        block = whole[part]
        if not settings.skip_empty or block.any():
            places.append(place)
            blocks.append(settings.prepared(block))
    if not blocks:
        return result
    inner = tuple(slice(halo, halo + of) for halo, of in zip(settings.halo, settings.block, strict=True))
    for place, prediction in zip(places, model.predict(np.stack(blocks), settings.ndim, device), strict=True):
        out = result[place]
        out[...] = settings.finished(prediction[:, *inner])[tuple(map(slice, out.shape))]
    return result


def _blocks_in(settings: Settings, core: Shape) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield the blocks of a part along x: where they are in it, and in it with its halo."""
    _, _, width = settings.block
    for at in range(0, core[2], width):
        yield (
            (slice(None), slice(None), slice(at, at + width)),
            (slice(None), slice(None), slice(at, at + width + 2 * settings.halo[2])),
        )


def _sent(model: Model) -> Any:
    """Return the model as a task: on a cluster, its weights are sent there once, and not with each task."""
    client = client_in_force() if isinstance(model.content, bytes) else None
    return delayed(client.scatter(model, hash=True) if client else model, traverse=False)


def _check(raw: xr.DataArray, ndim: int, batch: int, preprocess: Any) -> None:
    if not isinstance(raw, xr.DataArray) or raw.dims != DIMS:
        what = f"has dims {raw.dims}" if isinstance(raw, xr.DataArray) else f"is a {type(raw).__name__}"
        raise InvalidArgumentError(f"raw {what}; give a DataArray with dims {DIMS}, such as ds.raw.")
    if not raw.size:
        raise InvalidArgumentError(f"raw holds no voxels: its shape is {raw.shape}.")
    if ndim not in (2, 3):
        raise InvalidArgumentError(f"ndim={ndim!r} must be 2 or 3: whether the model takes slices or blocks.")
    if not isinstance(batch, int) or batch < 1:
        raise InvalidArgumentError(f"batch={batch!r} must be a number of blocks, at least 1.")


def _halo(halo: Sequence[int], ndim: int) -> Shape:
    z, y, x = (length - 1 for length in check_lengths("halo", [length + 1 for length in halo]))
    if ndim == 2 and z:
        raise InvalidArgumentError(f"halo={tuple(halo)}: a model of slices (ndim=2) needs no halo along z; give 0.")
    return z, y, x


def _pair(preprocess: Any) -> Process | tuple[float, float] | None:
    if preprocess is None or callable(preprocess):
        return preprocess
    try:
        mean, deviation = map(float, preprocess)
    except (TypeError, ValueError):
        deviation = 0.0
    if not deviation > 0:
        raise InvalidArgumentError(
            f"preprocess={preprocess!r} must be a mean and a standard deviation above 0, or a function."
        )
    return mean, deviation
