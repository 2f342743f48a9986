"""Complete a store whose shards are all written: manifests, tables of statistics, inventory and record.

A process that is killed in between leaves a store that is not complete; the next one does all of this again.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ..core.disk import files_in, size_of, walk
from ..core.errors import DamagedError
from ..core.geometry import DIMS
from .durable import TORN, write_json
from .inventory import FILE as INVENTORY
from .inventory import checksum_of, checksum_of_record, take_inventory
from .layout import Layout
from .record import MANIFEST, MISSING_FILES, RECORD, missing_of, shard_path
from .shards import STATISTICS
from .source_versions import SourceVersions

_TORN_OF_ZARR = re.compile(r".+\.[0-9a-f]{32}\.partial")
"""Temporary name of a file that zarr writes."""


def write_all_but_shards(
    store: Path, finished: Path, layout: Layout, names: Sequence[str], files: SourceVersions
) -> None:
    """Write what an unfinished store lacks once all its shards are written, and record that it is complete.

    Args:
        store: Folder of the unfinished store.
        finished: Folder with the checksums and the statistics of the shards of each variable.
        layout: The grids of the store.
        names: Names of the variables.
        files: The files that the store was made from.

    Raises:
        DamagedError: A shard does not have the size that it was written with. (RuntimeError)
    """
    _remove_torn(store, names)
    _list_missing(store, missing_of(files.all()))
    for name in names:
        shards: dict[str, Any] = {}
        for path in files_in(finished / name, ".json"):
            shards |= json.loads(path.read_bytes())
        sources = [{key: file[key] for key in ("url", "size", "tag")} for file in files.of(name)]
        _check_shards(store, layout, name, shards)
        write_json(
            store / name / MANIFEST,
            {"shards": dict(sorted(shards.items())), "sources": sorted(sources, key=lambda source: source["url"])},
        )
        _write_statistics(store, layout, name, finished / name)
    inventory = store / RECORD / INVENTORY
    write_json(inventory, take_inventory(store, names)._asdict())
    metadata = store / RECORD / "zarr.json"
    document = json.loads(metadata.read_bytes())
    record = document["attributes"]
    record |= {"complete": True, "inventory": checksum_of(inventory.read_bytes())}
    record["checksum"] = checksum_of_record(record)
    write_json(metadata, document)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # not in the Zarr specification yet ...
        zarr.consolidate_metadata(store)  # ... but xarray warns about stores without it


def _remove_torn(store: Path, names: Sequence[str]) -> None:
    """Remove temporary files of a process that was killed while it completed the store."""
    folders = [store, *(store / name for name in names)]
    files = [path for folder in folders for path in files_in(folder)]
    files += [Path(folder, name) for folder, _, inside in walk(store / RECORD) for name in inside]
    for path in files:
        if TORN.fullmatch(path.name) or _TORN_OF_ZARR.fullmatch(path.name):
            path.unlink()


def _list_missing(store: Path, missing: Sequence[str]) -> None:
    """List the files that do not exist, whose voxels are zeros, in the store's attributes."""
    if missing:
        metadata = store / "zarr.json"
        document = json.loads(metadata.read_bytes())
        document["attributes"][MISSING_FILES] = missing
        write_json(metadata, document)


def _check_shards(store: Path, layout: Layout, name: str, shards: Mapping[str, Sequence[int]]) -> None:
    """Raise DamagedError if a shard does not have its recorded size.

    Only the export's own processes should write shards. They are checked nevertheless, because a store is written once
    and kept.
    """
    for row in layout.shard_rows([name]):
        for shard in layout.shards_of(row):
            path = shard_path(store, name, shard)
            if size_of(path) != shards.get("/".join(map(str, shard)), [-1])[0]:
                raise DamagedError(
                    f"{path} is not as it was written; remove {store.parent} and begin anew, on another disk."
                )


def _write_statistics(store: Path, layout: Layout, name: str, finished: Path) -> None:
    """Combine the statistics of all chunks of a variable, and write them as arrays."""
    grid = layout.chunks_per_shard
    chunks = tuple(-(-length // chunk) for length, chunk in zip(layout.shape, layout.chunks, strict=True))
    known = np.zeros(chunks, STATISTICS)
    for path in files_in(finished, ".npy"):
        place = zip(map(int, path.stem.split("-")), grid, strict=True)
        here = known[tuple(slice(number * count, (number + 1) * count) for number, count in place)]
        here[:] = np.load(path)[tuple(map(slice, here.shape))]
    group = zarr.open_group(store / RECORD, mode="r+").require_group(name)
    dims = [f"{dim}_chunk" for dim in DIMS]
    for statistic in STATISTICS.names or ():
        array = np.ascontiguousarray(known[statistic])
        group.create_array(
            statistic, data=array, chunks=chunks, compressors=[Crc32cCodec()], dimension_names=dims, overwrite=True
        )
