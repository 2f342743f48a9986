"""Build an archive of full-size slices from real EM: `python build_archive.py EM_FOLDER OUT [SLICES]`.

A slice is the 1024 x 1024 image of one section. It is tiled with mirrored copies until it covers 20000 x 20000 pixels,
converted to 16 bit, and set to zero outside the tissue box. Noise is added, so that LZW expands it to the 850-950 MB of
the real files. Pillow writes the file with libtiff: LZW, predictor 2, one row per strip, the directory at the end.
Slices can be smaller (`size`); the memory is that of one slice.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 20000
TISSUE_ROWS = slice(469, 19570)
TISSUE_COLUMNS = slice(1195, 18890)
ROWS_AT_ONCE = 256
MASK_OF_LABEL = {"mito": "mito", "er": "membrane", "nucleus": "synapse"}
LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP = {"compression": "tiff_lzw", "tiffinfo": {277: 1, 317: 2, 278: 1}}
"""Pillow leaves out the number of samples, which is 1 by default; some readers ask for it."""


def within(tissue: slice, size: int) -> slice:
    """Return the rows or columns of the tissue in a slice of another size."""
    return slice(tissue.start * size // SIZE, tissue.stop * size // SIZE)


def tile(image: np.ndarray, size: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Tile an image with mirrored copies until it covers a slice; zero outside the tissue.

    Some rows at once, each given to `change`, which returns the voxels.
    """
    block = np.block([[image, image[:, ::-1]], [image[::-1], image[::-1, ::-1]]])
    rows, columns = within(TISSUE_ROWS, size), within(TISSUE_COLUMNS, size)
    x = np.arange(columns.start, columns.stop) % block.shape[1]
    whole = np.zeros((size, size), image.dtype)
    for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
        y = np.arange(start, min(start + ROWS_AT_ONCE, rows.stop))
        whole[y[0] : y[-1] + 1, columns] = change(block[np.ix_(y % block.shape[0], x)])
    return whole


def write_atomically(image: Image.Image, path: Path, **options: object) -> None:
    """Save under a temporary name first, so that an interrupted build never leaves a partial slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("part-" + path.name)
    image.save(part, **options)
    part.rename(path)


def build_raw(em: Path, out: Path, z: int, *, uneven: bool = False, size: int = SIZE) -> Path:
    """Write raw of slice `z` from section `z % 20` of the EM folder, unless the file exists.

    With `uneven`, each row is multiplied by its own factor, so that LZW compresses all strips to different sizes.
    """
    path = out / "humanliver_raw_images" / f"humanliver_raw_{z:03d}.tif"
    if not path.exists():
        section = np.asarray(Image.open(em / "raw" / f"{z % 20:02d}.png")).astype(np.uint16) * 128 + 1
        random = np.random.default_rng(z)

        def noisy(rows: np.ndarray) -> np.ndarray:
            rows = rows + random.integers(0, 256, rows.shape, dtype=np.uint16)
            return (rows * random.uniform(0.0005, 1, (len(rows), 1))).astype(np.uint16) if uneven else rows

        write_atomically(Image.fromarray(tile(section, size, noisy)), path, **LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP)
    return path


def build_slice(em: Path, out: Path, z: int, size: int = SIZE) -> None:
    """Write raw and the masks of slice `z` from section `z % 20` of the EM folder."""
    section = f"{z % 20:02d}.png"
    build_raw(em, out, z, size=size)
    for label, folder in MASK_OF_LABEL.items():
        path = out / f"humanliver_{label}_mask" / f"humanliver_{label}_mask_{z:03d}.png"
        if not path.exists():
            image = np.where(np.asarray(Image.open(em / folder / section)) > 0, 255, 0).astype(np.uint8)
            write_atomically(Image.fromarray(tile(image, size, lambda rows: rows)), path)


def build_archive(em: Path, out: Path, slices: int, size: int = SIZE) -> None:
    """Write the first `slices` slices. Existing files are kept."""
    for z in range(slices):
        build_slice(em, out, z, size)


if __name__ == "__main__":
    build_archive(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 4)
