"""Threads that know for whom they work: what a caller no longer wants is given up on whatever thread reads it."""

import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 0.2
"""So often it is asked whether what waits is still wanted."""


class ReadCancelledError(Exception):
    """What was asked for is no longer wanted; nobody needs to be told, so it is not one of this package's errors."""


class _Process:
    """Whether this process goes on, or ends by Ctrl-C, or as a dask worker: then nobody is left who wants anything."""

    def __init__(self) -> None:
        self.is_ending = self._is_watched = False

    def is_wanted(self) -> bool:
        """Whether anything is still wanted."""
        return not self.is_ending and not _is_ending_worker()

    def watch(self) -> None:
        """Take note when it ends: before it waits for the threads of all pools, dask's own among them."""
        if not self._is_watched:
            self._is_watched = True
            with suppress(AttributeError, RuntimeError):  # private as it is; else its end waits for what they read
                threading._register_atexit(self._end)  # type: ignore[attr-defined]

    def _end(self) -> None:
        last = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        self.is_ending = isinstance(last, KeyboardInterrupt)


_process = _Process()
_is_wanted: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("is_wanted", default=_process.is_wanted)


@contextmanager
def cancel_unless(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile what this thread reads is given up as soon as `is_wanted()` is false: ReadCancelledError is raised.

    It is asked a few times a second, on whatever thread. What came before is kept as ever.
    """
    outer = _is_wanted.get()
    token = _is_wanted.set(lambda: is_wanted() and outer())
    try:
        yield
    finally:
        _is_wanted.reset(token)


def asked_whether_wanted() -> Callable[[], bool]:
    """Tells, on whatever thread, whether what this thread reads now is still wanted."""
    _process.watch()
    return _is_wanted.get()


def check_cancelled(what: str) -> None:
    """ReadCancelledError if what this thread reads is no longer wanted."""
    if not asked_whether_wanted()():
        raise ReadCancelledError(f"{what} is no longer wanted")


def pause(seconds: float) -> None:
    """Wait, unless what waits is no longer wanted: ReadCancelledError."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_cancelled("What waits")
        time.sleep(min(left, SECONDS_BETWEEN_LOOKS))


def call_aside(call: Callable[[], T], seconds: float, discard: Callable[[T], object]) -> T:
    """Call what cannot be given up, on a thread of its own that nobody waits for: not even the interpreter's end.

    Args:
        call: What to call.
        seconds: How long to wait for it.
        discard: Gets what it returns after all, when nobody waits for it any more.

    Raises:
        ReadCancelledError: It is no longer wanted.
        TimeoutError: It took too long.
    """
    check_cancelled("What is called")
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # whoever waits gets it
            outcome.set_exception(error)

    until = time.monotonic() + seconds
    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="liver_dask-aside", daemon=True).start()
    try:
        while not wait([outcome], min(SECONDS_BETWEEN_LOOKS, seconds)).done:
            check_cancelled("What is called")
            if time.monotonic() > until:
                raise TimeoutError
    except BaseException:
        outcome.add_done_callback(lambda done: None if done.exception() else discard(done.result()))
        raise
    return outcome.result()


def _is_ending_worker() -> bool:
    """Whether this process is a worker that its cluster has given up: its nanny ends it, and others do its tasks."""
    module = sys.modules.get("distributed.worker")
    workers = list(module.Worker._instances) if module else []
    return any(worker.nanny and worker.status.name in ("closing", "closed", "failed") for worker in workers)


def is_in_task() -> bool:
    """Whether this thread does a task of a dask cluster, of which other tasks may run elsewhere."""
    worker = sys.modules.get("distributed.worker")
    return worker is not None and bool(getattr(worker.thread_state, "key", None))


class ContextPool(ThreadPoolExecutor):
    """Threads that run each call in the context in which it was submitted, so that `cancel_unless` reaches it.

    Who leaves `with pool:` by an interrupt leaves at once: what its threads are reading is no longer wanted.
    """

    _is_given_up = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`."""
        with cancel_unless(lambda: not self._is_given_up):
            return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)

    def give_up(self) -> None:
        """Nothing of what it has, or gets, is wanted any more."""
        self._is_given_up = True
        self.shutdown(wait=False, cancel_futures=True)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool | None:
        if kind and not issubclass(kind, Exception):
            self.give_up()
        try:
            return super().__exit__(kind, *rest)
        except BaseException:  # an interrupt, while threads are waited for
            self.give_up()
            raise


class BorrowedPool(Executor):
    """Somebody else's threads, used as a ContextPool uses its own."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._max_workers: int = pool._max_workers  # dask looks at it
        self._is_given_up = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`."""
        with cancel_unless(lambda: not self._is_given_up):
            return self._pool.submit(contextvars.copy_context().run, fn, *args, **kwargs)

    def give_up(self) -> None:
        """Nothing of what it has, or gets, is wanted any more; the threads themselves go on."""
        self._is_given_up = True
