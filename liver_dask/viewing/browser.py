"""The slicer in a browser: a voila server that this machine alone sees, and of it who has the token.

Voila runs a notebook of one cell, so it is the same widget as in Jupyter, and no second viewer. Needs the extra `app`.
"""

import html
import json
import os
import secrets
import socket
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import Any

from voila.app import Voila

ADDRESS = "127.0.0.1"
PYTHON = {"name": "python3", "display_name": "Python 3", "language": "python"}


class SlicerServer(Voila):
    """Voila as Jupyter's own server is by default: each request needs the token, and a Host of this machine.

    Without the second, a page of anybody's could have its own name point to this machine, and ask in the user's name.
    """

    def init_settings(self) -> dict[str, Any]:
        """Voila allows any Host."""
        settings: dict[str, Any] = super().init_settings()
        return settings | {"allow_remote_access": False, "local_hostnames": ["localhost"]}

    @property
    def display_url(self) -> str:
        """With the token: who started the server reads it, and nobody else."""
        return f"{self._url(self.ip)}?token={self.identity_provider.token}"

    def launch_browser(self) -> None:
        """Open the page; by a file that the user alone can read, since all of this machine read command lines."""
        descriptor, path = tempfile.mkstemp(suffix=".html", dir=Path(self.notebook_path).parent)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f'<meta http-equiv="refresh" content="0; url={html.escape(self.display_url)}">')
        threading.Thread(target=webbrowser.open, args=(Path(path).as_uri(),), daemon=True).start()


def serve_notebook(cell: str, port: int, browser: bool) -> None:
    """Show what a cell shows, until it is interrupted.

    Args:
        cell: Python. It may name a source with a password, so no file of it is to be read by others.
        port: Of this machine; any that is free if 0.
        browser: Whether to open one.
    """
    notebook = {"cells": [_code_cell(cell)], "metadata": {"kernelspec": PYTHON}, "nbformat": 4, "nbformat_minor": 5}
    with tempfile.TemporaryDirectory(prefix="liver_dask-view-") as folder:  # which only this user can enter
        path = Path(folder, "liver_dask.ipynb")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(notebook, file)
        SlicerServer.launch_instance(options_of(path, port or _free_port(), secrets.token_hex(24), browser))


def options_of(notebook: Path, port: int, token: str, browser: bool) -> list[str]:
    """What voila is told, above all that a user's configuration says."""
    return [
        str(notebook),
        f"--port={port}",
        f"--Voila.ip={ADDRESS}",
        f"--Voila.token={token}",
        "--VoilaConfiguration.strip_sources=True",
        "--VoilaConfiguration.show_tracebacks=False",
        *([] if browser else ["--no-browser"]),
    ]


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
