"""A real Slurm with one node on the loopback interface, for tests that run dask workers as batch jobs.

It needs root and Debian's packages `slurm-wlm` and `munge`. It has its own keys, sockets, logs, state and ports, so
that it does not interfere with a Slurm or munged that is already running. A test uses it like this:

    if reason := slurm_node.missing():
        pytest.skip(reason)
    with slurm_node.slurm_node(tmp_path) as environment:
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

COMMANDS = ("munged", "munge", "slurmctld", "slurmd", "sinfo", "sbatch", "squeue", "scancel")
CPUS = 4
"""This can be more than the machine has, so that the jobs of a test run in parallel even on two cores."""
MEGABYTES = 20_000
"""Enough for five jobs of 4 GB. Slurm uses it for scheduling, but neither allocates nor limits memory."""
START_SECONDS = 30
STOP_SECONDS = 20
LONGEST_FOLDER = 80
"""Maximum length of the folder's path. It contains the sockets of munged and of every job, and Linux limits the path of
a socket to 107 bytes."""

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""The configuration of Slurm. Jobs are tracked by process group, because with `linuxproc` the children of a job that
ignore SIGTERM would outlive it. A job that is requeued waits until credentials expire, by default for two minutes."""


def missing() -> str:
    """Return why no node can be started here, such as a missing command. Return an empty string if one can."""
    absent = [command for command in COMMANDS if not _find(command)]
    if absent:
        return f"Slurm is not installed here (Debian: slurm-wlm, munge): no {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "Slurm's daemons have to be started as root"


@contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """Run a Slurm with one node in a new or empty `folder`, and yield the environment that its commands need.

    At the end, cancel the remaining jobs and end the three daemons.
    """
    folder = folder.resolve()
    if len(str(folder)) > LONGEST_FOLDER:
        raise ValueError(f"{folder}: the path is too long for the sockets of a node; {LONGEST_FOLDER} bytes at most")
    environment = {"SLURM_CONF": str(_write_conf(folder))}
    with ExitStack() as running:
        munged = running.enter_context(_daemon(_munged_command(folder), folder, environment))
        _wait(lambda: (folder / "munge.socket").is_socket(), START_SECONDS, "munged opens no socket", folder, munged)
        controller = running.enter_context(_daemon(["slurmctld", "-D"], folder, environment))
        node = running.enter_context(_daemon(["slurmd", "-D"], folder, environment))
        _wait(lambda: _is_idle(environment), START_SECONDS, "the node does not become idle", folder, controller, node)
        running.callback(_end_jobs, folder, environment)
        yield environment


def jobs(environment: dict[str, str], state: str = "pending,running,completing", name: str = "") -> list[str]:
    """Return the ids of the jobs in these states, and of this name if one is given, the oldest first."""
    named = [f"--name={name}"] if name else []
    found = _ask("squeue", "--noheader", "--format=%A", f"--states={state}", *named, environment=environment)
    return sorted(found.split(), key=int)


def submit(script: Path, environment: dict[str, str], *options: str) -> str:
    """Submit a script from its folder, and return the id of its job."""
    where = f"--chdir={script.parent}"
    return _ask("sbatch", "--parsable", where, *options, str(script), environment=environment)


def cancel(job: str, environment: dict[str, str], *options: str) -> None:
    """Cancel a job, as the administrator of a queue may do at any time; or send a signal, with options of scancel."""
    _ask("scancel", *options, job, environment=environment)


def _find(command: str) -> str | None:
    """Return the path of a command. Daemons are in `sbin`, which is not in every user's PATH."""
    return shutil.which(command, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


def _ask(command: str, *arguments: str, environment: dict[str, str]) -> str:
    """Return the output of a Slurm command. Raise its error message, for example if slurmctld does not respond."""
    done = subprocess.run(
        [_find(command) or command, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout.strip()


def _is_idle(environment: dict[str, str]) -> bool:
    """Return whether the node accepts jobs. While the daemons are starting, the query may fail."""
    with suppress(RuntimeError):
        return _ask("sinfo", "--noheader", "--format=%T", environment=environment) == "idle"
    return False


def _write_conf(folder: Path) -> Path:
    """Write slurm.conf and munged's key, and create the folders for state and spool. Return the path of slurm.conf."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    controller_port, node_port = _free_ports()
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname().partition(".")[0],
            folder=folder,
            controller_port=controller_port,
            node_port=node_port,
            cpus=CPUS,
            megabytes=MEGABYTES,
        )
    )
    return conf


def _free_ports() -> tuple[int, int]:
    """Return two ports that are free."""
    with closing(socket.create_server(("127.0.0.1", 0))) as one, closing(socket.create_server(("127.0.0.1", 0))) as two:
        return one.getsockname()[1], two.getsockname()[1]


def _munged_command(folder: Path) -> list[str]:
    """Return the command of a munged with its own files in the folder.

    It needs `--force`, because the folder of a test may be accessible to its owner only.
    """
    files = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")}
    return ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files.values()]


@contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon in the foreground, in its own session so that Ctrl-C does not reach it. End it with the context."""
    with (folder / f"{command[0]}.out").open("wb") as out:
        process = subprocess.Popen(
            [_find(command[0]) or command[0], *command[1:]],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here: with SIGTERM first, then with SIGKILL."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_jobs(folder: Path, environment: dict[str, str]) -> None:
    """Cancel every job and wait until none is left. Otherwise slurmd would end and leave its jobs running."""
    _ask("scancel", "--user=root", environment=environment)
    _wait(lambda: not jobs(environment), STOP_SECONDS, "cancelled jobs do not end", folder)


def _wait(
    done: Callable[[], bool], seconds: float, failure: str, folder: Path, *needed: subprocess.Popen[bytes]
) -> None:
    """Wait until `done()` is true. After a timeout, or if a needed daemon has ended, raise the daemons' output."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until or any(process.poll() is not None for process in needed):
            raise RuntimeError(f"{failure}\n{_logs(folder)}")
        time.sleep(0.1)


def _logs(folder: Path) -> str:
    """Return the last lines of each daemon's output."""
    files = sorted(folder.glob("*.out"))
    return "\n".join(f"{file.stem}: {line}" for file in files for line in file.read_text().splitlines()[-10:])
