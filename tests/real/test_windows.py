"""Real size: 2000 windows anywhere in four slices of 20000 x 20000, two of them with uneven rows, against tifffile.

Off by default: `pytest -m real -s tests/real/test_windows.py`. It takes some minutes, 3.4 GB of disk and 3 GB of
memory; with `LIVER_DASK_REAL_WINDOWS=FOLDER` the slices are kept there. The images are described in test_real_size.py;
`LIVER_DASK_REAL_EM=FOLDER` names their folder.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

import liver_dask as ld
from helpers.build_archive import SIZE, build_raw
from liver_dask.demo import serve

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

EM = Path(os.environ.get("LIVER_DASK_REAL_EM", Path(__file__).parents[3] / "shared" / "em"))
WINDOWS_OF_A_SLICE = 500


@pytest.mark.parametrize("z", range(4))
def test_windows_anywhere(tmp_path: Path, z: int) -> None:
    """Windows of any size and place in a slice, also those that end within strips, have the voxels of tifffile."""
    if not EM.is_dir():
        pytest.skip(f"there is no real EM in {EM}")
    kept = os.environ.get("LIVER_DASK_REAL_WINDOWS")
    folder = Path(kept) if kept else tmp_path
    path = build_raw(EM, folder, z, uneven=z % 2 == 1)
    whole = tifffile.imread(path)
    random = np.random.default_rng(z)
    wrong, voxels = [], 0
    with serve(folder) as server:
        raw = ld.open_human_liver_em(server.url, shape=(4, SIZE, SIZE)).raw[z]
        for number in range(WINDOWS_OF_A_SLICE):
            height, width = random.integers(1, (120, 3000) if number % 10 else (1500, 20000))
            y, x = random.integers(0, (SIZE - height + 1, SIZE - width + 1))
            window = np.s_[y : y + height, x : x + width]
            found = raw[window].to_numpy()
            voxels += found.size
            if not np.array_equal(found, whole[window]):
                wrong.append((window, int((found != whole[window]).sum())))
    print(f"\nslice {z}: {path.stat().st_size / 1e6:.0f} MB, {WINDOWS_OF_A_SLICE} windows, {voxels:,} voxels: ", end="")
    print(
        f"{len(wrong)} windows with wrong voxels; {server.bytes_sent / 1e9:.2f} GB in {len(server.requests)} requests"
    )
    assert not wrong
