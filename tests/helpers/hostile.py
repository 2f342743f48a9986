"""Servers that answer as they should not, each a handler for `liver_dask.demo.serve`.

`scripted` says which answer of a path is wrong, and how; `hostile` gives a slow and faulty archive, its faults drawn
by a seed. Both treat answers of one range and of several alike.
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
"""Bytes sent at once where the rate is limited."""


class SideBySide(RangeRequestHandler):
    """Takes its time, and notes of how many files something is asked at once; make a subclass of it for each test."""

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
    """Answers after a while, as no disk nearby does."""

    seconds = 0.02

    def send(self, *args: Any) -> None:
        time.sleep(self.seconds)
        super().send(*args)


Parts = Sequence[tuple[int, bytes]]
"""Ranges of an answer, each as its first byte and its bytes."""

MultiRange = Literal["answered", "whole", "first", "refused"]
"""What becomes of a request of several ranges: 206 with all, 200 with the whole file, 206 with the first alone, 416."""


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


class _Faulty(RangeRequestHandler):
    """Answers of one range and of several go through `give`, and can be wrong in their parts or break on the way."""

    def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
        self.give([(start, body)], size, etag)

    def answer_parts(self, parts: Parts, size: int, etag: str) -> None:
        self.give(parts, size, etag)

    def give(self, parts: Parts, size: int, etag: str) -> None:
        """Answer with these parts, whatever was asked for."""
        if len(parts) > 1:
            super().answer_parts(parts, size, etag)
        else:
            start, body = parts[0]
            super().answer(body, start, start + len(body), size, etag)

    def give_shorter(self, parts: Parts, size: int, etag: str) -> None:
        """Half of the last part, with headers that say so."""
        start, body = parts[-1]
        _Faulty.give(self, [*parts[:-1], (start, body[: max(len(body) // 2, 1)])], size, etag)

    def give_elsewhere(self, parts: Parts, size: int, etag: str) -> None:
        """Bytes one further on than was asked for, with headers that say so."""
        with Path(self.translate_path(self.path)).open("rb") as file:
            moved = [(start + 1, os.pread(file.fileno(), len(body), start + 1)) for start, body in parts]
        _Faulty.give(self, [part for part in moved if part[1]] or parts, size, etag)

    def wait(self, seconds: float) -> None:
        """Be silent; ends with an error when the client hangs up or the server is shut down."""
        until = time.monotonic() + seconds
        if seconds > 0 and select.select([self.connection], [], [], seconds)[0]:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
            time.sleep(max(until - time.monotonic(), 0))  # the next request is here already

    def hang_up(self) -> None:
        """Break the connection with a reset, not with an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True


class Scripted(_Faulty):
    """Answers the nth request for a path wrongly, as `faults` says; make a subclass of it for each test."""

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
    """A handler whose nth answer for each path is as `faults` says."""
    return type("ScriptedHere", (Scripted,), {"faults": faults})


@dataclass(frozen=True)
class Profile:
    """How slow and how faulty an archive is; each fault is a share of all requests, 0 to 1.

    Attributes:
        rate: Bytes a second of a connection, or None for all that goes.
        latency: Seconds before the first byte of an answer.
        stall_seconds: How long a stalled request is silent; then it goes on.
        retry_after: Seconds that a 429 asks for.
        stall: Silent, half of them before the headers and half amid the body.
        reset: The connection is reset amid the body.
        truncate: The connection ends amid the body.
        error_500: Answered 500.
        error_503: Answered 503.
        too_many: Answered 429, with Retry-After.
        ignore_range: Answered 200, with the whole file.
        shorter: Half of the (last) range, and headers that agree with that.
        elsewhere: Bytes of another place, and headers that agree with that.
        corrupt: One wrong byte in the (last) range, which no header tells.
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
        """The share of each fault."""
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
    """What goes wrong with one request: a name of `Profile.shares`, or nothing; and at which share of its body."""

    kind: str
    at: float


class Hostile(_Faulty):
    """Answers as a profile and a seed say; `hostile` makes a subclass for each server.

    Attributes:
        drawn: The fault of each request for a file so far, "" for none, in order.
        bytes_out: Bytes of bodies that were really sent, what lies between ranges and all.
        connections: Open now.
        most_connections: Open at once, at most.
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
        """Decide on the next request."""
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
        self.fault = Fault("", 1)  # a listing has none
        super().do_GET()

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
        """The whole file, which is not read before it is sent: a client should hang up."""
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
        """Send bytes `start` to `stop` of a body, each block when the rate allows it and no earlier."""
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
    """A handler that is slow and faulty as `profile` says.

    Args:
        profile: Rate, latency, and the shares of all faults.
        seed: The same seed gives the same faults, in the order in which requests arrive.
        multi_range: What becomes of a request of several ranges.
    """
    state = {"random": random.Random(seed), "lock": threading.Lock(), "drawn": []}
    return type("HostileHere", (Hostile,), {"profile": profile, "multi_range": multi_range, **state})
