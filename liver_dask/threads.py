"""Threads that know for whom they work: what a caller no longer wants is given up on whatever thread reads it."""

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


class AbandonedError(Exception):
    """What was asked for is no longer wanted; nobody needs to be told, so it is not one of this package's errors."""


_is_wanted: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("is_wanted", default=lambda: True)


@contextmanager
def while_wanted(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile what this thread reads is given up as soon as `is_wanted()` is false: AbandonedError is raised.

    It is asked before each request, and whenever bytes come, on whatever thread. What came before is kept as ever.
    """
    token = _is_wanted.set(is_wanted)
    try:
        yield
    finally:
        _is_wanted.reset(token)


def asked_whether_wanted() -> Callable[[], bool]:
    """Tells, on whatever thread, whether what this thread reads now is still wanted."""
    return _is_wanted.get()


class ContextPool(ThreadPoolExecutor):
    """Threads that run each call in the context in which it was submitted, so that `while_wanted` reaches it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`."""
        return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)
