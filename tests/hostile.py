"""Servers that answer as they should not, each a handler for `liver_dask.demo.serve`."""

import time
from collections import Counter

from liver_dask.demo import RangeRequestHandler


class NoRanges(RangeRequestHandler):
    """Ignores ranges and always sends the whole file."""

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        del self.headers["Range"]
        return parsed


class HugeWithoutRanges(NoRanges):
    """Ignores ranges, and says that the file has 880 MB."""

    def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
        self._note(0, 0, 200)
        self.send_response(200)
        self.send_header("Content-Length", "880000000")
        self.end_headers()


class Scripted(RangeRequestHandler):
    """Answers the nth request for a path wrongly, as `faults` says; make a subclass of it for each test."""

    faults: dict[int, str]
    asked: Counter[str]

    def __init_subclass__(cls) -> None:
        cls.asked = Counter()

    def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
        cls = type(self)
        cls.asked[self.path] += 1
        fault = cls.faults.get(cls.asked[self.path], "")
        if fault:
            self._note(start, stop, -1)
        match fault.split():
            case []:
                super().answer(body, start, stop, size, etag)
            case ["stall", seconds]:
                time.sleep(float(seconds))
            case ["reset"]:
                self.close_connection = True
            case ["truncate"]:
                self._send(206, body[: len(body) // 2], f"bytes {start}-{stop - 1}/{size}", etag, len(body))
                self.close_connection = True
            case ["shorter"]:
                half = (stop - start) // 2
                self._send(206, body[:half], f"bytes {start}-{start + half - 1}/{size}", etag, half)
            case ["elsewhere"]:
                self._send(206, body, f"bytes {start + 1}-{stop}/{size}", etag, len(body))
            case ["untold"]:
                self._send(206, body, "", etag, len(body))
            case ["changed"]:
                self._send(206, body, f"bytes {start}-{stop - 1}/{size}", '"another"', len(body))
            case [status, *retry_after]:
                self.send_response(int(status))
                for seconds in retry_after:
                    self.send_header("Retry-After", seconds)
                self.send_header("Content-Length", "0")
                self.end_headers()

    def _send(self, status: int, body: bytes, content_range: str, etag: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", etag)
        self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)


def scripted(faults: dict[int, str]) -> type[Scripted]:
    """A handler whose nth answer for each path is as `faults` says."""
    return type("ScriptedHere", (Scripted,), {"faults": faults})
