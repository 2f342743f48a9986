"""The description of a dataset in an HDF5 file, by the messages of its header: shape, numbers, filters and layout."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .hdf5_metadata import DamagedError, Fields, Hdf5Error, Metadata
from .hdf5_objects import (
    DATASPACE,
    DATATYPE,
    EXTERNAL_FILES,
    FILL,
    FILTERS,
    LAYOUT,
    OLD_FILL,
    SHARED,
    Message,
    read_header,
)

INTEGER, FLOAT, BIT_FIELD, ENUMERATION = 0, 1, 4, 8
"""Classes of types."""

COMPACT, CONTIGUOUS, CHUNKED, VIRTUAL = range(4)
"""Classes of layouts."""

OLD_TREE, SINGLE, IMPLICIT, FIXED_ARRAY, EXTENSIBLE_ARRAY, TREE = range(6)
"""Kinds of indexes of chunks."""

EDGES_UNFILTERED, SINGLE_IS_FILTERED = 1, 2
"""Flags of a layout of chunks."""

UNLIMITED = -1

MOST_FILTERS = 32


@dataclass(frozen=True)
class NumberType:
    """How a number is stored.

    Attributes:
        dtype: Its dtype, if all bits were used.
        first_bit: The lowest of the bits that are used.
        bits: How many bits are used.
    """

    dtype: np.dtype[Any]
    first_bit: int
    bits: int

    def values(self, data: bytes | memoryview) -> npt.NDArray[Any]:
        """Return the numbers in some bytes."""
        values = np.frombuffer(data, self.dtype)
        if self.bits == 8 * self.dtype.itemsize:
            return values
        above = np.uint64(8 * self.dtype.itemsize - self.first_bit - self.bits)
        native = values.astype(self.dtype.newbyteorder("="))  # shifted up and down: that extends the sign
        shift_up, shift_down = above.astype(native.dtype), (above + np.uint64(self.first_bit)).astype(native.dtype)
        return np.right_shift(np.left_shift(native, shift_up), shift_down)


@dataclass(frozen=True)
class Filter:
    """A filter of chunks.

    Attributes:
        code: Its number.
        values: Its parameters.
    """

    code: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the values of a dataset are.

    Attributes:
        kind: COMPACT, CONTIGUOUS or CHUNKED.
        address: Address of the values, or of the index of the chunks; None if there are none.
        data: The values, if they are in the header.
        chunk: Rows and columns of a chunk.
        index: Kind of the index of the chunks.
        flags: EDGES_UNFILTERED and SINGLE_IS_FILTERED.
        has_long_sizes: Whether the index stores sizes of chunks as lengths.
        parameters: Parameters of the index; of CONTIGUOUS, the bytes of all values.
    """

    kind: int
    address: int | None
    data: bytes = b""
    chunk: tuple[int, int] = (0, 0)
    index: int = OLD_TREE
    flags: int = 0
    has_long_sizes: bool = False
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Description:
    """A dataset of two dimensions.

    Attributes:
        shape: Rows and columns.
        limits: Rows and columns up to which it can grow, or UNLIMITED.
        number: How its numbers are stored.
        fill: The value of pixels that are not in the file.
        filters: Filters of its chunks, in the order in which they were applied.
        layout: Where its values are.
    """

    shape: tuple[int, int]
    limits: tuple[int, int]
    number: NumberType
    fill: int
    filters: tuple[Filter, ...]
    layout: Layout


def describe(
    metadata: Metadata, messages: list[Message], name: str, shape: tuple[int, int], wrong_shape: str
) -> Description:
    """Return the description of a dataset.

    Args:
        metadata: The file.
        messages: The header of the dataset.
        name: Its name, for errors.
        shape: Rows and columns that it must have.
        wrong_shape: What to do if it has others, for errors.
    """
    if any(message.kind == EXTERNAL_FILES for message in messages):
        raise Hdf5Error(f"the values of {name} are in other files, which are not opened")
    found, limits = _extent(_only(metadata, messages, DATASPACE))
    if found != shape:
        sizes = " x ".join(map(str, found)) or "no"
        raise Hdf5Error(f"found {sizes} pixels (rows x columns), expected {shape[0]} x {shape[1]}; {wrong_shape}")
    number = _number_type(_type_fields(metadata, messages), name)
    layout = _layout(_only(metadata, messages, LAYOUT), number.dtype.itemsize, name)
    return Description(
        shape, (limits[0], limits[1]), number, _fill(metadata, messages, number), _filters(metadata, messages), layout
    )


def _only(metadata: Metadata, messages: list[Message], kind: int) -> Fields:
    """Return the only message of a kind."""
    found = [message for message in messages if message.kind == kind]
    if len(found) != 1:
        raise DamagedError(f"a dataset has {len(found)} messages of the kind {kind}")
    if found[0].flags & SHARED:
        raise Hdf5Error("shares a part of its header with other datasets, which is not supported")
    return metadata.fields(found[0].body)


def _optional(metadata: Metadata, messages: list[Message], kind: int) -> Fields | None:
    return _only(metadata, messages, kind) if any(message.kind == kind for message in messages) else None


def _extent(fields: Fields) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of a dataset, and the limits of its growth."""
    version, rank, flags = fields.number(1), fields.number(1), fields.number(1)
    is_simple = fields.number(1) == 1
    if version not in (1, 2) or rank > MOST_FILTERS or flags > 1:
        raise DamagedError("a dataset has a shape of an unknown kind")
    if version == 1:
        fields.take(4)
    elif not is_simple:
        return (), ()
    shape = tuple(fields.length() for _ in range(rank))
    if not flags:
        return shape, shape
    limits = []
    for there in shape:
        limit = fields.limit()
        if limit is not None and limit < there:
            raise DamagedError("a dataset is larger than it can grow")
        limits.append(UNLIMITED if limit is None else limit)
    return shape, tuple(limits)


def _type_fields(metadata: Metadata, messages: list[Message]) -> Fields:
    """Return the type of a dataset, which may be an object of its own that several datasets share."""
    shared = [message for message in messages if message.kind == DATATYPE and message.flags & SHARED]
    if len(shared) != 1:
        return _only(metadata, messages, DATATYPE)
    fields = metadata.fields(shared[0].body)
    version, kind = fields.number(1), fields.number(1)
    fields.take(6 if version == 1 else 0)
    if version not in (1, 2, 3) or (version == 3 and kind != 2):
        raise Hdf5Error("shares its type in a way that is not supported")
    address = fields.address()
    if address is None:
        raise DamagedError("a dataset has no type")
    return _only(metadata, read_header(metadata, address), DATATYPE)


def _number_type(fields: Fields, name: str) -> NumberType:
    first = fields.number(1)
    kind, version = first & 15, first >> 4
    bits, size = fields.number(3), fields.number(4)
    if version not in range(1, 6):
        raise DamagedError("a dataset has a type of an unknown version")
    if kind == ENUMERATION:
        return _number_type(fields, name)
    if kind not in (INTEGER, BIT_FIELD):
        found = f"float{8 * size}" if kind == FLOAT else "no numbers"
        raise Hdf5Error(f"the values of {name} are {found}, expected whole numbers")
    first_bit, precision = fields.number(2), fields.number(2)
    is_usual = first_bit + precision >= 4 * size or size == 1  # otherwise HDF5's library takes it for damaged, too
    if size not in (1, 2, 4, 8) or not precision or first_bit + precision > 8 * size or not is_usual:
        raise Hdf5Error(f"the values of {name} are whole numbers of {precision} bits in {size} bytes")
    sign = "i" if kind == INTEGER and bits & 8 else "u"
    return NumberType(np.dtype(f"{'>' if bits & 1 else '<'}{sign}{size}"), first_bit, precision)


def _fill(metadata: Metadata, messages: list[Message], number: NumberType) -> int:
    """Return the value of pixels that are not in the file: 0 if none is defined."""
    new, old = _optional(metadata, messages, FILL), _optional(metadata, messages, OLD_FILL)
    found = []
    if new is not None:
        version, flags = new.number(1), new.number(1)
        is_defined = bool(flags & 0x20)
        if version in (1, 2):
            new.take(1)
            is_defined = bool(new.number(1)) or version == 1
        elif version != 3:
            raise DamagedError("a dataset has a fill value of an unknown kind")
        found.append(_fill_value(new, number) if is_defined else 0)
    if old is not None:
        found.append(_fill_value(old, number))
    if len(set(found)) > 1:
        raise DamagedError("a dataset has two fill values")
    return found[0] if found else 0


def _fill_value(fields: Fields, number: NumberType) -> int:
    """Return a fill value, which follows its size; 0 if its size says that none is defined."""
    size = fields.number(4)
    if size == 0 or size >= 1 << 31:  # which stands for a negative number
        return 0
    if size != number.dtype.itemsize:
        raise DamagedError(f"a dataset has a fill value of {size} bytes")
    return int(number.values(fields.take(size))[0])


def _filters(metadata: Metadata, messages: list[Message]) -> tuple[Filter, ...]:
    fields = _optional(metadata, messages, FILTERS)
    if fields is None:
        return ()
    version, count = fields.number(1), fields.number(1)
    if version not in (1, 2) or count > MOST_FILTERS:
        raise DamagedError("a dataset has filters of an unknown kind")
    fields.take(6 if version == 1 else 0)
    filters = []
    for _ in range(count):
        code = fields.number(2)
        name_bytes = fields.number(2) if version == 1 or code >= 256 else 0
        fields.take(2)
        values = fields.number(2)
        fields.take(-(-name_bytes // 8) * 8 if version == 1 else name_bytes)
        filters.append(Filter(code, tuple(fields.number(4) for _ in range(values))))
        fields.take(4 if version == 1 and values % 2 else 0)
    return tuple(filters)


def _layout(fields: Fields, itemsize: int, name: str) -> Layout:
    version, kind = fields.number(1), fields.number(1)
    if version not in (3, 4, 5):
        raise Hdf5Error(f"has a layout of version {version}, which is not supported; copy it with h5repack")
    if kind == COMPACT:
        return Layout(kind, None, fields.take(fields.number(2)))
    if kind == CONTIGUOUS:
        return Layout(kind, fields.address(), parameters=(fields.length(),))
    if kind == VIRTUAL:
        raise Hdf5Error(f"the values of {name} are in other files, which are not opened")
    if kind != CHUNKED:
        raise DamagedError("a dataset has a layout of an unknown kind")
    flags = fields.number(1) if version > 3 else 0
    rank = fields.number(1)
    address = fields.address() if version == 3 else None
    size_bytes = 4 if version == 3 else fields.number(1)
    sizes = [fields.number(size_bytes) for _ in range(rank)]
    if rank != 3 or sizes[-1] != itemsize or not all(sizes) or flags > 3:
        raise DamagedError("a dataset has chunks of an unknown kind")
    layout = Layout(kind, address, chunk=(sizes[0], sizes[1]), flags=flags, has_long_sizes=version == 5)
    return layout if version == 3 else _with_index(layout, fields)


def _with_index(layout: Layout, fields: Fields) -> Layout:
    """Return a layout with its index, which follows the sizes of the chunks."""
    index = fields.number(1)
    parameters: tuple[int, ...] = ()
    if index == SINGLE and layout.flags & SINGLE_IS_FILTERED:
        parameters = fields.length(), fields.number(4)
    elif index in (FIXED_ARRAY, EXTENSIBLE_ARRAY):
        parameters = tuple(fields.take(1 if index == FIXED_ARRAY else 5))
    elif index == TREE:
        fields.take(6)
    elif index not in (SINGLE, IMPLICIT):
        raise DamagedError("a dataset has an index of an unknown kind")
    return replace(layout, index=index, parameters=parameters, address=fields.address())


def chunk_bytes(description: Description) -> int:
    """Return the bytes of a chunk without filters."""
    return math.prod(description.layout.chunk) * description.number.dtype.itemsize
