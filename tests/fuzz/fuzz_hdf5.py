"""HDF5 slices: whatever is in a file, its voxels are those that h5py reads, or it is refused in one sentence.

An input is one byte that says which rows and columns are read, and a file. If the byte is 128 or more, the file gets
right checksums first, because otherwise these betray nearly every change of the newer formats.
"""

import atexit

import numpy as np

from helpers.h5py_process import H5pyProcess
from helpers.hdf5_checksums import with_checksums
from helpers.memory_file import MemoryFile
from liver_dask.archive.formats.hdf5 import Hdf5Slice
from liver_dask.core.errors import FormatError

HEIGHT, WIDTH = 12, 20
VOXELS = np.dtype("<u4")

h5py_process = H5pyProcess()
atexit.register(h5py_process.close)


def one_input(data: bytes) -> None:
    """Read a slice at points, in parts, and whole."""
    if not data:
        return
    rows, columns = np.arange(data[0] % HEIGHT, HEIGHT), slice(data[0] // HEIGHT % (WIDTH - 2), WIDTH - data[0] % 3)
    file = with_checksums(data[1:], HEIGHT, WIDTH) if data[0] >= 128 else data[1:]
    whole = np.full((HEIGHT, WIDTH), 0xA5A5, VOXELS)
    part = np.full((len(rows), columns.stop - columns.start), 0xA5A5, VOXELS)
    y = rows[::-1].repeat(2)
    x = (7 * np.arange(len(y)) + data[0]) % WIDTH
    points = np.full(len(y), 0xA5A5, VOXELS)
    try:
        Hdf5Slice(MemoryFile(file), HEIGHT, WIDTH, VOXELS, "data", None).read_points(y, x, points)
        reader = Hdf5Slice(MemoryFile(file), HEIGHT, WIDTH, VOXELS, "data", None)
        reader.read(rows, columns, part)
        reader.read(np.arange(HEIGHT), slice(0, WIDTH), whole)
    except FormatError as error:
        if "\n" in str(error):
            raise AssertionError("is more than a sentence") from error
        return
    assert (part == whole[rows, columns]).all()
    assert (points == whole[y, x]).all()
    expected = h5py_process.read(file)
    assert expected is None or (expected == whole).all()
