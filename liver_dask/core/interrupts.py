"""Ctrl-C, taken note of: an interrupt that Python raises where nothing can be raised is not lost.

It comes between any two steps of the main thread. If that is in a `__del__`, or in a callback of the garbage collector
or of a weak reference, of which a cluster's client has many, Python prints it and goes on as if nothing had happened.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Interrupts:
    came = is_noted = False


@contextmanager
def interrupts_noted() -> Iterator[None]:
    """Meanwhile `check_interrupted` tells, on the main thread; elsewhere, and where others see to Ctrl-C, nothing."""
    hook, handler = sys.unraisablehook, signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not handler:
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        _Interrupts.came = True
        handler(number, frame)

    def tell(unraisable: Any) -> None:
        if not (_Interrupts.came and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            hook(unraisable)

    _Interrupts.came, _Interrupts.is_noted = False, True
    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = tell
    try:
        yield
        check_interrupted()
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)
        _Interrupts.is_noted = False


def check_interrupted() -> None:
    """KeyboardInterrupt if there was one, whatever became of it."""
    if _Interrupts.is_noted and _Interrupts.came and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
