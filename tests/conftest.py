"""Fixtures: a small archive on disk, the same on a real HTTP server, and independent readings of it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
from PIL import Image

from helpers.archive import SHAPE
from helpers.lasting import EMPTIED
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.core.kinds import RAW
from liver_dask.demo import ArchiveServer, make_archive, serve

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: tests press Ctrl-C themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Every test begins as a new process does."""
    for empty in EMPTIED.values():
        empty()
    with mock.patch.dict(os.environ):  # `serve_slicer` and dask's nannies change it, for the processes that they start
        yield


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up archive of SHAPE."""
    folder = tmp_path_factory.mktemp("archive")
    make_archive(folder, SHAPE)
    return folder


@pytest.fixture
def server(archive: Path) -> Iterator[ArchiveServer]:
    """The archive over HTTP, counting requests, on a port that no other test used."""
    with serve(archive) as running:
        yield running


@pytest.fixture(scope="session")
def voxels(archive: Path) -> dict[str, np.ndarray]:
    """Every variable of the archive, read whole by tifffile and Pillow."""

    def read(name: str, z: int) -> np.ndarray:
        path = archive / EMPIAR_13356.path(name, z)
        return tifffile.imread(path) if name == RAW else np.asarray(Image.open(path))

    return {name: np.stack([read(name, z) for z in range(SHAPE[0])]) for name in (RAW, *EMPIAR_13356.labels)}
