"""Places: where a store or a file of it is, on a disk (`pathlib.Path`) or in object storage (`ObjectPath`).

Both have the same methods for names and for reading. How they are written differs: see `store.storage`.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import fsspec

from .addresses import OF_A_USER, is_address
from .errors import InvalidArgumentError, LiverDaskError, MissingExtraError, how_to_install
from .threads import ContextPool

T = TypeVar("T")

S3 = ("s3", "s3a")
"""Protocols of S3."""

FILES_AT_ONCE = 16
"""How many small objects are read at the same time."""

GAP, LONGEST_REQUEST = 64 << 10, 8 << 20
"""Bytes between two ranges that are fetched with them rather than by another request, and bytes of such a request."""

SECRET = re.compile("key|secret|token|pass|pwd|auth|credential|connection|sas", re.IGNORECASE)
"""Names of `storage_options`, and of options in them, whose values are not shown in any message."""

CREDENTIALS = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN"}
"""Environment variables of S3, and the options that have the same meaning."""

OF_CODE = {"PreconditionFailed": errno.EEXIST, "412": errno.EEXIST, "ConditionalRequestConflict": errno.EAGAIN}
"""Codes of S3 and the numbers of the errors that they mean; the only condition that is ever set is: no such object."""

COLLAPSED = re.compile(r"[a-z0-9+.-]{2,}:/(?!/)")
"""An address of which pathlib has made one slash of two."""

SHORTEST_SECRET = 6
"""Characters. Shorter values are parts of many words."""


class Stat(NamedTuple):
    """What `ObjectPath.stat` returns, with the names of `os.stat_result`.

    Attributes:
        st_mode: The kind: an object is a regular file, and a common prefix of objects is a folder.
        st_size: Number of bytes.
    """

    st_mode: int
    st_size: int


class ObjectPath:
    """The address of an object, or of all objects whose keys begin with it and a slash, in any storage of fsspec.

    Names and reading are those of `pathlib.Path`. Nothing is cached, because other processes write there. An error of
    the storage is an OSError with one sentence, which shows no secret; only "there is no such object" is a
    FileNotFoundError.

    Args:
        url: Address with a protocol, such as `s3://bucket/crop.zarr`.
        options: fsspec's `storage_options`, such as `key`, `secret` and `endpoint_url`.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        protocol, separator, path = url.partition("://")
        if not separator or not path.strip("/"):
            raise InvalidArgumentError(f"{url!r} is not an address in object storage, such as s3://bucket/crop.zarr.")
        if "?versionId=" in url:
            raise InvalidArgumentError(f"{url!r} names a version of an object; leave the version out.")
        self._protocol, self._path = protocol, PurePosixPath(path.strip("/"))
        self.options = dict(options or {})

    def __str__(self) -> str:
        return f"{self._protocol}://{self._path}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: "ObjectPath") -> bool:
        return self._path.parts < other._path.parts

    def __truediv__(self, name: str | PurePosixPath) -> "ObjectPath":
        return self._at(self._path / name)

    @property
    def protocol(self) -> str:
        """The protocol, such as `s3`."""
        return self._protocol

    @property
    def key(self) -> str:
        """The address without its protocol, as file systems of fsspec take it: `bucket/crop.zarr`."""
        return str(self._path)

    @property
    def name(self) -> str:
        """The last part."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._path.stem

    @property
    def parent(self) -> "ObjectPath":
        """The address without its last part."""
        return self._at(self._path.parent)

    def with_name(self, name: str) -> "ObjectPath":
        """Return the address with another last part."""
        return self._at(self._path.with_name(name))

    def with_suffix(self, suffix: str) -> "ObjectPath":
        """Return the address with another suffix."""
        return self._at(self._path.with_suffix(suffix))

    def relative_to(self, other: "ObjectPath") -> PurePosixPath:
        """Return the parts below another address."""
        return self._path.relative_to(other._path)

    def is_below(self, other: "ObjectPath") -> bool:
        """Return whether this address begins with all parts of another one."""
        return self._path.is_relative_to(other._path)

    @property
    def filesystem_options(self) -> dict[str, Any]:
        """What fsspec is told: the options, and that it caches no listings and asks for no object's size to read it."""
        if self._protocol not in S3:
            return {"use_listings_cache": False, **self.options}
        return {"use_listings_cache": False, "max_concurrency": 1, **_of_environment(self.options), **self.options}

    @property
    def filesystem(self) -> Any:
        """The file system of fsspec; one for each process and set of options."""
        try:
            return fsspec.filesystem(self._protocol, **self.filesystem_options)
        except ImportError as error:
            raise MissingExtraError(
                f"{self} needs a package ({self.hidden(error)}): for S3, {how_to_install('cloud')}."
            ) from None
        except (ValueError, TypeError) as error:
            raise InvalidArgumentError(f"{self} cannot be opened: {self.hidden(error)}.") from None

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system, with its errors as described above."""
        return self.told(lambda: getattr(self.filesystem, method)(*args, **kwargs))

    def told(self, call: Callable[[], T]) -> T:
        """Call a function that asks the storage, with its errors as described above."""
        try:
            return call()
        except FileNotFoundError:
            fault: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        except FileExistsError:
            fault = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        except LiverDaskError:
            raise
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            option = self.hidden(error).rpartition(" ")[2]
            raise InvalidArgumentError(f"storage_options: {self._protocol} has no option {option}.") from None
        except PermissionError as error:
            fault = PermissionError(errno.EACCES, f"access is denied ({self._reason(error)})", str(self))
        except Exception as error:  # each package of fsspec has its own errors, and some are no OSError
            number = OF_CODE.get(_code_in(error), errno.EIO)
            fault = OSError(number, self._reason(error), str(self))  # EEXIST makes it a FileExistsError
        raise fault  # raised here, so that its context does not hold the package's error, which may show a secret

    def hidden(self, text: object) -> str:
        """Return a text on one line, with the secret options masked."""
        shown = " ".join(str(text).split())
        for secret in sorted(_secrets_in(self.filesystem_options), key=len, reverse=True):
            shown = shown.replace(secret, "***")
        return shown.rstrip(".")

    def _reason(self, error: Exception) -> str:
        """Return the message of an error; or its code, because some servers of S3 send no message."""
        said = self.hidden(error)
        return said if said and not said.endswith("None") else _code_in(error) or type(error).__name__

    def stat(self) -> Stat:
        """Return what the address is.

        Raises:
            FileNotFoundError: There is no such object, and none below.
        """
        info = self.call("info", self.key)
        is_folder = info["type"] == "directory"
        return Stat(stat.S_IFDIR if is_folder else stat.S_IFREG, int(info["size"] or 0))

    def exists(self) -> bool:
        """Return whether there is such an object, or one below."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_file(self) -> bool:
        """Return whether there is such an object."""
        if self._protocol not in S3:
            return self._is(stat.S_ISREG)
        bucket, key, _ = self.filesystem.split_path(self.key)
        try:  # without a look at what is below
            self.call("call_s3", "head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether there are objects below."""
        return self._is(stat.S_ISDIR)

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield the objects and common prefixes directly below; none if there are none, as in a new folder."""
        try:
            entries = self.call("ls", self.key, detail=False)
        except FileNotFoundError:
            return
        for entry in entries:
            path = PurePosixPath(entry.strip("/"))
            if path != self._path:  # an empty object `a/`, as some tools write one for a folder
                yield self._at(path)

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield all objects below; `pattern` must be `*`."""
        if pattern != "*":
            raise NotImplementedError(pattern)
        for key in sorted(self.call("find", self.key)):
            if not key.endswith("/") and PurePosixPath(key.strip("/")) != self._path:
                yield self._at(PurePosixPath(key.strip("/")))

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        return bytes(self.call("cat_file", self.key))

    def read_text(self) -> str:
        """Return the content of the object as text."""
        return self.read_bytes().decode()

    def open(self, mode: str = "rb", buffering: int = -1) -> Any:
        """Open the object for reading; each read is a request for the bytes that it returns."""
        return self.call("open", self.key, mode, cache_type="none")

    def _is(self, kind: Callable[[int], bool]) -> bool:
        try:
            return kind(self.stat().st_mode)
        except FileNotFoundError:
            return False

    def _at(self, path: PurePosixPath) -> "ObjectPath":
        return ObjectPath(f"{self._protocol}://{path}", self.options)


def _of_environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of S3 that the environment has and the caller has not given.

    fsspec keeps a file system for each set of options, and s3fs looks into the environment once: who forgot the
    credentials, and gives them there, would not be heard.
    """
    variables = {} if options.keys() & {"key", "secret", "token", "anon", "profile", "session"} else CREDENTIALS
    variables = variables if "endpoint_url" in options else variables | {"endpoint_url": "AWS_ENDPOINT_URL"}
    return {option: os.environ[name] for option, name in variables.items() if os.environ.get(name)}


def _code_in(error: Exception) -> str:
    """Return the code that S3 gave for an error; empty if it gave none."""
    for found in (error, error.__cause__):
        response = getattr(found, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Yield the secrets in some options, however deep, and as they are written in a URL."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets_in(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets_in(inner, name)
    elif isinstance(value, bytes):
        yield from _secrets_in(value.decode(errors="replace"), name)
    elif isinstance(value, str) and SECRET.search(name) and len(value) >= SHORTEST_SECRET:
        yield from {value, quote(value), quote(value, safe="")}


Place = Path | ObjectPath

Named = str | os.PathLike[str] | ObjectPath
"""What names a place: a path, an address in object storage, or a place."""


def path_below(place: Place, folder: Place) -> str:
    """Return the path of a file below a folder, with slashes."""
    if isinstance(place, ObjectPath) and isinstance(folder, ObjectPath):
        return place.relative_to(folder).as_posix()
    if isinstance(place, Path) and isinstance(folder, Path):
        return place.relative_to(folder).as_posix()
    raise ValueError(f"{place} is not below {folder}")


def place_of(target: Named, options: Mapping[str, Any] | None = None) -> Place:
    """Return the place that a user names: an absolute path, or an address in object storage.

    Args:
        target: A path, an address with a protocol other than `file`, or a place.
        options: fsspec's `storage_options` for an address.

    Raises:
        InvalidArgumentError: The address is that of a web server, or of no storage that fsspec knows.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InvalidArgumentError(f"storage_options must be a dict of options, not a {type(options).__name__}.")
    if isinstance(target, ObjectPath):
        return ObjectPath(str(target), {**target.options, **(options or {})})
    text = os.fspath(target)
    protocol, separator, path = text.partition("://")
    if not separator or protocol in ("file", "local"):
        if COLLAPSED.match(text):
            raise InvalidArgumentError(
                f"{text} is no path, and two slashes follow the colon of an address; give it as text, not as a Path."
            )
        if not separator and is_address(text):
            raise InvalidArgumentError(
                f"{text} is an address without its scheme; the path of a folder that is called so begins with ./ or /."
            )
        if separator and not path.startswith("/"):
            raise InvalidArgumentError(f"{text} names no folder: three slashes follow the colon of file:///folder.")
        try:
            return Path(path if separator else text).expanduser().absolute()
        except RuntimeError as error:
            raise InvalidArgumentError(f"{text} is no path ({error}).") from None
    if protocol in ("http", "https") or "::" in text:
        raise InvalidArgumentError(
            f"{text} is not a place for a store; give a folder, or an address in object storage such as s3://bucket/x."
        )
    if "@" in path.partition("/")[0]:
        raise InvalidArgumentError(
            "An address with a user or a password is no place for a store: give storage_options. That of an archive "
            f"may have them if it begins with http, https, {', '.join(OF_A_USER)}."
        )
    place = ObjectPath(text, options)
    place.filesystem  # noqa: B018 - a missing package is told at once
    return place


def storage_options_of(target: Named, options: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
    """Return the `storage_options` for everything below what a user names: those of a place, or those given."""
    return {**target.options, **(options or {})} if isinstance(target, ObjectPath) else options


def ranges_of(place: Place, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read byte ranges (start, stop) of a file."""
    if isinstance(place, ObjectPath):
        return [bytes(data) for data in ranges_of_objects([(place, *bounds) for bounds in ranges])]
    with place.open("rb", buffering=0) as file:
        return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]


def tail_of(place: Place, size: int) -> bytes:
    """Return the last bytes of a file; all of it if it is shorter."""
    if isinstance(place, ObjectPath):
        return bytes(place.call("cat_file", place.key, start=-size))
    with place.open("rb", buffering=0) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.readall()


def ranges_of_objects(wanted: Sequence[tuple[Place, int, int]]) -> list[memoryview]:
    """Read byte ranges (place, start, stop) of objects, several at a time; neighbouring ones in one request.

    Raises:
        OSError: A range cannot be read, or an object is shorter.
    """
    requests = list(_requests(wanted))
    if not requests:
        return []
    place = wanted[0][0]
    if not isinstance(place, ObjectPath):
        raise TypeError(f"{place} is not in object storage")
    keys, starts, stops = zip(
        *((of.key, start, stop) for of, start, stop, _ in requests if isinstance(of, ObjectPath)), strict=True
    )
    answers = place.call("cat_ranges", list(keys), list(starts), list(stops), on_error="raise")
    found: dict[int, memoryview] = {}
    for (of, first, last, numbers), answer in zip(requests, answers, strict=True):
        if len(answer) != last - first:
            raise OSError(errno.EIO, f"the storage sent {len(answer)} of {last - first} bytes", str(of))
        for number in numbers:
            _, start, stop = wanted[number]
            found[number] = memoryview(answer)[start - first : stop - first]
    return [found[number] for number in range(len(wanted))]


def _requests(wanted: Sequence[tuple[Place, int, int]]) -> Iterator[tuple[Place, int, int, list[int]]]:
    """Yield the requests for some ranges: the object, its bytes, and the numbers of the ranges that are in them."""
    order = sorted(range(len(wanted)), key=lambda number: (str(wanted[number][0]), *wanted[number][1:]))
    request: tuple[Place, int, int, list[int]] | None = None
    for number in order:
        place, start, stop = wanted[number]
        if request and place == request[0] and start - request[2] <= GAP and stop - request[1] <= LONGEST_REQUEST:
            request = (place, request[1], max(stop, request[2]), [*request[3], number])
            continue
        if request:
            yield request
        request = (place, start, stop, [number])
    if request:
        yield request


def contents_of(places: Sequence[Place]) -> list[bytes]:
    """Read some small files; those in object storage several at a time."""
    if places and isinstance(places[0], ObjectPath):
        with ContextPool(FILES_AT_ONCE) as pool:
            return list(pool.map(lambda place: place.read_bytes(), places))
    return [place.read_bytes() for place in places]
