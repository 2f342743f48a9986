"""What S3 can do beyond whole objects: conditions, removal of many, and objects joined from parts that lie there."""

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

from ...core.places import ObjectPath, ranges_of_objects
from ...core.threads import ContextPool
from .interface import Extent
from .parts import Part, Piece

KEYS_AT_ONCE = 1000
"""How many objects one request may remove."""

COPIES_AT_ONCE, UPLOADS_AT_ONCE = 8, 2
"""How many parts of an object are made at the same time: copies cost this process nothing, uploads are in memory."""

TRIES_OF_CONFLICTS, SECONDS_BETWEEN_TRIES = 10, 0.2
"""How often an object is written that somebody else writes at the same time."""


def put_new(place: ObjectPath, data: bytes) -> bool:
    """Write an object unless there is one of this name; return whether it was written.

    Raises:
        OSError: The storage refuses it, or others write it again and again.
    """
    for tries_left in reversed(range(TRIES_OF_CONFLICTS)):
        try:
            place.call("pipe_file", place.key, data, mode="create")
        except FileExistsError:
            return False
        except BlockingIOError:  # another request for the same name is under way, which may also remove it
            if not tries_left:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)
        else:
            break
    return True


def join_parts(place: ObjectPath, parts: Iterable[Part]) -> None:
    """Write an object of parts. It appears when all of them are there.

    Raises:
        OSError: A part cannot be made, or the storage has not joined what it was told.
    """
    upload = _call(place, "create_multipart_upload")["UploadId"]
    parts = list(parts)
    copies, uploads = ([of for of in enumerate(parts, 1) if of[1].is_copy is kind] for kind in (True, False))
    try:
        with ContextPool(COPIES_AT_ONCE) as copying, ContextPool(UPLOADS_AT_ONCE) as uploading:
            copied = copying.map(lambda of: _make(place, upload, *of), copies)
            uploaded = uploading.map(lambda of: _make(place, upload, *of), uploads)
            made = sorted([*copied, *uploaded], key=itemgetter("PartNumber"))
        _call(place, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": made})
    except BaseException:
        with suppress(OSError):
            _call(place, "abort_multipart_upload", UploadId=upload)
        raise
    size, expected = place.stat().st_size, sum(part.size for part in parts)
    if size != expected:
        place.call("rm_file", place.key)
        raise OSError(errno.EIO, f"the storage joined {size} of {expected} bytes", str(place))


def abort_uploads(folder: ObjectPath) -> None:
    """Give up all uploads of objects below a folder that were begun and not completed."""
    bucket, prefix, _ = folder.filesystem.split_path(folder.key)
    for found in list(_uploads(folder, bucket, f"{prefix}/")):
        with suppress(FileNotFoundError):
            folder.call(
                "call_s3", "abort_multipart_upload", Bucket=bucket, Key=found["Key"], UploadId=found["UploadId"]
            )


def remove_objects(places: Sequence[ObjectPath]) -> None:
    """Remove objects of one bucket, exactly these: fsspec's own `rm` takes `*`, `?` and `[` for patterns.

    Raises:
        OSError: One of them cannot be removed.
    """
    for first in range(0, len(places), KEYS_AT_ONCE):
        some = places[first : first + KEYS_AT_ONCE]
        bucket = some[0].filesystem.split_path(some[0].key)[0]
        keys = [{"Key": place.key.removeprefix(f"{bucket}/")} for place in some]
        found = some[0].call("call_s3", "delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        for fault in found.get("Errors", []):
            if fault.get("Code") != "NoSuchKey":
                raise OSError(errno.EIO, f"it cannot be removed ({fault.get('Code')})", f"{bucket}/{fault.get('Key')}")


def content_of(pieces: Iterable[Piece]) -> bytes:
    """Return the bytes of some pieces, one after the other; those of extents are fetched."""
    pieces = list(pieces)
    extents = [piece for piece in pieces if isinstance(piece, Extent)]
    found = iter(ranges_of_objects([(of.place, of.start, of.start + of.length) for of in extents]))
    return b"".join(next(found) if isinstance(piece, Extent) else piece for piece in pieces)


def _make(place: ObjectPath, upload: str, number: int, part: Part) -> dict[str, Any]:
    """Copy or upload one part, and return what completes the upload."""
    if part.is_copy:
        (extent,) = part.pieces
        if not isinstance(extent, Extent) or not isinstance(extent.place, ObjectPath):
            raise TypeError("only ranges of objects can be copied")
        last = extent.start + extent.length - 1
        made = _call(
            place, "upload_part_copy", UploadId=upload, PartNumber=number,
            CopySource=extent.place.key, CopySourceRange=f"bytes={extent.start}-{last}",
        )["CopyPartResult"]  # fmt: skip
    else:
        made = _call(place, "upload_part", UploadId=upload, PartNumber=number, Body=content_of(part.pieces))
    checksums = {key: value for key, value in made.items() if key.startswith("Checksum") and key != "ChecksumType"}
    return {"PartNumber": number, "ETag": made["ETag"], **checksums}


def _call(place: ObjectPath, method: str, **arguments: Any) -> Any:
    bucket, key, _ = place.filesystem.split_path(place.key)
    return place.call("call_s3", method, Bucket=bucket, Key=key, **arguments)


def _uploads(folder: ObjectPath, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    marks: dict[str, str] = {}
    while True:
        page = folder.call("call_s3", "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marks)
        yield from page.get("Uploads", [])
        if not page.get("IsTruncated"):
            return
        marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
