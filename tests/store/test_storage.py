"""The storages: a file appears whole or not at all, in a folder, in S3 and in any other storage of fsspec."""

import secrets
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.object_storage import KEY, SECRET, ObjectStorage
from liver_dask.core import places
from liver_dask.core.crc32c import joined
from liver_dask.core.disk import files_below, files_in, is_empty_folder, is_there, size_of, sizes_of
from liver_dask.core.places import ObjectPath, Place, contents_of, path_below, place_of, ranges_of, ranges_of_objects
from liver_dask.core.threads import ContextPool
from liver_dask.store.shards import crc32c_of
from liver_dask.store.storage import parts
from liver_dask.store.storage.access import storage_of
from liver_dask.store.storage.interface import Extent
from liver_dask.store.storage.parts import plan_parts
from liver_dask.store.storage.parts import size_of as size_of_piece


@pytest.fixture(params=["folder", "s3", "memory"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder, in each kind of storage."""
    if request.param == "memory":
        return ObjectPath(f"memory://{secrets.token_hex(6)}/stores")
    return tmp_path if request.param == "folder" else request.getfixturevalue("s3").folder()


def checked(data: bytes) -> bytes:
    """Return bytes with their checksum, as an extent has them."""
    return data + crc32c_of(data)


def test_names_are_those_of_paths() -> None:
    """An address has the parts, the order and the equality of a path, and shows no secret."""
    place = ObjectPath("s3://bucket/a/b.zarr/", {"key": KEY, "secret": SECRET})
    assert str(place / "c" / "0") == "s3://bucket/a/b.zarr/c/0"
    assert (place / "c/0").relative_to(place).as_posix() == "c/0"
    assert path_below(place / "c" / "0", place.parent) == "b.zarr/c/0"
    assert (place.name, place.stem, place.key) == ("b.zarr", "b", "bucket/a/b.zarr")
    assert place.with_name("b.zarr.partial") == ObjectPath("s3://bucket/a/b.zarr.partial")
    assert place.with_suffix(".json").name == "b.json"
    assert sorted([place / "10", place / "9", place]) == [place, place / "10", place / "9"]
    assert len({place, ObjectPath("s3://bucket/a/b.zarr")}) == 1
    assert SECRET not in f"{place} {place!r} {place.__str__()}"


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ("/a/b", Path("/a/b")),
        ("file:///a/b", Path("/a/b")),
        ("memory://a/b/", ObjectPath("memory://a/b")),
        (Path("/a/b"), Path("/a/b")),
    ],
)
def test_what_names_a_place(named: object, place: Place) -> None:
    """Paths and addresses name places."""
    assert place_of(named) == place


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("https://host/a.zarr", "is not a place for a store"),
        ("simplecache::s3://a/b", "is not a place for a store"),
        ("s3://", "is not an address in object storage"),
        ("nowhere://a/b", "cannot be opened: Protocol not known: nowhere"),
    ],
)
def test_what_names_no_place(named: str, said: str) -> None:
    """Other addresses are one sentence."""
    with pytest.raises(ld.InvalidArgumentError, match=said):
        place_of(named)


def test_a_file_is_written_and_read(anywhere: Place) -> None:
    """What was written is read; it may be replaced and removed."""
    storage, place = storage_of(anywhere), anywhere / "a" / "b"
    assert not is_there(place)
    storage.make_folders([anywhere / "a"])
    storage.write(place, [b"one", b"", b"two"])
    assert place.read_bytes() == b"onetwo"
    assert (size_of(place), is_there(anywhere / "a"), place.is_file(), place.is_dir()) == (6, True, True, False)
    assert ranges_of(place, [(1, 4), (0, 1), (5, 6)]) == [b"net", b"o", b"o"]
    storage.write(place, [b"other"])
    assert place.read_text() == "other"
    assert [path.name for path in files_in(anywhere / "a")] == ["b"]
    storage.remove(place)
    storage.remove(place)
    assert not is_there(place)
    with pytest.raises(FileNotFoundError):
        place.read_bytes()


def test_a_file_is_written_once(anywhere: Place) -> None:
    """Of many that write the same file at once, exactly one does, and none replaces its bytes."""
    storage, place = storage_of(anywhere), anywhere / "once"
    with ContextPool(8) as pool:
        wrote = list(pool.map(lambda number: storage.write_new(place, b"%d" % number), range(8)))
    assert sum(wrote) == 1
    assert place.read_bytes() == b"%d" % wrote.index(True)
    assert [path.name for path in files_in(anywhere)] == ["once"]


def test_what_is_below_a_folder(anywhere: Place) -> None:
    """The files below a folder are listed with their sizes, and removed with it."""
    storage = storage_of(anywhere)
    names = ["a/0", "a/b/1", "a/b/2", "ab/3"]
    storage.make_folders([anywhere / "a" / "b", anywhere / "ab"])
    for name in names:
        storage.write(anywhere / name, [name.encode()])
    found = sorted(path_below(path, anywhere) for path in files_below(anywhere, {anywhere / "a" / "b"}))
    assert found == ["a/0", "ab/3"]
    assert sorted(path.name for path in files_in(anywhere)) == ["a", "ab"]
    assert sizes_of(anywhere / "a", ["b/2", "c", "0"]) == [5, None, 3]
    assert contents_of([anywhere / name for name in names]) == [name.encode() for name in names]
    storage.remove_tree(anywhere / "a")
    storage.remove_tree(anywhere / "a")
    assert sorted(path_below(path, anywhere) for path in files_below(anywhere)) == ["ab/3"]
    assert not is_there(anywhere / "a")
    assert not is_empty_folder(anywhere / "ab")
    with pytest.raises(OSError, match="not empty"):
        storage.remove_folder(anywhere / "ab")


def test_a_file_is_joined_from_others(anywhere: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of extents of others, and of bytes between them, is what it should be, however long they are."""
    storage = storage_of(anywhere)
    megabytes = [checked(secrets.token_bytes(size)) for size in (6 << 20, 100, 11 << 20, 3 << 20, 1, 5 << 20)]
    ends = [0, *accumulate(map(len, megabytes))]
    storage.write(anywhere / "slab", megabytes)
    extents = [Extent(anywhere / "slab", start, len(data)) for start, data in zip(ends, megabytes, strict=False)]
    order = [2, 0, 1, 3, 5, 4, 5]
    storage.write(anywhere / "shard", [b"first", *(extents[i] for i in order), b"last"])
    expected = b"".join([b"first", *(megabytes[i] for i in order), b"last"])
    assert (anywhere / "shard").read_bytes() == expected
    with pytest.raises(FileNotFoundError):
        storage.write(anywhere / "other", [Extent(anywhere / "gone", 0, 6 << 20), b"last"])
    assert not is_there(anywhere / "other")


def test_a_part_that_fails_leaves_no_upload(s3: ObjectStorage) -> None:
    """An object whose parts cannot all be made does not appear, and its upload is given up."""
    folder = s3.folder()
    storage_of(folder).write(folder / "slab", [bytes(6 << 20)])
    with pytest.raises(OSError, match=r"InvalidRange|the storage joined"):
        storage_of(folder).write(
            folder / "shard", [Extent(folder / "slab", 0, 6 << 20), Extent(folder / "slab", 5 << 20, 9 << 20)]
        )
    assert list(s3.objects(folder)) == ["slab"]
    assert s3.uploads(folder) == []


pieces_of = st.lists(
    st.one_of(
        st.integers(0, 40).map(lambda size: bytes(size)),
        st.tuples(st.integers(0, 2), st.integers(0, 90), st.integers(0, 90)).map(
            lambda of: Extent(ObjectPath(f"s3://b/{of[0]}"), of[1], of[2])
        ),
    ),
    max_size=12,
)


@settings(max_examples=500, deadline=None)
@given(pieces=pieces_of)
def test_parts_are_what_s3_accepts(pieces: list[parts.Piece]) -> None:
    """All parts but the last are long enough, no copy is too long, and together they are the pieces in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "LEAST", 10)
        patch.setattr(parts, "UPLOADED_AT_ONCE", 25)
        patch.setattr(parts, "COPIED_AT_ONCE", 40)
        made = list(plan_parts(pieces))
    assert all(part.size >= 10 for part in made[:-1])
    assert all(part.size <= 40 for part in made if part.is_copy)
    assert all(part.size < 25 + 40 + 10 + 90 for part in made)

    def voxels(of: list[parts.Piece]) -> list[object]:
        return [
            byte
            for piece in of
            for byte in (
                [(piece.place.name, piece.start + i) for i in range(piece.length)]
                if isinstance(piece, Extent)
                else piece
            )
        ]

    assert voxels([piece for part in made for piece in part.pieces]) == voxels(pieces)
    uploaded = sum(part.size for part in made if not part.is_copy)
    lone = sum(size_of_piece(piece) for piece in pieces if not isinstance(piece, Extent) or piece.length < 20)
    assert uploaded <= lone + 10 * len(pieces)


@settings(max_examples=200, deadline=None)
@given(strings=st.lists(st.binary(max_size=200), max_size=8))
def test_checksums_are_joined(strings: list[bytes]) -> None:
    """The CRC-32C of several byte strings follows from that of each."""
    found = 0
    for data in strings:
        found = joined(found, google_crc32c.value(data), len(data))
    assert found == google_crc32c.value(b"".join(strings))


@settings(max_examples=100, deadline=None)
@given(wanted=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 999), st.integers(1, 400)), max_size=12))
def test_ranges_of_objects(wanted: list[tuple[int, int, int]]) -> None:
    """Ranges of several objects, near or far from each other, are those bytes; what is too long is an error."""
    contents = [bytes(i % 251 for i in range(start, start + 1400)) for start in (0, 77)]
    folder = ObjectPath(f"memory://{secrets.token_hex(6)}/ranges")
    for number, content in enumerate(contents):
        storage_of(folder).write(folder / str(number), [content])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "GAP", 50)
        patch.setattr(places, "LONGEST_REQUEST", 300)
        found = ranges_of_objects([(folder / str(of), start, start + length) for of, start, length in wanted])
        assert [bytes(data) for data in found] == [contents[of][start : start + length] for of, start, length in wanted]
        with pytest.raises(OSError, match="the storage sent"):
            ranges_of_objects([(folder / "0", 1300, 1401)])


def test_neighbouring_ranges_are_one_request(s3: ObjectStorage) -> None:
    """Ranges next to each other are fetched together, distant ones by a request each."""
    folder = s3.folder()
    storage_of(folder).write(folder / "a", [bytes(1 << 20)])
    s3.asked.clear()
    ranges_of_objects([(folder / "a", start, start + 1000) for start in (0, 1000, 3000, 500_000)])
    assert sorted(asked.range for asked in s3.asked) == ["bytes=0-3999", "bytes=500000-500999"]


def test_what_is_begun_anew_is_not_removed_first(s3: ObjectStorage) -> None:
    """What another call left is removed, but no object is removed and written: a request may be carried out late."""
    folder = s3.folder()
    storage = storage_of(folder)
    files = {"zarr.json": b"root", "y/c/0": b"y", "liver_dask/zarr.json": b"record"}
    for name in ("zarr.json", "y/c/0", "er/zarr.json"):
        storage.write(folder / "store" / name, [b"left"])
    s3.asked.clear()
    storage.begin(folder / "store", folder / "store.new", files, [])
    assert s3.objects(folder / "store") == files
    removed = [asked.path for asked in s3.asked if asked.method == "DELETE" or asked.query == "delete"]
    assert removed == [f"/{(folder / 'store' / 'er' / 'zarr.json').key}"]


def test_an_object_that_is_lost_while_a_store_is_begun(s3: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that does not keep an object is an error, before the store counts as begun or complete."""
    folder = s3.folder()
    storage = storage_of(folder)
    files = {"zarr.json": b"root", "y/c/0": b"y", "liver_dask/zarr.json": b"record"}
    really = type(storage).write
    for lost in ("store/y/c/0", "target/y/c/0"):
        with monkeypatch.context() as patch:
            patch.setattr(
                type(storage),
                "write",
                lambda self, place, *rest, lost=lost: None if place == folder / lost else really(self, place, *rest),
            )
            with pytest.raises(OSError, match="has not kept"):
                _begin_and_publish(folder, files)
        assert "target/liver_dask/zarr.json" not in s3.objects(folder)


def _begin_and_publish(folder: Place, files: dict[str, bytes]) -> None:
    storage_of(folder).begin(folder / "store", folder / "store.new", files, [])
    storage_of(folder).publish(folder / "store", folder / "target", "liver_dask/zarr.json", lambda: None)


@pytest.fixture
def folder_of_files(anywhere: Place) -> Iterator[Place]:
    storage = storage_of(anywhere)
    storage.make_folders([anywhere / "array", anywhere / "labels"])
    for name in ("zarr.json", "0", "1"):
        storage.write(anywhere / "array" / name, [f"content of {name}".encode()])
    return anywhere


def test_a_folder_of_copies_is_put_in_place_of_an_older_one(folder_of_files: Place) -> None:
    """A folder with copies of files replaces an older version of it, and nothing of that stays."""
    storage, array, label = storage_of(folder_of_files), folder_of_files / "array", folder_of_files / "labels" / "a"
    for files in (["0"], ["1"]):
        storage.put_folder(
            label, folder_of_files / "stage", {"zarr.json": b"{}"} | {f"0/{n}": array / n for n in files}
        )
        storage.remove_tree(folder_of_files / "stage")
        assert sorted(path_below(path, label) for path in files_below(label)) == [f"0/{files[0]}", "zarr.json"]
        assert (label / "0" / files[0]).read_bytes() == f"content of {files[0]}".encode()
    assert storage.is_copy(label / "0" / "1", array / "1")
    assert not storage.is_copy(label / "0" / "1", array / "0")


def test_errors_of_a_storage_are_one_sentence_without_a_secret(s3: ObjectStorage) -> None:
    """A bucket that does not exist, no permission, a server that is gone: an OSError that shows no secret."""
    gone = ObjectPath("s3://no-such-bucket/a", s3.options)
    with pytest.raises(FileNotFoundError):
        storage_of(gone).write(gone, [b"a"])
    refused = s3.folder() / "a"
    s3.disturb = lambda asked, application: _denied
    with pytest.raises(PermissionError) as told:
        refused.read_bytes()
    assert SECRET not in str(told.value)
    assert told.value.__context__ is None
    once = {"config_kwargs": {"retries": {"max_attempts": 0}}}
    nested = ObjectPath("s3://b/a", {"client_kwargs": {"aws_secret_access_key": SECRET}, "key": "ab"})
    assert nested.hidden(f"about {SECRET}.") == "about ***"
    nobody = ObjectPath("s3://bucket/a", {**s3.options, **once, "endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9") as told:
        nobody.read_bytes()
    assert SECRET not in str(told.value)


def _denied(environ, start_response) -> list[bytes]:
    start_response("403 Forbidden", [("Content-Type", "application/xml")])
    code = f"<Error><Code>AccessDenied</Code><Message>{KEY} may not {SECRET}</Message></Error>"
    return [b'<?xml version="1.0"?>' + code.encode()]
