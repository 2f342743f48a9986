"""Ask a source for one slice of each variable: whether it is there, and as the archive's description says."""

import xarray as xr

from ..core.errors import LiverDaskError
from ..core.threads import ContextPool
from .lazy.arrays import VolumeArray


def probe(ds: xr.Dataset, z: int) -> dict[str, LiverDaskError | None]:
    """Return for each variable None if a slice is there and as described, otherwise the error.

    Only the headers of the files are fetched.

    Args:
        ds: An archive as it was opened.
        z: The slice.
    """
    variables = {str(name): variable.data for name, variable in ds.data_vars.items()}
    lazies = {name: data.lazy for name, data in variables.items() if isinstance(data, VolumeArray) and data.lazy}
    found: dict[str, LiverDaskError | None] = {}
    with ContextPool(len(lazies), "liver_dask-probe") as pool:
        asked = {name: pool.submit(lazy.read.probe, z) for name, lazy in lazies.items()}
        for name, answer in asked.items():
            try:
                answer.result()
                found[name] = None
            except LiverDaskError as error:
                found[name] = error
    return found
