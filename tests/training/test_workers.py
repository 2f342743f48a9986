"""Loaders whose workers are threads: the same stream as on processes, and nothing left behind."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.reads import note_decoded
from helpers.transforms import same

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("torch_em", reason="the extra `train` is not installed")

from liver_dask.store import array as stored  # noqa: E402  # after the skip

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DEPTH, HEIGHT, WIDTH = SHAPE
WHOLE = (0, WIDTH, 0, HEIGHT, 0, DEPTH)


@pytest.fixture(scope="module")
def asked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stores")
    ld.get_human_liver_em_data(folder, WHOLE, download=True, source=archive, shape=SHAPE)
    return {
        "path": folder,
        "patch_shape": (3, 24, 32),
        "bounding_boxes": [WHOLE],
        "source": archive,
        "shape": SHAPE,
        "n_samples": 12,
        "batch_size": 2,
        "seed": 3,
        "pin_memory": False,
    }


def loader(asked: dict[str, Any], **more: Any) -> Any:
    return ld.get_human_liver_em_loader(**{**asked, **more})


def bytes_of(batches: Any) -> list[bytes]:
    return [b"".join(tensor.numpy().tobytes() for tensor in batch) for batch in batches]


@pytest.mark.parametrize("more", [{}, {"min_foreground": 0.05}, {"label_choice": ["mito", "er"]}, {"drop_last": True}])
def test_threads_processes_and_none_give_the_same_stream(asked, more: dict[str, Any]) -> None:
    """Two epochs are the same in this process, on threads and on processes, with a cache and without."""
    alone = loader(asked, **more)
    threads = loader(asked, num_workers=3, cache_gb=0, **more)
    processes = loader(asked, num_workers=2, workers="processes", **more)
    assert (threads.workers, processes.workers, threads.num_workers) == ("threads", "processes", 3)
    for _ in range(2):
        stream = bytes_of(alone)
        assert len(set(stream)) == 6
        assert bytes_of(threads) == bytes_of(processes) == stream


@pytest.mark.parametrize("workers", [0, 2])
def test_two_iterators_at_a_time_are_two_epochs(asked, workers: int) -> None:
    """Iterators that are used in turns give one epoch each, whichever is used first."""
    whole = loader(asked)
    first, second = bytes_of(whole), bytes_of(whole)
    ours = loader(asked, num_workers=workers)
    one, other = iter(ours), iter(ours)
    pairs = [(bytes_of([b])[0], bytes_of([a])[0]) for b, a in zip(other, one, strict=True)]
    assert pairs == list(zip(second, first, strict=True))


def test_single_patches_and_own_collate_functions(asked) -> None:
    """`batch_size=None` gives patches without an axis of batches, and a user's `collate_fn` is called."""
    (raw, labels), *rest = loader(asked, batch_size=None, num_workers=2)
    assert raw.shape == labels.shape == (1, 3, 24, 32)
    assert len(rest) == 11
    alone = loader(asked, batch_size=None)
    for persistent in (False, True):
        processes = {"num_workers": 2, "workers": "processes", "persistent_workers": persistent}
        ours = loader(asked, batch_size=None, **processes)
        assert bytes_of(ours) == bytes_of(loader(asked, batch_size=None))
        next(iter(ours))
        state = ours.state_dict()
        assert (state["epoch"], state["given"]) == (1, 1)
    bytes_of(alone)
    again = loader(asked, batch_size=None, num_workers=2, workers="processes")
    again.load_state_dict(state)
    assert bytes_of(again) == bytes_of(alone)[1:]
    assert list(loader(asked, collate_fn=len, num_workers=2)) == [2] * 6
    assert bytes_of(loader(asked, label_dtype=torch.int64, num_workers=2)) == bytes_of(
        loader(asked, label_dtype=torch.int64, workers="processes")
    )
    (_, labels), *_ = loader(asked, label_dtype=torch.bfloat16, num_workers=2)
    assert labels.dtype == torch.bfloat16


def test_own_transforms_are_on_processes_unless_threads_are_asked_for(asked) -> None:
    """A transform may draw from global random generators, so it is on processes; `workers` decides otherwise."""
    own = {"raw_transform": same, "num_workers": 2}
    assert loader(asked).workers == loader(asked, num_workers=2).workers == "threads"
    assert loader(asked, **own).workers == "processes"
    assert loader(asked, num_workers=2, multiprocessing_context="fork").workers == "processes"
    on_threads = loader(asked, workers="threads", **own)
    assert on_threads.workers == "threads"
    assert bytes_of(on_threads) == bytes_of(loader(asked, **own))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"workers": "threads", "multiprocessing_context": "spawn"}, "multiprocessing_context is for processes"),
        ({"workers": "threads", "batch_sampler": [[0]]}, "batch_sampler is for processes"),
        ({"workers": "threads", "timeout": 5}, "timeout is for processes"),
        ({"workers": "fibers"}, "workers='fibers' must be 'threads' or 'processes'"),
        ({"cache_gb": -1}, r"cache_gb=-1 must be a number of GB"),
        ({"cache_gb": float("nan")}, r"cache_gb=nan must be a number of GB"),
        ({"cache_gb": "1"}, r"cache_gb='1' must be a number of GB"),
        ({"cache_gb": 1e300}, r"cache_gb=1e\+300 must be a number of GB"),
        ({"num_workers": "2"}, "num_workers='2' must be a whole number of at least 0"),
        ({"num_workers": None}, "num_workers=None must be a whole number"),
        ({"num_workers": -1}, "num_workers=-1 must be a whole number of at least 0"),
        ({"num_workers": 2.0}, "num_workers=2.0 must be a whole number"),
        ({"num_workers": 2, "prefetch_factor": 0}, "prefetch_factor=0 must be a whole number of at least 1"),
        ({"num_workers": 2, "prefetch_factor": 1.5}, "prefetch_factor=1.5 must be a whole number"),
        ({"rank": "0"}, "rank='0' must be a whole number of at least 0, and below world_size=1"),
        ({"rank": 2, "world_size": 2}, "rank=2 must be a whole number of at least 0, and below world_size=2"),
        ({"label_dtype": "int64"}, "label_dtype='int64' must be a dtype of torch"),
        ({"weights": 5}, "weights=5 must be one number of at least 0 for each of the 1 boxes"),
        ({"split_grid": (16, 100, 100)}, r"split_grid=\(16, 100, 100\) must be a SplitGrid"),
        ({"raw_transform": "standardize"}, "raw_transform='standardize' must be a function"),
        ({"bogus": 1}, "'bogus' is no argument of this function"),
        ({"dataset": 3}, "'dataset' is no argument of this function"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(asked, wrong: dict[str, Any], told: str) -> None:
    """Arguments that mean nothing, or nothing to threads, are refused when the loader is made."""
    with pytest.raises(ld.InvalidArgumentError, match=told):
        loader(asked, **wrong)


def test_numbers_may_be_of_numpy(asked) -> None:
    """Numbers of numpy are numbers."""
    numbers = {"cache_gb": np.float32(1), "weights": np.array([1]), "num_workers": np.int64(2), "rank": np.int64(0)}
    assert bytes_of(loader(asked, foreground_share=np.int64(1), **numbers)) == bytes_of(
        loader(asked, foreground_share=1)
    )


@pytest.mark.parametrize("state", [None, {}, {"epoch": 0, "given": 13}, {"epoch": -1, "given": 0}])
def test_a_state_that_is_none_is_refused(asked, state: Any) -> None:
    """What is not the state of a loader, or is beyond its epoch, is refused."""
    ours = loader(asked)
    with pytest.raises(ld.InvalidArgumentError, match=r"is not what state_dict|The state is at patch"):
        ours.load_state_dict({**ours.state_dict(), **state} if state else state)


def test_transforms_on_threads_leave_the_random_numbers_of_the_loop_alone(asked) -> None:
    """While transforms run on threads, the process draws the numbers that follow from its own seed."""
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # users' loops draw from the global state
    expected = [(torch.rand(()).item(), np.random.rand()) for _ in range(40)]  # noqa: NPY002  # as above
    ours = loader(asked, n_samples=40, batch_size=1, num_workers=4, workers="threads", raw_transform=same)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # as above
    assert [(torch.rand(()).item(), np.random.rand()) for _ in ours] == expected  # noqa: NPY002  # as above


@pytest.mark.parametrize("more", [{}, {"num_workers": 2, "workers": "threads"}])
def test_batches_are_contiguous_and_of_their_own(asked, more: dict[str, Any]) -> None:
    """A transform may return an array in another order, or one that it keeps; batches are new and in C order."""
    constant = np.ones((3, 24, 32), np.float32)
    for raw, labels in loader(
        asked, raw_transform=np.asfortranarray, label_transform=lambda _: constant, batch_size=1, **more
    ):
        assert raw.is_contiguous()
        labels += 1
    assert (constant == 1).all()


def test_only_a_few_batches_are_read_ahead(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread reads at most two batches ahead, or as many as `prefetch_factor` says."""
    for factor, most in ((None, 4), (1, 2)):
        ahead = loader(asked, num_workers=2, prefetch_factor=factor, n_samples=100, batch_size=1)
        taken: list[int] = []
        read = ahead._read
        monkeypatch.setattr(ahead, "_read", lambda numbers, read=read, taken=taken: (taken.append(1), read(numbers))[1])
        batches = iter(ahead)
        for count in range(1, 5):
            next(batches)
            time.sleep(0.1)
            assert count <= len(taken) <= count + most


def test_an_error_is_raised_where_the_batch_is_taken_and_threads_end(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged shard is an error in the loop; whether it ends so or by `break`, no thread is left."""
    before = threading.active_count()
    for _ in loader(asked, num_workers=4):
        break
    damaged = loader(asked, num_workers=4, cache_gb=0)
    monkeypatch.setattr(stored.StoredArray, "_read_planes", _fail)
    with pytest.raises(ld.DamagedError, match="a shard is damaged"):
        list(damaged)
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_an_iterator_may_be_dropped_anywhere(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping an iterator waits for no thread: the garbage collector may do so while the threads need a lock."""
    ours = loader(asked, num_workers=2)
    go_on = threading.Event()
    read = ours._read
    monkeypatch.setattr(ours, "_read", lambda numbers: (numbers[0] % 12 < 2 or go_on.wait(60)) and read(numbers))
    batches = iter(ours)
    next(batches)
    closing = threading.Thread(target=batches.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    go_on.set()


@pytest.mark.parametrize("name", ["label_transform", "raw_transform", "pre_label_transform", "transform"])
def test_a_transform_may_return_what_it_got(asked, name: str) -> None:
    """Patches that were flipped are arrays that torch takes, also if a transform does nothing."""
    raw, labels = next(iter(loader(asked, **{name: same})))
    assert raw.shape == labels.shape == (2, 1, 3, 24, 32)


def _fail(*_: Any) -> None:
    raise ld.DamagedError("a shard is damaged")


def test_training_does_not_change_torchs_number_of_threads_or_its_random_state(asked) -> None:
    """The user's own torch is as before."""
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    ours = loader(asked, num_workers=2)
    list(ours)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_boxes_that_fit_are_decoded_once_and_others_without_a_cache(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all chunks fit into the cache, none is decoded twice in three epochs; otherwise there is no cache."""
    decoded = note_decoded(monkeypatch)
    streams = []
    for gb in (1.0, 1e-6):
        decoded.clear()
        ours = loader(asked, cache_gb=gb, batch_size=1)
        streams.append([batch for _ in range(3) for batch in bytes_of(ours)])
        assert (len(decoded) == len(set(decoded))) == (gb == 1.0)
    assert streams[0] == streams[1]


@pytest.mark.slow
def test_thousands_of_batches_leave_no_memory_and_no_file(asked) -> None:
    """Memory and open files do not grow over 4500 batches, with a cache for a part of the chunks."""
    process = psutil.Process()
    batches = iter(loader(asked, n_samples=5100, batch_size=1, num_workers=2, reuse=4, cache_gb=0.008))
    for _ in range(500):
        next(batches)
    memory, files = process.memory_info().rss, process.num_fds()
    for _ in range(4500):
        next(batches)
    assert process.memory_info().rss < memory + (24 << 20)
    assert process.num_fds() <= files + 4, "those of patches that are read now"


def test_standardisation_is_exact_for_small_integers() -> None:
    """Raw of 8 and 16 bit, straight and flipped, is standardised as float64 would be; constant raw is 0."""
    from liver_dask.training.transforms import standardized

    rng = np.random.default_rng(0)
    for dtype, high in ((np.uint8, 256), (np.uint16, 65536), (np.uint16, 3)):
        for shape in ((1, 7, 9), (3, 4, 5), (2, 64, 33)):
            raw = rng.integers(0, high, shape).astype(dtype)
            for view in (raw, raw[::-1], raw[:, ::-1, ::-1], raw[..., ::-1], raw[::-1, ::-1, ::-1], raw[:, :, ::2]):
                exact = view.astype(np.float64)
                exact = (exact - exact.mean()) / (exact.std() + 1e-7)
                found = standardized(view)
                assert found.dtype == np.float32
                assert found.flags.c_contiguous
                np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-5)
    assert not standardized(np.full((2, 3, 4), 65535, np.uint16)).any()
