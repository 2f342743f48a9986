"""Small requests to one archive: the headers of a file, asked for again after faults, and how long answers took."""

from contextlib import suppress
from time import monotonic

from ...core.errors import LiverDaskError, SliceNotFoundError
from ..remote.files import transport_of
from ..remote.source import Headers, Method, Source
from ..remote.tries import Tries


class Asker:
    """Asks for the headers of files, on any thread.

    Args:
        source: The archive.

    Attributes:
        method: How a web server is asked: HEAD once that is known to work, otherwise GET for the first byte.
        seconds: How long each answer took.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.method: Method = "GET"
        self.seconds: list[float] = []

    def url(self, path: str) -> str:
        """Return the address of a file."""
        return f"{self.source.url}/{path}"

    def peek(self, path: str, method: Method = "GET") -> Headers:
        """Return the headers of a file.

        Raises:
            SliceNotFoundError: There is no such file.
            RemoteError: There is no correct answer.
        """
        url, found = self.url(path), list[Headers]()

        def ask(read_timeout: float) -> None:
            began = monotonic()
            found.append(transport_of(self.source).peek(url, method, read_timeout))
            self.seconds.append(monotonic() - began)

        Tries(self.source, url).run(ask)
        return found[-1]

    def find(self, path: str) -> Headers:
        """Do the same in the way that the server allows; a file counts as missing after two answers that say so."""
        if self.method == "HEAD":
            with suppress(LiverDaskError):
                found = self.peek(path, "HEAD")
                if found.size:  # else HEAD may be answered without the size
                    return found
            return self.peek(path)
        with suppress(SliceNotFoundError):
            return self.peek(path)
        return self.peek(path)
