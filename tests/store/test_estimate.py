"""What a download costs is what was said before: bytes, requests and disk, of boxes of any form, from any server."""

import os
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import liver_dask as ld
from helpers.archive import SHAPE, write_raw
from helpers.hostile import LAN, MultiRange, NoRanges, hostile
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.cli import main
from liver_dask.core.disk import files_below
from liver_dask.core.kinds import RAW
from liver_dask.demo import RangeRequestHandler, serve
from liver_dask.store.plan import Export
from liver_dask.store.sample import sample

NEAR = 0.15
"""The largest share by which bytes, requests and disk may differ from what was said after a look at three slices."""

FIRST_REQUESTS = 8
"""Further requests of a small box: a few strips are asked for first, and some strips lack bytes at first."""

WIDE = (3, 900, 7000)
OVAL = (8, 420, 2400)
VARIABLES = (RAW, *EMPIAR_13356.labels)


@pytest.fixture(scope="module")
def wide_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices with strips as wide as a request is large, empty left and right of the tissue, and masks of blobs."""
    folder, (_, height, width) = tmp_path_factory.mktemp("wide"), WIDE
    x = np.arange(width)
    write(folder, WIDE, np.broadcast_to((x > width // 10) & (x < width * 9 // 10), (height, width)))
    return folder


@pytest.fixture(scope="module")
def oval_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More slices, of tissue that is an ellipse: nothing in the corners."""
    folder, (_, height, width) = tmp_path_factory.mktemp("oval"), OVAL
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    write(folder, OVAL, (x / 0.9) ** 2 + (y / 0.96) ** 2 < 1)
    return folder


def write(folder: Path, shape: tuple[int, int, int], tissue: np.ndarray) -> None:
    """Write an archive of textured tissue."""
    depth, height, width = shape
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    noise = np.random.default_rng(0).standard_normal((height, width), np.float32)
    for z in range(depth):
        blobs = np.sin(x / 40 + z) + np.sin(y / 30) + np.sin(x / 70) * np.cos(y / 90)
        noise = np.roll(noise, 101, 1)
        raw = np.where(tissue, 20_000 + 4000 * blobs + 1500 * noise, 0)
        for name in VARIABLES:
            path = folder / EMPIAR_13356.path(name, z)
            path.parent.mkdir(exist_ok=True)
            if name == RAW:
                write_raw(path, raw.astype(np.uint16))
            else:
                mask = tissue & (blobs + 0.3 * noise > 1.5)  # as many requests as a real one takes
                Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path, compress_level=1)


def boxes(count: int, shape: tuple[int, int, int], least: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Yield random boxes: narrow and wide, low and high, of one slice and of all."""
    rng, (depth, height, width) = random.Random(seed), shape
    for _ in range(count):
        d = rng.choice([1, 2, depth])
        h, w = (int(least * (length / least) ** rng.random()) for length in (height, width))
        z, y, x = (rng.randrange(whole - part + 1) for whole, part in zip(shape, (d, h, w), strict=True))
        yield x, x + w, y, y + h, z, z + d


def differences(
    archive: Path,
    shape: tuple[int, int, int],
    box: tuple[int, ...],
    handler: type[RangeRequestHandler],
    out: Path,
    first_requests: int = FIRST_REQUESTS,
) -> dict[str, float]:
    """Write a box, and return how much more bytes, requests and disk it took than was said, as shares of what was."""
    with serve(archive, handler) as server:
        export = Export.plan(ld.open_human_liver_em(server.url, shape=shape), out, box)
        said = export.estimate(sample(export.source))
    with serve(archive, handler) as server:
        ld.to_zarr(ld.open_human_liver_em(server.url, shape=shape), out, bounding_box=box, progress=False)
        took = {"fetched": server.bytes_sent, "requests": len(server.requests)}
    took["stored"] = sum(os.stat(path).st_size for path in files_below(out))
    found = {name: count / getattr(said, name) - 1 for name, count in took.items()}
    if abs(took["requests"] - said.requests) <= first_requests:
        found.pop("requests")
    return found


@pytest.mark.parametrize("kind", ["answered", "refused"])
def test_it_costs_what_was_said_after_a_look(wide_archive: Path, tmp_path: Path, kind: MultiRange) -> None:
    """Of servers that answer several ranges of a file at once, and of those that do not."""
    for number, box in enumerate(boxes(5, WIDE, 200)):
        handler = hostile(LAN, 0, kind)
        found = differences(wide_archive, WIDE, box, handler, tmp_path / f"{number}.zarr")
        assert max(map(abs, found.values())) < NEAR, (box, found)


@pytest.mark.parametrize("kind", ["answered", "refused", None])
@pytest.mark.parametrize("box", [(1006, 1900, 20, 400, 0, 8), (1700, 2200, 0, 420, 0, 8)])
def test_it_costs_what_was_said_of_an_ellipse(
    oval_archive: Path, tmp_path: Path, kind: MultiRange | None, box: tuple[int, ...]
) -> None:
    """Of as many slices as are read at once, and also of a server that sends whole files, of which it warns."""
    handler = hostile(LAN, 0, kind) if kind else NoRanges
    with nullcontext() if kind else pytest.warns(UserWarning, match="ignores byte ranges"):
        found = differences(oval_archive, OVAL, box, handler, tmp_path / "a.zarr", 3)
    assert max(map(abs, found.values())) < NEAR, found


def test_without_a_look_both_kinds_of_servers_are_told(wide_archive: Path, tmp_path: Path) -> None:
    """A dry run sends nothing. Of a narrow box, it says what it costs if only one range is answered at a time."""
    with serve(wide_archive) as server:
        narrow = ["--bbox", "2000", "2100", "0", "600", "0", "3", "--source", server.url, "--shape", *map(str, WIDE)]
        planned = CliRunner().invoke(main, ["download", str(tmp_path / "a.zarr"), *narrow, "--dry-run", "--pyramid"])
        assert not server.requests
        assert "if the source answers one range at a time" in planned.output
        assert "are guesses from other EM; nothing was asked of the source" in planned.output
        asked = CliRunner().invoke(main, ["download", str(tmp_path / "a.zarr"), *narrow, "--dry-run", "--ask"])
        assert server.requests
        assert "Sizes follow from a look at three slices" in asked.output
        assert "one range at a time" not in asked.output
    assert not list(tmp_path.iterdir())
    alone = CliRunner().invoke(main, ["download", str(tmp_path / "a.zarr"), *narrow, "--ask"])
    assert alone.exit_code == 2
    assert "--ask is for --dry-run" in alone.output


def test_a_pyramid_is_in_the_plan_and_must_have_room(wide_archive: Path, tmp_path: Path, monkeypatch) -> None:
    """Its levels take what was said, and a disk with room for the store alone is too small from the beginning on."""
    ds = ld.open_human_liver_em(wide_archive, shape=WIDE)
    export = Export.plan(ds, tmp_path / "a.zarr")
    known = sample(export.source)
    room = export.estimate().disk + export.pyramid_bytes() // 2
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=room))
        with pytest.raises(ld.InvalidArgumentError, match="of disk, and"):
            ld.to_zarr(ds, tmp_path / "a.zarr", pyramid=True, progress=False)
    assert not list(tmp_path.iterdir())
    ld.to_zarr(ds, tmp_path / "a.zarr", pyramid=True, progress=False)
    took = sum(os.stat(path).st_size for path in files_below(tmp_path / "a.zarr" / "pyramid") if "c" in path.parts)
    assert took == pytest.approx(export.pyramid_bytes(known), rel=NEAR)
    options = ["--full", "--source", str(wide_archive), "--shape", *map(str, WIDE), "--pyramid", "--dry-run"]
    planned = CliRunner().invoke(main, ["download", str(tmp_path / "b.zarr"), *options])
    assert "  pyramid     " in planned.output


def test_a_look_fails_in_a_sentence(archive: Path, tmp_path: Path) -> None:
    """Of an archive that is not there, or not as described."""
    box = ["--bbox", "0", "9", "0", "9", "0", "9", "--source", str(archive), "--shape", "10", "300", "421"]
    done = CliRunner().invoke(main, ["download", str(tmp_path / "a.zarr"), *box, "--dry-run", "--ask"])
    assert done.exit_code == 1
    assert "found 300 x 420 pixels" in " ".join(done.output.split())


def test_computed_variables_are_estimated_as_before(archive: Path, tmp_path: Path) -> None:
    """A look leaves them out, and reads nothing of what they are computed from."""
    with serve(archive) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, labels=[])
        export = Export.plan((ds / 2).astype("f4"), tmp_path / "a.zarr")
        known = sample(export.source)
        assert not server.requests
    assert export.estimate(known) == export.estimate()


def test_every_few_rows_from_a_server_of_one_range_at_a_time(wide_archive: Path, tmp_path: Path) -> None:
    """What lies between the rows is fetched along, and is in the estimate; columns may be in any order."""
    handler = hostile(LAN, 0, "refused")
    picks = {"y": slice(None, None, 5), "x": slice(3000, 200, -1)}
    with serve(wide_archive, handler) as server:
        ds = ld.open_human_liver_em(server.url, shape=WIDE, labels=[]).isel(picks)
        export = Export.plan(ds, tmp_path / "a.zarr")
        said = export.estimate(sample(export.source))
    with serve(wide_archive, handler) as server:
        ds = ld.open_human_liver_em(server.url, shape=WIDE, labels=[]).isel(picks)
        ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)
        assert server.bytes_sent == pytest.approx(said.fetched, rel=NEAR)
