"""Few bytes and no hangs, in figures: `python network.py ARCHIVE [--skip-torch-em]`, of tests/helpers/build_archive.py.

Eight slices (hard links stand in for those that ARCHIVE lacks). Each row is a process of its own; where it is a whole
download, its imports are in its time. Both sides, this package and torch_em's own loader, are in one run:

- a box of 2048 x 2048 x 8 voxels, four variables, at 1.5 MB/s a connection, and on loopback without limits;
- the same as the archive is from far away, with and without requests that are silent for two minutes;
- a look at 512 x 512 voxels of four variables, cold and warm, and an overview of one slice.

What has a rate comes from tests/helpers/hostile.py in a process of its own, not from nginx: its `limit_rate` lets the
first 1.5 MB of every request pass at full speed (measured: 590 MB/s over one connection in requests of 1 MB). What has
none comes from nginx. Bytes are those of bodies, and next to them is the least that decodes to the voxels.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import tifffile
from full_volume import SLICES, WIDTH, link_slices

from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import serve

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.hostile import EBI, EBI_WITHOUT_STALLS, Profile, hostile
from helpers.measured import OURS, TORCH_EM, measured
from helpers.nginx import Nginx, Sent
from helpers.waiting import free_port

SHAPE = (SLICES, WIDTH, WIDTH)
BOX = (2219, 4267, 1493, 3541, 0, SLICES)
X_MAX, Y_MIN, Y_MAX = 4267, 1493, 3541
SLOW = Profile(rate=1.5e6)
SEEDS = (0, 1, 2)
SAMPLE = 16
"""Every so many strips are looked at for the least that is needed."""

INDEX_BYTES = 160_000
"""A slice's strip index: 20000 offsets and counts of 4 bytes."""

PLACES = {"in the box": (2500, 2219), "middle": (9744, 9744), "right edge": (9744, 18300)}
"""First row and column of the windows that are looked at."""

WINDOW = """
import json, sys, time
import liver_dask as ld
def look():
    began = time.monotonic()
    if not kept:
        kept.append(ld.open_human_liver_em({url!r}, shape={shape}, cache_dir={cache!r}, cache_raw_gb={gigabytes}))
    ds, = kept
    ds.isel(z=2, y=slice({y}, {y} + 512), x=slice({x}, {x} + 512)).compute()
    return round(time.monotonic() - began, 3)
kept = []
print(json.dumps([look(), look()]))
"""

OVERVIEW = """
import liver_dask as ld
ld.open_human_liver_em({url!r}, shape={shape}).raw[2, ::40, ::40].compute()
"""


def strip_prefixes(path: Path) -> float:
    """The least bytes of the box's strips in one slice that decode up to its last column."""
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        offsets, counts = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
        needed = 0
        for row in range(Y_MIN, Y_MAX, SAMPLE):
            file.seek(offsets[row])
            needed += shortest_prefix(file.read(counts[row]), 2 * X_MAX)
    return needed * SAMPLE


def shortest_prefix(strip: bytes, count: int) -> int:
    """The least bytes of an LZW strip that decode to `count` bytes."""
    low, high = 16, len(strip)
    while low < high:
        middle = (low + high) // 2
        if len(imagecodecs.lzw_decode(strip[:middle], out=count)) < count:
            low = middle + 1
        else:
            high = middle
    return low


def mask_prefix(path: Path) -> int:
    """The least bytes of a PNG, to within 64, that inflate to the box's last row."""
    data = path.read_bytes()
    inflate = zlib.decompressobj()
    there, wanted = 0, Y_MAX * (WIDTH + 1)  # a byte before each row says how it is filtered
    at = 8
    while True:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        for piece in range(at + 8, at + 8 + length, 64) if kind == b"IDAT" else ():
            there += len(inflate.decompress(data[piece : min(piece + 64, at + 8 + length)]))
            if there >= wanted:
                return piece + 64
        at += 12 + length


def least_bytes(archive: Path) -> dict[str, float]:
    """What the box needs at least, in MB."""
    files = {
        name: [archive / EMPIAR_13356.path(name, z) for z in range(SLICES)] for name in ("raw", *EMPIAR_13356.labels)
    }
    raw = sum(strip_prefixes(path) for path in files["raw"])
    masks = sum(mask_prefix(path) for label in EMPIAR_13356.labels for path in files[label])
    parts = {"strips": raw, "masks": masks, "indexes": INDEX_BYTES * SLICES}
    return {name: round(count / 1e6, 2) for name, count in (parts | {"all": sum(parts.values())}).items()}


def serve_slowly(archive: Path, profile: Profile, seed: int, pipe: Any) -> None:
    """Serve until the pipe says that it is over, and tell it what was sent."""
    handler = hostile(profile, seed)
    with serve(archive, handler) as server:
        pipe.send(server.url)
        while pipe.recv():
            faults = sum(1 for kind in handler.drawn if kind)
            pipe.send((Sent(len(server.requests), handler.bytes_out), faults, handler.most_connections))
            server.requests.clear()
            handler.drawn.clear()
            handler.bytes_out = 0


class Slow:
    """The archive as a profile says, from a process of its own."""

    def __init__(self, archive: Path, profile: Profile, seed: int = 0) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve_slowly, args=(archive, profile, seed, theirs), daemon=True)
        self._process.start()
        self.url: str = self._pipe.recv()
        self.told: dict[str, int] = {}

    def sent(self) -> Sent:
        """All since the last call."""
        self._pipe.send(True)
        sent, faults, connections = self._pipe.recv()
        self.told = {"faults": faults, "connections": connections}
        return sent

    def stop(self) -> None:
        self._pipe.send(False)
        self._process.join()


@contextmanager
def running(server: Any) -> Iterator[Any]:
    try:
        yield server
    finally:
        server.stop()


def box(server: Any, script: str, scratch: Path) -> dict[str, Any]:
    """Fetch the box in a fresh process."""
    server.sent()
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        seconds, memory = measured(script.format(url=server.url, shape=SHAPE, box=BOX, out=out))
    sent = server.sent()
    report = {"s": round(seconds, 2), "MB": round(sent.bytes / 1e6, 1), "requests": sent.requests}
    return report | {"peak RSS, MB": round(memory / 1e6)} | getattr(server, "told", {})


def both(server: Any, scratch: Path, least: float, skip_torch_em: bool) -> dict[str, Any]:
    """The box by this package and by torch_em."""
    told: dict[str, Any] = {"ours": box(server, OURS, scratch)}
    told["bytes / least"] = round(told["ours"]["MB"] / least, 3)
    print(json.dumps(told), file=sys.stderr)
    if not skip_torch_em:
        told["torch_em"] = box(server, TORCH_EM, scratch)
        told["times faster"] = round(told["torch_em"]["s"] / told["ours"]["s"], 1)
        told["times fewer bytes"] = round(told["torch_em"]["MB"] / told["ours"]["MB"], 1)
    return told


def from_far_away(archive: Path, scratch: Path) -> dict[str, Any]:
    """The box with latency, and with and without stalls."""
    told: dict[str, Any] = {"with stalls": [], "without": []}
    for seed in SEEDS:
        for name, profile in (("with stalls", EBI), ("without", EBI_WITHOUT_STALLS)):
            with running(Slow(archive, profile, seed)) as server:
                told[name].append(box(server, OURS, scratch))
    times = [stalled["s"] / smooth["s"] for stalled, smooth in zip(told["with stalls"], told["without"], strict=True)]
    return told | {"times longer, each seed": [round(ratio, 2) for ratio in times], "worst": round(max(times), 2)}


def look(server: Slow, place: tuple[int, int], cache: Path | None) -> list[float]:
    """Seconds of two looks at one window, in a fresh process; imports are not counted."""
    y, x = place
    script = WINDOW.format(
        url=server.url, shape=SHAPE, cache=cache and str(cache), gigabytes=int(bool(cache)), y=y, x=x
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def windows(archive: Path, scratch: Path) -> dict[str, Any]:
    """Looks at 512 x 512 voxels of raw and three masks."""
    told = {}
    for name, place in PLACES.items():
        cold = []
        with running(Slow(archive, EBI_WITHOUT_STALLS)) as server:
            for _ in range(3):
                server.sent()
                first, again = look(server, place, None)
                cold.append(first)
                sent = server.sent()
            cache = scratch / f"cache {name}"
            filling = look(server, place, cache)[0]
            server.sent()
            other, told_of_other = look(server, place, cache)[0], server.sent()
            told[name] = {
                "cold, s": cold,
                "median, s": statistics.median(cold),
                "MB": round(sent.bytes / 1e6, 2),
                "requests": sent.requests,
                "again in the same process, s": again,
                "cold, filling a cache_dir, s": filling,
                "in another process with the same cache_dir, s": other,
                "requests of that": told_of_other.requests,
            }
    return told


def overview(server: Nginx, archive: Path) -> dict[str, Any]:
    """Every 40th row and column of one slice."""
    server.sent()
    seconds, _ = measured(OVERVIEW.format(url=server.url, shape=SHAPE))
    sent = server.sent()
    share = sent.bytes / (archive / EMPIAR_13356.path("raw", 2)).stat().st_size
    report = {"s": round(seconds, 2), "MB": round(sent.bytes / 1e6, 2), "requests": sent.requests}
    return report | {"share of the slice": round(share, 4)}


def main(archive: Path, scratch: Path, skip_torch_em: bool) -> None:
    links = archive.parent / f"{archive.name}-network"
    shutil.rmtree(links, ignore_errors=True)
    link_slices(archive, links)
    try:
        for path in archive.rglob("human*_00?.*"):  # from the disk to memory: the disk is not what is measured
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
        told: dict[str, Any] = {"least, MB": least_bytes(links)}
        least = told["least, MB"]["all"]

        def keep(name: str, row: dict[str, Any]) -> None:
            told[name] = row
            print(name, json.dumps(row), file=sys.stderr, flush=True)

        with running(Nginx(links, scratch, free_port())) as nginx:
            keep("loopback without limits", both(nginx, scratch, least, skip_torch_em))
            keep("overview", overview(nginx, links))
        keep("512 x 512, far away", windows(links, scratch))
        keep("far away", from_far_away(links, scratch))
        with running(Slow(links, SLOW)) as server:
            keep("1.5 MB/s a connection", both(server, scratch, least, skip_torch_em))
        print(json.dumps(told, indent=1))
    finally:
        shutil.rmtree(links)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="of tests/helpers/build_archive.py; readable for nginx")
    parser.add_argument("--skip-torch-em", action="store_true", help="it takes ten minutes")
    parser.add_argument("--scratch", type=Path, help="folder for what is written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        main(given.archive.absolute(), Path(folder), given.skip_torch_em)
