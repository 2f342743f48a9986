"""Faulty servers, as handlers for `liver_dask.demo.serve`.

`scripted` defines which response for a path is wrong, and how. `hostile` simulates a slow and faulty archive, with
random faults from a seed. Both treat responses with one range and with several ranges alike.
"""

import mmap
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from liver_dask.demo import RangeRequestHandler

BLOCK = 32 << 10
"""Number of bytes to send at once when the rate is limited."""


class SideBySide(RangeRequestHandler):
    """A slow handler that records how many files are requested at the same time. Each test needs its own subclass.

    Attributes:
        asked: Paths of the requests in progress.
        most: Maximum number of files requested at the same time.
    """

    asked: set[str]
    most = 0

    def __init_subclass__(cls) -> None:
        cls.asked = set()

    def do_GET(self) -> None:
        cls = type(self)
        cls.asked.add(self.path)
        cls.most = max(cls.most, len(cls.asked))
        time.sleep(0.1)
        super().do_GET()
        cls.asked.discard(self.path)


class FarAway(RangeRequestHandler):
    """A handler that responds after a delay, unlike a local disk.

    Attributes:
        seconds: The delay.
    """

    seconds = 0.02

    def send(self, *args: Any) -> None:
        time.sleep(self.seconds)
        super().send(*args)


Parts = Sequence[tuple[int, bytes]]
"""The ranges of a response, each as the offset of its first byte and its bytes."""

MultiRange = Literal["answered", "whole", "first", "refused"]
"""Response to several ranges: 206 with all, 200 with the whole file, 206 with only the first, or 416."""


class NoRanges(RangeRequestHandler):
    """A handler that ignores byte ranges and always sends the whole file."""

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        del self.headers["Range"]
        return parsed


class HugeWithoutRanges(NoRanges):
    """A handler that ignores byte ranges and announces a file of 880 MB."""

    def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
        self._note(0, 0, 200)
        self.send_response(200)
        self.send_header("Content-Length", "880000000")
        self.end_headers()


class _Faulty(RangeRequestHandler):
    """A handler whose responses, with one or several ranges, all go through `give`.

    Responses can have wrong parts or break off.
    """

    def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
        self.give([(start, body)], size, etag)

    def answer_parts(self, parts: Parts, size: int, etag: str) -> None:
        self.give(parts, size, etag)

    def give(self, parts: Parts, size: int, etag: str) -> None:
        """Respond with these parts, regardless of the requested ranges."""
        if len(parts) > 1:
            super().answer_parts(parts, size, etag)
        else:
            start, body = parts[0]
            super().answer(body, start, start + len(body), size, etag)

    def give_shorter(self, parts: Parts, size: int, etag: str) -> None:
        """Send only half of the last part, with headers that match it."""
        start, body = parts[-1]
        _Faulty.give(self, [*parts[:-1], (start, body[: max(len(body) // 2, 1)])], size, etag)

    def give_elsewhere(self, parts: Parts, size: int, etag: str) -> None:
        """Send ranges that are shifted by one byte, with headers that match them."""
        with Path(self.translate_path(self.path)).open("rb") as file:
            moved = [(start + 1, os.pread(file.fileno(), len(body), start + 1)) for start, body in parts]
        _Faulty.give(self, [part for part in moved if part[1]] or parts, size, etag)

    def wait(self, seconds: float) -> None:
        """Send nothing for some time. Raise an error if the client closes the connection or the server shuts down."""
        until = time.monotonic() + seconds
        if seconds > 0 and select.select([self.connection], [], [], seconds)[0]:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
            time.sleep(max(until - time.monotonic(), 0))  # the next request has already arrived

    def hang_up(self) -> None:
        """Close the connection with a TCP reset, not in an orderly way."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True


class Scripted(_Faulty):
    """A handler with a fault in the nth response for a path. Each test needs its own subclass.

    Attributes:
        faults: The fault of the nth request for each path; n starts with 1.
        asked: Number of requests for each path so far.
        whole: Whether the current response is sent completely.
    """

    faults: dict[int, str]
    asked: Counter[str]
    whole = True

    def __init_subclass__(cls) -> None:
        cls.asked = Counter()

    def give(self, parts: Parts, size: int, etag: str) -> None:
        cls = type(self)
        cls.asked[self.path] += 1
        self.whole = True
        match cls.faults.get(cls.asked[self.path], "").split():
            case []:
                super().give(parts, size, etag)
            case ["stall", seconds]:
                self._note(0, 0, -1)
                self.wait(float(seconds))
            case ["reset"]:
                self._note(0, 0, -1)
                self.close_connection = True
            case ["truncate"]:
                self.whole = False
                super().give(parts, size, etag)
            case ["shorter"]:
                self.give_shorter(parts, size, etag)
            case ["elsewhere"]:
                self.give_elsewhere(parts, size, etag)
            case ["untold"]:
                self._note(0, 0, -1)
                self.send(206, {"ETag": etag}, b"".join(body for _, body in parts))
            case ["changed"]:
                super().give(parts, size, '"another"')
            case [status, *retry_after]:
                self.refuse(int(status), {"Retry-After": retry_after[0]} if retry_after else {})

    def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if not self.whole:
            headers = {"Content-Length": str(len(body)), **headers}
            body = body[: len(body) // 2]
            self.close_connection = True
        super().send(status, headers, body)


def scripted(faults: dict[int, str]) -> type[Scripted]:
    """Create a handler whose nth response for each path has the fault `faults[n]`."""
    return type("ScriptedHere", (Scripted,), {"faults": faults})


@dataclass(frozen=True)
class Profile:
    """How slow and how faulty an archive is. The frequency of each fault is a fraction of all requests, 0 to 1.

    Attributes:
        rate: Bytes per second of each connection, or None for no limit.
        latency: Seconds before the first byte of a response.
        stall_seconds: How long a stalled response sends nothing, before it continues.
        retry_after: Seconds in the Retry-After header of a 429 response.
        stall: The response stalls: half of them before the headers, half in the middle of the body.
        reset: The connection is reset in the middle of the body.
        truncate: The connection is closed in the middle of the body.
        error_500: The response is 500.
        error_503: The response is 503.
        too_many: The response is 429, with Retry-After.
        ignore_range: The response is 200, with the whole file.
        shorter: The response has half of the (last) range, with matching headers.
        elsewhere: The response has bytes of another range, with matching headers.
        corrupt: The (last) range has one wrong byte, which no header indicates.
    """

    rate: float | None = None
    latency: float = 0
    stall_seconds: float = 30
    retry_after: int = 1
    stall: float = 0
    reset: float = 0
    truncate: float = 0
    error_500: float = 0
    error_503: float = 0
    too_many: float = 0
    ignore_range: float = 0
    shorter: float = 0
    elsewhere: float = 0
    corrupt: float = 0

    def shares(self) -> dict[str, float]:
        """Return the frequency of each fault."""
        each = ("reset", "truncate", "error_500", "error_503", "too_many")
        more = ("ignore_range", "shorter", "elsewhere", "corrupt")
        stalls = {"stall before": self.stall / 2, "stall amid": self.stall / 2}
        return stalls | {name: getattr(self, name) for name in each + more}


LAN = Profile()
EBI = Profile(rate=1.5e6, latency=0.3, stall=0.03, stall_seconds=120)
EBI_WITHOUT_STALLS = Profile(rate=1.5e6, latency=0.3)
WORST = Profile(
    rate=2e7,
    latency=0.01,
    stall=0.02,
    reset=0.02,
    truncate=0.02,
    error_500=0.015,
    error_503=0.015,
    too_many=0.015,
    ignore_range=0.015,
    shorter=0.015,
    elsewhere=0.015,
)


class Fault(NamedTuple):
    """The fault of one request.

    Attributes:
        kind: A name from `Profile.shares`, or an empty string.
        at: Position of the fault, as a fraction of the body.
    """

    kind: str
    at: float


class Hostile(_Faulty):
    """A handler with the faults of a profile, drawn with a seed. `hostile` creates a subclass for each server.

    Attributes:
        profile: The rate, the latency, and the frequencies of the faults.
        multi_range: The response to a request of several ranges.
        drawn: The fault of each request for a file so far, in order; an empty string for none.
        bytes_out: Number of bytes of bodies that were really sent, including the separators between ranges.
        connections: Number of open connections.
        most_connections: Maximum number of connections that were open at the same time.
        fault: The fault of the current request.
    """

    profile: Profile
    multi_range: MultiRange
    random: random.Random
    lock: threading.Lock
    drawn: list[str]
    bytes_out = 0
    connections = 0
    most_connections = 0
    fault = Fault("", 1)

    def setup(self) -> None:
        super().setup()
        cls = type(self)
        with cls.lock:
            cls.connections += 1
            cls.most_connections = max(cls.most_connections, cls.connections)

    def finish(self) -> None:
        with type(self).lock:
            type(self).connections -= 1
        super().finish()

    @classmethod
    def draw(cls) -> Fault:
        """Draw the fault of the next request."""
        with cls.lock:
            number, at = cls.random.random(), cls.random.random()
            kind = ""
            for name, share in cls.profile.shares().items():
                if 0 <= number < share:
                    kind = name
                number -= share
            cls.drawn.append(kind)
            return Fault(kind, at)

    def do_GET(self) -> None:
        self.fault = Fault("", 1)  # a listing has no fault
        super().do_GET()

    def do_HEAD(self) -> None:
        """Respond without a body; only the faults that come before one are possible."""
        self.fault = self.draw()
        if self.fault.kind in ("error_500", "error_503"):
            self.refuse(int(self.fault.kind.removeprefix("error_")))
        elif self.fault.kind == "too_many":
            self.refuse(429, {"Retry-After": str(self.profile.retry_after)})
        else:
            super().do_HEAD()

    def give(self, parts: Parts, size: int, etag: str) -> None:
        self.fault = self.draw()
        if len(parts) > 1 and self.multi_range == "first":
            parts = parts[:1]
        match self.fault.kind:
            case "error_500" | "error_503":
                self.refuse(int(self.fault.kind.removeprefix("error_")))
            case "too_many":
                self.refuse(429, {"Retry-After": str(self.profile.retry_after)})
            case _ if len(parts) > 1 and self.multi_range == "refused":
                self.refuse(416, {"Content-Range": f"bytes */{size}"})
            case kind if kind == "ignore_range" or (len(parts) > 1 and self.multi_range == "whole"):
                self._give_whole(size, etag)
            case "shorter":
                self.give_shorter(parts, size, etag)
            case "elsewhere":
                self.give_elsewhere(parts, size, etag)
            case "corrupt":
                start, body = parts[-1]
                wrong = int(len(body) * self.fault.at)
                body = body[:wrong] + bytes([body[wrong] ^ 0xFF]) + body[wrong + 1 :]
                super().give([*parts[:-1], (start, body)], size, etag)
            case _:
                super().give(parts, size, etag)

    def _give_whole(self, size: int, etag: str) -> None:
        """Send the whole file. It is not read in advance, because a client should close the connection early."""
        self._note(0, size, 200)
        path = Path(self.translate_path(self.path))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            self.send(200, {"Accept-Ranges": "bytes", "ETag": etag}, whole)

    def send(self, status: int, headers: Mapping[str, str], body: bytes | mmap.mmap) -> None:
        kind, at = self.fault
        self.wait(self.profile.latency + (self.profile.stall_seconds if kind == "stall before" else 0))
        super().send(status, {"Content-Length": str(len(body)), **headers}, b"")
        middle = int(len(body) * at) if kind in ("stall amid", "reset", "truncate") else len(body)
        self._pace(body, 0, middle)
        if kind == "reset":
            self.hang_up()
        elif kind == "truncate":
            self.close_connection = True
        elif kind == "stall amid":
            self.wait(self.profile.stall_seconds)
            self._pace(body, middle, len(body))

    def _pace(self, body: bytes | mmap.mmap, start: int, stop: int) -> None:
        """Send the bytes from `start` to `stop` of a body, in blocks that are timed by the rate limit."""
        rate = self.profile.rate
        began = time.monotonic()
        for at in range(start, stop, BLOCK):
            block = body[at : min(at + BLOCK, stop)]
            if rate:
                self.wait(began + (at - start + len(block)) / rate - time.monotonic())
            self.wfile.write(block)
            with type(self).lock:
                type(self).bytes_out += len(block)


def hostile(profile: Profile, seed: int = 0, multi_range: MultiRange = "answered") -> type[Hostile]:
    """Create a handler that is as slow and faulty as a profile.

    Args:
        profile: The rate, the latency, and the frequencies of all faults.
        seed: The same seed gives the same sequence of faults, in the order in which requests arrive.
        multi_range: The response to a request of several ranges.
    """
    state = {"random": random.Random(seed), "lock": threading.Lock(), "drawn": []}
    return type("HostileHere", (Hostile,), {"profile": profile, "multi_range": multi_range, **state})
