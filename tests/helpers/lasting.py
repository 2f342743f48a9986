"""The global state of the package, which lasts as long as the process and could carry over from one test to the next.

A test compares both lists with the source code. A new cache must be added here: either with the function that empties
it, or with the reason why this is not necessary.
"""

from collections.abc import Callable

from liver_dask.archive import reader
from liver_dask.archive.formats import tiff, tiff_index
from liver_dask.archive.remote import cache, files, shares
from liver_dask.core import metrics
from liver_dask.prediction import models
from liver_dask.prediction import reader as prediction_reader
from liver_dask.store import record

EMPTIED: dict[str, Callable[[], object]] = {
    "liver_dask.archive.reader._memory": reader._memory._clear,
    "liver_dask.archive.formats.tiff.cached_rows": tiff.cached_rows._clear,
    "liver_dask.archive.formats.tiff_index.known_directories": tiff_index.known_directories.clear,
    "liver_dask.archive.formats.tiff.prefix_shares": tiff.prefix_shares._clear,
    "liver_dask.archive.remote.cache._warned": cache._warned.clear,
    "liver_dask.archive.remote.files._process": files._process.forget,
    "liver_dask.prediction.models._loaded": models._loaded.forget,
    "liver_dask.prediction.reader._told": prediction_reader._told.clear,
    "liver_dask.archive.remote.shares._shares": shares._shares.clear,
    "liver_dask.core.metrics.traffic": metrics.traffic.forget,
    "liver_dask.store.record._log_once": record._log_once.cache_clear,
}
"""The function that empties each object before a test."""

_GIVEN_BACK = "given back on every way out; emptied, it would be given back twice by a thread that a test gave up"
_ALWAYS_THE_SAME = "holds what is the same for all"
_A_LOCK = "a lock"

LEFT: dict[str, str] = {
    "liver_dask.archive.archives._built_in": _ALWAYS_THE_SAME,
    "liver_dask.archive.formats.lzw._decode": _ALWAYS_THE_SAME,
    "liver_dask.archive.formats.png.one_interlaced": _GIVEN_BACK,
    "liver_dask.archive.formats.png_filters._undo": _ALWAYS_THE_SAME,
    "liver_dask.archive.formats.png_filters._undo_of_pixels": _ALWAYS_THE_SAME,
    "liver_dask.archive.lazy.breadth._slices": _GIVEN_BACK,
    "liver_dask.archive.remote.cache._keeping": _A_LOCK,
    "liver_dask.prediction.models.one_at_a_time": _A_LOCK,
    "liver_dask.prediction.names.version_of": _ALWAYS_THE_SAME,
    "liver_dask.archive.remote.connections._exchange": _GIVEN_BACK,
    "liver_dask.archive.remote.retry._jitter": "chance",
    "liver_dask.archive.remote.retry.retrying": _ALWAYS_THE_SAME,
    "liver_dask.archive.remote.shares._Visit._ids": "numbers that never come again",
    "liver_dask.archive.remote.shares._inherited": "is filled in forks alone",
    "liver_dask.archive.remote.shares._lock": _A_LOCK,
    "liver_dask.archive.remote.versions._noted": _GIVEN_BACK,
    "liver_dask.archive.remote.versions._of_this_process": "by random names, for as long as somebody has the Dataset",
    "liver_dask.archive.remote.watchdog._watchdog": _GIVEN_BACK,
    "liver_dask.core.compiled._compiling": _A_LOCK,
    "liver_dask.core.concurrency.cores": _GIVEN_BACK,
    "liver_dask.core.crc32c._compiled": _ALWAYS_THE_SAME,
    "liver_dask.core.documents._short": _ALWAYS_THE_SAME,
    "liver_dask.core.interrupts._Interrupts": "begins anew with each `interrupts_noted`, and is looked at in it alone",
    "liver_dask.core.malloc.keep_memory_of_worker": "what malloc was told cannot be taken back",
    "liver_dask.core.threads._is_wanted": _GIVEN_BACK,
    "liver_dask.core.threads._process": "ends with the process",
    "liver_dask.serving.dataset_store._zstd": _ALWAYS_THE_SAME,
    "liver_dask.store.broadcast.of_jobs": _GIVEN_BACK,
    "liver_dask.training.dataset._draw": _GIVEN_BACK,
    "liver_dask.training.randomness._is_on_threads": "is set in contexts of their own",
    "liver_dask.training.transforms._standardize": _ALWAYS_THE_SAME,
}
"""The reason why each other object cannot affect the next test."""
