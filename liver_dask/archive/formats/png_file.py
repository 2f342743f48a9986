"""The beginning of a PNG file, as far as it was fetched: ranges over several connections, and what a folder caches."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...core.errors import FormatError
from ..remote.cache import FolderCache
from ..remote.files import RemoteFile
from ..remote.ranges import ByteRange
from .png_stream import Chunks, Layout, layout_of

FIRST_REQUEST = 128 << 10
SMALLEST_REQUEST = 128 << 10
"""What follows the first request is split over the connections, but into no smaller ranges (bytes)."""


class PngFile:
    """A PNG of which only a prefix is fetched. One thread uses it at a time.

    Args:
        file: The file.
        height: Rows that it is to have.
        width: Columns that it is to have.
        folder: Caches the prefix between processes, if there is one.
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
        """Bytes of memory that it keeps."""
        return self._file.nbytes + len(self.chunks.prefix)

    @property
    def size(self) -> int:
        """Bytes of the whole file, known once something was fetched."""
        assert self._file.version is not None
        return self._file.version.size

    def layout(self) -> Layout:
        """How the pixels are stored; fetches the beginning, the first time, and parses it anew after an interrupt.

        Raises:
            FormatError: It is no PNG of the expected size, or holds no image.
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

    def fetch(self, count: int) -> bool:
        """Fetch the next `count` bytes of the file, over several connections; False where the image has ended."""
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
        """Cache what was fetched: at first, at the end, and whenever it has grown by half."""
        prefix = self.chunks.prefix
        if not (self._folder and self._file.version and self._file.version.etag) or len(prefix) == self._stored:
            return
        if len(prefix) == self.size or len(prefix) > 1.5 * self._stored:
            self._folder.store("masks", self._file.url, self._file.version, bytes(prefix))
            self._stored = len(prefix)

    def damaged(self, problem: str) -> FormatError:
        """The error that says so."""
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
        """Meanwhile the chunks do not fit together; so it stays after an interrupt."""
        self._is_torn = True
        yield
        self._is_torn = False
