"""What a viewer gets of `ld.serve`, by plain HTTP and as many connections as a browser opens to one host."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product

import urllib3
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from ..processes import Task
from ..timed import Timed

CONNECTIONS_OF_A_BROWSER = 6

SCRIPT = """
import sys
import liver_dask as ld
with ld.serve(ld.open_human_liver_em({url!r}, shape={shape})) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def gateway(task: Task) -> Iterator[str]:
    """The gateway in a process of its own: its address."""
    command = [sys.executable, "-c", SCRIPT.format(url=task.url, shape=task.shape)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()


def timed_screen(task: Task) -> Timed:
    """Fetch the chunks of one slice that a screen shows. Decoding them is not in the time."""
    z, paths = task.settings["z"], task.settings["arrays"]
    window = [slice(*bounds) for bounds in task.settings["window"]]
    objects: dict[str, bytes] = {}
    with gateway(task) as url:
        http = urllib3.PoolManager(maxsize=CONNECTIONS_OF_A_BROWSER, block=True)

        def get(key: str) -> None:
            answer = http.request("GET", url + key, retries=False, timeout=300)
            if answer.status == 200:
                objects[key] = answer.data
            elif answer.status != 404:  # a chunk of zeros
                raise RuntimeError(f"{key}: status {answer.status}")

        began = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS_OF_A_BROWSER) as threads:
            list(threads.map(get, [f"{path}/zarr.json" for path in paths.values()]))
            keys = [key for path in paths.values() for key in chunk_keys(path, objects, z, window)]
            list(threads.map(get, keys))
        seconds = time.perf_counter() - began
    store = MemoryStore({key: default_buffer_prototype().buffer.from_bytes(data) for key, data in objects.items()})
    arrays = {name: zarr.open_array(store, path=path, mode="r")[z, *window] for name, path in paths.items()}
    return Timed(seconds, arrays, f"{len(keys)} chunks, {sum(map(len, objects.values())) / 1e6:.1f} MB to the viewer")


def chunk_keys(path: str, objects: dict[str, bytes], z: int, window: list[slice]) -> Iterator[str]:
    """The keys of the chunks that hold a part of a slice."""
    told = json.loads(objects[f"{path}/zarr.json"])
    _, *shape = told["shape"]
    deep, *chunk = told["chunk_grid"]["configuration"]["chunk_shape"]
    spans = []
    for bounds, length, side in zip(window, shape, chunk, strict=True):
        first, end, _ = bounds.indices(length)
        spans.append(range(first // side, -(-end // side)))
    for y, x in product(*spans):
        yield f"{path}/c/{z // deep}/{y}/{x}"
