"""Small copies of EMPIAR-12535, laid out as its descriptions say, are opened, exported and trained on."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import xarray as xr

import liver_dask as ld
from liver_dask.archive import archives
from liver_dask.demo import serve

SHAPE = (6, 96, 128)
NAMES = ["EMPIAR-12535/intestine", "EMPIAR-12535/testis", "EMPIAR-12535/brainstem"]
FIRST_FILES = {
    "EMPIAR-12535/intestine": (
        "HuaLab-mouse-intestinal-tissue/raw/HuaLab-mouse-intestinal-tissue-raw-_000001.tiff",
        "HuaLab-mouse-intestinal-tissue/intestinal_mito_segmentation_h5/0000.h5",
    ),
    "EMPIAR-12535/testis": (
        "HuaLab_mouse_testis_tissue/raw/HuaLab_mouse_testis_tissue-raw-_000001.tiff",
        "HuaLab_mouse_testis_tissue/testis_mito_segmentation_h5/0000.h5",
    ),
    "EMPIAR-12535/brainstem": (
        "Hualab-DCN-A23-CBA-2M/raw/DUP_aligned_Prefix_ONPOINT_slice_0000.tif",
        "Hualab-DCN-A23-CBA-2M/brainstem_mito_segmentation_h5/0000.h5",
    ),
}


def lay_out(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Write the slices of an archive with tifffile and h5py; returns their voxels."""
    random = np.random.default_rng(0)
    raw = random.integers(1, 256, SHAPE, "uint8")
    numbers = random.integers(0, 2**32, (SHAPE[0], 12, 16), "uint32") * (random.random((SHAPE[0], 12, 16)) < 0.4)
    mito = np.kron(numbers, np.ones((1, 8, 8), "uint32"))
    for z in range(SHAPE[0]):
        paths = [folder / ld.archives()[name].path(variable, z) for variable in ("raw", "mito")]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(paths[0], raw[z], rowsperstrip=[1, 7, 96][z % 3], compression=["lzw", None, "deflate"][z % 3])
        with h5py.File(paths[1], "w") as h5:
            h5.create_dataset("data", data=mito[z], chunks=(32, 32) if z % 2 else None, **COMPRESSED[z % 2])
    return {"raw": raw, "mito": mito}


COMPRESSED = [{}, {"compression": "gzip"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_volume_is_read_kept_and_verified(tmp_path: Path, name: str) -> None:
    """Each volume of EMPIAR-12535 is read, exported and verified with its own paths and dtypes."""
    voxels = lay_out(tmp_path / "data", name)
    assert all((tmp_path / "data" / path).exists() for path in FIRST_FILES[name])
    with serve(tmp_path / "data") as server:
        ds = ld.open_archive(name, server.url, shape=SHAPE)
        assert {key: variable.dtype for key, variable in ds.data_vars.items()} == {"raw": "uint8", "mito": "uint32"}
        assert ds.attrs["voxel_size_nm"][0] == 50
        window = ds.isel(z=slice(1, 4), y=slice(10, 70), x=slice(33, 90))
        for key, whole in voxels.items():
            np.testing.assert_array_equal(window[key], whole[1:4, 10:70, 33:90])
        store = Path(ld.to_zarr(ds, tmp_path / "a.zarr", chunks=(2, 32, 32), shards=(4, 64, 64), progress=False))
        report = ld.verify(store, full=True, progress=False)
    assert report.ok, report
    for key, whole in voxels.items():
        np.testing.assert_array_equal(xr.open_zarr(store)[key], whole)
    assert xr.open_zarr(store).mito.attrs["kind"] == "instances"


def test_a_description_is_short() -> None:
    """The description of each volume has at most 30 lines."""
    for path in Path(archives.__file__).parent.joinpath("descriptions").glob("empiar_12535_*.toml"):
        assert len(path.read_text().splitlines()) <= 30, path


def test_instances_are_trained_on_with_a_label_transform(tmp_path: Path) -> None:
    """Instance labels reach the label transform, or an int64 dataset, with their numbers unchanged."""
    torch_em = pytest.importorskip("torch_em", reason="needs the extra `train`")
    voxels = lay_out(tmp_path / "data", NAMES[0])
    options = {
        "bounding_boxes": [(0, SHAPE[2], 0, SHAPE[1], 0, SHAPE[0])],
        "archive": NAMES[0],
        "source": tmp_path / "data",
        "shape": SHAPE,
        "download": True,
        "n_samples": 4,
        "seed": 0,
    }
    transform = torch_em.transform.label.BoundaryTransform(add_binary_target=True)
    dataset = ld.get_human_liver_em_dataset(tmp_path / "s", (2, 64, 64), label_transform=transform, **options)
    _, labels = dataset[0]
    assert labels.shape == (2, 2, 64, 64)
    assert set(np.unique(labels)) == {0, 1}
    import torch

    numbers = {"transform": lambda *patch: patch, "label_dtype": torch.int64}
    _, labels = ld.get_human_liver_em_dataset(tmp_path / "s", SHAPE, **numbers, **options)[0]
    np.testing.assert_array_equal(labels[0], voxels["mito"].astype(np.int64))
    count = len(np.unique(voxels["mito"]))
    _, labels = ld.get_human_liver_em_dataset(tmp_path / "s", SHAPE, label_dtype=torch.int64, **options)[0]
    assert len(np.unique(labels)) == count, "augmentations compute with float32, where neighbours become one"
    stores = [path.name for path in (tmp_path / "s").iterdir() if path.suffix == ".zarr"]
    assert len(stores) == 1
    assert stores[0].startswith("EMPIAR-12535-intestine-")


def test_a_picture_of_instances(tmp_path: Path) -> None:
    """A picture of instance labels has many colours."""
    lay_out(tmp_path / "data", NAMES[1])
    figure = ld.show(ld.open_archive(NAMES[1], tmp_path / "data", shape=SHAPE), 2)
    colors = np.asarray(figure.axes[0].images[1].get_array()).reshape(-1, 4)
    assert len(np.unique(colors[colors[:, 3] > 0], axis=0)) > 20
