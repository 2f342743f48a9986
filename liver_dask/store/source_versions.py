"""The versions of the files that an unfinished store is made from, on disk, so that versions are never mixed.

The archive may have moved since the store was begun. A file is then known by the URL that it had at that time.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..archive.description import Variable
from ..archive.remote.versions import MISSING, FileVersion
from ..core.disk import content_of, files_in
from ..core.errors import SourceChangedError
from ..core.places import Place, contents_of
from .identity import is_file_of, recorded
from .storage.access import storage_of


class MovedVariable(NamedTuple):
    """A variable whose files have another address, or are described otherwise, than when the store was begun.

    Attributes:
        name: The variable of the store.
        now: Address of the archive in the current call, and its variable.
        then: The same in the record.
    """

    name: str
    now: tuple[str, Variable]
    then: tuple[str, Variable]

    def recorded_url(self, url: str) -> str | None:
        """Return the URL that a file had when the store was begun; None if it is no file of the variable."""
        (root, variable), (recorded_root, recorded_variable) = self.now, self.then
        z = variable.slice_of(url)
        if z is None or url != f"{root}/{variable.path(z)}":
            return None
        return f"{recorded_root}/{recorded_variable.path(z)}"


def moved_variables(content: Mapping[str, Any], record: Mapping[str, Any]) -> list[MovedVariable]:
    """Return the variables whose files in the call are not those in the record of the same store."""
    found = []
    for name, variable in content["variables"].items():
        if isinstance(variable["voxels"], dict):
            now, then = ((of["voxels"]["source"], recorded(of)) for of in (variable, record["variables"][name]))
            if now[0] != then[0] or now[1].places != then[1].places:
                found.append(MovedVariable(name, now, then))
    return found


class SourceVersions:
    """The recorded versions of the files of one unfinished store; a small object, equal in every process.

    Args:
        folder: Folder with one JSON file for each source file.
        record: The record of the store.
        moved: The variables that have moved since the store was begun.
    """

    def __init__(self, folder: Place, record: Mapping[str, Any], moved: list[MovedVariable]) -> None:
        self.folder = folder
        self.moved = moved
        self._variables = record["variables"]
        self._noted: dict[str, FileVersion] = {}  # by this process

    def note(self, url: str, version: FileVersion) -> None:
        """Record the version of a file, unless one is recorded.

        Raises:
            SourceChangedError: Another version is recorded: parts of the store were made from it.
        """
        if self._noted.get(url) == version:
            return
        path = self._path(url)
        content = content_of(path)
        if content is None:
            now = {"url": url, "file": self._recorded_url(url), "size": version.size, "tag": version.etag}
            new = json.dumps(now, indent=1).encode()
            content = new if storage_of(path).write_new(path, new) else path.read_bytes()
        noted = json.loads(content)
        known = FileVersion(noted["size"], noted["tag"])
        if not _may_be(version, known, same_url=noted["url"] == url):
            partial = self.folder
            while not partial.name.endswith(".partial"):
                partial = partial.parent
            store = partial.with_name(partial.name.removesuffix(".partial"))
            raise SourceChangedError(
                f"{url} is not the file that parts of {store} were made of: it had {known.size} bytes "
                f"({known.etag}), and has {version.size} ({version.etag}). Remove {partial} to begin anew, "
                f"or {path} if you know that the same voxels are where they were."
            )
        self._noted[url] = version

    def all(self) -> list[dict[str, Any]]:
        """Return what is recorded: `url`, `file` (its URL when the store was begun), `size` and `tag` of each file."""
        return [json.loads(content) for content in contents_of(files_in(self.folder, ".json"))]

    def of(self, name: str, among: Sequence[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """Return what is recorded of the files that a variable is made from, if given, among these."""
        patterns = self._variables[name]["files"]
        known = self.all() if among is None else among
        return [file for file in known if any(is_file_of(of, file.get("file", file["url"])) for of in patterns)]

    def _recorded_url(self, url: str) -> str:
        """Return the URL of a file at the address from which the store was begun."""
        found = (moved.recorded_url(url) for moved in self.moved)
        return next((recorded for recorded in found if recorded), url)

    def _path(self, url: str) -> Place:
        digest = hashlib.sha256(self._recorded_url(url).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.json"


def _may_be(version: FileVersion, known: FileVersion, *, same_url: bool) -> bool:
    """Return whether two versions may be the same. Another server has other ETags and dates, so sizes decide."""
    if same_url or MISSING in (version, known):
        return version == known
    return version.size == known.size
