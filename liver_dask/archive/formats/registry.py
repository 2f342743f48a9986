"""The formats of slices, by name and by suffix."""

from .png import PngSlice
from .slices import SliceReader
from .tiff import TiffSlice

FORMATS: dict[str, type[SliceReader]] = {"tiff": TiffSlice, "png": PngSlice}

FORMAT_OF_SUFFIX = {
    "tif": "tiff",
    "tiff": "tiff",
    "png": "png",
}
