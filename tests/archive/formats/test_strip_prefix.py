"""The share of a strip that holds the first columns is learned once, before many slices are read by it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import liver_dask as ld
from helpers.archive import strip_bytes, write_raw
from helpers.hostile import LAN, MultiRange, hostile
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import tiff
from liver_dask.archive.formats.strip_prefix import PrefixShares
from liver_dask.core.kinds import RAW
from liver_dask.core.threads import ReadCancelledError, cancel_unless
from liver_dask.demo import serve

SLICES, ROWS, WIDTH, X_STOP = 8, 320, 2400, 800
SHARE = 0.5
"""Share of a strip up to X_STOP: the right third of a row is empty, so that a share of a third is guessed."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw slices whose strips lack bytes if every column is taken for equally long."""
    folder, rng = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    pixels = rng.integers(0, 4096, (ROWS, WIDTH)).astype(np.uint16)
    pixels[:, 2 * X_STOP :] = 0
    for z in range(SLICES):
        path = folder / EMPIAR_13356.path(RAW, z)
        path.parent.mkdir(exist_ok=True)
        write_raw(path, np.roll(pixels, z, axis=0))
    return folder


@pytest.mark.parametrize(("kind", "pieces", "share"), [("answered", 2, SHARE), ("refused", 1, 1)])
@pytest.mark.parametrize("slices", [1, 8])
def test_nothing_is_fetched_twice(
    uneven: Path, tmp_path: Path, kind: MultiRange, pieces: int, share: float, slices: int
) -> None:
    """Of a slice, its index and its strips are fetched; and once, a few strips to learn the share from.

    A source of one range at a time sends whole strips, with what is between the columns.
    """
    with serve(uneven, hostile(LAN, 0, kind)) as server:
        ds = ld.open_human_liver_em(server.url, shape=(SLICES, ROWS, WIDTH), labels=[])
        box = (100, X_STOP, 0, ROWS, 0, slices)
        ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=box, chunks=(8, 64, 64), progress=False)
    strips = sum(strip_bytes(uneven, z, range(ROWS)) for z in range(slices))
    learning = strips / slices / 16
    index = slices * (8 * ROWS + 1024)
    assert server.bytes_sent <= 1.1 * share * strips + learning + index
    short = 2 if kind == "answered" else 0  # one strip in hundreds may still lack bytes
    assert len(server.requests) <= 1 + slices * (2 + pieces) + short


def test_a_viewport_waits_for_no_share(uneven: Path, monkeypatch) -> None:
    """It takes the requests that it took: nothing is asked ahead for a few rows, or for a user who waits."""
    monkeypatch.setattr(tiff.prefix_shares, "learning", None)
    with serve(uneven) as server:
        ds = ld.open_human_liver_em(server.url, shape=(SLICES, ROWS, WIDTH), labels=[])
        ds.raw[0, :, 100:X_STOP].compute()


def test_one_thread_learns_and_the_others_wait() -> None:
    """Until the share is known; then none of them learns it again."""
    shares, learned, begun = PrefixShares(), [], threading.Barrier(8)

    def learn(number: int) -> None:
        begun.wait(10)
        with shares.learning("a", 1000, 300) as is_unknown:
            if is_unknown:
                learned.append(number)
                shares.learn("a", 1000, 300, 0.4)
            assert shares.knows("a", 1000, 300)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(learn, range(8)))
    assert len(learned) == 1
    assert shares.knows("a", 1000, 300)
    assert not shares.knows("a", 1000, 500)
    assert not shares.knows("b", 1000, 300)
    shares.learn("a", 1000, 350, 0.5)
    assert shares.knows("a", 1000, 320), "it is told from both sides"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_next_one_learns(error: type[BaseException]) -> None:
    """A thread that fails or is interrupted leaves its turn to the next."""
    shares = PrefixShares()
    with pytest.raises(error), shares.learning("a", 1000, 300):
        raise error
    with shares.learning("a", 1000, 300) as is_unknown:
        assert is_unknown


def test_a_read_that_is_cancelled_does_not_wait() -> None:
    """Nor does one of a fork, where the thread that learns does not exist."""
    shares = PrefixShares()
    with shares.learning("a", 1000, 300), ThreadPoolExecutor(1) as pool:

        def wait() -> None:
            with cancel_unless(lambda: False), shares.learning("a", 1000, 300):
                pass

        with pytest.raises(ReadCancelledError):
            pool.submit(wait).result(10)
        shares._forget_turns()
        with shares.learning("a", 1000, 300) as is_unknown:
            assert is_unknown
