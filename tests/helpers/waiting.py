"""Free ports, and waiting, for tests with servers and processes."""

import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `holds()` is true. Fail if this takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
