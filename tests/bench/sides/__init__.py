"""Who is measured: a module each, with a function `run_ROW` for each row that it takes part in.

Each is written as somebody would who knows the library well. A function gets a `Task`, and returns arrays by name
(z, y, x) or writes a store into the folder of the task. What is imported at the top of a module is not in the time.
"""

from typing import NamedTuple


class Side(NamedTuple):
    """A side.

    Attributes:
        title: Its name in tables.
        packages: The distributions that it needs, whose versions are told.
        modules: What must be importable for it.
    """

    title: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]


SIDES = {
    "ours": Side("liver_dask", ("liver_dask",), ("liver_dask",)),
    "torch_em_module": Side("torch_em's own module", ("torch_em", "torch"), ("torch_em",)),
    "plain_dask": Side("plain dask + xarray", ("dask", "xarray", "fsspec", "aiohttp"), ("aiohttp",)),
    "tifffile_zarr": Side("tifffile aszarr + fsspec", ("tifffile", "zarr", "fsspec", "aiohttp"), ("aiohttp",)),
    "virtual": Side("virtual-tiff (VirtualiZarr)", ("virtual-tiff", "virtualizarr", "obstore"), ("virtual_tiff",)),
    "miao_loader": Side("miao-io", ("miao-io",), ("miao",)),
}
