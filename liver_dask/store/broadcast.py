"""Content that many jobs of a run need: it is sent to the scheduler once, and not with each job.

There, also workers find it that come later. A result of dask would not do: if the worker that has it is lost, it is
computed again when a thread is free for that; but all threads may have jobs that wait for it.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from ..core.errors import ExportError

if TYPE_CHECKING:
    from distributed import Client


class Sent(NamedTuple):
    """What the driver has sent for the jobs of a run.

    Attributes:
        keys: Where it is.
    """

    keys: tuple[str, str, str]

    def get(self) -> bytes:
        """Return the content, on a worker."""
        from distributed import get_client

        content: bytes | None = get_client().get_metadata(list(self.keys), None)
        if content is None:
            raise ExportError("The call that this job belongs to has ended.")
        return content


class Broadcast:
    """Content that the jobs of a run need, sent to the scheduler once.

    Args:
        client: The client of the cluster.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._run = os.urandom(8).hex()
        self._sent: dict[str, Sent] = {}

    def send(self, name: str, content: Callable[[], bytes]) -> Sent:
        """Send some content under a name, unless this was done before."""
        if name not in self._sent:
            sent = Sent(("liver_dask", self._run, name))
            self._client.set_metadata(list(sent.keys), content())
            self._sent[name] = sent
        return self._sent[name]

    def clear(self) -> None:
        """Remove all of it, because the run has ended."""
        with suppress(OSError, TimeoutError):  # the scheduler may have ended
            for sent in self._sent.values() if self._client.status == "running" else ():
                self._client.set_metadata(list(sent.keys), None)


of_jobs: ContextVar[Broadcast | None] = ContextVar("of_jobs", default=None)
"""Set while a job for a cluster is pickled."""
