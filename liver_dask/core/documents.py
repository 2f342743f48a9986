"""Read and compare the JSON documents of a store.

A document may be damaged or written by other software, so nothing in it is trusted.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .addresses import without_secrets
from .errors import DamagedError
from .places import ObjectPath, Place

LARGEST_DOCUMENT = 64 << 20
"""Bytes. The manifest of the full volume has 0.1 MB."""

LONGEST_REASON = 300

DECODED_ATTRIBUTES = {"_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned"}
"""Attributes that make readers with CF decoding return other values than the stored ones."""

CHANGING_ATTRIBUTES = DECODED_ATTRIBUTES | {"dtype", "_Encoding", "units"}
"""Attributes that make xarray return other values than the stored ones. For example, `units` of time turn numbers into
dates."""

TIMES = ("days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds")

Document = Mapping[str, Any]


def read_document(path: Place, what: str) -> Any:
    """Return the parsed content of a JSON file.

    Args:
        path: The file.
        what: What the file is for; it completes the error message "PATH, which WHAT, cannot be read".

    Raises:
        DamagedError: The file is missing, not a regular file, too large or not JSON, or it has a duplicate key.
    """
    try:
        if isinstance(path, ObjectPath):
            content = path.read_bytes()
        else:
            if path.exists() and not path.is_file():
                raise ValueError("it is not a file")
            if path.stat().st_size > LARGEST_DOCUMENT:
                raise ValueError("it is too large")
            content = path.read_bytes()
        return json.loads(content, object_pairs_hook=_without_doubles)
    except (OSError, ValueError, RecursionError) as error:
        fault = DamagedError(f"{path}, which {what}, cannot be read ({error}).")
        fault.__cause__ = error if str(error) == without_secrets(str(error)) else None
    raise fault  # raised here, so that its context does not hold an error that may show a secret


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {short(twice)} twice")
    return found


def as_object(value: Any) -> Document:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return the value if it is a JSON array, otherwise an empty one."""
    return value if isinstance(value, list) else []


def short(value: Any) -> str:
    """Format a value for a message, as one line of limited length."""
    return re.sub(r"\n\s*", " ", _short.repr(value))


def printable(value: object, most: int = 200) -> str:
    """Return a text that somebody else wrote as one line of bounded length, for a message."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value)[: most + 1])
    return text if len(text) <= most else f"{text[:most]}..."


def reason_of(error: Exception) -> str:
    """Return the message of another library's error as one line of limited length; it may quote its input."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def is_same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are the same to a reader: 1 equals 1.0, but not true; NaN equals NaN."""
    pairs = [(one, other)]
    while pairs:  # a loop: recursion may exceed Python's stack limit on deeply nested JSON
        one, other = pairs.pop()
        if isinstance(one, bool) or isinstance(other, bool):
            same = one is other
        elif isinstance(one, dict) and isinstance(other, dict):
            same = one.keys() == other.keys()
            pairs += [(one[key], other[key]) for key in one] if same else []
        elif isinstance(one, list) and isinstance(other, list):
            same = len(one) == len(other)
            pairs += zip(one, other, strict=False)
        elif isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
            same = True
        else:
            same = bool(one == other)
        if not same:
            return False
    return True


def array_problems(
    document: Any, shape: Sequence[int], chunks: Sequence[int], dtype: np.dtype[Any], dims: Sequence[str]
) -> Iterator[str]:
    """Yield the differences between an array's metadata and the expected metadata.

    Yields:
        Texts of the form "NAME is VALUE, and was written as VALUE".
    """
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "dimension_names": list(dims),
    }
    found = as_object(document)
    for key, value in expected.items():
        if not is_same(found.get(key), value):
            yield f"{key} is {short(found.get(key))}, and was written as {short(value)}"
    if found.get("storage_transformers"):
        yield f"storage_transformers is {short(found['storage_transformers'])}, and there were none"
    if dtype.kind in "biu" and not is_same(found.get("fill_value"), False if dtype.kind == "b" else 0):
        yield f"fill_value is {short(found.get('fill_value'))}, and was written as 0"


def sharding_problems(document: Any, chunks: Sequence[int]) -> Iterator[str]:
    """Yield the differences between the codecs of a voxel array and those that any version of this package writes."""
    codecs = as_object(document).get("codecs")
    codec = as_object(codecs[0]) if isinstance(codecs, list) and len(codecs) == 1 else {}
    sharding = as_object(codec.get("configuration"))
    if codec.get("name") != "sharding_indexed" or not is_same(sharding.get("chunk_shape"), list(chunks)):
        yield f"codecs are {short(codecs)}, and were written as shards of chunks of {list(chunks)}"
        return
    inner, index = _names_of(sharding.get("codecs")), _names_of(sharding.get("index_codecs"))
    if inner not in (["bytes", "blosc"], ["bytes", "blosc", "crc32c"]):
        yield f"codecs of a chunk are {short(inner)}, and were written as bytes, blosc"
    if index != ["bytes", "crc32c"] or sharding.get("index_location", "end") != "end":
        yield f"codecs of a shard's index are {short(index)}, and were written as bytes, crc32c at its end"
    for of in (sharding.get("codecs"), sharding.get("index_codecs")):
        first = as_object(of[0]) if isinstance(of, list) and of else {}
        if as_object(first.get("configuration")).get("endian", "little") != "little":
            yield "codecs have another order of bytes than the little one that was written"


def changing_attributes(attributes: Any) -> set[str]:
    """Return those of the attributes that make a reader return other values than the stored ones."""
    if attributes is None:
        return set()
    if not isinstance(attributes, dict):
        return {"attributes"}
    found = CHANGING_ATTRIBUTES & attributes.keys()
    units = attributes.get("units")
    return found if _is_of_time(units) else found - {"units"}


def _is_of_time(units: Any) -> bool:
    return isinstance(units, str) and (" since " in units or units.strip().lower() in TIMES)


def _names_of(codecs: Any) -> list[Any]:
    return [as_object(codec).get("name") for codec in codecs] if isinstance(codecs, list) else []
