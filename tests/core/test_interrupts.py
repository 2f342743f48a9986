"""Ctrl-C and cancelling end at once what waits for a silent source, and no interrupt is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from ast import literal_eval
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
import xarray as xr
from click.testing import CliRunner

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.talkers import listening
from helpers.waiting import wait_until
from liver_dask.archive.remote import source, watchdog
from liver_dask.archive.remote.http_transport import HttpTransport
from liver_dask.archive.remote.ranges import ByteRange
from liver_dask.archive.remote.source import Source
from liver_dask.cli import main
from liver_dask.core import threads
from liver_dask.core.threads import ContextPool, ReadCancelledError, cancel_unless
from liver_dask.demo import RangeRequestHandler, serve
from liver_dask.store import driver as export_run

SECONDS = 10
"""Far less than the time-out for a silent source, and far more than cancelling takes (0.2 s on an idle machine)."""

SCRIPT = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
import dask, xarray as xr
import liver_dask as ld
from liver_dask.archive.lazy import lazy_window as window
dask.config.set({"liver-dask.timeout": 60})
def tick():
    while True:
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGWINCH)
folder, shape, *calls = eval(sys.stdin.read())
children = {}
for number, (name, (call, url)) in enumerate(calls):
    child = os.fork()
    if not child:
        ds = ld.open_human_liver_em(url, shape=shape)
        plain = xr.open_dataset(url, engine="liver_dask", shape=shape)
        out = f"{folder}/{number}.zarr"
        exec(call)
        break
    children[child] = name
    print(child, flush=True)
else:
    while children:
        child, status = os.wait()
        print([children.pop(child), time.time(), os.waitstatus_to_exitcode(status)], flush=True)
"""
CALLS = {
    "a viewport": "ds.isel(z=0).compute()",
    "a large computation": "window.INTERACTIVE_BYTES = 0; ds.compute()",
    "threads as told": "ds.isel(z=0).compute(num_workers=3)",
    "a given pool": "ds.isel(z=0).compute(pool=ThreadPoolExecutor(3))",
    "a given pool of the other kind": "ds.isel(z=0).compute(pool=ThreadPool(3))",
    # It is dask itself that waits for changed voxels, without a limit, and an interrupt that comes just before it waits
    # may go unnoticed until the next signal of whatever kind.
    "changed voxels": "signal.signal(signal.SIGWINCH, lambda *_: None); "
    "threading.Thread(target=tick, daemon=True).start(); (ds.raw + 1).compute()",
    "without dask": "plain.raw[0].values",
    "a store": "ld.to_zarr(ds, out, progress=False)",
}


class Silent(RangeRequestHandler):
    """Sends nothing until the client closes the connection."""

    def do_GET(self) -> None:
        self._note(0, 0, -1)
        self.connection.settimeout(60)
        self.connection.recv(1)
        self.close_connection = True


@pytest.mark.slow
def test_ctrl_c_on_a_silent_source_ends_the_process_at_once(archive: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a process that waits for a silent server, whatever it computes, long before the time-out of 60 s."""
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(archive, Silent)) for _ in CALLS]
        calls = [(name, (call, server.url)) for (name, call), server in zip(CALLS.items(), servers, strict=True)]
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
            )
        )
        stack.callback(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
        process.stdin.write(repr((str(tmp_path), SHAPE, *calls)))
        process.stdin.close()
        process.stdin = None  # so that it is not closed again
        children = [int(process.stdout.readline()) for _ in CALLS]
        for server in servers:
            wait_until(lambda server=server: server.requests, 60)
        began = time.time()
        for child in children:
            os.kill(child, signal.SIGINT)
        printed, _ = process.communicate(timeout=6 * SECONDS)
    ends = {name: (round(ended - began, 2), code) for name, ended, code in map(literal_eval, printed.splitlines())}
    assert {name: code for name, (_, code) in ends.items()} == dict.fromkeys(CALLS, -signal.SIGINT)
    late = {name: seconds for name, (seconds, _) in ends.items() if seconds > 3 * SECONDS}
    assert not late, "half of the time-out is enough, although eight interpreters end at the same time"


@pytest.mark.parametrize(
    "read",
    [
        lambda url, _: ld.open_human_liver_em(url, shape=SHAPE).isel(z=0).compute(),
        lambda url, pool: ld.open_human_liver_em(url, shape=SHAPE).isel(z=0).compute(pool=pool),
        lambda url, _: xr.open_dataset(url, engine="liver_dask", shape=SHAPE).er[0].values,
    ],
    ids=["a viewport", "a given pool", "without dask"],
)
def test_an_interrupt_that_does_not_end_a_wait_is_noticed(archive: Path, read) -> None:
    """Ctrl-C ends a read although it does not wake the main thread.

    This is so if it comes when the main thread is about to wait, or if the system gives the signal to another thread,
    as here.
    """
    ended = threading.Event()

    def interrupt() -> None:
        wait_until(lambda: server.requests, 60)
        time.sleep(2 * threads.SECONDS_BETWEEN_CHECKS)  # until the main thread has nothing to do but to wait
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not ended.wait(SECONDS):  # without this, a failure would take minutes
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with serve(archive, Silent) as server, ThreadPoolExecutor(3) as pool:
            interrupting = threading.Thread(target=interrupt)
            interrupting.start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                read(server.url, pool)
            assert time.monotonic() - began < SECONDS
            ended.set()
            interrupting.join()
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def line(answer) -> Iterator[tuple[str, list[socket.socket]]]:
    """Run a server that calls `answer(connection)` for each connection; yields its address and its connections."""
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        connections.append(connection)
        answer(connection)

    with listening(serve) as address:
        try:
            yield address, connections
        finally:
            for connection in connections:
                connection.close()


def drip(start: bytes, byte: bytes):
    """Return an answer that sends `start`, and then `byte` every 50 ms without end."""

    def answer(connection: socket.socket) -> None:
        try:
            connection.recv(10_000)
            connection.sendall(start)
            while True:
                connection.sendall(byte)
                time.sleep(0.05)
        except OSError:
            pass

    return answer


DRIPS = {
    "nothing": lambda connection: connection.recv(10_000),
    "status": drip(b"", b"H"),
    "header": drip(b"HTTP/1.1 206 OK\r\nA: ", b"a"),
    "interim": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": drip(b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-99999/100000\r\nContent-Length: 100000\r\n\r\n", b"a"),
    "chunk": drip(
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-99999/100000\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"
    ),
    "trailer": drip(
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/100000\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: ",
        b"a",
    ),
    "redirect": drip(b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 100000\r\n\r\n", b"a"),
    "error": drip(b"HTTP/1.1 503 Busy\r\nContent-Length: 100000\r\n\r\n", b"a"),
}


def fetch(url: str, read_timeout: float) -> Exception | None:
    """The last error of two requests for a range, one after the other, over the only connection allowed."""
    asked = HttpTransport(Source(url, 1, read_timeout, 1))
    fault = None
    for _ in range(2):
        try:
            asked.get(f"{url}/a", [ByteRange(0, 100_000)], read_timeout, lambda *_: None)
        except Exception as error:
            fault = error
    return fault


@pytest.mark.parametrize(("scheme", "kind"), [*(("http", kind) for kind in DRIPS), ("https", "nothing")])
def test_no_answer_is_waited_for_longer_than_the_read_timeout(scheme: str, kind: str) -> None:
    """A request to a server that sends nothing, or a byte now and then, ends with a RemoteError after the time-out."""
    with line(DRIPS[kind]) as (address, _):
        began = time.monotonic()
        fault = fetch(f"{scheme}://{address}", 0.5)
        assert time.monotonic() - began < SECONDS
        assert isinstance(fault, ld.RemoteError), fault


@pytest.mark.parametrize(
    ("scheme", "kind"), [*(("http", kind) for kind in ("nothing", "header", "body", "chunk")), ("https", "nothing")]
)
def test_what_is_no_longer_wanted_is_given_up_though_nothing_comes(scheme: str, kind: str) -> None:
    """A request that is no longer wanted ends with a ReadCancelledError, even if the server sends nothing."""
    wanted = threading.Event()
    with line(DRIPS[kind]) as (address, connections), ContextPool(1) as pool:
        with cancel_unless(lambda: not wanted.is_set()):
            fetching = pool.submit(fetch, f"{scheme}://{address}", 60)
        wait_until(lambda: connections, 60)
        wanted.set()
        assert isinstance(fetching.result(timeout=SECONDS), ReadCancelledError)


def test_a_name_that_is_not_found_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name lookup without an answer ends at the time-out with a TransientError, or at once when cancelled."""
    looked, let_go = threading.Event(), threading.Event()

    def silent(*_: object, **__: object) -> list:
        looked.set()
        let_go.wait(60)
        raise socket.gaierror("late")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        assert isinstance(fetch("http://nowhere.invalid", 0.3), source.TransientError)
        with ContextPool(1) as pool:
            looked.clear()
            fetching = pool.submit(fetch, "http://nowhere.invalid", 60)
            assert looked.wait(SECONDS)
            pool.give_up()
            assert isinstance(fetching.result(timeout=SECONDS), ReadCancelledError)
    finally:
        let_go.set()


def test_who_waits_for_a_connection_is_given_up() -> None:
    """Requests that wait for the only connection end when they are cancelled, and open no other."""
    with line(DRIPS["nothing"]) as (address, connections), ContextPool(3) as pool:
        asked = HttpTransport(Source(f"http://{address}", 1, 60, 1))

        def ask() -> None:
            asked.get(f"http://{address}/a", [ByteRange(0, 9)], 60, lambda *_: None)

        asking = [pool.submit(ask) for _ in range(3)]
        wait_until(lambda: connections, 60)
        pool.give_up()
        for future in asking:
            assert future.cancelled() or isinstance(future.exception(timeout=SECONDS), ReadCancelledError)
        assert len(connections) == 1


def test_a_pause_between_two_tries_is_given_up() -> None:
    """A pause before a retry ends with a ReadCancelledError when its pool is given up."""
    with ContextPool(1) as pool:
        begun = threading.Event()

        def wait() -> None:
            begun.set()
            threads.pause(60)

        waiting = pool.submit(wait)
        assert begun.wait(SECONDS)
        pool.give_up()
        assert isinstance(waiting.exception(timeout=SECONDS), ReadCancelledError)


def test_only_what_was_given_up_ends(archive: Path, voxels) -> None:
    """A cancelled read ends, while another read from the same server goes on and gives the right voxels."""
    held = threading.Event()

    class Holds(RangeRequestHandler):
        def send(self, *args) -> None:
            held.wait(6 * SECONDS)  # so that only cancelling can end a read within SECONDS
            super().send(*args)

    with serve(archive, Holds) as server, ContextPool(2) as pool:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        kept = pool.submit(lambda: ds.er[1].values)
        with cancel_unless(lambda: False):
            given_up = pool.submit(lambda: ds.er[2].values)
        assert isinstance(given_up.exception(timeout=SECONDS), ReadCancelledError)
        held.set()
        assert (kept.result(timeout=SECONDS) == voxels["er"][1]).all()


def test_the_watchdog_ends_with_its_work_and_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanges one after another share one watchdog thread, which ends some time after the last of them."""
    monkeypatch.setattr(watchdog, "SECONDS_BETWEEN_CHECKS", 0.01)

    def watching() -> int:
        return sum(thread.name == "liver_dask-watchdog" for thread in threading.enumerate())

    wait_until(lambda: not watchdog._watchdog._is_running, 60)
    for _ in range(3):
        with watchdog.Watch():
            assert watching() == 1
    wait_until(lambda: not watching(), 60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_falls_into_a_callback_is_not_lost(archive: Path, tmp_path: Path, monkeypatch) -> None:
    """An interrupt in `__del__` stops a store with a KeyboardInterrupt and prints no error; the hooks are restored."""
    monkeypatch.setattr(sys, "unraisablehook", shown := Shown())
    interrupted = []
    really = export_run.Driver._take

    def take(driver, what, future) -> None:
        if not interrupted:
            interrupted.append(1)
            Dies()
        really(driver, what, future)

    monkeypatch.setattr(export_run.Driver, "_take", take)
    handler = signal.getsignal(signal.SIGINT)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with pytest.raises(KeyboardInterrupt):
        ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)
    assert not (tmp_path / "a.zarr").exists()
    assert not shown, "an interrupt that was taken note of is told as an error"
    assert signal.getsignal(signal.SIGINT) is handler
    assert sys.unraisablehook is shown
    ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)


class Dies:
    """Raises SIGINT when it is deleted."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Shown(list):
    """Collects the types of errors that Python can only print, not raise."""

    def __call__(self, told) -> None:
        self.append(told.exc_type)


def test_an_interrupt_is_left_to_who_handles_it(archive: Path, tmp_path: Path, monkeypatch) -> None:
    """A program's own handler of SIGINT is called, and the store goes on to its end."""
    heard: list[int] = []
    really = export_run.Driver._take

    def take(driver, what, future) -> None:
        signal.raise_signal(signal.SIGINT)
        really(driver, what, future)

    monkeypatch.setattr(export_run.Driver, "_take", take)
    previous = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        ds = ld.open_human_liver_em(archive, shape=SHAPE)
        assert Path(ld.to_zarr(ds, tmp_path / "a.zarr", progress=False)).exists()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert heard


def test_a_further_interrupt_at_the_end_shows_no_traceback() -> None:
    """A Ctrl-C while Python closes what a command has left, such as a cluster, ends the process at once, silently."""
    script = (
        "import atexit, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "from liver_dask.cli import main\n"
        "sys.argv = ['liver-dask', '--version']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert "version" in done.stdout


def test_an_interrupt_while_one_is_handled_keeps_what_was_said(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept, and how to go on, is told after a second Ctrl-C that comes while a cluster is closed, too."""

    def interrupted_twice(*_: object, **__: object) -> None:
        first = KeyboardInterrupt()
        first.add_note("3% of it is kept.")
        try:
            raise first
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr("liver_dask.cli.view", interrupted_twice)
    done = CliRunner().invoke(main, ["view", str(archive), "--shape", *map(str, SHAPE)])
    assert done.exit_code == 1
    assert "Error: Interrupted. 3% of it is kept.\n" in done.output
