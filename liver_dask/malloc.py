"""How the C library's malloc gives memory back, for processes that ask for the same again at once."""

import ctypes

OPTIONS = {-3: 32 << 20, -1: 512 << 20}
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: blocks up to the first are reused, and so much is kept for that."""


def keep_memory() -> None:
    """Do not give back to the system what this process will need again; without glibc, nothing happens.

    Else each large array is fresh memory, of which every page is a fault, and is zeroed first.
    """
    try:
        libc = ctypes.CDLL(None)
        for parameter, value in OPTIONS.items():
            libc.mallopt(parameter, value)
    except (OSError, AttributeError):
        pass
