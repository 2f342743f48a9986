"""Damaged HDF5 files get right checksums, so that what is behind the checksums is tested, too."""

from contextlib import suppress
from unittest.mock import patch

import imagecodecs
import numpy as np

from helpers.memory_file import MemoryFile
from liver_dask.archive.formats.hdf5 import Hdf5Slice
from liver_dask.archive.formats.hdf5_metadata import Fields, Metadata
from liver_dask.core.errors import FormatError


def with_checksums(file: bytes, height: int, width: int) -> bytes:
    """Return a file with right checksums of all parts that are read for the dataset `data`."""
    mended = bytearray(file)
    verify = Metadata.checked

    def mend(metadata: Metadata, part: bytes, signature: bytes = b"") -> Fields:
        right = part[:-4] + imagecodecs.h5checksum_lookup3(part[:-4]).to_bytes(4, "little")
        at = mended.find(part)
        if at >= 0:
            mended[at : at + len(part)] = right
        return verify(metadata, right, signature)

    with patch.object(Metadata, "checked", mend), suppress(FormatError):
        Hdf5Slice(MemoryFile(file), height, width, np.dtype("u8"), "data", None).probe()
    return bytes(mended)
