"""What a look from outside has found: each test is of one fault that there was."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from conftest import SHAPE
from dask.graph_manipulation import bind, clone
from distributed import Client, LocalCluster
from PIL import Image

import liver_dask as ld
from liver_dask import volume
from liver_dask.demo import ArchiveServer, RangeRequestHandler, make_archive, serve
from liver_dask.threads import AbandonedError, while_wanted


def opened(url: str) -> xr.Dataset:
    return ld.open_human_liver_em(url, shape=SHAPE, chunk_rows=100, labels=["mito"])


def test_fewer_rows_of_a_mask_after_a_read_that_was_given_up(tmp_path: Path) -> None:
    """A slider that gave up a large window would get a bare ValueError for each smaller one, until all is read anew."""
    height, width = 200, 4001
    make_archive(tmp_path, (1, height, width))
    pixels = np.random.default_rng(0).integers(0, 2, (height, width), np.uint8) * 255
    Image.fromarray(pixels).save(tmp_path / volume.file_of_slice("er", 0))
    asked: list[str] = []

    class Noting(RangeRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    with serve(tmp_path, Noting) as server:
        er = ld.open_human_liver_em(server.url, shape=(1, height, width), labels="er").er[0].data.lazy
        with pytest.raises(AbandonedError), while_wanted(lambda: len(asked) < 2):
            er[0:height, :]
        for stop in (*range(60, 90, 3), height):
            np.testing.assert_array_equal(er[0:stop, :], pixels[:stop])


MANIPULATED: dict[str, Callable[[da.Array], da.Array]] = {
    "clone": lambda array: clone(array),
    "clone of what is made of it": lambda array: clone(array + 0),
    "bind to a part of itself": lambda array: bind(array, array[:1] + 1),
    "bind to something else": lambda array: bind(array[:, 50:], da.ones(3)),
    "bind without itself": lambda array: bind(array + 0, da.ones(3), omit=array),
}


@pytest.mark.parametrize("name", ["raw", "mito"])
@pytest.mark.parametrize("way", MANIPULATED)
def test_graphs_that_are_cloned_and_bound(
    server: ArchiveServer, voxels: dict[str, np.ndarray], way: str, name: str
) -> None:
    """`bind` and `clone` of a Dataset would end with "Missing dependency": the tasks look for the first window."""
    expected = voxels[name][:, 50:] if "else" in way else voxels[name]
    np.testing.assert_array_equal(MANIPULATED[way](opened(server.url)[name].data).compute(), expected)


def test_reads_that_block_an_event_loop_again_and_again(server: ArchiveServer, voxels: dict[str, np.ndarray]) -> None:
    """In an asynchronous program, or in a task that is `async`, the second or third look would last for ever.

    The scheduler's leave can be heard on the event loop alone, which waits for what is read.
    """

    async def look() -> list[np.ndarray]:
        found = []
        options: dict[str, Any] = {"processes": False, "dashboard_address": "127.0.0.1:0"}
        async with (
            LocalCluster(n_workers=1, asynchronous=True, **options) as cluster,
            Client(cluster, asynchronous=True),
        ):
            ds = opened(server.url)
            until = time.monotonic() + 60
            for z in range(4):
                with while_wanted(lambda: time.monotonic() < until):
                    found.append(ds.raw[z].compute(scheduler="threads").values)
                await asyncio.sleep(0)
        return found

    np.testing.assert_array_equal(asyncio.run(look()), voxels["raw"][:4])


def sum_of(array: xr.DataArray) -> int:
    return int(array.compute(scheduler="sync").sum())


def test_a_worker_whose_event_loop_read_goes_on(server: ArchiveServer, voxels: dict[str, np.ndarray], tmp_path) -> None:
    """`client.run(...)` reads on the workers' event loops; after it the scheduler would break with all of them.

    It would be told of connections before it has the part that understands it.
    """
    options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "local_directory": tmp_path}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        ids = client.run(int)
        found = client.run(sum_of, opened(server.url).raw[0])
        assert set(found.values()) == {int(voxels["raw"][0].sum())}
        time.sleep(2)
        assert client.run(int).keys() == ids.keys()
        assert client.submit(sum_of, opened(server.url).raw[1]).result(timeout=60) == int(voxels["raw"][1].sum())
