"""Defaults that dask's configuration may replace (`liver-dask:` section, or `DASK_LIVER_DASK__CONNECTIONS=8`).

They are read where a Dataset is opened, and travel with it: a worker never looks at its own configuration.
"""

from typing import Any

import dask

DEFAULTS: dict[str, Any] = {
    "chunk-rows": 1024,
    "connections": 16,
    "timeout": 4.0,  # seconds without a byte, twice as many with each try; nine answers in ten begin within two
    "attempts": 6,
    "cache-dir": None,
    "cache-raw-gb": 0,
    "tune-malloc": False,  # whether an export in this process may set how malloc keeps memory: it takes less
    "check-room": True,  # whether an export that seems too large for disk or memory is refused
    "most-refetches": 4.0,  # how often an export may fetch the same, on average, for what is computed
}


def setting(name: str, given: Any = None) -> Any:
    """`given` unless it is None, else what dask's configuration says, else the default."""
    if given is not None:
        return given
    return dask.config.get(f"liver-dask.{name}", DEFAULTS[name])
