"""What must not happen to stores in S3: objects of others removed, a complete store emptied, two writers at once."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import liver_dask as ld
from helpers.object_storage import BUCKET, OTHER, TINY, ObjectStorage, answered, killed_at, put, write
from helpers.places import copied
from helpers.waiting import wait_until
from liver_dask.core.places import ObjectPath
from liver_dask.store import levels as store_levels
from liver_dask.store.clean import clean
from liver_dask.store.storage import claims
from liver_dask.store.storage import s3 as requests
from liver_dask.store.storage.access import storage_of
from liver_dask.store.storage.claims import Claims
from liver_dask.store.targets import open_target

OTHER_BOX = (150, 230, 100, 140, 4, 8)
RECORD_OF_STORE = r"a\.zarr/liver_dask/zarr\.json"


def put_object(place: ObjectPath, data: bytes = b"mine", end: str = "") -> None:
    """Write an object as somebody else."""
    place.call("call_s3", "put_object", Bucket=BUCKET, Key=place.key.removeprefix(f"{BUCKET}/") + end, Body=data)


def write_other(archive: Path, store: ObjectPath) -> None:
    """Write the store of another box, whose shards have the same names."""
    ds = ld.open_human_liver_em(archive, labels=("er",), shape=(10, 300, 420))
    ld.to_zarr(ds, store, bounding_box=OTHER_BOX, progress=False, **TINY)


def test_a_complete_store_is_not_cleaned_away(archive: Path, s3: ObjectStorage) -> None:
    """After a kill between its last object and tidying, a store is complete, and `clean` takes nothing of it."""
    folder = s3.folder()
    killed_at(s3, put(RECORD_OF_STORE), True, lambda: write(archive, folder / "a.zarr"))
    wait_until(lambda: "a.zarr/liver_dask/zarr.json" in s3.objects(folder), 60)  # the last request of a dead process
    complete = {name: data for name, data in s3.objects(folder).items() if ".partial" not in name}
    assert "is removed" in clean(folder / "a.zarr", unfinished=True)
    assert s3.objects(folder) == complete


def test_names_with_patterns_are_names(archive: Path, s3: ObjectStorage) -> None:
    """An address with *, ? and [ is that one address; what it would match as a pattern is not touched."""
    folder = s3.folder()
    for name in ("run1/a.zarr.partial/store/raw/zarr.json", "run1/a.zarr.partial/store/zarr.json", "runx/b"):
        put_object(folder / name)
    before = s3.objects(folder)
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write(archive, folder / "run[1]*?" / "a.zarr"))
    clean(folder / "run[1]*?" / "a.zarr", unfinished=True)
    assert s3.objects(folder) == before
    write(archive, folder / "run[1]*?" / "a.zarr")
    assert {name: data for name, data in s3.objects(folder).items() if "[1]" not in name} == before


@pytest.mark.slow
def test_an_interrupted_pyramid_is_gone_on_with(
    archive: Path, s3: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a level is unfinished, the store below verifies and opens; the same call completes the levels."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 32)
    store = s3.folder() / "a.zarr"
    write(archive, store)
    killed_at(
        s3, put(r"/s1\.partial/progress/.*/shards/er/0-0-0\.json"), True, lambda: ld.add_pyramid(store, progress=False)
    )
    assert any("/pyramid/s1/" in f"/{name}" and "/c/" in name for name in s3.objects(store))
    assert store_levels.levels_of(store) == [(store, (1, 1, 1))]
    report = ld.verify(store, progress=False)
    assert report.ok, report
    ld.add_pyramid(store, progress=False)
    assert len(store_levels.levels_of(store)) == 3
    report = ld.verify(store, progress=False)
    assert report.ok, report


@pytest.fixture
def holder(s3: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Claims, Any, ObjectPath]]:
    """Claims, and one that is held but not renewed any more, as if its process were stopped; and their folder."""
    monkeypatch.setattr(claims.HeldClaim, "_renew_on", lambda claim: None)
    folder = s3.folder()
    several = Claims(folder / "a.zarr.partial", folder / "a.zarr", "store.new")
    with several.held() as held:
        yield several, held, folder


def test_who_was_asleep_asks_before_it_removes_anything(holder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that was stopped finds that another has taken over, whatever its own clock says."""
    several, held, _ = holder
    held.check()
    with monkeypatch.context() as patch:
        patch.setattr(claims, "SECONDS_OF_A_CLAIM", -1.0)
        with several.held() as other:
            other.check()
            for ask in (held.check, held.remove):
                with pytest.raises(ld.StoreExistsError, match="is written by another process since"):
                    ask()
            other.check()


def test_the_claim_of_a_third_is_not_that_of_the_first(
    holder, s3: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another took over, finished and removed all, a new claim of the same number is not the first one's."""
    several, held, folder = holder
    with monkeypatch.context() as patch:
        patch.setattr(claims, "SECONDS_OF_A_CLAIM", -1.0)
        with several.held() as other:
            other.remove()
    assert s3.objects(folder) == {}
    with several.held() as third:
        before = s3.objects(folder)
        with pytest.raises(ld.StoreExistsError):
            held.check()
        held.__exit__()
        assert s3.objects(folder) == before
        third.check()


def test_a_process_is_known_by_its_begin_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of a living process of this machine is not dead; one of a process that has ended is."""
    holder = claims._parsed(claims._content("token"))
    assert not claims._is_dead(holder)
    assert not claims._is_dead({**holder, "machine": "another"})
    assert claims._is_dead({**holder, "since": "1"})
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert claims._is_dead({**holder, "pid": child})


def test_a_storage_without_conditional_writes_is_refused(archive: Path, s3: ObjectStorage) -> None:
    """Where If-None-Match is ignored, two processes could write at once: that is one sentence, and nothing is begun."""
    if OTHER:
        pytest.skip("a server that checks signatures finds that the header is gone")

    def ignoring(asked: Any, application: Any) -> Any:
        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            return application(environ, start_response)

        return answer

    folder = s3.folder()
    s3.disturb = ignoring
    with pytest.raises(ld.InvalidArgumentError, match="does not keep to If-None-Match"):
        write(archive, folder / "a.zarr")
    assert not s3.objects(folder)


def test_a_storage_that_does_not_read_the_end_of_an_object_is_refused(archive: Path, s3: ObjectStorage) -> None:
    """Shards could be written there and never read: that is one sentence, and nothing is left."""
    folder = s3.folder()
    s3.disturb = lambda asked, application: (
        answered("501 Not Implemented", "NotImplemented") if asked.range.startswith("bytes=-") else application
    )
    with pytest.raises(ld.InvalidArgumentError, match="does not read the end of an object"):
        write(archive, folder / "a.zarr")
    assert not s3.objects(folder)


def test_a_storage_that_tells_codes_alone(archive: Path, s3: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceph says neither which condition failed nor a message: a name that is taken is known, and errors are told."""

    def of_few_words(asked: Any, application: Any) -> Any:
        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            told: list[Any] = []
            body = b"".join(application(environ, lambda *arguments: told.extend(arguments)))
            if told[0][0] in "45":
                body = re.sub(rb"<(Message|Condition)>.*?</\1>", b"", body, flags=re.DOTALL)
                told[1] = [(name, value) for name, value in told[1] if name.lower() != "content-length"]
            start_response(*told)
            return [body]

        return answer

    folder = s3.folder()
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_RENEWALS", 0.2)
    s3.disturb = of_few_words
    write(archive, folder / "a.zarr")
    write(archive, folder / "a.zarr")
    with (
        Claims(folder / "b.partial", folder / "b", "").held(),
        pytest.raises(ld.StoreExistsError, match="is being written"),
    ):
        write(archive, folder / "b")
    with pytest.raises(ld.InvalidArgumentError, match="no such bucket"):
        write(archive, ObjectPath("s3://nowhere/a.zarr", s3.options))


def test_a_conflict_of_conditional_writes_is_tried_again(
    archive: Path, s3: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS refuses a conditional write while another request for the same name is under way, and says to repeat it."""
    told: list[str] = []

    def conflicting(asked: Any, application: Any) -> Any:
        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            if "HTTP_IF_NONE_MATCH" not in environ or len(told) >= conflicts:
                return application(environ, start_response)
            told.append(asked.path)
            start_response("409 Conflict", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ConditionalRequestConflict</Code><Message>again</Message></Error>"]

        return answer

    monkeypatch.setattr(requests, "SECONDS_BETWEEN_TRIES", 0.01)
    conflicts = 3
    s3.disturb = conflicting
    write(archive, s3.folder() / "a.zarr")
    assert len(told) == 3
    conflicts = 1000
    with pytest.raises(ld.InvalidArgumentError, match="again"):
        write(archive, s3.folder() / "b.zarr")
    assert len(told) == 3 + requests.TRIES_OF_CONFLICTS


@pytest.mark.slow
@pytest.mark.parametrize("where", ["s3", "folder"])
def test_a_killed_clean_leaves_what_can_be_gone_on_with(
    archive: Path, s3: ObjectStorage, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the middle of `clean --unfinished` leaves a store that the same call completes, or none."""
    store = (s3.folder() if where == "s3" else tmp_path) / "a.zarr"
    killing = put(r"a\.zarr/zarr\.json")
    if where == "s3":
        killed_at(s3, killing, False, lambda: write(archive, store))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(type(storage_of(store)), "publish", _fail)
            with pytest.raises(OSError, match="broken"):
                write(archive, store)
    for number in (0, 2):
        with monkeypatch.context() as patch:
            patch.setattr(type(storage_of(store)), "remove", _failing_after(number, type(storage_of(store)).remove))
            with pytest.raises(OSError, match="broken") if where == "s3" else monkeypatch.context():
                clean(store, unfinished=True)
        write(archive, store)
        report = ld.verify(store, progress=False)
        assert report.ok, report
        if where == "folder":
            break
        storage_of(store).remove_tree(store)
        killed_at(s3, killing, False, lambda: write(archive, store))


def _fail(*_: Any) -> None:
    raise OSError(5, "broken", "a")


def _failing_after(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    done = 0
    lock = threading.Lock()

    def calling(self: Any, place: Any) -> Any:
        nonlocal done
        with lock:
            done += "/c/" in str(place)
        return _fail() if done > count else call(self, place)

    return calling


def test_a_store_of_somebody_else_is_not_overwritten(archive: Path, s3: ObjectStorage) -> None:
    """A Zarr store that came to the place of an unfinished one is refused, and kept."""
    folder = s3.folder()
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write(archive, folder / "a.zarr"))
    put_object(folder / "a.zarr" / "zarr.json", b"{}")
    before = s3.objects(folder / "a.zarr")
    with pytest.raises(ld.StoreExistsError, match="holds"):
        write(archive, folder / "a.zarr")
    assert s3.objects(folder / "a.zarr") == before


def test_the_unfinished_store_of_another_call_stays(archive: Path, s3: ObjectStorage) -> None:
    """A complete store that came beside an unfinished one of another box is returned, and that one is kept."""
    folder = s3.folder()
    write(archive, folder / "b.zarr")
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write_other(archive, folder / "a.zarr"))
    copied(folder / "b.zarr", folder / "a.zarr")
    slabs = {name for name in s3.objects(folder) if "/slabs/" in name}
    write(archive, folder / "a.zarr")
    assert slabs
    assert slabs <= s3.objects(folder).keys()


def test_cleaning_beside_a_store_that_was_copied_there(archive: Path, s3: ObjectStorage) -> None:
    """A complete store that came to the place of an unfinished one of another box keeps its shards, which have the
    same names.
    """
    folder = s3.folder()
    write(archive, folder / "b.zarr")
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write_other(archive, folder / "a.zarr"))
    copied(folder / "b.zarr", folder / "a.zarr")
    complete = s3.objects(folder / "a.zarr")
    assert "is kept" in clean(folder / "a.zarr")
    assert any("/slabs/" in name for name in s3.objects(folder))
    clean(folder / "a.zarr", unfinished=True)
    assert s3.objects(folder / "a.zarr") == complete
    assert not any(".partial" in name for name in s3.objects(folder))


def test_a_late_slab_of_another_call_is_not_used(archive: Path, s3: ObjectStorage) -> None:
    """A slab whose upload ends after its store was cleaned, and another one begun there, is in none of them."""
    folder = s3.folder()
    killed_at(s3, put("/shards/raw/0-0-0.npy"), True, lambda: write_other(archive, folder / "a.zarr"))
    late = {name: data for name, data in s3.objects(folder).items() if "/slabs/" in name}
    assert late
    clean(folder / "a.zarr", unfinished=True)
    killed_at(s3, put("/slabs/er/2-0"), True, lambda: write(archive, folder / "a.zarr"))
    for name, data in late.items():
        put_object(folder / name, data)
    write(archive, folder / "a.zarr")
    report = ld.verify(folder / "a.zarr", progress=False, full=True)
    assert report.ok, report


def test_uploads_that_may_not_be_listed(archive: Path, s3: ObjectStorage) -> None:
    """Who may not list the uploads of a bucket leaves nothing beside a store nevertheless."""
    folder = s3.folder()

    def refused(environ: Any, start_response: Any) -> list[bytes]:
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]

    s3.disturb = lambda asked, application: refused if re.match("uploads", asked.query) else application
    write(archive, folder / "a.zarr")
    assert not any(".partial" in name for name in s3.objects(folder))


def test_empty_objects_in_place_of_folders(archive: Path, s3: ObjectStorage) -> None:
    """Objects of no bytes whose names end with a slash, which some tools write for folders, change nothing and stay."""
    folder = s3.folder()
    marks = ["a.zarr/", "a.zarr/raw/c/", "a.zarr.partial/", "a.zarr.partial/store/"]
    for name in marks:
        put_object(folder / name.rstrip("/"), b"", "/")
    write(archive, folder / "a.zarr")
    report = ld.verify(folder / "a.zarr", progress=False)
    assert report.ok, report
    found = s3.objects(folder)
    assert {name for name in found if name.endswith("/")} == set(marks)
    assert {name for name in found if ".partial" in name} == {"a.zarr.partial/", "a.zarr.partial/store/"}


def test_files_of_somebody_in_the_folder_of_progress(archive: Path, s3: ObjectStorage) -> None:
    """What others wrote where progress is noted is refused, and stays."""
    folder = s3.folder()
    put_object(folder / "a.zarr.partial/progress/slabs/notes.txt")
    with pytest.raises(ld.StoreExistsError, match="liver_dask did not write"):
        write(archive, folder / "a.zarr")
    assert list(s3.objects(folder)) == ["a.zarr.partial/progress/slabs/notes.txt"]


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("s3://b/a.zarr", ["key"], "storage_options must be a dict"),
        ("s3://b/a.zarr", {"no_such_option": 1}, None),
        ("s3://key:secret@b/a.zarr", None, "give storage_options"),
        ("s3://b/a.zarr?versionId=1", None, "leave the version out"),
        ("file://folder/a.zarr", None, "three slashes"),
        ("~no-such-user/a.zarr", None, "Cannot write|is no path"),
    ],
)
def test_addresses_that_cannot_be_used_are_one_sentence(
    archive: Path, path: str, options: Any, said: str | None
) -> None:
    """Wrong addresses and options are one sentence that repeats no password."""
    ds = ld.open_human_liver_em(archive, shape=(10, 300, 420))
    with pytest.raises((ld.LiverDaskError, OSError), match=said) as told:
        ld.to_zarr(ds, path, storage_options=options, progress=False)
    assert "key:secret" not in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("end", [pytest.param(r"a\.zarr/zarr\.json", marks=pytest.mark.real), RECORD_OF_STORE])
def test_what_is_cleaned_away_while_it_is_published_is_no_store_of_zeros(
    archive: Path, s3: ObjectStorage, end: str
) -> None:
    """After a kill between what readers open and the record, `clean` takes all that was copied; the same call works."""
    folder = s3.folder()
    killed_at(s3, put(end), False, lambda: write(archive, folder / "a.zarr"))
    assert any(name.startswith("a.zarr/") for name in s3.objects(folder))
    assert "is removed" in clean(folder / "a.zarr", unfinished=True)
    assert not s3.objects(folder)
    write(archive, folder / "a.zarr")
    assert ld.verify(folder / "a.zarr", progress=False).ok


@pytest.mark.slow
def test_the_late_record_of_another_call_is_not_published(archive: Path, s3: ObjectStorage) -> None:
    """A record that lands while another call writes is no record of that one's voxels: it ends in one sentence."""
    folder = s3.folder()
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write_other(archive, folder / "a.zarr"))
    late = s3.objects(folder)["a.zarr.partial/store/liver_dask/zarr.json"]
    clean(folder / "a.zarr", unfinished=True)

    def disturb(asked: Any, application: Any) -> Any:
        if asked.method == "PUT" and asked.path.endswith(".partial/store/raw/manifest.json"):
            s3.undisturbed()
            put_object(folder / "a.zarr.partial" / "store" / "liver_dask" / "zarr.json", late)
        return application

    s3.disturb = disturb
    with pytest.raises(ld.StoreExistsError, match=r"another call.*clean --unfinished"):
        write(archive, folder / "a.zarr")
    assert "a.zarr/liver_dask/zarr.json" not in s3.objects(folder)
    clean(folder / "a.zarr", unfinished=True)
    write(archive, folder / "a.zarr")
    assert ld.verify(folder / "a.zarr", progress=False, full=True).ok


def test_a_late_shard_of_another_call_replaces_nothing(archive: Path, s3: ObjectStorage) -> None:
    """Shards are written under the condition that there is none, so that a late request for one is refused."""
    folder = s3.folder()
    conditions: dict[str, list[str | None]] = {}

    def disturb(asked: Any, application: Any) -> Any:
        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            if asked.method == "PUT" and "/c/" in asked.path and "/partial" not in asked.path and not asked.is_copy:
                conditions.setdefault(asked.path, []).append(environ.get("HTTP_IF_NONE_MATCH"))
            return application(environ, start_response)

        return answer

    put_object(folder / "a.zarr" / "er" / "c" / "0" / "0" / "0", b"of an earlier call")
    storage = storage_of(folder)
    s3.disturb = disturb
    storage.write(folder / "a.zarr" / "er" / "c" / "0" / "0" / "0", [b"right"], folder / "part")
    assert (folder / "a.zarr" / "er" / "c" / "0" / "0" / "0").read_bytes() == b"right"
    assert set(map(tuple, conditions.values())) == {("*", "*")}
    conditions.clear()
    write(archive, folder / "b.zarr")
    shards = {path: of for path, of in conditions.items() if "/b.zarr/er/c/" in path}
    assert shards
    assert all(of == ["*"] for of in shards.values())


def test_what_lies_at_an_address_is_not_read_if_it_cannot_be_of_the_store(archive: Path, s3: ObjectStorage) -> None:
    """Somebody's large object beside an unfinished store is refused by its size."""
    folder = s3.folder()
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write(archive, folder / "a.zarr"))
    put_object(folder / "a.zarr" / "film.mp4", bytes(1 << 20))
    read: list[str] = []
    s3.disturb = lambda asked, application: (
        read.append(asked.path) if asked.method == "GET" and "film" in asked.path else None,
        application,
    )[1]
    with pytest.raises(ld.StoreExistsError):
        write(archive, folder / "a.zarr")
    assert not read


def test_a_refusal_leaves_no_claim(archive: Path, s3: ObjectStorage) -> None:
    """A storage without conditional writes is refused at once each time; what is left does not count as a writer."""

    def ignoring(asked: Any, application: Any) -> Any:
        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            return application(environ, start_response)

        return answer

    if OTHER:
        pytest.skip("a server that checks signatures finds that the header is gone")
    folder = s3.folder()
    s3.disturb = ignoring
    for _ in range(2):
        with pytest.raises(ld.InvalidArgumentError, match="does not keep to If-None-Match"):
            write(archive, folder / "a.zarr")
    assert not s3.objects(folder)


def test_what_a_late_call_leaves_does_not_occupy_the_address(archive: Path, s3: ObjectStorage) -> None:
    """Metadata of an unfinished store that were written after it was tidied away are no files of somebody else."""
    folder = s3.folder()
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write(archive, folder / "a.zarr"))
    late = {name: data for name, data in s3.objects(folder).items() if "/store/" in name and "record" not in name}
    clean(folder / "a.zarr", unfinished=True)
    for name, data in late.items():
        if not name.endswith("store/liver_dask/zarr.json"):
            put_object(folder / name, data)
    write(archive, folder / "a.zarr")
    assert ld.verify(folder / "a.zarr", progress=False).ok
    assert not any(".partial" in name for name in s3.objects(folder))


def test_addresses_where_nothing_is(s3: ObjectStorage, archive: Path) -> None:
    """Say so, and not that there is a store; a misspelt option is named, and a Path of an address is refused."""
    folder = s3.folder()
    with pytest.raises(ld.SliceNotFoundError, match="There is nothing at"):
        open_target(str(folder / "a.zarr"), storage_options=s3.options)
    with pytest.raises(ld.SliceNotFoundError, match="There is nothing at"):
        open_target("s3://nowhere/a.zarr", storage_options=s3.options)
    assert "no store either" in clean(folder / "a.zarr")
    with pytest.raises(ld.InvalidArgumentError, match=r"s3 has no option 'endpont_url'"):
        write(archive, f"s3://{BUCKET}/x.zarr", storage_options={"endpont_url": "http://x"})
    for wrong in (Path(f"s3://{BUCKET}/x.zarr"), f"s3:/{BUCKET}/x.zarr"):
        with pytest.raises(ld.InvalidArgumentError, match="two slashes"):
            write(archive, wrong)
