"""The scripts of docs/slurm.md do what the page says; where Slurm is installed, tests/real/test_slurm.py runs them."""

import os
import signal
import subprocess
import sys
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

GO_ON = 75

SCONTROL = '#!/bin/bash\necho "$*" >> "$CALLS"\n'

WAITS = """\
trap 'exit 75' TERM
echo ready
for i in {1..200}; do sleep 0.02; done
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripts, and commands of Slurm that accept everything and do nothing."""
    folder = copy_scripts(tmp_path / "here")
    for name in ("sbatch", "scontrol"):
        command = folder / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(SCONTROL)
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    return folder


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the handlers of the signals that the driver changes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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


class SlurmStandIn(LocalCluster):
    """A cluster in this process in place of that of dask_jobqueue; it keeps what it was given."""

    given: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, **given: Any) -> None:
        type(self).given = given
        super().__init__(n_workers=0, processes=False, threads_per_worker=1, dashboard_address=None)

    def job_script(self) -> str:
        return "#!/bin/bash\n"


class Terminates(RangeRequestHandler):
    """Sends SIGTERM to this process at a request, twice, as Slurm and the script may both do."""

    at = 12

    def send(self, *args: Any) -> None:
        if len(self.server.archive.requests) == self.at:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        super().send(*args)


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What download.py defines."""
    module = ModuleType("dask_jobqueue")
    module.SLURMCluster = SlurmStandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    names: dict[str, Any] = {"__name__": "download"}
    exec(compile((folder / "download.py").read_text(), "download.py", "exec"), names)
    return SimpleNamespace(**names)


@pytest.mark.usefixtures("handlers")
def test_the_driver_goes_on_after_a_signal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM ends the driver with the exit code for going on; the next start completes the store, as does a third."""
    make_archive(tmp_path / "archive", SHAPE)
    store = folder / "a.zarr"
    with serve(tmp_path / "archive", Terminates) as server:
        toml = describe(folder / "far.toml", server.url, SHAPE)
        with (
            mock.patch.dict(os.environ, settings(folder, toml, store) | {"SLURM_JOB_ACCOUNT": "mine"}),
            dask.config.set({"distributed.adaptive.interval": "20ms"}),
        ):
            download = driver(folder, monkeypatch)
            assert download.main() == GO_ON
            assert not store.exists()
            assert download.main() == 0
            fetched = len(server.requests)
            assert download.main() == 0
            assert len(server.requests) - fetched < fetched
    assert "all right" in capsys.readouterr().out
    assert (folder / "calls").read_text() == 3 * "--test-only\n"
    assert SlurmStandIn.given["account"] == "mine"
    assert SlurmStandIn.given["worker_extra_args"] == ["--lifetime", "540s", "--lifetime-stagger", "30s"]
    xr.testing.assert_equal(
        xr.open_zarr(store)[["raw", "er"]].compute(),
        ld.open_human_liver_em(tmp_path / "archive", shape=SHAPE, labels=["er"]).compute().drop_attrs(),
    )


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("error", "has_begun", "code"),
    [
        (ld.RemoteError("no answer"), True, GO_ON),
        (ld.RemoteError("no such host"), False, 1),
        (ld.SourceChangedError("another file"), True, 1),
        (ld.ExportError("given up"), True, 1),
    ],
)
def test_the_driver_goes_on_after_what_may_pass(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: ld.LiverDaskError,
    has_begun: bool,
    code: int,
) -> None:
    """Only if an archive that was reached does not answer any more is the job started again."""
    store = folder / "a.zarr"
    if has_begun:
        Path(f"{store}.partial").mkdir()
    monkeypatch.setattr(ld, "open_archive", mock.Mock(side_effect=error))
    with mock.patch.dict(os.environ, settings(folder, folder / "far.toml", store)):
        assert driver(folder, monkeypatch).main() == code
    assert capsys.readouterr().err == f"{error}\n"


@pytest.mark.usefixtures("handlers")
def test_the_driver_ends_if_slurm_refuses_its_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no worker can be submitted, the driver ends, instead of waiting for one."""
    (folder / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    with mock.patch.dict(os.environ, settings(folder, Path("EMPIAR-13356"), folder / "a.zarr")):
        assert driver(folder, monkeypatch).main() == 1
    assert not list(folder.glob("a.zarr*"))


def run_job(folder: Path, script: str, restarts: int = 0, send: signal.Signals | None = None) -> tuple[int, str, str]:
    """Run download.sbatch with a script in place of the driver.

    Returns:
        The exit code, the calls of scontrol, and what was printed.
    """
    (folder / "driver.sh").write_text(script)
    environment = settings(folder, folder / "far.toml", folder / "a.zarr") | {
        "LIVER_DRIVER": "bash driver.sh",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    job = subprocess.Popen(
        ["bash", "download.sbatch"],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert job.stdout is not None
    told = []
    with job, job.stdout:
        for line in job.stdout:
            told.append(line)
            if send and line == "ready\n":
                job.send_signal(send)
    calls = folder / "calls"
    return job.returncode, calls.read_text() if calls.exists() else "", "".join(told)


@pytest.mark.parametrize(
    ("exit_code", "restarts", "is_requeued", "of_job"),
    [(0, 0, False, 0), (1, 0, False, 1), (GO_ON, 0, True, 0), (GO_ON, 19, True, 0), (GO_ON, 20, False, GO_ON)],
)
def test_a_job_is_started_again_if_there_is_more_to_do(
    folder: Path, exit_code: int, restarts: int, is_requeued: bool, of_job: int
) -> None:
    """The script requeues its job after the exit code for going on, at most 20 times, and after no other."""
    code, calls, told = run_job(folder, f"exit {exit_code}", restarts)
    assert (code, calls) == (of_job, "requeue 7\n" if is_requeued else "")
    assert f"job 7, start {restarts + 1}: begins" in told


@pytest.mark.parametrize(("sent", "calls"), [(signal.SIGUSR1, "requeue 7\n"), (signal.SIGTERM, "")])
def test_signals_of_slurm_reach_the_driver(folder: Path, sent: signal.Signals, calls: str) -> None:
    """Near the time limit the driver is ended and the job requeued; a job that is cancelled is not."""
    code, called, told = run_job(folder, WAITS, send=sent)
    assert called == calls, told
    assert code == (0 if calls else GO_ON)
