"""The fetched prefix of a PNG file: it is fetched over several connections, and cached in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...core.errors import FormatError
from ..remote.cache import FolderCache
from ..remote.files import RemoteFile
from ..remote.ranges import ByteRange
from .png_stream import Chunks, Layout, layout_of

LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"

TAIL = 1024
"""Bytes at the end of a file in which that chunk is looked for: some programs write something after it."""

FIRST_REQUEST = 128 << 10
SMALLEST_REQUEST = 128 << 10
"""Smallest byte range into which the bytes after the first request are split over the connections."""


class PngFile:
    """A PNG file of which only a prefix is fetched. Only one thread may use it at a time.

    Args:
        file: The file.
        height: Expected number of rows.
        width: Expected number of columns.
        folder: Folder that caches the prefix between processes, or None.
    """

    def __init__(self, file: RemoteFile, height: int, width: int, folder: FolderCache | None) -> None:
        self.chunks = Chunks(file.url)
        self._file = file
        self._shape = height, width
        self._folder = folder
        self._stored = 0
        self._layout: Layout | None = None
        self._is_torn = False

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        return self._file.nbytes + len(self.chunks.prefix)

    @property
    def size(self) -> int:
        """Size of the whole file in bytes, known after the first fetch."""
        assert self._file.version is not None
        return self._file.version.size

    def layout(self) -> Layout:
        """Return how the pixels are stored.

        The first call fetches the beginning of the file. After an interrupt, the fetched bytes are parsed again.

        Raises:
            FormatError: The file is not a PNG of the expected size, or holds no image.
        """
        if self._is_torn:
            self.chunks = self.chunks.read_anew()
            self._is_torn = False
        if self._layout is None:
            if not self.chunks.prefix:
                self._load_beginning()
            while not self.chunks.reached_image:
                if not self.fetch(FIRST_REQUEST):
                    raise self.damaged("holds no image")
            self._layout = layout_of(self.chunks, *self._shape)
        return self._layout

    def check_end(self) -> None:
        """Raise FormatError if the file does not end as it should; of a large file, this fetches the last bytes."""
        self.layout()
        if self.chunks.ended:
            return
        is_whole = len(self.chunks.prefix) >= self.size
        tail = b"" if is_whole else bytes(self._file.fetch(max(self.size - TAIL, 0), self.size))
        if LAST_CHUNK not in tail:
            raise self.damaged("has no end (IEND)")

    def fetch(self, count: int) -> bool:
        """Fetch the next `count` bytes over several connections; return False if the image has ended."""
        first = len(self.chunks.prefix)
        count = min(count, self.size - first)
        if count <= 0 or self.chunks.ended:
            return False
        step = max(SMALLEST_REQUEST, -(-count // self._file.connections))
        requests = [[ByteRange(start, min(start + step, first + count))] for start in range(first, first + count, step)]
        parts: dict[int, list[memoryview]] = {}
        self._file.fetch_each(requests, parts.__setitem__)
        self._append(b"".join(part for i in range(len(requests)) for part in parts[i]))
        return True

    def store_in_folder(self) -> None:
        """Cache the prefix in the folder: the first time, at the end, and whenever it has grown by half."""
        prefix = self.chunks.prefix
        if not (self._folder and self._file.version and self._file.version.etag) or len(prefix) == self._stored:
            return
        if len(prefix) == self.size or len(prefix) > 1.5 * self._stored:
            self._folder.store("masks", self._file.url, self._file.version, bytes(prefix))
            self._stored = len(prefix)

    def damaged(self, problem: str) -> FormatError:
        """Return a FormatError that says what is wrong with the file."""
        return FormatError(f"{self._file.url}: {problem}; the file is damaged or cut short at its source.")

    def _load_beginning(self) -> None:
        cached = self._folder.load("masks", self._file.url) if self._folder else None
        if cached and self._file.is_current(cached[0]):
            self._append(cached[1])
            self._stored = len(cached[1])
        else:
            self._append(self._file.fetch(0, FIRST_REQUEST))

    def _append(self, data: bytes | memoryview) -> None:
        with self._changing():
            self.chunks.append(data)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Mark the chunks as inconsistent during a change; the mark remains if the change is interrupted."""
        self._is_torn = True
        yield
        self._is_torn = False
