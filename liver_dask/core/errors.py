"""What can go wrong, and how to catch it.

Every error says in one sentence what failed, where (URL, slice, rows) and what to do next. Each is also the builtin
that a caller would catch without knowing this package::

    LiverDaskError
    ├── InvalidArgumentError    ValueError         a box, label, shape or option that makes no sense
    ├── SliceNotFoundError      FileNotFoundError  the source has no such file
    ├── FormatError             ValueError         a TIFF or PNG that is damaged, or not as the archive's are
    ├── RemoteError             OSError            the source does not answer, or not rightly, after all tries
    │   ├── RangeNotSupportedError                 the server would send a whole large file for a few rows
    │   └── SourceChangedError                     a file is not the one that was read before
    ├── StoreExistsError        FileExistsError    the output path holds something else
    ├── DamagedError            OSError            what was written is not on the disk any more as it was
    ├── ExportError             RuntimeError       parts of a store could not be written; says which
    ├── NotDownloadedError      RuntimeError       no complete store is there and none was asked for
    └── MissingExtraError       ImportError        packages that only this part needs are not installed
"""

from collections.abc import Sequence
from typing import Any


class LiverDaskError(Exception):
    """Any error that this package raises on purpose."""


class InvalidArgumentError(LiverDaskError, ValueError):
    """A box, label, shape or option that makes no sense."""


class SliceNotFoundError(LiverDaskError, FileNotFoundError):
    """The source has no such file."""


class FormatError(LiverDaskError, ValueError):
    """A TIFF or PNG that is truncated, corrupt, or of another kind or size than the archive's."""


class RemoteError(LiverDaskError, OSError):
    """The source does not answer, or not rightly, after all tries."""


class RangeNotSupportedError(RemoteError):
    """The server ignores byte ranges, and the file is too large to be fetched for a part of it."""


class SourceChangedError(RemoteError):
    """A file's size, ETag or date is not what it was at the first read; voxels of the two would be mixed."""


class StoreExistsError(LiverDaskError, FileExistsError):
    """The output path holds something that this call did not write."""


class DamagedError(LiverDaskError, OSError):
    """What was written is not on the disk any more as it was: a bad disk, or something else wrote to it."""


class ExportError(LiverDaskError, RuntimeError):
    """Parts of a store could not be written. All others are kept, and the same call goes on from them.

    Attributes:
        failures: What could not be written, one text a part.
    """

    def __init__(self, message: str, failures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.failures)


class NotDownloadedError(LiverDaskError, RuntimeError):
    """No complete store is there, and `download=True` was not given."""


class MissingExtraError(LiverDaskError, ImportError):
    """Packages that only a part of this package needs are not installed; says which extra brings them."""


GIVE_SHAPE = "say how large the volume is by shape=(z, y, x), or --shape"
"""What to do about a slice of another size than expected."""
