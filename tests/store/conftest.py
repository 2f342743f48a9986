"""Fixtures: a store of some kilobytes, and copies of it."""

import shutil
from pathlib import Path

import pytest

from helpers import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of the store, which the test may change."""
    return shutil.copytree(made, tmp_path / "a.zarr")
