"""Locks against other processes: files that one process at a time holds locked."""

import errno
import fcntl
import logging
import os
from pathlib import Path

from ..core.errors import StoreExistsError

_CANNOT_LOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

log = logging.getLogger(__name__)


def open_locked(path: Path, *, busy: str) -> int:
    """Open a file, created if needed, and lock it. The system releases the lock when the file or the process is closed.

    If the file system has no locks, only a warning is logged.

    Args:
        path: Path of the lock file.
        busy: Message of the error if another process holds the lock.

    Returns:
        The descriptor of the file; close it to release the lock.

    Raises:
        StoreExistsError: Another process holds the lock. (FileExistsError)
        OSError: The file cannot be created or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreExistsError(busy) from None
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            os.close(descriptor)
            raise
        log.warning("%s: this file system has no locks; see that no other process writes there", path.parent)
    return descriptor


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether a path is still that of an open file: its last holder may have removed the file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
