"""Files of the archive as any program reads them: whole masks, and addresses."""

import io

import fsspec
import numpy as np
from PIL import Image

from liver_dask.archive.archives import EMPIAR_13356

LABELS = EMPIAR_13356.labels
Image.MAX_IMAGE_PIXELS = None  # a whole mask has 400 million


def url_of(root: str, name: str, z: int) -> str:
    """The address of a file."""
    return f"{root}/{EMPIAR_13356.path(name, z)}"


def fetch(url: str) -> bytes:
    """A whole file."""
    return fsspec.filesystem("http").cat_file(url)


def mask_by_pillow(url: str) -> np.ndarray:
    """A whole mask, (y, x)."""
    return np.asarray(Image.open(io.BytesIO(fetch(url))))
