"""`measure`: one row for each object of a mask or of labels, block by block, on this machine or a cluster."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from ..core.concurrency import cores
from ..core.errors import InvalidArgumentError
from ..core.geometry import Shape, check_lengths, check_voxel_size
from ..core.kinds import kind_of
from ..core.metrics import traffic
from ..store.jobs import Job, Report, client_in_force, open_runner
from ..store.levels import voxel_size_of
from ..store.placement import placement_of
from ..store.preflight import check_call
from ..store.progress import show_progress
from ..store.record import read_record
from ..store.voxels import Box
from ..store.worker import picklable_error, report_of
from .blocks import Block, blocks_of, size_of_blocks, size_of_flat_blocks
from .components import IN_PLANE, Joined, Objects, check_extra, join, join_by_value, objects_of
from .labelled import labelled
from .table import check_table_path, table_of, write_table
from .volume import Volume, volume_of

if TYPE_CHECKING:
    from distributed import Client

OBJECTS, RAW = "labels", "raw"
"""Names under which the variables are read; those of `contacts` come after them."""


@dataclass(frozen=True)
class Task:
    """Some blocks that are measured one after another, as they are sent to a worker.

    Attributes:
        volume: What is read of them.
        blocks: The blocks.
        shape: Voxels (z, y, x) of the whole volume.
        connectivity: Which neighbours are connected: 6, 18 or 26.
        is_mask: Whether all values but 0 are the same.
    """

    volume: Volume
    blocks: tuple[Block, ...]
    shape: Shape
    connectivity: int
    is_mask: bool

    def run(self, report: Callable[[Report], None]) -> list[Objects] | Exception:
        """Return the objects of each block, or the error."""
        found = []
        try:
            for block in self.blocks:
                found.append(self._measured(block))
                report(report_of(prod(block.core) * self.volume.bytes_of_voxel))
        except Exception as error:  # any kind: jobs return errors, and the driver raises them
            return picklable_error(error)
        return found

    def _measured(self, block: Block) -> Objects:
        voxels = self.volume.read(block.voxels)
        objects, raw = voxels.pop(OBJECTS), voxels.pop(RAW, None)
        others = np.zeros((len(voxels), *block.read), np.uint8)
        for out, other in zip(others, voxels.values(), strict=True):
            np.not_equal(other, 0, out=out.view(bool))
        with cores:
            objects = objects != 0 if self.is_mask else objects
            return objects_of(objects, block, self.shape, self.connectivity, raw, others)


def measure(
    labels: xr.DataArray,
    raw: xr.DataArray | None = None,
    *,
    connectivity: int = 26,
    connected: bool | None = None,
    contacts: Mapping[str, xr.DataArray] | None = None,
    voxel_size_nm: Sequence[float] | None = None,
    block: Sequence[int] | None = None,
    client: "Client | None" = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the objects of a mask, or of labels: one row each.

    The volume is read in blocks, and memory is needed for some of these and for the table. The result does not depend
    on the blocks, nor on the workers: objects are numbered by their first voxel in the order of z, y, x, as
    `skimage.measure.label` numbers those of a mask. Only `mean_raw` of a floating-point image may differ in its last
    digits.

    Args:
        labels: A mask or labels (z, y, x), such as `ds.mito`; 0 is the background. Integers or bool.
        raw: An image of the same voxels, of which the mean over each object is taken.
        connectivity: Which neighbours belong together: 6 (faces), 18 (and edges) or 26 (and corners).
        connected: Whether an object is what is connected and has one value; otherwise it is all voxels of one value.
            None: connected for a mask; for labels (the attribute `kind` is `instances`) one value is one object.
        contacts: Further masks by name. For each, the area is measured at which an object touches it.
        voxel_size_nm: Size (z, y, x) of a voxel in nm. None: what the store says that `labels` was opened from, or
            the attribute `voxel_size_nm` of `labels`, if it has it.
        block: Voxels (z, y, x) of a block. None chooses it from the chunks of `labels`.
        client: The cluster to work on. None selects the client that dask would use, or threads of this process.
        path: A new file for the table, `.parquet` or `.csv`.
        progress: Whether to report the progress on standard error.

    Returns:
        A table with the columns `label` (from 1; the value, where one value is one object), `num_voxels`, `volume_um3`,
        `z_min`, `z_max`, `y_min`, `y_max`, `x_min`, `x_max` (each max exclusive), `centroid_z`, `centroid_y`,
        `centroid_x`, `touches_border` (whether it ends at the border of the volume, and may go on), `num_faces` (of
        voxels, to anything else inside the volume), `surface_um2` (their area, which is more than that of a smooth
        surface: 1.5 times for a ball), `mean_raw`, and for each of `contacts` `contact_NAME_faces` and
        `contact_NAME_um2`. Positions are the coordinates of `labels` where these run one by one, else voxels. Columns
        in um need the voxel size, and `mean_raw` needs `raw`; else they are left out.

    Raises:
        InvalidArgumentError: An argument cannot be used. (ValueError)
        MissingExtraError: The extra `measure` is not installed. (ImportError)
        LiverDaskError: The archive cannot be read.
    """
    if contacts is not None and not isinstance(contacts, Mapping):
        raise InvalidArgumentError(f'contacts is a {type(contacts).__name__}; give masks by name: {{"er": ds.er}}.')
    contacts = dict(contacts or {})
    work = _plan(labels, raw, connectivity, connected, contacts, block)
    size = _voxel_size_in(labels) if voxel_size_nm is None else voxel_size_nm
    voxel_size = None if size is None else check_voxel_size(size)
    target = None if path is None else check_table_path(path)
    objects = work.run(client, progress)
    table = table_of(objects, labels, voxel_size, raw is not None, list(contacts))
    if target is not None:
        write_table(table, target)
    return table


def _voxel_size_in(labels: xr.DataArray) -> Any:
    """Return the voxel size that a variable has, or the store that it was opened from; None if neither has one."""
    placed = placement_of(labels.variable)
    is_stored = placed is not None and read_record(placed.array.parent) is not None
    return labels.attrs.get("voxel_size_nm") or (voxel_size_of(placed.array.parent) if placed and is_stored else None)


def label_objects(
    labels: xr.DataArray,
    *,
    connectivity: int = 26,
    block: Sequence[int] | None = None,
    client: "Client | None" = None,
    progress: bool = True,
) -> xr.DataArray:
    """Number the connected objects of a mask, or of labels, as `measure` does.

    The volume is read once now, and again when the result is computed.

    Args:
        labels: A mask or labels (z, y, x), see `measure`.
        connectivity: Which neighbours belong together: 6, 18 or 26.
        block: Voxels (z, y, x) of a block. None chooses it from the chunks of `labels`.
        client: The cluster to work on now. None selects the client that dask would use, or threads of this process.
        progress: Whether to report the progress on standard error.

    Returns:
        A lazy uint32 DataArray (z, y, x) with the number of each voxel's object, 0 for none.

    Raises:
        InvalidArgumentError: An argument cannot be used. (ValueError)
        MissingExtraError: The extra `measure` is not installed. (ImportError)
        LiverDaskError: The archive cannot be read.
    """
    work = _plan(labels, None, connectivity, True, {}, block, size_of_flat_blocks)
    joined = work.run(client, progress)
    return labelled(labels, work.volume.variables[OBJECTS], joined, connectivity, is_mask=work.is_mask)


@dataclass(frozen=True)
class Work:
    """The measurement of a volume.

    Attributes:
        volume: What is read.
        blocks: The blocks, in the order of z, y, x.
        connectivity: Which neighbours are connected.
        connected: Whether objects are connected, or all voxels of one value.
        is_mask: Whether all values but 0 are the same.
    """

    volume: Volume
    blocks: Sequence[Block]
    connectivity: int
    connected: bool
    is_mask: bool

    def run(self, client: "Client | None", progress: bool) -> Joined:
        """Label and count all blocks, and put them together."""
        client = client_in_force() if client is None else client
        check_call(client, "raise")
        tasks, found = self._tasks(), dict[int, list[Objects]]()

        def next_job() -> Job | None:
            number, task = next(tasks, (0, None))
            return Job(number, Task.run, (task,)) if task else None

        def take(number: int, future: Future[Any]) -> None:
            result = future.result()
            if isinstance(result, Exception):
                raise result
            found[number] = result

        traffic.take()  # discard the counts from before
        total = prod(self.volume.shape) * self.volume.bytes_of_voxel
        with (
            show_progress("Measuring", total, progress) as advance,
            open_runner(client, lambda report: advance(report.voxel_bytes, "")) as runner,
        ):
            runner.run_all(self.volume.connections, next_job, take)
        objects = [of for number in sorted(found) for of in found[number]]
        return join(objects) if self.connected else join_by_value(objects)

    def _tasks(self) -> Iterator[tuple[int, Task]]:
        """Yield the tasks: single blocks, or all blocks of the same slices where files are read from the top."""
        by_slices = self.volume.is_from_the_top
        groups = groupby(self.blocks, lambda block: block.index[:1] if by_slices else block.index)
        for number, blocks in enumerate(tuple(group) for _, group in groups):
            part = self.volume.part(_box_of(blocks))
            yield number, Task(part, blocks, self.volume.shape, self.connectivity, self.is_mask)


def _is_image(variable: xr.DataArray) -> bool:
    """Return whether a variable is certainly no label: integers without a word may be labels of a user."""
    return kind_of(variable) == "image" and (variable.name == RAW or "kind" in variable.attrs)


def _box_of(blocks: Sequence[Block]) -> Box:
    """Return the box from the first of some blocks to the last."""
    pairs = zip(blocks[0].voxels, blocks[-1].voxels, strict=True)
    z, y, x = (slice(first.start, last.stop) for first, last in pairs)
    return z, y, x


def _plan(
    labels: xr.DataArray,
    raw: xr.DataArray | None,
    connectivity: int,
    connected: bool | None,
    contacts: Mapping[str, xr.DataArray],
    block: Sequence[int] | None,
    choose: Callable[..., Shape] = size_of_blocks,
) -> Work:
    """Check the arguments of `measure`, and plan the blocks."""
    check_extra()
    if not isinstance(connectivity, int) or connectivity not in IN_PLANE:
        raise InvalidArgumentError(f"connectivity={connectivity!r} must be one of {', '.join(map(str, IN_PLANE))}.")
    for name, variable in {"labels": labels, **contacts}.items():
        if isinstance(variable, xr.DataArray) and _is_image(variable):
            raise InvalidArgumentError(
                f"{name} is an image, and objects need a mask or labels: for example, ds.pred > 127."
            )
        if isinstance(variable, xr.DataArray) and variable.dtype.kind not in "biu":
            raise InvalidArgumentError(
                f"{name} is of {variable.dtype}, and objects need a mask or integer labels: for example, ds.pred > 0.5."
            )
    if isinstance(raw, xr.DataArray) and raw.dtype.kind not in "biuf":
        raise InvalidArgumentError(f"raw is of {raw.dtype}; a mean is taken of real numbers.")
    for name in contacts:
        if not isinstance(name, str) or not name.isidentifier():
            raise InvalidArgumentError(f"A contact is named {name!r}; give a word, which becomes part of a column.")
    further = {f"contact {name}": mask for name, mask in contacts.items()}  # no other variable has such a name
    volume = volume_of({OBJECTS: labels, **({} if raw is None else {RAW: raw}), **further})
    if block is None:
        size = choose(volume.shape, volume.chunks, full_width=volume.is_read_by_rows)
    else:
        size = check_lengths("block", block)
    is_one_each = kind_of(labels) == "instances"
    return Work(
        volume,
        list(blocks_of(volume.shape, size)),
        connectivity,
        connected=not is_one_each if connected is None else connected,
        is_mask=kind_of(labels) == "mask",
    )
