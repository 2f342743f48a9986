"""When a request is retried, and how long to wait before."""

import functools
import logging
import random

import tenacity

from ...core.threads import pause
from .source import TransientError

log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds. If a server asks for a longer wait (Retry-After), the request is still retried after this time."""


LONGEST_TRYING = 600.0
"""Seconds after which a range is not requested again, the wait before that request included."""


@functools.cache
def retrying(attempts: int) -> tenacity.Retrying:
    """Return the retry policy, one object for all requests.

    Each such object has a `threading.local`. If one is garbage-collected while the profiler of a dask worker lists the
    threads, older versions of CPython (for example 3.11.7; gh-106883) deadlock.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_before_delay(LONGEST_TRYING),
        wait=_wait,
        sleep=lambda seconds: pause(seconds),
        before_sleep=_log,
        reraise=True,
    )


def _wait(state: tenacity.RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    asked_for = fault.wait if isinstance(fault, TransientError) else None
    if asked_for is None:
        return _jitter.uniform(0, min(0.2 * 2**state.attempt_number, 10))
    return min(asked_for, LONGEST_WAIT)


def _log(state: tenacity.RetryCallState) -> None:
    log.info("%s: %s; asking again", state.args[0].url, state.outcome.exception() if state.outcome else "")


_jitter = random.Random()  # noqa: S311  # not for security; the state of Python's global generator belongs to the user
