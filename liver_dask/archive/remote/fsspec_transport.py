"""One attempt to fetch byte ranges of a file through fsspec: local folders, s3 and everything except web servers."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from time import time
from typing import Any, TypeVar

import fsspec

from ...core.errors import (
    LiverDaskError,
    RemoteError,
    SliceNotFoundError,
    SourceChangedError,
)
from ...core.threads import call_aside
from .ranges import ByteRange
from .shares import share_of
from .source import Headers, Method, Receive, Source, TransientError
from .versions import FileVersion

T = TypeVar("T")

ETAGS = ("ETag", "etag")
DATES = ("LastModified", "mtime", "modify", "created")
"""Names of the attributes by which file systems tell versions of a file apart."""


class FsspecTransport:
    """Ranges of all other sources that fsspec can open: folders, memory, s3, ..."""

    supports_multirange = False

    def __init__(self, source: Source) -> None:
        self._secret = source.secret
        self._is_near = source.url.partition("://")[0] in ("file", "local", "memory") or "://" not in source.url
        self._connections = source.connections
        self._share = None if self._is_near else share_of(source.url, source.connections)
        fault = None
        try:
            self._fs, _ = fsspec.url_to_fs(
                source.secret.into(source.url),
                use_listings_cache=False,  # a listing may be older than the file
                skip_instance_cache=True,
            )
        except Exception as error:  # the file system's package may raise any exception
            fault = RemoteError(f"{source.url} cannot be opened ({self._secret.hidden(error)}).")
        if fault:
            raise fault  # raised here, so that its context does not hold the package's error, which may show the secret

    @property
    def connections(self) -> int:
        """See Transport."""
        return self._share.now if self._share else self._connections

    def get(self, url: str, ranges: Sequence[ByteRange], read_timeout: float, receive: Receive) -> None:
        """See Transport; the file system has its own timeouts, so `read_timeout` is ignored."""
        (start, stop), *_ = ranges
        with self._share or nullcontext():
            found = self._call(lambda: self._read(url, start, stop))
        if isinstance(found, LiverDaskError):
            raise found
        receive(found[0], start, found[1])

    def _call(self, call: Callable[[], T]) -> T:
        """Call a file system; a remote one may hang and cannot be cancelled, so its call runs on its own thread."""
        return call() if self._is_near else call_aside(call, math.inf, lambda _: None)

    def peek(self, url: str, method: Method, read_timeout: float) -> Headers:
        """See Transport; the file system has one way to ask."""
        with self._share or nullcontext():
            found = self._call(lambda: self._unless_fault(url, self._look))
        if isinstance(found, LiverDaskError):
            raise found
        return found

    def _look(self, url: str, path: str) -> Headers | LiverDaskError:
        info = self._fs.info(path)
        if info.get("type") == "directory":
            return RemoteError(f"{url}: is a folder, not a file.")
        names = {name: str(info[name]) for name in (*ETAGS, *DATES) if info.get(name) is not None}
        etag, modified = (next((names[name] for name in of if name in names), "") for of in (ETAGS, DATES))
        return Headers(int(info["size"]), etag, modified, str(info.get("ContentType", "")), is_range=True)

    def _read(self, url: str, start: int, stop: int) -> tuple[FileVersion, bytes] | LiverDaskError:
        return self._unless_fault(url, lambda url, path: self._read_range(url, path, start, stop))

    def _read_range(self, url: str, path: str, start: int, stop: int) -> tuple[FileVersion, bytes] | LiverDaskError:
        info = self._fs.info(path)
        stop = min(stop, int(info["size"]))
        if stop < start:
            return SourceChangedError(f"{url}: is shorter than when it was first read; read it again.")
        data = self._fs.cat_file(path, start=start, end=stop)
        if _identity_of(self._fs.info(path)) != _identity_of(info):
            return TransientError("the file was changed while it was read")
        if len(data) != stop - start:
            return TransientError(f"sent {len(data)} of {stop - start} bytes")
        return _identity_of(info), data

    def _unless_fault(self, url: str, call: Callable[[str, str], T | LiverDaskError]) -> T | LiverDaskError:
        """Return `call(url, path)`, or the error of this package for an error of the file system."""
        try:
            return call(url, self._fs._strip_protocol(self._secret.into(url)))
        except FileNotFoundError:
            return SliceNotFoundError(f"{url}: there is no such file.")
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            return RemoteError(f"{url}: cannot be read ({self._secret.hidden(error)}).")
        except OSError as error:
            return TransientError(self._secret.hidden(error))
        except Exception as error:  # packages of fsspec have errors of their own, such as missing credentials
            if self._is_near:
                raise
            return RemoteError(f"{url}: cannot be read ({self._secret.hidden(error)}).")

    def folders(self, url: str) -> list[str]:
        """See Transport."""
        path = self._fs._strip_protocol(self._secret.into(url))
        entries = self._call(lambda: self._fs.ls(path, detail=True))
        return [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]

    def folder_exists(self, url: str) -> bool:
        """See Transport."""
        path = self._fs._strip_protocol(self._secret.into(url))
        return bool(self._call(lambda: self._fs.isdir(path)))

    def close_idle(self) -> None:
        """See Transport; fsspec manages its own connections, and cannot close the idle ones."""


def _identity_of(info: Mapping[str, Any]) -> FileVersion:
    """Return the version of a file from a file system's information about it."""
    etag = next((str(info[name]) for name in (*ETAGS, *DATES) if name in info), "")
    mtime = info.get("mtime")
    modified = mtime if isinstance(mtime, (int, float)) and mtime <= time() else None
    return FileVersion(int(info["size"]), etag, modified)
