"""A small store in memory that an input spoils for a moment, for targets that read what a store says of itself.

An input says, byte by byte: what reads the store; whether the checksums are made right again, as somebody would who
made the store; and some changes: of which file, where in it, and what. The store is some kilobytes in a folder in
memory, with one level of a pyramid. Nothing may be asked of a host that nobody named, nor of one that was not told.
All is read on the calling thread: so it takes less time, and the same input takes the same way each time.
"""

import asyncio
import atexit
import functools
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import xarray as xr

import liver_dask as ld
from helpers import tiny
from helpers.tiny import nested
from liver_dask.archive.remote import http_transport as transport
from liver_dask.core.errors import LiverDaskError, RemoteError
from liver_dask.core.threads import ContextPool
from liver_dask.demo import make_archive
from liver_dask.store import inventory
from liver_dask.store import levels as store_levels
from liver_dask.store.array import StoredArray

IN_MEMORY = Path("/dev/shm")
Keys = tuple[Any, ...]
ONE_LEVEL = store_levels, "SMALL_ENOUGH", 30
"""What makes a pyramid of the store one level high."""

SEALED = ("liver_dask/zarr.json", "liver_dask/inventory.json")
FILES = (
    "zarr.json", "raw/zarr.json", "x/zarr.json", "liver_dask/zarr.json", "raw/manifest.json",
    "liver_dask/inventory.json", "liver_dask/raw/nonzero/zarr.json", "liver_dask/raw/mean/zarr.json", "x/c/0",
    "pyramid/zarr.json", "pyramid/s1/zarr.json", "pyramid/s1/raw/zarr.json", "pyramid/s1/liver_dask/zarr.json",
)  # fmt: skip


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 16, 255, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63), 0.5,
    1e308, float("nan"), float("inf"), "", "0", "a", "z", "raw", "../raw", "/etc/passwd", "~", "a\0b", "x" * 5000,
    "0/0/0", "http://nobody.invalid/a", "https://user:secret@nobody.invalid/", "ssh://nobody.invalid/a", "file:///etc",
    "uint16", "float64", "int64", "bool", "<u2", "|u1", "O", "days since 2000-01-01", "bytes", "blosc", "zstd", "gzip",
    "crc32c", "transpose", "sharding_indexed", "regular", "v2", "array", "group", [], {}, [0], [1, 1, 1],
    [2**31 - 1] * 3, [4, 40, 50], [2, 16, 16], [2**40], [[]], {"a": 1}, {"name": "bytes"}, [-1, -1, -1],
    ["z", "y", "x"], {"attributes": {}}, nested(600),
)  # fmt: skip
NAMES = (
    "scale_factor",
    "_FillValue",
    "units",
    "shape",
    "chunks",
    "ome",
    "voxel_size_nm",
    "z",
    "raw",
    "0/0/0",
    "format",
)


class Choices:
    """Takes choices from an input; beyond its end all are 0."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def next(self, count: int) -> int:
        """A number below `count`."""
        wide = 2 if count > 256 else 1
        taken = self._data[self._at : self._at + wide]
        self._at += wide
        return int.from_bytes(taken, "big") % max(count, 1)

    def rest(self, count: int) -> bytes:
        """Some bytes as they are."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken


class Made(NamedTuple):
    """The store as it was made.

    Attributes:
        store: Where it is.
        files: What its files hold.
        places: Of each that is JSON, the keys that lead to each value in it.
        voxels: Of its raw.
    """

    store: Path
    files: dict[str, bytes]
    places: dict[str, list[Keys]]
    voxels: np.ndarray


@functools.cache
def made(labels: tuple[str, ...]) -> Made:
    """Make the store: with labels it has all that there may be, and without as little as there may be."""
    prefix = f"fuzz-metadata-{os.getpid()}-"  # atheris ends without a farewell, and somebody has to know whose it was
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logging.disable(logging.CRITICAL)
    store = folder / "a.zarr"
    (folder / "archive").mkdir()
    make_archive(folder / "archive", tiny.SHAPE)
    ds = opened(store, labels)
    with instead(ONE_LEVEL):
        ld.to_zarr(ds, store, pyramid=True, progress=False, **tiny.LAYOUT)
    for path in store.rglob("zarr.json"):  # without the blanks that make most of them
        path.write_text(json.dumps(json.loads(path.read_bytes())))
    files = {name: (store / name).read_bytes() for name in FILES}
    found = {name: list(places(json.loads(data))) for name, data in files.items() if name.endswith(".json")}
    return Made(store, files, found, StoredArray(store, "raw")[:, :, :])


def opened(store: Path, labels: tuple[str, ...]) -> xr.Dataset:
    """What the store is made of."""
    ds = ld.open_human_liver_em(store.parent / "archive", shape=tiny.SHAPE, labels=labels)
    return ds if labels else ds.drop_vars(["z", "y"])


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The keys and indexes that lead to each value in a JSON value."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield (*keys, key)
            yield from places(value[key], (*keys, key))


def at(document: Any, keys: Keys) -> Any:
    """What keys and indexes lead to."""
    return functools.reduce(lambda inside, key: inside[key], keys, document)


def change_document(document: Any, found: list[Keys], choices: Choices) -> Any:
    """Change one thing in a JSON value."""
    if not found:
        return VALUES[choices.next(len(VALUES))]
    *outer, key = found[choices.next(len(found))]
    inside = at(document, tuple(outer))
    value = VALUES[choices.next(len(VALUES))]
    match choices.next(8):
        case 0:
            del inside[key]
        case 1 if isinstance(inside, dict):
            inside[NAMES[choices.next(len(NAMES))]] = value
        case 2 if isinstance(inside, dict):
            inside[str(value)] = inside.pop(key)
        case 3:
            inside[key] = [inside[key]]
        case 4:
            inside[key] = {"name": inside[key]}
        case 5:
            inside[key] = json.loads(
                json.dumps(at(document, found[choices.next(len(found))][:-1]))
            )  # a branch elsewhere in it
        case 6 if isinstance(inside[key], int):
            inside[key] += choices.next(256) - 128
        case _:
            inside[key] = value
    return document


def change_bytes(data: bytes, choices: Choices) -> bytes:
    """Change some bytes."""
    at, count = choices.next(max(len(data), 257)), choices.next(8)
    match choices.next(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + count :]
        case 2:
            return data[:at] * (1 + choices.next(3)) + data[at:]
        case _:
            return data[:at] + choices.rest(count) + data[at + count :]


def changed_files(of: Made, choices: Choices) -> dict[str, bytes]:
    """What some files are to hold."""
    changed: dict[str, bytes] = {}
    for _ in range(1 + choices.next(4)):
        name = FILES[choices.next(len(FILES))]
        data = changed.get(name, of.files[name])
        if choices.next(4) and name.endswith(".json"):
            try:
                document = json.loads(data)
                found = list(places(document)) if name in changed else of.places[name]
                data = json.dumps(change_document(document, found, choices)).encode()
            except (ValueError, RecursionError):
                data = change_bytes(data, choices)
        else:
            data = change_bytes(data, choices)
        changed[name] = data
    return changed


def seal(store: Path, changed: dict[str, bytes], files: dict[str, bytes]) -> None:
    """Make the checksums right, as somebody would who made the store."""
    try:
        listed = json.loads(changed.get("liver_dask/inventory.json", files["liver_dask/inventory.json"]))
        for name, content in changed.items():
            node, _, file = name.rpartition("/")
            if file == "zarr.json" and node not in ("", "liver_dask") and not node.startswith("pyramid"):
                listed["metadata"][node] = json.loads(content)
            elif file in ("manifest.json", "0"):
                listed["files"][name] = inventory.checksum_of(content)
        root = json.loads(changed.get("zarr.json", files["zarr.json"]))
        listed["attributes"] = {key: value for key, value in root["attributes"].items() if key != "ome"}
        written = json.dumps(listed).encode()
        document = json.loads(changed.get("liver_dask/zarr.json", files["liver_dask/zarr.json"]))
        record = document["attributes"]
        record["inventory"] = list(inventory.checksum_of(written))
        record["checksum"] = inventory.checksum_of_record(record)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # what is no record cannot be sealed
    (store / "liver_dask" / "inventory.json").write_bytes(written)
    (store / "liver_dask" / "zarr.json").write_text(json.dumps(document))


class Spoilt(NamedTuple):
    """A store that is not as it was made.

    Attributes:
        store: Where it is.
        made: How it was made.
        changed: What its files hold that were changed.
        sealed: Whether the checksums were made right again.
    """

    store: Path
    made: Made
    changed: dict[str, bytes]
    sealed: bool


@contextmanager
def spoilt(of: Made, choices: Choices) -> Iterator[Spoilt]:
    """Change the store, and change it back."""
    store, files = of.store, of.files
    sealed = bool(choices.next(2))
    changed = changed_files(of, choices)
    try:
        for name, content in changed.items():
            (store / name).write_bytes(content)
        if sealed:
            seal(store, changed, files)
        with watched(), dask.config.set({"liver-dask.attempts": 1, "scheduler": "synchronous"}):
            yield Spoilt(store, of, changed, sealed)
    finally:
        for name in {*changed, *(SEALED if sealed else ())}:
            (store / name).write_bytes(files[name])


@contextmanager
def instead(*others: tuple[Any, str, Any]) -> Iterator[None]:
    """Let attributes of modules and classes be others; unlike `mock` it costs next to nothing."""
    known = [(of, name, getattr(of, name)) for of, name, _ in others]
    for of, name, other in others:
        setattr(of, name, other)
    try:
        yield
    finally:
        for of, name, value in known:
            setattr(of, name, value)


@contextmanager
def watched() -> Iterator[None]:
    """Requests fail at once, and must have been announced."""
    lines: list[str] = []

    def asked(_: Any, url: str, *__: Any) -> None:
        if not any(line.split(" ")[2].rstrip(",") in url for line in lines if line.startswith("Comparing with ")):
            raise AssertionError(f"{url} was asked, and nobody named it")
        raise RemoteError("nobody is there")

    def connect(*_: Any) -> None:
        raise AssertionError("a connection was made")

    with instead(
        ONE_LEVEL,
        (transport.HttpTransport, "get", asked),
        (socket.socket, "connect", connect),
        (sys.modules["liver_dask.store.verify"], "say", lambda line, shown: lines.append(line)),
        (ContextPool, "submit", submit),
        (asyncio, "run_coroutine_threadsafe", run),
        (asyncio, "to_thread", to_thread),
    ):
        yield


def submit(_: ContextPool, call: Callable[..., Any], *args: Any, **options: Any) -> "Future[Any]":
    """What a pool would do."""
    future: Future[Any] = Future()
    try:
        future.set_result(call(*args, **options))
    except Exception as error:  # whoever waits gets it
        future.set_exception(error)
    return future


def run(coroutine: Coroutine[Any, Any, Any], _: Any) -> "Future[Any]":
    """What zarr's thread would do."""
    return submit(None, loop().run_until_complete, coroutine)


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """That runs what zarr does."""
    made = asyncio.new_event_loop()
    atexit.register(made.close)
    return made


async def to_thread(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What zarr's pool would do."""
    return call(*args, **options)


def verify(store: Path, *args: Any, **options: Any) -> bool:
    """Whether it says all right."""
    report = ld.verify(store, *args, progress=False, **options)
    assert all(isinstance(problem, str) and "\n" not in problem for problem in report.problems), report.problems
    str(report)
    return report.ok


def attempt(read: Callable[..., Any], *args: Any) -> Any:
    """What comes of it, or its error, in a sentence."""
    try:
        return read(*args)
    except LiverDaskError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError("is more than a sentence") from error
        return error


def check(here: Spoilt, told: Any, box: tuple[slice, ...]) -> None:
    """See that voxels are read as they were written, or refused; and that what is told to be all right is so."""
    found = attempt(lambda: StoredArray(here.store, "raw")[box])
    if told is True and not here.sealed:
        assert isinstance(found, np.ndarray)
        for name, content in here.changed.items():
            assert is_harmless(name, here.made.files[name], content), f"{name} was changed, and nobody told"
    if isinstance(found, np.ndarray) and not here.sealed and "raw/zarr.json" not in here.changed:
        assert (found == here.made.voxels[box]).all()
        assert found.dtype == here.made.voxels.dtype


def is_harmless(name: str, was: bytes, content: bytes) -> bool:
    """Whether a file may have changed so: attributes may be added, and JSON may be written otherwise."""
    if not name.endswith("/zarr.json") or name.startswith("pyramid"):
        return content == was or name == "zarr.json" or name.startswith("pyramid")  # to which users write
    known, found = json.loads(was), json.loads(content)
    attributes, added = known.pop("attributes", {}), found.pop("attributes", {})
    kept = {key: value for key, value in added.items() if key in attributes}
    return told_by(found) == told_by(known) and kept == attributes and (added == attributes or name not in SEALED)


def told_by(node: dict[str, Any]) -> dict[str, Any]:
    """Metadata without what says nothing, and without the copies of others'."""
    return {key: value for key, value in node.items() if key != "consolidated_metadata" and value not in (None, [])}
