"""What a store says of itself: whatever its small files hold, it is told in one sentence, or it is harmless.

An input says, byte by byte: what reads the store; whether the checksums are made right again, as somebody would who
made the store; and some changes: of which file, where in it, and what. The store is some kilobytes in a folder in
memory, with one level of a pyramid. Nothing may be asked of a host that nobody named, nor of one that was not told.
"""

import atexit
import functools
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import numpy as np
import xarray as xr
from click.testing import CliRunner

import liver_dask as ld
from liver_dask import cli, inventory, pyramid, transport
from liver_dask.errors import LiverDaskError, RemoteError
from liver_dask.export import Export
from liver_dask.record import read_checksums, read_statistics
from liver_dask.stored import StoredArray

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

IN_MEMORY = Path("/dev/shm")
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
    ["z", "y", "x"], {"attributes": {}},
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


@functools.cache
def made() -> tuple[Path, dict[str, bytes], np.ndarray]:
    """The store, what its files held at first, and its voxels."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-metadata-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pyramid.SMALL_ENOUGH = 30
    logging.disable(logging.CRITICAL)
    store = tiny.make_tiny_store(folder)
    ld.add_pyramid(store, progress=False)
    return store, {name: (store / name).read_bytes() for name in FILES}, StoredArray(store, "raw")[:, :, :]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All keys and indexes in a JSON value, with what they are in."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def change_document(document: Any, choices: Choices) -> Any:
    """Change one thing in a JSON value."""
    found = list(places(document))
    if not found:
        return VALUES[choices.next(len(VALUES))]
    inside, key = found[choices.next(len(found))]
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
            inside[key] = json.loads(json.dumps(found[choices.next(len(found))][0]))  # a branch elsewhere in it
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


def changed_files(files: dict[str, bytes], choices: Choices) -> dict[str, bytes]:
    """What some files are to hold."""
    changed: dict[str, bytes] = {}
    for _ in range(1 + choices.next(4)):
        name = FILES[choices.next(len(FILES))]
        data = changed.get(name, files[name])
        if choices.next(4) and name.endswith(".json"):
            try:
                data = json.dumps(change_document(json.loads(data), choices)).encode()
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


@contextmanager
def watched() -> Iterator[list[str]]:
    """Requests fail at once, and must have been announced; the lines that were printed."""
    lines: list[str] = []

    def asked(_: Any, url: str, *__: Any) -> None:
        if not any(line.split(" ")[2].rstrip(",") in url for line in lines if line.startswith("Comparing with ")):
            raise AssertionError(f"{url} was asked, and nobody named it")
        raise RemoteError("nobody is there")

    with (
        mock.patch.object(transport.HttpTransport, "get", asked),
        mock.patch("liver_dask.verify.say", lambda line, shown: lines.append(line)),
        mock.patch("socket.socket.connect", side_effect=AssertionError("a connection was made")),
    ):
        yield lines


def verify(store: Path, *args: Any, **options: Any) -> bool:
    """Whether it says all right."""
    report = ld.verify(store, *args, progress=False, **options)
    assert all(isinstance(problem, str) and "\n" not in problem for problem in report.problems), report.problems
    str(report)
    return report.ok


def info(store: Path) -> None:
    """As somebody asks for it in a shell."""
    told = CliRunner().invoke(cli.main, ["info", str(store)])
    if told.exception and not isinstance(told.exception, SystemExit):
        raise told.exception
    assert "Traceback" not in told.output


def is_written(store: Path) -> None:
    """As a call asks that would write it."""
    ds = ld.open_human_liver_em(store.parent / "archive", shape=tiny.SHAPE, labels=["er"])
    Export.plan(ds, store, **tiny.LAYOUT).store.is_written()


def read_tables(store: Path) -> None:
    """As training does."""
    for statistic in ("nonzero", "mean", "std"):
        assert read_statistics(store, "raw", statistic).shape == (2, 3, 4)


def read_levels(store: Path) -> None:
    """As whoever looks from afar."""
    for level in pyramid.levels_of(store)[1:]:
        StoredArray(level.path, "raw")[0:1, 0:2, 0:2]
        read_checksums(level.path, "raw")


def read_voxels(store: Path) -> np.ndarray:
    """As training does."""
    return StoredArray(store, "raw")[0 : tiny.SHAPE[0], 0 : tiny.SHAPE[1], 0 : tiny.SHAPE[2]]


def one_input(data: bytes) -> None:
    """Change a store, read it, and change it back."""
    store, files, voxels = made()
    choices = Choices(data)
    what, sealed = choices.next(64), bool(choices.next(2))
    changed = changed_files(files, choices)
    archive = store.parent / "archive"
    readers: list[Callable[[], Any]] = [
        lambda: verify(store, full=True),
        lambda: verify(store, source=archive),
        *[lambda: verify(store, xr.Dataset())] * 4,
        lambda: info(store),
        lambda: is_written(store),
        *[lambda: read_tables(store)] * 2,
        *[lambda: read_levels(store)] * 4,
    ]
    try:
        for name, content in changed.items():
            (store / name).write_bytes(content)
        if sealed:
            seal(store, changed, files)
        with watched(), dask.config.set({"liver-dask.attempts": 1}):
            told = attempt(readers[what]) if what < len(readers) else None
            found = attempt(lambda: read_voxels(store))
        if told is True and not sealed:
            assert isinstance(found, np.ndarray)
        if isinstance(found, np.ndarray) and not sealed and "raw/zarr.json" not in changed:
            assert (found == voxels).all()
            assert found.dtype == voxels.dtype
    finally:
        for name in {*changed, "liver_dask/zarr.json", "liver_dask/inventory.json"}:
            (store / name).write_bytes(files[name])


def attempt(read: Callable[[], Any]) -> Any:
    """What comes of it, or its error, in a sentence."""
    try:
        return read()
    except LiverDaskError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError("is more than a sentence") from error
        return error
