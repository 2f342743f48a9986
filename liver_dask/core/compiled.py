"""Loops that numba compiles when they are first needed, and keeps on disk where it can."""

import os
import threading
from collections.abc import Callable
from typing import Any

_compiling = threading.RLock()
if hasattr(os, "register_at_fork"):  # a fork waits: it would take along numba's locks, and nobody to release them
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


class Compiled:
    """A function of numbers and arrays as machine code, which lets other threads run meanwhile.

    The code is kept beside the module, or in the user's cache, for processes to come. Until the first call nothing is
    imported: numba takes a fifth of a second, and not every process needs it.
    """

    def __init__(self, signature: str, loop: Callable[..., Any]) -> None:
        """`signature` as numba writes types: one for all calls, so that none compiles anew."""
        self._signature, self._loop = signature, loop
        self._machine_code: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call it; the first time, compile it or load what was kept."""
        machine_code = self._compile() if self._machine_code is None else self._machine_code
        return machine_code(*arguments)

    def _compile(self) -> Callable[..., Any]:
        with _compiling:
            if self._machine_code is None:
                import numba

                try:
                    self._machine_code = numba.njit(self._signature, nogil=True, cache=True)(self._loop)
                except Exception:  # no folder can be written, a full disk, a damaged file: each is of another kind
                    self._machine_code = numba.njit(self._signature, nogil=True)(self._loop)
            assert self._machine_code is not None
            return self._machine_code
