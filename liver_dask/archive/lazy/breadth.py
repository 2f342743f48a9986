"""The number of slices from which the same part is read.

For one slice, the round trips determine the cost. For hundreds of slices, the number of bytes does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_slices: ContextVar[int] = ContextVar("slices", default=1)


@contextmanager
def across(slices: int) -> Iterator[None]:
    """Within the context, what this thread reads from a slice is read from this number of slices."""
    token = _slices.set(slices)
    try:
        yield
    finally:
        _slices.reset(token)


def slices_across() -> int:
    """Return from how many slices the same part is read as this thread reads now; 1 outside of `across`."""
    return _slices.get()
