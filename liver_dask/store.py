"""A store on disk while it is made: its record, its lock, its pieces and shards, and the step that completes it.

A store is `NAME.partial` until it is complete, and then gets its name in one step. It carries a record of what it is,
as attributes of its group `liver_dask`: only a store with the record of the same call is gone on with, or returned.
"""

import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import zarr

from .errors import InvalidArgumentError, StoreExistsError
from .export_plan import Layout, Region, Shard
from .shards import PART, DurableFile, Piece, merge_pieces, write_piece

RECORD = "liver_dask"
"""The group whose attributes say what a store is."""

PIECES = ".pieces"
FORMAT = 1


def read_record(store: Path) -> dict[str, Any] | None:
    """What was recorded of a store, complete or not; None if it is not one of ours."""
    try:
        found = json.loads((store / RECORD / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


class Store:
    """The files of one store.

    Args:
        target: Where the complete store is to be.
        layout: Its grids.
        content: What tells it from other stores: the same for the same voxels. Goes into its record.
    """

    def __init__(self, target: Path, layout: Layout, content: dict[str, Any]) -> None:
        self.target = target
        self._layout = layout
        self._content = content
        self._partial = target.with_name(target.name + ".partial")

    @property
    def names(self) -> list[str]:
        """Its variables."""
        return list(self._content["variables"])

    def is_written(self) -> bool:
        """Whether the very store is there, complete; StoreExistsError if something else is."""
        if not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir())):
            return False
        found = read_record(self.target)
        if not self._is_of(found) or not (found and found.get("complete")):
            what = "a store of another box, source or layout" if found else "something that liver_dask did not write"
            raise StoreExistsError(f"{self.target} holds {what}; remove it, or choose another path.")
        for name, shard in self._every_shard():
            if not _shard_path(self.target, name, shard).exists():
                raise StoreExistsError(
                    f"{self.target} has lost shard {tuple(shard)} of {name}; remove it to begin anew."
                )
        return True

    @contextmanager
    def claimed(self, write_metadata: Callable[[Path], None]) -> Iterator[bool]:
        """Begin the store, or go on with it, and keep others from it meanwhile.

        Args:
            write_metadata: Writes all of the store but its shards into a folder.

        Yields:
            Whether there is anything left to do: another process may have completed the store a moment ago.

        Raises:
            StoreExistsError: Another process is at it, or it is the unfinished store of another call.
            InvalidArgumentError: The folder cannot be written.
        """
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.target.parent, wait=True):  # of two that begin now, one finds what the other began
                unfinished = not self.is_written()
                if unfinished:
                    self._begin(write_metadata)
                claim = _locked(self._partial if unfinished else self.target, wait=False)
                claim.__enter__()
        except BlockingIOError:
            raise StoreExistsError(f"{self.target} is being written by another process; wait for it to end.") from None
        except OSError as error:
            if isinstance(error, StoreExistsError):
                raise
            raise InvalidArgumentError(f"Cannot write {self.target}: {error.strerror or error}.") from error
        try:
            yield unfinished
        finally:
            claim.__exit__(None, None, None)

    def is_region_written(self, region: Region) -> bool:
        """Whether all pieces of a region are there, or the shards that were made of them."""
        return all(
            self._piece_path(name, region, shard).exists() or _shard_path(self._partial, name, shard).exists()
            for name, shard in product(self.names, self._layout.shards_of(region))
        )

    def write_region(self, region: Region, name: str, rows: Sequence[Sequence[bytes]]) -> None:
        """Write one variable's encoded chunks of a region, and each shard whose last piece that was.

        Args:
            region: The region.
            name: The variable.
            rows: Its chunks, a list for each row of chunks, from left to right.
        """
        across = self._layout.chunks_per_shard[2]
        for shard in self._layout.shards_of(region):
            piece: list[bytes] = []
            for row in rows:
                there = row[shard.x * across : (shard.x + 1) * across]
                piece += [*there, *[b""] * (across - len(there))]  # a shard has chunks beyond the array's end, too
            write_piece(self._piece_path(name, region, shard), piece)
            if all(self._piece_path(name, part, shard).exists() for part in self._layout.regions_of(shard)):
                self._merge(name, shard)

    def complete(self) -> None:
        """Make the shards that a kill left in pieces, record that all is there, and give the store its name."""
        for name, shard in self._every_shard():
            if not _shard_path(self._partial, name, shard).exists():
                self._merge(name, shard)
        shutil.rmtree(self._partial / PIECES, ignore_errors=True)
        for part in self._partial.rglob("*" + PART):  # of a run that was killed
            part.unlink()
        metadata = self._partial / RECORD / "zarr.json"
        document = json.loads(metadata.read_bytes())
        document["attributes"]["complete"] = True
        with DurableFile(metadata) as file:
            file.write(json.dumps(document, indent=2).encode())
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # not in the Zarr specification as yet ...
            zarr.consolidate_metadata(self._partial)  # ... but xarray warns of stores without
        self._partial.replace(self.target)

    def tidy_after(self, error: BaseException) -> None:
        """Leave nothing where nothing was finished; else say what is kept."""
        regions = list(self._layout.regions())
        kept = sum(map(self.is_region_written, regions))
        if kept:
            error.add_note(
                f"{kept} of {len(regions)} regions are kept in {self._partial}; the same call goes on from them."
            )
        else:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _begin(self, write_metadata: Callable[[Path], None]) -> None:
        """Make the unfinished store, without a shard, unless this same call has left one."""
        if self._partial.exists():
            if not self._is_of(read_record(self._partial)):
                raise StoreExistsError(
                    f"{self._partial} is the unfinished store of another call (another box, source or layout); "
                    "finish that call, remove the folder, or choose another path."
                )
            return
        new = self._partial.with_name(f".{self._partial.name}.new")
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
        try:
            new.mkdir()
            write_metadata(new)
            zarr.open_group(new, mode="a").create_group(
                RECORD, attributes={"format": FORMAT, "complete": False, **self._content}
            )
            new.replace(self._partial)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _is_of(self, record: dict[str, Any] | None) -> bool:
        return record is not None and {name: record.get(name) for name in self._content} == self._content

    def _merge(self, name: str, shard: Shard) -> None:
        """Make a shard of its pieces, and remove them."""
        chunks, grid = self._layout.chunks, self._layout.chunks_per_shard
        pieces = [
            Piece(
                self._piece_path(name, region, shard),
                first=(region.z_start // chunks[0] % grid[0], region.y_start // chunks[1] % grid[1], 0),
                grid=(1, -(-(region.y_stop - region.y_start) // chunks[1]), grid[2]),
            )
            for region in self._layout.regions_of(shard)
        ]
        merge_pieces(_shard_path(self._partial, name, shard), grid, pieces)
        for piece in pieces:
            piece.path.unlink()

    def _every_shard(self) -> Iterator[tuple[str, Shard]]:
        z, y, x = map(range, self._layout.shards_along)
        return ((name, Shard(*place)) for name, place in product(self.names, product(z, y, x)))

    def _piece_path(self, name: str, region: Region, shard: Shard) -> Path:
        return self._partial / PIECES / name / f"{region.z_start}-{region.y_start}-{shard.x}"


def _shard_path(store: Path, name: str, shard: Shard) -> Path:
    return store / name / "c" / str(shard.z) / str(shard.y) / str(shard.x)


@contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder, which the system gives back however this process ends; BlockingIOError if taken."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
