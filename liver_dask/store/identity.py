"""What makes a store the one of a call: archive, variable and voxels; not where the archive is.

The same archive at another address (a mirror, the folder it was copied to) goes on with a store, and is given it. Of
variables that are computed, dask's name for them decides, and that has the address in it.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..archive.archives import EMPIAR_13356, archives
from ..archive.description import Variable
from ..core.documents import as_object
from ..core.kinds import RAW

OF_OLD_STORES = EMPIAR_13356
"""The archive of stores whose records name none."""


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record must be the same in two calls for the same store. The record may be damaged."""
    grids = {key: record.get(key) for key in ("shape", "chunks", "shards")}
    variables = {name: _of_variable(as_object(of)) for name, of in as_object(record.get("variables")).items()}
    return {**grids, "variables": variables}


def _of_variable(variable: Mapping[str, Any]) -> dict[str, Any]:
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
    """The variable of an archive that a store's one is made of, as the archive is described here, or in the record.

    Args:
        variable: What the record has of it; it must not be computed.

    Raises:
        InvalidArgumentError: The archive has no such variable, or is described wrongly. (ValueError)
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


def is_file_of(pattern: str, url: str) -> bool:
    """Whether a URL is one of those that `VolumeReader.files` tells, or of a folder's, as older stores have it."""
    begins = pattern.rfind("{z")
    if pattern.endswith("/") or begins < 0:
        return url.startswith(pattern)
    after = pattern[pattern.index("}", begins) + 1 :]
    return bool(re.fullmatch(f"{re.escape(pattern[:begins])}[0-9]+{re.escape(after)}", url))


def has_means(variable: Mapping[str, Any]) -> bool:
    """Whether the store's tables have mean and deviation of a variable: not of masks, nor, earlier, of any bytes."""
    return variable["dtype"][-1] != "1" or variable.get("kind") == "image"
