"""Stores in S3: who may write, what is kept after a kill, what passes through a process, and what nobody may see."""

import logging
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from distributed import Client, LocalCluster

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.object_storage import (
    BUCKET,
    KEY,
    SECRET,
    TINY,
    TINY_BOX,
    Asked,
    ObjectStorage,
    answered,
    killed_at,
    put,
    write,
)
from liver_dask.cli import main
from liver_dask.core.places import ObjectPath
from liver_dask.demo import serve
from liver_dask.store import levels as store_levels
from liver_dask.store.array import StoredArray
from liver_dask.store.clean import clean
from liver_dask.store.storage import claims, parts
from liver_dask.store.targets import open_target


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the store in a folder."""
    path = Path(write(archive, tmp_path_factory.mktemp("expected") / "a.zarr"))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def short_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SECONDS_OF_A_CLAIM", 2.0)
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_RENEWALS", 0.3)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of a few kilobytes are joined from several parts, as real ones are."""
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 2000)
    monkeypatch.setattr(parts, "LEAST", 2000)


def test_a_store_is_that_of_a_folder(archive: Path, s3: ObjectStorage, expected: dict[str, bytes], small_parts) -> None:
    """Every object is the file of the same store in a folder; nothing is left beside it, and nothing shows the secret.

    Shards are joined within the storage: less than a part of each is uploaded twice.
    """
    folder = s3.folder()
    address = write(archive, str(folder / "a.zarr"), storage_options=s3.options)
    assert address == str(folder / "a.zarr")
    found = s3.objects(folder)
    assert found == {f"a.zarr/{name}": content for name, content in expected.items()}
    assert s3.uploads(folder) == []
    assert not any(SECRET.encode() in content or KEY.encode() in content for content in found.values())
    copied = [asked for asked in s3.asked if asked.is_copy]
    assert copied
    s3.asked.clear()
    assert write(archive, folder / "a.zarr") == address
    assert {asked.method for asked in s3.asked} <= {"GET", "HEAD"}, "a complete store was written to"


def test_what_reads_a_store_reads_it_there(archive: Path, s3: ObjectStorage, voxels: dict[str, np.ndarray]) -> None:
    """Xarray with fsspec's options, the array of the training loaders and open_target read the same voxels."""
    folder = s3.folder()
    address = write(archive, folder / "a.zarr")
    x0, x1, y0, y1, z0, z1 = TINY_BOX
    raw = voxels["raw"][z0:z1, y0:y1, x0:x1]
    ds = xr.open_zarr(address, storage_options=s3.options)
    np.testing.assert_array_equal(ds.raw, raw)
    assert SECRET not in repr(ds) + repr(ds.attrs) + str(ds.encoding) + str(ds.raw.encoding)
    array = StoredArray(folder / "a.zarr", "raw")
    s3.asked.clear()
    np.testing.assert_array_equal(array[1:4, 10:38, 3:70], raw[1:4, 10:38, 3:70])
    first = len(s3.asked)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[2:3, 0:9, 0:9], raw[2:3, :9, :9])
    s3.asked.clear()
    np.testing.assert_array_equal(array[1:4, 10:38, 3:70], raw[1:4, 10:38, 3:70])
    assert len(s3.asked) < first, "indexes of shards are read again"
    served: Any = zarr.open_group(ld.as_zarr(open_target(address, storage_options=s3.options)), mode="r")
    np.testing.assert_array_equal(served["raw"][1, 3:9], raw[1, 3:9])


def test_levels_and_labels_are_those_of_a_folder(
    archive: Path, s3: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pyramid, labels and voxel size are, object by object, those of a folder, and verify compares all of it."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 32)
    for place in (tmp_path / "a.zarr", s3.folder() / "a.zarr"):
        write(archive, place)
        ld.add_pyramid(place, progress=False)
        ld.annotate(place, voxel_size_nm=(50, 8, 8))
        report = ld.verify(place, progress=False, full=True)
        assert report.ok, report
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert s3.objects(place.parent) == files
    ds = xr.open_zarr(str(place), storage_options=s3.options)
    assert len(store_levels.open_levels(ds)) == len(store_levels.levels_of(place)) > 1, "views read no levels"
    assert any("/labels/er/1/c/" in name for name in files)


def check_kill(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], at: Callable[[Asked], bool], answers: bool
) -> int | None:
    """Kill a process that writes a store at a request, and write it again: what was finished is not written twice."""
    folder = s3.folder()
    code = killed_at(s3, at, answers, lambda: write(archive, folder / "a.zarr"))
    there = {name for name in s3.objects(folder) if "/progress/" in name}
    s3.undisturbed()
    write(archive, folder / "a.zarr")
    written = {asked.path.removeprefix(f"/{folder.key}/") for asked in s3.asked if asked.method == "PUT"}
    finished = {name for name in there if "/slabs/" in name or ("/shards/" in name and name.endswith(".json"))}
    assert not finished & written, "what was finished was written again"
    assert s3.objects(folder) == {f"a.zarr/{name}": content for name, content in expected.items()}
    assert s3.uploads(folder) == []
    return code


KILLS: dict[str, tuple[Callable[[Asked], bool], bool]] = {
    "before its claim is told": (put("/lock/00000001"), True),
    "while it begins": (put(r"\.partial/store/raw/zarr\.json"), True),
    "before it has begun": (put(r"\.partial/store/liver_dask/zarr\.json"), False),
    "when it has begun": (put(r"\.partial/store/liver_dask/zarr\.json"), True),
    "at a slab": (put("/slabs/raw/[1-9]-0"), False),
    "after a slab": (put("/slabs/raw/[1-9]-0"), True),
    "at a part of a shard": (lambda asked: "partNumber=2" in asked.query, False),
    "before a shard is joined": (lambda asked: asked.method == "POST" and "uploadId" in asked.query, False),
    "after a shard is joined": (lambda asked: asked.method == "POST" and "uploadId" in asked.query, True),
    "at the record of a shard": (put(r"/shards/raw/0-0-1\.json"), False),
    "while its slabs are removed": (lambda asked: asked.method == "DELETE" and "/slabs/" in asked.path, False),
    "before readers can see it": (put(r"a\.zarr/zarr\.json"), False),
    "before it is complete": (put(r"a\.zarr/liver_dask/zarr\.json"), False),
    "when it is complete": (put(r"a\.zarr/liver_dask/zarr\.json"), True),
    "when its copy is no store any more": (
        lambda asked: asked.method == "DELETE" and asked.path.endswith(".partial/store/liver_dask/zarr.json"),
        True,
    ),
    "while it tidies": (lambda asked: asked.method == "DELETE" and "/lock/" in asked.path, False),
}


SOME_KILLS = "before it has begun", "at a part of a shard", "before readers can see it", "before it is complete"
"""Those that are tried in each run of the tests; the others with `pytest -m real`."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "when", [*SOME_KILLS, *(pytest.param(when, marks=pytest.mark.real) for when in KILLS if when not in SOME_KILLS)]
)
def test_killed_at_some_request(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], small_parts, when: str
) -> None:
    """After a kill, the same call completes the store, and writes nothing twice that was finished."""
    assert check_kill(archive, s3, expected, *KILLS[when]) == -signal.SIGKILL


@pytest.mark.real
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("answers", [False, True])
def test_killed_at_any_request(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], small_parts, answers: bool
) -> None:
    """The same holds for every request."""
    number, code = 1, -signal.SIGKILL
    while code == -signal.SIGKILL:
        code = check_kill(archive, s3, expected, lambda asked, number=number: len(s3.asked) == number, answers)
        number += 1
    assert number > 100


@contextmanager
def writing(s3: ObjectStorage, call: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run a call on a thread, and hold its first slab back until the end of the `with` block."""
    held, let_go = threading.Event(), threading.Event()

    def hold(asked: Asked, application: Any) -> Any:
        if asked.method == "PUT" and "/slabs/" in asked.path:
            held.set()
            let_go.wait(60)
        return application

    s3.disturb = hold
    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert held.wait(60)
        yield thread
    finally:
        let_go.set()
        thread.join(60)
        s3.undisturbed()


@pytest.mark.slow
def test_a_second_writer_is_refused(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], short_claims: None, caplog
) -> None:
    """While one process writes a store, another call stops with a sentence, and the first completes it."""
    folder = s3.folder()
    with writing(s3, lambda: write(archive, folder / "a.zarr")):
        with pytest.raises(ld.StoreExistsError, match=r"a\.zarr is being written by another process, on .*; wait"):
            write(archive, folder / "a.zarr")
        with pytest.raises(ld.StoreExistsError, match="is being written by another process"):
            clean(folder / "a.zarr", unfinished=True)
    assert "was being written by a process on" in caplog.text
    assert s3.objects(folder) == {f"a.zarr/{name}": content for name, content in expected.items()}


@pytest.mark.slow
def test_a_stale_claim_is_taken_over(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], short_claims: None
) -> None:
    """A claim that its holder does not renew is taken over; the first holder sees that, and ends without harm."""
    folder = s3.folder()
    faults: list[BaseException] = []

    def first() -> None:
        try:
            write(archive, folder / "a.zarr")
        except ld.LiverDaskError as error:
            faults.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims.HeldClaim, "_renew_on", lambda claim: None)  # as if its process were stopped
        with writing(s3, first):
            s3.disturb = lambda asked, application: application
            write(archive, folder / "a.zarr")
    assert len(faults) == 1
    assert "is written by another process since this one could not renew its claim" in str(faults[0])
    left = {name: content for name, content in s3.objects(folder).items() if ".partial/progress/" not in name}
    assert left == {f"a.zarr/{name}": content for name, content in expected.items()}


def test_a_claim_of_a_process_that_ended_is_taken_over_at_once(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes]
) -> None:
    """After a kill on the same machine, nobody waits for a minute."""
    folder = s3.folder()
    assert killed_at(s3, put("/slabs/raw/2-0"), True, lambda: write(archive, folder / "a.zarr")) == -signal.SIGKILL
    assert any(".partial/lock/" in name for name in s3.objects(folder))
    began = time.monotonic()
    write(archive, folder / "a.zarr")
    assert time.monotonic() - began < claims.SECONDS_OF_A_CLAIM / 2
    assert set(s3.objects(folder)) == {f"a.zarr/{name}" for name in expected}


def test_an_unfinished_store_is_not_taken_for_data(archive: Path, s3: ObjectStorage) -> None:
    """Nothing opens an unfinished store, and commands say how to go on with it."""
    folder = s3.folder()
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write(archive, folder / "a.zarr"))
    assert any("/slabs/" in name or "/c/" in name for name in s3.objects(folder))
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(str(folder / "a.zarr"), storage_options=s3.options)
    with pytest.raises(ld.NotDownloadedError, match="an unfinished one, finish it first"):
        StoredArray(folder / "a.zarr", "raw")
    with pytest.raises(ld.StoreExistsError, match="unfinished store of another call"):
        ld.to_zarr(ld.open_human_liver_em(archive, shape=SHAPE), folder / "a.zarr", progress=False, **TINY)


def test_what_others_wrote_is_kept(archive: Path, s3: ObjectStorage) -> None:
    """A folder with objects of somebody else is refused, at the place of the store and beside it."""
    for name in ("a.zarr/notes.txt", "a.zarr.partial/notes.txt"):
        folder = s3.folder()
        (folder / name).call("pipe_file", (folder / name).key, b"mine")
        with pytest.raises(ld.StoreExistsError, match="liver_dask did not write"):
            write(archive, folder / "a.zarr")
        assert s3.objects(folder) == {name: b"mine"}
        with pytest.raises(ld.StoreExistsError) if "partial" in name else warnings.catch_warnings():
            clean(folder / "a.zarr", unfinished=True)
        assert s3.objects(folder) == {name: b"mine"}


@pytest.fixture
def environment(s3: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address and the credentials are in the environment."""
    for name, value in {"ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "ENDPOINT_URL": s3.url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


def test_credentials_may_come_after_they_were_missed(
    s3: ObjectStorage, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who forgot the credentials gives them, and calls again in the same process."""
    place = ObjectPath(str(s3.folder() / "a"))
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(OSError, match="Unable to locate credentials"):
            place.exists()
    assert not place.exists()


def test_what_is_left_is_cleaned(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], environment: None
) -> None:
    """`clean` gives up uploads, keeps what is finished unless told otherwise, and never touches a complete store."""
    folder = s3.folder()
    runner = CliRunner()
    killed_at(s3, put("/slabs/er/0-0"), True, lambda: write(archive, folder / "a.zarr"))
    key = f"{folder.key.removeprefix(f'{BUCKET}/')}/a.zarr/raw/c/0/0/0"
    s3.client.create_multipart_upload(Bucket=BUCKET, Key=key)
    told = runner.invoke(main, ["clean", str(folder / "a.zarr")])
    assert (told.exit_code, s3.uploads(folder)) == (0, [])
    assert "is an unfinished store with" in told.output
    assert any("/progress/" in name for name in s3.objects(folder))
    told = runner.invoke(main, ["info", str(folder / "a.zarr")])
    assert (told.exit_code, "a.zarr: unfinished, " in told.output) == (0, True), told.output
    told = runner.invoke(main, ["clean", str(folder / "a.zarr"), "--unfinished"])
    assert (told.exit_code, s3.objects(folder)) == (0, {}), told.output
    write(archive, folder / "a.zarr")
    told = runner.invoke(main, ["clean", str(folder / "a.zarr"), "--unfinished"])
    assert "Nothing is left" in told.output
    assert set(s3.objects(folder)) == {f"a.zarr/{name}" for name in expected}


def test_what_is_left_without_a_record_is_cleaned(archive: Path, s3: ObjectStorage, short_claims: None) -> None:
    """After a kill before the record, which is written last, `clean` removes all, unless somebody put more there."""
    folder = s3.folder()
    killed_at(s3, put("/store/liver_dask/zarr.json"), False, lambda: write(archive, folder / "a.zarr"))
    assert any("/store/" in name for name in s3.objects(folder))
    mine = folder / "a.zarr.partial" / "store" / "mine.txt"
    mine.call("pipe_file", mine.key, b"mine")
    with pytest.raises(ld.StoreExistsError, match="did not write; nothing was removed"):
        clean(folder / "a.zarr")
    mine.call("rm_file", mine.key)
    assert "is removed" in clean(folder / "a.zarr")
    assert not s3.objects(folder)


def test_the_commands_take_addresses(
    archive: Path, s3: ObjectStorage, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """download, info, pyramid, annotate and verify take an address, with credentials from the environment."""
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 64)
    store = str(s3.folder() / "a.zarr")
    runner = CliRunner()
    shape = ["--shape", *map(str, SHAPE)]
    for command, said in (
        (
            ["download", store, "--bbox", "150", "230", "100", "200", "2", "4", "--source", str(archive), *shape],
            "is complete",
        ),
        (["info", store], "complete"),
        (["pyramid", store], "has 2 levels"),
        (["annotate", store, "--voxel-size", "50", "8", "8"], "50 x 8 x 8 nm"),
        (["verify", store], "all right"),
    ):
        told = runner.invoke(main, command)
        assert told.exit_code == 0, (command, told.output, told.exception)
        assert said in told.output
        assert SECRET not in told.output


FAULTS: dict[str, Callable[[Asked, Any], Any]] = {}


def halved(application: Any) -> Any:
    """Return an application that answers as another one does, but breaks off in the middle of the body."""

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        body = b"".join(application(environ, start_response))
        return [body[: len(body) // 2]]

    return answer


@pytest.mark.slow
def test_a_storage_that_answers_badly_now_and_then(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], small_parts
) -> None:
    """With errors, and requests that are carried out but whose answer is lost, the store is the same."""
    rng = np.random.default_rng(1)
    counts: list[str] = []

    def disturb(asked: Asked, application: Any) -> Any:
        kind = rng.choice(["fine", "busy", "broken", "lost", "half"], p=[0.88, 0.03, 0.03, 0.03, 0.03])
        counts.append(kind)
        if kind == "half":
            return halved(application)
        if kind == "busy":
            return answered("503 Slow Down", "SlowDown")
        if kind == "broken":
            return answered("500 Internal Server Error", "InternalError")
        if kind == "lost":

            def lost(environ: Any, start_response: Any) -> list[bytes]:
                list(application(environ, lambda *_: None))
                return answered("500 Internal Server Error", "InternalError")(environ, start_response)

            return lost
        return application

    folder = s3.folder()
    s3.disturb = disturb
    write(archive, folder / "a.zarr")
    s3.undisturbed()
    assert {"busy", "broken", "lost", "half"} <= set(counts)
    array, x = StoredArray(folder / "a.zarr", "raw"), xr.open_zarr(str(folder / "a.zarr"), storage_options=s3.options)
    s3.disturb = lambda asked, application: halved(application) if len(s3.asked) % 3 == 0 else application
    np.testing.assert_array_equal(array[:, :, :], x.raw)
    s3.undisturbed()
    assert s3.objects(folder) == {f"a.zarr/{name}": content for name, content in expected.items()}


@pytest.mark.parametrize(
    ("error", "said"),
    [(("403 Forbidden", "AccessDenied"), "denied"), (("400 Bad Request", "ExpiredToken"), "ExpiredToken|told")],
)
def test_credentials_that_end_are_one_sentence_and_nothing_is_lost(
    archive: Path, s3: ObjectStorage, expected: dict[str, bytes], error: tuple[str, str], said: str
) -> None:
    """When the storage refuses in the middle, the error is a sentence without the secret, and the same call goes on."""
    folder = s3.folder()
    s3.disturb = lambda asked, application: application if len(s3.asked) < 120 else answered(*error)
    with pytest.raises((OSError, ld.LiverDaskError), match=said) as told:
        write(archive, folder / "a.zarr")
    assert SECRET not in str(told.value) + "".join(getattr(told.value, "__notes__", []))
    assert len(str(told.value).splitlines()) == 1
    s3.undisturbed()
    assert any("/progress/" in name for name in s3.objects(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "SECONDS_OF_A_CLAIM", 1.0)  # it could not be given up, and this process lives on
        write(archive, folder / "a.zarr")
    assert s3.objects(folder) == {f"a.zarr/{name}": content for name, content in expected.items()}


def test_a_bucket_that_does_not_exist(archive: Path, s3: ObjectStorage) -> None:
    """A wrong bucket is one sentence, before anything is read from the archive."""
    with serve(archive) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.InvalidArgumentError, match=r"Cannot write s3://no-such-bucket/a\.zarr"):
            ld.to_zarr(ds, "s3://no-such-bucket/a.zarr", storage_options=s3.options, progress=False)
        assert server.requests == []
    with pytest.raises(ld.InvalidArgumentError, match="give a name in the bucket"):
        ld.to_zarr(ds, f"s3://{BUCKET}", storage_options=s3.options, progress=False)


@pytest.mark.slow
def test_workers_that_share_no_disk(
    archive: Path, s3: ObjectStorage, tmp_path: Path, expected: dict[str, bytes], caplog
) -> None:
    """Workers in folders of their own write a store by themselves, and one that is lost is replaced."""
    folder = s3.folder()
    with (
        dask.config.set({"temporary-directory": str(tmp_path)}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
        serve(archive) as server,
    ):
        for number, worker in enumerate(client.scheduler_info()["workers"]):
            own = tmp_path / f"own-{number}"
            own.mkdir()
            client.run(os.chdir, str(own), workers=[worker])
        write(server.url, folder / "a.zarr", client=client)
        assert s3.objects(folder).keys() == {f"a.zarr/{name}" for name in expected}
        held = {
            name: content for name, content in s3.objects(folder).items() if "/c/" in name and "liver_dask" not in name
        }
        assert all(content == expected[name.removeprefix("a.zarr/")] for name, content in held.items())
        assert not [path for path in tmp_path.glob("own-*/*") if "zarr" in path.name]


def test_seconds_of_a_claim_allow_for_lost_renewals() -> None:
    """Several renewals may fail before a claim is stale."""
    assert timedelta(seconds=claims.SECONDS_OF_A_CLAIM) >= 5 * timedelta(seconds=claims.SECONDS_BETWEEN_RENEWALS)
