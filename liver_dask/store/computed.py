"""Computed variables: the part of the dask graph that each job runs, what it reads, and which results it holds.

The graph is optimised once. A job writes its regions one after another, and has its own part of the graph. A result
that several regions need is held in memory from the first of them to the last, within limits. A result that does not
fit is computed again, and its input is read again. A small result that nearly all jobs need (such as a maximum) is
computed once, before the jobs. It is called a **statistic**.

All of this follows from the graph before anything is read. So the number of reads of each file is known in advance.

A graph does not say how large the result of a task is. So the size is guessed from the number of blocks in a layer. A
layer with about as many blocks as a variable has, or as are read, is taken for voxels, in blocks of equal size. A layer
with fewer blocks is taken for reduced values, such as sums and means, which are small.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from itertools import pairwise, product
from operator import getitem
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask._task_spec import Alias, DataNode, Task, TaskRef
from dask.array import chunk
from dask.array.core import getter, getter_inline, getter_nofancy
from dask.array.optimization import optimize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.local import get_sync

from ..archive.lazy.futures import got, is_held
from ..archive.lazy.leaves import Read, Tasks, reads_of, tasks_of, window_of
from ..archive.lazy.slice_graph import read
from .layout import Group, Layout, RegionBatch, plan_batches
from .rows import Blocks, ComputedPart
from .tally import Tally, extents_of

HELD_BYTES = 512 << 20
"""Maximum size in bytes of the results that a job holds for later regions."""

NEAR = 4
"""Maximum number of regions for which a job holds a result until its next use. It leaves room for results that are
needed sooner. It does not apply if all voxels that the job reads fit into HELD_BYTES."""

EDGE = 8
"""If a job needs at most 1/EDGE of a block, only these rows of the block are read."""

SLICES = 8
"""Number of slices from which one job computes its share of a statistic."""

MANY = -1
"""Marks a task whose input comes from the slices of several shares."""

SAMPLED = 6
"""Number of jobs that are planned in advance, as a sample of all jobs."""

WORTH_IT = 1.05
"""Factor by which another order of regions must reduce the reads to be chosen."""

CUTTING = (getitem, chunk.getitem, getter, getter_inline, getter_nofancy, read)
"""Functions of tasks that only take slices of an array."""

Key = Any


class Work:
    """The dask tasks of the computed variables of one group.

    Attributes:
        blocks: The blocks of each variable.
        tasks: All tasks, optimised. The task of a statistic is replaced by its value once that is known.
        statistics: Keys of the statistics to compute before the jobs. Later lists may depend on earlier ones.
    """

    def __init__(self, arrays: Mapping[str, da.Array]) -> None:
        self.blocks = {name: Blocks.of(array) for name, array in arrays.items()}
        # Given layers, dask would fuse a task that reads into each task that needs it, and so read once for each.
        written_out: Tasks = {}
        for array in arrays.values():
            written_out |= tasks_of(array)
        self._of_cluster = {key for key, task in written_out.items() if is_held(getattr(task, "value", None))}
        # The blocks that a cluster holds stay tasks of their own, so that `got` can fetch them.
        keys = [key for array in arrays.values() for key in flatten(array.__dask_keys__())] + [*self._of_cluster]
        needed = set(_needed(written_out, keys))
        layer = _Culled({key: task for key, task in written_out.items() if key in needed})
        self.tasks: Tasks = dict(optimize(HighLevelGraph({"all": layer}, {"all": set()}), keys))
        self.statistics: list[list[Key]] = []
        windows = {key: window_of(getattr(task, "value", None)) for key, task in self.tasks.items()}
        self._sources = {key: window for key, window in windows.items() if window}
        needs = {key: task.dependencies & self.tasks.keys() for key, task in self.tasks.items()}
        # All keys are added first, because the order of the sets in `needs` differs from process to process.
        sorter = TopologicalSorter(dict.fromkeys(self.tasks, ()))
        for key, of_task in needs.items():
            sorter.add(key, *of_task)
        self._order = {key: i for i, key in enumerate(sorter.static_order())}
        self._reads = {key: found for key, task in self.tasks.items() if (found := [*reads_of(task, self._sources)])}
        self._dependents = Counter(needed for of_task in needs.values() for needed in of_task)
        reads = [one for of_task in self._reads.values() for one in of_task]
        self._voxels = int(max(sum(one.nbytes for one in reads), sum(of.nbytes for of in arrays.values())))
        self._extents = extents_of(reads)
        self._of_layer = Counter(map(_layer, self.tasks))
        counts = [len(self._reads) + len(self._of_cluster), *(blocks.count for blocks in self.blocks.values())]
        self._fewest = min(filter(None, counts), default=0) / 2

    def part(self, batch: RegionBatch) -> ComputedPart:
        """Return what a job needs to write a batch; the job itself computes statistics that are not known yet."""
        return self._planned(batch, self.tasks).part

    def settle(self, keys: Collection[Key], ends: Mapping[Key, Any]) -> None:
        """Compute some statistics from the results of their shares, and replace their tasks by the values.

        Args:
            keys: The keys of the statistics.
            ends: The results of all shares, see `partials`. They are not kept: the plan counts what is read as if only
                the statistics were known, and only these are sent to the jobs.
        """
        tasks = self.tasks | _as_tasks(ends)
        values = get_sync(got({key: tasks[key] for key in _needed(tasks, keys)}), list(keys))
        self.tasks |= _as_tasks(dict(zip(keys, values, strict=True)))

    def plan(self, layout: Layout, group: Group) -> tuple[Group, Tally]:
        """Choose the order of regions and the statistics to compute before the jobs, so that the least is read.

        Sets `statistics`.

        Args:
            layout: The grids of the store.
            group: The group of these variables.

        Returns:
            The group with the chosen order and the bytes that a job holds, and the tally of what is read for it.
        """
        best: _Choice | None = None
        for with_statistics, deep in product((False, True), repeat=2):
            candidate = group._replace(deep=deep)
            batches = list(plan_batches(layout, [candidate], ()))
            statistics = self._statistics(batches) if with_statistics else []
            if with_statistics and not statistics:
                break
            most = self._tally(batches, statistics, most_jobs=1)[0].most
            if best is None or most < best.most / WORTH_IT:
                best = _Choice(most, candidate, batches, statistics)
            if best.most < WORTH_IT:
                break
        assert best
        self.statistics = best.statistics
        tally, held = self._tally(best.batches, best.statistics, SAMPLED)
        return best.group._replace(held=held), tally

    def partials(self, keys: Collection[Key]) -> list[tuple[Tasks, list[Key]]]:
        """Split the computation of some statistics into shares that can be computed in parallel.

        Returns:
            For each share, its tasks and the keys of the results that are needed.
        """
        needed = sorted(_needed(self.tasks, keys), key=self._order.__getitem__)
        slices: dict[Key, int | None] = {}  # number of the share that a task belongs to; None: no input; or MANY
        for key in needed:
            of = {slices[one] for one in self.tasks[key].dependencies & self.tasks.keys()} - {None}
            of |= {int(min(one.window.selections[0])) // SLICES for one in self._reads.get(key, ())[:1]}
            of |= {key[1] // SLICES} if key in self._of_cluster and len(key) == 4 else set()
            slices[key] = MANY if len(of) > 1 else next(iter(of), None)
        wanted: dict[int, set[Key]] = {}
        for key in needed:
            ends = [key] if key in keys else []
            ends += self.tasks[key].dependencies & self.tasks.keys() if slices[key] == MANY else ()
            for end in ends:
                number = slices[end]
                if number is not None and number != MANY:
                    wanted.setdefault(number, set()).add(end)
        return [({key: self.tasks[key] for key in _needed(self.tasks, ends)}, list(ends)) for ends in wanted.values()]

    def _size(self, key: Key) -> int:
        """Estimate the size in bytes of a task's result; 0 if it is small or costs nothing."""
        if key in self._reads:
            return sum(one.nbytes for one in self._reads[key])
        task = self.tasks[key]
        if isinstance(task, Alias) and task.target in self.tasks:  # an alias of an array keeps it in memory, too
            return self._size(task.target)
        return self._voxels // self._of_layer[_layer(key)] if self._is_voxels(key) else 0

    def _is_voxels(self, key: Key) -> bool:
        return isinstance(self.tasks[key], Task) and self._of_layer[_layer(key)] >= self._fewest

    def _statistics(self, batches: Sequence[RegionBatch]) -> list[list[Key]]:
        """Find the statistics: small results, made of voxels, that several tasks and several batches need.

        Returns:
            Lists of keys. A statistic that depends on others is in a later list than these.
        """
        reach: dict[Key, tuple[int, int]] = {}  # the first and the last batch that needs a task

        def widen(key: Key, first: int, last: int) -> None:
            known = reach.get(key, (first, last))
            reach[key] = min(first, known[0]), max(last, known[1])

        for i, batch in enumerate(batches):
            for keys in self._steps(batch):
                for key in keys:
                    widen(key, i, i)
        by_order = sorted(self.tasks, key=self._order.__getitem__)
        for key in reversed(by_order):
            for needed in self.tasks[key].dependencies & self.tasks.keys() if key in reach else ():
                widen(needed, *reach[key])
        steps: dict[Key, int] = {}  # number of lists that must be computed before a task; -1: it depends on no voxels
        found: list[list[Key]] = []
        for key in by_order:
            of = [steps[needed] for needed in self.tasks[key].dependencies & self.tasks.keys()]
            steps[key] = max([*of, 0 if key in self._reads or key in self._of_cluster else -1])
            first, last = reach.get(key, (0, 0))
            if steps[key] >= 0 and first < last and self._dependents[key] > 1 and self._is_small(key):
                found += [[]] if len(found) == steps[key] else []
                found[steps[key]].append(key)
                steps[key] += 1
        return found

    def _is_small(self, key: Key) -> bool:
        task = self.tasks[key]
        while isinstance(task, Alias) and task.target in self.tasks:
            key, task = task.target, self.tasks[task.target]
        return isinstance(task, Task) and key not in self._reads and not self._is_voxels(key)

    def _tally(
        self, batches: Sequence[RegionBatch], statistics: Sequence[Sequence[Key]], most_jobs: int
    ) -> tuple[Tally, int]:
        """Count what all jobs and statistics read, and the most bytes that one job holds.

        Args:
            batches: The batches of all jobs.
            statistics: The statistics that are computed before the jobs.
            most_jobs: Maximum number of jobs to plan; if there are more jobs, the planned ones are a sample.
        """
        tally, held = Tally(self._extents, len(self._of_cluster)), 0
        tasks = dict(self.tasks)
        for keys in statistics:
            needed = _needed(tasks, keys)
            tally.add((one, 1) for key in needed for one in self._reads.get(key, ()))
            tally.got += len(self._of_cluster.intersection(needed))
            tasks |= _as_tasks(dict.fromkeys(keys))  # as `settle` does, so that a job is planned as it will be done
        for i, weight in _sample(len(batches), most_jobs):
            planned = self._planned(batches[i], tasks)
            tally.add(self._all_reads(planned), weight)
            tally.got += weight * sum(planned.computed.get(key, 0) for key in self._of_cluster)
            held = max(held, planned.most_held)
        return tally, held

    def _all_reads(self, planned: "_Planned") -> Iterator[tuple[Read, int]]:
        """Yield what a job reads, and how often."""
        for key, times in planned.computed.items():
            task = planned.part.tasks[key]
            is_replaced = task is not self.tasks[key]
            for one in reads_of(task, self._sources) if is_replaced else self._reads.get(key, ()):
                yield one, times

    def _steps(self, batch: RegionBatch) -> list[set[Key]]:
        """Return the keys of the blocks that each region needs."""
        return [
            {key for name in batch.group.names for key, _, _ in self.blocks[name].within(region)}
            for region in batch.regions
        ]

    def _planned(self, batch: RegionBatch, tasks: Tasks) -> "_Planned":
        """Plan a job.

        Args:
            batch: The regions that the job writes.
            tasks: All tasks. Those of statistics may be replaced by their values.
        """
        steps = self._steps(batch)
        results: set[Key] = set().union(*steps)
        tasks = {key: tasks[key] for key in _needed(tasks, results)}
        tasks |= self._edges(tasks, results)
        tasks = {key: tasks[key] for key in _needed(tasks, results)}
        return self._held(tasks, {name: self.blocks[name] for name in batch.group.names}, steps)

    def _held(self, tasks: Tasks, blocks: Mapping[str, Blocks], steps: Sequence[set[Key]]) -> "_Planned":
        """Plan how often each task is computed, and after which steps (regions) its result is held.

        The plan is made in reverse order: from the blocks of the variables to the tasks that read.
        """
        uses = dict.fromkeys(tasks, 0)  # for each task, one bit per step
        for i, keys in enumerate(steps):
            for key in keys:
                uses[key] |= 1 << i
        results = set().union(*steps)  # their size counts as 0: a job has memory for them anyway
        load = np.zeros(len(steps), np.int64)
        all_fit = sum(self._size(key) for key in tasks if key in self._reads) <= HELD_BYTES
        held: dict[Key, list[int]] = {}
        computed: dict[Key, int] = {}
        for key in sorted(tasks, key=self._order.__getitem__, reverse=True):
            size, anew = 0 if key in results else self._size(key), uses[key]
            for now, later in pairwise(_bits(uses[key])):
                near = (all_fit or later - now <= NEAR) and load[now:later].max() + size <= HELD_BYTES
                if (near or size == 0) and key not in self._of_cluster:
                    load[now:later] += size
                    anew &= ~(1 << later)
                    if not isinstance(tasks[key], DataNode):
                        held.setdefault(key, []).extend(range(now, later))
            computed[key] = anew.bit_count()
            for needed in tasks[key].dependencies & tasks.keys():
                uses[needed] |= anew
        part = ComputedPart(tasks, blocks, {key: frozenset(held[key]) for key in held})
        return _Planned(part, computed, int(load.max(initial=0)))

    def _edges(self, tasks: Tasks, results: set[Key]) -> Tasks:
        """Return tasks that read only the needed rows of a block, if a job needs few of them.

        They replace tasks with the same keys, which take these rows from the whole block.
        """
        cuts: dict[Key, list[tuple[Key, Any]]] = {}
        whole: set[Key] = set()
        for key, task in tasks.items():
            cut = _cut(task)
            for needed in task.dependencies & self._reads.keys():
                if cut and cut[0] == needed:
                    cuts.setdefault(needed, []).append((key, cut[1]))
                else:
                    whole.add(needed)
        new: Tasks = {}
        for block in cuts.keys() - whole - results:
            task = self.tasks[block]
            source, index = _cut(task) or ("", ())
            if source not in self._sources or not isinstance(task, Task):
                continue
            shape = self._sources[source].window.shape
            indexes = {key: _composed(shape, index, cut) for key, cut in cuts[block]}
            rows = sum(self._sources[source].of(index).nbytes for index in indexes.values())
            if EDGE * rows <= self._size(block):
                new |= {
                    key: Task(key, task.func, TaskRef(source), DataNode(None, one), *task.args[2:])
                    for key, one in indexes.items()
                }
        return new


class _Culled(MaterializedLayer):
    """Tasks that are all needed, and that dask does not cull again.

    Dask would bring them into the order of a set, which differs from process to process. The order decides which tasks
    dask fuses, and so how often each file is read.
    """

    def cull(self, keys: set[Key], all_hlg_keys: Collection[Key]) -> tuple[MaterializedLayer, dict[Key, set[Key]]]:
        """See Layer."""
        return self, {key: set(task.dependencies) for key, task in self.items()}


class _Choice(NamedTuple):
    """A candidate for the order of regions and the statistics.

    Attributes:
        most: The number of times that the variable which is read most often is read; see Tally.most.
        group: The group, with the order.
        batches: Its batches.
        statistics: What is computed before them.
    """

    most: float
    group: Group
    batches: list[RegionBatch]
    statistics: list[list[Key]]


class _Planned(NamedTuple):
    """The plan of a job: its part of the graph, how often it computes each task, and the most bytes that it holds."""

    part: ComputedPart
    computed: dict[Key, int]
    most_held: int


def _layer(key: Key) -> tuple[Any, ...]:
    """Return what the keys of all blocks of one array have in common."""
    if not isinstance(key, tuple):
        return (key,)
    return (key[0], len(key), *(part for part in key[1:] if isinstance(part, str)))


def _bits(number: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, in ascending order."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _sample(count: int, most: int) -> list[tuple[int, float]]:
    """Choose at most `most` of the numbers below `count`, and return each with the count that it represents.

    The first and the last number are always chosen, unless `most` is 1.
    """
    if count <= most:
        return [(i, 1) for i in range(count)]
    if most == 1:
        return [(count // 2, count)]
    between = most - 2
    numbers = [1 + (2 * i + 1) * (count - 2) // (2 * between) for i in range(between)]
    return [(0, 1), *((i, (count - 2) / between) for i in numbers), (count - 1, 1)]


def _as_tasks(values: Mapping[Key, Any]) -> Tasks:
    """Return tasks that need nothing and have these values."""
    return {key: DataNode(key, value) for key, value in values.items()}


def _needed(tasks: Tasks, keys: Iterable[Key]) -> list[Key]:
    """Return the keys of the tasks that some results need."""
    found: dict[Key, None] = {}
    coming = list(keys)
    while coming:
        key = coming.pop()
        if key in tasks and key not in found:
            found[key] = None
            coming += tasks[key].dependencies
    return list(found)


def _cut(task: Any) -> tuple[Key, tuple[slice, ...]] | None:
    """Return the input and the slices of a task that only takes slices of another task's result, else None."""
    if not isinstance(task, Task) or task.func not in CUTTING or len(task.dependencies) != 1 or len(task.args) < 2:
        return None
    index = getattr(task.args[1], "value", task.args[1])
    if not isinstance(index, tuple) or not all(isinstance(one, slice) for one in index):
        return None
    return next(iter(task.dependencies)), index


def _composed(shape: Sequence[int], first: Sequence[slice], second: Sequence[slice]) -> tuple[slice, ...]:
    """Compose two successive indexes of an array of this shape into one."""
    ranges = (range(length)[one][two] for length, one, two in zip(shape, first, second, strict=True))
    # As the stop of a slice, -1 would mean the last index.
    return tuple(slice(r.start, None if r.stop < 0 else r.stop, r.step) for r in ranges)
