"""A fixture: the folder for screenshots, which the environment variable LIVER_DASK_PICTURES may name."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("LIVER_DASK_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
