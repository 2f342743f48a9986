"""Reads voxels of an archive: which file holds them, which versions are read, and what is kept of a file."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..core.errors import FormatError, LiverDaskError, SliceNotFoundError
from ..core.geometry import Shape
from ..core.kinds import FOREGROUND
from .archives import EMPIAR_13356
from .description import Variable
from .formats.registry import FORMATS
from .formats.slices import Prepared, PreparedRows, SliceReader
from .lazy.arrays import Selection, VolumeArray
from .lazy.leaves import leaves_in
from .remote.address import zarr_message
from .remote.cache import FolderCache, MemoryCache
from .remote.files import RemoteFile, folder_exists, is_zarr, list_folders
from .remote.source import Source
from .remote.versions import MISSING, FileVersion, note_file

log = logging.getLogger(__name__)

Missing = Literal["raise", "zeros"]
T = TypeVar("T")

MEMORY_LIMIT = 256 << 20
"""Bytes of strip indexes, mask files and checkpoints that a process keeps."""


@dataclass(frozen=True)
class SlicePart:
    """What one process found out about a slice, for others: so that it is fetched and decoded once.

    Attributes:
        version: Of its file.
        content: Decoded rows, or where they are in the file; nothing of a slice that does not exist, or of which the
            file tells nothing that is worth sharing.
    """

    version: FileVersion
    content: Prepared | PreparedRows | None

    def __sizeof__(self) -> int:
        """Bytes, as dask asks for them."""
        return object.__sizeof__(self) + (self.content.nbytes if self.content else 0)


@dataclass(frozen=True)
class VolumeReader:
    """Reads voxels of one variable; small, picklable, equal for equal voxels.

    Attributes:
        source: Where the archive is.
        archive: Its name.
        variable: What is read of it.
        shape: Voxels (z, y, x) of the whole volume.
        missing: `raise`, or `zeros` where slices whose files do not exist are to be empty.
    """

    source: Source
    archive: str
    variable: Variable
    shape: Shape
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

        def read(item: SliceReader) -> None:
            item.read_points(y, x, out)
            self._unify(out)

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
        if part and isinstance(content, PreparedRows):
            note_file(self._url(z), part.version)
            content.read(rows, columns, out)
            self._unify(out)
            return

        def read(item: SliceReader) -> None:
            if content is not None and not isinstance(content, PreparedRows):
                item.adopt(content)
            item.read(rows, columns, out)
            self._unify(out)

        self._read_slice(z, rows, read, out)

    def _unify(self, out: npt.NDArray[Any]) -> None:
        """Whatever a format has for a labelled voxel, a mask has 255."""
        if self.variable.kind == "mask" and not FORMATS[self.variable.format].HAS_MASKS:
            out[out != 0] = FOREGROUND

    @property
    def name(self) -> str:
        """The name of the variable."""
        return self.variable.name

    @property
    def is_from_the_top(self) -> bool:
        """Whether rows of its files can only be decoded from the first on."""
        return FORMATS[self.variable.format].FROM_THE_TOP

    def describe(self) -> str:
        """Which variable of which source; how the source is asked does not change its voxels."""
        text = f"{self.variable.name} of {self.shape} at {self.source.url}"
        if self.variable in EMPIAR_13356.variables:  # as in the stores of versions that knew no other archive
            return text
        return f"{text}: {sorted(self.variable.described().items())}"

    @property
    def variant(self) -> str:
        """What becomes of slices that do not exist; where they do, it is the same volume."""
        return self.missing

    def origin(self) -> dict[str, Any]:
        """The same, as JSON; see `open_origin`."""
        variable = self.variable.name
        return {"archive": self.archive, "source": self.source.url, "shape": list(self.shape), "variable": variable}

    @property
    def files(self) -> str:
        """The URLs of the slices, with the number of the slice as `{z...}`."""
        return f"{self.source.url}/{self.variable.files}"

    @property
    def _folder(self) -> str:
        """The folder of the slices; ends with a slash."""
        return self.files.rpartition("/")[0] + "/"

    def probe(self, z: int) -> None:
        """Find out whether the file of a slice is there and as expected, without reading a pixel."""
        try:
            self._item(z).probe()
        except LiverDaskError as error:
            if not self._is_missing(z, error):
                raise self._located(error, z, np.arange(self.shape[1])) from error

    @contextmanager
    def read_ahead(self, z: Selection, y: Selection) -> Iterator[None]:
        """Meanwhile these rows of these slices will be read, all slices side by side, a part at a time.

        So more is fetched with a request, and nothing that is known of the files is forgotten in between.
        """
        items = [self._item(int(number)) for number in z]
        for item in items:
            item.read_ahead_until = int(max(y)) + 1
        try:
            yield
        finally:
            for item in items:
                item.read_ahead_until = 0

    def _key(self, z: int) -> tuple[str, Source, Shape, Variable, str]:
        return self.source.versions.id, self.source, self.shape, self.variable, self.variable.path(z)

    def _url(self, z: int) -> str:
        return f"{self.source.url}/{self.variable.path(z)}"

    def _item(self, z: int) -> SliceReader:
        return _memory.get_or_make(self._key(z), lambda: self._open_slice(self.variable.path(z)))

    def _read_slice(
        self,
        z: int,
        rows: npt.NDArray[np.intp],
        read: Callable[[SliceReader], None],
        out: npt.NDArray[Any],
    ) -> None:
        """Have `read` fill `out` with what it wants of some ascending rows, or fill it with zeros."""
        self._use_slice(z, rows, read, lambda: out.fill(0))

    def _use_slice(
        self,
        z: int,
        rows: npt.NDArray[np.intp],
        use: Callable[[SliceReader], T],
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
        log.warning("%s does not exist; slice %d of %s is taken for zeros", self._url(z), z, self.variable.name)
        return True

    def _folder_was_seen(self, z: int) -> bool:
        """Whether the folder is listed, or holds another slice: not every server lists its folders."""
        if self.source.versions.has_read_below(self._folder) or folder_exists(self.source, self._folder):
            return True
        others = {0, z - 1, z + 1, self.shape[0] - 1} & set(range(self.shape[0])) - {z}
        return any(self._exists(other) for other in sorted(others))

    def _exists(self, z: int) -> bool:
        try:
            return len(RemoteFile(self.source, self.variable.path(z)).fetch(0, 1)) > 0
        except SliceNotFoundError:
            return False

    def _open_slice(self, path: str) -> SliceReader:
        file = RemoteFile(self.source, path)
        folder = FolderCache(self.source.cache_dir) if self.source.cache_dir else None
        variable = self.variable
        kind = FORMATS[variable.format]
        return kind(file, *self.shape[1:], np.dtype(variable.dtype), variable.dataset, folder)

    def _located(self, error: LiverDaskError, z: int, rows: npt.NDArray[np.intp]) -> LiverDaskError:
        """The same error, saying which slice and rows it cost, and for a missing class which ones there are."""
        text = f"{self.variable.name}, slice {z}, rows {rows[0]}-{rows[-1]}: {error}"
        if isinstance(error, SliceNotFoundError):
            there = list_folders(self.source)
            is_there = self.variable.folder.partition("/")[0] in ("", *there)
            is_lost = bool(there) and not is_there
            if is_lost:
                text += f" The archive has these folders: {', '.join(there)}."
            if not is_there and is_zarr(self.source):
                text += f" {self.source.url} {zarr_message(self.source.url)}"
            elif self.missing == "zeros":
                text += f" Its folder {self._folder} was not seen either, so that it is not taken for zeros."
            elif is_lost:
                text += " Correct the address, or the label."
            else:
                text += ' Open the source with missing="zeros" (--missing zeros) if such slices are to be empty.'
        return type(error)(text)


def readers_of(array: Any) -> set[VolumeReader]:
    """The variables of the archive that a dask array is made of, as far as its graph shows them.

    Of voxels that were computed before (`persist`, `compute`) nothing tells where they are from.
    """
    leaves = [array.lazy] if isinstance(array, VolumeArray) and array.lazy else leaves_in(array)
    return {leaf.read for leaf in leaves if isinstance(leaf.read, VolumeReader)}


def _is_run(selection: Selection) -> bool:
    """Whether the indexes ascend one by one."""
    if isinstance(selection, range):
        return selection.step == 1 or len(selection) == 1
    return bool((np.diff(selection) == 1).all())


_memory: MemoryCache[SliceReader] = MemoryCache(MEMORY_LIMIT)
