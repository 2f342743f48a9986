"""The life of a store: how it is begun, resumed, given up and completed.

Until a store is complete, its files are in the folder `NAME.partial`:

===========  ==============================================================================================
`lock`       lock of the process that writes the store; in object storage, claims in `lock/`
`store/`     the store itself: metadata and finished shards; `store.new/` while it is created
`progress/`  what is finished; see `finished`
===========  ==============================================================================================

At the end, `store/` is renamed to the store's own name in one step. In object storage, which has no renames, shards are
at their final place from the start, and the rest of `store/` is copied there, the record last; `progress` has a folder
for each call; see `storage`. A store contains, besides its arrays:

- A record of what the store is, as the attributes of its group `liver_dask`. Only a store whose record matches the call
  is resumed or returned.
- The checksums of the shards of each array, in `manifest.json` in the folder of the array.
- Arrays `nonzero`, `mean` and `std` in the group `liver_dask/VARIABLE`, with one value per inner chunk.
- An inventory of everything that is not a shard.

The levels that `pyramid` adds are stores of the same kind, in a folder of the store.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import zarr

from ..archive.remote.versions import FileVersion
from ..core.disk import is_empty_folder, is_there
from ..core.errors import (
    DamagedError,
    InvalidArgumentError,
    LiverDaskError,
    SourceChangedError,
    StoreExistsError,
)
from ..core.places import Place
from .changes import set_time
from .completion import write_all_but_shards
from .finished import PARTS, Finished
from .identity import digest_of, identity_of
from .layout import Layout, Region
from .levels import voxel_size_of
from .record import (
    FORMAT,
    RECORD,
    check_shards,
    has_record,
    missing_files,
    missing_of,
    read_record,
    what_is_at,
)
from .record_checks import explain_difference, record_problem
from .source_versions import SourceVersions, moved_variables
from .storage.access import storage_of
from .storage.interface import Claim, Storage

_FINAL = (InvalidArgumentError, SourceChangedError, StoreExistsError)
"""Errors that the same call would meet again."""

log = logging.getLogger(__name__)

RECORD_FILE = f"{RECORD}/zarr.json"

NEW = "store.new"
"""The folder of an unfinished store while it is created."""


class Store:
    """The files of one store; a small object, equal in every process that writes the store.

    Args:
        target: Path of the complete store.
        layout: The grids of the store.
        content: What identifies the store, equal for equal voxels. It is written to the record.
        allows_missing: Whether slices whose files do not exist may be zeros in the store.
    """

    def __init__(self, target: Place, layout: Layout, content: dict[str, Any], allows_missing: bool = False) -> None:
        self.target = target
        self.layout = layout
        self.content = content
        self.allows_missing = allows_missing
        self.partial = target.with_name(target.name + ".partial")
        self._began = False  # whether this run created the unfinished store
        self._claim: Claim | None = None
        self._unfinished = self.partial / "store"
        self._new = self.partial / NEW
        self.finished = Finished(
            self._storage.progress_in(self.partial, digest_of(content)),
            self._storage.shards_in(self._unfinished, target),
            target,
            layout,
            content["variables"],
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_claim": None}  # it is held by this process alone

    @property
    def _storage(self) -> Storage[Any]:
        return storage_of(self.target)

    @property
    def names(self) -> list[str]:
        """Names of the variables."""
        return list(self.content["variables"])

    def is_complete(self) -> bool:
        """Return whether exactly this store exists and is complete.

        Raises:
            StoreExistsError: Something else exists at its path, or a shard is missing or damaged.
        """
        found = read_record(self.target)
        if not found and (not is_there(self.target) or is_empty_folder(self.target)):
            return False
        if not found and self._storage.is_filled(self._unfinished, self.target, self._shard_names()):
            return False
        if not found or not self._is_of(found) or not found.get("complete"):
            what = "a store of another box, archive or layout" if found else what_is_at(self.target)
            why = explain_difference(found, self.content) if found else ""
            remove = (
                ", or remove it if nobody needs it" if has_record(self.target) else ""
            )  # others' may be all they have
            raise StoreExistsError(f"{self.target} holds {what}; choose another path{remove}.{why}")
        self._check_missing(missing_files(self.target, self.names))
        try:
            check_shards(self.target, self.names)
        except DamagedError as error:
            raise StoreExistsError(f"{error}; remove it to begin anew.") from error
        return True

    def check(self, voxel_size_nm: Sequence[float] | None) -> bool:
        """Return whether exactly this store is complete, after all checks of what is written of it, for a plan.

        Args:
            voxel_size_nm: The size (z, y, x) that the caller says; None accepts any.

        Raises:
            StoreExistsError: Something else exists at its path, or an unfinished store of another call.
        """
        is_complete = self.is_complete()
        if not is_complete and self._storage.is_begun(self._unfinished):
            self._check_unfinished()
        self.check_voxel_size(voxel_size_nm)
        return is_complete

    def check_voxel_size(self, asked: Sequence[float] | None) -> None:
        """Check that what is written of the store has the voxel size that the caller gives; None accepts any.

        Raises:
            StoreExistsError: It has another one, or none.
        """
        for folder, told in ((self._unfinished, self.partial), (self.target, self.target)):
            if asked is None or not has_record(folder):
                continue
            size = voxel_size_of(folder)
            if size is None or tuple(size) != tuple(asked):
                has = f"voxels of {size} nm (z, y, x)" if size else "no voxel size"
                raise StoreExistsError(
                    f"{told} was made with {has}, and this call says {tuple(asked)}; leave the voxel size out to keep "
                    "the store as it is, correct it with `liver-dask annotate` once it is complete, or choose another "
                    "path."
                )

    @contextmanager
    def locked(self, write_metadata: Callable[[Any], None]) -> Iterator[str]:
        """Create or resume the store, and hold the exclusive right to write it.

        Args:
            write_metadata: Writes everything in the store except its shards into a store of zarr.

        Yields:
            The name of this run; empty if another process completed the store a moment ago.

        Raises:
            StoreExistsError: Another process writes the store, or the unfinished store belongs to another call.
            InvalidArgumentError: The folder cannot be written.
        """
        with self._storage.claim(self.partial, self.target, self._new.name) as claim:
            self._claim = claim
            try:
                if self.is_complete():
                    run = ""
                    self._drop_published()
                else:
                    run = self._begin(write_metadata)
            except BaseException as error:
                self.tidy_after(error)
                self._remove_leftovers(claim)
                if isinstance(error, OSError) and not isinstance(error, LiverDaskError):
                    raise InvalidArgumentError(f"Cannot write {self.target}: {error.strerror or error}.") from error
                raise
            try:
                yield run
            finally:
                self.finished.end_run()
                self._remove_leftovers(claim)

    def written(self) -> set[tuple[str, Region]]:
        """Return the written regions by variable, if the unfinished store is of this call."""
        record = read_record(self._unfinished)
        if record is None or record["format"] != FORMAT or not self._is_of(record):
            return set()
        return self.finished.regions()

    def moved(self, record: Mapping[str, Any] | None) -> list[str]:
        """Return variables whose address has changed since `record` or, if that is None, since the store was begun."""
        found = self.finished.sources.moved if record is None else moved_variables(self.content, record)
        return [moved.name for moved in found]

    def sources(self, name: str) -> list[tuple[str, FileVersion]]:
        """Return the URLs and versions of the files that a variable of the unfinished store is made from so far."""
        return [(file["url"], FileVersion(file["size"], file["tag"])) for file in self.finished.sources.of(name)]

    def complete(self) -> None:
        """Record that the store is complete, and put it at its final place.

        Raises:
            StoreExistsError: Another process has taken the store over, or its record is that of another call.
        """
        self._check_own()
        of = self.finished
        write_all_but_shards(self._unfinished, of.shards, of.folder / "shards", self.layout, self.names, of.sources)
        self._storage.publish(self._unfinished, self.target, RECORD_FILE, self._check_own)
        set_time(self.target)

    def _check_own(self) -> None:
        """Raise StoreExistsError if what is completed is not, or no longer, what this process writes."""
        if self._claim:
            self._claim.check()
        if not self._is_of(read_record(self._unfinished)):
            raise StoreExistsError(
                f"{self._unfinished} has the record of another call, whose last request came late; remove it with "
                f"`liver-dask clean --unfinished {self.target}`, and give the same call again."
            )

    def tidy_beside(self) -> None:
        """Remove the leftovers of a run that was killed during its cleanup, unless another process holds the lock."""
        with suppress(LiverDaskError, OSError):
            if is_there(self.partial):
                with self._storage.claim(self.partial, self.target, self._new.name) as claim:
                    self._drop_published()
                    self._remove_leftovers(claim)

    def discard(self, *, finished_too: bool) -> int:
        """Remove what interrupted runs left, and return how many regions were finished.

        Args:
            finished_too: Whether to remove the unfinished store, too.

        Raises:
            StoreExistsError: Another process writes the store.
        """
        with self._storage.claim(self.partial, self.target, self._new.name) as claim:
            finished = len(self.written()) if self._storage.is_begun(self._unfinished) else 0
            self._storage.tidy(self.partial, self.target)
            found = read_record(self.target)
            if found and found.get("complete") and self._is_of(found):
                self._drop_published()
            elif finished_too and self._storage.is_begun(self._unfinished):
                progress = [self.finished.folder / kind for kind in reversed(PARTS)]
                is_free = not has_record(self.target)  # else what is there is another store's
                shards = [self.finished.shards / name for name in self._shard_names() if is_free]
                published = self.target if is_free else None
                self._storage.discard(self._unfinished, published, self._new, progress, shards)
            self._remove_leftovers(claim)
        return finished

    def tidy_after(self, error: BaseException) -> None:
        """After an error, remove the store that this run began if nothing is finished; otherwise note what is kept.

        If the disk does not tell what is finished, everything is kept.

        Args:
            error: The error; the note is added to it.

        Raises:
            StoreExistsError: The error came because another process has taken the store over; nothing is removed.
        """
        try:
            if self._claim:
                self._claim.check()
        except StoreExistsError as lost:
            if isinstance(error, Exception):
                raise lost from error
            return
        except OSError as fault:
            error.add_note(f"What is finished is kept in {self.partial} ({fault}); the same call goes on from there.")
            return
        try:
            if not self._storage.is_begun(self._unfinished):
                return
            finished = self.written()
            if not finished and self._began and self._withdraw():
                return
        except OSError as fault:
            error.add_note(f"What is finished is kept in {self.partial} ({fault}); the same call goes on from there.")
            return
        if finished:
            share = self.finished.nbytes(finished) / self.finished.nbytes()
            total = len(self.names) * sum(1 for _ in self.layout.regions())
            kept = f"{share:.0%} of it ({len(finished)} of {total} regions) is kept in {self.partial}"
            error.add_note(f"{kept}." if isinstance(error, _FINAL) else f"{kept}; the same call goes on from there.")

    def _withdraw(self) -> bool:
        """Remove the store that this run began, unless a part of it is finished; return whether it was removed."""
        return self._storage.withdraw(self._unfinished, self._new, self.finished.parts)

    def _begin(self, write_metadata: Callable[[Any], None]) -> str:
        """Create the unfinished store without shards, or resume that of the same call; return the name of this run."""
        is_new = not self._storage.is_begun(self._unfinished)
        self._storage.check_target(self.partial, self.target, is_new=is_new)
        if is_new:
            self._remove_new()
            self.finished.make_folders()
            rows = self.layout.shard_rows(self.names)
            folders = {f"{row.name}/c/{row.z}/{row.y}" for row in rows}
            self._storage.begin(self._unfinished, self._new, self._metadata(write_metadata), sorted(folders))
            self._began = True
        else:
            self._check_unfinished()
            self._check_missing(missing_of(self.finished.sources.all()))
            self.finished.make_folders()
        return self.finished.begin_run()

    def _metadata(self, write_metadata: Callable[[Any], None]) -> dict[str, bytes]:
        """Return everything in the store except its shards, by path; the record is last."""
        found: dict[str, Any] = {}
        store = zarr.storage.MemoryStore(found)
        write_metadata(store)
        record = {"format": FORMAT, "complete": False, **self.content}
        zarr.open_group(store, mode="a").create_group(RECORD, attributes=record)
        files = {name: buffer.to_bytes() for name, buffer in found.items()}
        return files | {RECORD_FILE: files.pop(RECORD_FILE)}

    def _check_unfinished(self) -> None:
        """Raise StoreExistsError if this call cannot resume the unfinished store."""
        record = read_record(self._unfinished)
        if record is None:
            raise StoreExistsError(
                f"{self._unfinished} is {what_is_at(self._unfinished)}; remove {self.partial}, or choose another path."
            )
        if record["format"] != FORMAT:
            raise StoreExistsError(
                f"{self.partial} is an unfinished store of format {record['format']}, which an earlier liver_dask "
                f"began; this one, of format {FORMAT}, cannot go on with it: finish it with that version, or remove it "
                "to begin anew."
            )
        problem = record_problem(record)
        if problem:
            raise StoreExistsError(
                f"{self.partial} is an unfinished store whose record is damaged ({problem}); remove it to begin anew."
            )
        if not self._is_of(record):
            raise StoreExistsError(
                f"{self.partial} is the unfinished store of another call; finish that call, remove it "
                f"(`liver-dask clean --unfinished {self.target}`), or choose another path."
                f"{explain_difference(record, self.content)}"
            )
        self.finished.sources = SourceVersions(
            self.finished.sources.folder, record, moved_variables(self.content, record)
        )
        self.content = {key: record[key] for key in self.content}  # it may name an earlier address of the archive

    def _remove_new(self) -> None:
        """Remove what a run that was killed at its beginning left, and the progress files of a completed store.

        Do not call this if there is an unfinished store.
        """
        self._storage.remove_tree(self._new)
        self.finished.remove()

    def _remove_leftovers(self, claim: Claim) -> None:
        """Remove the files around the unfinished store if it certainly does not exist.

        Files that this package did not write are kept, and so is the folder that contains them.
        """
        try:
            if not self._storage.is_begun(self._unfinished):
                claim.check()
                self._remove_new()
                self._storage.remove_tree(self._unfinished)  # of a store that was being dropped, record first
                self._storage.tidy(self.partial, self.target)
                claim.remove()
        except OSError as error:
            log.info("%s could not be removed (%s)", self.partial, error)

    def _is_of(self, record: dict[str, Any] | None) -> bool:
        return record is not None and identity_of(record) == identity_of(self.content)

    def _check_missing(self, missing: Sequence[str]) -> None:
        """Raise StoreExistsError if files were missing, and the caller does not accept zeros for them."""
        if missing and not self.allows_missing:
            raise StoreExistsError(
                f"{self.target} has zeros where {len(missing)} files did not exist, {missing[0]} for one; open the "
                'source with missing="zeros" (--missing zeros) to take that, or choose another path.'
            )

    def _drop_published(self) -> None:
        """Remove the unfinished store of a complete one; that of another call stays."""
        if self._is_of(read_record(self._unfinished)):
            self._storage.drop_published(self._unfinished)

    def _shard_names(self) -> set[str]:
        """Return the paths of all shards in the store."""
        rows = self.layout.shard_rows(self.names)
        shards = [(row.name, shard) for row in rows for shard in self.layout.shards_of(row)]
        return {f"{name}/c/{'/'.join(map(str, shard))}" for name, shard in shards}
