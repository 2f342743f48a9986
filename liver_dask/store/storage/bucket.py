"""Stores in object storage, through fsspec: whole objects, conditional writes and a claim make them safe.

There are no renames, so shards are written at their final place, and the record of the complete store comes last.
Where the storage is S3, shards are joined from slabs there, and only ranges that are too short for that pass through a
process again; elsewhere all of them do.
"""

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain

from ...core.disk import content_of, sizes_of
from ...core.errors import LiverDaskError, StoreExistsError
from ...core.places import S3, ObjectPath, ranges_of
from ...core.threads import ContextPool
from .claims import Claims
from .interface import Claim, Extent, Storage
from .parts import Part, plan_parts
from .s3 import abort_uploads, join_parts, put_new, remove_objects
from .s3 import content_of as content_of_pieces

OBJECTS_AT_ONCE = 8
"""How many small objects are written at the same time."""

COMPARED_AT_ONCE = 8 << 20
"""Bytes of two objects that are in memory when they are compared."""

RECORD_OF_UNFINISHED = "liver_dask/zarr.json"
"""The object that is written last when a store is begun."""


class Bucket(Storage[ObjectPath]):
    """See Storage."""

    def write(self, place: ObjectPath, pieces: Iterable[bytes | Extent], part: ObjectPath | None = None) -> None:
        """See Storage."""
        if place.protocol not in S3:
            place.call("pipe_file", place.key, content_of_pieces(pieces))
            return
        parts = plan_parts(pieces)
        first, second = next(parts, Part((b"",), is_copy=False)), next(parts, None)
        if second is None and not first.is_copy:
            self._put(place, content_of_pieces(first.pieces), is_shared=part is not None)
        else:
            join_parts(place, chain((first,), () if second is None else (second,), parts))

    def _put(self, place: ObjectPath, data: bytes, *, is_shared: bool) -> None:
        """Write an object in one request, which replaces nothing if several calls may write there, however late."""
        if not is_shared:
            place.call("pipe_file", place.key, data)
            return
        while not put_new(place, data):
            self.remove(place)

    def write_new(self, place: ObjectPath, data: bytes) -> bool:
        """See Storage."""
        return put_new(place, data)

    def remove(self, place: ObjectPath) -> None:
        """See Storage."""
        with suppress(FileNotFoundError):
            place.call("rm_file", place.key)

    def remove_tree(self, folder: ObjectPath) -> None:
        """See Storage."""
        places = list(folder.rglob("*"))
        if folder.protocol in S3:
            remove_objects(places)
        else:
            for place in places:
                self.remove(place)

    def remove_folder(self, folder: ObjectPath) -> None:
        """See Storage."""
        if any(folder.rglob("*")):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))

    def make_folders(self, folders: Iterable[ObjectPath]) -> None:
        """See Storage: there are none."""

    def claim(self, partial: ObjectPath, target: ObjectPath, beside: str) -> AbstractContextManager[Claim]:
        """See Storage: a claim is an object that its holder renews, and that others take over when it is stale."""
        return Claims(partial, target, beside).held()

    def is_claimed(self, partial: ObjectPath) -> bool:
        """See Storage."""
        return Claims(partial, partial, "").exist()

    def check_target(self, partial: ObjectPath, target: ObjectPath, *, is_new: bool) -> None:
        """See Storage. An empty object, as some tools write one for a folder, does no harm."""
        if is_new and any(target.rglob("*")):
            raise StoreExistsError(
                f"{target} holds something that liver_dask did not write, or shards of an unfinished store whose "
                f"{partial.name} is gone; choose another address, or remove it if nobody needs it."
            )

    def progress_in(self, partial: ObjectPath, call: str) -> ObjectPath:
        """See Storage: one for each call, because a request may be carried out late, after another call began."""
        return partial / "progress" / call

    def is_begun(self, unfinished: ObjectPath) -> bool:
        """See Storage: if its record, which is written last, is there."""
        return (unfinished / RECORD_OF_UNFINISHED).is_file()

    def begin(
        self, unfinished: ObjectPath, new: ObjectPath, files: Mapping[str, bytes], folders: Iterable[str]
    ) -> None:
        """See Storage."""
        *others, last = files.items()
        if last[0] != RECORD_OF_UNFINISHED:
            raise AssertionError("the record is not the last file of an unfinished store")
        with ContextPool(OBJECTS_AT_ONCE) as pool:
            list(pool.map(lambda item: self.write(unfinished / item[0], [item[1]]), others))
        # what another call left is removed, but nothing that was just written: a request may be carried out late
        found = {path.relative_to(unfinished).as_posix() for path in unfinished.rglob("*")}
        for name in found - files.keys():
            self.remove(unfinished / name)
        lost = sorted(dict(others).keys() - found)
        if lost:
            raise OSError(errno.EIO, "the storage has not kept what was written", str(unfinished / lost[0]))
        self.write(unfinished / last[0], [last[1]])

    def withdraw(self, unfinished: ObjectPath, new: ObjectPath, progress: Iterable[ObjectPath]) -> bool:
        """See Storage."""
        if any(folder.exists() for folder in progress):
            return False
        self.remove(unfinished / RECORD_OF_UNFINISHED)
        self.remove_tree(unfinished)
        return True

    def shards_in(self, unfinished: ObjectPath, target: ObjectPath) -> ObjectPath:
        """See Storage: at their final place, because an object cannot be renamed."""
        return target

    def discard(
        self,
        unfinished: ObjectPath,
        target: ObjectPath | None,
        new: ObjectPath,
        progress: Iterable[ObjectPath],
        shards: Iterable[ObjectPath],
    ) -> None:
        """See Storage: what says that something is finished is removed before it; and first, what readers open.

        Without its shards, what `publish` has copied would be a store of zeros.
        """
        if target:
            names = [place.relative_to(unfinished).as_posix() for place in unfinished.rglob("*")]
            for name in sorted(names, key=lambda name: name != "zarr.json"):
                if content_of(target / name) == content_of(unfinished / name):
                    self.remove(target / name)
        for folder in progress:
            self.remove_tree(folder)
        with ContextPool(OBJECTS_AT_ONCE) as pool:
            list(pool.map(self.remove, shards))
        self.drop_published(unfinished)

    def is_filled(self, unfinished: ObjectPath, target: ObjectPath, shards: Collection[str]) -> bool:
        """See Storage: shards, and what `publish` has copied before it was interrupted."""
        if not self.is_begun(unfinished):
            return False
        found = (place.relative_to(target).as_posix() for place in target.rglob("*"))
        names = [name for name in found if name not in shards]
        return sizes_of(target, names) == sizes_of(unfinished, names) and all(
            content_of(target / name) == content_of(unfinished / name) for name in names
        )

    def publish(self, unfinished: ObjectPath, target: ObjectPath, last: str, check: Callable[[], None]) -> None:
        """See Storage: everything but shards is copied, the root's metadata and then the record at the end."""
        found = [place.relative_to(unfinished).as_posix() for place in unfinished.rglob("*")]
        first = [name for name in found if name not in ("zarr.json", last)]
        with ContextPool(OBJECTS_AT_ONCE) as pool:
            list(pool.map(lambda name: self.write(target / name, [(unfinished / name).read_bytes()]), first))
        check()
        lost = [name for name, size in zip(first, sizes_of(target, first), strict=True) if size is None]
        if lost:
            raise OSError(errno.EIO, "the storage has not kept what was written", str(target / lost[0]))
        self.write(target / "zarr.json", [(unfinished / "zarr.json").read_bytes()])
        check()
        self.write(target / last, [(unfinished / last).read_bytes()])
        check()  # nobody has removed the shards meanwhile
        self.drop_published(unfinished)

    def drop_published(self, unfinished: ObjectPath) -> None:
        """See Storage: its record is removed first, so that it is no unfinished store any more."""
        self.remove(unfinished / RECORD_OF_UNFINISHED)
        self.remove_tree(unfinished)

    def tidy(self, partial: ObjectPath, target: ObjectPath) -> None:
        """See Storage: uploads that were never completed, whose parts are stored and paid for."""
        for place in (partial, target):
            if place.protocol in S3:
                with suppress(OSError):  # they may be listed by the owner of the bucket alone
                    abort_uploads(place)

    @contextmanager
    def change(self, journal: ObjectPath, busy: str) -> Iterator["_ObjectJournal"]:
        """See Storage: the right is a claim, next to the journal."""
        with Claims(journal.with_suffix(""), journal.parent, "", busy).held() as claim:
            try:
                yield _ObjectJournal(journal, claim)
            except BaseException:
                with suppress(LiverDaskError, OSError):  # the error of the change is the one to tell
                    claim.remove()  # else a change that is refused would leave an object in the store
                raise
            claim.remove()

    def is_writable(self, folder: ObjectPath) -> bool:
        """See Storage: nothing is known."""
        return True

    def put_folder(self, folder: ObjectPath, stage: ObjectPath, files: Mapping[str, bytes | ObjectPath]) -> None:
        """See Storage. Copies are made in the storage; the metadata of the folder are written last."""
        older = set(folder.rglob("*"))
        (first, metadata), *others = files.items()

        def put(item: tuple[str, bytes | ObjectPath]) -> None:
            where, content = item
            if isinstance(content, bytes):
                self.write(folder / where, [content])
            else:
                content.call("cp_file", content.key, (folder / where).key)

        with ContextPool(OBJECTS_AT_ONCE) as pool:
            list(pool.map(put, others))
        put((first, metadata))
        for path in older - {folder / where for where in files}:
            self.remove(path)

    def is_copy(self, one: ObjectPath, other: ObjectPath) -> bool:
        """See Storage."""
        size = one.stat().st_size
        bounds = [(start, min(start + COMPARED_AT_ONCE, size)) for start in range(0, size, COMPARED_AT_ONCE)]
        return size == other.stat().st_size and all(
            ranges_of(one, [part]) == ranges_of(other, [part]) for part in bounds
        )

    def free_bytes(self, place: ObjectPath) -> tuple[int, str] | None:
        """See Storage: no limit."""
        return None


class _ObjectJournal:
    """A Journal that is an object."""

    def __init__(self, place: ObjectPath, claim: Claim) -> None:
        self._place, self._claim = place, claim

    def read(self) -> bytes:
        """See Journal."""
        try:
            return self._place.read_bytes()
        except FileNotFoundError:
            return b""

    def write(self, content: bytes) -> None:
        """See Journal."""
        self._claim.check()
        self._place.call("pipe_file", self._place.key, content)

    def check(self) -> None:
        """See Journal."""
        self._claim.check()

    def clear(self) -> None:
        """See Journal."""
        self._claim.check()
        with suppress(FileNotFoundError):
            self._place.call("rm_file", self._place.key)
