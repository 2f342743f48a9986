"""The scripts of slurm.md do what the page says; where Slurm is installed, tests/real/test_slurm.py runs them."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import dask
import pytest
import xarray as xr
from distributed import LocalCluster

import liver_dask as ld
from helpers.slurm_page import NAMES, PAGE, copy_scripts, describe, scripts, settings
from helpers.tiny import SHAPE
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.demo import RangeRequestHandler, make_archive, serve
from liver_dask.store.estimate import PROCESS_BYTES
from liver_dask.store.plan import Export
from liver_dask.store.preflight import USABLE_SHARE

COMMAND = '#!/bin/bash\necho "${0##*/} $*" >> "$CALLS"\n'

REQUEUED = "scontrol requeue 7\n"

SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripts, and commands of Slurm that accept everything and do nothing."""
    folder = copy_scripts(tmp_path / "here")
    for name in ("sbatch", "scontrol", "python"):
        command = folder / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(COMMAND)
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return folder


def calls(folder: Path) -> str:
    """What was called of these commands, but for the look whether workers can be submitted."""
    path = folder / "calls"
    return path.read_text().replace("sbatch --test-only\n", "") if path.exists() else ""


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the handlers of the signals that the driver changes."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_scripts_are_valid(folder: Path) -> None:
    """The scripts can be parsed, and what they write by default is the tissue."""
    for name in NAMES:
        if name.endswith(".py"):
            compile((folder / name).read_text(), name, "exec")
        else:
            subprocess.run(["bash", "-n", folder / name], check=True)
    box = " ".join(map(str, EMPIAR_13356.full_box))
    assert f'"${{LIVER_BOX-{box}}}"' in scripts()["download.sbatch"]
    assert scripts()["download.sbatch"].count(f"LIVER_ARCHIVE:-{EMPIAR_13356.name}") == 1
    assert all(f"{name}`" in PAGE.read_text() or f"### {name}" in PAGE.read_text() for name in NAMES)


def test_what_to_expect_is_what_the_plan_says() -> None:
    """The figures of the full volume on the page are those of its plan."""
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), flags=re.MULTILINE))
    export = Export.plan(ld.open_human_liver_em(), "full_volume.zarr", EMPIAR_13356.full_box)
    cost, layout = export.estimate(), export.store.layout
    hours = [f"{hours:.0f}" if hours > 10 else f"{hours:.1f}" for hours in cost.hours.values()]
    times = [f"{of} hours at {rate / 1e6:g} MB/s" for of, rate in zip(hours, cost.hours, strict=True)]
    assert rows["to fetch"] == f"{cost.fetched / 1e9:.0f} GB; {', '.join(times)}"
    disk = f"{cost.stored / 1e9:.0f} GB, and {(cost.disk - cost.stored) / 1e9:.0f} GB on the way"
    assert rows["on disk"] == f"{disk}; with the smaller copies, a third more"
    assert export.pyramid_bytes() == pytest.approx(cost.stored / 3, rel=0.01)
    process, thread = PROCESS_BYTES / 1e9, cost.memory / 1e9
    assert rows["memory of a worker"].startswith(f"{process:.1f} GB, and {thread:.1f} GB for each thread")
    assert f"{(process + thread) / USABLE_SHARE:.1f} GB at least" in rows["memory of a worker"]
    assert f"{layout.chunks[0]} slices x {layout.row_block} rows" in rows["lost when a worker is lost"]
    shards = sum(len(layout.shards_of(row)) for row in layout.shard_rows(export.store.names))
    assert shards == pytest.approx(1000, rel=0.1)


class SlurmStandIn(LocalCluster):
    """A cluster in this process in place of that of dask_jobqueue; it keeps what it was given."""

    given: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, **given: Any) -> None:
        type(self).given = given
        super().__init__(n_workers=0, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0")

    def job_script(self) -> str:
        return "#!/bin/bash\n"


class Warns(RangeRequestHandler):
    """Sends SIGUSR1 to this process at a request, twice."""

    at = 12

    def send(self, *args: Any) -> None:
        if len(self.server.archive.requests) == self.at:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)
        super().send(*args)


class FallsSilent(Warns):
    """Sends these signals, and then no further answer."""

    over = threading.Event()

    @classmethod
    def close(cls, cluster: LocalCluster, *error: Any) -> None:
        """Close the cluster. Its workers, which are threads here, end after their requests."""
        cls.over.set()
        LocalCluster.__exit__(cluster, *error)

    def send(self, *args: Any) -> None:
        if len(self.server.archive.requests) > self.at:
            self.over.wait(60)
        super().send(*args)


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What download.py defines."""
    module = ModuleType("dask_jobqueue")
    module.SLURMCluster = SlurmStandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    signal.signal(signal.SIGINT, lambda *_: sys.exit())  # as the import of dask_jobqueue 0.9 does
    names: dict[str, Any] = {"__name__": "download"}
    exec(compile((folder / "download.py").read_text(), "download.py", "exec"), names)
    return SimpleNamespace(**names)


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, archive: Path, restarts: int = 0) -> int:
    """Run download.py as a start of the job, and return its exit code."""
    changed = settings(folder, archive, folder / "a.zarr") | {"LIVER_RESTARTS": "20"}
    if restarts:
        changed["SLURM_RESTART_COUNT"] = str(restarts)
    with mock.patch.dict(os.environ, changed):
        return int(driver(folder, monkeypatch).main())


def test_the_script_hands_its_settings_to_the_driver(folder: Path) -> None:
    """The script becomes the driver, which has a value for each setting that it reads."""
    (folder / "bin" / "python").write_text('#!/bin/bash\necho "$$ $*"; env\n')
    with mock.patch.dict(os.environ, {"LIVER_BOX": "1 2 3 4 5 6", "USER": "me"}):
        job = subprocess.Popen(["bash", "download.sbatch"], cwd=folder, stdout=subprocess.PIPE, text=True)
        told = job.communicate()[0].splitlines()
    assert told[0] == f"{job.pid} -u download.py"
    given = dict(line.split("=", 1) for line in told[1:] if "=" in line)
    assert given["LIVER_STORE"] == "/scratch/me/liver/full_volume.zarr"
    assert given["LIVER_BOX"] == "1 2 3 4 5 6"
    assert (folder / "logs").is_dir()
    assert set(re.findall(r'environ\["(LIVER_\w+)', scripts()["download.py"])) <= set(given)


@pytest.mark.usefixtures("handlers")
def test_the_driver_goes_on_after_a_signal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Near its time limit a job is requeued; and its next start completes the store."""
    make_archive(tmp_path / "archive", SHAPE)
    monkeypatch.setenv("SLURM_JOB_ACCOUNT", "mine")
    with (
        serve(tmp_path / "archive", Warns) as server,
        dask.config.set({"distributed.adaptive.interval": "20ms"}),
    ):
        toml = describe(folder / "far.toml", server.url, SHAPE)
        assert start(folder, monkeypatch, toml) == 0
        assert calls(folder) == REQUEUED
        assert "the time limit is near. " in capsys.readouterr().out
        assert not (folder / "a.zarr").exists()
        assert start(folder, monkeypatch, toml, restarts=1) == 0
    assert calls(folder) == REQUEUED
    assert capsys.readouterr().out.count("all right") == 1
    assert SlurmStandIn.given["account"] == "mine"
    assert SlurmStandIn.given["worker_extra_args"] == ["--lifetime", "540s", "--lifetime-stagger", "30s"]
    xr.testing.assert_equal(
        xr.open_zarr(folder / "a.zarr")[["raw", "er"]].compute(),
        ld.open_human_liver_em(tmp_path / "archive", shape=SHAPE, labels=["er"]).compute(),
    )


@pytest.mark.usefixtures("handlers")
def test_the_driver_waits_for_what_is_under_way_only_for_a_while(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although the archive does not answer, the driver ends, and is requeued, before Slurm kills it."""
    make_archive(tmp_path / "archive", SHAPE)
    with (
        serve(tmp_path / "archive", FallsSilent) as server,
        dask.config.set({"distributed.adaptive.interval": "20ms", "liver-dask.timeout": 30}),
        mock.patch.dict(
            os.environ, settings(folder, folder / "far.toml", folder / "a.zarr") | {"LIVER_RESTARTS": "20"}
        ),
    ):
        describe(folder / "far.toml", server.url, SHAPE)
        monkeypatch.setattr(SlurmStandIn, "__exit__", lambda *of: FallsSilent.close(*of))
        of = driver(folder, monkeypatch)
        assert of.SECONDS == {signal.SIGUSR1: 120, signal.SIGTERM: 10}
        of.SECONDS[signal.SIGUSR1] = 1
        began = time.monotonic()
        assert of.main() == 0
        assert time.monotonic() - began < 25  # before any request is given up
    assert calls(folder) == REQUEUED
    assert "the time limit is near. " in capsys.readouterr().out


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("sent", "is_requeued"),
    [([signal.SIGUSR1], True), ([signal.SIGTERM], False), ([signal.SIGUSR1, signal.SIGTERM], False)],
)
def test_a_job_that_is_cancelled_is_not_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sent: list[signal.Signals], is_requeued: bool
) -> None:
    """`scancel` ends the job for good, also while it ends near its time limit."""

    def signalled(archive: str) -> None:
        first, *others = sent
        try:
            os.kill(os.getpid(), first)
            time.sleep(20)
        finally:
            for number in others:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(ld, "open_archive", signalled)
    assert start(folder, monkeypatch, folder / "far.toml") == (0 if is_requeued else 1)
    assert calls(folder) == (REQUEUED if is_requeued else "")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("error", "has_begun", "restarts", "is_requeued"),
    [
        (ld.RemoteError("no answer"), True, 19, True),
        (ld.RemoteError("no answer"), True, 20, False),
        (ld.RemoteError("no such host"), False, 0, False),
        (ld.SourceChangedError("another file"), True, 0, False),
        (ld.ExportError("given up"), True, 0, False),
    ],
)
def test_a_job_is_started_again_after_what_may_pass(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: ld.LiverDaskError,
    has_begun: bool,
    restarts: int,
    is_requeued: bool,
) -> None:
    """Of all errors, only that an archive that was reached does not answer requeues the job, at most 20 times."""
    if has_begun:
        (folder / "a.zarr.partial").mkdir()
    monkeypatch.setattr(ld, "open_archive", mock.Mock(side_effect=error))
    assert start(folder, monkeypatch, folder / "far.toml", restarts) == (0 if is_requeued else 1)
    assert calls(folder) == (REQUEUED if is_requeued else "")
    assert f"job 7, start {restarts + 1}: {error}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("handlers")
def test_the_driver_ends_if_slurm_refuses_its_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no worker can be submitted, the driver ends, instead of waiting for one."""
    (folder / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    monkeypatch.setattr(ld, "to_zarr", mock.Mock(side_effect=AssertionError))
    assert start(folder, monkeypatch, Path("EMPIAR-13356")) == 1
    assert "Slurm refuses the jobs of the workers" in capsys.readouterr().out
    assert not list(folder.glob("a.zarr*"))
