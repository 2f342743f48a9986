"""A full volume written by jobs of a real Slurm, one of them cancelled: `pytest -m real -s tests/real/test_slurm.py`.

Needs root, Debian's `slurm-wlm` and `munge`, and `pip install dask-jobqueue`.
"""

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
from helpers.stores import slabs_of
from liver_dask.demo import make_archive, serve

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

SHAPE = (24, 1024, 1024)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue")
    if reason := slurm_node.missing():
        pytest.skip(reason)
    with slurm_node.slurm_node(tmp_path / "slurm") as environment:
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield environment


def cancel_one(slurm: dict[str, str], store: Path, told: list[str]) -> None:
    """Cancel a running job once five slabs are written."""
    while len(slabs_of(store)) < 5:
        time.sleep(0.05)
    job = slurm_node.jobs(slurm, "running")[0]
    slurm_node.cancel(job, slurm)
    told.append(f"job {job} cancelled when {len(slabs_of(store))} slabs were there")


def test_a_full_volume_as_jobs_of_which_one_is_cancelled(slurm: dict[str, str], tmp_path: Path) -> None:
    """A full volume is complete although a job is cancelled, and its shards equal those of a local export."""
    from dask_jobqueue import SLURMCluster

    make_archive(tmp_path / "archive", SHAPE)
    expected = ld.get_human_liver_em_full_volume(
        tmp_path / "here", download=True, source=tmp_path / "archive", shape=SHAPE
    )
    told: list[str] = []
    where = {"interface": "lo", "python": sys.executable}
    folders = {"local_directory": str(tmp_path / "spill"), "log_directory": str(tmp_path / "log")}
    quiet = {
        "worker_extra_args": ["--dashboard-address", "127.0.0.1:0"],
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
    }
    size = {"cores": 1, "processes": 1, "memory": "2GB", "walltime": "00:10:00"}
    with (
        serve(tmp_path / "archive", type("FurtherAway", (FarAway,), {"seconds": 0.3})) as server,
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
    for shard in Path(expected).glob("*/c/*/*/*"):
        assert shard.read_bytes() == (Path(path) / shard.relative_to(expected)).read_bytes()
