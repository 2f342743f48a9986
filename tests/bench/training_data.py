"""The archive and stores from which patches are read: deeper than the slices of full size, and smaller."""

from pathlib import Path

import numpy as np
from PIL import Image

from helpers.build_archive import LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP, MASK_OF_LABEL
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import RAW


def build(em: Path, archive: Path, shape: tuple[int, int, int]) -> None:
    """Write an archive: section z % 20 (or of those there are), mirrored along x, with noise in the lower bits."""
    depth, height, width = shape
    sections = sorted(path.name for path in (em / "raw").iterdir())
    for z in range(depth):
        section = sections[z % len(sections)]
        pixels = mirrored(em / "raw" / section)[:height, :width].astype(np.uint16) * 128 + 1
        pixels += np.random.default_rng(z).integers(0, 256, pixels.shape, dtype=np.uint16)
        images = {RAW: pixels}
        for label, folder in MASK_OF_LABEL.items():
            mask = mirrored(em / folder / section)[:height, :width]
            images[label] = np.where(mask > 0, 255, 0).astype(np.uint8)
        for name, image in images.items():
            path = archive / EMPIAR_13356.path(name, z)
            path.parent.mkdir(parents=True, exist_ok=True)
            options = LZW_WITH_PREDICTOR_ONE_ROW_A_STRIP if name == RAW else {}
            Image.fromarray(image).save(path, **options)


def mirrored(path: Path) -> np.ndarray:
    """An image of twice the width."""
    image = np.asarray(Image.open(path))
    return np.block([image, image[:, ::-1]])
