"""An archive is described in one place; a wrong description is an early error of one sentence."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray as xr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import liver_dask as ld
from liver_dask.archive.reader import readers_of
from liver_dask.cli import main

SHAPE = (5, 60, 80)


def test_the_built_in_archives_are_where_they_are() -> None:
    """The built-in archive has the right shape, labels, paths, box of tissue and attributes."""
    liver = ld.archives()["EMPIAR-13356"]
    assert liver is ld.EMPIAR_13356
    assert (liver.shape, liver.labels) == ((597, 20000, 20000), ("mito", "er", "nucleus"))
    assert liver.path("raw", 7) == "humanliver_raw_images/humanliver_raw_007.tif"
    assert liver.path("er", 596) == "humanliver_er_mask/humanliver_er_mask_596.png"
    assert liver.path("bile_duct", 0) == "humanliver_bile_duct_mask/humanliver_bile_duct_mask_000.png"
    assert liver.full_box == (1195, 18890, 469, 19570, 0, 597)
    assert liver.of_shape((4, 30, 50)).full_box == (0, 50, 0, 30, 0, 4), "of another shape no tissue is known"
    assert liver["mito"].attributes == {
        "long_name": "mask of mitochondrion; may cover only a part of a slice",
        "flag_values": [0, 255],
        "flag_meanings": "background mitochondrion",
        "color": "#e64b3c",
    }
    assert liver["raw"].attributes == {"long_name": "electron microscopy, uncalibrated intensity"}
    assert len(ld.open_archive("EMPIAR-13356", labels=["sinusoid", "hepatocyte"])) == 3


def test_an_archive_is_printed_in_one_line() -> None:
    """An archive is printed with its name, shape and variables, on one line."""
    archive = ld.archives()["EMPIAR-12535/testis"]
    assert repr(archive) == "<Archive EMPIAR-12535/testis: 2605 x 4884 x 10419 voxels (z, y, x) of raw, mito>"
    assert len(repr(ld.archives())) < 1000


def test_a_description_travels_with_what_reads() -> None:
    """A pickled array reads from the files of the archive description that it was opened with."""
    renamed = replace(ld.EMPIAR_13356["raw"], files="elsewhere/{z}.tif", first=3)
    others = [variable for variable in ld.EMPIAR_13356.variables if variable.name != "raw"]
    archive = replace(ld.EMPIAR_13356, name="mine", variables=(renamed, *others))
    (reader,) = readers_of(pickle.loads(pickle.dumps(ld.open_archive(archive).raw.data)))
    assert (reader.archive, reader.variable) == ("mine", renamed)
    assert reader.files == f"{ld.EMPIAR_13356.url}/elsewhere/{{z}}.tif"
    assert reader.describe() != next(iter(readers_of(ld.open_human_liver_em().raw.data))).describe()


@given(z=st.integers(0, 99999), first=st.integers(0, 2000), width=st.integers(0, 6), other=st.text(max_size=12))
def test_the_slice_of_a_file_is_found_again(z: int, first: int, width: int, other: str) -> None:
    """`slice_of` inverts `path` for every slice, and gives None for any other path."""
    spec = f":0{width}d" if width else ""
    variable = ld.Variable(name="raw", files=f"a.b/c+_{{z{spec}}}(1).tif", kind="image", first=first)
    path = variable.path(z)
    assert variable.slice_of(path) == variable.slice_of(f"https://host/x/{path}") == z
    assert variable.slice_of(other) is None
    assert variable.slice_of(f"x{path}") is None, "not its folder"
    assert variable.slice_of(f"{path}.part") is None
    assert variable.slice_of(path.replace("c+_", "c+_0")) is None, "a name that this slice has not"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"files": "raw/slice.tif"}, "files = 'raw/slice.tif' must have the number of the slice once, as {z} or {z:03d}"),
    ({"files": "raw/{z}/{z}.tif"}, "files"),
    ({"files": "raw/{y}.tif"}, "files"),
    ({"files": "raw/{z!r}.tif"}, "files"),
    ({"files": "raw/{z.real}.tif"}, "files"),
    ({"files": "raw/{z:99999999d}.tif"}, "files"),
    ({"files": "raw/{z:x}.tif"}, "files"),
    ({"files": "raw/{z:5d}.tif"}, "files"),
    ({"files": "a%20b/{z}.tif"}, "files"),
    ({"name": "x" * 300}, "is no name of a variable"),
    ({"files": "raw/{z.tif"}, "files"),
    ({"files": "../{z}.tif"}, "must be a path below the archive's root"),
    ({"files": "/etc/{z}.tif"}, "must be a path below"),
    ({"files": "http://host/{z}.tif"}, "must be a path below"),
    ({"files": "a\\{z}.tif"}, "must be a path below"),
    ({"files": "a?{z}.tif"}, "must be a path below"),
    ({"files": 3}, "files = 3 must be a text"),
    ({"files": "raw/{z}.jpg"}, "format = 'jpg' is none of tiff, png"),
    ({"format": "zarr"}, "format = 'zarr' is none of"),
    ({"dtype": "float32"}, "dtype = 'float32' is none of uint8, uint16, uint32"),
    ({"kind": "mask", "dtype": "uint16"}, "dtype = 'uint16' of a mask must be uint8; other dtypes need kind"),
    ({"kind": "picture"}, "kind = 'picture' is none of image, mask, instances"),
    ({"kind": "image", "files": "raw/{z}.png"}, "format = 'png' is for masks only; give files of another"),
    ({"dataset": "data"}, "dataset = 'data' is for hdf5, not for tiff; leave it out"),
    ({"files": "raw/{z}.h5"}, "dataset = '' must be the path of the array in each file"),
    (
        {"files": "raw.v2/{z}"},
        "files = 'raw.v2/{z}' has no suffix, which would tell the format; add format = \"tiff\" or",
    ),
    ({"meaning": "two words"}, "meaning = 'two words' must be one word"),
    ({"color": "red"}, "color = 'red' is not of the form #rrggbb"),
    ({"first": -1}, "first = -1 must be at least 0"),
    ({"first": True}, "first = True must be a whole number"),
    ({"default": "no"}, "default = 'no' must be true or false"),
    ({"bytes_per_pixel": -2}, "bytes_per_pixel = -2 cannot be"),
    ({"name": "x"}, "name = 'x' is no name of a variable"),
    ({"name": "two words"}, "is no name of a variable"),
    ({"name": "labels"}, "is no name of a variable"),
]


@pytest.mark.parametrize(("changed", "said"), WRONG, ids=[f"{next(iter(one))}-{i}" for i, (one, _) in enumerate(WRONG)])
def test_a_wrong_variable_is_reported_when_it_is_described(changed: dict[str, Any], said: str) -> None:
    """A wrong attribute of a Variable is an error of one line when the Variable is made."""
    options = {"name": "raw", "files": "raw/{z:03d}.tif", "kind": "image", "dtype": "uint16"} | changed
    with pytest.raises(ld.InvalidArgumentError) as told:
        ld.Variable(**options)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


TOML = """
name = "mine"
url = "https://example.org/data"
shape = [5, 60, 80]
[variables.raw]
files = "em/{z:02d}.tif"
kind = "image"
[variables.mito]
files = "labels/{z:02d}.tif"
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOML + "colour = 'red'", "The variable 'mito' has no attribute 'colour'; it has bytes_per_pixel, color"),
        ("titel = 'x'" + TOML, "The archive has no attribute 'titel'"),
        (TOML.replace("shape = [5, 60, 80]", ""), "The archive has no shape; add shape = [z, y, x]."),
        (TOML.replace('url = "https://example.org/data"', ""), "The archive has no url; add url = "),
        (TOML + 'dtype = "uint32"', "dtype = 'uint32' of a mask must be uint8; other dtypes need kind"),
        (TOML.replace("shape = [5, 60, 80]", "shape = [5, 60]"), "shape=(5, 60) has 2 numbers"),
        (TOML.replace("[variables.raw]", "[variables.em]"), "there is no variable 'raw' of the kind 'image'"),
        (TOML.replace('kind = "image"', 'kind = "mask"'), "there is no variable 'raw' of the kind 'image'"),
        (TOML.replace('"mine"', '"no name"'), "name = 'no name' is no name of an archive"),
        (TOML.replace('"mine"', "3"), "name = 3 must be a text"),
        (TOML.replace("[variables.mito]\nfiles", "[variables]\nmito"), "The variable 'mito' is described by"),
        (TOML + "[variables.er]", "The variable 'er' has no files"),
        ("tissue_box = [0, 90, 0, 60, 0, 5]" + TOML, "leaves the volume: x is 0..90"),
        ("voxel_size_nm = [1, 2]" + TOML, "is not three numbers"),
        ("voxel_size_nm = 3" + TOML, "is not three numbers"),
        ("name = ", "is not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    """A wrong TOML file is an error with its path and the reason; the command exits with 2."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ld.InvalidArgumentError) as told:
        ld.Archive.from_toml(path)
    assert str(path) in str(told.value)
    assert said in str(told.value)
    done = CliRunner().invoke(main, ["info", "--archive", str(path)])
    assert done.exit_code == 2
    assert said in done.output.replace("\n", " ")


def test_an_archive_that_there_is_not_is_reported_with_those_that_there_are() -> None:
    """The error about an unknown archive lists the known ones, and shows no password of an address."""
    for wrong in ("EMPIAR-1", 3, "nothing.json"):
        with pytest.raises(ld.InvalidArgumentError, match=r"give one of .*EMPIAR-13356"):
            ld.open_archive(wrong)  # type: ignore[arg-type]
    with pytest.raises(ld.InvalidArgumentError, match="An address was given instead of an archive") as told:
        ld.open_archive("https://user:hunter2@host/a.toml")
    assert "hunter2" not in str(told.value)
    with pytest.raises(ld.InvalidArgumentError, match=r"Cannot read nothing\.toml"):
        ld.open_archive("nothing.toml")


def test_a_printed_archive_shows_no_password() -> None:
    """The representation of an archive does not contain its address, which may have a password."""
    assert "hunter2" not in repr(replace(ld.EMPIAR_13356, url="https://user:hunter2@host/data"))


def voxels_of(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    raw = random.integers(1, 255, SHAPE, "uint8")
    cells = np.kron(random.integers(0, 70000, (SHAPE[0], 6, 8), "uint32"), np.ones((1, 10, 10), "uint32"))
    return {"raw": raw, "mito": (raw > 200).astype("uint8"), "cells": cells}


def write_archive(folder: Path, voxels: dict[str, np.ndarray]) -> ld.Archive:
    """Write 8-bit raw, a mask of 0 and 1, and instance labels as TIFFs that are numbered from 1."""
    options: dict[str, Callable[[int], dict[str, Any]]] = {
        "raw": lambda z: {"compression": "lzw", "predictor": 2, "rowsperstrip": 1 + z},
        "mito": lambda z: {"rowsperstrip": 7},
        "cells": lambda z: {"compression": "deflate"} if z % 2 else {"tile": (16, 32)},
    }
    for name, whole in voxels.items():
        (folder / name).mkdir(parents=True)
        for z, pixels in enumerate(whole):
            tifffile.imwrite(folder / name / f"s{z + 1}.tif", pixels, **options[name](z))
    kinds: dict[str, Any] = {"raw": "image", "mito": "mask", "cells": "instances"}
    variables = [
        ld.Variable(name=name, files=f"{name}/s{{z}}.tif", first=1, kind=kinds[name], dtype=str(whole.dtype))
        for name, whole in voxels.items()
    ]
    return ld.Archive(name="mine", url=str(folder), shape=SHAPE, variables=tuple(variables))


def expected_of(voxels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return voxels | {"mito": voxels["mito"] * np.uint8(255)}


@pytest.mark.parametrize("index", [np.s_[:], np.s_[2, 7:40, 11:60], np.s_[:, ::7, 3:5], np.s_[4, [50, 3, 3], 79]])
def test_each_dtype_and_kind_is_read_right(tmp_path: Path, index: Any) -> None:
    """8-bit raw, masks and 32-bit instance labels are read with the right dtype and values by any index."""
    voxels = voxels_of()
    ds = ld.open_archive(write_archive(tmp_path, voxels))
    for name, whole in expected_of(voxels).items():
        found = ds[name][index].compute()
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, xr.DataArray(whole, dims=("z", "y", "x"))[index])
    z, y, x = (xr.DataArray(np.random.default_rng(1).integers(0, n, 40), dims="p") for n in SHAPE)
    points = ds.isel(z=z, y=y, x=x).compute()
    for name, whole in expected_of(voxels).items():
        np.testing.assert_array_equal(points[name], whole[z, y, x])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_files_of_another_dtype_are_reported_where_they_are_read(tmp_path: Path, dtype: str) -> None:
    """A value that does not fit the described dtype is an error with its file; smaller dtypes are read."""
    for there in ("uint8", "uint16", "uint32"):
        folder = tmp_path / there / "raw"
        folder.mkdir(parents=True)
        pixels = np.full(SHAPE[1:], np.iinfo(there).max, there)
        for z in range(SHAPE[0]):
            tifffile.imwrite(folder / f"{z}.tif", pixels, compression="lzw")
        variable = ld.Variable(name="raw", files="raw/{z}.tif", kind="image", dtype=dtype)
        archive = ld.Archive(name="mine", url=str(folder.parent), shape=SHAPE, variables=(variable,))
        ds = ld.open_archive(archive)
        if np.can_cast(there, dtype):
            np.testing.assert_array_equal(ds.raw[1], pixels)
        else:
            with pytest.raises(ld.FormatError, match=rf"raw, slice 1, .*1.tif: .* no whole number of 0 to .*{dtype}"):
                ds.raw[1].compute()


def test_the_command_takes_a_file_that_describes_an_archive(tmp_path: Path) -> None:
    """`info` and `download` accept a TOML file; `verify` needs only the store."""
    voxels = {name: whole for name, whole in voxels_of().items() if name != "cells"}
    write_archive(tmp_path / "data", voxels)
    description = tmp_path / "mine.toml"
    description.write_text(
        f'''
        name = "mine"
        url = "{tmp_path / "data"}"
        shape = [5, 60, 80]
        variables.raw = {{ files = "raw/s{{z}}.tif", first = 1, kind = "image" }}
        variables.mito = {{ files = "mito/s{{z}}.tif", first = 1 }}
        '''
    )
    run = CliRunner().invoke
    told = run(main, ["info", "--archive", str(description)])
    assert told.exit_code == 0, told.output
    assert "mito" in told.output
    store = tmp_path / "crop.zarr"
    kept = run(main, ["download", str(store), "--bbox", "3", "70", "2", "50", "1", "4", "--archive", str(description)])
    assert kept.exit_code == 0, kept.output
    for name, whole in expected_of(voxels).items():
        np.testing.assert_array_equal(xr.open_zarr(store)[name], whole[1:4, 2:50, 3:70])
    description.unlink()
    checked = run(main, ["verify", str(store), "--full"])
    assert checked.exit_code == 0, checked.output
    assert "0 voxels" not in checked.output, "the store itself tells how its archive is described"


def test_a_picture_shows_what_an_archive_has(tmp_path: Path) -> None:
    """A picture draws raw, the mask and the instances, each instance in its own colour."""
    ds = ld.open_archive(write_archive(tmp_path, voxels_of()))
    images = ld.show(ds, 2).axes[0].images
    assert len(images) == 3
    cells = np.asarray(images[2].get_array())
    there = voxels_of()["cells"][2]
    colors = {tuple(cells[there == number][0]) for number in np.unique(there[there > 0])}
    assert len(colors) == len(np.unique(there[there > 0])), "each has its own"
    assert not cells[there == 0].any()


def test_a_mask_of_any_value_is_255(tmp_path: Path) -> None:
    """Every nonzero value of a mask is read as 255, from TIFF and from PNG."""
    (tmp_path / "raw").mkdir()
    pixels = np.arange(60 * 80, dtype="uint8").reshape(60, 80)
    for name in ("raw/0.tif", "0.tif", "1.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    raw = ld.Variable(name="raw", files="raw/{z}.tif", kind="image")
    masks = [ld.Variable(name="a", files="{z}.tif"), ld.Variable(name="b", files="{z}.png", first=1)]
    archive = ld.Archive(name="mine", url=str(tmp_path), shape=(1, 60, 80), variables=(raw, *masks))
    ds = ld.open_archive(archive)
    np.testing.assert_array_equal(ds.raw[0], pixels)
    for name in "ab":
        np.testing.assert_array_equal(ds[name][0], (pixels > 0) * 255)
