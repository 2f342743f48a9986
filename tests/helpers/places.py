"""Stores in folders and in object storage: the files of both are read, written, changed and copied in the same way.

None of this is what the package itself reads and writes with.
"""

import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
import zarr
from zarr.storage import FsspecStore

from liver_dask.core.places import ObjectPath, Place

IN_A_FOLDER = pytest.mark.parametrize("place", ["folder"], indirect=True)
"""Marks a test of what only a file system has, or which does not depend on where a store lies."""


REAL_IN_S3 = pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.real)], indirect=True)
"""Marks a test of hundreds of requests, which runs in object storage with `pytest -m real` only."""


def in_both(names: str, every: Iterable[Any], some: Iterable[Any], real: Iterable[Any] = ()) -> pytest.MarkDecorator:
    """Parametrise a test over all cases in a folder, and over some of them in object storage, some of those if `real`.

    There, each file of a store costs some requests of milliseconds, and a test of all cases would take minutes.
    """
    several = "," in names
    cases = [("folder", *case) if several else ("folder", case) for case in every]
    cases += [("s3", *case) if several else ("s3", case) for case in some]
    cases += [pytest.param("s3", *(case if several else (case,)), marks=pytest.mark.real) for case in real]
    return pytest.mark.parametrize(f"place, {names}", cases, indirect=["place"])


@cache
def _client(endpoint: str, key: str, secret: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
    )


def client_of(place: ObjectPath) -> Any:
    """Return an independent client for the storage of a place."""
    return _client(*(place.options[name] for name in ("endpoint_url", "key", "secret")))


def bucket_and_key(place: ObjectPath) -> dict[str, str]:
    """Return the arguments of the client for an object."""
    bucket, key = place.key.split("/", 1)
    return {"Bucket": bucket, "Key": key}


def read(file: Place) -> bytes:
    """Return the content of a file."""
    if isinstance(file, Path):
        return file.read_bytes()
    return client_of(file).get_object(**bucket_and_key(file))["Body"].read()


def put(file: Place, data: bytes | bytearray | str) -> None:
    """Write a file, in folders that may not exist yet."""
    content = data.encode() if isinstance(data, str) else bytes(data)
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    else:
        client_of(file).put_object(**bucket_and_key(file), Body=content)


def flip(file: Place, at: int, mask: int = 1) -> None:
    """Flip bits of one byte of a file."""
    data = bytearray(read(file))
    data[at] ^= mask
    put(file, data)


def files_of(folder: Place) -> list[str]:
    """Return the paths of all files below a folder, sorted."""
    if isinstance(folder, Path):
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    bucket, key = bucket_and_key(folder).values()
    pages = client_of(folder).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/")
    return sorted(entry["Key"].removeprefix(f"{key}/") for page in pages for entry in page.get("Contents", []))


def contents(folder: Place) -> dict[str, bytes]:
    """Return the path and the content of every file below a folder."""
    return {name: read(folder / name) for name in files_of(folder)}


def remove(place: Place) -> None:
    """Remove a file, or a folder with everything below."""
    if isinstance(place, Path):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        return
    for name in files_of(place):
        client_of(place).delete_object(**bucket_and_key(place / name))
    client_of(place).delete_object(**bucket_and_key(place))


def copied(folder: Place, copy: Place) -> Place:
    """Copy all files below a folder, and return the copy."""
    if isinstance(folder, Path) and isinstance(copy, Path):
        return shutil.copytree(folder, copy)
    for name, content in contents(folder).items():
        put(copy / name, content)
    return copy


def writable(place: Place) -> Any:
    """Return what zarr and xarray open to change a store as any other program does."""
    if isinstance(place, Path):
        return place
    return FsspecStore.from_url(str(place), storage_options={"use_listings_cache": False, **place.options})


def consolidate(place: Place) -> None:
    """Consolidate the metadata of a store, as other programs do."""
    zarr.consolidate_metadata(writable(place))
