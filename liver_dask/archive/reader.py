"""Reading of voxels of an archive: which file holds them, which version is read, and what is cached."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..core.errors import FormatError, LiverDaskError, SliceNotFoundError
from ..core.geometry import Shape
from ..core.kinds import FOREGROUND
from .archives import EMPIAR_13356
from .description import Variable
from .facts import KnownFiles
from .formats.registry import FORMATS
from .formats.slices import Measured, Prepared, PreparedRows, SliceReader
from .lazy.arrays import VolumeArray
from .lazy.derived import readers_below
from .lazy.leaves import leaves_in
from .lazy.window import Selection
from .remote.address import zarr_message
from .remote.cache import FolderCache, MemoryCache
from .remote.files import RemoteFile, folder_exists, is_zarr, list_folders, local_files
from .remote.source import Source
from .remote.versions import MISSING, FileVersion, note_file

log = logging.getLogger(__name__)

Missing = Literal["raise", "zeros"]
T = TypeVar("T")

MEMORY_LIMIT = 256 << 20
"""Bytes of strip indexes, mask files and checkpoints that a process caches."""


@dataclass(frozen=True)
class SlicePart:
    """Information that one process has about a slice and shares, so that the slice is fetched and decoded once.

    Attributes:
        version: Version of the file.
        content: Decoded rows, or their positions in the file. None if the slice does not exist, or if the file has
            nothing that is worth sharing.
    """

    version: FileVersion
    content: Prepared | PreparedRows | None

    def __sizeof__(self) -> int:
        """Return the size in bytes, which dask asks for."""
        return object.__sizeof__(self) + (self.content.nbytes if self.content else 0)


@dataclass(frozen=True)
class VolumeReader:
    """Reader of the voxels of one variable; small, picklable, and equal to readers of the same voxels.

    Attributes:
        source: Where the archive is.
        archive: Name of the archive.
        variable: The variable to read.
        shape: Voxels (z, y, x) of the whole volume.
        missing: `raise`, or `zeros` if slices whose files do not exist count as empty.
        known: What an examination found about the files, for estimates.
        may_become_zeros: Whether the error about a missing file may advise to open the source with `missing="zeros"`.
    """

    source: Source
    archive: str
    variable: Variable
    shape: Shape
    missing: Missing = "raise"
    may_become_zeros: bool = field(default=True, compare=False)
    known: KnownFiles = field(default_factory=KnownFiles, compare=False, repr=False)

    slices_at_once = 1  # each slice is one file

    def __call__(
        self,
        z: Selection,
        y: Selection,
        x: Selection,
        out: npt.NDArray[Any],
        prepared: Sequence[SlicePart] = (),
    ) -> None:
        """Read the voxels at the given indexes, none of them empty, into `out` of shape (len(z), len(y), len(x)).

        Args:
            z: Slices.
            y: Rows.
            x: Columns.
            out: Array to fill.
            prepared: The result of `prepare` for each slice, or nothing.
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
        """Return what any process needs to read rows `start` to `stop` of slice `z`."""
        rows = np.arange(start, stop)
        part = self._use_slice(z, rows, lambda item: item.prepare(start, stop), lambda: None)
        version = self.source.versions.get(self._url(z))
        assert version
        return SlicePart(version, part)

    def read_points(self, z: int, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp], out: npt.NDArray[Any]) -> None:
        """Read voxels of one slice into `out` of shape (points,); points may have any order and may repeat."""
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
        """Set all labelled voxels of a mask to 255, whatever value the format has for them."""
        if self.variable.kind == "mask" and not FORMATS[self.variable.format].HAS_MASKS:
            out[out != 0] = FOREGROUND

    @property
    def name(self) -> str:
        """The name of the variable."""
        return self.variable.name

    @property
    def is_from_the_top(self) -> bool:
        """Whether the rows of its files can be decoded only from the first row on."""
        return FORMATS[self.variable.format].FROM_THE_TOP

    def describe(self) -> str:
        """Return a text that identifies the variable and its source; how the source is accessed has no influence."""
        text = f"{self.variable.name} of {self.shape} at {self.source.url}"
        if self.variable in EMPIAR_13356.variables:  # as in stores of versions that had no other archive
            return text
        return f"{text}: {sorted(self.variable.described().items())}"

    @property
    def variant(self) -> str:
        """How missing slices are treated; it does not change the voxels of existing slices."""
        return self.missing

    def origin(self) -> dict[str, Any]:
        """Return the variable and its source as JSON; see `open_origin`."""
        variable = self.variable.name
        return {"archive": self.archive, "source": self.source.url, "shape": list(self.shape), "variable": variable}

    @property
    def files(self) -> str:
        """The URLs of the slices, with the number of the slice as `{z...}`."""
        return f"{self.source.url}/{self.variable.files}"

    @property
    def _folder(self) -> str:
        """The folder of the slices; it ends with a slash."""
        return self.files.rpartition("/")[0] + "/"

    def probe(self, z: int) -> None:
        """Check that the file of a slice exists and is as expected, without reading a pixel."""
        try:
            self._item(z).probe()
        except LiverDaskError as error:
            if not self._is_missing(z, error):
                raise self._located(error, z, np.arange(self.shape[1])) from error

    def measure(self, z: int, rows: npt.NDArray[np.intp], last_column: int) -> Measured | None:
        """Return how many bytes of the file of a slice hold some rows, see `SliceReader.measure`; None if not known."""
        return self._use_slice(z, rows, lambda item: item.measure(rows, last_column), lambda: None)

    def describe_file(self, z: int) -> dict[str, Any]:
        """Return what the headers of the file of a slice say, see `SliceReader.describe`."""
        return self._use_slice(z, np.arange(self.shape[1]), lambda item: item.describe(), dict)

    def use_values(self, z: int, use: Callable[[Iterator[npt.NDArray[Any]]], T]) -> T:
        """Return `use` of all values of a slice as they are stored, see `SliceReader.values`.

        It is called once more if the file cannot be decoded and may have been changed on its way.
        """
        rows = np.arange(self.shape[1])
        return self._use_slice(z, rows, lambda item: use(item.values()), lambda: use(iter(())))

    @contextmanager
    def read_ahead(self, z: Selection, y: Selection) -> Iterator[None]:
        """Prepare to read these rows of these slices within this context: all slices side by side, part by part.

        Each request then fetches more, and information about the files stays in memory between the parts.
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
        """Call `read` to fill `out` from some ascending rows, or fill `out` with zeros if the slice counts as empty."""
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
        """Return `use` of some rows of a slice, or `use_nothing()` if the slice does not exist and counts as empty.

        A file that fails may be fetched once more; `anew` is True in that second attempt.
        """
        try:
            if self.source.versions.get(self._url(z)) == MISSING:
                note_file(self._url(z), MISSING)
                return use_nothing()
            item = self._item(z)
            used = use(item)
        except LiverDaskError as error:
            _memory.drop(self._key(z))  # do not reuse cached data of a file that failed or changed
            if self._is_missing(z, error):
                note_file(self._url(z), MISSING)
                return use_nothing()
            if self._may_pass(error, z) and not anew:
                return self._use_slice(z, rows, use, use_nothing, anew=True)
            raise self._located(error, z, rows) from error
        _memory.put(self._key(z), item)
        version = self.source.versions.get(self._url(z))
        assert version  # every read notes the version
        note_file(self._url(z), version)
        return used

    def _may_pass(self, error: LiverDaskError, z: int) -> bool:
        """Evict a file that cannot be decoded from the folder cache; return whether one full re-fetch may succeed."""
        if isinstance(error, SliceNotFoundError):
            return self.missing == "zeros" and self._exists(z)
        if not isinstance(error, FormatError):
            return False
        if self.source.cache_dir:
            FolderCache(self.source.cache_dir).drop(self._url(z))
        return self.source.is_http  # the network may have changed a byte

    def _is_missing(self, z: int, error: LiverDaskError) -> bool:
        """Return whether an error means that a slice counts as zeros: its file does not exist, but its folder does.

        A wrong address must not give a volume of zeros, and one wrong answer must not give a slice of zeros. So the
        folder must be found, and the file is requested a second time.
        """
        if self.missing != "zeros" or not isinstance(error, SliceNotFoundError):
            return False
        if self.source.versions.get(self._url(z)) == MISSING:  # another thread has detected it
            return True
        if not self._folder_was_seen(z) or self._exists(z):
            return False
        self.source.versions.note(self._url(z), MISSING)
        log.warning("%s does not exist; slice %d of %s is taken for zeros", self._url(z), z, self.variable.name)
        return True

    def _folder_was_seen(self, z: int) -> bool:
        """Return whether the folder is listed or holds another slice: not every server lists its folders."""
        if self.source.versions.read_below(self._folder) or folder_exists(self.source, self._folder):
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
        """Return the same error with the affected slice and rows; for a missing class, also with all folders."""
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
                text += " Correct the address, the label, or the archive (--archive)."
            else:
                text += f" {self._advice(z)}"
        return type(error)(text)

    def _advice(self, z: int) -> str:
        """Return what to do about a missing file.

        Files become zeros silently once that is allowed, so it is advised only if other slices were found.
        """
        folder, slices, correct = self.variable.folder or ".", range(self.shape[0]), "shape (--shape), files or first"
        names = local_files(self.source, folder)
        if names is None:
            found = {self.variable.slice_of(url) for url in self.source.versions.read_below(self._folder)}
            numbers = {number for number in found if number is not None}
            holds = f"No slice of {self.name} has been found yet."
        else:
            numbers = {number for number in map(self._number_of, names) if number is not None}
            holds = _what_is_in(self._folder, names)
        among = numbers & {*slices}
        if not self.may_become_zeros:
            return f"{holds} Give the address where the archive is now: source=..., or --source."
        zeros = 'pen the source with missing="zeros" (--missing zeros) if such slices are to be empty.'
        if among and min(among) < z < max(among):
            return f"O{zeros}"
        if among == numbers != set():
            known = "" if names is None else f"{holds} "
            return f"{known}Correct {correct} of the archive if they are wrong, or o{zeros}"
        return f"{holds} Correct {correct} of the archive, or the source."

    def _number_of(self, name: str) -> int | None:
        """Return the slice that a file in the folder would hold, in the volume or beyond its ends."""
        number = replace(self.variable, first=0).slice_of("/".join(filter(None, (self.variable.folder, name))))
        return None if number is None else number - self.variable.first


def _what_is_in(folder: str, names: Sequence[str] | None) -> str:
    """Describe the files of a folder."""
    if not names:
        return f"The folder {folder} holds no files." if Path(folder).is_dir() else f"There is no folder {folder}."
    some = names[0] if len(names) == 1 else f"such as {names[0]}"
    return f"Its folder holds {len(names)} file{'s' * (len(names) > 1)}, {some}."


def readers_of(array: Any) -> set[VolumeReader]:
    """Return the readers of the archive's variables that a dask array uses, as far as its graph shows them.

    The origin of voxels that are already computed (`persist`, `compute`) is not known.
    """
    leaves = [array.lazy] if isinstance(array, VolumeArray) and array.lazy else leaves_in(array)
    below = (reader for leaf in leaves for reader in readers_below(leaf.read))
    return {reader for reader in below if isinstance(reader, VolumeReader)}


def _is_run(selection: Selection) -> bool:
    """Return whether the indexes are consecutive and ascending."""
    if isinstance(selection, range):
        return selection.step == 1 or len(selection) == 1
    return bool((np.diff(selection) == 1).all())


_memory: MemoryCache[SliceReader] = MemoryCache(MEMORY_LIMIT)
