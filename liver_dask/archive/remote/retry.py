"""When a request is made again, and after which pause."""

import functools
import logging
import random

import tenacity

from ...core.threads import pause
from .source import TransientError

log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer pause (Retry-After) is asked again after this one."""


LONGEST_TRYING = 600.0
"""Seconds after which a range is not asked for again."""


@functools.cache
def retrying(attempts: int) -> tenacity.Retrying:
    """One for all requests, not one for each.

    Each has a `threading.local`. Where one becomes garbage while a dask worker's profiler lists the threads, older
    CPythons (3.11.7 for one; gh-106883) wait for themselves, for ever.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_after_delay(LONGEST_TRYING),
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


_jitter = random.Random()  # noqa: S311  # no secret, and not Python's own, whose state is the user's
