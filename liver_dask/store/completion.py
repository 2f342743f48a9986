"""Complete a store whose shards are all written: manifests, tables of statistics, inventory and record.

A process that is killed in between leaves a store that is not complete; the next one does all of this again.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ..core.disk import files_below, files_in, sizes_of
from ..core.errors import DamagedError
from ..core.geometry import DIMS
from ..core.places import Place, contents_of
from .durable import TORN
from .inventory import FILE as INVENTORY
from .inventory import checksum_of, checksum_of_record, take_inventory
from .layout import Layout
from .record import MANIFEST, MISSING_FILES, RECORD, missing_of
from .shards import STATISTICS
from .source_versions import SourceVersions
from .storage.access import storage_of, write_json
from .zarr_group import group_document

_TORN_OF_ZARR = re.compile(r".+\.[0-9a-f]{32}\.partial")
"""Temporary name of a file that zarr writes. Earlier versions left such files."""


def write_all_but_shards(
    store: Place, written: Place, finished: Place, layout: Layout, names: Sequence[str], files: SourceVersions
) -> None:
    """Write what an unfinished store lacks once all its shards are written, and record that it is complete.

    Args:
        store: Folder of the unfinished store.
        written: Folder of the store that its shards are in.
        finished: Folder with the checksums and the statistics of the shards of each variable.
        layout: The grids of the store.
        names: Names of the variables.
        files: The files that the store was made from.

    Raises:
        DamagedError: A shard does not have the size that it was written with. (RuntimeError)
    """
    _remove_torn(store, names)
    known = files.all()
    _list_missing(store, missing_of(known))
    for name in names:
        shards: dict[str, Any] = {}
        for content in contents_of(files_in(finished / name, ".json")):
            shards |= json.loads(content)
        sources = [{key: file[key] for key in ("url", "size", "tag")} for file in files.of(name, known)]
        _check_shards(store, written, layout, name, shards)
        manifest = {"shards": dict(sorted(shards.items())), "sources": sorted(sources, key=lambda file: file["url"])}
        write_json(store / name / MANIFEST, manifest)
        _write_statistics(store, layout, name, finished / name)
    inventory = store / RECORD / INVENTORY
    write_json(inventory, take_inventory(store, names)._asdict())
    metadata = store / RECORD / "zarr.json"
    document = json.loads(metadata.read_bytes())
    record = document["attributes"]
    record |= {"complete": True, "inventory": checksum_of(inventory.read_bytes())}
    record["checksum"] = checksum_of_record(record)
    write_json(metadata, document)
    attributes = json.loads((store / "zarr.json").read_bytes())["attributes"]
    # consolidated metadata are not in the Zarr specification yet, but xarray warns about stores without them
    storage_of(store).write(store / "zarr.json", [group_document(store, attributes, consolidate=True)])


def _remove_torn(store: Place, names: Collection[str]) -> None:
    """Remove temporary files of a process that was killed while it completed the store."""
    for path in files_below(store, {store / name / "c" for name in names}):
        if TORN.fullmatch(path.name) or _TORN_OF_ZARR.fullmatch(path.name):
            storage_of(store).remove(path)


def _list_missing(store: Place, missing: Sequence[str]) -> None:
    """List the files that do not exist, whose voxels are zeros, in the store's attributes."""
    if missing:
        document = json.loads((store / "zarr.json").read_bytes())
        document["attributes"][MISSING_FILES] = missing
        write_json(store / "zarr.json", document)


def _check_shards(store: Place, written: Place, layout: Layout, name: str, shards: Mapping[str, Sequence[int]]) -> None:
    """Raise DamagedError if a shard does not have its recorded size.

    Only the export's own processes should write shards. They are checked nevertheless, because a store is written once
    and kept.
    """
    places = ["/".join(map(str, shard)) for row in layout.shard_rows([name]) for shard in layout.shards_of(row)]
    for place, size in zip(places, sizes_of(written / name / "c", places), strict=True):
        if size != shards.get(place, [-1])[0]:
            raise DamagedError(
                f"{written / name / 'c' / place} is not as it was written; remove {store.parent} and begin anew, on "
                "another disk."
            )


def _write_statistics(store: Place, layout: Layout, name: str, finished: Place) -> None:
    """Combine the statistics of all chunks of a variable, and write them as arrays."""
    grid = layout.chunks_per_shard
    chunks = tuple(-(-length // chunk) for length, chunk in zip(layout.shape, layout.chunks, strict=True))
    known = np.zeros(chunks, STATISTICS)
    paths = files_in(finished, ".npy")
    for path, content in zip(paths, contents_of(paths), strict=True):
        place = zip(map(int, path.stem.split("-")), grid, strict=True)
        here = known[tuple(slice(number * count, (number + 1) * count) for number, count in place)]
        here[:] = np.load(BytesIO(content))[tuple(map(slice, here.shape))]
    written: dict[str, Any] = {}
    group = zarr.open_group(zarr.storage.MemoryStore(written), mode="w")
    dims = [f"{dim}_chunk" for dim in DIMS]
    for statistic in STATISTICS.names or ():
        array = np.ascontiguousarray(known[statistic])
        group.create_array(statistic, data=array, chunks=chunks, compressors=[Crc32cCodec()], dimension_names=dims)
    folder = store / RECORD / name
    storage_of(store).make_folders(sorted({(folder / path).parent for path in written}))
    for where, buffer in written.items():
        storage_of(store).write(folder / where, [buffer.to_bytes()])
