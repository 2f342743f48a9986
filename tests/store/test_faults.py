"""After any file operation fails with any error, finished work is kept, and the same call finishes the store."""

import errno
import fcntl
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.faults import ERRNOS, Operation, Watch
from helpers.stores import assert_same_files
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.store import levels as store_levels
from liver_dask.store import pyramid
from liver_dask.store import writer as store

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Object at labels.partial is not recognized"),
]
"""Warnings of coroutines that zarr leaves behind after an error, and of labels that could not be written."""

BOX = (150, 214, 100, 164, 2, 6)
TINY = {"chunks": (2, 32, 32), "shards": (4, 64, 32)}
SAMPLE = 10
"""Number of operations of each kind of run that fail in the suite; `pytest -m real` takes all of them."""


@dataclass(frozen=True)
class Case:
    """A call, the folder that it starts from, and the folder that it leaves.

    Attributes:
        start: The folder to begin with.
        call: The call, which is given a copy of that folder.
        expected: The folder that an undisturbed call leaves.
        operations: The file operations of the call.
    """

    start: Path
    call: Callable[[Path], object]
    expected: Path
    operations: list[Operation]

    @classmethod
    def of(cls, start: Path, call: Callable[[Path], object]) -> "Case":
        expected = start.with_name(f"{start.name}-done")
        shutil.copytree(start, expected)
        with Watch(expected).watching() as watch:
            call(expected)
        return cls(start, call, expected, sorted(set(watch.operations)))


def write(archive: Path, folder: Path) -> None:
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"])
    ld.to_zarr(ds, folder / "a.zarr", bounding_box=BOX, progress=False, **TINY)


def half_done(archive: Path, folder: Path, lacking: Path) -> Path:
    """Begin a store of an archive that lacks a slice, and return the path of the slice.

    The archive is a copy made at `lacking`, of symbolic links.
    """
    for file in (path for path in archive.rglob("*") if path.is_file()):
        (lacking / file.relative_to(archive)).parent.mkdir(parents=True, exist_ok=True)
        (lacking / file.relative_to(archive)).symlink_to(file)
    missing = lacking / EMPIAR_13356.path("raw", 5)
    missing.unlink()
    ds = ld.open_human_liver_em(lacking, shape=SHAPE, labels=["er"])
    with pytest.raises(ld.ExportError):
        ld.to_zarr(ds, folder / "a.zarr", bounding_box=BOX, progress=False, on_error="continue", **TINY)
    progress = folder / "a.zarr.partial" / "progress"
    assert list(progress.glob("slabs/raw/*"))
    assert list(progress.glob("shards/er/*.json"))
    return missing


@pytest.fixture(scope="module")
def cases(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """Cases of a new store, an unfinished store, a pyramid, the labels of a pyramid, and a voxel size."""
    root = tmp_path_factory.mktemp("cases")
    starts = {name: root / name for name in KINDS}
    starts["new"].mkdir()
    starts["half"].mkdir()
    lacking = root / "lacking"
    missing = half_done(archive, starts["half"], lacking)
    missing.symlink_to(archive / EMPIAR_13356.path("raw", 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_levels, "SMALL_ENOUGH", 32)
        write(archive, starts["levels"].parent)
        starts["levels"].mkdir()
        (root / "a.zarr").rename(starts["levels"] / "a.zarr")
        shutil.copytree(starts["levels"], starts["labels"])
        with patch.context() as no_labels:
            no_labels.setattr(pyramid, "write_ome_metadata", lambda *_: None)
            ld.add_pyramid(starts["labels"] / "a.zarr", progress=False)

        def add(folder: Path) -> None:
            ld.add_pyramid(folder / "a.zarr", progress=False)

        def annotate(folder: Path) -> None:
            ld.annotate(folder / "a.zarr", voxel_size_nm=(30, 8, 8))

        shutil.copytree(starts["labels"], starts["sizes"])
        add(starts["sizes"])
        found = {
            "new": Case.of(starts["new"], lambda folder: write(lacking, folder)),
            "half": Case.of(starts["half"], lambda folder: write(lacking, folder)),
            "levels": Case.of(starts["levels"], add),
            "labels": Case.of(starts["labels"], add),
            "sizes": Case.of(starts["sizes"], annotate),
        }
        print({name: len(case.operations) for name, case in found.items()})
        yield found


def finished_in(folder: Path) -> dict[Path, bytes]:
    """Return what an earlier run has finished: slabs, shards and their records, and the files of stores."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    progress = [path for path in found if "progress" in path.parts and path.name not in ("run", "status.json")]
    stores = [path for path in found if ".partial" not in str(path)]
    shards = [path for path in found if ".partial" in str(path) and "c" in path.parts]
    return {path.relative_to(folder): path.read_bytes() for path in (*progress, *stores, *shards)}


def check_nothing_is_lost(before: dict[Path, bytes], folder: Path) -> None:
    for path, content in before.items():
        if path.parts[0] == "a.zarr.partial" and (folder / "a.zarr").exists():
            continue  # the store is complete, and compared by `check_fault`
        if (folder / path).exists():
            assert path.name in ("zarr.json", "inventory.json") or (folder / path).read_bytes() == content, (
                f"{path} is another"
            )
            continue
        assert path.parts[:3] == ("a.zarr.partial", "progress", "slabs"), f"{path} is gone"
        z, y = map(int, path.name.split("-"))
        name = f"{z // TINY['shards'][0]}-{y // TINY['shards'][1]}-{{}}.json"
        records = folder / "a.zarr.partial" / "progress" / "shards" / path.parts[3]
        assert all((records / name.format(x)).exists() for x in (0, 1)), f"{path} is gone, and not merged"


def files_of(folder: Path) -> dict[Path, bytes]:
    """Return the files of a folder except those of unfinished stores, which the next call removes."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path: (folder / path).read_bytes() for path in found if ".partial" not in str(path)}


def check_fault(case: Case, operation: Operation, number: int, folder: Path) -> str:
    """Let one operation fail in a run on a copy of the case's folder, and return the name of the error, if any."""
    shutil.copytree(case.start, folder)
    before = finished_in(folder)
    told, sentence = "nobody was told", "-"
    with Watch(folder, operation, number).watching() as watch:
        try:
            case.call(folder)
        except (ld.LiverDaskError, OSError) as error:
            told, sentence = type(error).__name__, str(error)
    assert len(sentence.splitlines()) == 1, sentence
    if told == "nobody was told":
        assert files_of(case.expected / "a.zarr") == files_of(folder / "a.zarr")
    check_nothing_is_lost(before, folder)
    case.call(folder)
    assert_same_files(case.expected / "a.zarr", folder / "a.zarr")
    shutil.rmtree(folder)
    return told if watch.failed else "did not happen"


@contextmanager
def saying_which(operation: Operation, number: int) -> Iterator[None]:
    """Add a note to an error that says which operation failed before it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"when {operation} failed with {errno.errorcode[number]}")
        raise


@pytest.fixture(autouse=True)
def small_slices_have_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_levels, "SMALL_ENOUGH", 32)


KINDS = ("new", "half", "levels", "labels", "sizes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_some_operation_fails(cases: dict[str, Case], tmp_path: Path, kind: str) -> None:
    """After one file operation fails, finished work is kept, and the same call finishes the store."""
    case, rng = cases[kind], random.Random(kind)
    fired = 0
    for operation in rng.sample(case.operations, min(SAMPLE, len(case.operations))):
        number = rng.choice(ERRNOS)
        with saying_which(operation, number):
            fired += check_fault(case, operation, number, tmp_path / "a") != "did not happen"
    assert fired


@pytest.mark.real
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_fails(cases: dict[str, Case], tmp_path: Path, kind: str) -> None:
    """The same holds for every operation of a run and every error."""
    case = cases[kind]
    came, wrong = Counter[str](), []
    for operation, number in product(case.operations, ERRNOS):
        try:
            with saying_which(operation, number):
                came[check_fault(case, operation, number, tmp_path / "a")] += 1
        except Exception as error:
            wrong.append(" ".join([f"{type(error).__name__}: {str(error)[:300]}", *error.__notes__]))
            shutil.rmtree(tmp_path / "a")
    print(f"{kind}: {len(case.operations)} operations x {len(ERRNOS)} errors: {dict(came)}, {len(wrong)} wrong")
    assert wrong == []


def test_a_fault_while_an_error_is_reported_costs_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file operation fails while an export handles an error, finished work is kept, and that error is raised."""
    start, folder = tmp_path / "start", tmp_path / "folder"
    start.mkdir()
    half_done(archive, start, tmp_path / "lacking")
    tidy_after = store.Store.tidy_after
    watch = Watch(folder)

    def watched(self: store.Store, error: BaseException) -> None:
        with watch.watching():
            tidy_after(self, error)

    monkeypatch.setattr(store.Store, "tidy_after", watched)
    shutil.copytree(start, folder)
    with pytest.raises(ld.SliceNotFoundError):
        write(tmp_path / "lacking", folder)
    operations = sorted(set(watch.operations))
    assert {operation.name for operation in operations} >= {"open", "file.read", "stat"}
    for operation in operations:
        for number in (errno.ESTALE, errno.EIO, errno.EACCES):
            shutil.rmtree(folder)
            shutil.copytree(start, folder)
            before = finished_in(folder)
            watch = Watch(folder, operation, number)
            with saying_which(operation, number):
                with pytest.raises(ld.SliceNotFoundError, match="slice 5") as told:
                    write(tmp_path / "lacking", folder)
                assert watch.failed
                assert "is kept in" in told.value.__notes__[0]
                assert finished_in(folder) == before


def test_what_was_finished_a_moment_ago_is_not_taken_back(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed export keeps its slabs and shards even if the list of written regions is empty."""
    monkeypatch.setattr(store.Store, "written", lambda _: set())
    half_done(archive, tmp_path, tmp_path / "lacking")


def test_a_run_that_finished_nothing_leaves_nothing_of_its_own(archive: Path, tmp_path: Path) -> None:
    """A failed run that finished nothing removes its own files, but not an unfinished store of an earlier run."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE, labels=["er"])
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    nothing = ld.open_human_liver_em(lacking, shape=SHAPE, labels=["er"])
    out = tmp_path / "out"
    with pytest.raises(ld.SliceNotFoundError):
        ld.to_zarr(nothing, out / "a.zarr", bounding_box=BOX, progress=False, **TINY)
    assert list(out.iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.Store, "_withdraw", lambda _: False)  # as after a kill
        with pytest.raises(ld.SliceNotFoundError):
            ld.to_zarr(nothing, out / "a.zarr", bounding_box=BOX, progress=False, **TINY)
    assert (out / "a.zarr.partial" / "store").is_dir()
    with pytest.raises(ld.SliceNotFoundError):
        ld.to_zarr(nothing, out / "a.zarr", bounding_box=BOX, progress=False, **TINY)
    assert (out / "a.zarr.partial" / "store").is_dir()
    with pytest.raises(ld.StoreExistsError, match="another call"):
        ld.to_zarr(ds[["raw"]], out / "a.zarr", bounding_box=BOX, progress=False, **TINY)
    ld.to_zarr(ds, out / "a.zarr", bounding_box=BOX, progress=False, **TINY)  # the same archive, at its correct address


def test_what_a_run_could_not_tidy_up_the_next_one_does(cases: dict[str, Case], tmp_path: Path) -> None:
    """A call removes the unfinished folder beside a complete store, unless the lock of that folder is held."""
    case = cases["half"]
    folder = tmp_path / "a"
    shutil.copytree(case.expected, folder)
    partial = folder / "a.zarr.partial"
    (partial / "progress" / "slabs").mkdir(parents=True)
    (partial / "lock").write_text("")
    with (partial / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        case.call(folder)
        assert (partial / "progress").exists()
    case.call(folder)
    assert [path.name for path in folder.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("strangers", [None, "notes.txt", "cells"])
def test_labels_whose_group_has_no_metadata_yet_are_gone_on_with(
    cases: dict[str, Case], tmp_path: Path, strangers: str | None
) -> None:
    """Labels whose group has no metadata yet are completed; a file of the user among them is an error, and is kept."""
    folder = tmp_path / "a"
    shutil.copytree(cases["labels"].expected, folder)
    labels = folder / "a.zarr" / "labels"
    (labels / "zarr.json").rename(labels / ".zarr.json.0123abcd")
    if strangers is None:
        cases["labels"].call(folder)
        assert_same_files(cases["labels"].expected / "a.zarr", folder / "a.zarr")
        return
    (labels / strangers).write_bytes(b"mine")
    with pytest.raises(ld.StoreExistsError, match="is not a Zarr v3 group"):
        cases["labels"].call(folder)
    assert (labels / strangers).read_bytes() == b"mine"


def test_labels_whose_metadata_were_not_put_together_are_written_again(cases: dict[str, Case], tmp_path: Path) -> None:
    """`add_pyramid` restores consolidated metadata that are missing in a store with levels and labels."""
    folder = tmp_path / "a"
    shutil.copytree(cases["labels"].expected, folder)
    metadata = folder / "a.zarr" / "zarr.json"
    document = json.loads(metadata.read_bytes())
    del document["consolidated_metadata"]
    metadata.write_text(json.dumps(document))
    cases["labels"].call(folder)
    assert_same_files(cases["labels"].expected / "a.zarr", folder / "a.zarr")


def test_what_zarr_still_writes_of_a_failed_run_is_no_strangers(cases: dict[str, Case], tmp_path: Path) -> None:
    """Files that zarr writes after a failed run do not block the next call; a file of the user is an error."""
    case = cases["new"]
    folder = tmp_path / "a"
    late = folder / "a.zarr.partial" / "store.new" / "x"
    late.mkdir(parents=True)
    (late / "zarr.json").write_text("{}")
    case.call(folder)
    assert_same_files(case.expected / "a.zarr", folder / "a.zarr")
    assert [path.name for path in folder.iterdir()] == ["a.zarr"]
    shutil.rmtree(folder)
    late.mkdir(parents=True)
    (late.parents[1] / "mine").write_text("")
    with pytest.raises(ld.StoreExistsError, match="did not write"):
        case.call(folder)
    assert late.is_dir()
