"""Mean and standard deviation of an image, from the tables of its store."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.errors import InvalidArgumentError
from ..core.kinds import RAW
from ..core.places import Named, ObjectPath, place_of
from ..store.identity import has_means
from ..store.record import layout_of, open_record, read_statistics


def image_statistics(
    store: Named, name: str = RAW, *, storage_options: Mapping[str, Any] | None = None
) -> tuple[float, float]:
    """Return mean and standard deviation of an image of a store, for `predict(preprocess=...)`.

    They are those of all voxels of the chunks that hold tissue, from the store's tables: no voxel is read.

    Args:
        store: The path of a complete store, or its address in object storage.
        name: The variable.
        storage_options: fsspec's options for an address in object storage.

    Returns:
        The mean and the standard deviation.

    Raises:
        NotDownloadedError: The store is not complete. (RuntimeError)
        InvalidArgumentError: It is no path, there is no such variable, it is a mask, or all of it is 0. (ValueError)
    """
    if not isinstance(store, str | os.PathLike | ObjectPath):
        raise InvalidArgumentError(
            f"store is a {type(store).__name__}; give the path of a store, whose tables have the numbers; those of an "
            "array are (raw.mean(), raw.std())."
        )
    place = place_of(store, storage_options)
    record = open_record(place)
    known = record["variables"]
    if name not in known or not has_means(known[name]):
        raise InvalidArgumentError(
            f"{place} has no image {name!r}; it has {', '.join(of for of in known if has_means(known[of])) or 'none'}."
        )
    layout = layout_of(record)
    means, deviations, nonzero = (read_statistics(place, name, of).astype(float) for of in ("mean", "std", "nonzero"))
    lengths = [
        np.minimum(np.arange(0, length, chunk) + chunk, length) - np.arange(0, length, chunk)
        for length, chunk in zip(layout.shape, layout.chunks, strict=True)
    ]
    weights = np.einsum("i,j,k->ijk", *lengths) * (nonzero > 0)
    if not weights.any():
        raise InvalidArgumentError(f"{name} of {place} holds nothing but 0.")
    mean = float(np.average(means, weights=weights))
    variance = float(np.average(deviations**2 + (means - mean) ** 2, weights=weights))
    return mean, float(np.sqrt(variance))
