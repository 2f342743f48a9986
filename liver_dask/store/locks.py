"""Locks against other processes: files that one process at a time holds locked."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..core.errors import InvalidArgumentError, StoreExistsError

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


@contextmanager
def locked_file(path: Path, *, busy: str) -> Iterator[BinaryIO]:
    """Open and lock a file, created if needed; at the end it is removed if it is empty.

    Args:
        path: Path of the file.
        busy: Message of the StoreExistsError if another process holds the lock.

    Raises:
        InvalidArgumentError: The file cannot be created or opened.
    """
    while True:
        try:
            descriptor = open_locked(path, busy=busy)
        except StoreExistsError:
            raise
        except OSError as error:
            raise InvalidArgumentError(f"{path} cannot be written ({error.strerror}); nothing was changed.") from error
        with os.fdopen(descriptor, "r+b") as file:
            if is_same_file(descriptor, path):  # its last holder may just have removed it
                try:
                    yield file
                finally:
                    if not os.fstat(descriptor).st_size:
                        path.unlink(missing_ok=True)
                return


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether a path is still that of an open file: its last holder may have removed the file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
