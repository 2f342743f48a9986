"""A torch DataLoader with threads or processes, whose stream of batches can be continued after an interruption.

Importing this module needs the extra `train`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..core.errors import InvalidArgumentError
from ..core.threads import ContextPool
from .arguments import Workers
from .dataset import PatchMixture
from .randomness import PatchNumber, call_on_thread, rank_in_use

OF_WORKERS = ("num_workers", "prefetch_factor", "persistent_workers")
"""Arguments about workers. Threads start at once, so they need not persist."""

PREFETCH_FACTOR = 2
"""Number of batches that each worker reads ahead, as in DataLoader."""


class PatchOrder(torch.utils.data.Sampler[PatchNumber]):
    """The numbers of the patches of each epoch, ascending, since the patches themselves are random.

    Each iteration is the next epoch, however far the one before came.

    Args:
        count: Number of patches of an epoch of this process.
        of_epoch: Number of patches of an epoch of all processes together.

    Attributes:
        position: The epoch that the loader is in, or that comes next, and how many of its patches were given.
    """

    def __init__(self, count: int, of_epoch: int) -> None:
        self.count, self.of_epoch = count, of_epoch
        self.position = (0, 0)
        self._next = (0, 0)
        self._now: tuple[int, int] | None = None

    def begin(self) -> tuple[int, int]:
        """Begin the next iteration; return its epoch, and how many of its patches were given before."""
        self._now = self.position = self._next
        self._next = (self._now[0] + 1, 0)
        return self._now

    def numbers(self) -> Iterator[PatchNumber]:
        """Return the numbers of the iteration that was begun; begin one if there is none."""
        epoch, first = self._now or self.begin()
        self._now = None
        return (PatchNumber(epoch * self.of_epoch + i) for i in range(first, self.count))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[PatchNumber]:
        """Yield the numbers. Nothing is begun before the first is asked for: torch makes iterators that it drops."""
        yield from self.numbers()

    def go_to(self, epoch: int, given: int) -> None:
        """Begin the next iteration in this epoch, after this number of patches."""
        self._next = self.position = (epoch, given)


class PatchLoader(DataLoader[Any]):
    """A DataLoader of a PatchMixture, with `state_dict` and `load_state_dict` as in torchdata's StatefulDataLoader.

    Args:
        dataset: The patches.
        batch_size: Number of patches in a batch.
        count: Number of patches of an epoch of this loader.
        ranks: Rank of this process and number of ranks in torch.distributed, if patches depend on them; otherwise None.
        has_seed: Whether the user chose the seed. Otherwise a state that is loaded brings its own.
        workers: What the workers are, threads or processes.
        shuffle: Accepted, since torch_em's users give it; patches are random in any case.
        options: Other arguments of DataLoader.
    """

    def __init__(
        self,
        dataset: PatchMixture,
        batch_size: int,
        *,
        count: int,
        ranks: tuple[int, int] | None,
        has_seed: bool,
        workers: Workers,
        shuffle: bool = False,
        **options: Any,
    ) -> None:
        if "sampler" in options:
            raise InvalidArgumentError(
                "This loader chooses its patches itself and cannot get a sampler; in Lightning, give "
                "Trainer(use_distributed_sampler=False), and no overfit_batches."
            )
        self._order = PatchOrder(count, len(dataset))
        self.count, self.ranks, self.has_seed = count, ranks, has_seed
        self.workers = workers
        self._threads = options.get("num_workers", 0) if workers == "threads" else 0
        super().__init__(dataset, batch_size, sampler=self._order, **_of_torch(options, self._threads))
        if self._threads:
            self.num_workers, self.prefetch_factor = self._threads, options.get("prefetch_factor")
        if options.get("collate_fn") is None and batch_size:
            self._set_collate(dataset.has_own_transforms)
        # torch_em's trainers store these arguments in checkpoints, and make a plain DataLoader of them. The dataset,
        # which they store too, knows how often each patch was asked for.
        self.init_kwargs = {"batch_size": batch_size, **options}
        self.shuffle = shuffle

    def _set_collate(self, has_own_transforms: bool) -> None:
        if has_own_transforms and (self._threads or not self.num_workers):
            self.collate_fn = collated
        elif self._threads:
            self.collate_fn = stacked

    def __iter__(self) -> Iterator[Any]:
        now = rank_in_use()
        if self.ranks not in (None, now) and now[1] > 1:
            raise InvalidArgumentError(
                f"The loader was made when rank and world_size were {self.ranks}, and now they are {now}: make it "
                "after torch.distributed is initialised, or give rank= and world_size=."
            )
        epoch, first = self._order.begin()
        if self._threads:
            batches = _prefetched(self._calls(), self._threads, self.prefetch_factor or PREFETCH_FACTOR)
        elif self.num_workers:
            batches = super().__iter__()  # the processes begin to read now
        else:
            batches = (read() for read in self._calls())
        return self._counted(batches, epoch, first)

    def _calls(self) -> Iterator[Callable[[], Any]]:
        """Return one function per batch that reads it."""
        numbers = self._order.numbers()  # now, and not when the first batch is asked for: those of this iteration
        if self.batch_sampler is None:
            return (partial(self._read, number) for number in numbers)
        return (partial(self._read, these) for these in _batched(numbers, self.batch_size or 1, self.drop_last))

    def _read(self, numbers: Any) -> Any:
        """Read a batch on a thread."""
        if self.batch_sampler is None:
            batch = self.collate_fn(self.dataset[numbers])
        else:
            batch = self.collate_fn([self.dataset[number] for number in numbers])
        pins = self.pin_memory and torch.cuda.is_available()
        return torch.utils.data._utils.pin_memory.pin_memory(batch) if pins else batch

    def _counted(self, batches: Iterator[Any], epoch: int, first: int) -> Iterator[Any]:
        """Yield batches, and keep the position up to date: that of the batches given, not of those read ahead."""
        size = self.batch_size or 1
        for number, batch in enumerate(batches, 1):
            self._order.position = (epoch, min(first + number * size, self._order.count))
            yield batch
        self._order.position = (epoch + 1, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is: a small dictionary of numbers. Call it between two batches."""
        epoch, given = self._order.position
        return {"epoch": epoch, "given": given, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state_dict` was called, when the loader is iterated next.

        The batches are the same as without an interruption, for any number of workers. A loader without a `seed` takes
        the one of the state. All ranks may load the state of one of them.

        Raises:
            InvalidArgumentError: The state is that of another loader: the seed, the number of patches in an epoch, the
                patch shape, the split, the least tissue and labelled voxels, or the groups of patches that are drawn
                from the same chunks differ. (ValueError)
        """
        if not isinstance(state, dict) or not all(isinstance(state.get(name), int) for name in ("epoch", "given")):
            raise InvalidArgumentError(f"{state!r:.60} is not what state_dict of a loader returned.")
        for name, value in self._identity().items():
            if state.get(name) != value and (name != "seed" or self.has_seed or not isinstance(state.get(name), int)):
                raise InvalidArgumentError(
                    f"The state is that of another loader, with {name}={state.get(name)!r}; here {name}={value!r}."
                )
        if state["epoch"] < 0 or not 0 <= state["given"] <= self._order.count:
            raise InvalidArgumentError(
                f"The state is at patch {state['given']} of epoch {state['epoch']}, but an epoch has "
                f"{self._order.count} patches."
            )
        if state["seed"] != self.dataset.datasets[0].seed[0]:
            self._iterator = None  # persistent processes have the seed that was
            for dataset in self.dataset.datasets:
                dataset.set_seed(state["seed"])
        self._order.go_to(state["epoch"], state["given"])

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for the same stream."""
        first, *_ = datasets = self.dataset.datasets
        return {
            "seed": first.seed[0],
            "count": self._order.count,
            "patch_shape": list(first.patch_shape),
            "split": first.split and first.split["name"],
            "least_voxels": [first.least_tissue, first.least_labelled],
            "reuse": [[of.reuse.times, of.reuse.groups] for of in datasets if of.reuse],
        }


def _of_torch(options: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return the arguments of DataLoader, but not those about workers if these are threads."""
    return {name: value for name, value in options.items() if not threads or name not in OF_WORKERS}


def _batched(numbers: Iterator[PatchNumber], size: int, drop_last: bool) -> Iterator[list[PatchNumber]]:
    while len(batch := list(islice(numbers, size))) == size or (batch and not drop_last):
        yield batch


def _prefetched(calls: Iterator[Callable[[], Any]], threads: int, factor: int) -> Iterator[Any]:
    """Call functions on threads, and yield the results in order; `factor` results per thread are kept at most."""
    pool = ContextPool(threads)
    try:
        pending = deque(pool.submit(call_on_thread, call) for call in islice(calls, threads * factor))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(call_on_thread, call) for call in islice(calls, 1))
            yield batch
    finally:
        # Nothing waits for the threads: the garbage collector may end this generator anywhere, also where this thread
        # holds a lock that those need.
        pool.give_up()


def collated(patches: Sequence[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """Do what `default_collate` does for patches that nothing else holds: a single one is not copied."""
    return [tensor[None] for tensor in patches[0]] if len(patches) == 1 else stacked(patches)


def stacked(patches: Sequence[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """Do what `default_collate` does for patches, with numpy: torch would start threads of its own on each thread."""
    return [_stack(column) for column in zip(*patches, strict=True)]


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    try:
        arrays = [tensor.numpy() for tensor in tensors]
    except TypeError:  # numpy has no bfloat16
        return torch.stack(list(tensors))
    out = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)  # contiguous, whatever the arrays are
    return torch.from_numpy(np.stack(arrays, out=out))
