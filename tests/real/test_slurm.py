"""A full volume written by jobs of a real Slurm, some of them cancelled: `pytest -m real -s tests/real/test_slurm.py`.

Needs root, Debian's `slurm-wlm` and `munge`, and `pip install dask-jobqueue`.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client

import liver_dask as ld
from helpers import slurm_node
from helpers.hostile import FarAway
from helpers.slurm_page import copy_scripts, describe, settings
from helpers.stores import slabs_of
from helpers.waiting import wait_until
from liver_dask.demo import ArchiveServer, make_archive, serve

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

SHAPE = (24, 1024, 1024)

LONGEST = 400
"""Seconds that any step may take on a machine that has other work."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue")
    if reason := slurm_node.missing():
        pytest.skip(reason)
    with slurm_node.slurm_node(tmp_path / "slurm") as environment:
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield environment


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    make_archive(folder, SHAPE)
    return folder


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the whole archive, written on threads of this process."""
    here = tmp_path_factory.mktemp("here")
    return Path(ld.get_human_liver_em_full_volume(here, download=True, source=archive, shape=SHAPE))


@pytest.fixture
def server(archive: Path) -> Iterator[ArchiveServer]:
    with serve(archive, type("FurtherAway", (FarAway,), {"seconds": 0.3})) as server:
        yield server


def assert_same_shards(store: Path, expected: Path) -> None:
    shards = list(expected.glob("*/c/*/*/*"))
    assert len(shards) >= 4
    for shard in shards:
        assert shard.read_bytes() == (store / shard.relative_to(expected)).read_bytes()


def cancel_one(slurm: dict[str, str], store: Path, told: list[str]) -> None:
    """Cancel a running job once five slabs are written."""
    while len(slabs_of(store)) < 5:
        time.sleep(0.05)
    job = slurm_node.jobs(slurm, "running")[0]
    slurm_node.cancel(job, slurm)
    told.append(f"job {job} cancelled when {len(slabs_of(store))} slabs were there")


def test_a_full_volume_as_jobs_of_which_one_is_cancelled(
    slurm: dict[str, str], server: ArchiveServer, expected: Path, tmp_path: Path
) -> None:
    """A full volume is complete although a job is cancelled, and its shards equal those of a local export."""
    from dask_jobqueue import SLURMCluster

    told: list[str] = []
    where = {"interface": "lo", "python": sys.executable}
    folders = {"local_directory": str(tmp_path / "spill"), "log_directory": str(tmp_path / "log")}
    quiet = {
        "worker_extra_args": ["--dashboard-address", "127.0.0.1:0"],
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
    }
    size = {"cores": 1, "processes": 1, "memory": "2GB", "walltime": "00:10:00"}
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        SLURMCluster(**size, **where, **folders, **quiet) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=2, maximum=2)
        client.wait_for_workers(2, timeout=60)
        store = tmp_path / "there" / "full_volume.zarr"
        killer = threading.Thread(target=cancel_one, args=(slurm, store, told))
        killer.start()
        began = time.monotonic()
        path = ld.get_human_liver_em_full_volume(
            tmp_path / "there", download=True, source=server.url, shape=SHAPE, client=client
        )
        told.append(f"complete after {time.monotonic() - began:.1f} s, {len(server.requests)} requests")
        killer.join()
        report = ld.verify(path, full=True, client=client)
    print("\n" + "\n".join([*told, str(report)]))
    assert report.ok
    assert "cancelled" in told[0]
    assert_same_shards(Path(path), expected)


@pytest.fixture
def scripts(slurm: dict[str, str], server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripts of .github/docs/slurm.md, with their settings in the environment."""
    folder = copy_scripts(tmp_path / "scripts")
    far = describe(folder / "far.toml", server.url, SHAPE)
    ours = settings(folder, far, folder / "a.zarr") | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SBATCH_ACCOUNT": "mine",
        "SBATCH_PARTITION": "main",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    return folder


def check_complete(store: Path, archive: Path, expected: Path) -> None:
    """Compare every shard with those of another way, and every voxel with the archive; the pyramid is there."""
    assert_same_shards(store, expected)
    report = ld.verify(store, source=archive, full=True, progress=False)
    assert report.ok, report
    assert (store / "pyramid").is_dir()
    assert not Path(f"{store}.partial").exists()


def test_the_scripts_of_the_page_go_on_after_the_time_limit(
    slurm: dict[str, str], scripts: Path, server: ArchiveServer, archive: Path, expected: Path
) -> None:
    """download.sbatch, warned as at its time limit, goes on in its next start, where a worker's job is cancelled."""
    store, began = scripts / "a.zarr", time.monotonic()
    job = slurm_node.submit(scripts / "download.sbatch", slurm)
    log = scripts / f"liver-download-{job}.log"
    told = []

    def tell(what: str) -> None:
        told.append(f"{time.monotonic() - began:5.1f} s: {what}, {len(slabs_of(store))} slabs")

    try:
        wait_until(lambda: len(slabs_of(store)) >= 2, LONGEST)
        tell("a signal to the driver")
        slurm_node.cancel(job, slurm, "--batch", "--signal=USR1")
        wait_until(lambda: "goes on in its next start" in log.read_text(), LONGEST)
        kept = set(slabs_of(store))
        tell("ended")
        wait_until(lambda: not slurm_node.jobs(slurm, name="liver-worker"), LONGEST)
        assert len(kept) >= 2
        wait_until(lambda: "start 2: begins" in log.read_text(), LONGEST)
        tell("started again")
        wait_until(
            lambda: len(slabs_of(store)) > len(kept) and slurm_node.jobs(slurm, "running", "liver-worker"), LONGEST
        )
        (cancelled, *_) = slurm_node.jobs(slurm, "running", "liver-worker")
        slurm_node.cancel(cancelled, slurm)
        tell(f"job {cancelled} of a worker cancelled")
        assert not store.exists()
        wait_until(lambda: "start 2: ends with exit code" in log.read_text(), LONGEST)
        tell("complete and verified")
        wait_until(lambda: not slurm_node.jobs(slurm), LONGEST)
        sent = len(server.requests)
        again = slurm_node.submit(scripts / "download.sbatch", slurm, "--output=again.log")
        wait_until(lambda: again not in slurm_node.jobs(slurm), LONGEST)
        tell(f"submitted once more, {len(server.requests) - sent} requests to verify it, after {sent}")
    finally:
        print("\n" + "\n".join([*told, log.read_text() if log.exists() else "no log"]))
    assert log.read_text().count(": begins") == 2
    assert "start 2: ends with exit code 0" in log.read_text()
    assert "ends with exit code 0" in (scripts / "again.log").read_text()
    check_complete(store, archive, expected)


def test_jobs_of_one_node_go_on_one_after_another(
    slurm: dict[str, str], scripts: Path, archive: Path, expected: Path
) -> None:
    """The second job of one-node.sbatch waits for the first, which is interrupted as at its time limit, and goes on."""
    store, began = scripts / "a.zarr", time.monotonic()
    size = ("--cpus-per-task=2", "--mem=4G", "--dependency=singleton")
    first, second = (slurm_node.submit(scripts / "one-node.sbatch", slurm, *size) for _ in range(2))
    logs = [scripts / f"liver-download-{job}.log" for job in (first, second)]
    try:
        wait_until(lambda: len(slabs_of(store)) >= 2, LONGEST)
        slurm_node.cancel(first, slurm, "--signal=INT")
        wait_until(lambda: not slurm_node.jobs(slurm), LONGEST)
    finally:
        text = [log.read_text() if log.exists() else "no log" for log in logs]
        print("\n" + "\n".join([f"{time.monotonic() - began:.1f} s", *text]))
    assert "Interrupted." in text[0]
    assert "is complete" in text[1]
    assert "all right" in text[1]
    check_complete(store, archive, expected)
