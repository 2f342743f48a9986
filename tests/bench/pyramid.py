"""What a pyramid costs: `python pyramid.py ARCHIVE`, of tests/helpers/build_archive.py.

Of stores of 32, 64 and 128 slices of 4096 x 4096: seconds, and the most memory that the process took. Every level
is compared, voxel by voxel, with what tensorstore makes of the one below.
"""

import argparse
import json
import shutil
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import tensorstore
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[1]))
import liver_dask as ld
from helpers.build_archive import SIZE
from helpers.measured import measured
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import FOREGROUND, RAW
from liver_dask.store.mask_shares import CELL

SLICES, SIDE, ROWS_AT_ONCE = 4, 4096, 256
FIRST = (SIZE - SIDE) // 2
REPEATED = (8, 16, 32)
SCRIPT = "import liver_dask as ld\nld.add_pyramid({store!r}, progress=False)"


def differing_voxels(store: Path) -> int:
    """How many voxels of raw differ from tensorstore's means, and by how many a cell of a mask has not its share."""
    levels = [store, *sorted((store / "pyramid").glob("s?"))]
    different = 0
    for below, level in pairwise(levels):
        for name in (RAW, *EMPIAR_13356.labels):
            source, found = (open_array(path / name) for path in (below, level))
            is_mask = name != RAW
            mean = tensorstore.downsample(tensorstore.cast(source, "float64") if is_mask else source, [1, 2, 2], "mean")
            for y in range(0, found.shape[1], ROWS_AT_ONCE):
                rows = slice(y, min(y + ROWS_AT_ONCE, found.shape[1]))
                expected = mean[:, rows].read().result()
                level = found[:, rows].read().result()
                if is_mask:
                    differences = cells_of(level.astype(np.float64) - expected) / FOREGROUND
                    different += int(np.abs(differences).astype(int).sum())  # less than one each
                else:
                    different += int((level != expected).sum())
    return different


def cells_of(voxels: np.ndarray) -> np.ndarray:
    """Return the sums of cells of CELL x CELL voxels of each slice."""
    rows, columns = (np.arange(0, length, CELL) for length in voxels.shape[1:])
    return np.add.reduceat(np.add.reduceat(voxels, rows, axis=1), columns, axis=2)


def open_array(path: Path) -> tensorstore.TensorStore:
    return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}).result()


def main(archive: Path, scratch: Path) -> None:
    box = (FIRST, FIRST + SIDE, FIRST, FIRST + SIDE, 0, SLICES)
    ds = ld.open_human_liver_em(archive, shape=(SLICES, SIZE, SIZE)).liver.crop(box)
    told = []
    for times in REPEATED:
        depth = times * SLICES
        store = scratch / f"{depth}.zarr"
        ld.to_zarr(xr.concat([ds] * times, "z").assign_coords(z=np.arange(depth)), store)
        seconds, memory = measured(SCRIPT.format(store=str(store)))
        row = {"slices": depth, "s": round(seconds, 1), "peak RSS, MB": memory // 10**6}
        row["MB of voxels a second"] = round(depth * SIDE**2 * 5 / seconds / 1e6)
        told.append(row | {"differing voxels": differing_voxels(store)})
        shutil.rmtree(store)
        print(json.dumps(told[-1]), file=sys.stderr, flush=True)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="of tests/helpers/build_archive.py")
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().archive.absolute(), Path(folder))
