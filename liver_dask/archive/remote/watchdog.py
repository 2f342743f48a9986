"""Ends exchanges that take too long in all, or that nobody wants any more, though their server sends nothing.

A time-out of a socket ends none of those to which a byte comes now and then, and a thread that waits for bytes cannot
look at anything else. So one thread of the process looks at all exchanges under way, and shuts the socket of one down:
whoever waits for it wakes up with a broken connection, over TLS as well.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from ...core.threads import SECONDS_BETWEEN_LOOKS, ReadCancelledError, asked_whether_wanted

IDLE_LOOKS = 50
"""After so many looks at nothing the thread ends; the next exchange starts another."""


class Watch:
    """One exchange with a server: `with Watch() as watch:` has it looked at.

    Attributes:
        ended: Why its socket was shut down, if it was.
    """

    def __init__(self) -> None:
        self.ended: Literal["", "late", "unwanted"] = ""
        self._is_wanted: Callable[[], bool] = asked_whether_wanted()
        self._until = float("inf")
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Watch":
        _watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watchdog.remove(self)
        with self._lock:
            self._socket = None  # which another exchange may use from now on

    def allow(self, seconds: float) -> None:
        """What comes next may take so long, and no longer."""
        self._until = time.monotonic() + seconds

    def uses(self, used: object) -> None:
        """From now on it waits for this socket, or for one that is wrapped in it."""
        while used is not None and not isinstance(used, socket.socket):
            used = getattr(used, "socket", None)
        with self._lock:
            self._socket = used

    def probe(self) -> None:
        """Shut its socket down if its time is over, or nobody wants it."""
        with self._lock:
            if self._socket is None or self.ended:
                return
            if not self._is_wanted():
                self.ended = "unwanted"
            elif time.monotonic() > self._until:
                self.ended = "late"
            else:
                return
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # TLS would first forget its own state

    def check_cancelled(self) -> None:
        """ReadCancelledError if nobody wants it."""
        if self.ended == "unwanted" or not self._is_wanted():
            raise ReadCancelledError("What was asked for is no longer wanted")

    def check(self) -> None:
        """The same, and TimeoutError if it was late: what seems to be its end is none."""
        if self.ended:
            self.check_cancelled()
            raise TimeoutError


class _Watchdog:
    """The thread; there is one while there is something to look at, and none in a fork until there is."""

    _is_running: bool

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def add(self, watch: Watch) -> None:
        with self._lock:
            self._watches.add(watch)
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._look, name="liver_dask-watchdog", daemon=True).start()

    def remove(self, watch: Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            with self._lock:
                watches = list(self._watches)
                idle = 0 if watches else idle + 1
                if idle > IDLE_LOOKS:
                    self._is_running = False
                    return
            for watch in watches:
                watch.probe()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._is_running = False


_watchdog = _Watchdog()
