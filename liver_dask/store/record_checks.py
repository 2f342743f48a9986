"""Validate the record of a store, which may be damaged or written by somebody else.

The limits here, or the files on the disk, bound everything that a reader allocates, iterates over or opens because of a
record.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.documents import as_object, short
from ..core.errors import InvalidArgumentError
from ..core.geometry import DIMS, LONGEST_AXIS
from ..core.kinds import KINDS, RESERVED_NAMES
from .identity import described, identity_of, indexes_text, prediction_in
from .layout import plan_layout

LONGEST_NAME = 240
LARGEST_CHUNK = 2**31
"""Maximum bytes of a chunk; a limit of Blosc."""

MOST_CHUNKS = 2**24
"""Maximum number of chunks per shard, which means an index of 256 MB."""

MOST_BLOCKS = 2**20
"""Maximum number of blocks of the volume that a store was cut from. The full volume has 12,000."""

MOST_SHOWN = 8
"""Maximum number of attributes in a message about two stores that differ."""

DTYPE = re.compile(r"\|[biu]1|[<>][iuf][248]")


def record_problem(record: Any) -> str | None:
    """Return the first problem of a record, or None if there is no problem."""
    try:
        shape, chunks, shards = (_lengths(record, key) for key in ("shape", "chunks", "shards"))
        variables = as_object(record.get("variables"))
        if not variables:
            raise ValueError(f"variables are {short(record.get('variables'))}")
        for name, variable in variables.items():
            _check_variable(name, as_object(variable), shape)
        sizes = {name: np.dtype(variable["dtype"]).itemsize for name, variable in variables.items()}
        if math.prod(chunks) * max(sizes.values()) >= LARGEST_CHUNK:
            raise ValueError(f"chunks are {list(chunks)}, which is more than can be")
        if math.prod(math.ceil(shard / chunk) for shard, chunk in zip(shards, chunks, strict=True)) > MOST_CHUNKS:
            raise ValueError(f"shards are {list(shards)}, which is more chunks than can be")
        if plan_layout(shape, sizes, chunks, shards).shards != shards:
            raise ValueError(f"shards are {list(shards)}, which is more than the shape {list(shape)} has")
    except (ValueError, InvalidArgumentError) as error:
        return str(error).rstrip(".")
    return None


def explain_difference(found: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Explain how record and call differ: in dask's names of computed variables only, or in which attributes.

    Args:
        found: The record of the store.
        content: The record that the call would write.
    """
    one, other = identity_of(found), identity_of(content)
    there, wanted = one.pop("variables"), other.pop("variables")
    differing = [name for name in wanted if there.get(name) != wanted[name]]
    rest = one != other
    if (
        rest
        or not differing
        or there.keys() != wanted.keys()
        or not all(
            _is_computed(of[name]) and of[name] | {"voxels": ""} == there[name] | {"voxels": ""}
            for name in differing
            for of in (there, wanted)
        )
    ):
        return _differing_attributes(found, content)
    return (
        f" Only how {', '.join(differing)} is computed has another name in dask. If you know of no change: a lambda or "
        "a function of a notebook or script may have another name after each edit and in each process; put it into a "
        "module that is imported, or give dask a name (`da.map_blocks(..., name=...)`). If it is computed from a store "
        "that was being changed, open that again."
    )


def _differing_attributes(found: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Return a sentence with the attributes of two records that differ, and their values; "" if that is not known."""
    try:
        one, other = _attributes_of(found), _attributes_of(content)
        names = _variables_in_words(identity_of(found)["variables"], identity_of(content)["variables"])
    except (KeyError, TypeError, ValueError, AttributeError):  # a damaged record
        return ""
    if names:
        return names
    keys = [key for key in one | other if one.get(key) != other.get(key)]
    if any(key in keys for key in DIMS):  # the grids follow from the box
        keys = [key for key in keys if key not in ("shape", "shards")]
    if not keys:
        return ""
    shape = " The argument `shape` says how large the volume is." if "volume" in keys else ""
    more = ", ..." if len(keys) > MOST_SHOWN else ""
    held, asked = (", ".join(f"{key} {of.get(key, 'none')}" for key in keys[:MOST_SHOWN]) for of in (one, other))
    return f" It holds {held}{more}; this call asks for {asked}{more}.{shape}"


def _variables_in_words(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return a sentence about variables made of other things, or that the store lacks; "" if there are none."""
    for name in [name for name in wanted if name in there]:
        held, asked = (_how(of[name]) for of in (there, wanted))
        if held != asked:
            return f" It holds {name} {held}; this call asks for {name} {asked}."
    if there.keys() < wanted.keys() and all(there[name] == wanted[name] for name in there):
        more = ", ".join(name for name in wanted if name not in there)
        return f" It lacks {more}, which `add_variables` adds to it."
    return ""


def _how(variable: Mapping[str, Any]) -> str:
    """Return how a variable was made, in some words."""
    if isinstance(variable["voxels"], dict):
        return "of an archive"
    return "predicted by a model" if prediction_in(variable["voxels"]) else "that was computed"


def _attributes_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what distinguishes a store, as texts by name; the box and the archive are those of its first variable."""
    identity = identity_of(record)
    variables = identity.pop("variables")
    attributes = {"variables": ", ".join(variables)}
    for name, variable in variables.items():
        attributes[f"dtype of {name}"] = str(variable["dtype"])
        voxels = variable["voxels"]
        if isinstance(voxels, dict):
            for dim in DIMS:
                attributes.setdefault(dim, indexes_text(*voxels[dim]))
            attributes.setdefault("archive", str(voxels["archive"]))
            attributes.setdefault("volume", short(voxels["shape"]))
            attributes[f"kind of {name}"] = str(voxels["kind"])
            attributes[f"source of {name}"] = str(voxels["variable"])
        else:
            told = prediction_in(voxels) or {"computation": voxels}
            if isinstance(told.get("raw"), dict):
                told |= {f"raw's {key}": of for key, of in told.pop("raw").items()}
            attributes |= {f"{key} of {name}": short(of) for key, of in told.items()}
    return attributes | {key: short(of) for key, of in identity.items()}


def _is_computed(variable: Any) -> bool:
    voxels = as_object(variable).get("voxels")
    return isinstance(voxels, str) and voxels.startswith("computed ")


def _lengths(record: Any, key: str) -> tuple[int, int, int]:
    z, y, x = numbers = _integers(as_object(record).get(key), key)
    if min(numbers) < 1 or max(numbers) > LONGEST_AXIS:
        raise ValueError(f"{key} is {short(record[key])}")
    return z, y, x


def _integers(value: Any, key: str) -> Sequence[int]:
    if not isinstance(value, list) or len(value) != 3 or not all(type(number) is int for number in value):
        raise ValueError(f"{key} is {short(value)}")
    return value


def _check_variable(name: str, variable: Any, shape: Sequence[int]) -> None:
    if not name.isidentifier() or name in RESERVED_NAMES or name in DIMS or len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"a variable is named {short(name)}")
    dtype, files, voxels = (variable.get(key) for key in ("dtype", "files", "voxels"))
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype):
        raise ValueError(f"the dtype of {name} is {short(dtype)}")
    if not isinstance(files, list) or not all(isinstance(prefix, str) for prefix in files):
        raise ValueError(f"the files of {name} are {short(files)}")
    if variable.get("kind", KINDS[0]) not in KINDS:
        raise ValueError(f"the kind of {name} is {short(variable['kind'])}")
    if isinstance(voxels, dict):
        _check_origin(name, variable, voxels, shape)
    elif not isinstance(voxels, str):
        raise ValueError(f"the voxels of {name} are {short(voxels)}")


def _check_origin(name: str, variable: Any, origin: dict[str, Any], shape: Sequence[int]) -> None:
    """Check which voxels of an archive a variable holds: ranges of each axis, with the same lengths as the store."""
    if not all(isinstance(origin.get(key, ""), str) for key in ("archive", "source", "variable")):
        raise ValueError(f"{name} is made of {short(origin.get('variable'))} of {short(origin.get('source'))}")
    if "source" not in origin or "variable" not in origin:
        raise ValueError(f"{name} is made of {short(origin)}")
    described(variable)
    whole = _lengths(origin, "shape")
    if whole[0] * math.ceil(whole[1] / 1024) > MOST_BLOCKS:
        raise ValueError(f"{name} is made of a volume of {short(origin['shape'])}")
    for dim, length, of in zip(DIMS, shape, whole, strict=True):
        start, stop, step = _integers(origin.get(dim), f"{dim} of {name}")
        small = max(map(abs, (start, stop, step))) <= LONGEST_AXIS and step != 0
        taken = range(start, stop, step) if small else range(0)
        if len(taken) != length or not (0 <= taken[0] < of and 0 <= taken[-1] < of):
            raise ValueError(f"{name} is made of {dim} {short(origin[dim])} of {of}, for {length}")
