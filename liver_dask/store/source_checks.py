"""Whether the files that a store was made of are still the ones that its source has."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..archive.reader import VolumeReader
from ..archive.remote.files import RemoteFile
from ..archive.remote.source import Source
from ..archive.remote.versions import MISSING, FileVersion
from ..core.documents import read_document, short
from ..core.errors import DamagedError, InvalidArgumentError, SliceNotFoundError, StoreExistsError
from ..core.threads import ContextPool
from .identity import is_file_of
from .jobs import Report
from .record import MANIFEST
from .worker import READERS, report_of

MOST_COMPARED = 32
"""Files of which the sizes tell whether an archive is the same at another address."""

OPENED_UNASKED = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "memory", "file")
"""Protocols of addresses that are opened because a store names them; local folders, too."""


class RecordedFile(NamedTuple):
    """A file that a store was made of: its path below the archive's root, and which version of it was read."""

    path: str
    version: FileVersion


@dataclass(frozen=True)
class SourceCheck:
    """Whether some files of an archive are as they were.

    Attributes:
        source: The archive.
        files: What was recorded of them.
        by_tag: Whether ETags can be compared, too: those of another address need not be the same.
    """

    source: Source
    files: tuple[RecordedFile, ...]
    by_tag: bool

    def run(self, report: Callable[[Report], None]) -> dict[str, str]:
        """By path, what is told of each file that is another; see Task.write."""
        with ContextPool(READERS) as pool:
            found = dict(zip(self.files, pool.map(self._change, self.files), strict=True))
        report(report_of(0))
        return {file.path: message for file, message in found.items() if message}

    def _change(self, recorded: RecordedFile) -> str | None:
        file = RemoteFile(self.source, recorded.path)
        known = recorded.version
        try:
            file.fetch(0, 1)
        except SliceNotFoundError:
            return None if known == MISSING else f"{file.url} is no longer there"
        if known == MISSING:
            return f"{file.url} was not there, and is now"
        found = file.version
        if found is None or (found == known if self.by_tag else found.size == known.size):
            return None
        return f"{file.url} had {known.size} bytes ({known.etag}), and has {found.size} ({found.etag})"


def read_sources(store: Path, name: str) -> list[tuple[str, FileVersion]]:
    """The URLs of the files that a variable was made of, and their versions.

    Raises:
        DamagedError: They are not there.
    """
    path = store / name / MANIFEST
    try:
        sources = read_document(path, f"has the sources of {name}")["sources"]
        return [(str(source["url"]), FileVersion(int(source["size"]), str(source["tag"]))) for source in sources]
    except DamagedError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise DamagedError(f"{path}, which has the sources of {name}, cannot be read ({error}).") from error


def plan_source_checks(
    sources: Iterable[tuple[str, FileVersion]],
    readers: Collection[VolumeReader],
    wanted: Callable[[int], bool],
) -> dict[SourceCheck, None]:
    """Checks of those recorded files that the readers read, of the slices of the volume that are wanted."""
    files: dict[tuple[Source, bool], dict[RecordedFile, None]] = {}
    for url, version in sources:
        for reader in readers:
            z = reader.variable.slice_of(url)
            if z is not None and wanted(z):
                of_source = files.setdefault((reader.source, is_file_of(reader.files, url)), {})
                of_source[RecordedFile(reader.variable.path(z), version)] = None
    return {
        SourceCheck(source, tuple(of), by_tag): None
        for (source, by_tag), all_files in files.items()
        for of in _parts(list(all_files), READERS)
    }


def check_same_archive(
    store: Path, sources: Sequence[tuple[str, FileVersion]], readers: Collection[VolumeReader]
) -> None:
    """Refuse a store of files that only have the same names: some that were read elsewhere are compared by size.

    Args:
        store: The store, complete or not.
        sources: The URLs of the files that it was made of, and their versions.
        readers: What a call would make it of.

    Raises:
        StoreExistsError: A file has another size where it is now.
        LiverDaskError: The files cannot be asked for.
    """
    elsewhere = [source for source in sources if not any(is_file_of(reader.files, source[0]) for reader in readers)]
    some = elsewhere[:: max(1, -(-len(elsewhere) // MOST_COMPARED))]
    for check in plan_source_checks(some, readers, lambda z: True):
        for message in check.run(lambda report: None).values():
            raise StoreExistsError(
                f"{store} was made of files at another address, which are not these: {message}. Choose another path."
            )


def check_recorded_address(store: Path, record: Mapping[str, Any]) -> None:
    """Refuse to open an address of a kind that only the caller may ask for.

    Raises:
        InvalidArgumentError: The store names such a one. (ValueError)
    """
    for variable in record["variables"].values():
        address = variable["voxels"]["source"] if isinstance(variable["voxels"], dict) else "/"
        protocol, separator, _ = address.partition("://")
        if (protocol not in OPENED_UNASKED or "::" in address) if separator else not Path(address).is_absolute():
            raise InvalidArgumentError(
                f"{store} says that it was made of {short(address)}, which is not opened unasked; "
                "name the archive's address: source=..., or --source."
            )


def _parts(files: list[RecordedFile], length: int) -> list[list[RecordedFile]]:
    return [files[i : i + length] for i in range(0, len(files), length)]
