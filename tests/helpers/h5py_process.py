"""Reads HDF5 datasets with h5py in a process of its own, because damaged files can crash it or keep it busy forever."""

import os
import select
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

SECONDS = 5
MEMORY = 6 << 30


class H5pyProcess:
    """A process that reads one file after the other, and is replaced when it dies.

    Attributes:
        deaths: How often it has died, or has been ended because it took too long.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.deaths = 0

    def read(self, data: bytes) -> np.ndarray | None:
        """Return the dataset `data` of a file, or None if h5py refuses it, or does not return."""
        if self._process is None:
            arguments = [sys.executable, str(Path(__file__))]
            environment = os.environ | {"HDF5_USE_FILE_LOCKING": "FALSE"}
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(struct.pack("<I", len(data)) + data)
            self._process.stdin.flush()
            if select.select([self._process.stdout], [], [], SECONDS)[0]:
                head = self._process.stdout.read(4)
                if len(head) == 4:
                    answer = self._process.stdout.read(*struct.unpack("<I", head))
                    return self._array(answer)
        except BrokenPipeError:
            pass
        self.deaths += 1
        self.close()
        return None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _array(self, answer: bytes) -> np.ndarray | None:
        if not answer:
            return None
        dtype, height, width, values = answer.split(b" ", 3)
        return np.frombuffer(values, dtype.decode()).reshape(int(height), int(width))


def main() -> None:
    """Read files from the standard input, each after its length, and write what they hold to the standard output."""
    import io
    import resource

    import h5py

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while head := sys.stdin.buffer.read(4):
        data = sys.stdin.buffer.read(*struct.unpack("<I", head))
        try:
            with h5py.File(io.BytesIO(data), "r") as file:
                values = file["data"][()]
            height, width = values.shape
            assert values.dtype.kind in "ui"
            answer = f"{values.dtype.str} {height} {width} ".encode() + values.tobytes()
        except Exception:  # h5py raises many kinds for a damaged file; each means that it refuses the file
            answer = b""
        sys.stdout.buffer.write(struct.pack("<I", len(answer)) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
