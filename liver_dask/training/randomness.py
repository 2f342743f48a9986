"""Random numbers of a patch: they follow from a seed and the number of the patch, and from nothing else.

So a patch is the same in any process, with any number of workers, and after any interruption.
"""

import contextlib
import contextvars
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill the interval from 0 to 1 as evenly as possible, however many there are."""

SILVER = 2**0.5 - 1
"""Its multiples are spread as evenly, also over those patches for which multiples of GOLDEN are in one interval."""


class PatchNumber(int):
    """The number of a patch in all epochs together: epoch * patches of an epoch + index."""


def new_seed() -> int:
    """Return a seed from torch's global generator, so that `torch.manual_seed` determines it."""
    return int(torch.randint(2**62, ()).item())


def fraction_of(number: int, irrational: float = GOLDEN) -> float:
    """Return a number from 0 to 1 for a patch; consecutive patches are evenly spread over this interval.

    Those of two irrational numbers together, GOLDEN and SILVER, are evenly spread over the unit square.
    """
    return (number + 0.5) * irrational % 1.0


def generator_of(*seeds: int) -> np.random.Generator:
    """Return a generator that follows from the given numbers."""
    return np.random.default_rng(seeds)


_is_on_threads: contextvars.ContextVar[bool] = contextvars.ContextVar("is_on_threads", default=False)


def call_on_thread(call: Callable[[], Any]) -> Any:
    """Call a function on a thread of a loader, in a context of its own."""
    _is_on_threads.set(True)
    return call()


@contextlib.contextmanager
def global_generators(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python within this context, for transforms that use them.

    Nothing is seeded on the threads of a loader, since the user's own process draws from the same generators.
    """
    if _is_on_threads.get():
        yield
        return
    torch_state, state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  # users' transforms draw from the global state
    seeds = rng.integers(0, 2**32, 3)
    torch.random.default_generator.manual_seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))  # noqa: NPY002  # as above
    random.seed(int(seeds[2]))
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002  # as above
        random.setstate(state)


def rank_in_use() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks, if torch.distributed is initialised; else 0 and 1."""
    distributed: Any = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
