"""`open_human_liver_em`: the archive as one lazy, labelled Dataset; and the same as an xarray engine.

Nothing is asked of the archive until voxels are needed.
"""

import logging
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.array.core import normalize_chunks
from dask.base import normalize_token
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from ..core import volume
from ..core.config import setting
from ..core.errors import FormatError, InvalidArgumentError, LiverDaskError, SliceNotFoundError
from .formats.png import MaskRows, PngSlice
from .formats.tiff import StripIndex, TiffSlice
from .lazy.arrays import LazyWindow, Selection, VolumeArray, Window, check_kind_of_arrays
from .lazy.leaves import leaves_in
from .remote.cache import FolderCache, MemoryCache
from .remote.files import RemoteFile, archive_url, folder_exists, is_zarr, list_folders, told_zarr
from .remote.transport import Source
from .remote.versions import MISSING, Identity, note_file

log = logging.getLogger(__name__)

Missing = Literal["raise", "zeros"]
T = TypeVar("T")

MEMORY_LIMIT = 256 << 20
"""Bytes of strip indexes, mask files and checkpoints that a process keeps."""

BYTES_OF_ROWS = 32 << 20
"""Bytes of a mask's pixels that are in memory while points are picked out of them."""


@dataclass(frozen=True)
class SlicePart:
    """What one process found out about a slice, for others: so that it is fetched and decoded once.

    Attributes:
        version: Of its file.
        content: Decoded rows of a mask, or the strip index of raw; nothing of a slice that does not exist, or of which
            the file has no such index.
    """

    version: Identity
    content: MaskRows | StripIndex | None

    def __sizeof__(self) -> int:
        """Bytes, as dask asks for them."""
        return object.__sizeof__(self) + (self.content.nbytes if self.content else 0)


@dataclass(frozen=True)
class VolumeReader:
    """Reads voxels of one variable; small, picklable, equal for equal voxels.

    Attributes:
        source: The archive.
        variable: `raw` or a label.
        shape: Voxels (z, y, x) of the whole volume.
        missing: `raise`, or `zeros` where slices whose files do not exist are to be empty.
    """

    source: Source
    variable: str
    shape: tuple[int, int, int]
    missing: Missing = "raise"

    slices_at_once = 1  # each is a file

    def __call__(
        self,
        z: Selection,
        y: Selection,
        x: Selection,
        out: npt.NDArray[Any],
        prepared: Sequence[SlicePart] = (),
    ) -> None:
        """Read voxels of the given indexes, none of them empty, into `out`: (len(z), len(y), len(x)).

        Args:
            z: Slices.
            y: Rows.
            x: Columns.
            out: Is filled.
            prepared: What `prepare` gave for each slice, or nothing.
        """
        if _is_run(y) and _is_run(x):
            rows, columns = np.arange(y[0], y[-1] + 1), slice(int(x[0]), int(x[-1]) + 1)
            for i, number in enumerate(z):
                self._read_window(int(number), rows, columns, out[i], *prepared[i : i + 1])
            return
        rows, place_of_row = np.unique(np.asarray(y, np.intp), return_inverse=True)
        columns = slice(int(min(x)), int(max(x)) + 1)
        picked = np.ix_(place_of_row, np.asarray(x, np.intp) - columns.start)
        for i, number in enumerate(z):
            pixels = np.empty((len(rows), columns.stop - columns.start), out.dtype)
            self._read_window(int(number), rows, columns, pixels, *prepared[i : i + 1])
            out[i] = pixels[picked]

    def prepare(self, z: int, start: int, stop: int) -> SlicePart:
        """What reading rows `start` to `stop` of a slice takes, for any process."""
        rows = np.arange(start, stop)
        part = self._use_slice(z, rows, lambda item: item.prepare(start, stop), lambda: None)
        version = self.source.versions.get(self._url(z))
        assert version
        return SlicePart(version, part)

    def read_points(self, z: int, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp], out: npt.NDArray[Any]) -> None:
        """Read voxels of one slice, in any order and repeated or not, into `out`: (points,)."""
        rows = np.unique(y)

        def read(item: TiffSlice | PngSlice) -> None:
            if isinstance(item, TiffSlice):
                item.read_points(y, x, out)
            else:
                _read_points_by_rows(item, y, x, out)

        self._read_slice(z, rows, read, out)

    def _read_window(
        self,
        z: int,
        rows: npt.NDArray[np.intp],
        columns: slice,
        out: npt.NDArray[Any],
        part: SlicePart | None = None,
    ) -> None:
        content = part.content if part else None
        if part:
            self.source.versions.note(self._url(z), part.version)
        if part and isinstance(content, MaskRows):
            note_file(self._url(z), part.version)
            content.read(rows, columns, out)
            return

        def read(item: TiffSlice | PngSlice) -> None:
            if isinstance(content, StripIndex) and isinstance(item, TiffSlice):
                item.adopt(content)
            item.read(rows, columns, out)

        self._read_slice(z, rows, read, out)

    def describe(self) -> str:
        """Which variable of which source; how the source is asked does not change its voxels."""
        return f"{self.variable} of {self.shape} at {self.source.url}"

    @property
    def variant(self) -> str:
        """What becomes of slices that do not exist; where they do, it is the same volume."""
        return self.missing

    def origin(self) -> dict[str, Any]:
        """The same, as JSON; see `open_origin`."""
        return {"source": self.source.url, "shape": list(self.shape), "variable": self.variable}

    @property
    def files(self) -> str:
        """How the URLs of the slices begin."""
        return f"{self.source.url}/{volume.folder_of(self.variable)}/"

    def look(self, z: int) -> None:
        """Find out whether the file of a slice is there and as expected, without reading a pixel."""
        try:
            self._item(z).look()
        except LiverDaskError as error:
            if not self._is_missing(z, error):
                raise self._located(error, z, np.arange(self.shape[1])) from error

    @contextmanager
    def foreseeing(self, z: Selection, y: Selection) -> Iterator[None]:
        """Meanwhile these rows of these slices will be read, all slices side by side, a part at a time.

        So more is fetched with a request, and nothing that is known of the files is forgotten in between.
        """
        items = [self._item(int(number)) for number in z]
        for item in items:
            item.foreseen = int(max(y)) + 1
        try:
            yield
        finally:
            for item in items:
                item.foreseen = 0

    def _key(self, z: int) -> tuple[str, Source, tuple[int, int, int], str]:
        return self.source.versions.id, self.source, self.shape, volume.file_of_slice(self.variable, z)

    def _url(self, z: int) -> str:
        return f"{self.source.url}/{volume.file_of_slice(self.variable, z)}"

    def _item(self, z: int) -> TiffSlice | PngSlice:
        return _memory.get_or_make(self._key(z), lambda: self._open_slice(self._key(z)[-1]))

    def _read_slice(
        self,
        z: int,
        rows: npt.NDArray[np.intp],
        read: Callable[[TiffSlice | PngSlice], None],
        out: npt.NDArray[Any],
    ) -> None:
        """Have `read` fill `out` with what it wants of some ascending rows, or fill it with zeros."""
        self._use_slice(z, rows, read, lambda: out.fill(0))

    def _use_slice(
        self,
        z: int,
        rows: npt.NDArray[np.intp],
        use: Callable[[TiffSlice | PngSlice], T],
        use_nothing: Callable[[], T],
        *,
        anew: bool = False,
    ) -> T:
        """What is made of some rows of a slice, or of one that does not exist and is to be empty."""
        try:
            if self.source.versions.get(self._url(z)) == MISSING:
                note_file(self._url(z), MISSING)
                return use_nothing()
            item = self._item(z)
            used = use(item)
        except LiverDaskError as error:
            _memory.drop(self._key(z))  # what was kept of a file that failed or changed is not used again
            if self._is_missing(z, error):
                note_file(self._url(z), MISSING)
                return use_nothing()
            if self._may_pass(error, z) and not anew:
                return self._use_slice(z, rows, use, use_nothing, anew=True)
            raise self._located(error, z, rows) from error
        _memory.put(self._key(z), item)
        version = self.source.versions.get(self._url(z))
        assert version  # or nothing was read
        note_file(self._url(z), version)
        return used

    def _may_pass(self, error: LiverDaskError, z: int) -> bool:
        """Evict a file that cannot be decoded from the caches; whether it may be read when fetched anew."""
        if isinstance(error, SliceNotFoundError):
            return self.missing == "zeros" and self._exists(z)
        if not isinstance(error, FormatError):
            return False
        if self.source.cache_dir:
            FolderCache(self.source.cache_dir).drop(self._url(z))
        return self.source.is_http  # the line, or something on it, may have changed a byte

    def _is_missing(self, z: int, error: LiverDaskError) -> bool:
        """Whether an error means that a slice is to be taken for zeros: there is no such file, but there is its folder.

        A wrong address must not give a volume of zeros, nor one wrong answer a slice of zeros: so the folder has to be
        seen, and the file is asked for once more.
        """
        if self.missing != "zeros" or not isinstance(error, SliceNotFoundError):
            return False
        if self.source.versions.get(self._url(z)) == MISSING:  # another thread has found out
            return True
        if not self._folder_was_seen(z) or self._exists(z):
            return False
        self.source.versions.note(self._url(z), MISSING)
        log.warning("%s does not exist; slice %d of %s is taken for zeros", self._url(z), z, self.variable)
        return True

    def _folder_was_seen(self, z: int) -> bool:
        """Whether the folder is listed, or holds another slice: not every server lists its folders."""
        if self.source.versions.has_read_below(self.files) or folder_exists(self.source, self.files):
            return True
        others = {0, z - 1, z + 1, self.shape[0] - 1} & set(range(self.shape[0])) - {z}
        return any(self._exists(other) for other in sorted(others))

    def _exists(self, z: int) -> bool:
        try:
            return len(RemoteFile(self.source, self._key(z)[-1]).fetch(0, 1)) > 0
        except SliceNotFoundError:
            return False

    def _open_slice(self, path: str) -> TiffSlice | PngSlice:
        file = RemoteFile(self.source, path)
        folder = FolderCache(self.source.cache_dir) if self.source.cache_dir else None
        kind = TiffSlice if self.variable == volume.RAW else PngSlice
        return kind(file, *self.shape[1:], folder)

    def _located(self, error: LiverDaskError, z: int, rows: npt.NDArray[np.intp]) -> LiverDaskError:
        """The same error, saying which slice and rows it cost, and for a missing class which ones there are."""
        text = f"{self.variable}, slice {z}, rows {rows[0]}-{rows[-1]}: {error}"
        if isinstance(error, SliceNotFoundError):
            there = list_folders(self.source)
            is_lost = bool(there) and volume.folder_of(self.variable) not in there
            if is_lost:
                text += f" The archive has these folders: {', '.join(there)}."
            if volume.folder_of(self.variable) not in there and is_zarr(self.source):
                text += f" {self.source.url} {told_zarr(self.source.url)}"
            elif self.missing == "zeros":
                text += f" Its folder {self.files} was not seen either, so that it is not taken for zeros."
            elif is_lost:
                text += " Correct the address, or the label."
            else:
                text += ' Open the source with missing="zeros" (--missing zeros) if such slices are to be empty.'
        return type(error)(text)


def open_human_liver_em(
    source: str | os.PathLike[str] = volume.EMPIAR_URL,
    *,
    shape: Sequence[int] = volume.SHAPE,
    labels: str | Iterable[str] = volume.LABELS,
    chunk_rows: int | None = None,
    connections: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_raw_gb: float | None = None,
    voxel_size_nm: Sequence[float] | None = None,
    missing: Missing = "raise",
) -> xr.Dataset:
    """Open the human-liver EM volume EMPIAR-13356, or an archive laid out like it, without asking it for anything.

    Voxels are fetched where they are needed, and only the files' parts that hold them: a window of raw costs the strip
    index of its slice (once) and the strips of its rows; a window of a mask costs the file up to its last row. Indexing
    composes: `ds.raw[290][1493:1621, 2219:4267]` fetches no more than the same in one step.

    Args:
        source: The archive's root: an http(s) URL, any other fsspec URL (`s3://...`), or a local folder. What is secret
            of a URL (`user:password@`, and behind a `?` a signature or token) goes with each request to its host, and
            is shown and kept nowhere; without, `~/.netrc` is looked at.
        shape: Voxels (z, y, x) of the whole volume. A file of another size is an error when it is read.
        labels: The masks to open. `mito`, `er` and `nucleus` are known to exist; `bile_duct`, `cell_boundary`,
            `cholangiocyte`, `endothelial`, `hepatocyte` and `sinusoid` are said to.
        chunk_rows: Rows of a dask block, which is (1, chunk_rows, width); 1024 unless dask's configuration says
            otherwise (`liver-dask.chunk-rows`).
        connections: The most requests under way at once, from a process or from all workers of a dask cluster together;
            16, or `liver-dask.connections`.
        cache_dir: Folder that keeps strip indexes and masks between processes, or None; `liver-dask.cache-dir`. Once a
            process, the source is asked by one byte whether what is kept of a file is of its present version.
        cache_raw_gb: GB (10^9 bytes) of disk that `cache_dir` may take for strips of raw, those used longest ago going
            first; 0, or `liver-dask.cache-raw-gb`.
        voxel_size_nm: Size of a voxel (z, y, x) in nm, recorded in the attributes. The size in z is disputed, so there
            is no default; `ds.attrs["voxel_size_source"]` says what is known.
        missing: What becomes of a slice whose file does not exist, though its folder does: `raise` is an error, `zeros`
            gives zeros, logs a warning for each file, and has stores list them (`attrs["missing_files"]`).

    Returns:
        A Dataset of dims (z, y, x) with `raw` (uint16) and one variable a label (uint8, 0 or 255), integer index
        coordinates that keep their values in a crop, and attributes with source, licence and citation.

    Raises:
        InvalidArgumentError: A label that does not exist, a shape or number that makes no sense; `source` is a Zarr
            store. (ValueError)
        SliceNotFoundError: `source` is a local folder that does not exist. (FileNotFoundError)
    """
    lazy, block, attrs = _prepare(
        source, shape, labels, chunk_rows, connections, cache_dir, cache_raw_gb, voxel_size_nm, missing
    )
    variables = {
        name: (volume.DIMS, VolumeArray.of(window, normalize_chunks(block, window.shape)), volume.attributes_of(name))
        for name, window in lazy.items()
    }
    return xr.Dataset(variables, _coordinates(lazy[volume.RAW].shape), attrs)


def open_origin(origin: Mapping[str, Any], like: xr.Dataset) -> xr.DataArray:
    """Open again the voxels that `LazyWindow.origin` told, from the Dataset of their source."""
    ranges = [range(*origin[dim]) for dim in volume.DIMS]
    z, y, x = (slice(r.start, None if r.stop < 0 else r.stop, r.step) for r in ranges)
    return like[origin["variable"]][z, y, x]


def readers_of(array: Any) -> set[VolumeReader]:
    """The variables of the archive that a dask array is made of, as far as its graph shows them.

    Of voxels that were computed before (`persist`, `compute`) nothing tells where they are from.
    """
    leaves = [array.lazy] if isinstance(array, VolumeArray) and array.lazy else leaves_in(array)
    return {leaf.read for leaf in leaves if isinstance(leaf.read, VolumeReader)}


class LiverBackend(BackendEntrypoint):
    """The engine `liver_dask`: `xr.open_dataset(url, engine="liver_dask", chunks={})`.

    Takes the arguments of `open_human_liver_em`. With `chunks={}` the variables are the dask arrays that it gives;
    without `chunks` they are lazy and without dask. Either way any number of indexing steps, and points, are composed.
    """

    description = "Open EMPIAR-13356, or an archive laid out like it"
    url = "https://www.ebi.ac.uk/empiar/EMPIAR-13356/"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "shape",
        "labels",
        "chunk_rows",
        "connections",
        "cache_dir",
        "cache_raw_gb",
        "voxel_size_nm",
        "missing",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        shape: Sequence[int] = volume.SHAPE,
        labels: str | Iterable[str] = volume.LABELS,
        chunk_rows: int | None = None,
        connections: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_raw_gb: float | None = None,
        voxel_size_nm: Sequence[float] | None = None,
        missing: Missing = "raise",
    ) -> xr.Dataset:
        """See `open_human_liver_em`."""
        lazy, block, attrs = _prepare(
            filename_or_obj, shape, labels, chunk_rows, connections, cache_dir, cache_raw_gb, voxel_size_nm, missing
        )  # fmt: skip
        preferred = {"preferred_chunks": dict(zip(volume.DIMS, block, strict=True))}
        variables = {
            name: _EngineVariable(
                volume.DIMS,
                indexing.LazilyIndexedArray(_BackendWindow(window, block)),
                volume.attributes_of(name),
                preferred,
            )
            for name, window in lazy.items()
        }
        dataset = xr.Dataset(variables, _coordinates(lazy[volume.RAW].shape), attrs)
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables
        return dataset.drop_vars(dropped or [], errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Only the archive's own URL; any other must be opened with `engine="liver_dask"`."""
        return isinstance(filename_or_obj, str) and filename_or_obj.rstrip("/") == volume.EMPIAR_URL


_OF_XARRAY = indexing.ExplicitlyIndexed, indexing.ImplicitToExplicitIndexingAdapter


@normalize_token.register(_OF_XARRAY)  # type: ignore[untyped-decorator]  # dask's has no types
def _token(adapter: Any) -> Any:
    """What dask calls a variable of the engine: the same wherever and whenever it is opened.

    Else dask takes the pickle for its name, which has what is known of the files' versions.
    """
    keys, leaf = [], adapter
    while leaf is not None and not isinstance(leaf, LazyWindow):
        keys.append(getattr(getattr(leaf, "key", None), "tuple", None))
        leaf = getattr(leaf, "lazy" if isinstance(leaf, _BackendWindow) else "array", None)
    if leaf is None:
        return normalize_token.dispatch(object)(adapter)  # somebody else's
    return leaf.__dask_tokenize__(), normalize_token(keys)


class _BackendWindow(BackendArray):
    """A lazy window of the whole volume as xarray's backends want it, and how it is cut where dask has it."""

    def __init__(self, lazy: LazyWindow, block: tuple[int, int, int]) -> None:
        self.lazy = lazy
        self.shape = lazy.shape
        self.dtype = lazy.dtype
        self._block = block

    @property
    def chunked(self) -> VolumeArray:
        """The same as `open_human_liver_em` has it."""
        return VolumeArray.of(self.lazy, normalize_chunks(self._block, self.shape))

    def __dask_tokenize__(self) -> Any:
        return self.lazy.__dask_tokenize__()

    def __getitem__(self, key: indexing.ExplicitIndexer) -> npt.NDArray[Any]:
        if isinstance(key, indexing.VectorizedIndexer) and _is_sparse(key.tuple):
            return self.chunked.vindex[key.tuple].compute(scheduler=VolumeArray.__dask_scheduler__)
        outer = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, outer, self.lazy.read_side_by_side)


def _is_sparse(indexes: tuple[npt.NDArray[np.intp], ...]) -> bool:
    """Whether reading all that is at one of the indexes of each axis would be much more than the points are."""
    return math.prod(len(np.unique(index)) for index in indexes) > 2 * math.prod(
        np.broadcast_shapes(*map(np.shape, indexes))
    )


class _EngineVariable(xr.Variable):
    """A variable of the engine; made a dask array, it is the one that `open_human_liver_em` gives, indexed alike.

    Of any other lazy array xarray makes a dask array that hands down one indexing step, and no points.
    """

    __slots__ = ()

    def chunk(self, *args: Any, **options: Any) -> Any:
        """See `xarray.Variable.chunk`; where nothing is said of an axis, blocks are those of the archive's files."""
        lazy = self._data
        while isinstance(lazy, indexing.CopyOnWriteArray | indexing.MemoryCachedArray):
            lazy = lazy.array
        if not (isinstance(lazy, indexing.LazilyIndexedArray) and isinstance(lazy.array, _BackendWindow)):
            return super().chunk(*args, **options)
        array: Any = lazy.array.chunked
        for axis, index in reversed(list(enumerate(lazy.key.tuple))):
            array = array[(slice(None),) * axis + (index,)]
        return xr.Variable(self.dims, array, self.attrs, self.encoding).chunk(*args, **options)


def _prepare(
    source: str | os.PathLike[str],
    shape: Sequence[int],
    labels: str | Iterable[str],
    chunk_rows: int | None,
    connections: int | None,
    cache_dir: str | os.PathLike[str] | None,
    cache_raw_gb: float | None,
    voxel_size_nm: Sequence[float] | None,
    missing: Missing,
) -> tuple[dict[str, LazyWindow], tuple[int, int, int], dict[str, Any]]:
    """Check every argument; give the whole volume of each variable, the shape of a block, the attributes."""
    check_kind_of_arrays()
    _, height, width = checked_shape = volume.check_shape(shape)
    if missing not in get_args(Missing):
        raise InvalidArgumentError(f"missing={missing!r} must be 'raise' or 'zeros'.")
    cache_dir = setting("cache-dir", cache_dir)
    url, secret = archive_url(source)
    asked = Source(
        url=url,
        connections=_at_least_one("connections", setting("connections", connections)),
        timeout=_seconds("timeout", setting("timeout")),
        attempts=_at_least_one("attempts", setting("attempts")),
        cache_dir=os.path.abspath(os.path.expanduser(cache_dir)) if cache_dir else None,
        cache_raw_bytes=_raw_bytes(setting("cache-raw-gb", cache_raw_gb), cache_dir),
        secret=secret,
    )
    block = (1, min(_at_least_one("chunk_rows", setting("chunk-rows", chunk_rows)), height), width)
    whole = Window.whole(checked_shape)
    lazy = {
        name: LazyWindow(VolumeReader(asked, name, checked_shape, missing), whole, volume.dtype_of(name))
        for name in (volume.RAW, *volume.check_labels(labels))
    }
    return lazy, block, volume.attributes(asked.url, voxel_size_nm)


def _coordinates(shape: Sequence[int]) -> dict[str, pd.RangeIndex]:
    return {dim: pd.RangeIndex(length) for dim, length in zip(volume.DIMS, shape, strict=True)}


def _at_least_one(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InvalidArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
    return number


def _seconds(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0
    if not 0 < number < float("inf"):
        raise InvalidArgumentError(f"{name}={value!r} must be a number of seconds above 0.")
    return number


def _raw_bytes(gigabytes: Any, cache_dir: Any) -> int:
    try:
        count = float(gigabytes) * 1e9
    except (TypeError, ValueError):
        count = -1
    if not 0 <= count < float("inf"):
        raise InvalidArgumentError(f"cache_raw_gb={gigabytes!r} must be a number of gigabytes, or 0.")
    if count and not cache_dir:
        raise InvalidArgumentError(f"cache_raw_gb={gigabytes!r} needs a folder to keep strips in: give cache_dir.")
    return int(count)


def _read_points_by_rows(
    item: PngSlice, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp], out: npt.NDArray[Any]
) -> None:
    """Read single pixels of a mask, of which rows are decoded: some rows at a time, from the top."""
    rows, row_of_point = np.unique(y, return_inverse=True)
    columns = slice(int(x.min()), int(x.max()) + 1)
    width = columns.stop - columns.start
    at_once = max(BYTES_OF_ROWS // width, 1)
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        pixels = np.empty((len(some), width), out.dtype)
        item.read(some, columns, pixels)
        here = np.flatnonzero((row_of_point >= first) & (row_of_point < first + len(some)))
        out[here] = pixels[row_of_point[here] - first, x[here] - columns.start]


def _is_run(selection: Selection) -> bool:
    """Whether the indexes ascend one by one."""
    if isinstance(selection, range):
        return selection.step == 1 or len(selection) == 1
    return bool((np.diff(selection) == 1).all())


_memory: MemoryCache[TiffSlice | PngSlice] = MemoryCache(MEMORY_LIMIT)
