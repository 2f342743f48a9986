"""The archive that is measured, built of real EM or of the demo's; tifffile and Pillow read what is true of it."""

import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from helpers.build_archive import MASK_OF_LABEL, SIZE, build_archive
from helpers.paths import ROOT
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import RAW
from liver_dask.demo import make_archive

EM = ROOT.parent / "shared" / "em"
"""Folder of real EM: `raw`, `mito`, `membrane` and `synapse` with images of 1024 x 1024 of sections. It is optional."""

QUICK_SIZE = 4096
BUILT, SERVED = 4, 8
"""Slices that are built, and slices that are served: links stand in for the others."""

SECTION, MARGIN = 1024, 128
NAMES = (RAW, *EMPIAR_13356.labels)


def default_folder(size: int) -> Path:
    """Where an archive is built, and found again, if no folder is given."""
    return Path(tempfile.gettempdir()) / f"liver_dask-bench-{size}"


def make_sections(folder: Path) -> None:
    """Write made-up sections in the layout of `EM`, for where there is no real EM."""
    whole = SECTION + 2 * MARGIN
    inner = np.s_[MARGIN : MARGIN + SECTION, MARGIN : MARGIN + SECTION]  # the demo's slices are empty at the edges
    made = folder / "made"
    make_archive(made, (BUILT, whole, whole))
    for z in range(BUILT):
        images = {"raw": (tifffile.imread(made / EMPIAR_13356.path(RAW, z)) >> 8).astype(np.uint8)}
        for label, name in MASK_OF_LABEL.items():
            images[name] = np.asarray(Image.open(made / EMPIAR_13356.path(label, z)))
        for name, image in images.items():
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(image[inner]).save(folder / name / f"{z:02d}.png")


def build(folder: Path, size: int, em: Path = EM) -> str:
    """Build what is missing of the archive. Returns of what it is made, in words."""
    if all((folder / EMPIAR_13356.path(name, z)).exists() for name in NAMES for z in range(BUILT)):
        return "found there"
    began = time.monotonic()
    if em.is_dir():
        build_archive(em, folder, BUILT, size)
        made_of = "built of real EM"
    else:
        with tempfile.TemporaryDirectory() as sections:
            make_sections(Path(sections))
            build_archive(Path(sections), folder, BUILT, size)
        made_of = "built of made-up EM"
    return f"{made_of} in {time.monotonic() - began:.0f} s"


@dataclass(frozen=True)
class BenchArchive:
    """An archive of links to the slices that were built.

    Attributes:
        built: The folder of the archive, which is only read.
        folder: The folder of the links.
        slices: How many slices there are.
    """

    built: Path
    folder: Path
    slices: int = SERVED

    def link(self) -> None:
        """Make the links."""
        for name in NAMES:
            for z in range(self.slices):
                path = self.path(name, z)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to((self.built / EMPIAR_13356.path(name, z % BUILT)).absolute())

    def warm(self) -> None:
        """Read all files once: the disk is not what is measured."""
        for name in NAMES:
            for z in range(BUILT):
                with self.path(name, z).open("rb") as file:
                    while file.read(1 << 24):
                        pass

    def path(self, name: str, z: int) -> Path:
        """The file of a slice."""
        return self.folder / EMPIAR_13356.path(name, z)

    @cached_property
    def size(self) -> int:
        """Rows, and columns, of a slice."""
        with tifffile.TiffFile(self.built / EMPIAR_13356.path(RAW, 0)) as tiff:
            rows, columns = tiff.pages[0].shape
        if rows != columns:
            raise SystemExit(f"{self.built} has slices of {rows} x {columns}: they must be square.")
        return int(rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return (self.slices, self.size, self.size)

    def at(self, position: int) -> int:
        """A row or column that is given for slices of full size, in slices of this size."""
        return position * self.size // SIZE

    def voxels(
        self, name: str, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int], step: int = 1
    ) -> np.ndarray:
        """Read a box by tifffile or Pillow: (z, y, x), every so many rows and columns."""
        found = np.empty(
            [z[1] - z[0], *(len(range(*bounds, step)) for bounds in (y, x))], "u2" if name == RAW else "u1"
        )
        for first in sorted({at % BUILT for at in range(*z)}):  # links are read once
            whole = self._whole(name, first)
            for at in range(*z):
                if at % BUILT == first:
                    found[at - z[0]] = whole[slice(*y, step), slice(*x, step)]
        return found

    def _whole(self, name: str, z: int) -> np.ndarray:
        path = self.path(name, z)
        if name == RAW:
            return tifffile.imread(path)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a whole slice is more than Pillow trusts
        try:
            return np.asarray(Image.open(path))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
