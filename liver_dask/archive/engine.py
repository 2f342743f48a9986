"""The xarray engine `liver_dask`: `xr.open_dataset(url, engine="liver_dask", chunks={})`."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.array.core import normalize_chunks
from dask.base import normalize_token
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from ..core.geometry import DIMS
from .archives import EMPIAR_13356, find_archive
from .dataset import prepare
from .description import Archive
from .lazy.arrays import VolumeArray
from .lazy.lazy_window import LazyWindow
from .reader import Missing


class LiverBackend(BackendEntrypoint):
    """The xarray engine `liver_dask`: `xr.open_dataset(url, engine="liver_dask", chunks={})`.

    It takes the arguments of `open_archive`; the default archive is EMPIAR-13356. With `chunks={}` the variables are
    the same dask arrays as those of `open_archive`. Without `chunks` they are lazy arrays without dask. In both cases
    any number of indexing steps, also with points, is combined into one read.
    """

    description = "Open EMPIAR-13356, or another described archive of slices"
    url = "https://www.ebi.ac.uk/empiar/EMPIAR-13356/"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "archive",
        "shape",
        "labels",
        "chunk_rows",
        "connections",
        "cache_dir",
        "cache_raw_gb",
        "voxel_size_nm",
        "missing",
        "facts",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        archive: Archive | str | os.PathLike[str] = EMPIAR_13356,
        shape: Sequence[int] | None = None,
        labels: str | Iterable[str] | None = None,
        chunk_rows: int | None = None,
        connections: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_raw_gb: float | None = None,
        voxel_size_nm: Sequence[float] | None = None,
        missing: Missing = "raise",
        facts: str | os.PathLike[str] | None = None,
    ) -> xr.Dataset:
        """See `open_archive`."""
        opened = prepare(
            find_archive(archive),
            filename_or_obj,
            shape=shape,
            labels=labels,
            chunk_rows=chunk_rows,
            connections=connections,
            cache_dir=cache_dir,
            cache_raw_gb=cache_raw_gb,
            voxel_size_nm=voxel_size_nm,
            missing=missing,
            facts=facts,
        )
        preferred = {"preferred_chunks": dict(zip(DIMS, opened.block, strict=True))}
        variables = {
            name: _EngineVariable(
                DIMS,
                indexing.LazilyIndexedArray(_BackendWindow(window, opened.block)),
                opened.archive[name].attributes,
                preferred,
            )
            for name, window in opened.windows.items()
        }
        dataset = xr.Dataset(variables, opened.coordinates, opened.attrs)
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables
        return dataset.drop_vars(dropped or [], errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Accept only EMPIAR-13356 at its own URL; any other archive needs `engine="liver_dask"`."""
        return isinstance(filename_or_obj, str) and filename_or_obj.rstrip("/") == EMPIAR_13356.url


_OF_XARRAY = indexing.ExplicitlyIndexed, indexing.ImplicitToExplicitIndexingAdapter


@normalize_token.register(_OF_XARRAY)  # type: ignore[untyped-decorator]  # dask's decorator has no types
def _token(adapter: Any) -> Any:
    """Return the dask token of a variable of the engine: the same wherever and whenever it is opened.

    By default dask derives the token from the pickle, which contains the known versions of the files.
    """
    keys, leaf = [], adapter
    while leaf is not None and not isinstance(leaf, LazyWindow):
        keys.append(getattr(getattr(leaf, "key", None), "tuple", None))
        leaf = getattr(leaf, "lazy" if isinstance(leaf, _BackendWindow) else "array", None)
    if leaf is None:
        return normalize_token.dispatch(object)(adapter)  # a lazy array of another backend
    return leaf.__dask_tokenize__(), normalize_token(keys)


class _BackendWindow(BackendArray):
    """A lazy window of the whole volume with the interface of xarray's backends, and its chunks for dask."""

    def __init__(self, lazy: LazyWindow, block: tuple[int, int, int]) -> None:
        self.lazy = lazy
        self.shape = lazy.shape
        self.dtype = lazy.dtype
        self._block = block

    @property
    def chunked(self) -> VolumeArray:
        """The same dask array as that of `open_archive`."""
        return VolumeArray.of(self.lazy, normalize_chunks(self._block, self.shape))

    def __dask_tokenize__(self) -> Any:
        return self.lazy.__dask_tokenize__()

    def __getitem__(self, key: indexing.ExplicitIndexer) -> npt.NDArray[Any]:
        if isinstance(key, indexing.VectorizedIndexer) and _is_sparse(key.tuple):
            return self.chunked.vindex[key.tuple].compute(scheduler=VolumeArray.__dask_scheduler__)
        outer = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, outer, self.lazy.read_side_by_side)


def _is_sparse(indexes: tuple[npt.NDArray[np.intp], ...]) -> bool:
    """Return whether outer indexing would read more than twice as many voxels as there are points."""
    return math.prod(len(np.unique(index)) for index in indexes) > 2 * math.prod(
        np.broadcast_shapes(*map(np.shape, indexes))
    )


class _EngineVariable(xr.Variable):
    """A variable of the engine; `chunk` gives the dask array of `open_human_liver_em`, with the same indexing.

    For any other lazy array, xarray makes a dask array that passes on one indexing step only, and no points.
    """

    __slots__ = ()

    def chunk(self, *args: Any, **options: Any) -> Any:
        """See `xarray.Variable.chunk`; axes without explicit chunks get chunks that match the archive's files."""
        lazy = self._data
        while isinstance(lazy, indexing.CopyOnWriteArray | indexing.MemoryCachedArray):
            lazy = lazy.array
        if not (isinstance(lazy, indexing.LazilyIndexedArray) and isinstance(lazy.array, _BackendWindow)):
            return super().chunk(*args, **options)
        array: Any = lazy.array.chunked
        for axis, index in reversed(list(enumerate(lazy.key.tuple))):
            array = array[(slice(None),) * axis + (index,)]
        return xr.Variable(self.dims, array, self.attrs, self.encoding).chunk(*args, **options)
