"""The slicer in a browser: a voila server for this computer only, protected by a token.

Voila runs a notebook with one cell, so the browser shows the same widget as Jupyter, and no second viewer is needed.
Importing this module needs the extra `app`.
"""

import html
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import Any

from voila.app import Voila

ADDRESS = "127.0.0.1"
PYTHON = {"name": "python3", "display_name": "Python 3", "language": "python"}

IS_RUNNING = "is running at:"
"""What voila says before the address."""

OF_NO_CONCERN = ("is not trusted", "websocket_ping_timeout")
"""Warnings about a notebook that this package wrote itself, and about defaults of the server."""

KERNELS = "kernels"
"""Folder of the kernel's description, next to the notebook."""


class SlicerServer(Voila):
    """Voila with the defaults of Jupyter's own server: each request needs the token and a local Host header.

    Without the check of the Host header, any web page could let its own host name resolve to this computer, and send
    requests in the user's name (DNS rebinding).
    """

    def initialize(self, argv: list[str] | None = None) -> None:
        """Prepare the server; what it logs is for users who know nothing about servers."""
        super().initialize(argv)
        for log in (self.log, logging.getLogger("tornado.general")):
            log.addFilter(is_worth_logging)

    def init_settings(self) -> dict[str, Any]:
        """Return voila's settings, but accept only local hosts, and run the described kernel.

        Voila itself accepts any Host header.
        """
        settings: dict[str, Any] = super().init_settings()
        self.kernel_spec_manager.kernel_dirs.insert(0, str(Path(self.notebook_path).parent / KERNELS))
        return settings | {"allow_remote_access": False, "local_hostnames": ["localhost"]}

    @property
    def display_url(self) -> str:
        """URL of the page with the token. Only the user who started the server can read it."""
        return f"{self._url(self.ip)}?token={self.identity_provider.token}"

    def launch_browser(self) -> None:
        """Open the page in a browser.

        The URL is passed in a file that only the user can read, because all users of a computer can read command lines.
        """
        descriptor, path = tempfile.mkstemp(suffix=".html", dir=Path(self.notebook_path).parent)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f'<meta http-equiv="refresh" content="0; url={html.escape(self.display_url)}">')
        threading.Thread(target=webbrowser.open, args=(Path(path).as_uri(),), daemon=True).start()


def serve_notebook(cell: str, port: int, browser: bool) -> None:
    """Serve the output of a notebook cell until interrupted.

    Args:
        cell: Python code of the cell. It may contain a source with a password, so other users cannot read its file.
        port: Port of the server; any free port if 0.
        browser: Whether to open a browser.
    """
    notebook = {"cells": [_code_cell(cell)], "metadata": {"kernelspec": PYTHON}, "nbformat": 4, "nbformat_minor": 5}
    with tempfile.TemporaryDirectory(prefix="liver_dask-view-") as folder:  # only this user can enter it
        path = Path(folder, "liver_dask.ipynb")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(notebook, file)
        _write_kernel(path.parent / KERNELS)
        SlicerServer.launch_instance(options_of(path, port or _free_port(), secrets.token_hex(24), browser))


def options_of(notebook: Path, port: int, token: str, browser: bool) -> list[str]:
    """Return the command-line options of voila, which take precedence over a user's configuration."""
    return [
        str(notebook),
        f"--port={port}",
        f"--Voila.ip={ADDRESS}",
        f"--Voila.token={token}",
        "--VoilaConfiguration.strip_sources=True",
        "--VoilaConfiguration.show_tracebacks=False",
        "--Voila.log_format=%(message)s",
        *([] if browser else ["--no-browser"]),
    ]


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Return whether users need a message of the server, and say in plain words where the page is."""
    text = record.getMessage()
    if IS_RUNNING in text:
        record.msg, record.args = f"The slicer is at {text.split()[-1]} (press Ctrl-C to stop).", ()
        return True
    return record.levelno >= logging.WARNING and not any(known in text for known in OF_NO_CONCERN)


def _write_kernel(folder: Path) -> None:
    """Write the description of a kernel: this Python.

    The kernel logs no warnings, since it would warn that its connection is not encrypted. The connection does not leave
    this computer, and each message is signed with a key that only the user can read.
    """
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    (folder / PYTHON["name"]).mkdir(parents=True)
    kernel = {"argv": argv, "display_name": PYTHON["display_name"], "language": PYTHON["language"]}
    (folder / PYTHON["name"] / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((ADDRESS, 0))
        port: int = found.getsockname()[1]
        return port


def _code_cell(source: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": "slicer",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source,
    }
