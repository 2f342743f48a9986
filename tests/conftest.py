"""Fixtures: a small archive on disk, the same archive on a real HTTP server, and its voxels read independently.

`os.fsync` does not wait for the disk: no test survives a loss of power, a store makes hundreds of these calls, and
waiting for them was more than half of the time that it takes to write one. Tests that observe the calls wrap it.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tifffile
from PIL import Image

from helpers.archive import SHAPE
from helpers.lasting import EMPTIED
from helpers.object_storage import ObjectStorage, object_storage
from helpers.processes import NewProcesses
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import RAW
from liver_dask.core.places import Place
from liver_dask.demo import ArchiveServer, make_archive, serve

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for background jobs of a shell: tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

_fstat = os.fstat


def _fsync_without_waiting(descriptor: Any) -> None:
    _fstat(descriptor if isinstance(descriptor, int) else descriptor.fileno())  # an error if it is closed, as before


os.fsync = _fsync_without_waiting


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Reset everything that lasts as long as the process, so that every test starts as in a new process."""
    for empty in EMPTIED.values():
        empty()
    with mock.patch.dict(os.environ):  # `serve_slicer` and dask's nannies change it for their child processes
        yield


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic archive with the shape SHAPE."""
    folder = tmp_path_factory.mktemp("archive")
    make_archive(folder, SHAPE)
    return folder


@pytest.fixture
def server(archive: Path) -> Iterator[ArchiveServer]:
    """The archive over HTTP, with recorded requests, on a port that no other test uses."""
    with serve(archive) as running:
        yield running


@pytest.fixture(scope="session")
def running_s3() -> Iterator[ObjectStorage]:
    """S3 on this machine."""
    with object_storage() as running:
        yield running


@pytest.fixture
def s3(running_s3: ObjectStorage) -> Iterator[ObjectStorage]:
    """The same, with no requests recorded yet, and undisturbed."""
    running_s3.undisturbed()
    yield running_s3
    running_s3.undisturbed()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for stores: a folder, and one in object storage."""
    return tmp_path if request.param == "folder" else request.getfixturevalue("s3").folder()


@pytest.fixture(scope="session")
def new_processes() -> Iterator[NewProcesses]:
    """Runs scripts in processes of their own."""
    processes = NewProcesses()
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def voxels(archive: Path) -> dict[str, np.ndarray]:
    """All voxels (z, y, x) of every variable of the archive, read by tifffile and Pillow."""

    def read(name: str, z: int) -> np.ndarray:
        path = archive / EMPIAR_13356.path(name, z)
        return tifffile.imread(path) if name == RAW else np.asarray(Image.open(path))

    return {name: np.stack([read(name, z) for z in range(SHAPE[0])]) for name in (RAW, *EMPIAR_13356.labels)}
