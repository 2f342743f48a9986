"""The cache of decoded chunks: its limit, its order, threads and forks."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.reads import note_decoded
from liver_dask.store.array import StoredArray
from liver_dask.store.chunk_cache import OF_EMPTY, ChunkCache


def chunk(number: int) -> np.ndarray | None:
    """Chunk 0, 5, 10 ... are empty; the others have 100 bytes each."""
    return np.full(100, number, np.uint8) if number % 5 else None


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(0, 5 * (100 + OF_EMPTY)))
def test_chunks_stay_within_the_limit_and_the_last_ones_used_stay(asked: list[int], limit: int) -> None:
    """The cache never exceeds its limit, gives right chunks, and forgets those that were not used for longest."""
    cache = ChunkCache(limit)
    model: list[int] = []
    for number in asked:
        decoded: list[int] = []
        found = cache.get(number, lambda: (decoded.append(number), chunk(number))[1])  # noqa: B023  # called at once
        assert bool(decoded) == (number not in model)
        assert found is None if number % 5 == 0 else (found == number).all()
        size = OF_EMPTY + (100 if number % 5 else 0)
        if number in model or size <= limit:
            model = [one for one in model if one != number] + [number]
        sizes = [OF_EMPTY + (100 if one % 5 else 0) for one in model]
        while sum(sizes) > limit:
            del model[0], sizes[0]
        assert cache.nbytes == sum(sizes) <= limit


def test_a_chunk_cannot_be_changed_and_a_copy_is_empty() -> None:
    """Chunks are read-only, since others get the same one; a pickled cache has the limit and no chunk."""
    cache = ChunkCache(1000)
    with pytest.raises(ValueError, match="read-only"):
        cache.get(1, lambda: chunk(1))[0] = 7
    again = pickle.loads(pickle.dumps(cache))
    assert (again.limit, again.nbytes) == (1000, 0)
    assert again.get(1, lambda: chunk(2))[0] == 2


def test_threads_share_it() -> None:
    """Many threads get right chunks, and the bytes are counted right in the end."""
    cache = ChunkCache(8 * (100 + OF_EMPTY))

    def use(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(1, 30, 400).tolist():
            found = cache.get(number, lambda number=number: chunk(number))
            assert found is None if number % 5 == 0 else found[0] == number

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert cache.nbytes == sum(OF_EMPTY + (100 if one is not None else 0) for one in cache._chunks.values())
    assert cache.nbytes <= cache.limit


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_a_thread_holds_the_lock_does_not_hang() -> None:
    """A child process reads chunks of its parent, although the lock was held when it was forked."""
    cache = ChunkCache(1000)
    cache.get(3, lambda: chunk(3))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._locked():
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = os.fork()
    if not child:
        os._exit(int(cache.get(3, lambda: chunk(4))[0]))
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


@pytest.mark.parametrize("name", ["raw", "mito"])
def test_an_array_with_a_cache_reads_the_same_and_decodes_once(
    archive: Path, tmp_path: Path, voxels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random windows are those of the source; with a cache no chunk is decoded twice."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    store = Path(ld.to_zarr(ds, tmp_path / "s.zarr", chunks=(2, 64, 64), shards=(4, 128, 128), progress=False))
    decoded = note_decoded(monkeypatch)
    array = StoredArray(store, name, ChunkCache(1 << 30))
    rng = np.random.default_rng(0)
    for _ in range(200):
        start = [int(rng.integers(0, n)) for n in SHAPE]
        window = tuple(slice(a, int(rng.integers(a, n + 1))) for a, n in zip(start, SHAPE, strict=True))
        np.testing.assert_array_equal(array[window], voxels[name][window])
    assert len(decoded) == len(set(decoded))
