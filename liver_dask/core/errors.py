"""Errors of this package, and how to catch them.

Every error message says in one sentence what failed, where (URL, slice, rows) and what to do next. Each error is also
a subclass of the builtin exception that a caller would catch without knowing this package::

    LiverDaskError
    ├── InvalidArgumentError    ValueError         a box, label, shape or option is not valid
    ├── SliceNotFoundError      FileNotFoundError  the source has no such file
    ├── FormatError             ValueError         a TIFF or PNG is damaged, or differs from those of the archive
    ├── RemoteError             OSError            the source does not answer correctly after all retries
    │   ├── RangeNotSupportedError                 the server would send a whole large file for a few rows
    │   └── SourceChangedError                     a file is not the version that was read before
    ├── StoreExistsError        FileExistsError    the output path holds something else
    ├── DamagedError            OSError            data on the disk differs from what was written
    ├── ExportError             RuntimeError       parts of a store could not be written; the error lists them
    ├── NotDownloadedError      RuntimeError       there is no complete store, and no download was requested
    └── MissingExtraError       ImportError        packages that only one feature needs are not installed
"""

import errno
import os
from collections.abc import Sequence
from typing import Any

from .addresses import without_secrets


class LiverDaskError(Exception):
    """Base class of all errors that this package raises on purpose.

    User, password and query of an address are masked in the message, because it may quote what a user gave by mistake.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_secrets(said) if isinstance(said, str) else said for said in args))


class InvalidArgumentError(LiverDaskError, ValueError):
    """A box, label, shape or option is not valid."""


class SliceNotFoundError(LiverDaskError, FileNotFoundError):
    """The source has no such file."""


class FormatError(LiverDaskError, ValueError):
    """A TIFF or PNG is truncated or corrupt, or its kind or size differs from the archive's."""


class RemoteError(LiverDaskError, OSError):
    """The source does not answer, or does not answer correctly, after all retries."""


class RangeNotSupportedError(RemoteError):
    """The server ignores byte ranges, and the file is too large to be fetched whole for a part of it."""


class SourceChangedError(RemoteError):
    """The size, ETag or date of a file has changed since the first read, so voxels of two versions would be mixed."""


class StoreExistsError(LiverDaskError, FileExistsError):
    """The output path holds something that this call did not write."""


class DamagedError(LiverDaskError, OSError):
    """Data on the disk differs from what was written: the disk is faulty, or another program wrote to it."""


class ExportError(LiverDaskError, RuntimeError):
    """Parts of a store could not be written. All other parts are kept, and the same call resumes from them.

    Attributes:
        failures: The parts that could not be written, one text for each.
    """

    def __init__(self, message: str, failures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(without_secrets(failure) for failure in failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.failures)


class NotDownloadedError(LiverDaskError, RuntimeError):
    """There is no complete store, and `download=True` was not given."""


class MissingExtraError(LiverDaskError, ImportError):
    """Packages that only one feature needs are not installed; the message names the extra that installs them."""


def how_to_install(extras: str) -> str:
    """Return the command that installs extras, for the end of an error message."""
    return f"in a checkout of liver_dask, pip install '.[{extras}]'"


GIVE_SHAPE = "say how large the volume is by shape=(z, y, x), or --shape, or shape = [z, y, x] in a TOML file"
"""Advice in the error message for a slice whose size is not the expected one."""


FULL = {errno.ENOSPC, errno.EDQUOT}


def sentence_of(error: Exception) -> str:
    """Return the message of an error; that of the system as a sentence with its path, without its number."""
    if isinstance(error, LiverDaskError) or not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.filename is None:
        return f"{error.strerror.rstrip('.')}."
    advice = "choose another path"
    if "://" in str(error.filename):
        advice = "look at the address, the credentials and the network"
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        advice += ", or change its permissions"
    elif error.errno in FULL:
        advice = "free some space there, or choose another path"
    reason = error.strerror[:1].lower() + error.strerror[1:]
    return f"Cannot use {os.fsdecode(str(error.filename))} ({reason}); {advice}."
