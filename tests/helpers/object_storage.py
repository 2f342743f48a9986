"""S3 on this machine, with its requests counted and, if asked, disturbed.

It is moto; or, if the environment variable LIVER_DASK_S3 has its address, any other server that accepts KEY and SECRET
(for example Ceph's `radosgw`), so that all tests of stores in S3 can be run with it, too.
"""

import logging
import multiprocessing
import os
import re
import secrets
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from moto.server import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

import liver_dask as ld
from liver_dask.core.places import ObjectPath

from .archive import SHAPE
from .forwarding import Forwarding

BUCKET = "tests"
TINY = {"chunks": (2, 32, 32), "shards": (4, 64, 64)}
TINY_BOX = (150, 230, 100, 140, 2, 6)
OTHER = os.environ.get("LIVER_DASK_S3")
"""Address of a server that is used in place of moto."""

KEY, SECRET = "AKIAEXAMPLEKEY", "example-secret-that-nobody-may-see"


class Asked(NamedTuple):
    """One request.

    Attributes:
        method: HTTP method.
        path: Path, with the bucket.
        query: The query.
        range: The header Range, or that of a copy.
        length: Bytes of its body.
        is_copy: Whether the body is copied in the storage.
    """

    method: str
    path: str
    query: str
    range: str
    length: int
    is_copy: bool


Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class ObjectStorage:
    """A running S3.

    Attributes:
        url: Its address.
        asked: All requests so far.
        disturb: Called with each request before it is answered; it may return another application that answers.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.undisturbed()

    def undisturbed(self) -> None:
        """Forget all requests, and answer the next ones as they should be."""
        self.asked: list[Asked] = []
        self.disturb: Callable[[Asked, Application], Application] = lambda asked, application: application

    @property
    def options(self) -> dict[str, Any]:
        """The `storage_options` for it."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.url}

    @property
    def client(self) -> Any:
        """An independent client."""
        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
        )

    def folder(self) -> ObjectPath:
        """Return a new, empty folder."""
        return ObjectPath(f"s3://{BUCKET}/{secrets.token_hex(6)}", self.options)

    def objects(self, folder: ObjectPath) -> dict[str, bytes]:
        """Return the content of all objects below a folder, as the independent client sees them."""
        client, prefix = self.client, f"{folder.key.removeprefix(f'{BUCKET}/')}/"
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key[len(prefix) :]: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def uploads(self, folder: ObjectPath) -> list[str]:
        """Return the keys of the uploads below a folder that were begun and not completed."""
        prefix = f"{folder.key.removeprefix(f'{BUCKET}/')}/"
        found = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
        return [upload["Key"] for upload in found.get("Uploads", [])]


class KeepsConnections(MotoRequestHandler):
    """Answers several requests on a connection: a new one for each would be a third of the time."""

    protocol_version = "HTTP/1.1"


@contextmanager
def object_storage() -> Iterator[ObjectStorage]:
    """Run an S3 with an empty bucket on a free port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Forwarding(OTHER) if OTHER else create_backend_app("s3")
    storage = ObjectStorage("")

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        asked = Asked(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
            environ.get("HTTP_X_AMZ_COPY_SOURCE_RANGE") or environ.get("HTTP_RANGE", ""),
            int(environ.get("CONTENT_LENGTH") or 0),
            "HTTP_X_AMZ_COPY_SOURCE" in environ,
        )
        storage.asked.append(asked)
        return storage.disturb(asked, application)(environ, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=KeepsConnections)
    storage.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with suppress(storage.client.exceptions.BucketAlreadyExists):
            storage.client.create_bucket(Bucket=BUCKET)
        yield storage
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write(source: Path | str, place: ObjectPath | Path, labels: tuple[str, ...] = ("er",), **options: Any) -> str:
    ds = ld.open_human_liver_em(source, shape=SHAPE, labels=labels)
    return ld.to_zarr(ds, place, bounding_box=TINY_BOX, progress=False, **TINY, **options)


def killed_at(s3: ObjectStorage, at: Callable[[Asked], bool], answers: bool, call: Callable[[], object]) -> int | None:
    """Call a function in a process that is killed at the first request for which `at` holds; return its exit code.

    Args:
        s3: The storage.
        at: Whether a request is the one.
        answers: Whether the request is still carried out.
        call: The call.
    """
    s3.undisturbed()
    process = multiprocessing.get_context("fork").Process(target=call)

    def kill(asked: Asked, application: Any) -> Any:
        if not at(asked):
            return application

        def last(environ: Any, start_response: Any) -> list[bytes]:
            body = list(application(environ, start_response)) if answers else _gone(start_response)
            os.kill(process.pid, signal.SIGKILL)
            return body

        return last

    s3.disturb = kill
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads: the child leaves them alone
        process.start()
    process.join(100)
    s3.undisturbed()
    return process.exitcode


def put(end: str) -> Callable[[Asked], bool]:
    """Return whether a request writes an object whose path matches a pattern."""
    return lambda asked: asked.method == "PUT" and re.search(f"{end}$", asked.path) is not None


def answered(status: str, code: str) -> Any:
    """Return an application that answers with an error of S3."""

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "application/xml")])
        return [f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>told {SECRET}</Message></Error>'.encode()]

    return answer


def _gone(start_response: Any) -> list[bytes]:
    start_response("500 Internal Server Error", [])
    return []
