"""Twenty kills at random moments of a run of some hundred slabs: `pytest -m real -s tests/real/test_kills.py`.

Every other kill hits the whole run (driver, scheduler, workers), which is then started again; the others hit one
worker. The test prints how much is fetched again after each kill.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from helpers.hostile import FarAway
from helpers.stores import assert_same_files, slabs_of
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import ArchiveServer, make_archive, serve

pytestmark = [pytest.mark.real, pytest.mark.timeout(3000)]

SHAPE = (40, 1024, 1024)
CHUNKS, SHARDS = (8, 64, 64), (40, 64, 256)
SLABS = 4 * (SHAPE[0] // CHUNKS[0]) * (SHAPE[1] // CHUNKS[1])
KILLS = 20
DRIVER = f"""
import sys
import liver_dask as ld
from distributed import Client, LocalCluster
if __name__ == "__main__":
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    options["local_directory"] = sys.argv[2] + ".workers"
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        ds = ld.open_human_liver_em(sys.argv[1], shape={SHAPE})
        ld.to_zarr(ds, sys.argv[2], client=client, chunks={CHUNKS}, shards={SHARDS}, progress=False)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    make_archive(tmp_path / "archive", SHAPE)
    with serve(tmp_path / "archive", FarAway) as running:
        yield running


def begin(script: Path, server: ArchiveServer, store: Path) -> subprocess.Popen[bytes]:
    with store.with_name(store.name + ".log").open("ab") as log:
        command = [sys.executable, str(script), server.url, str(store)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen[bytes], store: Path) -> None:
    assert process.wait(300) == 0, store.with_name(store.name + ".log").read_text()[-3000:]


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait_for_slabs(process: subprocess.Popen[bytes], store: Path, count: int) -> int:
    """Wait until `count` slabs were written in all, and return how many of them are not merged yet."""
    seen: set[Path] = set()
    while len(seen) < count:
        there = set(slabs_of(store))
        seen |= there
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    return len(there)


def test_twenty_kills(server: ArchiveServer, tmp_path: Path) -> None:
    """After each kill the store has the same files, and less than a quarter of the bytes is fetched again."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    expected = tmp_path / "expected.zarr"
    finish(begin(script, server, expected), expected)
    once = server.bytes_sent
    chosen = random.Random(0)
    print(f"\nundisturbed: {SLABS} slabs of {once / 1e6:.1f} MB in {len(server.requests)} requests")
    for number in range(KILLS):
        server.requests.clear()
        store = tmp_path / f"{number}.zarr"
        process = begin(script, server, store)
        moment = chosen.randrange(1, SLABS)
        kept = wait_for_slabs(process, store, moment)
        whole = number % 2 == 0
        if whole:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert not store.exists()
            finish(begin(script, server, store), store)
        else:
            for worker in workers_of(process)[:1]:
                worker.kill()
            finish(process, store)
        again = server.bytes_sent - once
        victim = "all" if whole else "a worker"
        print(f"{number:2}: killed {victim} at slab {moment:3}, {kept:3} there, {again / 1e6:6.2f} MB again")
        assert again < 0.25 * once
        assert_same_chunks(expected, store)
        shutil.rmtree(store)


def assert_same_chunks(one: Path, other: Path) -> None:
    for name in ("raw", *EMPIAR_13356.labels):
        assert_same_files(one / name, other / name)
