"""Where an archive is, how it is accessed, and the interface of the transports: one class for each kind of address."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from ...core.errors import (
    RemoteError,
)
from .credentials import Secret
from .ranges import ByteRange
from .versions import FileVersion, Versions


@dataclass(frozen=True)
class Source:
    """Where an archive is, and how it is accessed.

    Attributes:
        url: The archive's root: an http(s) URL, any other fsspec URL, or a local folder; without a final slash.
        connections: Maximum number of concurrent requests, from this process or from all workers of a cluster together.
        timeout: Seconds without a byte after which a request is cancelled and retried, with a longer timeout each time.
        attempts: How often one range is requested before that is an error.
        cache_dir: Folder that caches strip indexes and masks between processes, or None.
        cache_raw_bytes: Bytes of strips that the folder may cache in addition.
        secret: Secret parts of the address; not contained in any other attribute, and never shown.
        versions: The version of each file that is read; it does not count when sources are compared.
    """

    url: str
    connections: int
    timeout: float
    attempts: int
    cache_dir: str | None = None
    cache_raw_bytes: int = 0
    secret: Secret = field(default_factory=Secret, repr=False)
    versions: Versions = field(default_factory=Versions, compare=False, repr=False)

    @property
    def is_http(self) -> bool:
        """Whether the archive is on a web server."""
        return self.url.startswith(("http://", "https://"))


class Headers(NamedTuple):
    """What the headers of one answer say about a file.

    Attributes:
        size: Bytes of the file; None if the headers do not say.
        etag: Its ETag; empty if there is none.
        modified: Its date of change, as the source writes it; empty if there is none.
        content_type: Its media type; empty if there is none.
        is_range: Whether the answer is the one byte that was asked for, and not the beginning of the whole file.
    """

    size: int | None
    etag: str = ""
    modified: str = ""
    content_type: str = ""
    is_range: bool = False

    @property
    def is_page(self) -> bool:
        """Whether a web page was sent, as servers do in place of an error."""
        return self.content_type.lower().startswith("text/html")


Method = Literal["HEAD", "GET"]

Receive = Callable[[FileVersion, int, bytes], None]
"""Called with bytes of a file as they arrive: the version of the file, the offset of the bytes, and the bytes."""


class TransientError(RemoteError):
    """A fault that may not occur again in a retry.

    Attributes:
        wait: Seconds to wait before the retry; None uses the back-off.
        is_stall: Whether the server sent nothing, or almost nothing.
    """

    def __init__(self, reason: str, wait: float | None = None, is_stall: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.is_stall = is_stall


class OneRangeOnlyError(RemoteError):
    """The server does not answer requests for several ranges; it may answer requests for one range each."""


class Transport(Protocol):
    """Requests ranges once, without retries; a fault that may pass is a TransientError.

    Attributes:
        supports_multirange: Whether a request may ask for several ranges, as far as is known; callers may clear it
            after a OneRangeOnlyError.
    """

    supports_multirange: bool

    @property
    def connections(self) -> int:
        """Best number of requests to split a read into: so many requests may run at once."""

    def get(self, url: str, ranges: Sequence[ByteRange], read_timeout: float, receive: Receive) -> None:
        """Fetch ranges, each at most to the end of the file, or the whole of a small file.

        Args:
            url: The file.
            ranges: The ranges, ascending; one, or several if the server supports that.
            read_timeout: Seconds without a byte, or with almost none, after which the request is cancelled.
            receive: Called with the bytes in the order of their arrival.
        """

    def peek(self, url: str, method: Method, read_timeout: float) -> Headers:
        """Ask once for the headers of a file, and for no more than its first byte.

        Args:
            url: The file.
            method: For a web server: HEAD, or GET for the first byte. Of a whole file, sent in place of that, nothing
                is read.
            read_timeout: As in `get`.
        """

    def folders(self, url: str) -> list[str]:
        """Return the names of the folders below `url`, as far as the source lists them."""

    def folder_exists(self, url: str) -> bool:
        """Return whether the source says that a folder exists; `url` ends with a slash."""

    def close_idle(self) -> None:
        """Close connections that are kept open for later requests."""
