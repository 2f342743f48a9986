"""What a store says of itself, as zarr and xarray read it, too: told in a sentence, or harmless.

See `spoilt_store` for what an input is. Each takes as long as opening a store some times, so a few dozen a second.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr
from click.testing import CliRunner
from spoilt_store import Choices, attempt, check, made, spoilt, tiny, verify

from liver_dask import cli
from liver_dask.store.record import read_statistics

ALL = tuple(slice(0, length) for length in tiny.SHAPE)


def info(store: Path) -> None:
    """As somebody asks for it in a shell."""
    told = CliRunner().invoke(cli.main, ["info", str(store)])
    if told.exception and not isinstance(told.exception, SystemExit):
        raise told.exception
    assert "Traceback" not in told.output


def read_tables(store: Path) -> None:
    """As training does."""
    for statistic in ("nonzero", "mean", "std"):
        assert read_statistics(store, "raw", statistic).shape == (2, 3, 4)


READERS: list[Callable[[Path], Any]] = [
    *[read_tables] * 2,
    *[info] * 2,
    lambda store: verify(store, full=True),
    lambda store: verify(store, source=store.parent / "archive"),
    *[lambda store: verify(store, xr.Dataset())] * 2,
]


def one_input(data: bytes) -> None:
    """Change a store, read it, and change it back."""
    choices = Choices(data)
    read = READERS[choices.next(len(READERS))]
    with spoilt(made(("er",)), choices) as here:
        check(here, attempt(read, here.store), ALL)
