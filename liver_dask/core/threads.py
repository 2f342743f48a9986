"""Threads that know whether their work is still wanted, so that a read can be cancelled on any thread."""

import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_CHECKS = 0.2
"""Longest time that a thread waits without a look at whether its work is still wanted.

The main thread waits for reads in steps of this length, too, or Ctrl-C could have no effect: Python only takes note of
a signal, and a wait for a lock does not end if the signal came just before it, or if another thread received it.
"""


class ReadCancelledError(Exception):
    """The result of a read is no longer wanted. No caller has to handle this, so it is not a LiverDaskError."""


class _Process:
    """Whether this process ends, by Ctrl-C or as a dask worker; then no result is wanted any more."""

    def __init__(self) -> None:
        self.is_ending = self._is_watched = False

    def is_wanted(self) -> bool:
        """Return whether results are still wanted."""
        return not self.is_ending and not _is_ending_worker()

    def watch(self) -> None:
        """Detect the end of the process before it waits for the threads of all pools, including those of dask."""
        if not self._is_watched:
            self._is_watched = True
            with suppress(AttributeError, RuntimeError):  # private API; without it, the exit waits for pending reads
                threading._register_atexit(self._end)  # type: ignore[attr-defined]

    def _end(self) -> None:
        last = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        self.is_ending = isinstance(last, KeyboardInterrupt)


_process = _Process()
_is_wanted: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("is_wanted", default=_process.is_wanted)


@contextmanager
def cancel_unless(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Cancel this thread's reads once `is_wanted()` returns False: they raise ReadCancelledError.

    `is_wanted` is called a few times a second, on any thread. Received bytes stay cached.
    """
    outer = _is_wanted.get()
    token = _is_wanted.set(lambda: is_wanted() and outer())
    try:
        yield
    finally:
        _is_wanted.reset(token)


def asked_whether_wanted() -> Callable[[], bool]:
    """Return a function that says, on any thread, whether the current reads of this thread are still wanted."""
    _process.watch()
    return _is_wanted.get()


def check_cancelled(what: str) -> None:
    """Raise ReadCancelledError if this thread's reads are no longer wanted."""
    if not asked_whether_wanted()():
        raise ReadCancelledError(f"{what} is no longer wanted")


def pause(seconds: float) -> None:
    """Wait, and raise ReadCancelledError if the result is no longer wanted."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_cancelled("What waits")
        time.sleep(min(left, SECONDS_BETWEEN_CHECKS))


def call_aside(call: Callable[[], T], seconds: float, discard: Callable[[T], object]) -> T:
    """Call a function that cannot be cancelled, on its own daemon thread.

    Nothing waits for that thread after a cancellation or timeout, not even the interpreter when it exits.

    Args:
        call: The function to call.
        seconds: How long to wait for the result.
        discard: Called with a result that arrives when nothing waits for it any more.

    Raises:
        ReadCancelledError: The result is no longer wanted.
        TimeoutError: The call took too long.
    """
    check_cancelled("What is called")
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # the waiting thread raises it
            outcome.set_exception(error)

    until = time.monotonic() + seconds
    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="liver_dask-aside", daemon=True).start()
    try:
        while not wait([outcome], min(SECONDS_BETWEEN_CHECKS, seconds)).done:
            check_cancelled("What is called")
            if time.monotonic() > until:
                raise TimeoutError
    except BaseException:
        outcome.add_done_callback(lambda done: None if done.exception() else discard(done.result()))
        raise
    return outcome.result()


def wait_for_result(future: Future[T]) -> T:
    """Return the result of a future; unlike its own method, this is ended by every Ctrl-C."""
    while not wait([future], SECONDS_BETWEEN_CHECKS).done:
        pass
    return future.result()


def _is_ending_worker() -> bool:
    """Return whether this process is a closing dask worker: its nanny ends it, and other workers do its tasks."""
    module = sys.modules.get("distributed.worker")
    workers = list(module.Worker._instances) if module else []
    return any(worker.nanny and worker.status.name in ("closing", "closed", "failed") for worker in workers)


def is_in_task() -> bool:
    """Return whether this thread runs a task of a dask cluster, whose other tasks may run elsewhere."""
    worker = sys.modules.get("distributed.worker")
    return worker is not None and bool(getattr(worker.thread_state, "key", None))


class ContextPool(ThreadPoolExecutor):
    """A thread pool that runs each call in the context in which it was submitted, so that `cancel_unless` applies.

    An interrupt inside `with pool:` leaves the block at once and cancels the reads of its threads.
    """

    _is_given_up = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`."""
        with cancel_unless(lambda: not self._is_given_up):
            return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)

    def give_up(self) -> None:
        """Cancel all current and future calls of the pool."""
        self._is_given_up = True
        self.shutdown(wait=False, cancel_futures=True)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool | None:
        if kind and not issubclass(kind, Exception):
            self.give_up()
        try:
            return super().__exit__(kind, *rest)
        except BaseException:  # an interrupt while waiting for the threads
            self.give_up()
            raise


class BorrowedPool(Executor):
    """A wrapper that uses another owner's threads as a ContextPool uses its own."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._max_workers: int = pool._max_workers  # dask reads it
        self._is_given_up = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`."""
        if self._is_given_up:
            raise ReadCancelledError("What is submitted is no longer wanted")
        with cancel_unless(lambda: not self._is_given_up):
            return self._pool.submit(contextvars.copy_context().run, fn, *args, **kwargs)

    def give_up(self) -> None:
        """Cancel all current calls, and refuse others; the threads themselves keep running."""
        self._is_given_up = True
