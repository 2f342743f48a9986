"""Inventory of everything in a complete store except its shards, for comparison by `verify`.

The inventory is recorded when a store is completed. `liver_dask/inventory.json` contains the attributes of the root,
the metadata of all arrays and groups, and size and CRC-32C of all other files (coordinates, tables, the arrays'
manifests). The store's record contains size and CRC-32C of that file, and a CRC-32C of itself. Metadata are compared
by meaning: to add attributes or arrays, or to consolidate again, changes nothing that was recorded.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import zarr

from ..core.disk import files_below
from ..core.documents import (
    array_problems,
    as_object,
    changing_attributes,
    is_same,
    read_document,
    reason_of,
    sharding_problems,
    short,
)
from ..core.errors import DamagedError
from ..core.geometry import DIMS
from ..core.places import Place, path_below
from .layout import Layout
from .shards import STATISTICS
from .zarr_store import zarr_store

FILE = "inventory.json"
METADATA = "zarr.json"
RECORD = "liver_dask"
VOXEL_SIZE = ("voxel_size_nm", "voxel_size_source")
"""Attributes of a store that say how large its voxels are."""

GROUP: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}


class Inventory(NamedTuple):
    """The recorded inventory of a store.

    Attributes:
        attributes: Attributes of the root.
        metadata: The `zarr.json` of each array and group below the root, except the record's, by path.
        files: Size and CRC-32C of each other file that is not a shard, by path.
    """

    attributes: Mapping[str, Any]
    metadata: Mapping[str, Any]
    files: Mapping[str, Any]


def take_inventory(store: Place, names: Collection[str]) -> Inventory:
    """Take the inventory of a store to which only this package has written.

    Args:
        store: The store.
        names: Its variables.
    """
    metadata, files = {}, {}
    for path in small_files(store, names):
        where = path_below(path, store)
        if path.name != METADATA:
            files[where] = checksum_of(path.read_bytes())
        elif where not in (METADATA, f"{RECORD}/{METADATA}"):
            metadata[path_below(path.parent, store)] = json.loads(path.read_bytes())
    attributes = json.loads((store / METADATA).read_bytes())["attributes"]
    return Inventory(attributes, dict(sorted(metadata.items())), dict(sorted(files.items())))


def small_files(store: Place, names: Collection[str]) -> Iterator[Place]:
    """Yield all files of a store except the shards of its variables, the inventory, and files still being written.

    Args:
        store: The store.
        names: Its variables.
    """
    for path in files_below(store, {store / name / "c" for name in names}):
        if not path.name.startswith(".") and not path.name.endswith(".partial") and path.name != FILE:
            yield path


def checksum_of(data: bytes) -> tuple[int, int]:
    """Return size in bytes and CRC-32C of some data."""
    return len(data), google_crc32c.value(data)


def checksum_of_record(record: Mapping[str, Any]) -> int:
    """Return the CRC-32C of a record without its key `checksum`."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    return int(google_crc32c.value(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()))


def read_inventory(store: Place, record: Mapping[str, Any]) -> tuple[Inventory | None, list[str]]:
    """Read the inventory of a store.

    Args:
        store: The store.
        record: Its record.

    Returns:
        The inventory, or None if it cannot be read, and its problems. (None, []) if a version wrote the store that did
        not record an inventory.
    """
    path = store / RECORD / FILE
    if not path.exists() and not record.keys() & {"inventory", "checksum"}:
        return None, []
    problems = []
    if record.get("checksum") != checksum_of_record(record):
        problems.append(f"{RECORD}/{METADATA}, which says what the store is, is not what was written")
    try:
        if not is_same(list(checksum_of(path.read_bytes())), record.get("inventory")):
            raise DamagedError("it is not what was written")
        found = as_object(read_document(path, "lists the metadata"))
        parts = [as_object(found.get(key)) for key in Inventory._fields]
        if not all(map(_stays_inside, (path for part in parts[1:] for path in part))):
            raise DamagedError("it lists files outside of the store")
    except OSError as error:
        return None, [*problems, f"{RECORD}/{FILE}, which lists the metadata, cannot be relied on ({error})"]
    return Inventory(*parts), problems


def _stays_inside(path: str) -> bool:
    return ".." not in PurePosixPath(path).parts and not path.startswith("/") and "\0" not in path


class Metadata:
    """Comparison of a store's metadata with its record and its inventory.

    Args:
        store: The store.
        record: Its record.
        layout: Its shape, chunks and shards.
        but: Attributes of the store that are not compared.

    Attributes:
        problems: The problems found, one sentence each.
        notes: Further remarks that are not problems.
    """

    def __init__(self, store: Place, record: Mapping[str, Any], layout: Layout, but: Collection[str] = ()) -> None:
        self._store, self._record, self._layout, self._but = store, record, layout, but
        self._inventory, self.problems = read_inventory(store, record)
        self.notes: list[str] = []
        if not self._inventory and not self.problems:
            self.notes.append(
                f"{store} is of a version that did not record its coordinates, attributes and tables: whether they are "
                "what was written cannot be determined"
            )
        self._documents: dict[str, Any] = {}
        self._bad: set[str] = set()
        for node, problem in self._structure_problems():
            self._report(node, f"the metadata of {node}: its {problem}")
        self._expected = dict(self._inventory.metadata) if self._inventory else self._documents
        if self._inventory:
            self._compare(self._inventory)
        self._compare_consolidated("", store)
        self._open_all()

    def is_sound(self, node: str) -> bool:
        """Return whether an array matches the record and can therefore be read."""
        return node not in self._bad

    def compare_consolidated_in(self, group: Place) -> None:
        """Compare the consolidated metadata of a group that contains the store."""
        self._compare_consolidated(f"{path_below(self._store, group)}/", group)

    def _report(self, node: str, problem: str) -> None:
        self._bad.add(node)
        if problem not in self.problems:
            self.problems.append(problem)

    def _structure_problems(self) -> Iterator[tuple[str, str]]:
        """Yield the node and the problem of each array or group of this package that does not match the record.

        All metadata that can be read are stored in `_documents`.
        """
        for node, (shape, chunks, dtype, dims) in arrays_of(self._store, self._record, self._layout).items():
            document = self._read(node)
            if document is None:
                continue
            yield from ((node, problem) for problem in array_problems(document, shape, chunks, dtype, dims))
            if node in self._record["variables"]:
                yield from ((node, problem) for problem in sharding_problems(document, self._layout.chunks))
        for node in (RECORD, *(f"{RECORD}/{name}" for name in self._record["variables"])):
            document = self._read(node)
            if document is not None:
                expected = GROUP | {"attributes": self._record if node == RECORD else {}}
                yield from ((node, problem) for problem in document_problems(document, expected, is_array=False))
        self._documents.pop(RECORD, None)  # its consolidated copy is compared with the record itself

    def _read(self, node: str) -> Any:
        try:
            document = read_document(self._store / node / METADATA, "says what an array or group is")
        except DamagedError as error:
            self._report(node, f"the metadata of {node} are damaged: {error}")
            return None
        self._documents[node] = document
        return document

    def _compare(self, inventory: Inventory) -> None:
        for node, expected in inventory.metadata.items():
            found = self._documents.get(node)
            if found is None and node not in self._bad:
                found = self._read(node)
            if found is not None:
                for problem in document_problems(found, expected):
                    self._report(node, f"the metadata of {node}: its {problem}")
        for where, checksum in inventory.files.items():
            damage = _file_problem(self._store / where, checksum)
            if damage:
                self._report(where, f"{where} {damage}")

    def _compare_consolidated(self, prefix: str, group: Place) -> None:
        """Compare the consolidated metadata, from which xarray opens the store.

        Args:
            prefix: Path of the store in the group, with a trailing slash; empty for the store itself.
            group: Folder of the group that has the consolidated metadata.
        """
        where = f"{'../' * len(PurePosixPath(prefix).parts)}{METADATA}"
        try:
            root = as_object(read_document(group / METADATA, "says what the store is"))
        except DamagedError as error:
            self.problems.append(str(error))
            return
        if not prefix:
            self.problems += [f"{where}: its {problem}" for problem in self._root_problems(root)]
        consolidated = root.get("consolidated_metadata")
        if consolidated is None:
            return  # readers use the metadata of the arrays
        copies = as_object(as_object(consolidated).get("metadata"))
        for node, expected in (self._expected | {RECORD: GROUP | {"attributes": self._record}}).items():
            copy = copies.get(prefix + node)
            problem = "is missing" if copy is None else "; its ".join(document_problems(copy, expected))
            if problem:
                self._report(node, f"the copy of the metadata of {prefix}{node} in {where}: {problem}")

    def _root_problems(self, root: Mapping[str, Any]) -> Iterator[str]:
        attributes = dict(self._inventory.attributes) if self._inventory else {}
        others = attributes.keys() - VOXEL_SIZE  # which `annotate` writes anew
        if others and not others & as_object(root.get("attributes")).keys():
            self.notes.append(f"the attributes of {self._store} were replaced, as xarray does that writes into a store")
            attributes = {}
        attributes = {key: value for key, value in attributes.items() if key not in self._but}
        return document_problems(root, GROUP | {"attributes": attributes}, is_array=False)

    def _open_all(self) -> None:
        """Open the store and its arrays with zarr, to report all remaining problems that zarr finds."""
        try:
            zarr.open_group(zarr_store(self._store), mode="r")
        except Exception as error:  # damaged metadata may make zarr raise any exception
            self.problems.append(f"{METADATA} cannot be opened ({reason_of(error)})")
        for node in arrays_of(self._store, self._record, self._layout):
            if node in self._bad:
                continue
            try:
                zarr.open_array(zarr_store(self._store / node), mode="r")
            except Exception as error:  # damaged metadata may make zarr raise any exception
                self._report(node, f"{node} cannot be opened ({reason_of(error)})")


Structure = tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any], tuple[str, ...]]


def arrays_of(store: Place, record: Mapping[str, Any], layout: Layout) -> dict[str, Structure]:
    """Return shape, chunks (shards of variables), dtype and dims of each array that a store has by its record."""
    found = _arrays_of_variables(record, layout)
    for dim, length in zip(DIMS, layout.shape, strict=True):
        if (store / dim / METADATA).exists():  # a Dataset need not have coordinates
            document = _coordinate(store / dim)
            found[dim] = (length,), _chunks_of_coordinate(document, length), _dtype_of(document), (dim,)
    return found


def _arrays_of_variables(record: Mapping[str, Any], layout: Layout) -> dict[str, Structure]:
    grid, dims = chunk_grid(layout), tuple(f"{dim}_chunk" for dim in DIMS)
    found: dict[str, Structure] = {}
    for name, variable in record["variables"].items():
        found[name] = layout.shape, layout.shards, np.dtype(variable["dtype"]), DIMS
        for statistic in STATISTICS.names or ():
            found[f"{RECORD}/{name}/{statistic}"] = grid, grid, STATISTICS[statistic], dims
    return found


def chunk_grid(layout: Layout) -> tuple[int, ...]:
    """Return the number of chunks along each axis."""
    return tuple(-(-length // chunk) for length, chunk in zip(layout.shape, layout.chunks, strict=True))


def check_structure(store: Place, record: Mapping[str, Any], layout: Layout, node: str = "") -> None:
    """Check that arrays match the record, before memory is allocated for them.

    Args:
        store: The store.
        record: Its record.
        layout: Its shape, chunks and shards.
        node: Path of a variable or of one of its tables; all arrays if empty.

    Raises:
        DamagedError: The metadata of an array do not match the record or cannot be read.
    """
    arrays = arrays_of(store, record, layout) if not node else {node: _arrays_of_variables(record, layout)[node]}
    for node, (shape, chunks, dtype, dims) in arrays.items():
        path = store / node / METADATA
        document = read_document(path, f"says what {node} is")
        problems = [*array_problems(document, shape, chunks, dtype, dims)]
        if node in record["variables"]:
            problems += sharding_problems(document, layout.chunks)
        if problems:
            raise DamagedError(f"{path} is damaged: its {problems[0]}; `liver-dask verify {store}` says what else is.")


def document_problems(found: Any, expected: Mapping[str, Any], *, is_array: bool = True) -> Iterator[str]:
    """Yield the differences between found and recorded metadata.

    Added attributes are not a difference, unless they belong to an array and make readers change its values.

    Args:
        found: The metadata of an array or group.
        expected: The recorded metadata.
        is_array: Whether to report added attributes that change values.
    """
    one, other = _without_copies(found), _without_copies(expected)
    for key in sorted(one.keys() | other.keys()):
        if not is_same(one.get(key), other.get(key)):
            yield f"{key} is {short(one.get(key))}, and was written as {short(other.get(key))}"
    attributes, recorded = as_object(found).get("attributes", {}), as_object(as_object(expected).get("attributes"))
    if not isinstance(attributes, dict):
        yield f"attributes are {short(attributes)}"
        return
    for key, value in recorded.items():
        if key not in attributes or not is_same(attributes[key], value):
            yield f"attribute {short(key)} is {short(attributes.get(key))}, and was written as {short(value)}"
    added = {key: value for key, value in attributes.items() if key not in recorded}
    for key in sorted(changing_attributes(added)) if is_array else ():
        yield f"attribute {short(key)} was added, by which readers change the values"


def _without_copies(document: Any) -> dict[str, Any]:
    """Return metadata without attributes, consolidated metadata, and keys that zarr may omit."""
    left_out = {"attributes", "consolidated_metadata"}
    found = {key: value for key, value in as_object(document).items() if key not in left_out}
    if found.get("storage_transformers") == []:
        del found["storage_transformers"]
    return found


def _file_problem(path: Place, expected: Any) -> str | None:
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if not isinstance(expected, list) or not is_same(size, expected[:1] and expected[0]):
            return f"is not what was written: it has {size} bytes"
        if not is_same(list(checksum_of(path.read_bytes())), expected):
            return "is not what was written"
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def _coordinate(folder: Place) -> Mapping[str, Any]:
    try:
        return as_object(read_document(folder / METADATA, "says what a coordinate is"))
    except DamagedError:
        return {}


def _chunks_of_coordinate(document: Mapping[str, Any], length: int) -> tuple[int, ...]:
    """Return the chunks of a coordinate, which xarray chose; the whole length if the metadata are not valid."""
    shape = as_object(as_object(document.get("chunk_grid")).get("configuration")).get("chunk_shape")
    if isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and 0 < shape[0] <= length:
        return (shape[0],)
    return (length,)


def _dtype_of(document: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the dtype of a coordinate; int64 if it is not a number of at most 8 bytes.

    Any number is accepted here, because the inventory determines the recorded dtype.
    """
    try:
        dtype = np.dtype(str(document.get("data_type")))
    except (TypeError, ValueError, SyntaxError):
        return np.dtype(np.int64)
    return dtype if dtype.kind in "biuf" and dtype.itemsize <= 8 else np.dtype(np.int64)
