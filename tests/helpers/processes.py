"""New processes without the seconds that starting Python and importing the package takes: forks of one that has."""

import json
import os
import subprocess
import sys
from pathlib import Path

FORKER = """
import json, os, sys, traceback
import numpy, xarray, liver_dask  # importing them starts no thread, so that a fork is as good as a new process
for line in sys.stdin:
    script, arguments, folder = json.loads(line)
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(sending, 1)
        os.chdir(folder)
        sys.argv = ["-c", *arguments]
        code = 1
        try:
            exec(script, {"__name__": "__main__"})
            sys.stdout.flush()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        printed = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([printed, code]), flush=True)
"""


class NewProcesses:
    """Runs scripts, each in a process of its own, in which the package has been imported and nothing been done."""

    def __init__(self) -> None:
        self._forker = subprocess.Popen(
            [sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, script: str, *arguments: object, cwd: Path | None = None) -> str:
        """Run a script with `sys.argv[1:]` as given. Return what it prints; fail if it raises an error or is killed."""
        asked = [script, [*map(str, arguments)], str(cwd or os.curdir)]
        self._forker.stdin.write(json.dumps(asked) + "\n")
        self._forker.stdin.flush()
        printed, code = json.loads(self._forker.stdout.readline())
        assert code == 0, printed
        return printed

    def close(self) -> None:
        """End the process that is forked."""
        self._forker.stdin.close()
        self._forker.wait(60)
        self._forker.stdout.close()
