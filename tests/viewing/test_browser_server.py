"""`liver-dask view` serves the volume, and the kernel behind it, only to the user who started it. Needs `app`."""

import http.client
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from helpers.archive import SHAPE

browser = pytest.importorskip("liver_dask.viewing.browser", reason="needs the extra `app` (voila)")

KERNEL = re.compile(r'"kernelId": ?"([0-9a-f-]{36})"')


class Server:
    """A running `liver-dask view`, with methods that send requests to it."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path, log: list[str]) -> None:
        self.process, self.url, self.folder, self.log = process, url, folder, log
        parts = urlsplit(url)
        self.host, self.port, self.query = parts.hostname, parts.port, parts.query
        self.token = self.query.removeprefix("token=")

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        body = "" if answer.status == 101 else answer.read().decode(errors="replace")
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    def upgrade(self, path: str, **headers: str) -> int:
        """The status of a request for a websocket."""
        wanted = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
        return self.ask(path, Sec_WebSocket_Key="x3JJHMbDL1EzLkh9GBhXDw==", **wanted, **headers)[0]


LAX = {"Voila": {"ip": "0.0.0.0", "token": "", "port": 8866}, "VoilaConfiguration": {"strip_sources": False}}
"""A user's configuration that would open the server to everyone, if it had a say."""


@pytest.fixture(scope="module")
def server(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("view")
    given = ["view", str(archive), "--shape", *map(str, SHAPE), "--no-browser", "--port", "0"]
    (folder / "config").mkdir()
    (folder / "config" / "voila.json").write_text(json.dumps(LAX))
    environment = os.environ | {"TMPDIR": str(folder), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    process = subprocess.Popen(
        [sys.executable, "-c", "from liver_dask.cli import main; main()", *given],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    log: list[str] = []
    for line in process.stderr:
        log.append(line)
        found = re.search(r"http://\S+:\d+/\?token=[0-9a-f]*", line)
        if found:
            break
    assert found, "no address was printed"
    threading.Thread(target=log.extend, args=(process.stderr,), daemon=True).start()  # else a full pipe blocks it
    yield Server(process, found[0], folder, log)
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def kernel(server: Server) -> tuple[str, str]:
    """The kernel that the page with its token started, and the cookie that came with it."""
    status, headers, body = server.ask(f"/?{server.query}")
    assert status == 200
    assert KERNEL.search(body), body[:2000]
    return KERNEL.search(body)[1], headers["Set-Cookie"].split(";")[0]


PATHS = ["/", "/voila/files/liver_dask.ipynb", "/api/kernels/{}", "/voila/api/shutdown/{}", "/api/contents"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_with_the_token_there_is_a_page_and_its_kernel(server: Server, kernel: tuple[str, str]) -> None:
    """With the token the page, its kernel and the websocket are served, and the page does not show the code."""
    number, cookie = kernel
    status, _, body = server.ask(f"/api/kernels/{number}", Cookie=cookie)
    assert status == 200
    assert json.loads(body)["id"] == number
    assert server.upgrade(f"/api/kernels/{number}/channels", Cookie=cookie) == 101
    assert "open_target" not in server.ask("/", Cookie=cookie)[2]


@pytest.mark.timeout(300)
def test_it_says_that_it_starts_and_does_not_alarm(server: Server, kernel: tuple[str, str]) -> None:
    """The first line says that the server starts, and the notebook and its kernel are not called unsafe."""
    number, cookie = kernel
    assert json.loads(server.ask(f"/api/kernels/{number}", Cookie=cookie)[2])["id"] == number
    log = "".join(server.log)
    assert log.startswith("Starting; ")
    assert log.splitlines()[1] == f"The slicer is at {server.url} (press Ctrl-C to stop)."
    assert not re.search("kernel|static|voil|websocket|trusted|eavesdropping", log, re.IGNORECASE), (
        "it speaks of servers"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("token", ["", "token=", "token=" + 48 * "0"])
def test_without_the_token_there_is_nothing(server: Server, kernel: tuple[str, str], token: str) -> None:
    """Without the token every request is refused or sent to the login, and the kernel keeps running."""
    number, _ = kernel
    for path, method in product(PATHS, ("GET", "POST", "DELETE")):
        asked = path.format(number)
        status, headers, body = server.ask(f"{asked}?{token}", method)
        assert status in (302, 403, 404, 405), (method, asked)
        assert status != 302 or headers["Location"].startswith("/login")
        assert "open_target" not in body
    assert server.upgrade(f"/api/kernels/{number}/channels?{token}") == 403
    assert server.ask(f"/api/kernels/{number}", Authorization=f"token {server.token}")[0] == 200, "it was shut down"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("host", ["example.org", "example.org:{}", "localhost.example.org", "10.0.0.1"])
def test_under_a_foreign_name_there_is_nothing(server: Server, kernel: tuple[str, str], host: str) -> None:
    """A request with a foreign Host or Origin is refused, even with the token and the cookie."""
    number, cookie = kernel
    host = host.format(server.port)
    for path in ("/", f"/api/kernels/{number}"):
        assert server.ask(f"{path}?{server.query}", Host=host, Cookie=cookie)[0] == 403
    assert server.upgrade(f"/api/kernels/{number}/channels", Host=host, Cookie=cookie) == 403
    foreign = {"Origin": "http://example.org", "Cookie": cookie}
    assert server.upgrade(f"/api/kernels/{number}/channels", **foreign) == 403
    allowed = {"Host": f"localhost:{server.port}", "Authorization": f"token {server.token}"}
    assert server.ask(f"/api/kernels/{number}", **allowed)[0] == 200


def test_what_it_writes_is_for_the_user_alone(server: Server, kernel: tuple[str, str]) -> None:
    """Only the user can read the notebook and its folders, and no command line contains the token."""
    notebook = next(server.folder.glob("liver_dask-view-*/liver_dask.ipynb"))
    assert stat.S_IMODE(notebook.stat().st_mode) == 0o600
    for folder in server.folder.iterdir():
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0 or folder.name == "config"
    (described,) = server.folder.glob("liver_dask-view-*/kernels/python3/kernel.json")
    assert json.loads(described.read_text())["argv"][0] == sys.executable
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_readable(path)]
    assert not any(server.token.encode() in line for line in lines)


def _is_readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def test_it_listens_on_this_machine_alone_whatever_a_user_has_configured(
    server: Server, kernel: tuple[str, str]
) -> None:
    """The server and its kernel listen on 127.0.0.1 only, though the user's configuration has another address."""
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children(recursive=True)]
    listening = [
        connection.laddr
        for one in processes
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert server.port in {address.port for address in listening}
    assert len(listening) > 1, "the kernel listens, too"
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_browser_is_opened_only_if_that_is_wanted() -> None:
    """The options of the server include `--no-browser` unless a browser is wanted."""
    assert "--no-browser" in browser.options_of(Path("a.ipynb"), 8866, "secret", False)
    assert "--no-browser" not in browser.options_of(Path("a.ipynb"), 8866, "secret", True)


def test_the_browser_gets_the_token_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser is given a file that only the user can read, and not the address with the token."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    server = browser.SlicerServer.__new__(browser.SlicerServer)
    monkeypatch.setattr(browser.SlicerServer, "display_url", "http://127.0.0.1:1/?token=secret", raising=False)
    server.notebook_path = str(tmp_path / "liver_dask.ipynb")
    server.launch_browser()
    until = time.monotonic() + 30
    while not opened:
        assert time.monotonic() < until
        time.sleep(0.01)
    (page,) = tmp_path.iterdir()
    assert opened == [page.as_uri()]
    assert "secret" not in opened[0]
    assert "token=secret" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
