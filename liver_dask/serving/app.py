"""A Zarr store over HTTP: GET and HEAD of its keys, with ranges, conditional requests and any origin.

Importing this module needs the extra `serve`.
"""

import asyncio
import json
import logging
import re
import secrets
import socket
from collections.abc import Collection
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ..core.errors import LiverDaskError, RemoteError, SourceChangedError
from ..store.record import MANIFEST
from .dataset_store import DatasetStore

log = logging.getLogger(__name__)

NAME = "volume.zarr"
"""Another address of the same, for readers that go by the suffix."""

ONE_RANGE = re.compile(r"(?a)\s*(?i:bytes)\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")
"""A Range header that asks for one range."""

CORS = Middleware(
    CORSMiddleware,
    allow_origins=["*"],
    allow_methods=["GET", "HEAD"],
    allow_headers=["*"],
    expose_headers=["Content-Length", "Content-Range", "ETag", "Accept-Ranges"],
)


def app_of(served: DatasetStore | Path, token: str) -> Starlette:
    """Return the application that serves a store.

    Args:
        served: A Dataset, or the folder of a complete store, whose files are served as they are.
        token: First part of all paths, so that only those who know it get an answer; empty for none.
    """
    if isinstance(served, Path):
        routes: list[Route | Mount] = [Mount("/", _Files(directory=served))]
    else:
        routes = [Route("/{key:path}", _Keys(served).answer, methods=["GET", "HEAD"])]
    routes = [Mount(f"/{NAME}", routes=routes), *routes]
    return Starlette(routes=[Mount(f"/{token}", routes=routes)] if token else routes, middleware=[CORS])


class _Files(StaticFiles):
    """The files of a complete store. A shard that was lost since is an error: readers would take 404 for zeros."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer a request for a file."""
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            array, _, shard = path.rpartition("/c/")
            if error.status_code == 404 and array and shard in self._recorded(array):
                return Response(f"{path} is lost; liver-dask verify says more.", 424, media_type="text/plain")
            raise

    def _recorded(self, array: str) -> Collection[str]:
        """Return the shards that an array was written with."""
        manifest, status = self.lookup_path(f"{array}/{MANIFEST}")
        try:
            return json.loads(Path(manifest).read_bytes())["shards"] if status else ()
        except (OSError, ValueError, LookupError, TypeError):
            return ()


class _Keys:
    """Answers requests for the keys of a DatasetStore.

    Files of the source are read in one version, so that an answer does not change as long as the server runs: the ETag
    is that of the server and the key.
    """

    def __init__(self, store: DatasetStore) -> None:
        self._store = store
        self._run = secrets.token_hex(8)

    async def answer(self, request: Request) -> Response:
        """Answer GET or HEAD of a key. If the client hangs up, the read is cancelled.

        An error of the source is never 404, which readers take for zeros. It is 502, which they ask for again, or 424.
        """
        key = request.path_params["key"]
        if not await self._store.exists(key):
            what = f"There is no {key!r} here" if key else "This is a Zarr store, and no page"
            return Response(f"{what}; open its address with a Zarr reader.", 404, media_type="text/plain")
        headers = {"ETag": f'"{self._run}"', "Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
        known = request.headers.get("If-None-Match", "")
        if self._run in known or known == "*":
            return Response(status_code=304, headers=headers)
        reading = self._store.read if request.method == "HEAD" else self._store.read_for_viewer
        read, left = asyncio.ensure_future(reading(key)), asyncio.ensure_future(_has_left(request))
        try:
            await asyncio.wait({read, left}, return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                return Response(status_code=499)  # nobody gets it
            content = read.result()
        except LiverDaskError as error:
            log.warning("%s: %s", key, error)
            may_pass = isinstance(error, RemoteError) and not isinstance(error, SourceChangedError)
            return Response(str(error), 502 if may_pass else 424, media_type="text/plain")
        finally:
            read.cancel()
            left.cancel()
        assert content is not None
        return _part_of(content, request.headers.get("Range", ""), request.headers.get("If-Range"), headers)


class QuietServer(uvicorn.Server):
    """A server that ends the connections that are still open when it is stopped."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


async def _has_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _part_of(content: bytes, asked: str, if_range: str | None, headers: dict[str, str]) -> Response:
    """Return the bytes that a Range header asks for, or all of them if it asks for no single range."""
    if if_range is not None and if_range != headers["ETag"]:
        asked = ""
    found = ONE_RANGE.fullmatch(asked)
    first, last = found.groups() if found else ("", "")
    if not (first or last) or (first and last and int(first) > int(last)):
        return Response(content, headers=headers, media_type="application/octet-stream")
    size = len(content)
    start, stop = (int(first), int(last) + 1 if last else size) if first else (max(size - int(last), 0), size)
    stop = min(stop, size)
    if start >= stop:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Response(content[start:stop], 206, headers, "application/octet-stream")
