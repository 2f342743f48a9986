"""Ends exchanges that take too long in total, or that are no longer wanted, even if the server sends nothing.

A socket timeout does not end an exchange that receives a byte now and then, and a thread that waits for bytes cannot
check anything else. So one thread of the process checks all exchanges in progress, and shuts down the socket of an
exchange that must end: the waiting thread then wakes up with a broken connection, over TLS as well.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from ...core.threads import SECONDS_BETWEEN_CHECKS, ReadCancelledError, asked_whether_wanted

IDLE_LOOKS = 50
"""After this many checks without an exchange, the thread ends; the next exchange starts a new one."""


class Watch:
    """One exchange with a server: `with Watch() as watch:` has the watchdog check it.

    Attributes:
        ended: Why its socket was shut down; empty if it was not.
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
            self._socket = None  # another exchange may use it from now on

    def allow(self, seconds: float) -> None:
        """Limit the next step to this time."""
        self._until = time.monotonic() + seconds

    def uses(self, used: object) -> None:
        """Set the socket that the exchange waits for; it may be wrapped in another object."""
        while used is not None and not isinstance(used, socket.socket):
            used = getattr(used, "socket", None)
        with self._lock:
            self._socket = used

    def probe(self) -> None:
        """Shut down the socket if the time is over or the exchange is no longer wanted."""
        with self._lock:
            if self._socket is None or self.ended:
                return
            if not self._is_wanted():
                self.ended = "unwanted"
            elif time.monotonic() > self._until:
                self.ended = "late"
            else:
                return
            with suppress(OSError):  # it is already closed
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # SSLSocket's would first drop the TLS state

    def check_cancelled(self) -> None:
        """Raise ReadCancelledError if the exchange is no longer wanted."""
        if self.ended == "unwanted" or not self._is_wanted():
            raise ReadCancelledError("What was asked for is no longer wanted")

    def check(self) -> None:
        """Raise ReadCancelledError or TimeoutError if the exchange was ended: its apparent end is not the real one."""
        if self.ended:
            self.check_cancelled()
            raise TimeoutError


class _Watchdog:
    """The watchdog thread; it runs only while there are exchanges. A fork starts its own when needed."""

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
            time.sleep(SECONDS_BETWEEN_CHECKS)
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
