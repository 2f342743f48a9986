"""What identifies a store: archive, variable and voxels, but not the address of the archive.

A call that reads the same archive from another address (a mirror, or a folder with a copy) resumes or returns the same
store. A computed variable is identified by its dask name, which depends on the address.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ..archive.archives import EMPIAR_13356, archives
from ..archive.description import Variable
from ..core.documents import as_list, as_object
from ..core.geometry import DIMS
from ..core.kinds import RAW

PREDICTION = "prediction "
"""How the text begins that identifies a prediction; JSON follows, then the box."""

ADDED = "added"
"""Key of the entry of a variable that was added to a complete store."""

OF_OLD_STORES = EMPIAR_13356
"""The archive of older stores, whose records do not name an archive."""


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that is the same in all calls for one store; the record may be damaged.

    Variables that were added later are no part of it.
    """
    grids = {key: record.get(key) for key in ("shape", "chunks", "shards")}
    variables = {name: as_object(of) for name, of in as_object(record.get("variables")).items()}
    own = {name: identity_of_variable(of) for name, of in variables.items() if not of.get(ADDED)}
    return {**grids, "variables": own}


def digest_of(record: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that are the same in all calls for one store."""
    return hashlib.sha256(json.dumps(identity_of(record), sort_keys=True).encode()).hexdigest()[:16]


def identity_of_variable(variable: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the entry of a variable that is the same in all calls for it."""
    voxels = variable.get("voxels")
    if isinstance(voxels, dict):
        kind = as_object(variable.get("description")).get("kind", "mask")
        kind = "image" if "description" not in variable and voxels.get("variable") == RAW else kind
        voxels = {
            "archive": OF_OLD_STORES.name,
            "kind": kind,
            **{key: of for key, of in voxels.items() if key != "source"},
        }
    return {"dtype": variable.get("dtype"), "voxels": voxels}


def described(variable: Mapping[str, Any]) -> Variable:
    """Return the archive variable that a variable of a store was made from.

    The description of the archive that this package knows takes precedence over the one in the record.

    Args:
        variable: The entry of the variable in the store's record. The variable must not be a computed one.

    Raises:
        InvalidArgumentError: The archive has no such variable, or its description is invalid. (ValueError)
    """
    origin = variable["voxels"]
    known = archives().get(origin.get("archive", OF_OLD_STORES.name))
    if known or "description" not in variable:
        return (known or OF_OLD_STORES)[origin["variable"]]
    return Variable.of(origin["variable"], variable["description"])


def recorded(variable: Mapping[str, Any]) -> Variable:
    """The same as it was described when the store was begun.

    Raises:
        InvalidArgumentError: It is described wrongly. (ValueError)
    """
    if "description" in variable:
        return Variable.of(variable["voxels"]["variable"], variable["description"])
    return described(variable)


def indexes_text(start: int, stop: int, step: int) -> str:
    """Return a text for the indexes along one axis; as everywhere, the stop is exclusive unless there are steps."""
    return f"{start}-{stop}" if step == 1 else f"{start} to {stop - step} in steps of {step}"


def made_of(variable: Mapping[str, Any]) -> str:
    """Return a text that says what the voxels of a variable of a store were made of.

    Args:
        variable: The entry of the variable in the store's record, which was checked.
    """
    voxels = variable["voxels"]
    prediction = prediction_in(voxels)
    if prediction:
        return prediction_text(prediction)
    if not isinstance(voxels, dict):
        return str(voxels)
    box = ", ".join(f"{dim} {indexes_text(*voxels[dim])}" for dim in DIMS)
    return f"{voxels['variable']} of {voxels.get('archive', OF_OLD_STORES.name)} ({box}), read from {voxels['source']}"


def prediction_text(prediction: Mapping[str, Any]) -> str:
    """Return a text of what `prediction_in` returns."""
    raw = prediction.get("raw")
    of = "voxels of a store" if isinstance(raw, dict) else str(raw)[:80]
    blocks = (f"{key} {' x '.join(map(str, as_list(prediction.get(key))))}" for key in ("block", "halo"))
    threshold = f", threshold {prediction['threshold']}" if "threshold" in prediction else ""
    return f"prediction by {str(prediction.get('model'))[:24]} of {of} ({', '.join(blocks)}{threshold})"


def prediction_in(voxels: Any) -> dict[str, Any] | None:
    """Return what a record says about the model, the settings and the input of a prediction; None of other voxels."""
    if not isinstance(voxels, str) or not voxels.startswith(PREDICTION):
        return None
    try:
        found, end = json.JSONDecoder().raw_decode(voxels, len(PREDICTION))
    except (ValueError, RecursionError):
        return None
    return {**as_object(found), "box": voxels[end:].strip()}


def is_file_of(pattern: str, url: str) -> bool:
    """Return whether a URL matches a pattern of files.

    Args:
        pattern: `VolumeReader.files`, or the URL of a folder, as in the records of older stores.
        url: The URL of a file.
    """
    begins = pattern.rfind("{z")
    if pattern.endswith("/") or begins < 0:
        return url.startswith(pattern)
    after = pattern[pattern.index("}", begins) + 1 :]
    return bool(re.fullmatch(f"{re.escape(pattern[:begins])}[0-9]+{re.escape(after)}", url))


def has_means(variable: Mapping[str, Any]) -> bool:
    """Return whether a store's tables contain the mean and the standard deviation of a variable.

    Variables of one byte per voxel have them only if they are images: masks do not. Earlier versions did not record the
    kind, and left them out for all variables of one byte.

    Args:
        variable: The entry of the variable in the store's record.
    """
    return variable["dtype"][-1] != "1" or variable.get("kind") == "image"
