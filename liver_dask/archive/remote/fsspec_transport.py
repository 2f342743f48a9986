"""Byte ranges of one file, asked for once, by fsspec: of local folders, s3 and all that is no web server."""

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
from .source import Receive, Source, TransientError
from .versions import FileVersion

T = TypeVar("T")


class FsspecTransport:
    """Ranges of anything else that fsspec opens: folders, memory, s3, ..."""

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
                use_listings_cache=False,  # what a file was when its folder was listed is not what it is
                skip_instance_cache=True,
            )
        except Exception as error:  # whatever the file system's package raises where it cannot connect
            fault = RemoteError(f"{source.url} cannot be opened ({self._secret.hidden(error)}).")
        if fault:
            raise fault  # here, so that no context holds what the package's error may tell

    @property
    def connections(self) -> int:
        """See Transport."""
        return self._share.now if self._share else self._connections

    def get(self, url: str, ranges: Sequence[ByteRange], read_timeout: float, receive: Receive) -> None:
        """See Transport; the file system has its own patience."""
        (start, stop), *_ = ranges
        with self._share or nullcontext():
            found = self._call(lambda: self._read(url, start, stop))
        if isinstance(found, LiverDaskError):
            raise found
        receive(found[0], start, found[1])

    def _call(self, call: Callable[[], T]) -> T:
        """Call a file system; one that is far away may be silent, and does not let itself be ended."""
        return call() if self._is_near else call_aside(call, math.inf, lambda _: None)

    def _read(self, url: str, start: int, stop: int) -> tuple[FileVersion, bytes] | LiverDaskError:
        path = self._fs._strip_protocol(self._secret.into(url))
        try:
            info = self._fs.info(path)
            stop = min(stop, int(info["size"]))
            if stop < start:
                return SourceChangedError(f"{url}: is shorter than when it was first read; read it again.")
            data = self._fs.cat_file(path, start=start, end=stop)
            if _identity_of(self._fs.info(path)) != _identity_of(info):
                return TransientError("the file was changed while it was read")
        except FileNotFoundError:
            return SliceNotFoundError(f"{url}: there is no such file.")
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            return RemoteError(f"{url}: cannot be read ({self._secret.hidden(error)}).")
        except OSError as error:
            return TransientError(self._secret.hidden(error))
        if len(data) != stop - start:
            return TransientError(f"sent {len(data)} of {stop - start} bytes")
        return _identity_of(info), data

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
        """See Transport; fsspec keeps its own connections, and has no way to close the idle ones."""


def _identity_of(info: Mapping[str, Any]) -> FileVersion:
    """Which version of a file a file system tells of."""
    names = ("ETag", "etag", "LastModified", "mtime", "modify", "created")
    etag = next((str(info[name]) for name in names if name in info), "")
    mtime = info.get("mtime")
    modified = mtime if isinstance(mtime, (int, float)) and mtime <= time() else None
    return FileVersion(int(info["size"]), etag, modified)
