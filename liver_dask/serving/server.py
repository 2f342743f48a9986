"""`as_zarr` and `serve`: a Dataset, a store or an archive as OME-Zarr, in this process and over HTTP."""

import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.sync import sync

from ..core.errors import InvalidArgumentError, MissingExtraError, how_to_install
from ..store.levels import levels_of
from ..store.ome_zarr import is_described
from ..store.record import has_record
from ..store.targets import open_target, stored_at
from .dataset_store import DatasetStore
from .neuroglancer import HOSTED, link_of

if TYPE_CHECKING:
    import uvicorn

OF_TOKENS = "[A-Za-z0-9_-]+"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SECONDS_TO_STOP = 1
SECONDS_TO_START = 30


def as_zarr(ds: xr.Dataset) -> DatasetStore:
    """Return a Dataset as a read-only Zarr v3 store, whose chunks are made when they are read.

    `zarr.open_group(store, mode="r")`, `xarray.open_zarr(store)` and viewers in this process read it. It is OME-Zarr
    0.5: raw at all scales, and masks and instances in the group `labels`. The first scale has the voxels themselves;
    others have every 2nd, 4th, ... row, with columns averaged (images), with their share of labelled voxels (masks), or
    the one in the middle (instances). Nothing is fetched until a chunk is read; a chunk fetches the rows that it shows.

    Args:
        ds: Any Dataset of this package, whole, cropped or changed, with variables of dims (z, y, x).

    Returns:
        The store, for this process; it is read, and never written.

    Raises:
        InvalidArgumentError: The Dataset cannot be served. (ValueError)
    """
    return DatasetStore(ds)


class Server:
    """A running server. As a context manager, it stops at the end.

    Attributes:
        url: Address of the store, with a slash at the end; viewers take it with `zarr3://` or `|zarr3:`.
    """

    def __init__(
        self, server: "uvicorn.Server", thread: threading.Thread, url: str, served: DatasetStore | Path
    ) -> None:
        self._server, self._thread, self._served = server, thread, served
        self.url = url

    def link(self, client: str = HOSTED, *, z: int | None = None) -> str:
        """Return a link that opens what is served in neuroglancer, and begin to read what it shows first.

        Args:
            client: Address of neuroglancer: the hosted one, or one that is served elsewhere.
            z: The slice to show; the middle one if None.

        Returns:
            The link.

        Raises:
            InvalidArgumentError: The slice is not served, or nothing is that neuroglancer could show. (ValueError)
            LiverDaskError: The source cannot be read.
        """
        if isinstance(self._served, DatasetStore):
            sync(self._served.find_contrast())  # the first read: a wrong address is an error here
        root = zarr.open_group(self._served, mode="r")
        coordinate: Any = root["z"]
        slices = coordinate[:]
        z = int(slices[len(slices) // 2]) if z is None else z
        if z not in slices:
            raise InvalidArgumentError(f"z={z!r} is not one of the slices {slices[0]} to {slices[-1]} that are served.")
        if isinstance(self._served, DatasetStore):
            self._served.begin(int(np.searchsorted(slices, z)))
        return link_of(self.url, root, z, client)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<liver_dask server at {self.url}>"

    def wait(self) -> None:
        """Wait until the server is stopped."""
        while self._thread.is_alive():
            self._thread.join(0.2)

    def close(self) -> None:
        """Stop the server, and cancel its reads."""
        if isinstance(self._served, DatasetStore):
            self._served.close()
        self._server.should_exit = True
        self._thread.join()


def serve(
    target: xr.Dataset | str | os.PathLike[str],
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    **options: Any,
) -> Server:
    """Serve a Dataset, a store or an archive over HTTP as OME-Zarr, for napari, neuroglancer and other Zarr readers.

    A complete store with a pyramid is served as the files that it has. Everything else is made when it is asked for,
    see `as_zarr`; nothing is written.

    Args:
        target: A Dataset; or the path of a store, or the address of an archive.
        port: Port of the server; any free port if 0.
        host: Address of this machine on which to listen. By default, only this machine is answered.
        token: First part of the path, without which nothing is answered. None is no token on this machine, and a random
            one on other addresses.
        options: Further arguments of `open_archive` if the target is an archive, and `archive`.

    Returns:
        The server, which runs on a thread of its own: `with serve(ds) as server: print(server.url)`.

    Raises:
        MissingExtraError: Starlette and uvicorn are not installed. (ImportError)
        InvalidArgumentError: The target cannot be served, or the port cannot be used. (ValueError)
    """
    try:
        import uvicorn

        from .app import QuietServer, app_of
    except ImportError as error:
        raise MissingExtraError(
            f"A server needs starlette and uvicorn ({error}): {how_to_install('serve')}."
        ) from error
    served = _served(target, options)
    token = token if token is not None else "" if host in LOOPBACK else secrets.token_urlsafe(16)
    if token and not re.fullmatch(OF_TOKENS, token):
        raise InvalidArgumentError("The token is part of an address: give letters, digits, - and _ only.")
    listening = _listening(host, port)
    config = uvicorn.Config(
        app_of(served, token),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",  # else it imports a package for websockets, of whatever version there is
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    server = QuietServer(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="liver_dask-serve", daemon=True)
    thread.start()
    until = time.monotonic() + SECONDS_TO_START
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listening.getsockname()[1]}/" + (f"{token}/" if token else "")
    return Server(server, thread, url, served)


def _served(target: xr.Dataset | str | os.PathLike[str], options: dict[str, Any]) -> DatasetStore | Path:
    if isinstance(target, xr.Dataset):
        return as_zarr(target)
    if not isinstance(target, str | os.PathLike):
        raise InvalidArgumentError(f"A Dataset, a path or an address is served, not a {type(target).__name__}.")
    ds = open_target(target, **options)
    store = stored_at(target)
    has_pyramid = (
        isinstance(store, Path) and has_record(store) and len(levels_of(store)) > 1 and is_described(levels_of(store))
    )
    return store if isinstance(store, Path) and has_pyramid else as_zarr(ds)


def _listening(host: str, port: int) -> socket.socket:
    if not host or not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise InvalidArgumentError(f"Cannot listen on port {port!r} of {host!r}: give a number, and an address.")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise InvalidArgumentError(f"Cannot listen on port {port} of {host!r}: {error}.") from error
    return listening
