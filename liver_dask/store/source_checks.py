"""Check whether the files that a store was made from are unchanged at the source."""

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
from ..core.places import Place
from ..core.threads import ContextPool
from .identity import is_file_of
from .jobs import Report
from .record import MANIFEST
from .worker import READERS, report_of

MOST_COMPARED = 32
"""Maximum number of files whose sizes are compared to decide whether another address has the same archive."""

OPENED_UNASKED = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "memory", "file")
"""Protocols of addresses that may be opened only because a store names them. Absolute local folders may be, too."""


class RecordedFile(NamedTuple):
    """A file that a store was made from: its path below the archive's root, and the version that was read."""

    path: str
    version: FileVersion


@dataclass(frozen=True)
class SourceCheck:
    """Check whether some files of an archive are unchanged.

    Attributes:
        source: The archive's address.
        files: The recorded files.
        by_etag: Whether to compare ETags, too. Another address may have other ETags for the same files.
    """

    source: Source
    files: tuple[RecordedFile, ...]
    by_etag: bool

    def run(self, report: Callable[[Report], None]) -> dict[str, str]:
        """Return a message for each file that has changed, by path; `report` is called as in `Task.write`."""
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
        if found is None or (found == known if self.by_etag else found.size == known.size):
            return None
        return f"{file.url} had {known.size} bytes ({known.etag}), and has {found.size} ({found.etag})"


def read_sources(store: Place, name: str) -> list[tuple[str, FileVersion]]:
    """Return the URLs and the versions of the files that a variable was made from.

    Raises:
        DamagedError: The manifest is missing or cannot be read.
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
    """Plan the checks of those recorded files that the readers read.

    Args:
        sources: URLs and versions of the recorded files.
        readers: Readers of the variable.
        wanted: Returns whether to check the file of a slice (z) of the volume.

    Returns:
        The checks, as the keys of a dict, in order and without duplicates.
    """
    files: dict[tuple[Source, bool], dict[RecordedFile, None]] = {}
    for url, version in sources:
        for reader in [of for of in readers if is_file_of(of.files, url)] or readers:
            z = reader.variable.slice_of(url)
            if z is not None and wanted(z):
                of_source = files.setdefault((reader.source, is_file_of(reader.files, url)), {})
                of_source[RecordedFile(reader.variable.path(z), version)] = None
    return {
        SourceCheck(source, tuple(of), by_etag): None
        for (source, by_etag), all_files in files.items()
        for of in _parts(list(all_files), READERS)
    }


def check_same_archive(
    store: Place, sources: Sequence[tuple[str, FileVersion]], readers: Collection[VolumeReader]
) -> None:
    """Check that files at another address are the files of the store, and do not only have the same names.

    The sizes of up to 32 of the files that were read at another address are compared.

    Args:
        store: The store, complete or not.
        sources: URLs and versions of the files that the store was made from.
        readers: Readers from which the current call would write the store.

    Raises:
        StoreExistsError: A file has another size at the current address.
        LiverDaskError: The files cannot be requested.
    """
    elsewhere = [source for source in sources if not any(is_file_of(reader.files, source[0]) for reader in readers)]
    some = elsewhere[:: max(1, -(-len(elsewhere) // MOST_COMPARED))]
    for check in plan_source_checks(some, readers, lambda z: True):
        for message in check.run(lambda report: None).values():
            raise StoreExistsError(
                f"{store} was made of files at another address, which are not these: {message}. "
                "Correct the source, or choose another path."
            )


def check_recorded_address(store: Place, record: Mapping[str, Any]) -> None:
    """Check that the addresses in a store's record may be opened without the user naming them.

    Raises:
        InvalidArgumentError: The store names an address that only the user may choose. (ValueError)
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
