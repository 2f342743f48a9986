"""Training at real size: patches of a store of whole slices, 20000 x 20000, next to tifffile and Pillow."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_real_size import SHAPE, archive  # noqa: F401  # a fixture

import liver_dask as ld
from liver_dask import volume

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

PATCHES = ((4, 512, 512), (1, 1024, 1024))


def same(*arrays):
    return arrays if len(arrays) > 1 else arrays[0]


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_patches_of_whole_slices(archive: Path, stores: Path, sources, patch, split: str) -> None:  # noqa: F811
    """What is right for a small box would be slow, or wrong, or find nothing in a volume."""
    loader = ld.get_human_liver_em_loader(
        stores,
        patch,
        1,
        full_volume=True,
        source=archive,
        shape=SHAPE,
        split=split,
        min_foreground=0.05,
        labelled_region_only=True,
        n_samples=60,
        num_workers=2,
        pin_memory=False,
        raw_transform=same,
        transform=same,
        seed=1,
    )
    (one,) = loader.dataset.datasets
    found = set()
    for _ in range(20):
        window = one._sample_bounding_box()
        np.testing.assert_array_equal(one.raw[window], sources["raw"][window])
        np.testing.assert_array_equal(one.labels[0][window], sources["mito"][window])
        assert one.raw[window].mean() > 0
        found.add(tuple(part.start for part in window))
    assert len(found) == 20
    assert all(labels.mean() >= 0.05 for _, labels in loader)


@pytest.fixture(scope="module")
def stores(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("stores")
    ld.get_human_liver_em_full_volume(folder, download=True, source=archive, shape=SHAPE)
    return folder


@pytest.fixture(scope="module")
def sources(archive: Path) -> dict[str, np.ndarray]:  # noqa: F811
    raw = [tifffile.imread(archive / volume.file_of_slice("raw", z)) for z in range(SHAPE[0])]
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    mito = [np.asarray(Image.open(archive / volume.file_of_slice("mito", z))) for z in range(SHAPE[0])]
    Image.MAX_IMAGE_PIXELS = limit
    return {"raw": np.stack(raw), "mito": np.stack(mito)}
