"""What looking costs: `python view.py ARCHIVE`, of tests/helpers/build_archive.py, slices of 20000 x 20000.

Somebody opens the slicer on a whole slice, zooms in 4 x twice, and goes on to other slices; from a server without
limits and from one of 1.5 MB/s a connection with 0.3 s of latency. Then the same on a store with a pyramid. Told are
the seconds until the coarse picture and until all is sharp, and what was fetched. A new process for each row.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import liver_dask as ld

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.servers import Slow, running
from helpers.build_archive import SIZE as WIDTH
from helpers.hostile import EBI_WITHOUT_STALLS, LAN, Profile

SHAPE = (4, WIDTH, WIDTH)
SIZE = 720
TISSUE = (1195, 3243, 469, 2517, 0, 4)
PROFILES = {"lan": LAN, "1.5 MB/s": Profile(rate=1.5e6), "1.5 MB/s and 0.3 s of latency": EBI_WITHOUT_STALLS}

LOOKS = (
    ("whole slice", 1, 1, 0),
    ("4 x", 1, 4, 0),
    ("16 x", 1, 16, 0),
    ("a slice on, after a rest", 2, 16, 10),
    ("a slice on, at once", 3, 16, 0),
    ("whole", 3, 1, 0),
    ("a slice back, whole", 2, 1, 0),
)
"""What is looked at, the slice, the part of its side, and how many seconds later (slices beside are read meanwhile)."""

SCRIPT = """
import json, sys, time
import liver_dask as ld
from liver_dask.viewing.levels import Levels
from liver_dask.viewing.progressive import ProgressiveReader, Viewport
from liver_dask.store.targets import open_target

levels = Levels(open_target({target!r}, shape={shape}))
came = []
reader = ProgressiveReader(levels, lambda _, seen: came.append((time.monotonic(), seen.name)), lambda *_: None)
told = []
for what, z, y, x, rest in {looks}:
    time.sleep(rest)
    came.clear()
    with ld.trace() as cost:
        began = time.monotonic()
        reader.see(Viewport(z, y, x, {size}, ("raw", "mito", "er", "nucleus")))
        assert reader.idle.wait(600)
    coarse = came[0][0]
    assert "raw" in [name for _, name in came]
    told.append({{
        "what": what, "coarse, s": round(coarse - began, 2), "sharp, s": round(came[-1][0] - began, 2),
        "MB": round(cost.bytes / 1e6, 2), "requests": cost.requests,
    }})
reader.close()
print(json.dumps(told))
"""


def looks_at(first: tuple[int, int], size: int) -> list[tuple]:
    """Name, slice, rows and columns of each look, and the seconds before it."""
    found = []
    for what, z, share, rest in LOOKS:
        side = size // share
        y, x = ((at + (size - side) // 2, at + (size + side) // 2) for at in first)
        found.append((what, z, y, x, rest))
    return found


def walk(target: str, looks: list[tuple]) -> list[dict]:
    """The looks, one after the other, in a process of their own."""
    script = SCRIPT.format(target=target, shape=SHAPE, looks=looks, size=SIZE)
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main(archive: Path, scratch: Path) -> None:
    told = {}
    for name, profile in PROFILES.items():
        with running(Slow(archive, profile)) as server:
            told[name] = walk(server.url, looks_at((0, 0), SHAPE[1]))
            print(name, json.dumps(told[name]), file=sys.stderr, flush=True)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    store = ld.to_zarr(ds, scratch / "box.zarr", bounding_box=TISSUE, pyramid=True)
    told["a store of 2048 x 2048, with a pyramid"] = walk(store, looks_at((TISSUE[2], TISSUE[0]), 2048))
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="of tests/helpers/build_archive.py")
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().archive.absolute(), Path(folder))
