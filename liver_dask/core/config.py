"""Default settings, which dask's configuration can override.

Use the section `liver-dask:` of the configuration, or environment variables such as `DASK_LIVER_DASK__CONNECTIONS=8`.
The settings are read when a Dataset is opened and travel with it: a worker never reads its own configuration.
"""

from typing import Any

import dask

DEFAULTS: dict[str, Any] = {
    "chunk-rows": 1024,
    "connections": 16,
    "timeout": 4.0,  # read timeout in seconds, doubled with each retry; 9 of 10 answers begin within 2 s
    "attempts": 6,
    "cache-dir": None,
    "cache-raw-gb": 0,
    "tune-malloc": False,  # whether an export may tune malloc in this process, which reduces its memory use
    "check-room": True,  # whether to refuse an export that seems too large for disk or memory
    "most-refetches": 4.0,  # how often, on average, an export of computed data may fetch the same data
}


def setting(name: str, given: Any = None) -> Any:
    """Return `given` unless it is None, else the value from dask's configuration, else the default."""
    if given is not None:
        return given
    return dask.config.get(f"liver-dask.{name}", DEFAULTS[name])
