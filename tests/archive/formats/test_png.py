"""One mask of a slice is read in parts, by several threads, and after interrupts and failed requests."""

import linecache
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import liver_dask as ld
from helpers.masks import png_in_chunks
from helpers.memory_file import MemoryFile
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import mask_rows, png, png_file, png_rows, png_stream
from liver_dask.archive.formats.png import PngSlice
from liver_dask.core.threads import ReadCancelledError, cancel_unless
from liver_dask.demo import RangeRequestHandler, make_archive, serve

HEIGHT, WIDTH = 150, 40


@pytest.fixture
def mask(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, bytes]:
    """Pixels, and their PNG of several chunks; a request fetches one or two of them."""
    pixels = np.where(np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3, 255, 0).astype(np.uint8)
    for module in (png, mask_rows):
        monkeypatch.setattr(module, "BLOCK_ROWS", 32)
    monkeypatch.setattr(png_rows, "STEP_ROWS", 16)
    for name, value in {"FIRST_REQUEST": 300, "SMALLEST_REQUEST": 200}.items():
        monkeypatch.setattr(png_file, name, value)
    for name in ("MARGIN", "MARGIN_LIMIT", "PRIOR_ROWS"):
        monkeypatch.setattr(png, name, 1)
    return pixels, png_in_chunks(pixels, 200)


def read(item: PngSlice, start: int, stop: int) -> np.ndarray:
    out = np.full((stop - start, WIDTH), 7, np.uint8)
    item.read(np.arange(start, stop), slice(0, WIDTH), out)
    return out


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th line that runs in some modules, as Ctrl-C does, and counts these lines."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in (png.__file__, png_file.__file__, png_rows.__file__, png_stream.__file__):
            return None
        of_block = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith(("with ", "try:"))
        if event == "line" and not of_block:  # these lines call nothing, so no interrupt can occur
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self

    def call(self, function: Callable[[], Any]) -> None:
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)


def test_an_interrupt_anywhere_costs_no_pixel(mask: tuple[np.ndarray, bytes]) -> None:
    """After an interrupt at any line of a read, the next reads of the same slice give the right pixels."""
    pixels, file = mask
    count = InterruptAt(10**9)
    count.call(lambda: read(PngSlice(MemoryFile(file), HEIGHT, WIDTH, np.dtype("uint8"), "", None), 0, HEIGHT))
    lines = 10**9 - count.left
    assert lines > 300
    for number in range(1, lines + 1):
        item = PngSlice(MemoryFile(file), HEIGHT, WIDTH, np.dtype("uint8"), "", None)
        InterruptAt(number).call(lambda item=item: read(item, 0, HEIGHT))
        np.testing.assert_array_equal(read(item, 70, HEIGHT), pixels[70:], f"line {number}")
        np.testing.assert_array_equal(read(item, 0, 100), pixels[:100], f"line {number}")


class FailingFile(MemoryFile):
    """Its n-th request fails."""

    failing = -1

    def fetch_ranges(self, ranges: Any) -> list[memoryview]:
        self.failing -= 1
        if self.failing == 0:
            raise TimeoutError
        return super().fetch_ranges(ranges)


def test_a_request_that_was_given_up_costs_no_pixel(mask: tuple[np.ndarray, bytes]) -> None:
    """After a failed request, the next reads give the right rows and fetch at most one request's bytes twice."""
    pixels, file = mask
    failed = 0
    for number in range(1, 12):
        memory_file = FailingFile(file)
        memory_file.failing = number
        item = PngSlice(memory_file, HEIGHT, WIDTH, np.dtype("uint8"), "", None)
        for stop in (1, 20, 32, 33, 60, 64, 100, HEIGHT, HEIGHT):
            try:
                np.testing.assert_array_equal(read(item, 0, stop), pixels[:stop])
            except TimeoutError:
                failed += 1
        assert sum(memory_file.sent) <= len(file) + max(memory_file.sent)  # fetched along with the failed one
    assert failed > 5


def test_many_threads_read_one_mask(mask: tuple[np.ndarray, bytes]) -> None:
    """Six threads that read one mask at the same time all get the right rows."""
    pixels, file = mask
    item = PngSlice(MemoryFile(file), HEIGHT, WIDTH, np.dtype("uint8"), "", None)
    wrong: list[tuple[int, int]] = []

    def look(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(30):
            start, stop = sorted(random.choice(HEIGHT + 1, 2, replace=False).tolist())
            if (read(item, start, stop) != pixels[start:stop]).any():
                wrong.append((start, stop))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_fewer_rows_of_a_mask_after_a_read_that_was_given_up(tmp_path: Path) -> None:
    """After a cancelled read of a whole mask, smaller and then larger windows of it are read right."""
    height, width = 200, 4001
    make_archive(tmp_path, (1, height, width))
    pixels = np.random.default_rng(0).integers(0, 2, (height, width), np.uint8) * 255
    Image.fromarray(pixels).save(tmp_path / EMPIAR_13356.path("er", 0))
    asked: list[str] = []

    class Noting(RangeRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    with serve(tmp_path, Noting) as server:
        er = ld.open_human_liver_em(server.url, shape=(1, height, width), labels="er").er[0].data.lazy
        with pytest.raises(ReadCancelledError), cancel_unless(lambda: len(asked) < 2):
            er[0:height, :]
        for stop in (*range(60, 90, 3), height):
            np.testing.assert_array_equal(er[0:stop, :], pixels[:stop])
