"""Rows of a slice for many requests at once: each row is read once, together with others that are asked for."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..archive.lazy.arrays import VolumeArray, in_memory
from ..core.errors import LiverDaskError
from ..core.threads import ContextPool, ReadCancelledError, cancel_unless, check_cancelled

SECONDS_TO_GATHER = 0.01
"""How long a read waits for further requests: a viewer asks for all chunks of a picture within some milliseconds."""

BYTES_AT_ONCE = 16 << 20
"""Bytes of rows that one read returns at most, unless a single row has more. Reads of this size are cached."""

CLOSED = "What was served is closed; serve it again."

Pixels = npt.NDArray[Any]
Rows = npt.NDArray[np.intp]
Chosen = npt.NDArray[np.bool_]


@dataclass(eq=False)
class _Request:
    """Some rows of a slice that somebody waits for.

    Attributes:
        rows: Row numbers, ascending.
        columns: Columns `start` to `stop` (exclusive).
        keeps: Whether the pixels are wanted now; otherwise only that they are read, and then cached.
        future: Gets the pixels, (rows, columns), none if they are not kept. A cancelled one is not wanted any more.
        pixels: What has come so far; None before the first rows.
        left: Number of reads that have some of the rows and are not finished.
        lock: Held while the future is finished.
    """

    rows: Rows
    columns: slice
    keeps: bool = True
    future: Future[Pixels] = field(default_factory=Future)
    pixels: Pixels | None = None
    left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_wanted(self) -> bool:
        return not self.future.done()

    def finish(self, error: BaseException | None = None) -> None:
        """Give the pixels, or an error, to whoever waits, unless that was done."""
        with self.lock:
            if self.future.done() or not self.future.set_running_or_notify_cancel():
                return
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(np.empty((0, 0)) if self.pixels is None else self.pixels)


@dataclass(eq=False)
class _Read:
    """Rows that are being read.

    Attributes:
        rows: Row numbers, ascending.
        columns: Columns `start` to `stop` (exclusive).
        asked: The requests that wait for it, and which of their rows it has.
    """

    rows: Rows
    columns: slice
    asked: list[tuple[_Request, Chosen]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        return any(request.is_wanted for request, _ in self.asked)

    def promise(self, request: _Request, missing: Chosen) -> Chosen:
        """Let a request wait for the rows that it misses and that this read has; return which it still misses."""
        if self.columns.start > request.columns.start or self.columns.stop < request.columns.stop:
            return missing
        found = missing & np.isin(request.rows, self.rows)
        if found.any():
            self.asked.append((request, found))
            request.left += 1
        return missing & ~found


class RowReader:
    """Reads rows of one variable.

    Args:
        variable: The variable, (z, y, x).
        pool: The threads that read.

    Attributes:
        is_of_files: Whether rows are read from files; these stay cached for a while, which what is computed does not.
    """

    def __init__(self, variable: xr.DataArray, pool: ContextPool) -> None:
        self._variable, self._pool = variable, pool
        self.is_of_files = isinstance(variable.variable._data, VolumeArray)
        self._lock = threading.Lock()
        self._is_closed = False
        self._waiting: dict[int, list[_Request]] = {}  # by slice
        self._reads: defaultdict[int, list[_Read]] = defaultdict(list)  # in progress, by slice

    def ask(self, z: int, rows: Rows, columns: slice, *, keep: bool = True) -> Future[Pixels]:
        """Return a future of the pixels (rows, columns) of a slice. Once it is cancelled, the read may be, too.

        Args:
            z: The slice.
            rows: Row numbers, ascending.
            columns: Columns `start` to `stop` (exclusive).
            keep: Whether the future gets the pixels. If not, they are only cached.
        """
        request = _Request(rows, columns, keep)
        with self._lock:
            if self._is_closed:
                request.finish(LiverDaskError(CLOSED))
                return request.future
            waiting = self._waiting.setdefault(z, [])
            waiting.append(request)
            if len(waiting) == 1:
                self._pool.submit(self._begin, z)
        return request.future

    def close(self) -> None:
        """End all reads; whoever waits gets an error."""
        with self._lock:
            self._is_closed = True
            waiting = [request for requests in self._waiting.values() for request in requests]
            waiting += [request for reads in self._reads.values() for read in reads for request, _ in read.asked]
        for request in waiting:
            request.finish(LiverDaskError(CLOSED))

    def begin(self, z: int, step: int) -> None:
        """Begin to read every so many rows of a slice, if they are read from files: these are cached."""
        if self.is_of_files:
            _, height, width = self._variable.shape
            self.ask(z, np.arange(0, height, step), slice(0, width), keep=False)

    def _begin(self, z: int) -> None:
        """Begin the reads of what waits for a slice, except of rows that are already being read."""
        time.sleep(SECONDS_TO_GATHER)
        with self._lock:
            requests = [request for request in self._waiting.pop(z) if request.is_wanted]
            if self._is_closed:
                return
            try:
                begun = self._plan(self._reads.get(z, []), requests)
            except Exception as error:  # of any kind: whoever waits gets it
                for request in requests:
                    request.finish(error)
                return
            for read in begun:
                self._reads[z].append(read)
                self._pool.submit(self._run, z, read)

    def _plan(self, current: Sequence[_Read], requests: Sequence[_Request]) -> list[_Read]:
        """Return further reads of a slice, so that each request waits for reads that have all of its rows."""
        wanted = [read for read in current if read.is_wanted]
        missing = [_promised(wanted, request, np.ones(len(request.rows), bool)) for request in requests]
        begun = list(self._reads_of(requests, missing))
        for request, rest in zip(requests, missing, strict=True):
            _promised(begun, request, rest)
        return begun

    def _reads_of(self, requests: Sequence[_Request], missing: Sequence[Chosen]) -> Iterable[_Read]:
        """Yield reads of the missing rows of requests, each row with the columns of all that miss it."""
        _, height, width = self._variable.shape
        starts, stops = np.full(height, width), np.zeros(height, np.intp)
        for request, some in zip(requests, missing, strict=True):
            rows = request.rows[some]
            # files are decoded from the left edge, and what is read is cached for neighbours
            starts[rows] = 0 if self.is_of_files else np.minimum(starts[rows], request.columns.start)
            stops[rows] = np.maximum(stops[rows], request.columns.stop)
        wanted = np.flatnonzero(stops)
        for start, stop in np.unique(np.stack([starts[wanted], stops[wanted]]), axis=1).T.tolist():
            rows = wanted[(starts[wanted] == start) & (stops[wanted] == stop)]
            at_once = max(1, BYTES_AT_ONCE // ((stop - start) * self._variable.dtype.itemsize))
            for first in range(0, len(rows), at_once):
                yield _Read(rows[first : first + at_once], slice(start, stop))

    def _run(self, z: int, read: _Read) -> None:
        """Read rows, and hand them to all who wait for them."""
        is_over = False
        while not is_over:
            pixels, failed = None, None
            try:
                pixels = self._pixels_of(z, read)
            except Exception as error:  # of any kind: whoever waits gets it
                failed = error
            with self._lock:  # somebody may have joined a read that was just cancelled
                is_over = pixels is not None or failed is not None or not read.is_wanted
                if is_over:
                    self._reads[z].remove(read)
                    if not self._reads[z]:
                        del self._reads[z]
        for request, rows in read.asked:
            if failed is not None:
                request.finish(failed)
            elif pixels is not None:
                self._hand_over(read, pixels, request, rows)

    def _pixels_of(self, z: int, read: _Read) -> Pixels | None:
        """Return the pixels of a read; None if nobody wants them any more."""
        is_run = read.rows[-1] - read.rows[0] == len(read.rows) - 1
        key = slice(int(read.rows[0]), int(read.rows[-1]) + 1) if is_run else read.rows
        try:
            with cancel_unless(lambda: read.is_wanted):
                return np.asarray(in_memory(self._variable.isel(z=z, y=key, x=read.columns)).values)
        except ReadCancelledError:
            check_cancelled("What is served")  # at the end of the server
            return None

    def _hand_over(self, read: _Read, pixels: Pixels, request: _Request, rows: Chosen) -> None:
        """Copy the rows that a request waits for; it is finished with the last of its reads."""
        if request.keeps and request.is_wanted:
            first, last = (at - read.columns.start for at in (request.columns.start, request.columns.stop))
            found = np.searchsorted(read.rows, request.rows[rows])
            with self._lock:
                if request.pixels is None:
                    request.pixels = np.empty((len(request.rows), last - first), self._variable.dtype)
            request.pixels[rows] = pixels[found, first:last]
        with self._lock:
            request.left -= 1
            is_complete = request.left == 0
        if is_complete:
            request.finish()


def _promised(reads: Iterable[_Read], request: _Request, missing: Chosen) -> Chosen:
    for read in reads:
        missing = read.promise(request, missing)
    return missing
