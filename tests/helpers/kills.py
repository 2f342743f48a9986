"""Calls in a process that is killed between two changes of the disk."""

import multiprocessing
import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

STEPS = ("replace", "unlink", "write_bytes", "mkdir", "rmdir")
"""The functions of pathlib that change the file system permanently. A kill happens before one of their calls, or after
the last."""


def die_at(step: int, call: Callable[[], object], steps: Collection[str]) -> None:
    """Call a function, and end the process without any cleanup before the given step."""
    done = 0

    def counted(call: Callable) -> Callable:
        def counting(*args, **kwargs):
            nonlocal done
            done += 1
            if done == step:
                os._exit(9)
            return call(*args, **kwargs)

        return counting

    for name in steps:
        setattr(Path, name, counted(getattr(Path, name)))
    os.link, os.fsync = counted(os.link), counted(os.fsync)
    call()


def killed_at(step: int, call: Callable[[], object], steps: Collection[str] = STEPS) -> int:
    """Return the exit code of a call in its own process: 9 if it was killed at the step, 0 if it finished before it.

    Args:
        step: Number of the step, from 1.
        call: The call.
        steps: The functions of pathlib whose calls count; those of os.link and os.fsync always do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads: these are idle
        process = multiprocessing.get_context("fork").Process(target=die_at, args=(step, call, steps))
        process.start()
    process.join(100)
    assert process.exitcode in (0, 9)
    return process.exitcode
