"""Stores in folders that all processes share: renames, locks and flushes make them safe."""

import filecmp
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from ...core.disk import files_in, is_there, naming, walk
from ...core.errors import DamagedError, InvalidArgumentError, LiverDaskError, StoreExistsError
from ..durable import DurableFile, sync_folder, sync_tree
from ..locks import is_same_file, locked_file, open_locked
from ..shards import checked
from .interface import Extent, Storage


class Folder(Storage[Path]):
    """See Storage."""

    def write(self, place: Path, pieces: Iterable[bytes | Extent], part: Path | None = None) -> None:
        """See Storage. Extents are checked while they are copied."""
        with _Opened() as opened, DurableFile(place, part) as out:
            for piece in pieces:
                out.write(opened.read(piece) if isinstance(piece, Extent) else piece)

    def write_new(self, place: Path, data: bytes) -> bool:
        """See Storage."""
        part = place.with_suffix(f".{os.urandom(4).hex()}")
        with DurableFile(part) as file:
            file.write(data)
        try:
            os.link(part, place)  # unlike a rename, it does not replace the file of another process
        except FileExistsError:
            return False
        finally:
            part.unlink()
        sync_folder(place.parent)
        return True

    def remove(self, place: Path) -> None:
        """See Storage."""
        place.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """See Storage."""
        if is_there(folder):
            shutil.rmtree(folder)

    def remove_folder(self, folder: Path) -> None:
        """See Storage."""
        folder.rmdir()

    def make_folders(self, folders: Iterable[Path]) -> None:
        """See Storage."""
        for folder in folders:
            for new in reversed([path for path in (folder, *folder.parents) if not is_there(path)]):
                new.mkdir(exist_ok=True)
                sync_folder(new.parent)

    @contextmanager
    def claim(self, partial: Path, target: Path, beside: str) -> Iterator["_Locked"]:
        """See Storage: a lock of the system, which ends with the process that holds it."""
        path = partial / "lock"
        while True:
            descriptor = _open_lock(path, target, beside)
            try:
                if is_same_file(descriptor, path):  # another process may just have removed the file with its folder
                    yield _Locked(path)
                    return
            finally:
                os.close(descriptor)

    def is_claimed(self, partial: Path) -> bool:
        """See Storage."""
        return is_there(partial / "lock")

    def check_target(self, partial: Path, target: Path, *, is_new: bool) -> None:
        """See Storage: the unfinished store will be renamed."""
        if partial.stat().st_dev != target.parent.stat().st_dev:
            raise InvalidArgumentError(
                f"{partial} is on another disk than {target.parent}; remove it, or choose another path."
            )
        if not is_there(target):
            return
        aside = partial / "aside"
        try:
            target.replace(aside)
            try:
                aside.replace(target)
            except OSError:
                aside.replace(target)
                raise
        except OSError as error:
            raise InvalidArgumentError(
                f"{target} is an empty folder that a store cannot take the place of ({error.strerror}), a mount "
                f"point perhaps; choose a path in it, such as {target / 'crop.zarr'}."
            ) from error

    def progress_in(self, partial: Path, call: str) -> Path:
        """See Storage. The folder is gone when a store is complete, so that nobody writes there late."""
        return partial / "progress"

    def is_begun(self, unfinished: Path) -> bool:
        """See Storage."""
        return is_there(unfinished)

    def begin(self, unfinished: Path, new: Path, files: Mapping[str, bytes], folders: Iterable[str]) -> None:
        """See Storage: the last step is a rename."""
        self.make_folders([new, *(new / folder for folder in folders)])
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            with naming(new / name):
                (new / name).write_bytes(content)
        sync_tree(new, skip=())
        new.replace(unfinished)
        sync_folder(unfinished.parent)

    def withdraw(self, unfinished: Path, new: Path, progress: Iterable[Path]) -> bool:
        """See Storage. The system does not remove folders that are not empty, so a late file is kept."""
        folders = list(progress)
        try:
            for folder in folders:
                folder.rmdir()
        except OSError:
            for folder in folders:
                folder.mkdir(exist_ok=True)
            return False
        unfinished.replace(new)  # as if its process had been killed at its beginning
        return True

    def shards_in(self, unfinished: Path, target: Path) -> Path:
        """See Storage: in the unfinished store."""
        return unfinished

    def discard(
        self, unfinished: Path, target: Path | None, new: Path, progress: Iterable[Path], shards: Iterable[Path]
    ) -> None:
        """See Storage: one rename makes it a store that was never begun."""
        self.remove_tree(new)
        unfinished.replace(new)

    def is_filled(self, unfinished: Path, target: Path, shards: Collection[str]) -> bool:
        """See Storage: never."""
        return False

    def publish(self, unfinished: Path, target: Path, last: str, check: Callable[[], None]) -> None:
        """See Storage: a rename."""
        unfinished.replace(target)
        sync_folder(target.parent)

    def drop_published(self, unfinished: Path) -> None:
        """See Storage: `publish` moves it."""

    def tidy(self, partial: Path, target: Path) -> None:
        """See Storage."""
        if is_there(partial / "aside"):
            (partial / "aside").rmdir()

    @contextmanager
    def change(self, journal: Path, busy: str) -> Iterator["_FileJournal"]:
        """See Storage: the journal is the lock."""
        with locked_file(journal, busy=busy) as file:
            yield _FileJournal(file, journal)

    def is_writable(self, folder: Path) -> bool:
        """See Storage."""
        return os.access(folder, os.W_OK)

    def put_folder(self, folder: Path, stage: Path, files: Mapping[str, bytes | Path]) -> None:
        """See Storage. Copies are hard links where the file system has them."""
        new, old = stage / folder.name, stage / f"{folder.name}.old"
        for where, content in files.items():
            (new / where).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                with naming(new / where):
                    (new / where).write_bytes(content)
            else:
                _link(content, new / where)
        _sync_linked(new)
        if folder.is_dir():
            folder.replace(old)
        new.replace(folder)
        sync_folder(folder.parent)

    def is_copy(self, one: Path, other: Path) -> bool:
        """See Storage."""
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)

    def free_bytes(self, place: Path) -> tuple[int, str] | None:
        """See Storage."""
        folder = next(parent for parent in place.parents if parent.exists())
        return shutil.disk_usage(folder).free, str(folder)


class _Locked:
    """A Claim that cannot be taken over, because the system holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> None:
        """See Claim."""

    def remove(self) -> None:
        """See Claim. A folder with something else in it stays."""
        self._path.unlink(missing_ok=True)
        self._path.parent.rmdir()


class _FileJournal:
    """A Journal that is a locked file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def read(self) -> bytes:
        """See Journal."""
        self._file.seek(0)
        return self._file.read()

    def write(self, content: bytes) -> None:
        """See Journal."""
        with naming(self._path):
            self.clear()
            self._file.seek(0)
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())

    def check(self) -> None:
        """See Journal: nobody takes over a lock."""

    def clear(self) -> None:
        """See Journal."""
        self._file.truncate(0)


class _Opened:
    """Reads extents, with the file of the last one open."""

    def __enter__(self) -> "_Opened":
        self._file: FileIO | None = None
        self._place: Path | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def read(self, extent: Extent) -> bytes:
        """Return the bytes of an extent, whose last bytes are their checksum."""
        if not isinstance(extent.place, Path):
            raise TypeError(f"{extent.place} is not in a folder")
        if self._file is None or extent.place != self._place:
            if self._file:
                self._file.close()
            self._place = extent.place
            self._file = extent.place.open("rb", buffering=0)
        with naming(extent.place):
            data = os.pread(self._file.fileno(), extent.length, extent.start)
        try:
            checked(data)
        except DamagedError as error:
            raise DamagedError(f"{extent.place} is damaged: {error}.") from error
        return data


def _link(file: Path, copy: Path) -> None:
    """Copy a file with a hard link; if the file system has none, copy the bytes."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copyfile(file, copy)


def _sync_linked(root: Path) -> None:
    """Flush a folder to disk: its file names, and the bytes of files that are not hard links."""
    for folder, _, files in walk(root):
        for name in files:
            with Path(folder, name).open("rb") as file:
                if os.fstat(file.fileno()).st_nlink == 1:
                    os.fsync(file.fileno())
        sync_folder(Path(folder))


def _open_lock(path: Path, target: Path, beside: str) -> int:
    partial = path.parent
    try:
        found = {entry.name for entry in files_in(partial)} if is_there(partial) else set()
        if found - {beside} and not is_there(path):
            raise StoreExistsError(f"{partial} is something that liver_dask did not write; choose another path.")
        partial.mkdir(parents=True, exist_ok=True)
        return open_locked(path, busy=f"{target} is being written by another process; wait for it to end.")
    except OSError as error:
        if isinstance(error, LiverDaskError):
            raise
        raise InvalidArgumentError(f"Cannot write {target}: {error.strerror or error}.") from error
