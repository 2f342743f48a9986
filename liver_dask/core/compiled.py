"""Loops that numba compiles at their first call and caches on disk where possible."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_compiling = threading.RLock()
if hasattr(os, "register_at_fork"):  # a fork waits: numba's locks would stay locked in the child forever
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


class Compiled:
    """A function of numbers and arrays that runs as machine code and releases Python's lock (the GIL).

    The machine code is cached beside the module, or in the user's cache folder, for later processes. Nothing is
    imported before `load_ahead` or the first call: importing numba and loading machine code takes up to half a second,
    and not every process needs it.
    """

    def __init__(self, signature: str, loop: Callable[..., Any]) -> None:
        """Store the loop; nothing is compiled yet.

        Args:
            signature: Types of the arguments and of the result, as numba writes them. One signature serves all calls,
                so that no call compiles again.
            loop: The Python function to compile.
        """
        self._signature, self._loop = signature, loop
        self._machine_code: Callable[..., Any] | None = None
        self._is_asked = False

    def load_ahead(self) -> None:
        """Begin to compile the function, or to load it, on another thread: to be called before one waits for data.

        Python ends only after it. So it should not be called before it is known that there are data.
        """
        if not self._is_asked:
            self._is_asked = True
            with suppress(RuntimeError):  # no more threads, or Python is ending: the call loads it
                threading.Thread(target=self._compile_quietly, name="liver_dask-compile").start()

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; the first call compiles it or loads it from the cache."""
        machine_code = self._compile() if self._machine_code is None else self._machine_code
        return machine_code(*arguments)

    def _compile_quietly(self) -> None:
        with suppress(Exception):  # whatever it is, the call that needs the function raises it again
            self._compile()

    def _compile(self) -> Callable[..., Any]:
        with _compiling:
            if self._machine_code is None:
                import numba

                try:
                    self._machine_code = numba.njit(self._signature, nogil=True, cache=True)(self._loop)
                except Exception:  # read-only folder, full disk, damaged file: the exception types differ
                    self._machine_code = numba.njit(self._signature, nogil=True)(self._loop)
            assert self._machine_code is not None
            return self._machine_code
