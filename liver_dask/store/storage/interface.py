"""The interface of the storages: what differs between a folder and object storage when a store is written."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Generic, NamedTuple, Protocol, TypeVar

from ...core.places import Place

P = TypeVar("P", bound=Place)


class Extent(NamedTuple):
    """Bytes of a file that is already written.

    Attributes:
        place: The file.
        start: First byte.
        length: Number of bytes.
    """

    place: Place
    start: int
    length: int


class Claim(Protocol):
    """The exclusive right of this process to write a store."""

    def check(self) -> None:
        """Raise StoreExistsError if another process has taken the right over."""

    def remove(self) -> None:
        """Remove what the right consists of, because there is nothing left to write."""


class Journal(Protocol):
    """What a process that changes a complete store writes down first, so that the next one can finish the change."""

    def read(self) -> bytes:
        """Return the content; empty if no change is under way."""

    def write(self, content: bytes) -> None:
        """Replace the content; it is kept when this returns."""

    def check(self) -> None:
        """Raise StoreExistsError if another process has taken over, or may have."""

    def clear(self) -> None:
        """Make it empty, because the change is complete."""


class Storage(ABC, Generic[P]):
    """Writes files of stores. A file appears under its name only when all of its bytes are there, and will stay there.

    An unfinished store is written in `unfinished`; what has a shape of its own while the store is unfinished, in
    `partial`, next to the place of the complete store, `target`.
    """

    @abstractmethod
    def write(self, place: P, pieces: Iterable[bytes | Extent], part: P | None = None) -> None:
        """Write a file, and replace one of the same name. On a disk, its folder must exist.

        Args:
            place: The file.
            pieces: Its bytes, one after the other.
            part: Place from which the name of a temporary file follows, where one is needed. Given for files that
                several calls may write one after another at the same place (shards), where a request of an earlier
                one that is carried out late must not replace what was written since.

        Raises:
            DamagedError: An extent does not end with the checksum of its bytes, if it was read here.
            FileNotFoundError: The file of an extent, or the folder, does not exist.
            OSError: The storage cannot do it.
        """

    @abstractmethod
    def write_new(self, place: P, data: bytes) -> bool:
        """Write a file unless it exists; return whether it was written. Of several writers, only one writes it."""

    @abstractmethod
    def remove(self, place: P) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def remove_tree(self, folder: P) -> None:
        """Remove everything below a folder, and the folder."""

    @abstractmethod
    def remove_folder(self, folder: P) -> None:
        """Remove an empty folder. Raise OSError if there is something in it."""

    @abstractmethod
    def make_folders(self, folders: Iterable[P]) -> None:
        """Create folders and those above them, where there are folders."""

    @abstractmethod
    def claim(self, partial: P, target: P, beside: str) -> AbstractContextManager[Claim]:
        """Hold the exclusive right to write a store. It ends with the process, however that ends.

        Args:
            partial: Folder of the unfinished store and its progress.
            target: Place of the complete store, for messages.
            beside: The name of what may be in `partial` although nobody ever held the right.

        Raises:
            StoreExistsError: Another process holds it, or something else is in `partial`.
            InvalidArgumentError: The folder cannot be written.
        """

    @abstractmethod
    def is_claimed(self, partial: P) -> bool:
        """Return whether any process sees that the store is being written: a worker that does not cannot write it."""

    @abstractmethod
    def check_target(self, partial: P, target: P, *, is_new: bool) -> None:
        """Check that the complete store can be at `target`.

        Args:
            partial: Folder of the unfinished store and its progress.
            target: Place of the complete store.
            is_new: Whether no unfinished store was begun.

        Raises:
            InvalidArgumentError: It cannot.
            StoreExistsError: Something else is there.
        """

    @abstractmethod
    def progress_in(self, partial: P, call: str) -> P:
        """Return the folder of the progress of a call.

        Args:
            partial: Folder of the unfinished store and its progress.
            call: What names the call: it is equal for equal stores, and no other.
        """

    @abstractmethod
    def is_begun(self, unfinished: P) -> bool:
        """Return whether there is an unfinished store."""

    @abstractmethod
    def begin(self, unfinished: P, new: P, files: Mapping[str, bytes], folders: Iterable[str]) -> None:
        """Create an unfinished store in one step.

        Args:
            unfinished: Where it is.
            new: Where it is until all files are written. It does not exist.
            files: Content by path in the store, the record last.
            folders: Folders in the store that will be needed.
        """

    @abstractmethod
    def withdraw(self, unfinished: P, new: P, progress: Iterable[P]) -> bool:
        """Make an unfinished store one that was never begun, unless there is something in the `progress` folders.

        Returns:
            Whether this was done.
        """

    @abstractmethod
    def discard(self, unfinished: P, target: P | None, new: P, progress: Iterable[P], shards: Iterable[P]) -> None:
        """Remove an unfinished store, so that a kill in between leaves one that can be resumed, or none.

        Args:
            unfinished: The store.
            target: Place of the complete store, where `publish` may have begun; None if another store is there.
            new: As for `begin`.
            progress: Folders of what is finished; what says so is first.
            shards: All shards, of which some exist.
        """

    @abstractmethod
    def shards_in(self, unfinished: P, target: P) -> P:
        """Return where the shards of an unfinished store are written: in it, or at their final place."""

    @abstractmethod
    def is_filled(self, unfinished: P, target: P, shards: Collection[str]) -> bool:
        """Return whether all that is at `target` is of the unfinished store.

        Args:
            unfinished: The unfinished store.
            target: Place of the complete store.
            shards: The paths of all shards in it.
        """

    @abstractmethod
    def publish(self, unfinished: P, target: P, last: str, check: Callable[[], None]) -> None:
        """Make an unfinished store the complete one. Readers find it when this ends, not before.

        Args:
            unfinished: The store.
            target: Its final place.
            last: The path in the store of its record, without which it is none.
            check: Raises an error if this process must not do it any more.
        """

    @abstractmethod
    def drop_published(self, unfinished: P) -> None:
        """Remove an unfinished store whose complete one is there, where `publish` does not move it in one step."""

    @abstractmethod
    def tidy(self, partial: P, target: P) -> None:
        """Remove what broken transfers left, which nobody but the storage sees. The caller holds the claim."""

    @abstractmethod
    def change(self, journal: P, busy: str) -> AbstractContextManager["Journal"]:
        """Hold the exclusive right to change a complete store, with a journal of the change.

        Args:
            journal: The file of the journal, in the store.
            busy: Message of the StoreExistsError if another process holds the right.
        """

    @abstractmethod
    def is_writable(self, folder: P) -> bool:
        """Return whether files of a folder can be replaced, as far as this is known before it is tried."""

    @abstractmethod
    def put_folder(self, folder: P, stage: P, files: Mapping[str, bytes | P]) -> None:
        """Write a folder, and replace an older version of it; where there are renames, in one step.

        Args:
            folder: The folder.
            stage: A folder of the caller alone, in which it may be made.
            files: For each file, its content or the file that it is a copy of; the metadata of the folder are first.
        """

    @abstractmethod
    def is_copy(self, one: P, other: P) -> bool:
        """Return whether two files are the same, or have equal bytes."""

    @abstractmethod
    def free_bytes(self, place: P) -> tuple[int, str] | None:
        """Return the free space for a place, and of what; None if there is no limit."""
