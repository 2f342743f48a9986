"""The servers: nginx without limits, and one that is as slow as the archive is from far away. Both count."""

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from helpers.hostile import EBI, EBI_WITHOUT_STALLS, LAN, Profile, hostile
from helpers.nginx import Nginx, Sent
from helpers.waiting import free_port
from liver_dask.demo import serve

PROFILES = {"lan": LAN, "far": EBI_WITHOUT_STALLS, "stalls": EBI}
SEED_OF_STALLS = 1


class Counting(Protocol):
    """A server of an archive."""

    url: str

    def sent(self) -> Sent:
        """Requests and bytes of bodies since the last call."""
        ...

    def stop(self) -> None:
        """Stop it."""
        ...


def describe(name: str) -> str:
    """What a server is, in words."""
    if name == "lan":
        return "nginx on loopback, without limits" if shutil.which("nginx") else f"{OWN} on loopback, without limits"
    profile = PROFILES[name]
    words = f"{OWN}: {profile.rate / 1e6:g} MB/s a connection, {profile.latency:g} s of latency"
    if profile.stall:
        words += f", {profile.stall:.0%} of requests silent for {profile.stall_seconds:g} s"
    return words


OWN = "our own server (tests/helpers/hostile.py)"


def serve_slowly(archive: Path, profile: Profile, seed: int, pipe: Any) -> None:
    """Serve until the pipe says that it is over, and tell it what was sent."""
    handler = hostile(profile, seed)
    with serve(archive, handler) as server:
        pipe.send(server.url)
        while pipe.recv():
            pipe.send(Sent(len(server.requests), handler.bytes_out))
            server.requests.clear()
            handler.bytes_out = 0


class Slow:
    """The archive as a profile says, from a process of its own.

    Not from nginx: its `limit_rate` lets the first 1.5 MB of every request pass at full speed (measured: 590 MB/s over
    one connection in requests of 1 MB).
    """

    def __init__(self, archive: Path, profile: Profile, seed: int = 0) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve_slowly, args=(archive, profile, seed, theirs), daemon=True)
        self._process.start()
        self.url: str = self._pipe.recv()

    def sent(self) -> Sent:
        """All since the last call."""
        self._pipe.send(True)
        return self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self._pipe.send(False)
        self._process.join()


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """Stop a server at the end."""
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serving(name: str, archive: Path) -> Iterator[Counting]:
    """Start the server of that name."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "lan" and shutil.which("nginx"):
            server: Counting = Nginx(archive, Path(folder), free_port())
        else:
            server = Slow(archive, PROFILES[name], SEED_OF_STALLS)
        with running(server) as started:
            yield started
