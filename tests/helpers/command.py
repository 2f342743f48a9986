"""The command `liver-dask`, run in this process, because starting a process and importing the package takes seconds."""

import io
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest

from liver_dask import cli


def run_here(*args: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Run the command line and return its output and exit code. An exception without a handler is raised.

    The settings of malloc are left alone, because they would last as long as the process.
    """
    out, err = io.StringIO(), io.StringIO()
    words = [str(word) for word in args]
    with (
        chdir(cwd or "."),
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(cli, "share_memory"),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main(words, prog_name="liver-dask")
    return CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())
