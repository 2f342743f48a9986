"""Texts that the commands print: what an export would do, and sizes on disk."""

from rich.filesize import decimal

from .archive.doctor.report import ranges_text
from .core.places import ObjectPath, Place
from .store.estimate import PROCESS_BYTES
from .store.plan import Export
from .store.preflight import WORTH_TELLING
from .store.sample import Sample

GUESSED = "Sizes of masks, and of what is stored, are guesses from other EM; nothing was asked of the source."
OTHERS_GUESSED = "others are guesses; nothing was asked of the source."
ASKED = "Sizes follow from a look at three slices; others may differ."


def plan_text(export: Export, pyramid: bool = False, known: Sample | None = None) -> str:
    """Describe what an export would do: regions, requests, bytes, disk, memory and time.

    Args:
        export: The export.
        pyramid: Whether the levels of a pyramid will be added.
        known: What some slices have shown; None if nothing was asked.
    """
    layout, cost = export.store.layout, export.estimate(known or Sample())
    voxels = " x ".join(map(str, layout.shape))
    one = f"{layout.chunks[0]} slices x {layout.row_block} rows"
    lines = [
        f"{export.store.target}: {', '.join(export.store.names)} of {voxels} voxels (z, y, x),",
        f"chunks of {layout.chunks} in shards of {layout.shards}.",
        f"  to write    {cost.regions} regions of {one}, in {cost.tasks} tasks",
        f"  to fetch    {decimal(cost.fetched)} in {cost.requests} requests, at most {export.connections} at once",
        f"  on disk     {decimal(cost.stored)}, and up to {decimal(cost.disk - cost.stored)} more on the way",
        f"  in memory   {decimal(PROCESS_BYTES)} a worker, and {decimal(cost.memory)} for each of its threads",
    ]
    if not known and cost.fetched_one_range > WORTH_TELLING * cost.fetched:
        one_range = f"{decimal(cost.fetched_one_range)} in {cost.requests_one_range} requests"
        lines.insert(4, f"              {one_range}, if the source answers one range at a time")
    if pyramid:
        lines.append(f"  pyramid     {decimal(export.pyramid_bytes(known or Sample()))} more on disk")
    lines += [
        f"  {variable:11} is fetched about {times:.1f} times over, for what is computed of it"
        for variable, times in cost.times.items()
        if times > WORTH_TELLING
    ]
    for rate, hours in cost.hours.items():
        time_taken = f"{hours:9.1f} hours" if hours >= 1 else f"{60 * hours:9.1f} minutes"
        lines.append(f"  {time_taken} of fetching at {decimal(int(rate))}/s")
    examined = export.known_files
    for name, used in examined.items():
        if used.missing:
            zeros = "" if used.reader.missing == "zeros" else "; they are an error without --missing zeros"
            lines.append(f"  missing     {len(used.missing)} slices of {name} ({ranges_text(used.missing)}){zeros}")
    if examined and not known:
        date = min(used.reader.known.date for used in examined.values())
        lines.append(f"Sizes of {', '.join(examined)}, and what is missing, are as of {date}; {OTHERS_GUESSED}")
    else:
        lines.append(ASKED if known else GUESSED)
    return "\n".join(lines)


def size_of(store: Place) -> str:
    """Return the size of a store on disk. A file with several hard links counts once."""
    if isinstance(store, ObjectPath):
        return decimal(sum(info["size"] or 0 for info in store.call("find", store.key, detail=True).values()))
    files = [path.stat() for path in store.rglob("*") if path.is_file()]
    return decimal(sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values()))
