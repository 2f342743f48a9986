"""Recording of Ctrl-C, so that an interrupt is not lost where Python cannot raise it.

An interrupt can come between any two steps of the main thread. If it comes in a `__del__`, or in a callback of the
garbage collector or of a weak reference, Python prints it and continues as if nothing had happened. The client of a
cluster has many such callbacks.
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
    """Record Ctrl-C within this context, so that `check_interrupted` can raise it.

    This works on the main thread only. On other threads, and where another handler of SIGINT is installed, it does
    nothing.
    """
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


def forget_interrupt() -> None:
    """Forget Ctrl-C, where it was the normal way to end something."""
    _Interrupts.came = False


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed, even if Python has already discarded that interrupt."""
    if _Interrupts.is_noted and _Interrupts.came and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
