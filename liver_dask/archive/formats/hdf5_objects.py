"""Objects of an HDF5 file: the superblock, headers of groups and datasets, and links between them."""

from collections.abc import Iterator
from typing import NamedTuple

from .hdf5_metadata import SIGNATURE, DamagedError, Fields, Hdf5Error, Metadata
from .hdf5_trees import dense_links

DATASPACE, LINK_INFO, DATATYPE, OLD_FILL, FILL, LINK, EXTERNAL_FILES, LAYOUT = 1, 2, 3, 4, 5, 6, 7, 8
FILTERS, CONTINUATION, SYMBOL_TABLE = 0x0B, 0x10, 0x11
LAST_KNOWN = 0x18
"""Numbers of the messages of an object's header."""

SHARED, FAIL_IF_UNKNOWN = 0x02, 0x80
"""Flags of a message."""

SOFT_LINK = 2
"""Kind of an entry of a symbol table."""

MOST_HEADER_BLOCKS = 256
MOST_HEADER_BYTES = 16 << 20
MOST_NODES = 100_000
"""Limits for damaged files, far above what files have."""

DEEPEST = 32
"""Levels of a tree."""


class Message(NamedTuple):
    """A message of an object's header.

    Attributes:
        kind: Its number.
        flags: SHARED and others.
        body: Its content.
    """

    kind: int
    flags: int
    body: bytes


class Link(NamedTuple):
    """A link in a group.

    Attributes:
        name: Its name.
        header: Address of the object's header; None for soft and external links.
    """

    name: bytes
    header: int | None


def open_file(metadata: Metadata) -> int:
    """Find and read the superblock; return the address of the header of the root group."""
    place = 0
    while metadata.read(place, min(len(SIGNATURE), max(metadata.size - place, 0))).data != SIGNATURE:
        place = max(2 * place, 512)  # what is in front of the superblock is not HDF5's
        if place >= metadata.size:
            raise DamagedError("it has no signature of HDF5")
    metadata.base = place
    version = metadata.read(8, 1).number(1)
    if version not in (0, 1, 2, 3):
        raise DamagedError(f"its superblock has the version {version}")
    sizes = metadata.read(13 if version < 2 else 9, 2)
    metadata.address_bytes, metadata.length_bytes = sizes.number(1), sizes.number(1)
    if metadata.address_bytes not in (2, 4, 8) or metadata.length_bytes not in (2, 4, 8):
        raise DamagedError("its superblock has sizes of addresses that do not exist")
    root = _old_root(metadata, version) if version < 2 else _root(metadata)
    if root is None:
        raise DamagedError("it has no root group")
    return root


def _old_root(metadata: Metadata, version: int) -> int | None:
    """Return the address of the root group by a superblock of version 0 or 1."""
    skipped = 24 if version == 0 else 28
    fields = metadata.read(skipped, 6 * metadata.address_bytes)
    base, _, end, driver = (fields.address() for _ in range(4))
    _check_end(metadata, base, end)
    if driver is not None:
        raise Hdf5Error("is one of several files that form an HDF5, which is not supported")
    fields.address()  # of a name
    return fields.address()


def _root(metadata: Metadata) -> int | None:
    """Return the address of the root group by a superblock of version 2 or 3."""
    fields = metadata.read_checked(0, 16 + 4 * metadata.address_bytes, SIGNATURE)
    fields.take(3)
    if fields.number(1) & 0b101:
        raise Hdf5Error("is being written, or was not closed by the program that wrote it")
    base, _, end, root = (fields.address() for _ in range(4))
    _check_end(metadata, base, end)
    return root


def _check_end(metadata: Metadata, base: int | None, end: int | None) -> None:
    """Raise DamagedError if the file is shorter than its superblock says."""
    if base is None or end is None or not 0 <= end - base <= metadata.size - metadata.base:
        raise DamagedError(f"it has {metadata.size} bytes, and its superblock says otherwise")


def read_header(metadata: Metadata, address: int) -> list[Message]:
    """Return the messages of an object's header."""
    is_new = metadata.read(address, 4).data == b"OHDR"
    messages: list[Message] = []
    blocks = [_first_block(metadata, address) if is_new else _first_old_block(metadata, address)]
    size = 0
    for fields, head in blocks:  # continuations are added below
        size += len(fields.data)
        while fields.left >= head:
            kind = fields.number(1 if is_new else 2)
            length, flags = fields.number(2), fields.number(1)
            fields.take(head - 4 if is_new else 3)
            message = Message(kind, flags, fields.take(length))
            if kind == CONTINUATION:
                blocks.append((_next_block(metadata, message, is_new), head))
            messages.append(message)
            if kind > LAST_KNOWN and flags & FAIL_IF_UNKNOWN:
                raise Hdf5Error(f"has an object that cannot be read without knowing messages of the kind {kind}")
        if len(blocks) > MOST_HEADER_BLOCKS or size > MOST_HEADER_BYTES:
            raise DamagedError("the header of an object is too long")
    return messages


def _first_old_block(metadata: Metadata, address: int) -> tuple[Fields, int]:
    """Return the first messages of a header of version 1, and the bytes in front of each body."""
    prefix = metadata.read(address, 16)
    prefix.expect(b"\x01", "the header of an object")
    prefix.take(7)
    return metadata.read(address + 16, min(prefix.number(4), MOST_HEADER_BYTES)), 8


def _first_block(metadata: Metadata, address: int) -> tuple[Fields, int]:
    """Return the first messages of a header of version 2, and the bytes in front of each body."""
    prefix = metadata.read(address, 6)
    prefix.expect(b"OHDR\x02", "the header of an object")
    flags = prefix.number(1)
    before = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    count = 1 << (flags & 3)
    size = min(metadata.read(address + before, count).number(count), MOST_HEADER_BYTES)
    fields = metadata.read_checked(address, before + count + size + 4, b"OHDR")
    fields.take(before - 4 + count)
    return fields, 6 if flags & 4 else 4


def _next_block(metadata: Metadata, message: Message, is_new: bool) -> Fields:
    fields = metadata.fields(message.body)
    address, size = fields.address(), min(fields.length(), MOST_HEADER_BYTES)
    if address is None:
        raise DamagedError("the header of an object has no end")
    return metadata.read_checked(address, size, b"OCHK") if is_new else metadata.read(address, size)


def find_dataset(metadata: Metadata, root: int, path: str) -> list[Message]:
    """Return the header of a dataset. Soft and external links, which a hostile file might contain, are not followed.

    Raises:
        Hdf5Error: There is no such dataset, or the file is damaged.
    """
    parts = [part for part in path.split("/") if part]
    messages = read_header(metadata, root)
    for i, part in enumerate(parts):
        links = list(_links(metadata, messages))
        found = [link for link in links if link.name == part.encode()]
        if len(found) > 1:
            raise DamagedError(f"it has {part} twice")
        if not found or found[0].header is None:
            there = ", ".join(sorted(_shown(link.name) for link in links)[:20])
            where = "/".join(parts[:i]) or "its root"
            raise Hdf5Error(f"has no dataset {path}; {where} has {there or 'nothing'}")
        messages = read_header(metadata, found[0].header)
    kinds = {message.kind for message in messages}
    if LAYOUT not in kinds:
        problem = "a group" if kinds & {SYMBOL_TABLE, LINK_INFO} else "something else"
        raise Hdf5Error(f"has no dataset {path}: that is {problem}")
    return messages


def _shown(name: bytes) -> str:
    """Return a name for an error, in which everything that is not printed is a question mark."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:100].decode(errors="replace"))


def _links(metadata: Metadata, messages: list[Message]) -> Iterator[Link]:
    """Yield the links of a group; none if it is no group."""
    for kind, flags, body in messages:
        if flags & SHARED and kind in (LINK, LINK_INFO, SYMBOL_TABLE):
            raise Hdf5Error("has a group with shared messages, which is not supported")
        if kind == LINK:
            yield _link(metadata.fields(body))
        elif kind == LINK_INFO:
            fields = metadata.fields(body)
            fields.expect(b"\x00", "a list of links")
            fields.take(8 if fields.number(1) & 1 else 0)
            heap, tree = fields.address(), fields.address()
            if heap is not None and tree is not None:
                yield from (_link(metadata.fields(link)) for link in dense_links(metadata, heap, tree))
        elif kind == SYMBOL_TABLE:
            yield from _symbols(metadata, metadata.fields(body))


def _link(fields: Fields) -> Link:
    """Return a link by its message."""
    fields.expect(b"\x01", "a link")
    flags = fields.number(1)
    kind = fields.number(1) if flags & 0x08 else 0
    fields.take((8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0))
    name = fields.take(fields.number(1 << (flags & 3)))
    return Link(name, fields.address() if kind == 0 else None)


def _symbols(metadata: Metadata, fields: Fields) -> Iterator[Link]:
    """Yield the links of a group by its symbol table: a tree of nodes, and a heap with the names."""
    tree, heap = fields.address(), fields.address()
    if tree is None or heap is None:
        raise DamagedError("a group has no list of its links")
    names = _names(metadata, heap)
    nodes, level = [tree], metadata.read(tree + 5, 1).number(1)
    for expected in range(min(level, DEEPEST), -1, -1):  # level by level, so that no circle is followed
        if any(metadata.read(node + 5, 1).number(1) != expected for node in nodes):
            raise DamagedError("the tree of a group is not in order")
        nodes = [child for node in nodes for child in _children(metadata, node)]
        if len(set(nodes)) < len(nodes) or len(nodes) > MOST_NODES:
            raise DamagedError("the tree of a group is not in order")
    for node in nodes:
        yield from _entries(metadata, node, names)


def _names(metadata: Metadata, heap: int) -> bytes:
    fields = metadata.read(heap, 8 + 2 * metadata.length_bytes + metadata.address_bytes)
    fields.expect(b"HEAP\x00", "the list of names of a group")
    fields.take(3)
    size, _, data = fields.length(), fields.length(), fields.address()
    if data is None:
        raise DamagedError("a group has no names")
    return metadata.read(data, size).data


def _children(metadata: Metadata, node: int) -> list[int]:
    """Return the addresses of the nodes below a node of the tree of a group."""
    fields = metadata.read(node, 8)
    fields.expect(b"TREE\x00", "the tree of a group")
    fields.take(1)
    entry = metadata.length_bytes + metadata.address_bytes
    count = fields.number(2)
    fields = metadata.read(node + 8 + 2 * metadata.address_bytes, count * entry + metadata.length_bytes)
    children = []
    for _ in range(count):
        fields.length()
        children.append(fields.address())
    return [child for child in children if child is not None]


def _entries(metadata: Metadata, node: int, names: bytes) -> Iterator[Link]:
    """Yield the links of a node of a symbol table."""
    fields = metadata.read(node, 8)
    fields.expect(b"SNOD\x01", "the list of links of a group")
    fields.take(1)
    count = fields.number(2)
    fields = metadata.read(node + 8, count * (2 * metadata.address_bytes + 24))
    for _ in range(count):
        name, header = fields.address(), fields.address()
        kind = fields.number(4)
        fields.take(20)
        end = names.find(b"\0", name)
        if name is None or end < 0:
            raise DamagedError("a group has a link without a name")
        yield Link(names[name:end], header if kind != SOFT_LINK else None)
