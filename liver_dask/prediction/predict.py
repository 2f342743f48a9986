"""`predict`: a model run over a volume in blocks that overlap, as a lazy variable of the same voxels."""

import warnings
from collections.abc import Sequence
from math import isfinite, prod
from numbers import Real
from operator import index
from typing import Any

import numpy as np
import xarray as xr

from ..archive.lazy.arrays import VolumeArray
from ..archive.lazy.lazy_window import LazyWindow
from ..archive.lazy.window import Window
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, Shape, check_lengths
from ..core.kinds import KINDS, Kind
from ..store.voxels import files_below, voxels_of
from .models import check_device, model_of
from .reader import PredictionReader
from .settings import LARGEST, Process, Settings

MOST_VOXELS = 2**30
"""Maximum number of voxels that a model gets at once: 4 GB as float32."""

STEP = (8, 32, 32)
"""What the lengths (z, y, x) of a block are rounded up to where a smaller one is proposed: networks halve them."""

LARGE = 8 * 256 * 256
"""Voxels of a block, those of the default, up to which nothing is said."""

WASTE = 4
"""How many times more voxels than a proposed block the given one may have before that is said."""


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
    threshold: float | None = None,
    dtype: str | np.dtype[Any] = "uint8",
    kind: Kind | None = None,
    device: str | None = None,
    batch: int = 1,
    skip_empty: bool = True,
) -> xr.DataArray:
    """Run a model over a volume, lazily.

    The model gets blocks with a halo, and each voxel is taken from the block that holds it. If the halo covers the
    model's receptive field, the result does not depend on the blocks (but for the last digits of floating-point
    numbers). All blocks that the model gets have the same shape: beyond the ends of the volume, it is mirrored, without
    its last voxel twice (`reflect` of numpy).

    The result is a variable like any other: slice it, compute it, view it, or keep it beside the image by
    `ld.to_zarr(ds.assign(mito_pred=pred), path)`, on this machine or a cluster, where an interrupted call goes on.
    There, choose blocks that divide the chunks of the store, (8, 256, 256) by default. A process loads the model once,
    and runs it on one thread; the others read meanwhile. Nothing is read or computed but the blocks that hold the
    voxels that are asked for, and there is no graph: also a prediction of the whole liver costs nothing. From an
    archive, each job of 8 slices reads those of the halo, too, twice as many with a halo of 4: if its bytes are slow,
    keep raw in a store first.

    Args:
        model: A torch.nn.Module, whose weights of now are used, whatever becomes of it; the path of a checkpoint folder
            of torch_em, of a TorchScript file, or of one of torch.export (.pt2), which all workers must see; or a
            function of an array (z, y, x) that returns (z, y, x) or (channel, z, y, x).
        raw: The image (z, y, x), such as `ds.raw` of an archive or of a store, or anything made of it by dask.
        block: Voxels (z, y, x) of a block. One that is much larger than the volume is not cut, but warned of.
        halo: Voxels (z, y, x) around a block, on either side, that the model gets, too.
        ndim: 3 if the model takes (batch, 1, z, y, x), 2 if it takes slices (batch, 1, y, x).
        channel: The channel of the prediction to keep. None: the only one; `postprocess` gets all of them.
        preprocess: Mean and standard deviation, by which voxels are standardised (see `image_statistics`; those of each
            block by itself would leave seams); or a function of the voxels (z, y, x) of a block with its halo. None:
            voxels as they are, as float32.
        postprocess: A function of the prediction of a block, (z, y, x) or (channel, z, y, x), that returns (z, y, x) in
            `dtype`; for example, a threshold. None: see `dtype`.
        threshold: The probability from which on a voxel is labelled, above 0 and at most 1, such as 0.5: the result is
            a mask of 0 and 255. For what is no probability, give a function `postprocess`, and `kind="mask"`.
        dtype: Data type of the result. As uint8 or uint16, probabilities of 0 to 1 become 0 to 255 or 65535, and
            what is beyond is cut off; other types keep the values.
        kind: What the result is, `image`, `mask` or `instances`. A mask or instances become a label of the OME-Zarr
            image that a store is, and its pyramid keeps numbers and shares. None: `mask` if there is a threshold, or
            if `dtype` is bool, else `image`.
        device: Name of torch's device. None: on each process a GPU if there is one, else the processor.
        batch: Number of blocks that the model gets at once. As the device, it does not change the result.
        skip_empty: Whether blocks with nothing but 0, also in their halo, are not predicted, and stay 0.

    Returns:
        A lazy DataArray of the same voxels and coordinates. Its attributes are a digest of the model and the settings.

    Raises:
        InvalidArgumentError: An argument cannot be used. Where it depends on what the model returns, this is found when
            the result is computed. (ValueError)
        MissingExtraError: The model needs a package that is not installed. (ImportError)
    """
    _check(raw, ndim, batch, channel, threshold, postprocess)
    dtype = _dtype(dtype)
    if threshold is not None and (postprocess is not None or dtype.name not in LARGEST):
        raise InvalidArgumentError("threshold makes a mask of its own: give neither postprocess nor another dtype.")
    blocks = check_lengths("block", block)
    settings = Settings(
        blocks, _halo(halo, blocks, ndim, batch), ndim, channel, _pair(preprocess), postprocess,
        None if threshold is None else float(threshold), dtype, bool(skip_empty),
    )  # fmt: skip
    known, source = model_of(model), voxels_of("raw", raw)
    _check_waste(blocks, raw.shape)
    if known.kind != "function":
        check_device(device)
    reader = PredictionReader(known, source, settings, batch, device, by_rows=bool(files_below(source)))
    window = LazyWindow(reader, Window.whole(raw.shape), dtype)
    predicted = VolumeArray.of(window, _chunks(reader))
    attributes: dict[str, Any] = {"long_name": "prediction", "kind": _kind(kind, threshold, dtype), "model": str(known)}
    attributes |= {f"model_{key}": of for key, of in settings.described().items()}
    return xr.DataArray(predicted, raw.coords, raw.dims, "prediction", attributes)


def _chunks(reader: PredictionReader) -> tuple[tuple[int, ...], ...]:
    """Return the chunks of a prediction: some blocks along x; all if they are of the same rows of files anyway."""
    z, y, x = reader.settings.block
    sizes = z, y, reader.raw.shape[2] if reader.by_rows else x * reader.batch
    lengths = zip(sizes, reader.raw.shape, strict=True)
    return tuple(tuple(min(size, length - at) for at in range(0, length, size)) for size, length in lengths)


def _check(
    raw: xr.DataArray, ndim: int, batch: int, channel: int | None, threshold: float | None, postprocess: Any
) -> None:
    if not isinstance(raw, xr.DataArray) or raw.dims != DIMS:
        what = f"has dims {raw.dims}" if isinstance(raw, xr.DataArray) else f"is a {type(raw).__name__}"
        raise InvalidArgumentError(f"raw {what}; give a DataArray with dims {DIMS}, such as ds.raw.")
    if raw.dtype.kind not in "biuf":
        raise InvalidArgumentError(f"raw is of {raw.dtype}; a model gets real numbers.")
    if not raw.size > 0:  # also of an array of dask whose shape is not known
        raise InvalidArgumentError(f"raw holds no voxels, or it is not known how many: its shape is {raw.shape}.")
    if ndim not in (2, 3):
        raise InvalidArgumentError(f"ndim={ndim!r} must be 2 or 3: whether the model takes slices or blocks.")
    if type(batch) is not int or batch < 1:
        raise InvalidArgumentError(f"batch={batch!r} must be a number of blocks, at least 1.")
    if channel is not None and (type(channel) is not int or channel < 0):
        raise InvalidArgumentError(f"channel={channel!r} must be the number of a channel, from 0.")
    if threshold is not None and not (isinstance(threshold, Real) and isfinite(threshold)):
        raise InvalidArgumentError(f"threshold={threshold!r} must be a number.")
    if threshold is not None and not 0 < threshold <= 1:
        raise InvalidArgumentError(
            f"threshold={threshold:g} must be a probability, above 0 and at most 1: 127 of 255 is 0.5. A model that "
            "returns logits needs a Sigmoid first."
        )
    if postprocess is not None and not callable(postprocess):
        raise InvalidArgumentError(f"postprocess={postprocess!r} must be a function.")


def _check_waste(block: Shape, volume: tuple[int, ...]) -> None:
    """Warn of a block that is much larger than the volume. It is not cut: a model may take this shape alone."""
    z, y, x = (min(of, -(-length // step) * step) for of, length, step in zip(block, volume, STEP, strict=True))
    if prod(block) > max(WASTE * z * y * x, LARGE):
        warnings.warn(
            f"block={block} is larger than the volume of {volume}, which is mirrored to fill it; with "
            f"block={(z, y, x)} the model has {prod(block) / (z * y * x):.0f} times less to do.",
            stacklevel=3,
        )


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biuf":
        raise InvalidArgumentError(f"dtype={dtype!r} must be a type of real numbers, such as uint8 or float32.")
    return found


def _halo(halo: Sequence[int], block: Shape, ndim: int, batch: int) -> Shape:
    """Return a halo that is not too large; a block with its halo is in memory as it is and as float32."""
    try:
        z, y, x = numbers = tuple(map(index, halo))
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"halo={halo!r} must be 3 whole numbers (z, y, x), each from 0.") from None
    if min(numbers) < 0:
        raise InvalidArgumentError(f"halo={numbers} must be 3 whole numbers (z, y, x), each from 0.")
    if ndim == 2 and z:
        raise InvalidArgumentError(f"halo={numbers}: a model of slices (ndim=2) needs no halo along z; give 0.")
    size = batch * prod(of + 2 * around for of, around in zip(block, numbers, strict=True))
    if size > MOST_VOXELS:
        raise InvalidArgumentError(
            f"batch={batch} blocks of {block} with a halo of {numbers} are {size:,} voxels at once; at most "
            f"{MOST_VOXELS:,} can be, so choose smaller blocks."
        )
    return z, y, x


def _kind(kind: Kind | None, threshold: float | None, dtype: np.dtype[Any]) -> Kind:
    if kind is None:
        return "mask" if threshold is not None or dtype.kind == "b" else "image"
    if kind not in KINDS or (kind == "instances" and dtype.kind not in "iu"):
        raise InvalidArgumentError(f"kind={kind!r} must be one of {', '.join(KINDS)}; instances are whole numbers.")
    return kind


def _pair(preprocess: Any) -> Process | tuple[float, float] | None:
    if preprocess is None or callable(preprocess):
        return preprocess
    mean = 0.0
    try:
        mean, deviation = map(float, preprocess)
    except (TypeError, ValueError):
        deviation = 0.0
    if not (deviation > 0 and isfinite(mean) and isfinite(deviation)):
        raise InvalidArgumentError(
            f"preprocess={preprocess!r} must be a mean and a standard deviation above 0, or a function."
        )
    return mean, deviation
