"""Calls that are killed amid what they do to the disk."""

import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path

STEPS = ("replace", "unlink", "write_bytes", "mkdir", "rmdir")
"""What changes a file system for good, in pathlib; a kill falls before one of them, or after the last."""


def die_at(step: int, call: Callable[[], object]) -> None:
    """Do something, and be gone without a word before the given step."""
    done = 0

    def counted(call: Callable) -> Callable:
        def counting(*args, **kwargs):
            nonlocal done
            done += 1
            if done == step:
                os._exit(9)
            return call(*args, **kwargs)

        return counting

    for name in STEPS:
        setattr(Path, name, counted(getattr(Path, name)))
    os.link, os.fsync = counted(os.link), counted(os.fsync)
    call()


def killed_at(step: int, call: Callable[[], object]) -> int:
    """The exit code of a call in a process of its own: 9 if it died of it, 0 if it was done before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: ours are idle
        process = multiprocessing.get_context("fork").Process(target=die_at, args=(step, call))
        process.start()
    process.join(100)
    assert process.exitcode in (0, 9)
    return process.exitcode
