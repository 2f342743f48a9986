"""Build an archive of full-size slices from real EM: `python build_archive.py EM_FOLDER OUT [SLICES]`.

A slice is the 1024 x 1024 image of one section. It is tiled with mirrored copies until it covers 20000 x 20000 pixels,
converted to 16 bit, and set to zero outside the tissue box. Noise is added, so that LZW expands it to the 850-950 MB of
the real files. Pillow writes the file with libtiff: LZW, predictor 2, one row per strip, the directory at the end.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 20000
TISSUE_ROWS = slice(469, 19570)
TISSUE_COLUMNS = slice(1195, 18890)
MASK_OF_LABEL = {"mito": "mito", "er": "membrane", "nucleus": "synapse"}
LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP = {"compression": "tiff_lzw", "tiffinfo": {317: 2, 278: 1}}


def mirror_tiles(image: np.ndarray) -> np.ndarray:
    """Tile an image with mirrored copies until it covers a whole slice, and set it to zero outside the tissue."""
    rows, columns = image.shape
    block = np.block([[image, image[:, ::-1]], [image[::-1], image[::-1, ::-1]]])
    whole = np.tile(block, (SIZE // (2 * rows) + 1, SIZE // (2 * columns) + 1))[:SIZE, :SIZE]
    tissue = np.zeros_like(whole)
    tissue[TISSUE_ROWS, TISSUE_COLUMNS] = whole[TISSUE_ROWS, TISSUE_COLUMNS]
    return tissue


def write_atomically(image: Image.Image, path: Path, **options: object) -> None:
    """Save under a temporary name first, so that an interrupted build never leaves a partial slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("part-" + path.name)
    image.save(part, **options)
    part.rename(path)


def build_raw(em: Path, out: Path, z: int, *, uneven: bool = False) -> Path:
    """Write raw of slice `z` from section `z % 20` of the EM folder, unless the file exists.

    With `uneven`, each row is multiplied by its own factor, so that LZW compresses all strips to different sizes.
    """
    path = out / "humanliver_raw_images" / f"humanliver_raw_{z:03d}.tif"
    if not path.exists():
        tissue = mirror_tiles(np.asarray(Image.open(em / "raw" / f"{z % 20:02d}.png")).astype(np.uint16) * 128 + 1)
        random = np.random.default_rng(z)
        noise = random.integers(0, 256, tissue.shape, dtype=np.uint16)
        tissue += np.where(tissue > 0, noise, np.uint16(0))
        if uneven:
            for row, factor in zip(tissue, random.uniform(0.0005, 1, SIZE), strict=True):
                row[:] = row * factor
        write_atomically(Image.fromarray(tissue), path, **LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP)
    return path


def build_slice(em: Path, out: Path, z: int) -> None:
    """Write raw and the masks of slice `z` from section `z % 20` of the EM folder."""
    section = f"{z % 20:02d}.png"
    build_raw(em, out, z)
    for label, folder in MASK_OF_LABEL.items():
        path = out / f"humanliver_{label}_mask" / f"humanliver_{label}_mask_{z:03d}.png"
        if not path.exists():
            mask = mirror_tiles(np.asarray(Image.open(em / folder / section)))
            write_atomically(Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)), path)


def build_archive(em: Path, out: Path, slices: int) -> None:
    """Write the first `slices` slices. Existing files are kept."""
    for z in range(slices):
        build_slice(em, out, z)


if __name__ == "__main__":
    build_archive(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 4)
