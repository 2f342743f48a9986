"""Where an archive is, how it is asked, and what asks: one class for each kind of address."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...core.errors import (
    RemoteError,
)
from .credentials import Secret
from .ranges import ByteRange
from .versions import FileVersion, Versions


@dataclass(frozen=True)
class Source:
    """Where an archive is, and how it is asked.

    Attributes:
        url: The archive's root: an http(s) URL, any other fsspec URL, or a local folder; no slash at the end.
        connections: The most requests under way at once: from this process, or from all workers of a cluster together.
        timeout: Seconds without a byte after which a request is given up and asked again, with more patience each time.
        attempts: How often one range is asked for before that is an error.
        cache_dir: Folder that keeps strip indexes and masks between processes, or None.
        cache_raw_bytes: How many bytes of strips it keeps besides.
        secret: What was secret of the address; in none of the above, and shown nowhere.
        versions: Which version of each file is read; whatever they are, it is the same source.
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
        """Whether the archive is behind a web server."""
        return self.url.startswith(("http://", "https://"))


Receive = Callable[[FileVersion, int, bytes], None]
"""Is given some bytes of a file as they come: which version of it they are of, where they begin, and they."""


class TransientError(RemoteError):
    """A fault that another request may not meet.

    Attributes:
        wait: Seconds to wait before; None leaves it to the back-off.
        is_stall: Whether the server was silent, or nearly so.
    """

    def __init__(self, reason: str, wait: float | None = None, is_stall: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.is_stall = is_stall


class OneRangeOnlyError(RemoteError):
    """The server does not answer requests for several ranges; it may answer one for each."""


class Transport(Protocol):
    """Asks for ranges, once; a fault that may pass is a TransientError.

    Attributes:
        supports_multirange: Whether a request may be for several ranges, as far as is known; whoever gets a
            OneRangeOnlyError may set it.
    """

    supports_multirange: bool

    @property
    def connections(self) -> int:
        """Into how many requests a read is best split now: so many may be under way at once."""

    def get(self, url: str, ranges: Sequence[ByteRange], read_timeout: float, receive: Receive) -> None:
        """Fetch ranges, each at most to the end of the file; or the whole of a small one.

        Args:
            url: The file.
            ranges: The ranges, ascending; one, or where the server takes that, several.
            read_timeout: Seconds without a byte, or with hardly any, after which the request is given up.
            receive: Gets the bytes in the order in which they come.
        """

    def folders(self, url: str) -> list[str]:
        """Names of the folders below `url`, as far as the source lists them."""

    def folder_exists(self, url: str) -> bool:
        """Whether the source says that a folder is there; `url` ends with a slash."""

    def close_idle(self) -> None:
        """Close what is kept open for the next request."""
