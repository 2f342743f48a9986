"""Of how many slices the same is read: for one, round trips are what it costs, and for hundreds it is bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_slices: ContextVar[int] = ContextVar("slices", default=1)


@contextmanager
def across(slices: int) -> Iterator[None]:
    """Meanwhile what this thread reads of a slice is a part of what is read of so many."""
    token = _slices.set(slices)
    try:
        yield
    finally:
        _slices.reset(token)


def slices_across() -> int:
    """Of how many slices the same is read as this thread reads now; 1 where nobody said."""
    return _slices.get()
