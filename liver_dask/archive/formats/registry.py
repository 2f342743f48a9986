"""The slice formats by name, and the format of each file name suffix."""

from .hdf5 import Hdf5Slice
from .png import PngSlice
from .slices import SliceReader
from .tiff import TiffSlice

FORMATS: dict[str, type[SliceReader]] = {"tiff": TiffSlice, "png": PngSlice, "hdf5": Hdf5Slice}

FORMAT_OF_SUFFIX = {
    "tif": "tiff",
    "tiff": "tiff",
    "png": "png",
    "h5": "hdf5",
    "hdf5": "hdf5",
}
